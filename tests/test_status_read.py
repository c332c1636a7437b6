"""``gp.status``: whose records are read, what is counted, and what it takes to be allowed to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import failed, grid, plan_of, record
from zarr.storage import MemoryStore, WrapperStore

import geopatch_dask as gp
from geopatch_dask.store.jobs import Heartbeat, RunState
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import FINGERPRINT

OURS, LATER = "0a" * 32, "f9" * 32


def stored(
    target: Any, fingerprint: str = OURS, *, root: bool = True, n: int = 4, done: int = 3
) -> Ledger:
    """A target with its records, without a run: of n x n super-tiles some done, the next failed."""
    place = gp.Location.of(target)
    layout = grid(n, n)
    ledger = Ledger(place, fingerprint)
    ledger.write_plan(json.dumps(plan_of(layout, fingerprint=fingerprint)))
    if root:
        attributes = {FINGERPRINT: fingerprint}
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        place.write("zarr.json", json.dumps(document).encode())
    for ordinal in range(done):
        ledger.put(record(layout, ordinal, fingerprint=fingerprint))
    ledger.put_failed(failed(layout, done, fingerprint=fingerprint))
    return ledger


class Closed(WrapperStore[MemoryStore]):
    """A store that may be read, but not listed."""

    listed = 0

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        type(self).listed += 1
        raise PermissionError("AccessDenied: ListBucket")


# ---- whose ---------------------------------------------------------------------------------


def test_the_plan_of_the_target_is_read_and_not_the_last_of_a_sorted_list(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    stored(target, LATER, done=9)
    stored(target, OURS, done=3)
    found = gp.status(target)
    assert found.fingerprint == OURS
    assert found.counts == {"done": 3, "empty": 0, "failed": 1, "pending": 12}


def test_where_the_target_is_gone_its_only_plan_is_read(tmp_path: Path) -> None:
    stored(tmp_path / "out.zarr", root=False)
    found = gp.status(tmp_path / "out.zarr")
    assert found.fingerprint == OURS
    assert not found.complete


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(gp.TargetError, match="no plan is recorded beside"):
        gp.status(tmp_path / "out.zarr")
    ledger = stored(tmp_path / "out.zarr")
    ledger.folder.delete("plan.json")  # the run died before it wrote it
    with pytest.raises(gp.TargetError, match="no plan is recorded beside"):
        gp.status(tmp_path / "out.zarr")


def test_without_permission_to_list() -> None:
    store = MemoryStore()
    ledger = stored(store)
    ledger.write_report({"seconds": 3})
    told = gp.status(store)
    Closed.listed = 0
    found = gp.status(Closed(store))
    assert Closed.listed > 0
    assert found.counts == told.counts == {"done": 3, "empty": 0, "failed": 1, "pending": 12}
    assert found.states == told.states
    assert found.records == told.records
    assert found.report == {"seconds": 3}
    assert found.runs == ()


def test_without_permission_to_list_a_target_that_is_gone_says_why() -> None:
    store = MemoryStore()
    stored(store, root=False)
    with pytest.raises(gp.TargetError, match="forbidden"):
        gp.status(Closed(store))


# ---- what ----------------------------------------------------------------------------------


def test_totals_are_sums_over_what_is_done(tmp_path: Path) -> None:
    ledger = stored(tmp_path / "out.zarr")
    layout = grid(4, 4)
    numbers = {"retries": 7, "failed_patches": 2, "bytes_written": 100, "tables": {"a": 5}}
    numbers |= {"hollow_patches": 3, "patch_errors": ("ValueError: dim\nand dark",)}
    one = replace(record(layout, 5, fingerprint=OURS), **numbers)
    ledger.put(one)
    lost = failed(layout, 6, fingerprint=OURS, retries=1000)
    ledger.put_failed(lost)
    found = gp.status(tmp_path / "out.zarr")
    assert found.totals() == {
        "patches": 36,
        "failed_patches": 2,
        "hollow_patches": 3,
        "bytes_written": 100,
        "fill": 0,
        "uncovered": 0,
        "missing": 0,
        "rows": 5,
        "retries": 7,
    }
    assert [r.id for r in found.failed] == [layout.supertile(3).id, layout.supertile(6).id]
    for said in (
        "2 patches whose operator failed; the first: ValueError: dim ...",
        "3 patches with data, of which the operator made nothing but missing values, "
        f"in {one.id}; if that is wrong, mend it, and geopatch retry computes them again",
        "7 requests to stores repeated",
    ):
        assert said in str(found)


def test_records_that_are_not_trusted_are_told(tmp_path: Path) -> None:
    ledger = stored(tmp_path / "out.zarr")
    for k in range(8):
        ledger.folder.write(f"tiles/torn{k}.json", b"{")
    ledger.folder.write("report.json", b"{")
    found = gp.status(tmp_path / "out.zarr")
    assert len(found.problems) == 9
    assert found.report == {}
    assert found.counts["done"] == 3
    lines = str(found).splitlines()
    assert len([line for line in lines if line.startswith("problem")]) == 5
    assert lines[-1].strip() == "... and 4 more"


def test_a_finished_failure_is_no_failure(tmp_path: Path) -> None:
    ledger = stored(tmp_path / "out.zarr")
    ledger.put(record(grid(4, 4), 3, fingerprint=OURS))
    found = gp.status(tmp_path / "out.zarr")
    assert found.counts["failed"] == 0
    assert found.failed == []


def test_runs_under_way_and_runs_that_died(tmp_path: Path) -> None:
    ledger = stored(tmp_path / "out.zarr")
    now = datetime.now(UTC)
    state = replace(RunState.begin(), host="here", pid=4000, total=400)
    Heartbeat(ledger, state).beat(done=120, failed=2)
    old = (now - timedelta(minutes=12)).isoformat()
    dead = replace(state, id="dead", host="there", started=old, updated=old, done=7)
    ledger.folder.write(
        "runs/dead.json", json.dumps({k: getattr(dead, k) for k in _FIELDS}).encode()
    )
    found = gp.status(tmp_path / "out.zarr")
    assert [run.host for run in found.runs] == ["there", "here"]
    lines = [" ".join(line.split()) for line in str(found).splitlines()]
    assert any(
        line.startswith("running on here:4000, 120 of 400, 2 failed, heard from ") for line in lines
    )
    assert any(
        line.startswith("died on there:4000, 7 of 400, not heard from for 12 min") for line in lines
    )
    page = found.to_html(tmp_path / "report.html").read_text("utf-8")
    assert "here:4000, 120 of 400" in page
    assert "there:4000" not in page


_FIELDS = RunState.__slots__


# ---- of a real run -------------------------------------------------------------------------


def test_while_it_runs_and_when_it_is_done(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)))
    field = gp.ArrayField(np.arange(6400.0).reshape(80, 80))
    plan = gp.plan(field, patcher, np.negative, target, outer=20, chunks=20)
    seen = []

    def look(*_: object) -> None:
        found = gp.status(target)
        page = found.to_html(tmp_path / "report.html").read_text("utf-8")
        seen.append((found.counts["done"], found.complete, "✗ not complete" in page))

    plan.run("sync", progress=look)
    assert [count for count, _, _ in seen] == list(range(1, 17))
    assert not any(complete for _, complete, _ in seen)
    assert all(told for _, _, told in seen)
    found = gp.status(target)
    assert found.complete
    assert found.report["supertiles"] == 16
    page = found.to_html(tmp_path / "report.html").read_text("utf-8")
    assert "✓ complete" in page
    assert str(target) in page
