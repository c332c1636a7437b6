"""Super-tiles that fail in every way, on real worker processes; the others finish.

And afterwards: the report names what failed, ``retry`` computes that and nothing else, and the
bytes are those of an undisturbed run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from fault_operators import Misbehaves
from sample_operators import notes

import geopatch_dask as gp
from geopatch_dask import retries
from geopatch_dask.execute.attempt import policy as policies
from geopatch_dask.execute.runs.runners import local_client
from geopatch_dask.store.backends import LocalBackend
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import assert_same_bytes, merged, read_back

pytestmark = pytest.mark.cluster

BAD = 1e6
#: Cells of the field; BAD lies inside super-tile y20-40_x40-60, where no other patch sees it.
SIDE, TILE, AT = 60, 20, (30, 50)
NAME = "y20-40_x40-60"


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The cluster that a run makes for itself, for all tests here."""
    plan = planned(tmp_path_factory.mktemp("workers"))
    with local_client(plan, 2) as client:
        yield client


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BACKOFF", 0.01)


def field() -> gp.ArrayField:
    values = np.random.default_rng(1).standard_normal((SIDE, SIDE)).astype("float32")
    values[AT] = BAD
    return gp.ArrayField(values)


def planned(folder: Path, target: Any = None, **options: Any) -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    operator = gp.Operator(
        Misbehaves(BAD, folder / "flag", str(folder / "calls.txt")),
        **{"version": "1", "batch": None} | options,
    )
    return gp.plan(
        field(),
        patcher,
        operator,
        target or folder / "out.zarr",
        outer=(TILE, TILE),
        chunks=(10, 10),
        slots=2,
        memory_limit="1 GiB",
    )


def expected() -> Any:
    plan = field()
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    return merged(plan, patcher, lambda x: x * 2)


def told(folder: Path, what: str) -> None:
    (folder / "flag").write_text(what)


def check_the_others(folder: Path, report: gp.Report, error: str) -> None:
    """All but one are done and right; that one is fill, named, and explained."""
    assert not report.complete
    assert report.summary.states == {"done": 8, "failed": 1}
    assert [f.id for f in report.failures] == [NAME]
    assert error in report.failures[0].error
    assert NAME in str(report)
    stored, whole = read_back(folder / "out.zarr"), expected()
    assert np.isnan(stored[20:40, 40:60]).all()
    stored[20:40, 40:60] = whole[20:40, 40:60]
    assert_same_bytes(stored, whole)
    status = gp.status(folder / "out.zarr")
    assert status.states[NAME] == "failed"
    assert not status.complete


def check_retry(folder: Path, plan: gp.Plan, scheduler: Any = "sync") -> None:
    """After the repair, ``retry`` computes the failed super-tile only."""
    (folder / "flag").unlink(missing_ok=True)
    before = notes(folder / "calls.txt")
    report = gp.retry(plan, scheduler)
    tile = next(tile for tile in plan.layout if tile.id == NAME)
    calls = math.ceil(plan.grid.count_touching(tile.box) / (plan.operator.batch or 1))
    assert notes(folder / "calls.txt") - before == calls
    assert report.complete
    assert report.skipped == 8
    assert_same_bytes(read_back(folder / "out.zarr"), expected())
    assert gp.status(folder / "out.zarr").counts["failed"] == 0


def run(plan: gp.Plan, scheduler: Any, **options: Any) -> gp.Report:
    return plan.run(scheduler, on_failure="return", **options)


@pytest.mark.parametrize("scheduler", ["sync", "threads", "cluster"])
def test_an_operator_that_raises(workers: Client, tmp_path: Path, scheduler: str) -> None:
    told(tmp_path, "raise")
    plan = planned(tmp_path)
    way = workers if scheduler == "cluster" else scheduler
    check_the_others(tmp_path, run(plan, way), "RuntimeError: cannot digest 1e+06")
    record = Ledger(plan.target, plan.fingerprint).failed()[NAME]
    assert record.attempts == 1  # it would fail again
    assert "_misbehave" in (record.error or {})["traceback"]
    with pytest.raises(gp.RunIncomplete, match="1 of 9 super-tiles failed"):
        plan.run(way)
    check_retry(tmp_path, plan, way)


@pytest.mark.parametrize("scheduler", ["sync", "threads", "cluster"])
def test_a_failure_that_passes_is_repeated(workers: Client, tmp_path: Path, scheduler: str) -> None:
    told(tmp_path, "once-network")
    plan = planned(tmp_path)
    report = plan.run(workers if scheduler == "cluster" else scheduler)
    assert report.complete
    records = Ledger(plan.target, plan.fingerprint).done()
    assert {r.id for r in records.values() if r.attempts == 2} == {NAME}
    assert_same_bytes(read_back(tmp_path / "out.zarr"), expected())


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_an_operator_that_ends_the_process_has_failed(tmp_path: Path, scheduler: str) -> None:
    told(tmp_path, "exit")
    plan = planned(tmp_path)
    check_the_others(tmp_path, run(plan, scheduler), "RuntimeError: the operator called sys.exit")
    other = planned(tmp_path, tmp_path / "other.zarr")
    with pytest.warns(gp.UncoveredWarning, match="failed and were left out"):
        left_out = run(other, scheduler, policy=gp.Policy(on_error="fill"))
    assert left_out.failed_patches == 4
    check_retry(tmp_path, plan)


def test_a_field_or_a_store_that_ends_the_process_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path)
    monkeypatch.setattr(gp.ArrayField, "read", lambda *_: sys.exit(1))
    report = run(plan, "sync")
    assert report.summary.states == {"failed": 9}
    assert report.failures[0].error == "SystemExit: 1"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gp.ArrayField, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(plan, "sync")


def test_want_of_memory_inside_another_error_is_tried_alone(tmp_path: Path) -> None:
    told(tmp_path, "wrapped")
    plan = planned(tmp_path)
    check_the_others(tmp_path, run(plan, "sync"), "RuntimeError: the model failed")
    assert Ledger(plan.target, plan.fingerprint).failed()[NAME].attempts == 2


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_torn_record_under_a_super_tile_that_fails(tmp_path: Path, scheduler: str) -> None:
    plan = planned(tmp_path)
    plan.run("sync")
    folder = Path(Ledger(plan.target, plan.fingerprint).folder.url)
    for path in (folder / "tiles").iterdir():
        path.write_bytes(path.read_bytes()[:40]) if path.stem == NAME else path.unlink()
    told(tmp_path, "raise")
    check_the_others(tmp_path, run(plan, scheduler), "cannot digest")
    assert not (folder / "tiles" / f"{NAME}.json").exists()
    check_retry(tmp_path, plan)


def test_what_goes_wrong_while_cells_are_made_fill_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopatch_dask.execute.attempt import tile as tiles

    def fails(*_: Any) -> None:
        raise MemoryError

    told(tmp_path, "raise")
    monkeypatch.setattr(tiles, "_erase", fails)
    report = run(planned(tmp_path), "sync")
    assert report.summary.states == {"done": 8, "failed": 1}
    assert "; and that could not be recorded: MemoryError" in report.failures[0].error


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_requests_that_failed_attempts_repeated_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    """Also those of giving up, and of writing the record."""
    plan = planned(tmp_path)
    monkeypatch.setattr(retries.Retries, "pause", lambda *_: 0.0)
    retries.take_retries()
    told(tmp_path, "network")
    real, write = Misbehaves._misbehave, LocalBackend.write
    broken: set[str] = set()

    def asks_again(self: Misbehaves, what: str, x: Any) -> Any:
        return retries.call(lambda: real(self, what, x))

    def stumbles(self: LocalBackend, name: str, data: bytes) -> None:
        if name.startswith(("tiles", "failed")) and name not in broken:
            broken.add(name)
            raise ConnectionResetError(name)
        write(self, name, data)

    monkeypatch.setattr(Misbehaves, "_misbehave", asks_again)
    monkeypatch.setattr(LocalBackend, "write", stumbles)
    report = run(plan, scheduler, policy=gp.Policy(attempts=3))
    repeated = retries.take_retries()
    assert repeated == 3 * (retries.POLICY.attempts - 1) + 9
    assert report.summary.numbers["retries"] == repeated
    failed = Ledger(plan.target, plan.fingerprint).failed()[NAME]
    assert failed.retries == 3 * (retries.POLICY.attempts - 1)


def test_a_failure_that_does_not_pass_is_given_up_in_the_end(tmp_path: Path) -> None:
    told(tmp_path, "network")
    plan = planned(tmp_path)
    report = run(plan, "threads", policy=gp.Policy(attempts=3))
    check_the_others(tmp_path, report, "the model server hung up")
    assert Ledger(plan.target, plan.fingerprint).failed()[NAME].attempts == 3
    check_retry(tmp_path, plan)


def test_a_worker_that_is_killed_once(workers: Client, tmp_path: Path) -> None:
    told(tmp_path, "once-kill")
    report = planned(tmp_path).run(workers)
    assert report.complete
    assert_same_bytes(read_back(tmp_path / "out.zarr"), expected())


@pytest.mark.slow
def test_a_super_tile_that_kills_every_worker(workers: Client, tmp_path: Path) -> None:
    told(tmp_path, "kill")
    plan = planned(tmp_path)
    report = run(plan, workers)
    check_the_others(tmp_path, report, "WorkerLost: the worker that computed super-tile")
    record = Ledger(plan.target, plan.fingerprint).failed()[NAME]
    assert record.attempts == 3  # in company, again, alone
    check_retry(tmp_path, plan, workers)


@pytest.mark.slow
def test_a_super_tile_that_hangs(workers: Client, tmp_path: Path) -> None:
    told(tmp_path, "hang")
    plan = planned(tmp_path)
    report = run(plan, workers, policy=gp.Policy(timeout="3 s"))
    check_the_others(tmp_path, report, "took longer than 3 s")
    record = Ledger(plan.target, plan.fingerprint).failed()[NAME]
    assert "time.sleep(600)" in (record.error or {})["traceback"]  # where it hangs
    check_retry(tmp_path, plan, workers)


def test_an_operator_that_returns_nothing_but_nan_is_named(tmp_path: Path) -> None:
    told(tmp_path, "nan")
    plan = planned(tmp_path)
    report = run(plan, "sync")
    assert report.complete
    assert report.hollow == [NAME]
    assert report.summary.numbers["hollow_patches"] == 4  # those that see the value
    assert f"the operator made nothing but missing values, in {NAME}; if that is" in str(report)
    data = json.loads(json.dumps(report.to_json()))
    assert gp.Report.from_json(data).to_json() == data
    check_retry(tmp_path, plan)
    calls = notes(tmp_path / "calls.txt")
    again = gp.retry(plan, "sync")
    assert again.complete
    assert (again.skipped, again.summary.done, again.hollow) == (9, 0, [])
    assert notes(tmp_path / "calls.txt") == calls, "nothing was left to compute again"


@pytest.mark.slow
def test_a_super_tile_that_eats_all_memory(tmp_path: Path) -> None:
    told(tmp_path, "eat")
    plan = planned(tmp_path)
    report = run(plan, None)
    check_the_others(tmp_path, report, "was ended by Dask at its memory limit")
    check_retry(tmp_path, plan)


# ---- patches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 3])
def test_a_patch_that_fails_can_be_left_out(tmp_path: Path, batch: int | None) -> None:
    told(tmp_path, "raise")
    plan = planned(tmp_path, batch=batch)
    with pytest.warns(gp.UncoveredWarning, match="4 patches of .* failed and were left out"):
        report = plan.run("threads", policy=gp.Policy(on_error="fill"))
    assert report.complete
    assert not report.ok
    assert report.failed_patches == 4
    record = Ledger(plan.target, plan.fingerprint).done()[NAME]
    assert record.failed_patches == 4
    assert all("RuntimeError: cannot digest" in text for text in record.patch_errors)

    def holed(x: Any) -> Any:
        return np.full_like(x, np.nan) if (x == BAD).any() else x * 2

    assert_same_bytes(read_back(tmp_path / "out.zarr"), merged(field(), plan.patcher, holed))
    check_retry(tmp_path, plan)
    assert gp.status(tmp_path / "out.zarr").complete


def test_a_patch_that_fails_can_be_tried_again(tmp_path: Path) -> None:
    told(tmp_path, "once-raise")
    plan = planned(tmp_path)
    report = plan.run("sync", policy=gp.Policy(on_error="retry"))
    assert report.complete
    assert report.failed_patches == 0
    assert_same_bytes(read_back(tmp_path / "out.zarr"), expected())
    told(tmp_path, "raise")
    again = planned(tmp_path, tmp_path / "again.zarr").run(
        "sync", policy=gp.Policy(on_error="retry"), on_failure="return"
    )
    assert [f.id for f in again.failures] == [NAME]


def test_a_time_limit_needs_processes(tmp_path: Path) -> None:
    for scheduler in ("sync", "threads"):
        with pytest.raises(gp.OptionError, match="a timeout needs processes"):
            planned(tmp_path).run(scheduler, policy=gp.Policy(timeout=5))


# ---- retry -----------------------------------------------------------------------------------


def test_retry_needs_no_more_than_the_target(tmp_path: Path) -> None:
    told(tmp_path, "raise")
    plan = planned(tmp_path)
    run(plan, "sync")
    target, operator = tmp_path / "out.zarr", plan.operator
    with pytest.raises(gp.OptionError, match="field"):
        gp.retry(target, "sync")  # the array was in memory only
    (tmp_path / "flag").unlink()
    other = gp.Operator(operator.function, version="2")
    with pytest.raises(gp.PlanMismatch, match="operator"):
        gp.retry(target, "sync", field=field(), operator=other)
    report = gp.retry(target, "sync", field=field(), operator=other, operator_changed=True)
    assert report.complete
    assert_same_bytes(read_back(target), expected())


def test_retry_leaves_what_was_never_tried(tmp_path: Path) -> None:
    told(tmp_path, "raise")
    plan = planned(tmp_path)
    run(plan, "sync", share="1/2")  # the bad one has an odd number
    (tmp_path / "flag").unlink()
    report = gp.retry(plan, "sync", on_failure="return")
    assert report.summary.states == {"done": 1}
    assert not report.complete
    with pytest.raises(gp.RunIncomplete, match="4 of 9 super-tiles are done"):
        gp.retry(plan, "sync")
    assert gp.status(tmp_path / "out.zarr").counts["pending"] == 5


def test_done_and_given_up_at_once_is_not_trusted(tmp_path: Path) -> None:
    """What is left when a worker dies before it looks whether it was given up meanwhile."""
    told(tmp_path, "raise")
    plan = planned(tmp_path)
    run(plan, "sync")
    ledger = Ledger(plan.target, plan.fingerprint)
    (tmp_path / "flag").unlink()
    failed = ledger.failed()[NAME]
    plan.run("sync")
    ledger.put_failed(failed)
    report = plan.run("sync")
    assert report.skipped == 8
    assert report.problems == [f"{NAME}: done and given up at once"]
    assert_same_bytes(read_back(tmp_path / "out.zarr"), expected())
