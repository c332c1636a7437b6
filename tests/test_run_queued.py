"""Jobs that have not begun: no worker is free, the cluster is gone, or it cannot load the plan."""

from __future__ import annotations

import importlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_jobs import geopatch
from distributed import Client, LocalCluster
from sample_operators import Counted, notes

import geopatch_dask as gp
from geopatch_dask.execute.runs import beginning
from geopatch_dask.execute.runs import job as jobs
from geopatch_dask.execute.runs.run import execute
from geopatch_dask.store.jobs import QUEUE, Heartbeat, RunState, announce, said, take_up
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import assert_same_bytes, merged, read_back

Captured = pytest.CaptureFixture[str]

FIELD = gp.ArrayField(np.random.default_rng(5).standard_normal((60, 60)))
PATCHER = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())


def planned(folder: Path, operator: Any = None) -> gp.Plan:
    made = Counted(folder / "calls.txt") if operator is None else operator
    return gp.plan(FIELD, PATCHER, made, folder / "out.zarr", outer=20, chunks=10, slots=2)


def check(folder: Path) -> None:
    assert_same_bytes(read_back(folder / "out.zarr"), merged(FIELD, PATCHER, lambda x: x * 2))


@pytest.fixture(autouse=True)
def _look_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "BEGINS", 0.3)


@contextmanager
def cluster(workers: int = 0) -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit="1 GiB",
        ) as made,
        Client(made, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def empty() -> Iterator[Client]:
    """A cluster that has no worker yet."""
    with cluster() as client:
        yield client


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tasks(client: Client) -> dict[str, str]:
    """What the scheduler knows, and in which state."""

    def known(dask_scheduler: Any) -> dict[str, str]:
        return {str(key): task.state for key, task in dask_scheduler.tasks.items()}

    found: dict[str, str] = client.run_on_scheduler(known)
    return found


# ---- no worker is free -----------------------------------------------------------------------


@pytest.mark.cluster
def test_a_job_that_waits_is_cancelled_and_does_nothing_later(
    empty: Client, tmp_path: Path, capsys: Captured
) -> None:
    plan = planned(tmp_path)
    job = plan.submit(empty)
    (run,) = job.runs
    assert (run.state, run.begun, run.alive) == ("submitted", False, True)
    assert job.alive
    assert run.scheduler == empty.scheduler.address
    assert "has not begun" in str(gp.status(plan.target))
    with pytest.raises(TimeoutError, match="is not finished"):
        job.wait(timeout=0.1)
    tried = notes(tmp_path / "calls.txt")
    assert geopatch("status", str(plan.target.url), "--cancel") == 0
    assert "1 runs stopped" in capsys.readouterr().out
    assert job.runs == []
    with pytest.raises(gp.RunIncomplete, match="nobody works on"):
        gp.attach(plan.target).wait(timeout=5)
    (key,) = tasks(empty)
    job._future = None  # the scheduler forgets the task once it has ended
    empty.cluster.scale(1)
    until(lambda: key not in tasks(empty))
    assert notes(tmp_path / "calls.txt") == tried
    assert gp.status(plan.target).counts["pending"] == 9
    assert job.runs == []
    assert not list((tmp_path / "out.zarr.geopatch").glob("*/report.json"))


@pytest.mark.cluster
def test_another_run_completes_the_target_of_a_job_that_waits(
    empty: Client, tmp_path: Path
) -> None:
    plan = planned(tmp_path)
    job = plan.submit(empty)
    found: list[gp.Report] = []
    waiting = threading.Thread(target=lambda: found.append(gp.attach(plan.target).wait(60)))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()  # the scheduler is there, and may begin it
    assert planned(tmp_path).run("threads").complete
    waiting.join(20)
    assert [report.complete for report in found] == [True]
    assert job.wait(timeout=5).complete
    assert not job.alive
    empty.cluster.scale(1)  # it finds nothing to do
    until(lambda: not job.runs)
    check(tmp_path)


@pytest.mark.cluster
def test_a_job_that_waited_is_done_when_a_worker_comes(empty: Client, tmp_path: Path) -> None:
    job = planned(tmp_path).submit(empty)
    empty.cluster.scale(1)
    assert job.wait(timeout=60).complete
    assert job.runs == []
    check(tmp_path)


# ---- it cannot begin any more ----------------------------------------------------------------


@pytest.mark.cluster
def test_a_cluster_that_ended_before_the_job_began(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with cluster() as client:
        job = plan.submit(client)
        address = client.scheduler.address
    told = f"has not begun, and cannot any more: its scheduler, {address}, is gone; submit it again"
    for seen in (job, gp.attach(plan.target)):
        with pytest.raises(gp.RunIncomplete, match=told):
            seen.wait(timeout=10)
    found = gp.doctor(plan.target)
    (finding,) = [f for f in found.warnings if "has not begun, and cannot any more" in f.what]
    assert finding.repairable
    began = time.monotonic()
    gp.attach(plan.target).cancel()
    assert time.monotonic() - began < 5
    assert not job.alive
    assert planned(tmp_path).run("threads").complete
    check(tmp_path)


@pytest.mark.cluster
def test_a_scheduler_that_does_not_know_the_job_any_more(
    empty: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path)
    job = plan.submit(empty)
    monkeypatch.setattr(beginning, "STALE", 0.0)
    assert beginning.hopeless(job.runs[0]) == ""
    empty.cancel([job._future], force=True)
    until(lambda: not tasks(empty))
    with pytest.raises(gp.RunIncomplete, match="does not know it any more"):
        gp.attach(plan.target).wait(timeout=10)


def test_what_is_not_known_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is concluded from a scheduler that only cannot be asked."""
    monkeypatch.setattr(beginning, "PATIENCE", 0.3)
    monkeypatch.setattr(beginning, "STALE", 0.0)
    run = RunState.begin(state="submitted")
    assert beginning.hopeless(run) == ""
    for address in ("inproc://10.0.0.1/1/1", "tcp://no.such.host.invalid:8786", "tls://nowhere"):
        assert beginning.hopeless(replace(run, scheduler=address)) == ""
    closed = replace(run, scheduler="tcp://127.0.0.1:1")
    assert "is gone" in beginning.hopeless(closed)
    assert beginning.hopeless(replace(closed, host="another")) == ""
    assert beginning.hopeless(replace(closed, state="running")) == ""


# ---- said at once ----------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_plan_that_workers_cannot_load_is_said_by_submit(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "BEGINS", 30.0)
    name = f"onlyhere_{uuid.uuid4().hex[:8]}"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / f"{name}.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(tmp_path / "here")
    half = importlib.import_module(name).half
    plan = planned(tmp_path, gp.Operator(half, version="1"))
    told = rf"cannot load the plan \(ModuleNotFoundError: No module named '{name}'.*folders"
    with pytest.raises(gp.RunIncomplete, match=told):
        plan.submit(client)
    assert gp.attach(plan.target).runs == []
    assert plan.run("sync").complete


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("what it is"), r"the driver of the job failed \(ValueError: what it is\)"),
        (gp.TargetError("no permission there", kind="forbidden"), "no permission there"),
    ],
)
@pytest.mark.parametrize("seconds", [30.0, 0.0])
def test_a_driver_that_fails_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str, seconds: float
) -> None:
    """Said by submit, or where that does not wait as long, by the job it returned."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(beginning, "BEGINS", seconds)
    monkeypatch.setattr(jobs, "execute", fail)
    plan = planned(tmp_path)
    with (
        Client(processes=False, n_workers=1, dashboard_address=None, set_as_default=False) as here,
        pytest.raises(gp.GeopatchError, match=told),
    ):
        plan.submit(here).wait(timeout=20)
    assert gp.attach(plan.target).runs == []


# ---- through the store -----------------------------------------------------------------------


def marked(plan: gp.Plan, ago: timedelta, state: str = "submitted") -> RunState:
    """A job that was submitted some time ago, to a cluster of another machine."""
    ledger = Ledger(plan.target, plan.fingerprint)
    then = (datetime.now(UTC) - ago).isoformat()
    run = RunState.begin(state=state, scheduler="tcp://127.0.0.1:1")
    announce(ledger, replace(run, updated=then, host="another"))
    return run


def test_a_run_that_was_cancelled_is_not_taken_up(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    ledger = Ledger(plan.target, plan.fingerprint)
    run = marked(plan, timedelta(hours=2))
    assert take_up(ledger, run.id)
    taken = said(ledger, run.id)
    assert taken is not None
    assert (taken.state, taken.working, taken.scheduler) == ("preparing", True, run.scheduler)
    ledger.folder.write(f"runs/{run.id}.cancel", b"{}")
    assert not take_up(ledger, run.id)  # by another worker, since the first died
    assert ledger.folder.list("runs") == []
    assert not take_up(ledger, run.id)


def test_a_run_that_is_cancelled_while_it_prepares_computes_nothing(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    ledger = Ledger(plan.target, plan.fingerprint)
    ledger.folder.write("runs/abc.cancel", b"{}")
    report = execute(plan, "sync", run="abc")
    assert report.cancelled
    assert report.summary.done == 0
    assert ledger.folder.list("runs") == []


def test_a_run_that_begins_while_it_is_cancelled_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read its object before that was removed, and writes it anew."""
    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    run = marked(plan, timedelta(0))
    heart = Heartbeat(Ledger(plan.target, plan.fingerprint), replace(run, state="preparing"))
    heard: list[bool] = []

    def pause(_: float) -> None:
        heard.append(heart.beat())
        if not heard[-1]:
            heart.end()

    monkeypatch.setattr(jobs.time, "sleep", pause)
    gp.attach(plan.target).cancel(timeout=20)
    assert heard == [True, False]
    assert gp.attach(plan.target).runs == []


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    marked(plan, timedelta(seconds=QUEUE - 3600))
    assert gp.attach(plan.target).alive
    marked(plan, timedelta(seconds=QUEUE + 60))
    (_, late) = sorted(gp.attach(plan.target).runs, key=lambda run: run.age)
    assert not late.alive


def test_what_an_earlier_version_said_is_read(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    run = marked(plan, timedelta(0))
    path = next(tmp_path.glob(f"out.zarr.geopatch/*/runs/{run.id}.json"))
    told = json.loads(path.read_text())
    del told["scheduler"]
    path.write_text(json.dumps(told))
    (found,) = gp.attach(plan.target).runs
    assert (found.id, found.scheduler) == (run.id, "")


# ---- doctor ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "level", "told", "remedy"),
    [
        (timedelta(minutes=5), "ok", "another:.* 5 min 00 s ago, has not begun$", "^$"),
        (timedelta(hours=3), "warning", "3 h 00 min ago, has not begun$", "cancel"),
        (timedelta(hours=30), "warning", "and nobody waits for it any more$", "--repair mends it"),
    ],
)
def test_what_doctor_says_of_a_job_that_waits(
    tmp_path: Path, ago: timedelta, level: str, told: str, remedy: str
) -> None:
    import re

    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    run = marked(plan, ago)
    (found,) = [f for f in gp.doctor(plan.target).findings if run.id in f.what]
    assert found.level == level
    assert re.search(told, found.what)
    assert re.search(remedy, found.remedy)
    gp.doctor(plan.target, repair=True)
    assert bool(gp.attach(plan.target).runs) == (not found.repairable)


def test_doctor_forgets_a_job_whose_target_is_complete(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync")
    marked(plan, timedelta(minutes=5))
    assert "the target is complete without it" in str(gp.doctor(plan.target, repair=True))
    assert gp.attach(plan.target).runs == []


def test_a_job_that_waits_blocks_no_repair(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync", share="0/2")
    marked(plan, timedelta(minutes=5))
    torn = next(tmp_path.glob("out.zarr.geopatch/*/tiles/*.json"))
    torn.write_bytes(b"{")
    gp.doctor(plan.target, repair=True)
    assert not torn.exists()
    assert gp.attach(plan.target).alive
