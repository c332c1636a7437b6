"""Attempts whose worker is gone, until it is known why.

Dask tells at once that a worker is gone, and nothing more.  Its nanny, if it lives, tells a moment
later what it has seen (:mod:`geopatch_dask.clusters.deaths`).  A loss therefore waits here::

    worker gone --- its nanny told ------> died: for want of memory, or not; the super-tile may be
                |                          the cause
                +-- it had no nanny -----> died, the same
                +-- GRACE s of silence --> the machine, or the batch job, was lost with it
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client, KilledWorker

from geopatch_dask.clusters.deaths import RESTARTED, TOPIC, Death, DeathWatch, find_death
from geopatch_dask.execute.attempt.events import Lost
from geopatch_dask.execute.driving.driver import GiveUp
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.units import bytes_text

__all__ = ["ASK", "GRACE", "JOBS", "Losses"]

#: Seconds that the nanny of a dead worker has to tell of it.
GRACE = 3.0
#: Seconds between two looks at what was told.
ASK = 0.1
#: Where a cluster of batch jobs tells how they ended (:mod:`geopatch_dask.clusters.batch`).
JOBS = "geopatch-jobs"

_log = logging.getLogger(__name__)

Where = tuple[int, int]


@dataclass(frozen=True)
class _Loss:
    """An attempt without a worker; ``address`` is None where nobody could tell of it."""

    where: Where
    error: BaseException
    address: str | None
    until: float
    name: str


class Losses:
    """Attempts that lost their worker.  False when none waits to be judged.

    Parameters
    ----------
    plan : PlanBase
    client : distributed.Client
        Nannies of its cluster are asked to watch.
    clock : callable, seconds
    """

    def __init__(
        self, plan: PlanBase, client: Client, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._client, self._clock = plan, client, clock
        self._waiting: list[_Loss] = []
        self._names: dict[int, list[str]] = {}  # of the workers that a super-tile has lost
        try:
            client.register_plugin(DeathWatch())
        except Exception as error:  # without it, no loss is known to be a death
            _log.warning("workers cannot be watched (%s): why one dies will not be known", error)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, ordinal: int, attempt: int, error: BaseException, name: str = "") -> None:
        """One more; ``name``: what was computed, if no super-tile."""
        worker = error.last_worker if isinstance(error, KilledWorker) else None
        address = worker.address if worker is not None and worker.nanny else None
        if worker is not None:
            self._names.setdefault(ordinal, []).append(str(worker.name))
        until = self._clock() + GRACE
        name = name or f"super-tile {self._plan.supertile(ordinal).id}"
        self._waiting.append(_Loss((ordinal, attempt), error, address, until, name))

    def judged(self) -> list[Lost]:
        """Losses whose cause is known by now."""
        if not self._waiting:
            return []
        told, restarted = self._events(TOPIC), self._events(RESTARTED)
        found: list[Lost] = []
        now = self._clock()
        for loss in list(self._waiting):
            death = Death() if loss.address is None else find_death(loss.address, told, restarted)
            if death is not None or now >= loss.until:
                self._waiting.remove(loss)
                found.append(Lost(*loss.where, self._error(loss, death), machine=death is None))
        return found

    def completed(self, item: GiveUp) -> GiveUp:
        """With what the batch system says of the jobs that a super-tile has lost, if it does."""
        names = self._names.pop(item.ordinal, [])
        if item.error.get("type") != "WorkerLost" or not names:
            return item
        lost = {name.rpartition("-")[0] for name in names} | set(names)
        states = [event["state"] for _, event in self._events(JOBS) if event["name"] in lost]
        if not states:
            return item
        message = f"{item.error['message']}; its batch jobs ended: {', '.join(states)}"
        return replace(item, error={**item.error, "message": message})

    def _events(self, topic: str) -> list[Any]:
        with suppress(OSError):  # the scheduler is away; if it stays so, the client will notice
            return list(self._client.get_events(topic) or ())
        return []

    def _error(self, loss: _Loss, death: Death | None) -> dict[str, str]:
        memory = death is not None and (death.by_kernel or death.by_dask)
        return {
            "type": "WorkerLost",
            "message": _message(self._plan, loss.name, death),
            "traceback": self._plan.scrub(str(loss.error)),
            "kind": "memory" if memory else "lost",
        }


def _message(plan: PlanBase, name: str, death: Death | None) -> str:
    """What happened to the worker of a super-tile, or of leaves, and what helps."""
    worker = f"the worker that computed {name}"
    numbers = (
        f"{bytes_text(plan.memory.total)} planned, {bytes_text(plan.memory_limit)} allowed per slot"
    )
    if death is None:
        return (
            f"{worker} was lost with its machine or batch job: preempted, cancelled, out of "
            "walltime, or the node failed; run the same command again"
        )
    remedy = (
        "give slots more memory, tell the plan what the operator needs (Operator(memory=)), or "
        "make super-tiles smaller (outer)"
    )
    if death.by_kernel:
        limit = f", {bytes_text(death.limit)} for its whole job or container" if death.limit else ""
        return f"{worker} was killed by the kernel for want of memory ({numbers}{limit}): {remedy}"
    if death.by_dask:
        return f"{worker} was ended by Dask at its memory limit ({numbers}): {remedy}"
    return f"{worker} died, perhaps for want of memory ({numbers}), but nobody saw why"
