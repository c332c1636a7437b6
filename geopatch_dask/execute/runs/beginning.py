"""Whether a job that was submitted begins, as far as that can be known.

::

    submit ---- drive task ----> scheduler ----> a worker takes it up ----> first heartbeat
                                    |                |
                                    |                +-- the plan cannot be loaded there
                                    +-- the plan cannot be loaded, or the scheduler ends

Nobody tells of what goes wrong on this way: who submitted may be gone, and what was to begin has
not.  So ``submit`` looks for a moment before it returns, and later whoever waits asks the scheduler
whether it still knows the task.  Nothing depends on an answer: a scheduler that cannot be reached
may be well, so only these count as the end of a job that has not begun:

* the scheduler's port is closed on the machine where the job was submitted (another machine may
  see a firewall);
* the scheduler answers, and does not know the task.
"""

from __future__ import annotations

import logging
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future, KilledWorker

from geopatch_dask.errors import GeopatchError, RunIncomplete
from geopatch_dask.execute.driving.connection import value_or_error
from geopatch_dask.execute.driving.head import deepest, not_loaded
from geopatch_dask.store.jobs import STALE, RunState, forget_run, said
from geopatch_dask.store.records import Ledger

__all__ = ["check_begins", "drive_key", "failure", "hopeless", "spare_driver"]

_log = logging.getLogger(__name__)

#: Seconds that ``submit`` looks whether a job begins; without a free worker it takes all of them.
BEGINS = 3.0
#: Seconds that a scheduler has to answer.
PATIENCE = 3.0


def drive_key(run: str) -> str:
    """The name that a cluster knows the driver of a run by."""
    return f"drive-{run}"


def check_begins(ledger: Ledger, run: str, future: Future[Any]) -> None:
    """Look for a moment whether a job begins that has just been submitted.

    Parameters
    ----------
    ledger : Ledger
    run : str
    future : distributed.Future
        Of its drive task.

    Raises
    ------
    PlanNotLoaded
        When the cluster cannot load the plan.
    RunIncomplete
    GeopatchError
        What the driver raised before it began.
    """
    deadline, pause = time.monotonic() + BEGINS, 0.05
    while time.monotonic() < deadline and not future.done():
        now = said(ledger, run)
        if now is not None and now.begun:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    error = failure(ledger, run, future)
    if error is not None:
        with suppress(GeopatchError):
            forget_run(ledger, run)
        raise error


def spare_driver(client: Client, run: str, losses: int) -> None:
    """Have a scheduler start a drive task again that lost its worker.

    Clusters of ours allow no task a failure (:mod:`geopatch_dask.clusters.settings`), because the
    driver decides what a death means.  Nobody else decides that for the driver itself.

    Parameters
    ----------
    client : distributed.Client
    run : str
    losses : int
        How often, beyond what the scheduler allows anyway.
    """
    key = drive_key(run)

    # Inside, so that it travels by value: schedulers need not have this package.
    def spare(dask_scheduler: Any) -> None:
        if (task := dask_scheduler.tasks.get(key)) is not None:
            task.suspicious = -losses

    try:
        client.run_on_scheduler(spare)
    except Exception as error:  # one that runs nothing for its clients
        _log.warning("the job ends with the worker that drives it, should that be lost: %s", error)


def failure(ledger: Ledger, run: str, future: Future[Any]) -> GeopatchError | None:
    """Why a drive task ended without a report, or None while it has not, for all that is known."""
    if future.status != "error":
        return None
    error = value_or_error(future)
    if isinstance(error, KilledWorker):
        return _because(
            RunIncomplete(
                "the job is lost with the worker that drove it, and so were those that drove it "
                "before; what is done is kept: see what ends workers (geopatch doctor), and submit "
                "it again"
            ),
            error,
        )
    if isinstance(error, GeopatchError):
        return error
    if not isinstance(error, BaseException):
        return None
    before = said(ledger, run)
    if before is not None and before.state == "submitted":  # what a driver changes first
        return _because(not_loaded(error), error)
    return _because(RunIncomplete(f"the driver of the job failed ({deepest(error)})"), error)


def _because(error: RunIncomplete, cause: BaseException) -> RunIncomplete:
    error.__cause__ = cause
    return error


def hopeless(run: RunState) -> str:
    """Why a submitted job cannot begin any more; "" while it may, or nobody knows.

    Parameters
    ----------
    run : RunState
        One that was read just now.
    """
    if run.begun or not run.scheduler:
        return ""
    if _closed(run.scheduler):
        here = run.host == socket.gethostname()
        return f"its scheduler, {run.scheduler}, is gone" if here else ""
    # What was announced a moment ago may not have been sent yet.
    if run.age > STALE and _state(run.scheduler, drive_key(run.id)) in (None, "erred"):
        return (
            f"its scheduler, {run.scheduler}, does not know it any more: it was started anew, or "
            "no worker could load the plan (their logs say so)"
        )
    return ""


def _closed(address: str) -> bool:
    """Whether nobody listens at an address, seen from this machine."""
    where = urlsplit(address)
    if where.scheme not in ("tcp", "tls") or where.hostname is None or where.port is None:
        return False
    try:
        with socket.create_connection((where.hostname, where.port), PATIENCE):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:  # no way there, or no answer: it may be there all the same
        return False


def _state(address: str, key: str) -> str | None:
    """What a scheduler says of a task: None if it does not know it, "" if it does not answer."""
    with suppress(Exception), ExitStack() as opened:
        client = opened.enter_context(Client(address, set_as_default=False, timeout=PATIENCE))
        states: dict[str, str | None] = client.sync(client.scheduler.get_task_status, keys=[key])
        return states[key]
    return ""
