"""Very many short super-tiles: sent, given ahead and told of many at a time."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.base import tokenize
from distributed import Client

import geopatch_dask as gp
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.driving import workers as module
from geopatch_dask.execute.driving.drive import drive
from geopatch_dask.execute.driving.driver import ALL_AT_ONCE, Start, Stop
from geopatch_dask.execute.driving.graph import NamedTask
from geopatch_dask.execute.driving.workers import MANY, Message, OnCluster
from geopatch_dask.execute.runs.runners import MOST_AHEAD, _ahead
from geopatch_dask.report.outcome import Outcome

N = 3 * MANY
#: What no worker can run: Dask tells of an error, not of an outcome.
BAD = 77


def nothing(plan: Any, ordinal: int, context: Any, policy: Any, attempt: int) -> Outcome:
    """A super-tile that is done at once, but for one."""
    del context, policy
    if ordinal == BAD:
        raise MemoryError("not within what a super-tile catches itself")
    return Outcome(ordinal, plan.supertile(ordinal).id, "done", attempt=attempt)


def planned(target: Path, side: int) -> gp.Plan:
    """A plan of side x side super-tiles."""
    patcher = gp.Patcher(gp.Rectangular(4), gp.RegularStride(4), gp.Boxcar(), gp.Max())
    field = gp.ArrayField(np.zeros((4 * side, 4 * side), "uint8"))
    return gp.plan(field, patcher, np.positive, target, outer=4, chunks=4)


@pytest.fixture
def plan(tmp_path: Path) -> gp.Plan:
    made = planned(tmp_path / "out.zarr", 18)
    assert made.n_supertiles >= N
    return made


@pytest.mark.cluster
class TestCrowd:
    def test_each_is_told_once_and_what_was_stopped_is_not(
        self, tcp_client: Client, plan: gp.Plan
    ) -> None:
        workers = OnCluster(plan, Policy(), tcp_client, run=nothing)
        stopped = [Stop(i, 1) for i in range(0, N, 50)]
        heard: list[Any] = []
        try:
            workers.start([Start(i, 1) for i in range(N)])
            assert len(workers._crowd) == N
            workers.stop(stopped)
            while len(heard) < N - len(stopped):
                heard += workers.wait(10)
            assert workers.wait(0.3) == []
            assert not workers._crowd
        finally:
            workers.close()
        assert all(isinstance(message, Message) for message in heard)
        told = Counter((message.ordinal, message.attempt) for message in heard)
        expected = {(i, 1) for i in range(N)} - {(s.ordinal, s.attempt) for s in stopped}
        assert told == Counter(expected)
        failed = [m.outcome for m in heard if m.outcome.state == "failed"]
        assert [outcome.ordinal for outcome in failed] == [BAD]
        assert failed[0].error is not None
        assert failed[0].error["type"] == "MemoryError"

    def test_a_connection_that_breaks_and_comes_back_costs_nothing(
        self, tcp_client: Client, plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LINGER", 0.01)
        todo = [i for i in range(N) if i != BAD]
        ended: list[Outcome] = []

        def seen(outcome: Outcome) -> None:
            ended.append(outcome)
            if len(ended) == N // 3:
                tcp_client.loop.add_callback(tcp_client.scheduler_comm.comm.abort)

        drive(todo, OnCluster(plan, Policy(), tcp_client, run=nothing), Policy(), seen)
        assert sorted((o.ordinal, o.state, o.attempt) for o in ended) == [
            (i, "done", 1) for i in todo
        ]


class TestAhead:
    @pytest.fixture(scope="class")
    @staticmethod
    def many(tmp_path_factory: pytest.TempPathFactory) -> gp.Plan:
        return planned(tmp_path_factory.mktemp("many") / "out.zarr", 101)

    def number(self, plan: gp.Plan, seconds: float) -> float | None:
        """What a worker is given ahead if a super-tile (of one patch) takes so long."""
        made = replace(plan, seconds_per_patch=seconds)
        return _ahead(made, made.n_supertiles).get("distributed.scheduler.worker-saturation")

    def test_short_ones_go_many_at_a_time(self, many: gp.Plan) -> None:
        assert many.n_supertiles > ALL_AT_ONCE
        assert MOST_AHEAD * 0.9 < (self.number(many, 1e-5) or 0) <= MOST_AHEAD
        assert 4 < (self.number(many, 0.08) or 0) < 6

    def test_long_ones_as_dask_does(self, many: gp.Plan) -> None:
        # Each may be blamed for the death of the worker, and run alone then.
        assert self.number(many, 1.0) is None

    def test_unknown_ones_too(self, many: gp.Plan) -> None:
        assert self.number(many, 0.0) is None

    def test_few_ones_too(self, many: gp.Plan) -> None:
        assert _ahead(replace(many, seconds_per_patch=1e-5), ALL_AT_ONCE) == {}


def test_a_named_task_is_known_by_its_key_alone() -> None:
    unhashable = [object()]  # to hash it would raise, or differ from time to time
    tasks = [NamedTask(("tile-a", i, 1), len, unhashable) for i in (1, 1, 2)]
    first, same, other = (tokenize(task) for task in tasks)
    assert first == same != other
    copy = pickle.loads(pickle.dumps(NamedTask("key", len, [1, 2])))
    assert copy() == 2
    assert tokenize(copy) == tokenize(NamedTask("key", len, []))
