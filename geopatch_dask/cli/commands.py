"""``geopatch plan``, ``run`` and ``status``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group

import geopatch_dask as gp
from geopatch_dask.cli.clusters import on_nodes_of, planning_on, scheduler_of, slots_and_memory
from geopatch_dask.cli.console import (
    BAD_INPUT,
    INCOMPLETE,
    INTERRUPTED,
    OK,
    TERMINATED,
    Stopped,
    Terminated,
    note,
    one_line,
    out,
    told_logs,
)
from geopatch_dask.cli.job import Job, load_job
from geopatch_dask.cli.keys import KEYS, find, parted, toml_value
from geopatch_dask.cli.progress import progress_for
from geopatch_dask.errors import GeopatchError, OptionError, PlanMismatch
from geopatch_dask.execute.attempt.metrics import serve
from geopatch_dask.execute.runs.runners import Scheduler
from geopatch_dask.execute.target.prepare import check_mismatch
from geopatch_dask.execute.target.presence import TargetGone
from geopatch_dask.planning.drawing import pyplot
from geopatch_dask.planning.nodes import parse_nodes
from geopatch_dask.report.report import Report

__all__ = [
    "job_of",
    "make_plan",
    "plan",
    "run",
    "run_plan",
    "settings",
    "status",
    "verdict",
]

#: Characters of a line that no terminal breaks.
_WIDE = 240


def plan(args: argparse.Namespace) -> int:
    """Say what a job would do; writes nothing but what is asked for."""
    job = job_of(args)
    if args.draw:
        pyplot()  # what is missing for it is said before the work
    nodes = parse_nodes(args.nodes) if args.nodes else None
    with job.importable(), planning_on(job) as scheduler:
        made = make_plan(job, scheduler)
        explanation = made.explain(nodes and on_nodes_of(job, nodes, made))
    if args.json == "-":
        out(made.to_json())
    else:
        out(explanation)
    if args.json and args.json != "-":
        _save(args.json, made.to_json())
    if args.draw:
        _drawn(args.draw, explanation.draw)
    try:
        check_mismatch(made)
    except PlanMismatch as error:
        note(f"geopatch run would refuse this: {error}", "note")
    except GeopatchError:  # a target that cannot be read: run says what that means for it
        pass
    return OK


def run(args: argparse.Namespace) -> int:
    """Do a job, or what is left of it."""
    job = job_of(args)
    quiet = bool(job.get("run", "quiet", False))
    with job.importable(), scheduler_of(job) as scheduler:
        made = make_plan(job, scheduler)
        report = run_plan(job, made, scheduler, overwrite=args.overwrite)
    if not quiet:
        out(report)
    share = job.get("run", "share") is not None
    return verdict(report, bool(job.get("run", "allow_uncovered", False)), share)


def verdict(report: Report, allowed: bool, share: bool = False) -> int:
    """The exit code of a run, and one line on stderr that says why it is not 0.

    Parameters
    ----------
    report : Report
    allowed : bool
        Whether uncovered cells are all right.
    share : bool
        Whether the run was to do a part of the plan only.
    """
    if report.cancelled:
        note("the run was cancelled; run the same command again to finish", "cancelled")
        return INTERRUPTED
    if report.first_pass:
        note(one_line(report.first_pass["error"]), "incomplete")
        return INCOMPLETE
    if share and not report.complete and not report.failures:
        note("this share is done; others are not yet")
        return OK
    for problem in report.problems:
        note(problem, "problem")
    return exit_code(
        report.complete,
        report.supertiles,
        len(report.failures),
        report.totals.get("uncovered", 0),
        allowed,
        report.failures[0].error if report.failures else "",
        report.failed_patches,
    )


def status(args: argparse.Namespace) -> int:
    """Say how far a target is."""
    allowed = args.allow_uncovered
    target, options = args.target, None
    if target.endswith(".toml"):
        job = load_job(target, {})
        target, options = job.target, job.storage_options
        allowed = allowed or bool(job.get("run", "allow_uncovered", False))
    if args.draw:
        pyplot()
    found = gp.status(target, options)
    if args.json:
        out(json.dumps(_status_json(found), indent=1))
    else:
        _show(found.table(failed=args.failed, traceback=args.traceback))
    if args.draw:
        _drawn(args.draw, found.draw)
    if args.html:
        note(f"the report is in {found.to_html(args.html)}")
    return exit_code(
        found.complete,
        found.layout.count,
        len(found.failed),
        found.totals()["uncovered"],
        allowed,
        _error_text(found.failed[0].error) if found.failed else "",
        found.totals()["failed_patches"],
    )


# ---- shared with the demo ------------------------------------------------------------------


def job_of(args: argparse.Namespace) -> Job:
    """The job of a command line: its file, then ``--set``, then the flags."""
    given = settings(args)
    for key in KEYS:
        value = getattr(args, f"{key.section}.{key.name}", None)
        if value is not None:
            given[key.section, key.name] = value
    return load_job(args.job, given)


def settings(args: argparse.Namespace) -> dict[tuple[str, str], Any]:
    """What ``--set`` gave."""
    given: dict[tuple[str, str], Any] = {}
    for text in args.set or ():
        place, equals, value = text.partition("=")
        section, name = parted(place.strip())
        if not equals or not (section and name):
            # Of what has no "=", the value cannot be told, which may be a secret.
            shown = repr(place) if equals else f"{text[:4]!r}..."
            raise OptionError(f"--set {shown} is not of the form section.key=value")
        find(section, name)
        given[section, name] = toml_value(value.strip())
    return given


def make_plan(job: Job, scheduler: Scheduler) -> gp.Plan:
    """The plan of a job.

    Raises
    ------
    GeopatchError
        For bad input.
    Stopped
        For anything else that goes wrong before the first super-tile.
    """
    slots, memory = slots_and_memory(job, scheduler)
    try:
        return gp.plan(**job.plan_arguments(), slots=slots, memory_limit=memory)
    except GeopatchError:
        raise
    except Exception as error:  # of a reader, or of the user's own code
        raise Stopped(
            f"{type(error).__name__}: {error}; --traceback shows where", BAD_INPUT
        ) from error


def run_plan(job: Job, made: gp.Plan, scheduler: Scheduler, overwrite: bool = False) -> Report:
    """Run a plan with its progress on stderr.

    Raises
    ------
    GeopatchError
        When the target cannot be what the plan needs; nothing has been computed then.
    Stopped
        When the run itself ends before its time.
    """
    quiet = bool(job.get("run", "quiet", False))
    every = float(job.get("run", "log_every", 10.0))
    partial = job.get("run", "share") is not None
    progress = progress_for(made.n_supertiles, quiet, every, partial)
    try:
        with told_logs(quiet), _serving(job), progress:
            return made.run(
                scheduler,
                policy=job.policy,
                share=job.get("run", "share"),
                overwrite=overwrite,
                progress=progress,
                on_failure="return",
            )
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        raise Stopped(
            f"{_kept(made)}; run the same command again to finish",
            TERMINATED if ended else INTERRUPTED,
            "terminated" if ended else "interrupted",
        ) from error
    except Exception as error:
        nothing = isinstance(error, GeopatchError) and not progress.counts.done
        if nothing or isinstance(error, TargetGone):
            raise
        raise Stopped(
            f"the run broke off ({type(error).__name__}: {error}); {_kept(made)}: mend the cause "
            "and run the same command again",
            INCOMPLETE,
        ) from error


@contextmanager
def _serving(job: Job) -> Iterator[None]:
    """Within it, what this process counts can be scraped, if the job says where."""
    address = job.get("run", "metrics")
    if address is None:
        yield
        return
    with serve(str(address)) as port:
        if not job.get("run", "quiet", False):
            note(f"numbers for Prometheus are at port {port}")
        yield


def _kept(made: gp.Plan) -> str:
    """What a run leaves behind, by its records: workers may have finished more than was told."""
    try:
        counts = gp.status(made.target).counts
    except GeopatchError:
        return "what was done is kept"
    done = counts["done"] + counts["empty"]
    return f"{done} of {made.n_supertiles} super-tiles are done and kept"


def exit_code(
    complete: bool,
    supertiles: int,
    failed: int,
    uncovered: int,
    allowed: bool,
    first: str,
    failed_patches: int = 0,
) -> int:
    """The exit code, and one line on stderr that says why it is not 0.

    Parameters
    ----------
    complete : bool
    supertiles, failed : int
    uncovered : int, cells
    allowed : bool
        Whether uncovered cells are all right.
    first : str
        The error of the first super-tile that failed.
    failed_patches : int
        Left out of super-tiles that are done.
    """
    if not complete and failed:
        note(
            f"{failed} of {supertiles} super-tiles failed ({one_line(first)}); the others are "
            "kept: mend the cause and run the same command again",
            "incomplete",
        )
    elif not complete:
        note("not all super-tiles are done; run the same command again to finish", "incomplete")
    elif failed_patches:
        note(
            f"{failed_patches:,} patches failed and were left out ([run] on_error = 'fill'); mend "
            "the cause, then geopatch retry computes them again",
            "incomplete",
        )
    elif uncovered and not allowed:
        note(
            f"{uncovered:,} cells were reached by no patch and hold the fill value; "
            "a step no longer than the patch, with [patch] boundary = 'shift', covers every cell; "
            "--allow-uncovered accepts them",
            "incomplete",
        )
    else:
        return OK
    return INCOMPLETE


# ---- parts ---------------------------------------------------------------------------------


def _show(table: Group) -> None:
    """A table on stdout; as wide as it needs to be where nobody looks at it in a terminal."""
    width = None if sys.stdout.isatty() else _WIDE
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def _status_json(found: gp.Status) -> dict[str, Any]:
    return {
        "schema": 1,
        "target": found.target,
        "fingerprint": found.fingerprint,
        "complete": found.complete,
        "supertiles": found.layout.count,
        "states": found.counts,
        "totals": found.totals(),
        "failures": [
            {"id": r.id, "error": _error_text(r.error), "attempts": r.attempts}
            | {"traceback": (r.error or {}).get("traceback", "")}
            for r in found.failed
        ],
        "problems": list(found.problems),
        "runs": [asdict(run) | {"alive": run.alive} for run in found.runs],
    }


def _error_text(error: Mapping[str, str] | None) -> str:
    return f"{error['type']}: {error['message']}" if error else ""


def _save(path: str, text: str) -> None:
    try:
        Path(path).write_text(text + "\n", "utf-8")
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}") from None
    note(f"the plan is in {path}")


def _drawn(path: str, draw: Any) -> None:
    try:
        draw(path)
    except (OSError, ValueError) as error:  # no such folder; a suffix matplotlib does not know
        raise OptionError(f"{path} cannot be drawn: {error}") from None
    note(f"the drawing is in {path}")
