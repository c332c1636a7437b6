"""Runs that give a super-tile up while another computes it, on a store, at chosen moments.

:mod:`test_giving_up` plays every moment, in a small world.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import geopatch_dask as gp
from geopatch_dask.execute.attempt import tile as tiles
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import assert_same_bytes, merged, read_back

NAME = "y20-40_x40-60"
FIELD = gp.ArrayField(np.random.default_rng(1).standard_normal((60, 60)).astype("float32"))
PATCHER = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())


def double(x: Any) -> Any:
    return x * 2


def planned(folder: Path) -> gp.Plan:
    return gp.plan(
        *(FIELD, PATCHER, gp.Operator(double, version="1"), folder / "out.zarr"),
        outer=(20, 20),
        chunks=(10, 10),
        slots=2,
        memory_limit="1 GiB",
    )


def expected() -> Any:
    return merged(FIELD, PATCHER, double)


@pytest.mark.parametrize("moment", ["before data", "before record", "after record", "after all"])
def test_giving_up_never_leaves_a_record_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """One run gives a super-tile up in the middle of another that computes it."""
    plan = planned(tmp_path)
    plan.run("sync", share="0/9")  # makes the target
    number = next(t.ordinal for t in plan.layout if t.id == NAME)
    error = {"type": "E", "message": "lost", "traceback": "", "kind": "lost"}
    state = {"left": 1}

    def other() -> None:
        if state["left"]:
            state["left"] -= 1
            tiles.give_up(plan, number, error, 1)

    if moment == "before data":
        compute = tiles._compute
        monkeypatch.setattr(tiles, "_compute", lambda *a: (other(), compute(*a))[1])
    put, settle = Ledger.put, tiles.settle

    def put_with(self: Ledger, record: Any) -> None:
        if moment == "before record":
            other()
        put(self, record)

    def asked(ledger: Ledger, tile: str, mark: bytes | None) -> bool:
        if moment == "after record":
            other()
        return settle(ledger, tile, mark)

    monkeypatch.setattr(Ledger, "put", put_with)
    monkeypatch.setattr(tiles, "settle", asked)
    outcome = tiles.run_tile(plan, number)
    if moment == "after all":
        other()
    assert outcome.state == "done"
    ledger = Ledger(Location.of(tmp_path / "out.zarr"), plan.fingerprint)
    assert NAME in ledger.done()
    assert not ledger.failed()
    stored = read_back(tmp_path / "out.zarr")
    assert_same_bytes(stored[20:40, 40:60].copy(), expected()[20:40, 40:60].copy())


@pytest.mark.parametrize("look", range(4))
@pytest.mark.parametrize("then", ["before", "after"])
def test_finishing_while_cells_are_made_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int, then: str
) -> None:
    """One run computes a super-tile, from its first look to its last, while another erases it."""
    plan = planned(tmp_path)
    plan.run("sync", share="0/9")  # makes the target
    number = next(t.ordinal for t in plan.layout if t.id == NAME)
    error = {"type": "E", "message": "lost", "traceback": "", "kind": "lost"}
    looked, states = tiles.is_erasable, []

    def other(ledger: Ledger, tile: str) -> bool:
        now = len(states)
        states.append("")
        if now == look and then == "before":
            states[-1] = tiles.run_tile(plan, number).state
        found = looked(ledger, tile)
        if now == look and then == "after":
            states[-1] = tiles.run_tile(plan, number).state
        return found

    monkeypatch.setattr(tiles, "is_erasable", other)
    ended = tiles.give_up(plan, number, error, 1)
    ledger = Ledger(plan.target, plan.fingerprint)
    # rows of fill are two: the last look is the third one, and none is the fourth
    assert ("done" in states) == (look < 3)
    if look == 2 and then == "after":  # it was given up in between, as it were
        assert list(ledger.done()) == [plan.supertile(0).id, NAME]
        assert not ledger.failed()
    else:
        assert ended.state == "failed"
        assert (list(ledger.failed()), NAME in ledger.done()) == ([NAME], False)
        assert np.isnan(read_back(tmp_path / "out.zarr")[20:40, 40:60]).all()
    assert plan.run("sync").complete
    assert_same_bytes(read_back(tmp_path / "out.zarr"), expected())
