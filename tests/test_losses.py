"""Workers that are gone: what their nannies see of it, and what that says about the super-tile."""

from __future__ import annotations

import os
import signal
from asyncio import CancelledError
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster, Status

import geopatch_dask as gp
from geopatch_dask.clusters.deaths import (
    CERTAIN,
    LOOK,
    REMEMBERED,
    RESTARTED,
    TOPIC,
    Cgroup,
    DeathWatch,
    _Watch,
)
from geopatch_dask.execute.driving import losses as module
from geopatch_dask.execute.driving.driver import GiveUp
from geopatch_dask.execute.driving.losses import GRACE, JOBS, Losses

A, B = "tcp://10.0.0.1:1000", "tcp://10.0.0.2:1000"


# ---- the memory cgroup ---------------------------------------------------------------------


def cgroup_v1(
    folder: Path, kills: int = 0, limit: int = 1 << 30, path: str = "job_1/task_0"
) -> Any:
    """A machine with version 1, and a process in the cgroup of a batch job."""
    listed, mounted = folder / "cgroup", folder / "fs"
    listed.write_text(f"9:name=systemd:/\n4:cpu,memory:/{path}\n0::/\n")
    here = mounted / "memory" / path
    here.mkdir(parents=True)
    (here / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    (here / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (here.parent / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (mounted / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    return listed, mounted


def cgroup_v2(folder: Path, kills: int = 0, limit: str = "max", path: str = "") -> Any:
    """A container with version 2, which sees its own cgroup as the root."""
    listed, mounted = folder / "cgroup", folder / "fs"
    listed.write_text(f"0::/{path}\n")
    mounted.mkdir()
    (mounted / "memory.events").write_text(f"low 0\nmax 3\noom {kills}\noom_kill {kills}\n")
    (mounted / "memory.max").write_text(f"{limit}\n")
    return listed, mounted


def test_the_cgroup_of_a_batch_job(tmp_path: Path) -> None:
    found = Cgroup.mine(*cgroup_v1(tmp_path, kills=3, limit=656 << 20))
    assert found is not None
    assert (found.version, found.kills, found.limit) == (1, 3, 656 << 20)


@pytest.mark.parametrize("path", ["", "kubepods/of/the/host"])
def test_the_cgroup_of_a_container(tmp_path: Path, path: str) -> None:
    found = Cgroup.mine(*cgroup_v2(tmp_path, kills=1, limit="1073741824", path=path))
    assert found is not None
    assert (found.version, found.kills, found.limit) == (2, 1, 1 << 30)


def test_no_limit_and_no_cgroup(tmp_path: Path) -> None:
    found = Cgroup.mine(*cgroup_v2(tmp_path))
    assert found is not None
    assert (found.kills, found.limit) == (0, 0)
    assert Cgroup.mine(tmp_path / "nothing", tmp_path / "nowhere") is None


# ---- what a nanny sees ---------------------------------------------------------------------


@dataclass
class Nanny:
    """As far as the watch looks at one."""

    pid: int | None = 1
    worker_address: str | None = A
    status: Status = Status.running
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def log_event(self, topic: str, message: dict[str, Any]) -> None:
        self.told.append((topic, message))


def looks(watch: _Watch, count: int = CERTAIN + 1) -> None:
    for _ in range(count):
        watch.look()


def kills(mounted: Path, count: int) -> None:
    for file in mounted.rglob("memory.oom_control"):
        file.write_text(f"oom_kill {count}\n")


@pytest.mark.parametrize("counted_first", [True, False])
def test_a_worker_that_the_kernel_kills(tmp_path: Path, counted_first: bool) -> None:
    places = cgroup_v1(tmp_path, kills=5)
    nanny = Nanny()
    watch = _Watch(nanny, Cgroup.mine(*places))
    looks(watch)
    for step in (0, 1):
        if (step == 0) == counted_first:
            kills(places[1], 6)
        else:
            nanny.pid = None
        watch.look()
    nanny.pid, nanny.worker_address = 2, B  # its nanny starts another one
    looks(watch)
    assert nanny.told == [(TOPIC, {"worker": A, "by_kernel": True, "limit": 1 << 30})]


def test_a_worker_that_dies_of_something_else(tmp_path: Path) -> None:
    nanny = Nanny()
    watch = _Watch(nanny, Cgroup.mine(*cgroup_v1(tmp_path, kills=5)))
    looks(watch)
    nanny.pid = 2  # it is back before the next look
    looks(watch)
    nanny.pid = 3
    looks(watch)
    assert [said["by_kernel"] for _, said in nanny.told] == [False, False]


def test_the_kill_of_a_neighbour_is_soon_forgotten(tmp_path: Path) -> None:
    places = cgroup_v1(tmp_path)
    nanny = Nanny()
    watch = _Watch(nanny, Cgroup.mine(*places))
    kills(places[1], 1)
    looks(watch, 2 * REMEMBERED)
    nanny.pid = None
    looks(watch)
    assert [said["by_kernel"] for _, said in nanny.told] == [False]


def test_a_nanny_that_closes_with_its_worker_tells_nothing() -> None:
    nanny = Nanny()
    watch = _Watch(nanny, None)
    looks(watch)
    nanny.pid = None  # both got a signal; the worker was faster
    watch.look()
    nanny.status = Status.closing
    looks(watch)
    assert not nanny.told


def test_a_worker_that_dies_before_the_first_look() -> None:
    nanny = Nanny()
    watch = _Watch(nanny, None)
    nanny.pid = None
    looks(watch)
    assert [said["worker"] for _, said in nanny.told] == [A]


def test_a_worker_that_dies_while_the_death_of_another_is_being_told() -> None:
    nanny = Nanny()
    watch = _Watch(nanny, None)
    nanny.pid, nanny.worker_address = 2, None  # A is dead, its successor starts
    watch.look()
    nanny.worker_address = B
    watch.look()
    nanny.pid = None
    looks(watch)
    assert [said["worker"] for _, said in nanny.told] == [A, B]


# ---- what it means -------------------------------------------------------------------------


class Scheduler:
    """Events, as a client sees them."""

    def __init__(self) -> None:
        self.events: dict[str, list[Any]] = {}
        self.plugins: list[Any] = []

    def register_plugin(self, plugin: Any) -> None:
        self.plugins.append(plugin)

    def get_events(self, topic: str) -> list[Any]:
        return self.events.get(topic, [])

    def tell(self, topic: str, **message: Any) -> None:
        self.events.setdefault(topic, []).append((0.0, message))


@dataclass
class Worker:
    """As far as an error names one."""

    address: str = A
    name: str = "geopatch-3-0"
    nanny: str | None = "tcp://10.0.0.1:999"


@dataclass
class World:
    """Losses with a clock that stands still."""

    plan: Any
    scheduler: Scheduler = field(default_factory=Scheduler)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.losses = Losses(self.plan, self.scheduler, lambda: self.now)  # type: ignore[arg-type]

    def lose(self, worker: Any = None, ordinal: int = 0, attempt: int = 1) -> None:
        error = KilledWorker("tile", worker or Worker(), 0)
        self.losses.add(ordinal, attempt, error)


@pytest.fixture
def world(tmp_path: Path) -> World:
    patcher = gp.Patcher(gp.Rectangular(10), gp.RegularStride(5), gp.Hann())
    field_ = gp.ArrayField(np.zeros((40, 40)))
    plan = gp.plan(
        field_, patcher, np.sqrt, tmp_path / "o.zarr", outer=20, chunks=20, memory_limit="1GiB"
    )
    return World(plan)


def test_nannies_are_asked_to_watch_once_per_cluster(world: World) -> None:
    assert [type(plugin) for plugin in world.scheduler.plugins] == [DeathWatch]
    assert world.scheduler.plugins[0].idempotent


def test_nothing_is_judged_before_somebody_tells_or_time_is_up(world: World) -> None:
    assert not world.losses
    world.lose()
    assert world.losses
    world.now = GRACE - 0.01
    assert world.losses.judged() == []
    world.now = GRACE
    (lost,) = world.losses.judged()
    assert (lost.ordinal, lost.attempt, lost.machine, lost.error["kind"]) == (0, 1, True, "lost")
    assert not lost.timed_out
    assert "was lost with its machine or batch job: preempted" in lost.error["message"]
    assert not world.losses


@pytest.mark.parametrize(
    ("topic", "event", "kind", "message"),
    [
        (
            TOPIC,
            {"by_kernel": True, "limit": 1 << 30},
            "memory",
            "killed by the kernel for want of",
        ),
        (TOPIC, {"by_kernel": False, "limit": 0}, "lost", "died, perhaps for want of memory"),
        (RESTARTED, {"pid": 7, "rss": 1 << 30}, "memory", "ended by Dask at its memory limit"),
    ],
)
def test_what_is_told_decides(
    world: World, topic: str, event: dict[str, Any], kind: str, message: str
) -> None:
    world.lose()
    world.scheduler.tell(topic, worker=B, **event)
    assert world.losses.judged() == []  # another worker's
    world.scheduler.tell(topic, worker=A, **event)
    (lost,) = world.losses.judged()
    error = lost.error
    assert (lost.ordinal, lost.attempt, lost.machine, error["kind"]) == (0, 1, False, kind)
    assert error["type"] == "WorkerLost"
    assert message in error["message"]
    assert "1.0 GiB allowed per slot" in error["message"]
    assert ("1.0 GiB for its whole job or container" in error["message"]) == bool(
        event.get("limit")
    )


def test_a_worker_without_a_nanny_is_taken_for_dead(world: World) -> None:
    world.lose(Worker(nanny=None))
    world.losses.add(1, 1, CancelledError())
    assert [(lost.ordinal, lost.attempt, lost.machine) for lost in world.losses.judged()] == [
        (0, 1, False),
        (1, 1, False),
    ]


def test_what_is_given_up_says_how_its_batch_jobs_ended(world: World) -> None:
    for attempt, name in enumerate(["geopatch-3-0", "geopatch-4", "geopatch-9-1"], 1):
        world.lose(Worker(name=name), attempt=attempt)
    world.scheduler.tell(JOBS, name="geopatch-3", job="17", state="PREEMPTED")
    world.scheduler.tell(JOBS, name="geopatch-4", job="18", state="OUT_OF_MEMORY")
    world.scheduler.tell(JOBS, name="geopatch-5", job="19", state="TIMEOUT")
    world.now = GRACE
    error = world.losses.judged()[0].error
    item = world.losses.completed(GiveUp(0, error, 3))
    assert item.error["message"].endswith("; its batch jobs ended: PREEMPTED, OUT_OF_MEMORY")
    other = GiveUp(1, error, 3)
    assert world.losses.completed(other) is other


def test_the_topic_of_batch_jobs_has_one_name() -> None:
    batch = pytest.importorskip("geopatch_dask.clusters.batch", reason="an extra: hpc")
    assert batch.TOPIC == JOBS


def test_a_cluster_that_cannot_be_watched_is_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(plugin: Any) -> None:
        raise OSError("no")

    world.scheduler.register_plugin = refuse  # type: ignore[method-assign]
    Losses(world.plan, world.scheduler)  # type: ignore[arg-type]
    assert "workers cannot be watched (no)" in caplog.text


# ---- real nannies --------------------------------------------------------------------------


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as found,
    ):
        yield found


@pytest.mark.cluster
def test_a_real_nanny_tells_of_a_real_death(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(module, "GRACE", 60.0)
    for _ in range(2):  # as two runs on one cluster do
        client.register_plugin(DeathWatch())
    time.sleep(3 * LOOK / 1000)
    ((address, pid),) = client.run(os.getpid).items()
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while not client.get_events(TOPIC):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(5 * LOOK / 1000)
    assert [said["worker"] for _, said in client.get_events(TOPIC)] == [address]  # once
