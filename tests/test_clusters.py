"""gp.cluster: what a kind is asked for, what it starts, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import sample_operators as ops
from cluster_state import children, told, tracker
from distributed import Client, LocalCluster, default_client

import geopatch_dask as gp
from geopatch_dask.clusters.deferred import Deferred, wait_for_first
from geopatch_dask.clusters.local import visible_gpus
from geopatch_dask.testing import read_back

GPU = "CUDA_VISIBLE_DEVICES"
PATCHER = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())
FIELD = gp.ArrayField(np.random.default_rng(3).random((60, 60)))


def planned(target: Any) -> gp.Plan:
    return gp.plan(FIELD, PATCHER, ops.mixing, target, outer=(20, 60), chunks=(20, 60))


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


def gone(pids: set[int]) -> bool:
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


# ---- a local cluster -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> Iterator[gp.Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(GPU, raising=False)
        made = gp.cluster("local", workers=2, memory="600 MiB")
        yield made
        made.close()


@pytest.mark.cluster
def test_nothing_but_loopback_listens(two: gp.Cluster) -> None:
    """Scheduler, dashboard and nannies in this process, workers and their servers in theirs."""
    me = psutil.Process()
    assert two.client.dashboard_link.startswith("http://127.0.0.1:")
    listening: dict[int, list[Any]] = {}
    for process in (me, *me.children(recursive=True)):
        for kind in ("inet", "inet6"):
            for line in process.net_connections(kind):
                if line.status == psutil.CONN_LISTEN:
                    listening.setdefault(process.pid, []).append(line.laddr)
    assert len(listening) >= 3  # this process and two workers
    ports = {place.port for place in listening[me.pid]}
    assert int(two.client.scheduler.address.rpartition(":")[2]) in ports
    assert {place.ip for places in listening.values() for place in places} == {"127.0.0.1"}


@pytest.mark.cluster
def test_a_slot_is_a_process_with_one_thread(two: gp.Cluster) -> None:
    workers = two.client.scheduler_info(n_workers=-1)["workers"].values()
    assert [w["nthreads"] for w in workers] == [1, 1]
    assert {w["memory_limit"] for w in workers} == {600 << 20}
    assert len(set(two.client.run(os.getpid).values()) - {os.getpid()}) == 2
    assert repr(two) == f"<Cluster local: 2 workers of 600.0 MiB, {two.client.scheduler.address}>"
    assert (two.kind, two.slots, two.memory) == ("local", 2, 600 << 20)
    with pytest.raises(ValueError, match="No client"):
        default_client()  # what others compute is not sent to it


@pytest.mark.cluster
def test_a_plan_takes_the_cluster_its_client_or_dasks_own_object(
    two: gp.Cluster, tmp_path: Path
) -> None:
    found = []
    ways: dict[str, Any] = {"cluster": two, "client": two.client, "dask": two.dask, "sync": "sync"}
    for name, way in ways.items():
        plan = planned(tmp_path / f"{name}.zarr")
        assert plan.run(way).complete
        found.append(read_back(plan.target))
    assert all(np.array_equal(cells, found[-1]) for cells in found)
    made = gp.reconstruct(FIELD, PATCHER, ops.mixing, tmp_path / "other.zarr", client=two)
    assert np.array_equal(made.values, found[-1])
    asked = gp.doctor(plan=plan, client=two)
    assert "2 workers: the same versions as here" in str(asked)
    assert two.client.status == "running"  # lent, not given away


@pytest.mark.cluster
def test_a_plan_is_submitted_to_the_cluster(two: gp.Cluster, tmp_path: Path) -> None:
    plan = planned(tmp_path / "out.zarr")
    assert plan.submit(two).wait(timeout=60).complete
    with pytest.raises(gp.OptionError, match="a cluster that outlives this process, not to 'sync'"):
        plan.submit("sync")


@pytest.mark.cluster
def test_interrupts_of_a_terminal_do_not_reach_workers(two: gp.Cluster) -> None:
    def blocked() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert all(two.client.run(blocked).values())
    assert not blocked()


@pytest.mark.cluster
def test_without_with_and_closed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU, raising=False)
    before, earlier = told(), children()
    made = gp.cluster("local", workers=1, memory="500 MiB", dashboard=False)
    started = children() - earlier
    assert started
    assert made.client.run(os.getpid)
    made.close()
    made.close()
    assert repr(made) == "<Cluster local: closed>"
    assert made.client.status == "closed"
    assert eventually(lambda: gone(started - tracker()))
    assert told() == before
    with pytest.raises(gp.OptionError, match=r"closed.*ask for another one with gp.cluster"):
        gp.doctor(client=made)


@pytest.mark.cluster
def test_a_cluster_that_nobody_can_reach_ends_its_processes() -> None:
    earlier = children()
    made = gp.cluster("local", workers=1, memory="500 MiB")
    started = children() - earlier - tracker()
    assert started
    del made
    gc.collect()
    assert eventually(lambda: gone(started))
    assert eventually(
        lambda: not any(thread.name == "geopatch-close" for thread in threading.enumerate())
    )


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_that_adapts_starts_workers_for_what_there_is_to_do(tmp_path: Path) -> None:
    with gp.cluster("local", adapt=(0, 2), memory="500 MiB") as client:
        assert client.nthreads() == {}
        assert planned(tmp_path / "out.zarr").run(client).complete


# ---- GPUs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "asked", "found"),
    [
        ({GPU: "3,5,GPU-0a"}, True, ("3", "5", "GPU-0a")),
        ({GPU: " 3 , 5 "}, 1, ("3",)),
        ({GPU: "3,5"}, None, ()),
        ({GPU: "3,5"}, False, ()),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, 2, ("0", "1")),
    ],
)
def test_gpus_are_those_that_this_process_may_see(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], asked: Any, found: tuple[str, ...]
) -> None:
    monkeypatch.delenv(GPU, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert visible_gpus(asked) == found


@pytest.mark.parametrize(("given", "asked"), [("", True), ("-1", 1), ("3", 2)])
def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch, given: str, asked: Any) -> None:
    monkeypatch.setenv(GPU, given)
    with pytest.raises(gp.OptionError, match=r"are visible \(CUDA_VISIBLE_DEVICES="):
        visible_gpus(asked)


@pytest.mark.cluster
def test_every_worker_sees_a_gpu_of_its_own_also_when_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(GPU, "7,GPU-5e")

    def seen() -> tuple[str, int]:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), os.getpid()

    with gp.cluster("local", gpus=True, memory="500 MiB") as client:
        first = list(client.run(seen).values())
        assert sorted(gpu for gpu, _ in first) == ["7", "GPU-5e"]
        os.kill(first[0][1], signal.SIGKILL)
        assert eventually(lambda: first[0] not in client.run(seen, on_error="ignore").values())
        assert eventually(lambda: len(client.nthreads()) == 2)
        again = client.run(seen).values()
        assert sorted(gpu for gpu, _ in again) == ["7", "GPU-5e"]
        assert first[1] in again


# ---- somebody's own cluster ----------------------------------------------------------------


@pytest.mark.cluster
def test_an_address_is_used_as_it_is_and_goes_on(two: gp.Cluster, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def double(a):\n    return a * 2\n")
    address = two.client.scheduler.address

    def imported() -> int:
        import only_here

        return int(only_here.double(21))

    found = gp.cluster(address, folders=[tmp_path])
    assert found.dask is None
    assert found.slots is None
    assert set(found.client.run(imported).values()) == {42}
    found.close()
    assert found.client.status == "closed"
    assert len(two.client.nthreads()) == 2


@pytest.mark.cluster
def test_what_belongs_to_an_event_loop_is_refused(two: gp.Cluster) -> None:
    async def asked() -> None:
        address = two.client.scheduler.address
        async with Client(address, asynchronous=True, set_as_default=False) as client:
            gp.doctor(client=client)

    with pytest.raises(gp.OptionError, match="Client with asynchronous=True cannot run a plan"):
        asyncio.run(asked())


def test_what_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(gp.OptionError, match="'slurm' is no scheduler: pass None, 'sync'"):
        planned(tmp_path / "out.zarr").run("slurm")
    with pytest.raises(gp.OptionError, match="'threads' is no cluster that could be asked"):
        gp.doctor(client="threads")


# ---- started when it is known what is to do ------------------------------------------------


@pytest.mark.cluster
def test_a_deferred_cluster_has_no_more_workers_than_super_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def remembered(kind: str, **words: Any) -> gp.Cluster:
        asked.append(words)
        return gp.cluster(kind, **words)

    monkeypatch.setattr("geopatch_dask.clusters.deferred.cluster", remembered)
    plan = gp.plan(
        FIELD, PATCHER, ops.mixing, tmp_path / "out.zarr", outer=(60, 60), slots=4,
        memory_limit="700 MiB",
    )  # fmt: skip
    how = Deferred("local", {"dashboard": False})
    assert plan.run(how).complete
    assert asked == [{"dashboard": False, "workers": 1, "memory": 700 << 20}]
    assert plan.run(how).skipped == 1
    assert len(asked) == 1  # nothing was to do, so nothing was started


@pytest.mark.cluster
def test_waiting_for_the_first_worker_is_told_and_can_be_ended(tmp_path: Path) -> None:
    said: list[str] = []

    class Enough(Exception):
        pass

    def enough() -> None:
        raise Enough

    with (
        LocalCluster(
            n_workers=0, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with pytest.raises(Enough):
            wait_for_first(client, 8, said.append, enough)
        assert said == ["waiting for workers: 0 of 8"]
        cluster.scale(1)
        assert wait_for_first(client, 8, said.append) == 1
    assert said[1:] == ["waiting for workers: 0 of 8", "workers: 1 of 8"]


def test_what_a_deferred_cluster_is_asked_for_is_not_shown() -> None:
    assert "hunter2" not in repr(Deferred("kubernetes", {"token": "hunter2"}))


@pytest.mark.parametrize(
    ("given", "super_tiles", "asked"), [((0, 16), 3, (0, 3)), ((4, 8), 2, (2, 2))]
)
def test_adapting_is_cut_at_what_there_is_to_do(
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[int, int],
    super_tiles: int,
    asked: tuple[int, int],
) -> None:
    class Started(Exception):
        pass

    def start(kind: str, **words: Any) -> None:
        raise Started(kind, words)

    monkeypatch.setattr("geopatch_dask.clusters.deferred.cluster", start)
    with (
        pytest.raises(Started) as caught,
        Deferred("slurm", {"adapt": given, "queue": "q"}).started(super_tiles, 1 << 30),
    ):
        pass
    assert caught.value.args == ("slurm", {"adapt": asked, "queue": "q"})


@pytest.mark.cluster
def test_an_interrupt_while_a_cluster_starts_leaves_nothing_behind() -> None:
    """Ctrl-C comes in the middle, and is raised when what was started can be ended."""
    earlier, before = children(), told()
    main = threading.main_thread().ident or 0
    timer = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        gp.cluster("local", workers=1, memory="500 MiB")
    timer.join()
    assert eventually(lambda: gone(children() - earlier - tracker()))
    assert told() == before
