"""What every attempt depends on: the plan, and what pass 1 finds.

::

    plan-<id> ------------------------------------------+
       |                                                +--->  (tile-<id>, i, attempt)
    (stat-<id>, i) ---> (join-<id>, ...) ---> context-<id>

On a cluster, both stay there.  Only the end of pass 1 is waited for, because nothing else can run
before it, or if it fails (:mod:`geopatch_dask.execute.driving.cluster_pass`).

A cluster that cannot load the plan, because a module is not installed there, can run nothing of it:
that ends the run, and no super-tile is charged with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from dask import threaded
from dask.task_spec import DataNode, Task, TaskRef
from distributed import Client, Future, KilledWorker
from distributed.protocol import pickle

from geopatch_dask.errors import RunIncomplete
from geopatch_dask.execute.attempt.first_pass import Care
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.driving.cluster_pass import ClusterPass, PlanLost
from geopatch_dask.execute.driving.connection import check_connected, value_or_error, wait_for
from geopatch_dask.execute.driving.graph import head_graph
from geopatch_dask.execute.target.prepare import token
from geopatch_dask.planning.core import PlanBase

__all__ = ["Head", "PlanNotLoaded", "deepest", "local_context", "not_loaded"]

#: How often what every attempt depends on may be lost, with a worker or a connection.
MOST_HEADS = 20


class PlanNotLoaded(RunIncomplete):
    """The processes of a cluster cannot load what they are to run."""


def not_loaded(error: BaseException) -> PlanNotLoaded:
    """What to raise when a cluster failed with an error to load what it was to run."""
    return PlanNotLoaded(
        f"the scheduler or the workers of the cluster cannot load the plan ({deepest(error)}); "
        "install it there, or have workers look into its folder: gp.cluster(..., folders=[...])"
    )


class Head:
    """Plan and context of one run on a cluster, as futures.

    Parameters
    ----------
    plan : PlanBase
    policy : Policy
    client : distributed.Client
    check : callable
        Called while something is waited for; what it raises ends that.
    """

    def __init__(
        self,
        plan: PlanBase,
        policy: Policy,
        client: Client,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan, self.policy, self.client, self.check = plan, policy, client, check
        self._begun = 0
        self._futures: dict[Any, Future[Any]] = {}
        self._pass: ClusterPass | None = None

    @property
    def begun(self) -> int:
        """How often it has been sent."""
        return self._begun

    @property
    def refs(self) -> list[TaskRef]:
        """What a task takes: the plan, and the context where there is one."""
        return [TaskRef(key) for key in self._futures]

    def begin(self, context: Mapping[str, Any] | None) -> None:
        """Send the plan, and have pass 1 computed unless its result is given.

        What was sent before is given back once its successor is there.

        Raises
        ------
        FirstPassFailed
        PlanNotLoaded
        RunIncomplete
            When the connection or, again and again, the plan is lost.
        """
        old = list(self._futures.values())
        try:
            while not self._sent(context):
                self.release()
        except BaseException:
            self.release()
            raise
        finally:
            for future in old:
                future.release()

    def release(self) -> None:
        """Let the cluster forget it all."""
        for future in self._futures.values():
            future.release()
        self._futures = {}

    def spread(self) -> None:
        """Have it everywhere before the first attempt is sent.

        Dask sends a few tasks to where what they need is: all to one worker, from which the others
        steal them up to a second later.  Many tasks are spread evenly by themselves.
        """
        futures = list(self._futures.values())
        wait_for(self.client, futures[0], self.check)
        with suppress(Exception):  # a worker that dies just now: it is only sooner or later
            self.client.replicate(futures)

    def heard(self, said: Mapping[str, Any]) -> None:
        """A worker tells that it ends itself because a leaf takes too long; from any thread."""
        if (made := self._pass) is not None:
            made.told.put(said)

    def check_loaded(self) -> None:
        """See whether the cluster could load the plan.

        Raises
        ------
        PlanNotLoaded
        """
        plan = next(iter(self._futures.values()), None)
        if plan is None or plan.status != "error":
            return
        error = value_or_error(plan)
        if isinstance(error, BaseException) and not isinstance(error, KilledWorker):
            check_connected(self.client, error)
            raise not_loaded(error) from error

    def _sent(self, context: Mapping[str, Any] | None) -> bool:
        """Send it once; False when it was lost."""
        if self._begun > MOST_HEADS:
            raise RunIncomplete(
                f"the cluster has lost the plan {MOST_HEADS} times, because workers keep dying or "
                "the connection to its scheduler keeps breaking; see what is wrong with it "
                "(geopatch doctor), and run the same command again"
            )
        self._begun += 1
        short = token(self.plan)
        name = short if self._begun == 1 else f"{short}-{self._begun}"
        # As bytes: a scheduler need not load it, and a worker that cannot says why.  It would be
        # lost if it could not even read the message with its task.
        data = pickle.dumps(self.plan)
        tasks: dict[Any, Any] = {f"plan-{name}": Task(f"plan-{name}", pickle.loads, data)}
        if context is not None:
            tasks[f"context-{name}"] = DataNode(f"context-{name}", context)
        futures = self.client.get(tasks, list(tasks), sync=False)
        self._futures = dict(zip(tasks, futures, strict=True))
        if self.plan.context is None or context is not None:
            return True
        (plan_key,) = tasks
        made = ClusterPass(self.plan, self.policy, self.client, name, plan_key, self._look)
        self._pass = made
        try:
            key, future = made.run()
        except PlanLost:
            return False
        finally:
            self._pass = None
        self._futures[key] = future
        return True

    def _look(self) -> None:
        """What may end the waiting for pass 1."""
        self.check()
        self.check_loaded()


def local_context(
    plan: PlanBase,
    policy: Policy,
    context: Mapping[str, Any] | None,
    check: Callable[[], None],
) -> Mapping[str, Any] | None:
    """What an earlier run found in pass 1, or what it finds in threads of this process.

    Parameters
    ----------
    plan : PlanBase
    policy : Policy
    context : mapping or None
        From an earlier run.
    check : callable
        Called before every leaf; what it raises ends the pass.

    Raises
    ------
    FirstPassFailed
    """
    if plan.context is None or context is not None:
        return context
    over = threading.Event()

    def looked() -> None:
        if over.is_set():  # another thread has failed, or was interrupted
            raise RunIncomplete("the first pass has ended")
        check()

    tasks, keys = head_graph(plan, token(plan), None, Care(policy, looked))
    try:
        found: Mapping[str, Any] = threaded.get(tasks, keys[1], num_workers=plan.slots)
    finally:
        over.set()
    return found


def deepest(error: BaseException) -> str:
    """The first cause of an error, in a line."""
    causes = list(_causes(error))
    lines = str(causes[-1]).strip().splitlines() or [""]
    return f"{type(causes[-1]).__name__}: {lines[0]}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
