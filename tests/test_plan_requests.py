"""What a plan says that a store will be asked, against what a server was asked."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_s3 import VALUES, options, process
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.execute.driving import drive
from geopatch_dask.patch.boxes import hull
from geopatch_dask.planning.requests import KINDS, field_blocks, requests_of
from geopatch_dask.store.backends import forget_clients
from geopatch_dask.store.jobs import LOOK

PLACE = {"crs": "EPSG:32633", "transform": (10, 0, 5e5, 0, -10, 5e6)}
PATCHER = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with process("counting_s3.py", "bucket") as found:
        yield found


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(drive, "BEAT", 3600.0)  # however slow the machine is
    forget_clients()
    yield
    forget_clients()


def asked(port: int) -> dict[str, list[str]]:
    """Names that the server was asked for since the last time, by kind."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_requests", timeout=10) as answer:
        found: dict[str, list[str]] = json.load(answer)
    return found


def values(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(3).random(shape, "f4") + 1


def stats(x: Any) -> dict[str, Any]:
    return {"height": x * 2, "a": {"mean": x.mean()}, "b": {"max": x.max()}}


def both(x: Any) -> dict[str, Any]:
    return {"a": x * 2, "b": x[None] * [[[1]], [[2]]]}


def scaled(x: Any, context: Any) -> Any:
    return x if context is None else x / context["mean"]


BLEND = gp.OverlapAdd()
CASES: dict[str, tuple[Any, ...]] = {
    "plain": (gp.ArrayField(values((40, 60))), np.sqrt, BLEND, {}),
    "one super-tile": (gp.ArrayField(values((20, 20))), np.sqrt, BLEND, {}),
    "a raster": (gp.ArrayField(values((40, 60)), **PLACE), np.sqrt, BLEND, {}),
    "bands": (gp.ArrayField(values((3, 40, 60)), **PLACE), np.sqrt, BLEND, {}),
    "shards": (gp.ArrayField(values((40, 60))), np.sqrt, BLEND, {"chunks": 5, "shards": 10}),
    "two arrays": (gp.ArrayField(values((40, 60))), both, {"a": BLEND, "b": BLEND}, {}),
    "two tables": (
        *(gp.ArrayField(values((40, 60))), stats),
        *({"height": BLEND, "a": gp.ByIndex(), "b": gp.ByIndex()}, {}),
    ),
    "a first pass": (
        *(gp.ArrayField(values((40, 60))), gp.Operator(scaled, context=True), BLEND),
        {"context": gp.MeanStd()},
    ),
}


#: The others take a second or two each, and are run with the slow ones.
QUICK = {("plain", "obstore"), ("plain", "fsspec"), ("a raster", "obstore")}


@pytest.mark.parametrize(
    ("case", "client"),
    [
        pytest.param(case, client, marks=[] if (case, client) in QUICK else pytest.mark.slow)
        for case in CASES
        for client in ("obstore", "fsspec")
    ],
)
def test_requests_are_those_that_a_server_sees(port: int, case: str, client: str) -> None:
    if client == "obstore":
        pytest.importorskip("obstore")
    if "table" in case:
        pytest.importorskip("pyarrow")
    field, operator, aggregation, more = CASES[case]
    patcher = gp.Patcher(PATCHER.geometry, PATCHER.sampler, PATCHER.window, aggregation)
    place = gp.Location(f"s3://bucket/{case}-{client}.zarr", options(port), client=client)
    asked(port)
    plan = gp.plan(field, patcher, operator, place, **{"outer": 20, "chunks": 10, **more})
    report = plan.run("sync")
    heard = asked(port)
    assert report.complete
    found = requests_of(plan)
    assert found is not None
    assert found.total() == {kind: len(heard.get(kind, ())) for kind in KINDS}
    assert found.total(7.0)["PUT"] == found.total()["PUT"] + 3
    assert found.total(20.0)["PUT"] == found.total()["PUT"] + 8
    assert found.total(20.0)["GET"] == found.total()["GET"] + 2
    numbers = plan.explain().numbers["requests"]
    assert {kind: numbers[kind] for kind in KINDS} == found.total()


@pytest.mark.slow
def test_a_heartbeat_is_what_is_asked_every_two_seconds(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    def slow(x: Any) -> Any:
        time.sleep(0.02)
        return x * 2

    monkeypatch.setattr(drive, "BEAT", 0.2)
    for client in ("obstore", "fsspec"):
        place = gp.Location(f"s3://bucket/beat-{client}.zarr", options(port), client=client)
        plan = gp.plan(gp.ArrayField(values((40, 40))), PATCHER, slow, place, outer=20, chunks=10)
        asked(port)
        plan.run("sync")
        heard = asked(port)
        told = requests_of(plan)
        assert told is not None
        beats = sum(name.endswith(".json") and "/runs/" in name for name in heard["PUT"]) - 1
        assert beats >= 5
        looks = sum(name.endswith("/plan.json") for name in heard["HEAD"])
        # One in place of every fifth beat; the run may end just before it was due.
        assert looks in (beats // (LOOK - 1), (beats - 1) // (LOOK - 1))
        before = told.total()
        before["PUT"] -= 1  # of the probe, at plan time
        before["GET"] -= 1
        assert len(heard["GET"]) == before["GET"] + looks * told.look["GET"]
        assert len(heard["PUT"]) == before["PUT"] + beats * told.beat["PUT"]
        assert len(heard["HEAD"]) == (
            before["HEAD"] + beats * told.beat["HEAD"] + looks * told.look["HEAD"]
        )
        assert len(heard["LIST"]) == before["LIST"] - 1 + beats * told.beat["LIST"]


def test_cells_that_are_all_fill_are_deleted_and_not_put(port: int) -> None:
    holes = values((40, 60))
    holes[:, 30:] = np.nan
    place = gp.Location("s3://bucket/holes.zarr", options(port), client="fsspec")
    asked(port)
    plan = gp.plan(gp.ArrayField(holes), PATCHER, np.sqrt, place, outer=20, chunks=10)
    plan.run("sync")
    heard, told = asked(port), requests_of(plan)
    assert told is not None
    bound = told.total()
    puts, deletes = len(heard["PUT"]), len(heard["DELETE"])
    assert puts < bound["PUT"]
    assert puts + deletes == bound["PUT"] + bound["DELETE"]


@pytest.mark.slow
def test_more_super_tiles_than_a_list_has_names(port: int) -> None:
    pytest.importorskip("obstore")
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)))
    place = gp.Location("s3://bucket/many.zarr", options(port), client="obstore")
    asked(port)
    plan = gp.plan(gp.ArrayField(values((4, 4 * 1001))), patcher, np.sqrt, place, outer=4, chunks=4)
    plan.run("threads")
    heard, told = asked(port), requests_of(plan)
    assert told is not None
    assert plan.n_supertiles == 1001
    assert told.total() == {kind: len(heard.get(kind, ())) for kind in KINDS}


def test_what_is_no_object_store_has_no_requests(tmp_path: Any) -> None:
    field = gp.ArrayField(values((40, 60)))
    for target in (tmp_path / "o.zarr", MemoryStore()):
        plan = gp.plan(field, PATCHER, np.sqrt, target, outer=20, chunks=10)
        assert requests_of(plan) is None
        assert plan.explain().numbers["requests"] is None
        assert "requests" not in dict(plan.explain().lines)


@given(
    shape=st.tuples(st.integers(10, 70), st.integers(10, 70)),
    step=st.integers(1, 12),
    tiles=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    boundary=st.sampled_from(["shift", "pad", "shrink", "drop"]),
)
def test_blocks_of_the_field_are_counted_one_by_one(
    shape: tuple[int, int], step: int, tiles: tuple[int, int], boundary: Any
) -> None:
    patcher = gp.Patcher(gp.Rectangular((10, 10), boundary), gp.RegularStride((step, step)))
    field = Blocked(np.zeros((2, *shape), "f4"))
    outer = tuple(10 * t for t in tiles)
    plan = gp.plan(field, patcher, double, MemoryStore(), outer=outer, chunks=10)
    expected = 0
    for tile in plan.layout:
        anchors = plan.grid.anchors.at(plan.grid.touching(tile.box)).tolist()
        if anchors:
            box = hull(plan.grid.source(a) for a in anchors)
            sides = zip(box.start, box.stop, (7, 9), strict=True)
            expected += 2 * math.prod(-(-b // n) - a // n for a, b, n in sides)
    assert field_blocks(plan) == expected


def double(x: Any) -> Any:
    return x * 2


class Blocked(gp.ArrayField):
    """An array that says it is stored in blocks."""

    @property
    def blocks(self) -> tuple[int, ...]:
        return (1, 7, 9)
