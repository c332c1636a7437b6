"""Attempts that the scheduler has forgotten, with the plan: a connection broke, and came back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from distributed.client import FutureCancelledError

import geopatch_dask as gp
from geopatch_dask.errors import RunIncomplete
from geopatch_dask.execute.attempt.events import Done, Event
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.driving.drive import drive
from geopatch_dask.execute.driving.head import MOST_HEADS
from geopatch_dask.execute.driving.workers import OnCluster
from geopatch_dask.report.outcome import Outcome


@pytest.fixture
def plan(tmp_path: Path) -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular(4), gp.RegularStride(4), gp.Boxcar(), gp.Max())
    field_ = gp.ArrayField(np.zeros((16, 16), "uint8"))
    return gp.plan(field_, patcher, np.positive, tmp_path / "out.zarr", outer=4, chunks=4)


# ---- without a cluster ---------------------------------------------------------------------


@dataclass
class Future:
    """Of a task that ends when it is told to."""

    key: Any
    task: Any
    status: str = "pending"
    callbacks: list[Callable[[Any], None]] = field(default_factory=list)

    def done(self) -> bool:
        return self.status != "pending"

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def end(self, status: str) -> None:
        if not self.done():
            self.status = status
            for callback in self.callbacks:
                callback(self)

    def result(self) -> Outcome:
        if self.status == "cancelled":
            raise FutureCancelledError(self.key, "scheduler-connection-lost")
        _, ordinal, attempt = self.key
        return Outcome(ordinal, str(ordinal), "done", attempt=attempt)

    def release(self) -> None:
        """Nothing is held."""


@dataclass
class Forgetful:
    """A client whose connection breaks some times, always with everything in hand.

    ``told``: of how many attempts that is told in one batch, and no more until they are back.
    """

    breaks: int
    told: int = 1000
    status: str = "running"
    cluster: None = None
    heads: list[Any] = field(default_factory=list)
    topics: int = 0
    waiting: list[Future] = field(default_factory=list)

    def register_plugin(self, plugin: Any) -> None:
        """Nobody is watched."""

    def subscribe_topic(self, *_: Any) -> None:
        self.topics += 1

    def unsubscribe_topic(self, topic: str) -> None:
        """Nothing is told."""

    def get_events(self, topic: str) -> tuple[()]:
        return ()

    def nthreads(self) -> dict[str, int]:
        return {"worker": 1}

    def gather(self, futures: Sequence[Future], **_: Any) -> list[Outcome]:
        return [future.result() for future in futures]

    def get(self, tasks: Any, keys: list[Any], sync: bool) -> list[Future]:
        assert not sync
        futures = [Future(key, tasks[key]) for key in keys]
        if isinstance(keys[0], str):
            self.heads.append(keys[0])
            self.waiting += futures
            return futures
        if len(self.heads) > self.breaks:
            for future in futures:
                future.add_done_callback = lambda f, future=future: (  # type: ignore[method-assign]
                    future.end("finished"),
                    f(future),
                )[0]
            return futures
        self.waiting += futures
        return futures

    def break_off(self) -> None:
        """Some are told of now, the others at the next opportunity."""
        now, self.waiting = self.waiting[: self.told], self.waiting[self.told :]
        for future in now:
            future.end("cancelled")


def run_all(plan: gp.Plan, client: Forgetful) -> tuple[list[Outcome], list[Event]]:
    ended: list[Outcome] = []
    events: list[Event] = []
    drive(
        range(plan.n_supertiles),
        OnCluster(plan, Policy(), client),  # type: ignore[arg-type]
        Policy(),
        ended.append,
        client.break_off,
        lambda heard, backups: events.extend(heard),
    )
    return ended, events


@pytest.mark.parametrize(("breaks", "told"), [(1, 1000), (3, 1000), (1, 5)])
def test_what_a_scheduler_has_forgotten_is_started_again_and_charged_to_nobody(
    plan: gp.Plan, breaks: int, told: int
) -> None:
    client = Forgetful(breaks, told)
    ended, events = run_all(plan, client)
    assert sorted((o.ordinal, o.state, o.attempt) for o in ended) == [
        (i, "done", 1) for i in range(16)
    ]
    assert {type(event) for event in events} == {Done}
    assert len(client.heads) == breaks + 1  # also where it is told of in several batches
    assert client.topics == breaks + 1


def test_a_connection_that_keeps_breaking_ends_the_run(plan: gp.Plan) -> None:
    client = Forgetful(10**6)
    with pytest.raises(RunIncomplete, match=f"has lost the plan {MOST_HEADS} times"):
        run_all(plan, client)


# ---- a real one ----------------------------------------------------------------------------


def slow(plan: Any, ordinal: int, context: Any, policy: Any, attempt: int) -> Outcome:
    """A super-tile that takes a moment."""
    del context, policy
    time.sleep(0.1)
    return Outcome(ordinal, plan.supertile(ordinal).id, "done", attempt=attempt)


@pytest.mark.cluster
def test_a_connection_that_breaks_and_comes_back_costs_nothing(
    tcp_client: Client, plan: gp.Plan
) -> None:
    ended: list[Outcome] = []
    events: list[Event] = []

    def seen(outcome: Outcome) -> None:
        ended.append(outcome)
        if len(ended) in (3, 9):
            tcp_client.loop.add_callback(tcp_client.scheduler_comm.comm.abort)

    workers = OnCluster(plan, Policy(), tcp_client, run=slow)
    drive(range(16), workers, Policy(), seen, on_events=lambda heard, _: events.extend(heard))
    assert sorted((o.ordinal, o.state, o.attempt) for o in ended) == [
        (i, "done", 1) for i in range(16)
    ]
    assert {type(event) for event in events} == {Done}
    assert workers._head.begun == 3
