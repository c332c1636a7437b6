"""Contract 1 for tables: the same bytes whatever the layout, and equal to ``merge`` in RAM.

And owner emits: every patch has its rows in exactly one part, whatever the sampler, the boundary
and the cut: anchors before the field, strides longer than patches, patches of which a super-tile
owns the anchor but no cell with weight.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keyed_operators as ops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyed_jobs import ipc
from strategies import (
    BOUNDARIES,
    WINDOWS,
    Axis,
    arrays,
    axes,
    cuts,
    examples,
    samplers,
)
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.tables import folder_of, parts
from geopatch_dask.testing import Cut, assert_same_bytes, read_back

pa = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _holes_are_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        yield


@st.composite
def jobs(draw: st.DrawFn, kinds: list[str]) -> tuple[gp.Field, gp.Patcher, gp.Operator, int]:
    boundary = draw(st.sampled_from(BOUNDARIES))
    ndim = draw(st.sampled_from([1, 2, 2, 3]))
    cut: list[Axis] = draw(axes(boundary, ndim))
    values, nodata = draw(arrays(tuple(a.n for a in cut), tuple(range(ndim))))
    dims = tuple(a.dim for a in cut)
    coords = {a.dim: 10.0 + 0.5 * np.arange(a.n) for a in cut if draw(st.booleans())}
    kind = draw(st.sampled_from(kinds))
    function, options = ops.KINDS[kind]
    table = gp.ByIndex(schema=ops.SCHEMAS.get(kind))
    patcher = gp.Patcher(
        gp.Rectangular({a.dim: a.size for a in cut}, boundary),
        draw(samplers(boundary, cut, named=True)),
        draw(st.sampled_from(WINDOWS)),
        table,
    )
    field = gp.ArrayField(values, dims=dims, coords=coords, nodata=nodata)
    return field, patcher, gp.Operator(function, **options), ndim


def planned(job: Any, cut: Cut, target: Any) -> gp.Plan:
    return gp.plan(*job[:3], target, **cut.options(), memory_limit="1 TiB", slots=2)


def in_ram(job: Any, kind: frozenset[str] = frozenset({""})) -> Any:
    field, patcher, operator = job[:3]
    patches = (
        patch.with_data(operator.run([patch], keyed=kind)[0]) for patch in patcher.split(field)
    )
    return patcher.merge(patches, field)


def cells(job: Any) -> tuple[int, ...]:
    return job[1].grid(job[0].domain).shape


@given(jobs(sorted(ops.KINDS)), st.data())
@examples(40)
def test_a_table_does_not_depend_on_the_layout(job: Any, data: st.DataObject) -> None:
    rows = in_ram(job)
    expected = ipc(rows.table())
    for scheduler in ("sync", "threads"):
        target = MemoryStore()
        plan = planned(job, data.draw(cuts(cells(job)), label=scheduler), target)
        report = plan.run(scheduler)
        found = gp.read_table(target)
        assert ipc(found) == expected, f"{found.to_pandas()}\n{rows.table().to_pandas()}"
        assert report.totals["rows"] == found.num_rows == gp.status(target).totals()["rows"]
        # nobody but the owner runs a patch
        assert report.summary.numbers.get("patches", 0) == len(plan.grid.anchors)


@given(jobs(["number", "record", "ragged"]), st.booleans(), st.data())
@examples(30)
def test_every_patch_is_in_one_part(job: Any, beside: bool, data: st.DataObject) -> None:
    if beside:  # arrays: then patches that reach in from other super-tiles are run, too
        job = mixed(job)
    target = MemoryStore()
    plan = planned(job, data.draw(cuts(cells(job))), target)
    plan.run("sync")
    place, name = Location.of(target), plan.tables[0].name
    ordinals = []
    done = Ledger(place, plan.fingerprint).done()
    for tile in sorted(parts(place, name)):
        raw = folder_of(place, name).read(f"part-{tile}.parquet")
        part = pa.parquet.read_table(pa.BufferReader(raw))
        assert done[tile].tables == {name: part.num_rows}
        assert part.num_rows > 0
        found = part["ordinal"].to_pylist()
        assert found == sorted(found)
        box = done[tile].box
        anchors = [part[f"anchor_{dim}"].to_pylist() for dim in plan.grid.dims]
        for anchor in zip(*anchors, strict=True):
            clamped = [max(a, 0) for a in anchor]
            assert all(a <= c < b for a, c, b in zip(box.start, clamped, box.stop, strict=True))
        ordinals += sorted(set(found))
    assert len(ordinals) == len(set(ordinals))
    assert sorted(ordinals) == sorted(set(gp.read_table(target)["ordinal"].to_pylist()))


def mixed(job: Any) -> Any:
    """An array and rows of one operator, over the same patches."""
    patcher = gp.Patcher(
        *(job[1].geometry, job[1].sampler, job[1].window),
        {"height": gp.OverlapAdd(), "stats": gp.ByIndex()},
    )
    return job[0], patcher, gp.Operator(ops.both, takes="patch")


@given(jobs(["number"]), st.sampled_from([1, 2, 3]), st.data())
@examples(60)
def test_super_tiles_own_every_patch_once(job: Any, scale: int, data: st.DataObject) -> None:
    field, patcher, _, _ = job
    grid = patcher.grid(field.domain).variant(False, gp.Output(scale=scale).factor)
    cut = data.draw(cuts(grid.shape))
    plan = planned(job, Cut(cells(job), cells(job)), MemoryStore())
    layout = replace(plan.layout, shape=grid.shape, tile=cut.tile, chunks=cut.chunks, shards=None)
    owned = [grid.owned(tile.box) for tile in layout]
    assert sorted(np.concatenate(owned).tolist()) == list(range(len(grid.anchors)))
    for tile, mine in zip(layout, owned, strict=True):
        assert grid.count_owned(tile.box) == len(mine)
        assert set(mine.tolist()) <= set(grid.touching(tile.box).tolist())


@given(jobs(["number"]), st.data())
@examples(20)
def test_arrays_and_rows_of_one_operator(job: Any, data: st.DataObject) -> None:
    job = mixed(job)
    field, patcher, _ = job
    merged = in_ram(job, frozenset({"stats"}))
    target = MemoryStore()
    planned(job, data.draw(cuts(cells(job))), target).run("threads")
    if len(patcher.grid(field.domain).anchors):  # else the plan takes the dtype of the field
        assert_same_bytes(read_back(target, "height"), merged["height"])
        assert ipc(gp.read_table(target)) == ipc(merged["stats"].table())
    plain = gp.Patcher(patcher.geometry, patcher.sampler, patcher.window, gp.OverlapAdd())
    alone = plain.merge((p.with_data(ops.both(p)["height"]) for p in plain.split(field)), field)
    assert_same_bytes(merged["height"], alone, "the array beside a table")


@given(jobs(["record", "ragged"]), st.data())
@examples(20)
def test_a_run_may_be_continued_with_other_super_tiles(job: Any, data: st.DataObject) -> None:
    expected = ipc(in_ram(job).table())
    first = data.draw(cuts(cells(job)), label="first layout")
    second = data.draw(cuts(cells(job), storage=first), label="second layout")
    target = MemoryStore()
    plan = planned(job, first, target)
    stop = data.draw(st.integers(0, plan.n_supertiles), label="super-tiles before the crash")

    def crash(outcome: object, finished: int, total: int) -> None:
        if finished == stop:
            raise KeyboardInterrupt

    if stop:
        with pytest.raises(KeyboardInterrupt):
            plan.run("sync", progress=crash)
    report = planned(job, second, target).run("sync")
    assert ipc(gp.read_table(target)) == expected
    place = Location.of(target)
    recorded = {r.id for r in Ledger(place, plan.fingerprint).done().values() if r.rows}
    assert parts(place, "data") == recorded, "no stray part is left"
    assert report.totals["rows"] == gp.read_table(target).num_rows


@given(jobs(["number", "ragged"]), st.data())
@examples(25)
def test_query_points_do_not_depend_on_the_layout(job: Any, data: st.DataObject) -> None:
    field, patcher, operator, ndim = job
    near = st.floats(-2, 22).map(lambda v: round(v * 4) / 4)  # also on edges of cells
    points = data.draw(st.lists(st.tuples(*[near] * ndim), min_size=1, max_size=12))
    keyed = replace(patcher.aggregation, points=points)
    patcher = gp.Patcher(patcher.geometry, patcher.sampler, patcher.window, keyed)
    job = (field, patcher, operator)
    expected = in_ram(job).table()
    target = MemoryStore()
    plan = planned(job, data.draw(cuts(cells(job))), target)
    report = plan.run("threads")
    assert ipc(gp.read_table(target)) == ipc(expected)
    assert report.totals["rows"] == expected.num_rows, "nobody tells a point twice"
    speaking = nearest(field, patcher, points)
    asked = {o for o in speaking if o is not None}
    assert report.summary.numbers.get("patches", 0) == len(asked)
    found = expected.to_pandas()
    if operator.name == "number":
        assert found["point"].tolist() == list(range(len(points)))
        assert [None if np.isnan(o) else int(o) for o in found["ordinal"]] == speaking


def nearest(field: gp.Field, patcher: gp.Patcher, points: Any) -> list[int | None]:
    """The patch of each point, by trying them all."""
    grid = patcher.grid(field.domain)
    found: list[int | None] = []
    for point in points:
        position = []
        for dim, value in zip(grid.dims, point, strict=True):
            known = field.domain.coords.get(dim)
            n = field.domain.size(dim)
            if known is None:
                position.append(value)
            elif n == 1:
                position.append(0.5 if value == known.values[0] else -9.0)
            else:
                position.append((value - 10.0) / 0.5 + 0.5)
        best: tuple[float, int] | None = None
        for ordinal, anchor in enumerate(grid.anchors):
            box = grid.indices(anchor)
            inside = all(
                0 <= c < n and a <= c < b
                for c, a, b, n in zip(position, box.start, box.stop, grid.shape, strict=True)
            )
            if inside:
                away = sum(
                    ((c - (a + b) / 2) / p) ** 2
                    for c, a, b, p in zip(position, box.start, box.stop, grid.size, strict=True)
                )
                if best is None or away < best[0]:
                    best = (away, ordinal)
        found.append(None if best is None else best[1])
    return found


def fixed_jobs() -> list[tuple[Any, Cut]]:
    rng = np.random.default_rng(3)
    values = rng.random((30, 37)).astype("f4")
    values[:9, :9] = np.nan
    field = gp.ArrayField(values, crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6))
    found = []
    for kind in ("record", "ragged"):
        function, options = ops.KINDS[kind]
        patcher = gp.Patcher(
            gp.Rectangular((8, 9), "reflect"),
            gp.JitteredStride((5, 6), 0.8, 1),
            aggregation=gp.ByIndex(schema=ops.SCHEMAS.get(kind)),
        )
        found.append(((field, patcher, gp.Operator(function, **options)), Cut((8, 13), (4, 13))))
    return found


@pytest.mark.cluster
def test_a_cluster_writes_the_same_table(tmp_path: Path, client: Any) -> None:
    job, cut = fixed_jobs()[1]
    planned(job, cut, tmp_path / "out.zarr").run(client)
    assert ipc(gp.read_table(tmp_path / "out.zarr")) == ipc(in_ram(job).table())


def test_two_records_over_the_same_cells_do_not_repeat_rows(tmp_path: Path) -> None:
    """A worker of an older layout, slow to die, may write its part and record after the end."""
    job, cut = fixed_jobs()[1]
    target = tmp_path / "out.parquet"
    planned(job, cut, target).run("sync")
    other = planned(job, replace(cut, tile=(16, 13)), target)
    from geopatch_dask.execute.attempt.tile import run_tile

    for i in random.Random(0).sample(range(other.n_supertiles), 2):
        assert run_tile(other, i).state == "done"
    assert ipc(gp.read_table(target)) == ipc(in_ram(job).table())
