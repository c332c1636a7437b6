"""Pass 1 on the workers of a cluster.

::

    (stat-<id>, i) ----+
    (stat-<id>, j) --- worker gone ---> (stat-<id>, j, 2) ----+
         |                                                    v
         +------- stay until the end ------->  (join-<id>-2, ...) ---> context-<id>-2

A worker that dies costs the task that it had in hand, and not those that are done: their states
stay on the cluster as long as the pass is not over, and only the tree above them, which is quick,
is sent once more.  What was lost is started again while the rest is computed.  What a loss means
is judged as for a super-tile (:mod:`geopatch_dask.execute.attempt.case`), with one case for every
run of leaves, one for the tree, and one for every leaf that takes too long.

Errors end the pass: what may pass has been tried again where it happened
(:mod:`geopatch_dask.execute.attempt.first_pass`).  Only a run of leaves that was short of memory
is started once more, alone.
"""

from __future__ import annotations

import queue
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dask.task_spec import TaskRef
from distributed import Client, Future, KilledWorker

from geopatch_dask.execute.attempt.case import Case, Verdict
from geopatch_dask.execute.attempt.events import Failed, Lost
from geopatch_dask.execute.attempt.first_pass import Care, FirstPassFailed, context_of, leaves_text
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.attempt.stage import leaf_runs
from geopatch_dask.execute.driving.connection import FORGOTTEN, check_connected, value_or_error
from geopatch_dask.execute.driving.graph import leaf_tasks, tree_tasks
from geopatch_dask.execute.driving.losses import ASK, Losses
from geopatch_dask.planning.core import PlanBase

__all__ = ["ClusterPass", "PlanLost"]

#: The number of the tree, among those of runs of leaves.
TREE = -1
#: States of a future without a value.
BAD = ("error", "cancelled")
#: Seconds between two looks at what has ended.
TICK = 0.05


class PlanLost(Exception):
    """The plan is no longer on the cluster: a worker died with it, or the connection broke."""


class _Where(Exception):
    """The traceback of an error in another process, to be chained."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(slots=True)
class _Run(Case):
    """A run of leaves, or the tree above all of them."""

    key: Any = None
    future: Future[Any] | None = None
    judging: bool = False  # it lost its worker, and it is not known yet why
    ended: int = 0  # the attempt whose worker has been ended because of a time-out

    def forget(self) -> None:
        """Have it started again."""
        if self.future is not None:
            self.future.release()
        self.future = None


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
        self.leaves = leaf_runs(plan)
        self.told: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._losses = Losses(plan, client)
        self._runs = {i: _Run() for i in range(len(self.leaves))}
        self._tree = _Run()
        self._late: defaultdict[int, Case] = defaultdict(Case)  # by leaf

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
                found = self._tree.future
                if found is not None and found.status == "finished":
                    self._tree.future = None
                    return self._tree.key, found
                time.sleep(ASK if self._losses else TICK)
                self._hear()
        finally:
            for run in (self._tree, *self._runs.values()):
                run.forget()

    # ---- starting --------------------------------------------------------------------------

    def _start(self) -> None:
        """Send what nobody computes; what is suspected, when nothing else is under way."""
        missing = [i for i, run in self._runs.items() if run.future is None and not run.judging]
        todo = [i for i in missing if not self._runs[i].alone]
        if todo:
            self._send_runs(todo)
        elif self._busy():
            return
        elif missing:
            self._send_runs(missing[:1])
        elif self._tree.future is None:
            self._send_tree()

    def _busy(self) -> bool:
        """Whether a run of leaves is being computed, or judged."""
        return bool(self._losses) or any(
            run.future is not None and run.future.status != "finished"
            for run in self._runs.values()
        )

    def _send_runs(self, which: list[int]) -> None:
        tasks: dict[Any, Any] = {}
        for i in which:
            run = self._runs[i]
            run.attempts += 1
            often = (run.attempts,) if run.attempts > 1 else ()
            run.key = (f"stat-{self.name}", i, *often)
            tasks |= leaf_tasks(self.plan_key, run.key, self.leaves[i], self.care)
        futures = self.client.get(tasks, [self._runs[i].key for i in which], sync=False)
        for i, future in zip(which, futures, strict=True):
            self._runs[i].future = future

    def _send_tree(self) -> None:
        tree = self._tree
        tree.attempts += 1
        often = f"-{tree.attempts}" if tree.attempts > 1 else ""
        level = [TaskRef(run.key) for run in self._runs.values()]
        tasks, tree.key = tree_tasks(self.plan_key, f"{self.name}{often}", level, self.care)
        (tree.future,) = self.client.get(tasks, [tree.key], sync=False)

    # ---- hearing ---------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take in what happened: from outside, to leaves that take too long, to workers."""
        self.look()
        check_connected(self.client)
        self._hear_told()
        lost = False
        for i, run in self._runs.items():
            if run.future is not None and run.future.status == "finished":
                run.ended = 0
            elif run.future is not None and run.future.status in BAD:
                lost = True
                self._end(i, run, run.future)
        tree = self._tree
        if lost:  # it lacks a state
            tree.forget()
        elif tree.future is not None and tree.future.status in BAD:
            self._end(TREE, tree, tree.future)
        for event in self._losses.judged():
            run = tree if event.ordinal == TREE else self._runs[event.ordinal]
            run.judging = False
            self._judge(run, event, f"at {self._name(event.ordinal)}")

    def _hear_told(self) -> None:
        with suppress(queue.Empty):
            while True:
                said = self.told.get_nowait()
                leaf, error = said["leaf"], said["error"]
                run = next(
                    run
                    for run, (first, last) in zip(self._runs.values(), self.leaves, strict=True)
                    if first <= leaf < last
                )
                run.ended = run.attempts
                late = Lost(leaf, run.attempts, error, timed_out=True)
                self._judge(self._late[leaf], late, f"at {said['name']}")

    def _end(self, number: int, run: _Run, future: Future[Any]) -> None:
        """What it means that there is an error in place of a state.

        Raises
        ------
        FirstPassFailed
        PlanLost
        """
        error = value_or_error(future)
        run.forget()
        self.look()  # which knows better, if the plan is to blame
        check_connected(self.client, error)
        if isinstance(error, FirstPassFailed):
            event = Failed(number, run.attempts, {"kind": error.kind})
            if run.take(event, self.policy) is Verdict.OVER:
                raise error.bare() from _Where(error.traceback)
            run.alone = True
        elif isinstance(error, FORGOTTEN):
            raise PlanLost(str(error)) from error
        elif not isinstance(error, KilledWorker):
            raise FirstPassFailed.of(self.plan, "on the cluster", error) from error
        elif str(error.task) == self.plan_key:
            raise PlanLost(str(error)) from error
        elif run.ended != run.attempts:
            run.judging = True
            self._losses.add(number, run.attempts, error, self._name(number))

    def _judge(self, case: Case, event: Lost, where: str) -> None:
        verdict = case.take(event, self.policy)
        if verdict is Verdict.OVER:
            raise self._failed(where, event.error)
        case.alone = case.alone or verdict is Verdict.ALONE

    def _name(self, run: int) -> str:
        if run == TREE:
            return "the states of all blocks"
        plan = self.plan
        source = context_of(plan).source(plan.field, plan.grid, plan.operator)
        return leaves_text(source, *self.leaves[run])

    def _failed(self, where: str, error: Mapping[str, str]) -> FirstPassFailed:
        text = f"{error['type']}: {error['message']}"
        failure = FirstPassFailed.at(self.plan, where, text, error["traceback"])
        failure.__cause__ = _Where(failure.traceback)
        return failure
