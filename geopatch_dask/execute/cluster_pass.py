"""Pass 1 on the workers of a cluster.

::

    (stat-<id>, i) ----+
    (stat-<id>, j) --- worker gone ---> (stat-<id>, j, 2) ----+
         |                                                    v
         +------- stay until the end ------->  (join-<id>-2, ...) ---> context-<id>-2

A worker that dies costs the task that it had in hand, and not those that are done: their states
stay on the cluster as long as the pass is not over, and only the tree above them, which is quick,
is sent once more.  What a death means is as for a super-tile (:mod:`geopatch_dask.execute.driver`):
after the first the task is started again, after the second, or the first for want of memory, when
nothing else runs, so that it takes no other with it; after the third it has failed.  A machine that
was lost is forgiven as often as the policy says, and a time-out once.

Errors end the pass: what may pass has been tried again where it happened
(:mod:`geopatch_dask.execute.first_pass`).
"""

from __future__ import annotations

import queue
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dask.task_spec import TaskRef
from distributed import Client, Future, KilledWorker
from distributed.comm.core import CommClosedError

from geopatch_dask.execute.connection import check_connected, value_or_error, wait_for
from geopatch_dask.execute.driver import FORGIVEN
from geopatch_dask.execute.first_pass import Care, FirstPassFailed, context_of, leaves_text
from geopatch_dask.execute.graph import leaf_tasks, tree_tasks
from geopatch_dask.execute.losses import ASK, Losses
from geopatch_dask.execute.policy import Policy
from geopatch_dask.execute.stage import leaf_runs
from geopatch_dask.planning.core import PlanBase

__all__ = ["ClusterPass", "PlanLost"]

#: Deaths of workers after which a run of leaves is only started alone.
DEATHS = 2
#: The number of the tree, among those of runs of leaves.
TREE = -1


class PlanLost(Exception):
    """Dask gave up the plan, because a worker died with it in hand."""


class _Where(Exception):
    """The traceback of an error in another process, to be chained."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ClusterPass:
    """One first pass.

    Parameters
    ----------
    plan : PlanBase
    policy : Policy
    client : distributed.Client
    name : str
        In the keys of its tasks.
    plan_key : str
        Where the plan is on the cluster.
    look : callable
        Called while it is waited for; what it raises ends that.
    """

    def __init__(
        self,
        plan: PlanBase,
        policy: Policy,
        client: Client,
        name: str,
        plan_key: str,
        look: Callable[[], None],
    ) -> None:
        self.plan, self.policy, self.client, self.look = plan, policy, client, look
        self.name, self.plan_key = name, plan_key
        self.care = Care(policy, far=True)
        self.runs = leaf_runs(plan)
        self.told: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._losses = Losses(plan, client)
        self._attempts: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        self._machines: Counter[int] = Counter()
        self._late: Counter[int] = Counter()  # time-outs by leaf
        self._ended: Counter[int] = Counter()  # workers ended because of them, by run of leaves
        self._stats: dict[int, tuple[Any, Future[Any]]] = {}

    def run(self) -> tuple[str, Future[Any]]:
        """Compute it; where the context is, and a future of it.

        Raises
        ------
        FirstPassFailed
        PlanLost
        RunIncomplete
            When the connection to the cluster is lost.
        """
        try:
            while True:
                self._start()
                if len(self._stats) < len(self.runs):
                    for _, state in self._stats.values():
                        wait_for(self.client, state, self._looked)
                    self._repeat(self._lost())
                    continue
                key, future = self._tree()
                if self._awaited(future):
                    return key, future
        finally:
            for _, state in self._stats.values():
                state.release()

    def _awaited(self, future: Future[Any]) -> bool:
        """Whether the context is there in the end; if not, something is to be repeated."""
        try:
            wait_for(self.client, future, self._looked)
            if future.status == "finished":
                return True
            self._judge(value_or_error(future))
        except BaseException:
            future.release()  # whoever has the exception has this frame, too
            raise
        future.release()
        return False

    def _start(self) -> None:
        """Send the runs of leaves that nobody computes; one that is suspected, when it is alone."""
        missing = {i: run for i, run in enumerate(self.runs) if i not in self._stats}
        todo = {i: run for i, run in missing.items() if self._deaths[i] < DEATHS}
        if not todo and all(state.done() for _, state in self._stats.values()):
            todo = dict(list(missing.items())[:1])
        tasks: dict[Any, Any] = {}
        keys: dict[int, Any] = {}
        for i, run in todo.items():
            self._attempts[i] += 1
            often = (self._attempts[i],) if self._attempts[i] > 1 else ()
            keys[i] = (f"stat-{self.name}", i, *often)
            tasks |= leaf_tasks(self.plan_key, keys[i], run, self.care)
        if tasks:
            futures = self.client.get(tasks, list(keys.values()), sync=False)
            for (i, key), future in zip(keys.items(), futures, strict=True):
                self._stats[i] = key, future

    def _tree(self) -> tuple[str, Future[Any]]:
        self._attempts[TREE] += 1
        often = f"-{self._attempts[TREE]}" if self._attempts[TREE] > 1 else ""
        level = [TaskRef(self._stats[i][0]) for i in range(len(self.runs))]
        tasks, key = tree_tasks(self.plan_key, f"{self.name}{often}", level, self.care)
        (future,) = self.client.get(tasks, [key], sync=False)
        return key, future

    def _looked(self) -> None:
        """What may end the waiting: from outside, or because a leaf takes too long."""
        self.look()
        with suppress(queue.Empty):
            while True:
                said = self.told.get_nowait()
                leaf, error = said["leaf"], said["error"]
                self._late[leaf] += 1
                run = next(i for i, (first, last) in enumerate(self.runs) if first <= leaf < last)
                self._ended[run] += 1
                if self._late[leaf] > FORGIVEN:
                    raise self._failed(f"at {said['name']}", error)

    def _judge(self, error: Any) -> None:
        """What it means that the context is not there; returns when something is to be repeated."""
        loss = self._loss(error)
        self._repeat(self._lost() or {TREE: loss})

    def _loss(self, error: Any) -> BaseException:
        """An error, if it is the loss of a worker.

        Raises
        ------
        FirstPassFailed
        PlanLost
        """
        self.look()  # which knows better, if the plan is to blame
        check_connected(self.client, error)
        if isinstance(error, FirstPassFailed):
            raise error.bare() from _Where(error.traceback)
        if not isinstance(error, KilledWorker | CancelledError | CommClosedError):
            raise FirstPassFailed.of(self.plan, "on the cluster", error) from error
        if isinstance(error, KilledWorker) and str(error.task) == self.plan_key:
            raise PlanLost(str(error)) from error
        return error

    def _repeat(self, lost: Mapping[int, BaseException]) -> None:
        """Forget runs that were lost, so that they are started again, unless that is enough."""
        for run, why in lost.items():
            if run != TREE:
                self._stats.pop(run)[1].release()
            self._charge(run, why)

    def _lost(self) -> dict[int, BaseException]:
        """The runs of leaves that Dask gave up, and why."""
        found: dict[int, BaseException] = {}
        for i, (_, future) in self._stats.items():
            if future.status in ("error", "cancelled"):
                found[i] = self._loss(value_or_error(future))
        return found

    def _charge(self, run: int, error: BaseException) -> None:
        """Count the loss of a worker, once it is known what it died of.

        Raises
        ------
        FirstPassFailed
        """
        if self._ended[run]:
            self._ended[run] -= 1
            return
        self._losses.add(run, self._attempts[run], error, self._name(run))
        while self._losses:
            self._looked()
            for _, why, machine in self._losses.judged():
                count = self._machines if machine else self._deaths
                count[run] += 1
                if count[run] > (self.policy.losses if machine else DEATHS):
                    raise self._failed(f"at {self._name(run)}", why)
                if why["kind"] == "memory":
                    self._deaths[run] = max(self._deaths[run], DEATHS)
            time.sleep(ASK)

    def _name(self, run: int) -> str:
        if run == TREE:
            return "the states of all blocks"
        plan = self.plan
        source = context_of(plan).source(plan.field, plan.grid, plan.operator)
        return leaves_text(source, *self.runs[run])

    def _failed(self, where: str, error: Mapping[str, str]) -> FirstPassFailed:
        text = f"{error['type']}: {error['message']}"
        failure = FirstPassFailed.at(self.plan, where, text, error["traceback"])
        failure.__cause__ = _Where(failure.traceback)
        return failure
