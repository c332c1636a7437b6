"""First passes that fail in every way: as much is done for them as for a super-tile, and then it is
over, with one clear error.

Afterwards, where it went on: the bytes and the recorded state are those of an undisturbed run.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_jobs import Shop, geopatch
from distributed import Client
from fault_operators import Misbehaves
from sample_operators import notes

import geopatch_dask as gp
from geopatch_dask.aggregation import passes
from geopatch_dask.execute.attempt import policy as policies
from geopatch_dask.execute.driving import drive
from geopatch_dask.execute.runs.runners import local_client
from geopatch_dask.fields import array as arrays
from geopatch_dask.store.location import Location
from geopatch_dask.testing import assert_same_bytes, read_back

BAD = 1e6
#: Patch 150 of 225 sees BAD, and no other; groups of 64 patches make 4 leaves.
SIDE, SIZE, AT, PATCH = 60, 4, (40, 0), 150
SCHEDULERS = ("sync", "threads")


def second(x: Any, context: Any) -> Any:
    return x - (0 if context is None else context["mean"])


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The cluster that a run makes for itself, for all tests here."""
    with local_client(planned(tmp_path_factory.mktemp("workers")), 2) as client:
        yield client


@pytest.fixture(params=[*SCHEDULERS, pytest.param("cluster", marks=pytest.mark.cluster)])
def way(request: pytest.FixtureRequest) -> Any:
    """Each way to run a plan."""
    return request.getfixturevalue("workers") if request.param == "cluster" else request.param


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BACKOFF", 0.01)


def field() -> gp.ArrayField:
    values = np.random.default_rng(1).standard_normal((SIDE, SIDE))
    values[AT] = BAD
    return gp.ArrayField(values)


def planned(folder: Path, target: Any = None, over: Any = None, **options: Any) -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular((SIZE, SIZE)), gp.RegularStride((SIZE, SIZE)))
    first = gp.Operator(
        Misbehaves(BAD, folder / "flag", str(folder / "calls.txt")),
        **{"version": "1", "batch": None} | options,
    )
    return gp.plan(
        *(field(), patcher, gp.Operator(second, version="1"), target or folder / "out.zarr"),
        context=gp.MeanStd(), over=over or first,
        outer=20, chunks=20, slots=2, memory_limit="1 GiB",
    )  # fmt: skip


def told(folder: Path, what: str) -> None:
    (folder / "flag").write_text(what)


def check_undisturbed(folder: Path, plan: gp.Plan) -> None:
    """The bytes, and the recorded state, of a run without failures."""
    (folder / "flag").unlink(missing_ok=True)
    other = planned(folder, folder / "other.zarr")
    assert other.run("sync").complete
    assert_same_bytes(read_back(plan.target), read_back(other.target))
    states = [
        path.read_bytes()
        for name in ("out", "other")
        for path in folder.glob(f"{name}.zarr.geopatch/*/context.json")
    ]
    assert len(states) == 2
    assert states[0] == states[1]


def beside(folder: Path, name: str) -> str:
    (found,) = folder.glob(f"out.zarr.geopatch/*/{name}")
    return found.read_text()


def check_failed(folder: Path, plan: gp.Plan, report: gp.Report, *words: str) -> None:
    """Nothing is done, nothing is charged with it, and everybody is told."""
    assert not report.complete
    assert report.summary.states == {}
    assert report.failures == []
    line = report.first_pass["error"]
    assert line.startswith("the first pass failed ")
    assert len(line.splitlines()) == 1
    for word in words:
        assert word in line
    assert f"failed      {line[:40]}" in str(report)
    stored = json.loads(beside(folder, "report.json"))
    assert stored["first_pass"] == report.first_pass
    assert stored["complete"] is False
    assert gp.Report.from_json(stored).to_json() == stored
    assert "The first pass failed" in beside(folder, "report.html")
    status = gp.status(plan.target)
    assert status.counts["pending"] == 9
    assert "the first pass failed" in str(status)
    assert not list(folder.glob("out.zarr.geopatch/*/failed/*"))
    assert not list(folder.glob("out.zarr.geopatch/*/context.json"))
    with pytest.raises(gp.RunIncomplete, match="the first pass failed"):
        gp.attach(plan.target).wait()


def run(plan: gp.Plan, scheduler: Any, **options: Any) -> gp.Report:
    return plan.run(scheduler, on_failure="return", **options)


# ---- failures that pass ------------------------------------------------------------------------


def test_a_failure_that_passes_is_repeated(tmp_path: Path, way: Any) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "once-network")
    before = notes(tmp_path / "calls.txt")
    assert plan.run(way).complete
    assert (tmp_path / "flag.done").exists()
    # Patches 128 to 149 of its group, and itself, were computed twice, nothing else.
    assert notes(tmp_path / "calls.txt") - before == 225 + PATCH + 1 - 128
    check_undisturbed(tmp_path, plan)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_field_that_cannot_be_read_for_a_moment(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, over="field")
    read, left = arrays.ArrayField.read, [1]

    def stumbling(self: Any, *args: Any) -> Any:
        if left:
            left.pop()
            raise gp.FieldError("503 Slow Down", kind="busy", transient=True)
        return read(self, *args)

    monkeypatch.setattr(arrays.ArrayField, "read", stumbling)
    assert plan.run(scheduler).complete
    assert not left


def test_a_store_that_does_not_take_the_state_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, write, left = planned(tmp_path), Location.write, [1, 2]

    def stumbling(self: Any, name: str, data: bytes) -> None:
        if name == "context.json" and left:
            left.pop()
            raise gp.TargetError("503 Slow Down", kind="busy", transient=True)
        write(self, name, data)

    monkeypatch.setattr(Location, "write", stumbling)
    assert plan.run("sync").complete
    assert not left
    check_undisturbed(tmp_path, plan)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_block_that_is_short_of_memory_is_tried_once_more_alone(
    tmp_path: Path, scheduler: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "BLOCK_EDGE", 16)
    plan = planned(tmp_path, over="field")
    read, lock = arrays.ArrayField.read, threading.Lock()
    inside, beside, tries = [0], [0], list[int]()

    def hungry(self: Any, box: Any, *args: Any) -> Any:
        with lock:
            inside[0] += 1
            beside[0] = max(beside[0], inside[0])
        try:
            if tuple(box.start) == (16, 16):
                tries.append(inside[0])
                if len(tries) <= times:
                    raise MemoryError("no room")
            time.sleep(0.01)
            return read(self, box, *args)
        finally:
            with lock:
                inside[0] -= 1

    monkeypatch.setattr(arrays.ArrayField, "read", hungry)
    report = run(plan, scheduler)
    assert beside[0] == plan.slots
    assert tries[1] == 1  # nobody else was inside
    if times == 1:
        assert report.complete
    else:
        words = ("failed 2 times, the last time at block y16-32_x16-32", "MemoryError: no room")
        check_failed(tmp_path, plan, report, *words)


def test_a_failure_that_does_not_pass_is_the_end(tmp_path: Path, way: Any) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "network")
    report = run(plan, way, policy=gp.Policy(attempts=3))
    check_failed(tmp_path, plan, report, "failed 3 times, the last time at patch 150 at (40, 0)")
    check_undisturbed_after_repair(tmp_path, plan, way)


def check_undisturbed_after_repair(folder: Path, plan: gp.Plan, scheduler: Any) -> None:
    (folder / "flag").unlink()
    report = plan.run(scheduler)
    assert report.complete
    assert report.first_pass == {}
    assert "first pass" not in str(gp.status(plan.target))
    check_undisturbed(folder, plan)


# ---- failures that do not ----------------------------------------------------------------------


def test_an_operator_that_raises(tmp_path: Path, way: Any) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "raise")
    before = notes(tmp_path / "calls.txt")
    report = run(plan, way)
    assert notes(tmp_path / "calls.txt") - before <= 225  # nothing twice: it would fail again
    words = ("at patch 150 at (40, 0)", "operator Misbehaves", "RuntimeError: cannot digest 1e+06")
    check_failed(tmp_path, plan, report, *words)
    assert "_misbehave" in report.first_pass["traceback"]
    with pytest.raises(gp.RunIncomplete, match="RuntimeError: cannot digest") as caught:
        plan.run(way)
    assert isinstance(caught.value.report, gp.Report)
    cause = caught.value.__cause__
    assert cause is not None
    assert "cannot digest" in str(cause)
    if isinstance(way, Client):  # its class may be one that this process cannot load
        assert "_misbehave" in str(cause)
    else:
        assert type(cause) is RuntimeError
    check_undisturbed_after_repair(tmp_path, plan, way)


def test_a_batch_is_named_by_its_ends(tmp_path: Path) -> None:
    plan = planned(tmp_path, batch=8)
    told(tmp_path, "raise")
    assert "at one of patches 144 to 151, in" in run(plan, "sync").first_pass["error"]


def test_a_block_of_the_field_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BLOCK_EDGE", 32)
    plan = planned(tmp_path, over="field")

    def unreadable(self: Any, box: Any, *_: Any) -> Any:
        raise gp.FieldError(f"no such band at {box.start}", kind="mistake")

    monkeypatch.setattr(arrays.ArrayField, "read", unreadable)
    report = run(plan, "sync")
    check_failed(tmp_path, plan, report, "at block y", "FieldError: no such band")


class Unmerged(gp.MeanStd):
    def merge(self, left: Any, right: Any) -> Any:
        if np.max(right["n"]) > 100:  # not those of the trial
            raise ZeroDivisionError("cannot merge")
        return super().merge(left, right)


@pytest.mark.parametrize("on_error", ["raise", "fill", "retry"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_patch_is_left_out_of_a_statistic(tmp_path: Path, scheduler: str, on_error: Any) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "raise")
    report = run(plan, scheduler, policy=gp.Policy(on_error=on_error))
    check_failed(tmp_path, plan, report, "at patch 150 at (40, 0)", "cannot digest")
    told(tmp_path, "once-raise")
    report = run(plan, scheduler, policy=gp.Policy(on_error=on_error))
    assert report.complete == (on_error == "retry")


def test_a_statistic_that_does_not_merge(tmp_path: Path) -> None:
    plan = gp.plan(
        *(field(), planned(tmp_path).patcher, gp.Operator(second, version="1")),
        tmp_path / "out.zarr", context=Unmerged(), over="output", outer=20, chunks=20, slots=2,
    )  # fmt: skip
    report = run(plan, "sync")
    check_failed(tmp_path, plan, report, "states of its statistic were merged", "ZeroDivisionError")


def test_a_share_fails_with_it(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "raise")
    with pytest.raises(gp.RunIncomplete, match="the first pass failed"):
        plan.run("sync", share="0/2")


def test_the_command_says_so_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop.open(tmp_path)
    with (tmp_path / f"{shop.module}.py").open("a") as module:
        module.write("\n\ndef second(a, context):\n    return a - context['mean'][0]\n")
    first = {"context.statistic": "mean-std", "context.over": "MODULE:flaky"}
    job = shop.job({"operator.function": "MODULE:second", **first})
    (tmp_path / "broken").touch()
    assert geopatch("run", job, "--quiet") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("geopatch: incomplete: the first pass failed at patch ")
    assert "ValueError: the lamp is out" in line
    assert geopatch("run", job, "--quiet", "--share", "0/2") == 1
    (tmp_path / "broken").unlink()
    assert geopatch("run", job, "--quiet") == 0


def test_verify_says_so_too(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.run("sync")
    told(tmp_path, "raise")
    with pytest.raises(gp.RunIncomplete, match="the first pass failed at patch 150"):
        gp.verify(plan, context="recomputed")


def test_a_graph_of_dask_repeats_it_too(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "once-network")
    assert plan.to_dask().compute().complete
    check_undisturbed(tmp_path, plan)


# ---- cancelled ---------------------------------------------------------------------------------


class Slow:
    """Takes a while for a patch, and notes it."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, x: Any) -> Any:
        with self.log.open("a") as log:
            log.write(".")
        time.sleep(self.seconds)
        return x


def cancels(plan: gp.Plan, log: Path) -> list[float]:
    """A thread that cancels the run once its first pass has begun; when it had asked."""
    asked: list[float] = []
    before = log.stat().st_size

    def ask() -> None:
        while log.stat().st_size < before + 3:
            time.sleep(0.02)
        asked.append(time.monotonic())
        gp.attach(plan.target).cancel(timeout=60)

    threading.Thread(target=ask, daemon=True).start()
    return asked


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_cancelling_is_heard_between_blocks(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "PATCHES_PER_LEAF", 4)
    monkeypatch.setattr(drive, "BEAT", 0.1)
    log = tmp_path / "log"
    plan = planned(tmp_path, over=gp.Operator(Slow(log, 0.05), version="1"))
    cancels(plan, log)
    before = log.stat().st_size
    report = run(plan, scheduler)
    assert report.cancelled
    assert report.summary.states == {}
    assert log.stat().st_size - before < 100
    size = log.stat().st_size
    time.sleep(0.5)
    assert log.stat().st_size - size <= 4 * (plan.slots - 1), "threads go on"


@pytest.mark.cluster
def test_cancelling_is_heard_while_a_block_is_computed(
    workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "BEAT", 0.1)
    log = tmp_path / "log"
    plan = planned(tmp_path, over=gp.Operator(Slow(log, 0.05), version="1"))
    asked = cancels(plan, log)
    report = run(plan, workers)
    took = time.monotonic() - asked[0]
    assert report.cancelled
    assert report.first_pass == {}
    assert took < 64 * 0.05 - 1


# ---- workers -----------------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_worker_that_is_killed_once(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "once-kill")
    assert plan.run(workers).complete
    assert (tmp_path / "flag.done").exists()
    check_undisturbed(tmp_path, plan)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_block_that_kills_every_worker(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "kill")
    report = run(plan, workers)
    words = ("at patches 128 to 191", "WorkerLost", "died, perhaps for want of memory")
    check_failed(tmp_path, plan, report, *words)
    check_undisturbed_after_repair(tmp_path, plan, workers)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_block_that_hangs_once(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "once-hang")
    assert plan.run(workers, policy=gp.Policy(timeout="3 s")).complete
    check_undisturbed(tmp_path, plan)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_block_that_hangs(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    told(tmp_path, "hang")
    report = run(plan, workers, policy=gp.Policy(timeout="3 s"))
    check_failed(tmp_path, plan, report, "at patches 128 to 191", "took longer than 3 s")
    assert "time.sleep(600)" in report.first_pass["traceback"]
    check_undisturbed_after_repair(tmp_path, plan, workers)


@pytest.mark.slow
@pytest.mark.cluster
def test_dask_may_also_start_a_task_again_by_itself(tmp_path: Path) -> None:
    """A cluster with settings of its own."""
    from distributed import LocalCluster

    plan = planned(tmp_path)
    told(tmp_path, "once-kill")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert plan.run(client).complete
    check_undisturbed(tmp_path, plan)


# ---- a plan that the cluster cannot load -------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Client]:
    """A scheduler and a worker that are processes of their own."""
    where, python = tmp_path / "scheduler.json", [sys.executable, "-m"]
    options = ["--scheduler-file", str(where), "--no-dashboard"]
    commands = (
        ["distributed.cli.dask_scheduler", *options, "--host", "127.0.0.1", "--port", "0"],
        ["distributed.cli.dask_worker", *options, "--nthreads", "1", "--no-nanny"],
    )
    started = [
        subprocess.Popen([*python, *command], cwd=tmp_path, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        with Client(scheduler_file=str(where), timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            yield client
    finally:
        for process in started:
            process.kill()
            process.wait()


def onlyhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of a module that this process can import, and no other."""
    name = f"onlyhere_{uuid.uuid4().hex[:8]}"
    (folder / "here").mkdir()
    (folder / "here" / f"{name}.py").write_text("def half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(folder / "here")
    return importlib.import_module(name).half


def check_not_loaded(client: Client, folder: Path, half: Any, passes: int) -> None:
    patcher = gp.Patcher(gp.Rectangular((SIZE, SIZE)), gp.RegularStride((SIZE, SIZE)))
    operator: Any = gp.Operator(half, version="1")
    options: dict[str, Any] = {"outer": 20, "chunks": 20}
    if passes == 2:
        options |= {"context": gp.MeanStd(), "over": operator}
        operator = gp.Operator(second, version="1")
    plan = gp.plan(field(), patcher, operator, folder / f"{passes}.zarr", **options)
    began = time.monotonic()
    told = r"cannot load the plan \(ModuleNotFoundError: No module named 'onlyhere_.*folders"
    with pytest.raises(gp.RunIncomplete, match=told):
        plan.run(client)
    assert time.monotonic() - began < 20
    assert not list(folder.glob("*.zarr.geopatch/*/failed/*"))
    assert gp.status(plan.target).counts["pending"] == 9
    assert not gp.attach(plan.target).alive
    assert plan.run("sync").complete


@pytest.mark.cluster
@pytest.mark.parametrize("passes", [1, 2])
def test_a_plan_that_workers_cannot_load(
    workers: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    check_not_loaded(workers, tmp_path, onlyhere(tmp_path, monkeypatch), passes)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_plan_that_the_scheduler_cannot_load(
    elsewhere: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = onlyhere(tmp_path, monkeypatch)
    check_not_loaded(elsewhere, tmp_path, half, 1)
    check_not_loaded(elsewhere, tmp_path, half, 2)
