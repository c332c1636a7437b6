"""One run of a plan: what is left of it, driven to its end, and the report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from distributed import Client

from geopatch_dask.errors import OptionError, TargetError
from geopatch_dask.execute.attempt.events import Event, Failed
from geopatch_dask.execute.attempt.first_pass import FirstPassFailed
from geopatch_dask.execute.attempt.logs import log_lost
from geopatch_dask.execute.attempt.metrics import RunMetrics
from geopatch_dask.execute.attempt.policy import DEFAULT, Policy
from geopatch_dask.execute.attempt.stage import recorded_context
from geopatch_dask.execute.attempt.versions import compare_versions
from geopatch_dask.execute.driving.drive import Cancelled, Pulse, drive
from geopatch_dask.execute.runs.runners import Scheduler, check_scheduler, workers_of
from geopatch_dask.execute.target.prepare import (
    complete_if_done,
    finished,
    ids,
    prepare,
    unfinished,
)
from geopatch_dask.execute.target.presence import check_present
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.requests import DRAWN
from geopatch_dask.report.html import report_html
from geopatch_dask.report.outcome import Outcome, Summary
from geopatch_dask.report.report import Report
from geopatch_dask.retries import counting
from geopatch_dask.store.bundles import Bundler
from geopatch_dask.store.jobs import RunState
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import is_complete

__all__ = ["Progress", "Share", "execute", "parse_share"]

#: Called after every super-tile: outcome, super-tiles finished so far, super-tiles of this run.
Progress = Callable[[Outcome, int, int], None]

#: ``(i, n)`` or ``"i/n"``, 0 <= i < n: every n-th super-tile from the i-th on.
Share = tuple[int, int] | str | None

_SHARE = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*")


def parse_share(share: Share) -> tuple[int, int] | None:
    """A share as two numbers.

    Raises
    ------
    OptionError

    Examples
    --------
    >>> parse_share("3/16")
    (3, 16)
    """
    if share is None:
        return None
    found = _SHARE.fullmatch(share if isinstance(share, str) else "{}/{}".format(*share))
    if found is None or not int(found[1]) < int(found[2]):
        raise OptionError(
            f"share {share!r} is not i/n with 0 <= i < n: shares count from 0, as in 0/16 to 15/16"
        )
    return int(found[1]), int(found[2])


def execute(
    plan: PlanBase,
    scheduler: Scheduler = None,
    policy: Policy = DEFAULT,
    *,
    share: Share = None,
    overwrite: bool = False,
    select: Callable[[PlanBase], Container[str]] | None = None,
    run: str = "",
    progress: Progress | None = None,
) -> Report:
    """Compute what is left of a plan, and finish its target if nothing is.

    Parameters
    ----------
    plan : PlanBase
    scheduler, policy, share, overwrite, progress
        As for :meth:`geopatch_dask.Plan.run`.
    select : callable ``plan -> ids``, optional
        Names the super-tiles to compute, of those that are left.  It may make some to be computed
        again: it is asked when nothing that was asked for can be refused any more.
    run : str
        Name of this run beside the target; by default a new one.

    Returns
    -------
    Report
        Also when super-tiles or the first pass failed, or the run was cancelled.

    Raises
    ------
    TargetGone
        When the target was deleted or replaced meanwhile.
    """
    with counting() as repeated:  # by the driver itself; attempts count their own
        began = time.perf_counter()
        part = parse_share(share)
        check_scheduler(plan, scheduler, policy)
        differing = compare_versions(scheduler) if isinstance(scheduler, Client) else []
        prepare(plan, overwrite)
        wanted = None if select is None else select(plan)
        records, problems = finished(plan)
        todo, records = unfinished(plan, records)
        left, kept = len(todo), len(records)
        report = Report.start(plan, records, [*differing, *problems])
        report.skipped = plan.n_supertiles - left
        del records  # many, and no longer needed
        if part is not None:
            todo = [i for i in todo if i % part[1] == part[0]]
        if wanted is not None:
            todo = [i for i in todo if plan.supertile(i).id in wanted]
        state = RunState.begin(
            run,
            share="" if part is None else f"{part[0]}/{part[1]}",
            dashboard=scheduler.dashboard_link if isinstance(scheduler, Client) else "",
        )
        # It says that it is alive until its report is there: who waits for its end reads that.
        with Pulse(plan, report.skipped, len(todo), state) as pulse:
            try:
                _drive(plan, scheduler, policy, todo, report, pulse, progress)
            except Cancelled:
                report.cancelled = True
            except FirstPassFailed as error:
                report.first_pass = {"error": str(error), "traceback": error.traceback}
                report.cause = error
            whole = len(todo) == left
            _end(plan, report, len(todo), kept + len(todo) if whole else None)
            report.seconds = time.perf_counter() - began
            report.summary += Summary(numbers={"retries": repeated.value})
            write_report(plan, report)
        return report


def _end(plan: PlanBase, report: Report, todo: int, expected: int | None) -> None:
    """The last act, if nothing is left to do; ``expected`` as for :func:`complete_if_done`.

    Raises
    ------
    TargetGone
    """
    try:
        problems = complete_if_done(plan, expected) if todo == report.summary.done else []
        report.complete = is_complete(plan.target)
    except TargetError:
        check_present(plan)
        raise
    if problems or not report.complete:
        check_present(plan)
    report.problems += problems


def _drive(
    plan: PlanBase,
    scheduler: Scheduler,
    policy: Policy,
    todo: list[int],
    report: Report,
    pulse: Pulse,
    progress: Progress | None,
) -> None:
    counted = RunMetrics(plan, len(todo))
    bundler = Bundler(Ledger(plan.target, plan.fingerprint).folder)

    def on_outcome(outcome: Outcome) -> None:
        report.add(outcome)
        pulse.count(outcome)
        counted.ended(outcome)
        bundler.add(outcome.record)
        if progress is not None:
            progress(outcome, sum(report.summary.states.values()), len(todo))

    def on_events(events: Sequence[Event], backups: int) -> None:
        counted.heard(events, backups)
        for event in events:
            log_lost(plan, event, policy)
        if any(_blames_target(event) for event in events):
            pulse.look()

    context = _recorded_context(plan, report)
    try:
        with (
            bundler,
            workers_of(plan, scheduler, len(todo), policy, context, pulse.check) as workers,
        ):
            drive(todo, workers, policy, on_outcome, pulse.check, on_events)
    finally:
        counted.close()


def _blames_target(event: Event) -> bool:
    """Whether an attempt failed for good because of the target: it may not be there any more."""
    if not isinstance(event, Failed):
        return False
    return event.error.get("type") == "TargetError" and event.error.get("kind") == "permanent"


def _recorded_context(plan: PlanBase, report: Report) -> Mapping[str, Any] | None:
    """What an earlier run found in pass 1, if it can be trusted."""
    if plan.context is None:
        return None
    context, problem = recorded_context(plan)
    if problem:
        report.problems.append(problem)
    return context


def write_report(plan: PlanBase, report: Report) -> None:
    """Write ``report.json``, and for people ``report.html``, beside the target.

    Of very large plans the second is made when somebody asks: ``geopatch status --html``.
    """
    ledger = Ledger(plan.target, plan.fingerprint)
    document = report.to_json()
    ledger.write_report(document)
    if plan.n_supertiles > DRAWN:
        return
    done, failed = ledger.done(expected=ids(plan)), ledger.failed(expected=ids(plan))
    records = [*done.values(), *failed.values()]
    page = report_html(json.loads(ledger.read_plan() or plan.to_json()), document, records)
    ledger.folder.write("report.html", page.encode())
