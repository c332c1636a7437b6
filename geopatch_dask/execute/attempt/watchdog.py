"""Ending a worker that hangs.

A thread that hangs cannot be stopped from outside, a process can.  An attempt with a time limit
starts a timer beside it; when it rings, the worker tells the driver which attempt it was and
where it hangs, and ends itself.  Its nanny starts another worker; what else it had in hand is
started again elsewhere.

What has a limit is an attempt at a super-tile, or at a leaf of a first pass.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import get_worker

from geopatch_dask.execute.attempt.logs import log_tile
from geopatch_dask.execute.attempt.metrics import count_tile
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.target.prepare import token
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.report.outcome import Outcome

__all__ = ["ended_after", "guarded", "tell_of_leaf", "topic"]

#: Seconds that a worker's last words may take to its scheduler.
LAST_WORDS = 1.0
#: Lines that say where it hangs.
LINES = 40

#: Told of an attempt that takes too long: the worker it is on, and where it hangs.
Tell = Callable[[Any, str], None]


def topic(short: str) -> str:
    """The topic under which workers tell of time-outs of one piece of work."""
    return f"geopatch-timeout-{short}"


@contextmanager
def ended_after(seconds: float, tell: Tell) -> Iterator[None]:
    """End this Dask worker unless the block is over in time.

    One that shares the process of its scheduler is not ended: that is the user's own process.

    Parameters
    ----------
    seconds : float
    tell : callable
        Called before the end.
    """
    worker, thread = get_worker(), threading.get_ident()

    def ring() -> None:
        frame = sys._current_frames().get(thread)
        lines = "".join(traceback.format_stack(frame)).splitlines()[-LINES:] if frame else []
        tell(worker, "\n".join(lines))
        if str(worker.address).startswith("inproc:"):
            return
        time.sleep(LAST_WORDS)
        os._exit(1)

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def guarded(
    run: Callable[..., Outcome],
    plan: PlanBase,
    ordinal: int,
    context: Mapping[str, Any] | None,
    policy: Policy,
    attempt: int,
) -> Outcome:
    """``run`` on a Dask worker, which ends itself when that takes longer than the policy says."""
    if policy.seconds is None:
        return run(plan, ordinal, context, policy, attempt)

    def tell(worker: Any, where: str) -> None:
        tile = plan.supertile(ordinal).id
        error = _late(plan, f"super-tile {tile}", policy.seconds, where)
        said = {"ordinal": ordinal, "attempt": attempt, "error": error}
        worker.log_event(topic(token(plan)), said)
        ended = Outcome(ordinal, tile, "failed", error=error | {"kind": "timeout"}, attempt=attempt)
        count_tile(plan, ended, "timed_out")
        log_tile(plan, ended, "timed_out", policy, worker)

    with ended_after(policy.seconds, tell):
        return run(plan, ordinal, context, policy, attempt)


def tell_of_leaf(plan: PlanBase, leaf: int, name: str, seconds: float) -> Tell:
    """What tells the driver of a leaf of pass 1 that takes too long; ``name``: what it sees."""

    def tell(worker: Any, where: str) -> None:
        error = _late(plan, name, seconds, where)
        worker.log_event(topic(token(plan)), {"leaf": leaf, "name": name, "error": error})

    return tell


def _late(plan: PlanBase, name: str, seconds: float | None, where: str) -> dict[str, str]:
    return {
        "type": "TimeoutError",
        "message": f"{name} took longer than {seconds:g} s; raise the policy's timeout if it only "
        "is slow",
        "traceback": plan.scrub(where),
    }
