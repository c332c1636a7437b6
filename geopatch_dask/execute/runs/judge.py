"""What a report means for whoever asked for the run: nothing, a warning, or an error."""

from __future__ import annotations

import sys
import warnings

from geopatch_dask.errors import OptionError, RunIncomplete, SuperTileFailed
from geopatch_dask.report.report import Report

__all__ = ["UncoveredWarning", "check_on_failure", "judge"]


class UncoveredWarning(UserWarning):
    """Some cells of a finished target hold the fill value because no patch gave them another."""


def check_on_failure(on_failure: str) -> None:
    """Refuse what :func:`judge` does not know, before anything is done.

    Raises
    ------
    OptionError
    """
    if on_failure not in ("raise", "return"):
        raise OptionError(f"on_failure {on_failure!r} is neither 'raise' nor 'return'")


def judge(report: Report, on_failure: str = "raise", is_share: bool = False) -> None:
    """Raise for a run that is not complete, warn of holes in one that is.

    Parameters
    ----------
    report : Report
    on_failure : {"raise", "return"}
    is_share : bool
        Whether the run was to do a part only; then only failures are its fault.

    Raises
    ------
    RunIncomplete
        With the first of the super-tiles that failed as its cause, a SuperTileFailed; where the
        first pass failed, with the error that was its cause.
    """
    if report.complete:
        _warn(report)
    if report.complete or on_failure == "return":
        return
    done = report.skipped + report.summary.done
    if report.cancelled:
        raise RunIncomplete(
            f"the run was cancelled; {done} of {report.supertiles} super-tiles are done and kept: "
            "run it again to finish",
            [],
            report,
        )
    if report.cause is not None:
        report.cause.report = report
        raise report.cause
    failed = [f.id for f in report.failures]
    if is_share and not failed:
        return
    if not failed:
        why = "".join(f"; {problem}" for problem in report.problems[-1:])
        raise RunIncomplete(
            f"{done} of {report.supertiles} super-tiles are done{why}; run the plan to compute the "
            "rest",
            [],
            report,
        )
    raise RunIncomplete(
        f"{len(failed)} of {report.supertiles} super-tiles failed ({', '.join(failed[:3])}"
        f"{' ...' if len(failed) > 3 else ''}); the first: {report.failures[0].error}; the others "
        "are done: mend the cause and run the same command again",
        failed,
        report,
    ) from _first(report)


def _first(report: Report) -> SuperTileFailed:
    """The first failure, with where it was as a note."""
    first = report.failures[0]
    cause = SuperTileFailed(f"{first.id}: {first.error}")
    if first.traceback:
        cause.add_note(first.traceback)
    return cause


def _warn(report: Report) -> None:
    uncovered = report.totals.get("uncovered", 0)
    left_out = report.failed_patches
    if uncovered:
        warnings.warn(
            f"{uncovered:,} cells of {report.target} were reached by no patch and hold the fill "
            "value; a stride no longer than the patch, with boundary='shift', covers every cell",
            UncoveredWarning,
            stacklevel=_outside(),
        )
    if left_out:
        warnings.warn(
            f"{left_out:,} patches of {report.target} failed and were left out (on_error='fill'); "
            "geopatch_dask.retry computes them again once the cause is mended",
            UncoveredWarning,
            stacklevel=_outside(),
        )


def _outside() -> int:
    """How many frames above the caller the code is that uses this package."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("geopatch_dask."):
        level, frame = level + 1, frame.f_back
    return level + 1
