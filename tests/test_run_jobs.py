"""Jobs: that survive their client, that are watched and cancelled from elsewhere, and in shares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from sample_operators import Counted, notes

import geopatch_dask as gp
from geopatch_dask.execute.attempt import metrics
from geopatch_dask.store import template
from geopatch_dask.store.jobs import STALE, Heartbeat, RunState, cancel, runs
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import assert_same_bytes, merged, read_back


class Slow(Counted):
    """Some time per patch."""

    def __call__(self, x: Any) -> Any:
        time.sleep(0.06)
        return super().__call__(x)


def field() -> gp.ArrayField:
    return gp.ArrayField(np.random.default_rng(5).standard_normal((60, 60)).astype("float32"))


def planned(folder: Path, operator: type[Counted] = Counted, target: str = "out.zarr") -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    return gp.plan(
        *(field(), patcher, operator(folder / "calls.txt"), folder / target),
        outer=(20, 20),
        chunks=(10, 10),
        slots=2,
        memory_limit="1 GiB",
    )


def check(folder: Path, target: str = "out.zarr") -> None:
    assert gp.status(folder / target).complete
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    assert_same_bytes(read_back(folder / target), merged(field(), patcher, lambda x: x * 2))
    assert gp.attach(folder / target).runs == []  # nobody says that he works on it


# ---- shares ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_shares_in_any_order_make_the_whole(tmp_path: Path, order: tuple[int, ...]) -> None:
    reports = [planned(tmp_path).run("sync", share=(i, 4)) for i in order]
    assert [report.complete for report in reports] == [False] * 3 + [True]
    assert sum(report.summary.done for report in reports) == 9
    check(tmp_path)
    plan = planned(tmp_path)
    made = notes(tmp_path / "calls.txt")
    planned(tmp_path)
    trials = notes(tmp_path / "calls.txt") - made  # of the operator, by every plan
    assert made == sum(plan.grid.count_touching(t.box) for t in plan.layout) + 5 * trials


@pytest.mark.parametrize("again", range(5))
def test_shares_at_the_same_time_need_nothing_in_common(tmp_path: Path, again: int) -> None:
    plans = [planned(tmp_path) for _ in range(3)]
    start = threading.Barrier(3)

    def run(i: int) -> bool:
        start.wait()
        return plans[i].run("sync", share=(i, 3)).complete

    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(run, range(3)))
    assert any(ends), "whoever writes the last record sees all of them"
    check(tmp_path)


def test_a_share_that_begins_late_keeps_what_another_has_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, late = planned(tmp_path), planned(tmp_path)
    vacant = template._is_vacant

    def slow(*args: Any) -> bool:
        found = vacant(*args)
        monkeypatch.setattr(template, "_is_vacant", vacant)
        assert not first.run("sync", share="0/2").complete
        return found

    monkeypatch.setattr(template, "_is_vacant", slow)
    assert late.run("sync", share="1/2").complete
    check(tmp_path)


def test_one_set_of_numbers_for_runs_that_begin_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("prometheus_client")
    made: list[object] = []

    def slow() -> object:
        time.sleep(0.02)
        made.append(object())
        return made[-1]

    monkeypatch.setattr(metrics, "_Set", slow)
    monkeypatch.setattr(metrics, "_made", cache(metrics._made.__wrapped__))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: metrics._metrics(), range(4)))
    assert found == made * 4


def test_more_shares_than_super_tiles(tmp_path: Path) -> None:
    assert not planned(tmp_path).run("sync", share="20/21").complete
    for i in range(9):
        report = planned(tmp_path).run("sync", share=(i, 21))
    assert report.complete


@pytest.mark.parametrize("share", ["3/3", "1", "-1/2", "a/b", (2, 2), (0, 0), "1/2/3"])
def test_shares_that_make_no_sense(tmp_path: Path, share: Any) -> None:
    with pytest.raises(gp.OptionError, match="shares count from 0"):
        planned(tmp_path).run("sync", share=share)
    assert not (tmp_path / "out.zarr").exists()


# ---- two at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sync", "threads"])
def test_two_runs_of_one_plan_at_once(tmp_path: Path, way: str) -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            planned(tmp_path).run(way)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check(tmp_path)


# ---- detached --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """A cluster that outlives its clients, and forgives deaths of workers as Dask does."""
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit="1 GiB",
        ) as made,
        Client(made, set_as_default=False) as client,
    ):
        yield client


_SUBMIT = """
import sys
from pathlib import Path
from distributed import Client
from test_run_jobs import Slow, planned

with Client(sys.argv[1]) as client:
    planned(Path(sys.argv[2]), Slow).submit(client)
"""


def submitted(cluster: Client, folder: Path) -> gp.Job:
    """Submit from a process that ends at once."""
    words = [sys.executable, "-c", _SUBMIT, cluster.scheduler.address, str(folder)]
    subprocess.run(words, check=True, timeout=120, cwd=Path(__file__).parent)
    return gp.attach(folder / "out.zarr")


@pytest.mark.slow
def test_a_submitted_job_survives_its_client(cluster: Client, tmp_path: Path) -> None:
    job = submitted(cluster, tmp_path)
    assert job.alive
    assert not job.complete
    said: list[RunState] = []
    report = job.wait(timeout=120, progress=said.extend)
    assert report.complete
    assert report.summary.done == 9
    assert said
    assert said[-1].total == 9
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_submitted_job_is_cancelled_from_elsewhere_and_goes_on(
    cluster: Client, tmp_path: Path
) -> None:
    job = submitted(cluster, tmp_path)
    while not job.status().counts["done"]:
        time.sleep(0.05)
    job.cancel()
    assert not job.alive
    with pytest.raises(gp.RunIncomplete, match=r"nobody works on .* not complete") as caught:
        job.wait(timeout=10)
    assert isinstance(caught.value.report, gp.Report)
    assert caught.value.report.cancelled
    done = job.status().counts["done"]
    assert 1 <= done < 9
    report = planned(tmp_path, Slow).run("threads")
    assert report.skipped >= done  # what ran on the cluster then may have ended since
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("failures", [3, 0])  # as Dask, and as clusters of ours
def test_the_worker_that_drives_is_killed_and_another_drives_on(
    cluster: Client, tmp_path: Path, failures: int
) -> None:
    before = allowed(cluster, failures)
    try:
        job = submitted(cluster, tmp_path)
        while not job.status().counts["done"]:
            time.sleep(0.05)
        (run,) = job.runs
        os.kill(run.pid, signal.SIGKILL)
        assert job.wait(timeout=120).complete
    finally:
        allowed(cluster, before)
    check(tmp_path)


def allowed(cluster: Client, failures: int) -> int:
    """Sets how many workers may die with a task before a scheduler gives it up."""

    def change(dask_scheduler: Any) -> int:
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, failures
        return int(before)

    before: int = cluster.run_on_scheduler(change)
    return before


def test_bad_input_is_said_at_once(tmp_path: Path, client: Client) -> None:
    with pytest.raises(gp.TargetError, match="no plan is recorded beside"):
        gp.attach(tmp_path / "nothing.zarr")
    plan = planned(tmp_path)
    plan.run("sync")
    other = gp.plan(
        field(), plan.patcher, gp.Operator(np.negative), plan.target, outer=20, chunks=10
    )
    with pytest.raises(gp.PlanMismatch):
        other.submit(client)


# ---- heartbeats ------------------------------------------------------------------------------


def test_a_run_tells_and_listens(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    ledger = Ledger(plan.target, plan.fingerprint)
    heart = Heartbeat(ledger, RunState.begin(share="1/2"))
    assert heart.beat(total=7, done=3)
    (found,) = runs(ledger)
    assert (found.total, found.done, found.share, found.alive) == (7, 3, "1/2", True)
    cancel(ledger, found)
    assert not heart.beat(done=4)
    heart.end()
    assert runs(ledger) == []


@pytest.mark.parametrize("why", [KeyboardInterrupt, None])
def test_who_is_interrupted_does_not_wait_for_a_store_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: type[BaseException] | None
) -> None:
    from geopatch_dask.execute.driving import drive

    monkeypatch.setattr(drive, "BEAT", 0.01)
    monkeypatch.setattr(drive, "LAST_WORDS", 0.05)
    plan, asked, answers = planned(tmp_path), threading.Event(), threading.Event()
    told: list[str] = []

    class Deaf(Heartbeat):
        def beat(self, **numbers: Any) -> bool:
            if threading.current_thread() is not threading.main_thread():
                asked.set()
                answers.wait(30)
            return True

        def end(self) -> None:
            told.append("end")

    monkeypatch.setattr(drive, "Heartbeat", Deaf)
    with suppress(KeyboardInterrupt), drive.Pulse(plan, 0, 9, RunState.begin()):
        assert asked.wait(10)
        if why is not None:
            raise why
        answers.set()
    assert told == ([] if why else ["end"])
    answers.set()


def test_a_run_that_died_is_told_apart(tmp_path: Path) -> None:
    ledger = Ledger(planned(tmp_path).target, planned(tmp_path).fingerprint)
    heart = Heartbeat(ledger, RunState.begin())
    heart.beat()
    text = (ledger.folder.read(f"runs/{heart.state.id}.json") or b"").decode()
    year = heart.state.updated[:4]
    ledger.folder.write(f"runs/{heart.state.id}.json", text.replace(year, "2020").encode())
    (found,) = runs(ledger)
    assert not found.alive
    assert found.age > STALE
    ledger.folder.write("runs/torn.json", b'{"id": "to')
    assert [run.id for run in runs(ledger)] == [heart.state.id]


@pytest.mark.slow
def test_a_run_is_cancelled_through_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopatch_dask.execute.driving import drive

    monkeypatch.setattr(drive, "BEAT", 0.05)
    plan, done = planned(tmp_path, Slow), []

    def progress(outcome: Any, finished: int, total: int) -> None:
        done.append(outcome.id)
        if len(done) == 1:
            threading.Thread(target=gp.attach(plan.target).cancel).start()

    with pytest.raises(gp.RunIncomplete, match="cancelled") as caught:
        plan.run("sync", progress=progress)
    assert isinstance(caught.value.report, gp.Report)
    assert caught.value.report.cancelled
    assert 1 <= len(done) < 9
    assert gp.attach(plan.target).runs == []
    planned(tmp_path, Slow).run("threads")
    check(tmp_path)
