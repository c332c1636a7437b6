"""Jobs that outlive the process that started them.

::

    client ---- submit ----> cluster:  drive task (seceded)  ---- tile tasks
       |                        |
       | dies                   v  heartbeat, records, report
       x                    target  <---- attach(target).wait() / .cancel() / .status()

The driver of a submitted plan is itself a task of the cluster.  It gives its slot back while it
waits; if its worker is lost, Dask starts it elsewhere and it goes on from the records, as often as
the policy's ``losses`` say.  Whoever wants
to watch, wait or cancel needs the target's store, and no scheduler: any process, any machine.

Until a worker is free, a job has not begun, which may take hours.  Who waits then goes on waiting,
unless another run has completed the target meanwhile, or it is known that the job cannot begin any
more (:mod:`geopatch_dask.execute.runs.beginning`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from distributed import Client, Future, fire_and_forget, worker_client
from distributed.protocol import pickle

from geopatch_dask.errors import GeopatchError, RunIncomplete, TargetError
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.attempt.versions import compare_versions
from geopatch_dask.execute.driving.head import not_loaded
from geopatch_dask.execute.runs.beginning import (
    check_begins,
    drive_key,
    failure,
    hopeless,
    spare_driver,
)
from geopatch_dask.execute.runs.run import execute
from geopatch_dask.execute.runs.runners import check_scheduler
from geopatch_dask.execute.target.prepare import prepare
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.report.report import Report
from geopatch_dask.report.status import Status, status
from geopatch_dask.store.jobs import RunState, announce, cancel, forget_run, runs, said, take_up
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger, current_fingerprint
from geopatch_dask.store.target import is_complete

__all__ = ["Job", "attach", "submit"]

#: Seconds between two looks at the target.
LOOK = 1.0
#: Seconds between two questions to the scheduler of a job that has not begun.
ASK = 15.0


class Job:
    """The runs of a plan, seen from outside; made by ``plan.submit`` and :func:`attach`.

    Parameters
    ----------
    target : Location
    fingerprint : str
    """

    def __init__(self, target: Location, fingerprint: str) -> None:
        self.target, self.fingerprint = target, fingerprint
        self._ledger = Ledger(target, fingerprint)
        # Where it was submitted from: its name, and what becomes of its driver.
        self._run = ""
        self._future: Future[Any] | None = None
        self._error: GeopatchError | None = None

    def __repr__(self) -> str:
        return f"Job({self.target.display!r}, {self.fingerprint[:8]})"

    @property
    def runs(self) -> list[RunState]:
        """What live runs last said, those that wait for a worker, and those that died."""
        return runs(self._ledger)

    @property
    def alive(self) -> bool:
        """Whether somebody works on the target, or will when a worker is free."""
        return bool(self._live())

    def _live(self) -> list[RunState]:
        """Runs that are worth waiting for: of a complete target, only those that still end."""
        live = [run for run in self.runs if run.alive]
        if all(run.begun for run in live) or not self.complete:
            return live
        return [run for run in live if run.begun]

    @property
    def complete(self) -> bool:
        """Whether the target is finished."""
        return is_complete(self.target)

    def status(self) -> Status:
        """The state of every super-tile; see :func:`geopatch_dask.status`."""
        return status(self.target)

    def wait(
        self,
        timeout: float | None = None,
        progress: Callable[[list[RunState]], None] | None = None,
    ) -> Report:
        """Wait until nobody works on the target any more, nor will.

        A job that has not begun is waited for, a day at most, until another run has completed the
        target; or until it is known that it cannot begin, because its scheduler is gone.

        Parameters
        ----------
        timeout : float, seconds, optional
        progress : callable
            Called about every second with what the live runs last said.

        Returns
        -------
        Report
            Of the last run that ended.

        Raises
        ------
        RunIncomplete
            When the target is not complete then: super-tiles failed, the run was cancelled, it
            died, or cannot begin.  Carries the report, if there is one.
        GeopatchError
            What a driver failed with that was submitted by this process.
        TimeoutError
        """
        began, asked = time.monotonic(), -math.inf
        while True:
            live, error = self._live(), self._failure()
            if error is not None:
                live = [run for run in live if run.id != self._run]
            elif live and not any(run.begun for run in live) and time.monotonic() - asked > ASK:
                live, error = self._hopeful(live)
                asked = time.monotonic()
            if not live:
                return self._ended(error)
            if progress is not None:
                progress(live)
            if timeout is not None and time.monotonic() - began > timeout:
                raise TimeoutError(f"{self.target.display} is not finished after {timeout:g} s")
            time.sleep(LOOK)

    def _failure(self) -> GeopatchError | None:
        """What the driver failed with, where it was submitted from here."""
        if self._error is None and self._future is not None:
            self._error = failure(self._ledger, self._run, self._future)
            if self._error is not None:
                with suppress(GeopatchError):
                    forget_run(self._ledger, self._run)
        return self._error

    def _hopeful(self, live: list[RunState]) -> tuple[list[RunState], GeopatchError | None]:
        """Of runs that have not begun, those that may; and why another cannot."""
        lost = {run.id: why for run in live if (why := hopeless(run))}
        for run in list(lost):
            now = said(self._ledger, run)
            if now is None or now.begun:  # meanwhile
                del lost[run]
        if not lost:
            return live, None
        error = RunIncomplete(
            f"the job for {self.target.display} has not begun, and cannot any more: "
            f"{next(iter(lost.values()))}; submit it again"
        )
        return [run for run in live if run.id not in lost], error

    def _ended(self, error: GeopatchError | None) -> Report:
        stored = self._ledger.read_report()
        report = None if stored is None else Report.from_json(stored)
        if self.complete and report is not None:
            return report
        if error is not None:
            raise error
        if report is not None and report.first_pass:
            raise RunIncomplete(report.first_pass["error"], [], report)
        counts = self.status().counts
        done = counts["done"] + counts["empty"]
        raise RunIncomplete(
            f"nobody works on {self.target.display}, and it is not complete: {done} of "
            f"{sum(counts.values())} super-tiles are done, {counts['failed']} failed; run or "
            "submit it again",
            [f.id for f in report.failures] if report else [],
            report,
        )

    def cancel(self, timeout: float = 60.0) -> None:
        """Ask all runs to stop, and wait until they have; what is done is kept.

        A job that has not begun is forgotten: should a worker take it up later, it ends at once.

        Raises
        ------
        TimeoutError
            When one has not stopped in time: its super-tile may take long.
        """
        began, asked = time.monotonic(), set[str]()
        while True:
            found = self.runs
            for run in found:
                if run.id not in asked:
                    cancel(self._ledger, run)
            # One that had not begun may have just now, before it was forgotten: looked for again.
            waiting = {run.id for run in found if run.state == "submitted"}
            asked |= {run.id for run in found} - waiting
            left = [run for run in found if run.working or run.id in waiting]
            if not left:
                return
            if time.monotonic() - began > timeout:
                raise TimeoutError(f"asked, but not stopped after {timeout:g} s: {len(left)} runs")
            time.sleep(LOOK / 5)


def attach(target: Any, storage_options: Mapping[str, Any] | None = None) -> Job:
    """The job that works on a target, from any process that can read the target's store.

    Raises
    ------
    TargetError
        When there is no plan beside the target.
    """
    place = Location.of(target, storage_options)
    found = current_fingerprint(place)
    if found is None:
        raise TargetError(
            f"no plan is recorded beside {place.display}; is this the target of a run?"
        )
    return Job(place, found)


def submit(plan: PlanBase, client: Client, policy: Policy, overwrite: bool = False) -> Job:
    """See :meth:`geopatch_dask.Plan.submit`."""
    check_scheduler(plan, client, policy)
    compare_versions(client)
    prepare(plan, overwrite)  # what is wrong is said here, not in a log of some worker
    job = Job(plan.target, plan.fingerprint)
    run = RunState.begin(
        state="submitted",
        dashboard=client.dashboard_link,
        scheduler=str(getattr(client.scheduler, "address", "")),
    )
    announce(job._ledger, replace(run, total=plan.n_supertiles))
    options: dict[str, Any] = {"key": drive_key(run.id), "pure": False, "priority": 10}
    try:
        # As bytes: a worker that could not even read the message with its task would be lost.
        data = pickle.dumps((plan, policy))
        where = (plan.target, plan.fingerprint, run.id)
        future = client.submit(_driven, data, *where, **options)
    except BaseException:  # it cannot be sent: nobody is to wait for it
        with suppress(GeopatchError):
            forget_run(job._ledger, run.id)
        raise
    fire_and_forget(future)
    check_begins(job._ledger, run.id, future)
    spare_driver(client, run.id, policy.losses)
    job._run, job._future = run.id, future
    return job


def _driven(data: bytes, target: Location, fingerprint: str, run: str) -> dict[str, Any] | None:
    """The driver as a task: it gives its slot back while it waits for others."""
    ledger = Ledger(target, fingerprint)
    if not take_up(ledger, run):
        return None  # cancelled while it waited
    try:
        plan, policy = _loaded(data)
        with worker_client() as client:
            return execute(plan, client, policy, run=run).to_json()
    except BaseException:
        with suppress(GeopatchError):
            forget_run(ledger, run)  # nobody is to wait for it
        raise


def _loaded(data: bytes) -> tuple[PlanBase, Policy]:
    """What a driver needs.

    Raises
    ------
    PlanNotLoaded
        When a module is not installed here.
    """
    try:
        made: tuple[PlanBase, Policy] = pickle.loads(data)
    except Exception as error:
        raise not_loaded(error) from error
    return made
