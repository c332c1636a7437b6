"""Jobs through a proxy that fails one request in six; workers whose network is cut; rivals.

::

    workers ---> proxy ---> gateway       8 % "503 SlowDown", 4 % resets before and 4 % after the
                                          request was applied, 2 % short answers, 10 ms late
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.buckets import Bucket, Cog
from integration.killing import (
    TARGET,
    DaskProcesses,
    JobProcess,
    check_kept,
    check_same,
    check_trusted,
    records,
    start,
    wait_for_records,
)
from integration.s3_job import PAUSE, job
from services.netns import Network
from services.proxied import FaultProxy

import geopatch_dask as gp
from geopatch_dask import retries
from geopatch_dask.store.records import Record

pytestmark = pytest.mark.integration

SIZE = 300  # cells: 5 x 5 super-tiles of 64
FAULTS = {"p503": 0.08, "reset_before": 0.04, "reset_after": 0.04, "truncate": 0.02}
LATENCY = 0.010  # seconds
LAYOUTS = {"unsharded": None, "sharded": [64, 64]}
#: Faults that a client does not hide: aiohttp, below s3fs, repeats what met a reset by itself.
HANDED_ON = {"fsspec": {"p503"}, "obstore": {"p503", "reset_before", "reset_after"}}
#: The path of an object of cells.
OBJECT = re.compile(rf"/{re.escape(TARGET)}/data/c/(\d+)/(\d+)")
LocalRun = Callable[[dict[str, Any]], Path]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process repeats requests as it does outside of tests, pauses included."""
    monkeypatch.setattr(retries, "POLICY", retries.Retries())


def check_counted(
    places: list[tuple[str, str, str]], found: list[Record], unit: tuple[int, ...], kinds: set[str]
) -> None:
    """Every record counts what its super-tile had to repeat; all of them, no more than there was.

    Objects of cells are written by super-tiles alone, so what failed there must be in the record of
    the one that owns them.  Of the rest nobody can tell: GDAL repeats by itself, and this process
    has its share of requests.  Records, and what else lies beside the target, are written when the
    count of a super-tile is closed, or by this process.
    """
    objects = [OBJECT.search(path) for kind, _, path in places if kind in kinds]
    corners = [[int(k) * n for k, n in zip(at.groups(), unit, strict=True)] for at in objects if at]
    assert corners, "no fault that tells anything"
    assert {record.attempts for record in found} == {1}
    for record in found:
        sides = list(zip(record.box.start, record.box.stop, strict=True))
        mine = [c for c in corners if all(a <= k < b for k, (a, b) in zip(c, sides, strict=True))]
        assert record.retries >= len(mine), f"{record.id} had to repeat {len(mine)} requests"
    beside = [1 for _, method, path in places if method == "PUT" and f"{TARGET}.geopatch/" in path]
    assert sum(record.retries for record in found) <= len(places) - len(beside)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("speaks", ["fsspec", "obstore"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_job_through_a_bad_network(
    speaks: str,
    layout: str,
    proxied_s3: Bucket,
    local_cog: Callable[[int], Path],
    client: Any,
    local_run: LocalRun,
) -> None:
    """Input and output: the same bytes, and what was repeated is counted."""
    s3, proxy = proxied_s3, proxied_s3.proxy
    assert proxy is not None
    cog = Cog(s3.url("input/scene.tif"), local_cog(SIZE))
    s3.write("input/scene.tif", cog.path.read_bytes())
    spec = {"field": cog.url, "field_options": s3.options, "target": s3.url(TARGET)}
    spec |= {"options": s3.options, "client": speaks, "shards": LAYOUTS[layout]}
    proxy.set(**FAULTS, latency=LATENCY)
    plan = job(spec)
    report = plan.run(client, policy=gp.Policy(backups=False))  # theirs are counted by nobody
    injected, places = proxy.injected(), proxy.places()
    proxy.set(**dict.fromkeys(FAULTS, 0.0), latency=0.0)

    assert report.complete
    assert report.client == speaks
    assert report.summary.states == {"done": 25}
    assert {kind for kind, count in injected.items() if count} == set(FAULTS)
    status = gp.status(s3.place(TARGET))
    check_counted(places, list(status.records.values()), plan.layout.unit, HANDED_ON[speaks])
    # The report has what records cannot know, too: of writing them, and of this process.
    assert status.totals()["retries"] <= report.summary.numbers["retries"] <= len(places)
    expected = local_run({**spec, "field": str(cog.path), "field_options": None})
    check_trusted(s3, expected)
    check_same(s3, local_run({**spec, "field_options": None, "field": cog.url}))


def test_a_worker_is_cut_off_for_half_a_minute(
    s3: Bucket,
    local_cog: Callable[[int], Path],
    tmp_path: Path,
    namespaces: Network,
    local_run: LocalRun,
) -> None:
    """The run does without it; what it still has to say when it is back does no harm."""
    first = {"host": namespaces.addresses[0], "namespace": namespaces.names[0]}
    with FaultProxy(s3.ceph.port, **first) as proxy:
        far = dataclasses.replace(s3, endpoint=proxy.endpoint, proxy=proxy)
        env = {**far.env, PAUSE: "0.05", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10 s"}
        spec = {"field": str(local_cog(SIZE)), "target": s3.url(TARGET), "options": far.options}
        expected = local_run(spec)
        with DaskProcesses(tmp_path, env, network=namespaces) as dask:
            running = start({**spec, "scheduler": dask.address}, tmp_path, env, (namespaces, 0))
            wait_for_records(s3, 4, running)
            with namespaces.severed(1):
                began = time.monotonic()
                running.finish(90)
                before = records(s3)
                time.sleep(max(began + 30 - time.monotonic(), 0.0))
            assert len(before) == 25
            time.sleep(10)  # packets that were held back are sent again
            check_same(s3, expected)
            check_trusted(s3, expected)
            again = start({**spec, "scheduler": dask.address}, tmp_path, env, (namespaces, 0))
            again.finish(90)
    check_same(s3, expected)
    assert set(records(s3)) == set(before)


@pytest.fixture
def rivals(
    s3: Bucket, local_cog: Callable[[int], Path], tmp_path: Path
) -> Iterator[Callable[[str], list[JobProcess]]]:
    """Starts the same job in two processes, in the same moment."""
    started: list[JobProcess] = []

    def start_both(scheduler: str) -> list[JobProcess]:
        spec = {"field": str(local_cog(SIZE)), "target": s3.url(TARGET), "options": s3.options}
        spec |= {"scheduler": scheduler, "at": time.time() + 6}
        for _ in range(2):
            started.append(start(spec, tmp_path, {**s3.env, PAUSE: "0.01"}))
        return started

    yield start_both
    for process in started:
        process.kill()


@pytest.mark.parametrize("way", ["threads", "one cluster"])
def test_two_clients_start_the_same_plan_in_the_same_moment(
    way: str,
    rivals: Callable[[str], list[JobProcess]],
    s3: Bucket,
    tmp_path: Path,
    local_cog: Callable[[int], Path],
    local_run: LocalRun,
) -> None:
    if way == "threads":
        for process in rivals("threads"):
            process.finish()
    else:
        folder = tmp_path / "dask"
        folder.mkdir()
        with DaskProcesses(folder, {**s3.env, PAUSE: "0.01"}) as dask:
            for process in rivals(dask.address):
                process.finish()
    spec = {"field": str(local_cog(SIZE)), "target": s3.url(TARGET), "options": s3.options}
    expected = local_run(spec)
    check_same(s3, expected)
    check_trusted(s3, expected)
    before = records(s3)
    assert len(before) == 25
    assert gp.attach(s3.place(TARGET)).runs == []
    assert job(spec).run("threads").skipped == 25
    check_kept(before, s3)


def test_a_detached_job(
    s3: Bucket, local_cog: Callable[[int], Path], tmp_path: Path, local_run: LocalRun
) -> None:
    """Submitted by a process that ends; attached to by this one, which knows the target only."""
    spec = {"field": str(local_cog(SIZE)), "target": s3.url(TARGET), "options": s3.options}
    env = {**s3.env, PAUSE: "0.03"}
    with DaskProcesses(tmp_path, env) as dask:
        start({**spec, "scheduler": dask.address, "submit": True}, tmp_path, env).finish()
        attached = gp.attach(s3.place(TARGET))
        assert attached.alive
        assert not attached.complete
        said: list[Any] = []
        report = attached.wait(timeout=120, progress=said.extend)
    assert said
    assert said[-1].total == 25
    assert said[-1].pid != os.getpid()
    assert report.complete
    assert report.summary.done == 25
    assert attached.runs == []
    check_same(s3, local_run(spec))
    check_trusted(s3, local_run(spec))
