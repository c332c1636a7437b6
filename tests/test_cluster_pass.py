"""A first pass on a cluster, without one: what is started again, alone, or not at all, and when."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import KilledWorker
from distributed.client import FutureCancelledError

import geopatch_dask as gp
from geopatch_dask.clusters.deaths import TOPIC
from geopatch_dask.clusters.deferred import Deferred
from geopatch_dask.execute.attempt.first_pass import FirstPassFailed
from geopatch_dask.execute.driving import cluster_pass as module
from geopatch_dask.execute.driving import losses
from geopatch_dask.execute.driving.cluster_pass import ClusterPass, PlanLost
from geopatch_dask.execute.runs.runners import workers_of

PLAN = "plan-x"
ADDRESS = "tcp://10.0.0.1:1000"


@dataclass
class Worker:
    """As far as an error names one."""

    address: str = ADDRESS
    name: str = "geopatch-3-0"
    nanny: str | None = "tcp://10.0.0.1:999"


@dataclass
class Future:
    """Of a task whose end is decided by the test."""

    key: Any
    status: str = "pending"
    error: BaseException | None = None

    def done(self) -> bool:
        return self.status != "pending"

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return None

    def end(self, error: BaseException | None = None) -> None:
        self.error = error
        self.status = "finished" if error is None else "error"
        if isinstance(error, FutureCancelledError):
            self.status = "cancelled"

    def release(self) -> None:
        """Nothing is held."""


@dataclass
class Cluster:
    """What a pass asks of a client; ``play`` is called in place of every pause."""

    status: str = "running"
    cluster: None = None
    events: dict[str, list[Any]] = field(default_factory=dict)
    sent: list[list[Future]] = field(default_factory=list)

    def register_plugin(self, plugin: Any) -> None:
        """Nobody is watched."""

    def get_events(self, topic: str) -> list[Any]:
        return self.events.get(topic, [])

    def get(self, tasks: Any, keys: list[Any], sync: bool) -> list[Future]:
        assert not sync
        assert set(keys) <= set(tasks)
        self.sent.append([Future(key) for key in keys])
        return self.sent[-1]

    @property
    def last(self) -> list[Future]:
        return self.sent[-1]

    @property
    def keys(self) -> list[list[Any]]:
        return [[future.key for future in futures] for futures in self.sent]


@pytest.fixture
def plan(tmp_path: Path) -> gp.Plan:
    """Whose pass has four leaves, each a run of its own."""
    return gp.plan(
        gp.ArrayField(np.zeros((60, 60))),
        gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4))),
        gp.Operator(lambda x, context: x, version="1"),
        tmp_path / "out.zarr",
        context=gp.MeanStd(), over=gp.Operator(lambda x: x, version="1"),
        outer=20, chunks=20, slots=2, memory_limit="1 GiB",
    )  # fmt: skip


def lost(task: Any, nanny: str | None = "tcp://10.0.0.1:999") -> KilledWorker:
    return KilledWorker(task, Worker(nanny=nanny), 0)


def play(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch, *acts: Callable[[Cluster], None]
) -> tuple[Cluster, ClusterPass, list[float]]:
    """A pass that is run, and between whose looks the acts take place; then everything ends well.

    Also the seconds for which it paused.
    """
    cluster, slept = Cluster(), list[float]()
    made = ClusterPass(plan, gp.Policy(losses=1), cluster, "x", PLAN, lambda: None)  # type: ignore[arg-type]
    made._losses._clock = lambda: sum(slept)
    script = iter(acts)

    def pause(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 1000, "it never ends"
        if made._losses and not [r for r in made._runs.values() if r.future and not r.judging]:
            return  # nothing runs: it waits until it is known what happened
        act = next(script, None)
        if act is not None:
            act(cluster)
        elif not made._losses:
            for future in itertools.chain(*cluster.sent):
                if not future.done():
                    future.end()

    monkeypatch.setattr(module.time, "sleep", pause)
    return cluster, made, slept


def stat(run: int, attempt: int = 1) -> tuple[Any, ...]:
    return ("stat-x", run) if attempt == 1 else ("stat-x", run, attempt)


ALL = [stat(i) for i in range(4)]


def test_without_failures_it_is_sent_in_two_steps(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, made, _ = play(plan, monkeypatch)
    key, future = made.run()
    assert cluster.keys == [ALL, ["context-x"]]
    assert (key, future.status) == ("context-x", "finished")


def test_machines_that_are_lost_together_are_waited_for_together(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_lost(cluster: Cluster) -> None:
        for future in cluster.last:
            future.end(lost(future.key))

    cluster, made, slept = play(plan, monkeypatch, all_lost)
    made.run()
    assert cluster.keys == [ALL, [stat(i, 2) for i in range(4)], ["context-x"]]
    assert sum(slept) < losses.GRACE + 1


def test_what_was_lost_is_started_again_while_others_are_computed(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_dies(cluster: Cluster) -> None:
        cluster.last[2].end(lost(stat(2), nanny=None))

    def nothing(cluster: Cluster) -> None:
        assert not any(future.done() for future in (*cluster.sent[0][:2], *cluster.sent[1]))

    cluster, made, _ = play(plan, monkeypatch, one_dies, nothing)
    made.run()
    assert cluster.keys == [ALL, [stat(2, 2)], ["context-x"]]


class _Asked(Exception):
    """For so many workers."""


@pytest.mark.parametrize(("context", "workers"), [(None, 2), ({"mean": np.zeros(1)}, 1)])
def test_a_cluster_for_one_run_has_workers_for_all_leaves(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch, context: Any, workers: int
) -> None:
    def started(self: Deferred, workers: int, *_: Any) -> Any:
        raise _Asked(workers)

    monkeypatch.setattr(Deferred, "started", started)
    with (
        pytest.raises(_Asked) as asked,
        workers_of(plan, None, tasks=1, policy=gp.Policy(), context=context),
    ):
        pass
    assert asked.value.args == (workers,)


def short_of_memory() -> FirstPassFailed:
    failed = FirstPassFailed("the first pass failed at block 2: MemoryError")
    failed.kind = "memory"
    return failed


@pytest.mark.parametrize("how", ["raised", "killed"])
def test_a_run_that_is_short_of_memory_is_started_when_it_is_alone(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def short(cluster: Cluster) -> None:
        cluster.last[1].end(short_of_memory() if how == "raised" else lost(stat(1)))
        said = {"worker": ADDRESS, "by_kernel": True, "limit": 0}
        cluster.events[TOPIC] = [(0.0, said)]

    def others(cluster: Cluster) -> None:
        assert len(cluster.sent) == 1
        for i in (0, 2, 3):
            cluster.last[i].end()

    def again(cluster: Cluster) -> None:
        assert cluster.keys[1:] == [[stat(1, 2)]]
        cluster.last[0].end(short_of_memory())

    cluster, made, _ = play(plan, monkeypatch, short, others, again)
    with pytest.raises(FirstPassFailed, match="at block 2: MemoryError"):
        made.run()
    assert len(cluster.sent) == 2


def test_a_run_that_eats_workers_fails_alone_in_the_end(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(cluster: Cluster) -> None:
        future = next(f for f in cluster.last if f.key[1] == 1)
        future.end(lost(future.key, nanny=None))

    def others(cluster: Cluster) -> None:
        assert cluster.keys == [ALL, [stat(1, 2)]]
        for i in (0, 2, 3):
            cluster.sent[0][i].end()

    cluster, made, _ = play(plan, monkeypatch, dies, dies, others, dies)
    with pytest.raises(FirstPassFailed, match=r"at patches 64 to 127: WorkerLost: .* died"):
        made.run()
    assert cluster.keys == [ALL, [stat(1, 2)], [stat(1, 3)]]


@pytest.mark.parametrize(
    ("error", "known"),
    [(FutureCancelledError(PLAN, ""), True), (lost(PLAN), True), (ValueError("what"), False)],
)
def test_what_is_told_of_a_plan_that_is_lost_is_charged_to_nobody(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch, error: BaseException, known: bool
) -> None:
    _, made, _ = play(plan, monkeypatch, lambda cluster: cluster.last[0].end(error))
    with pytest.raises(PlanLost if known else FirstPassFailed):
        made.run()


def test_the_tree_is_sent_again_when_it_or_a_state_is_lost(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def done(cluster: Cluster) -> None:
        for future in cluster.last:
            future.end()

    def tree_dies(cluster: Cluster) -> None:
        assert cluster.keys[-1] == ["context-x"]
        cluster.last[0].end(lost("join-x", nanny=None))

    def state_dies(cluster: Cluster) -> None:
        assert cluster.keys[-1] == ["context-x-2"]
        cluster.sent[0][3].end(lost(stat(3), nanny=None))

    cluster, made, _ = play(plan, monkeypatch, done, tree_dies, state_dies)
    key, _ = made.run()
    assert cluster.keys[2:] == [["context-x-2"], [stat(3, 2)], ["context-x-3"]]
    assert key == "context-x-3"


LATE = {"type": "TimeoutError", "message": "took longer than 3 s", "traceback": ""}


def late(made: ClusterPass, leaf: int) -> None:
    made.told.put({"leaf": leaf, "name": f"leaf {leaf}", "error": LATE})


def test_a_worker_that_was_ended_because_of_a_time_out_is_no_death(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(cluster: Cluster) -> None:
        del cluster
        late(made, 1)

    def dies(cluster: Cluster) -> None:
        cluster.sent[0][1].end(lost(stat(1), nanny=None))

    _, made, _ = play(plan, monkeypatch, told, dies)
    made.run()
    assert (made._runs[1].attempts, made._runs[1].deaths) == (2, 0)
    assert made._late[1].timeouts == 1
    _, made, _ = play(plan, monkeypatch, told, told)
    with pytest.raises(FirstPassFailed, match="at leaf 1: TimeoutError: took longer than 3 s"):
        made.run()


def test_a_leaf_that_ends_after_all_makes_no_later_death_free(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(cluster: Cluster) -> None:
        del cluster
        late(made, 1)

    def ends(cluster: Cluster) -> None:
        cluster.last[1].end()

    def dies(cluster: Cluster) -> None:  # Dask computed it again elsewhere
        cluster.last[1].end(lost(stat(1), nanny=None))

    _, made, _ = play(plan, monkeypatch, told, ends, dies)
    made.run()
    assert made._runs[1].deaths == 1
