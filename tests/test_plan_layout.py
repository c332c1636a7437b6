"""How the output is cut: super-tiles, chunks, shards; what that costs; what fits into memory."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_fields import Endless
from strategies import Job, cuts, examples, jobs
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.patch.anchors import LatticeAnchors
from geopatch_dask.patch.boxes import Box, hull
from geopatch_dask.planning.cost import cost_of
from geopatch_dask.planning.supertile import Layout, write_units
from geopatch_dask.planning.units import parse_bytes

MIB = 1 << 20


def blend(size: int, step: int, **options: Any) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular((size, size), **options), gp.RegularStride((step, step)), gp.Hann()
    )


def double(x: Any) -> Any:
    return x * 2


#: Declared, because what is measured depends on what other threads allocate meanwhile.
DOUBLE = gp.Operator(double, memory="32 MiB")


def plan_of(field: gp.Field, patcher: gp.Patcher, **options: Any) -> gp.Plan:
    return gp.plan(field, patcher, DOUBLE, MemoryStore(), **options)


# ---- boxes ---------------------------------------------------------------------------------------


@given(st.data())
@examples(150)
def test_super_tiles_cover_every_cell_once_in_whole_write_units(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=3)))
    cut = data.draw(cuts(shape))
    chunks, shards = write_units(shape, cut.chunks, cut.shards)
    layout = Layout(("a", "b", "c")[: len(shape)], shape, cut.tile, chunks, shards)
    owners = np.zeros(shape, int)
    ids = set()
    for i, tile in enumerate(layout):
        assert tile == layout.supertile(i)
        owners[tile.box.slices()] += 1
        ids.add(tile.id)
        for a, b, u, n in zip(tile.box.start, tile.box.stop, layout.unit, shape, strict=True):
            assert a % u == 0
            assert b % u == 0 or b == n
    assert (owners == 1).all()
    assert len(ids) == layout.count
    assert layout.objects() == math.prod(
        -(-n // u) for n, u in zip(shape, layout.unit, strict=True)
    )


@given(st.data())
@examples(100)
def test_what_is_unfinished_after_another_layout(data: st.DataObject) -> None:
    """A super-tile is done only when all its cells are, whoever wrote them."""
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=2)))
    first = data.draw(cuts(shape))
    second = data.draw(cuts(shape, storage=first))
    chunks, shards = write_units(shape, first.chunks, first.shards)
    dims = ("a", "b")[: len(shape)]
    one, two = (Layout(dims, shape, cut.tile, chunks, shards) for cut in (first, second))
    done = [tile.box for tile in one if data.draw(st.booleans())]
    cells = np.zeros(shape, bool)
    for box in done:
        cells[box.slices()] = True
    expected = [tile.ordinal for tile in two if not cells[tile.box.slices()].all()]
    assert two.unfinished(done) == expected
    meets = [
        i
        for i, box in enumerate(done)
        if any(box.intersect(two.supertile(k).box) for k in expected)
    ]
    assert two.overlapping(expected, done) == meets


def test_default_write_units() -> None:
    assert write_units((4096, 4096), None, None) == ((512, 512), None)
    assert write_units((100, 4096), None, None) == ((100, 512), None)
    assert write_units((24, 4096, 4096), None, None) == ((1, 512, 512), None)
    assert write_units((9000,), None, None) == ((512,), None)
    assert write_units((4096, 4096), None, (2048, 2048)) == ((512, 512), (2048, 2048))
    assert write_units((4096, 4096), None, (1536, 600)) == ((512, 300), (1536, 600))
    # what is larger than the field shrinks to it, the shard to whole chunks
    assert write_units((100, 70), (512, 32), (2048, 64)) == ((100, 32), (100, 64))


MISALIGNED: list[tuple[dict[str, Any], str]] = [
    (
        {"chunks": (64, 64), "outer": (100, 128)},
        r"axis 'y': super-tiles of 100 cells would share chunks of 64 .*use 128",
    ),
    (
        {"chunks": (32, 32), "shards": (64, 96), "outer": (64, 64)},
        r"axis 'x': super-tiles of 64 cells would share shards of 96 .*use 96",
    ),
    (
        {"chunks": (48, 64), "shards": (64, 64)},
        r"axis 'y': shards of 64 cells do not hold whole chunks of 48; use shards of 96",
    ),
]


@pytest.mark.parametrize(("options", "message"), MISALIGNED)
def test_misaligned_layouts_name_axis_numbers_and_remedy(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(gp.AlignmentError, match=message):
        plan_of(Endless(300, 300), blend(16, 12), **options)


@pytest.mark.parametrize("name", ["outer", "chunks", "shards"])
@pytest.mark.parametrize("bad", [0, (0, 4), (4, -1), 1.5, float("nan"), (4,), (4, 4, 4), {"z": 3}])
def test_bad_cells_of_a_layout(name: str, bad: Any) -> None:
    with pytest.raises(gp.OptionError, match=name):
        plan_of(Endless(30, 30), blend(16, 12), **{name: bad})


def test_cells_may_be_named() -> None:
    field = gp.ArrayField(np.zeros((9, 40, 3, 50)), dims=("t", "y", "z", "x"))
    patcher = gp.Patcher(gp.Rectangular({"x": 8, "y": 4}), gp.RegularStride({"x": 8, "y": 4}))
    plan = plan_of(field, patcher, outer={"x": 20, "y": 10}, chunks={"y": 5, "x": 10})
    assert plan.layout.dims == ("y", "x")
    assert plan.layout.tile == (10, 20)
    assert plan.layout.chunks == (5, 10)


# ---- a patcher of patchers -----------------------------------------------------------------------


def test_the_outer_level_may_be_a_patcher() -> None:
    outer = gp.Patcher(gp.Rectangular((64, 96)), gp.RegularStride((64, 96)))
    plan = plan_of(Endless(200, 200), blend(16, 12), outer=outer, chunks=(32, 32))
    assert plan.layout.tile == (64, 96)
    assert plan_of(Endless(200, 200), blend(16, 12), outer=(64, 96), chunks=(32, 32)).layout == (
        plan.layout
    )


def test_outer_patches_own_their_cells() -> None:
    outer = gp.Patcher(gp.Rectangular((64, 64)), gp.RegularStride((48, 64)))
    with pytest.raises(gp.AlignmentError, match=r"size \(64, 64\) and step \(48, 64\); overlap"):
        plan_of(Endless(200, 200), blend(16, 12), outer=outer, chunks=(16, 16))
    random = gp.Patcher(gp.Rectangular((64, 64)), gp.Random(4))
    with pytest.raises(gp.OptionError, match="needs a Rectangular geometry and a RegularStride"):
        plan_of(Endless(200, 200), blend(16, 12), outer=random, chunks=(16, 16))
    with pytest.raises(gp.OptionError, match="neither 'auto', a Patcher, nor cells"):
        plan_of(Endless(200, 200), blend(16, 12), outer="large")


# ---- cost ----------------------------------------------------------------------------------------


@given(jobs(), st.data())
@examples(120)
def test_costs_are_counted_exactly_on_a_lattice(job: Job, data: st.DataObject) -> None:
    """R and cells read, against a walk over all super-tiles and their patches."""
    cut = data.draw(cuts(job.cuttable))
    plan = gp.plan(
        *(job.field, job.patcher, job.operator, MemoryStore()),
        **cut.options(),
        output=job.output,
        memory_limit="1 TiB",
    )
    grid, run, read = plan.grid, 0, 0
    for tile in plan.layout:
        anchors = [tuple(a) for a in grid.anchors.at(grid.touching(tile.box)).tolist()]
        run += len(anchors)
        read += hull(grid.source(a) for a in anchors).cells if anchors else 0
    cost = plan.cost
    assert (cost.supertiles, cost.patches) == (plan.n_supertiles, len(grid.anchors))
    if isinstance(grid.anchors, LatticeAnchors):
        assert cost.patches_run == run
        exact = grid.geometry.boundary != "reflect"
        assert cost.cells_read == read if exact else cost.cells_read >= read
    elif plan.n_supertiles <= 32 and grid.geometry.boundary != "reflect":
        assert cost.patches_run == max(run, len(grid.anchors))
        assert cost.cells_read == read


def test_the_formula_of_the_design() -> None:
    """R = prod (1 + e S / T): with 256/192, e = 1 patch reaches in from the left."""
    n = 192 * 1000 + 64
    cost = cost_of(
        blend(256, 192).grid(Endless(n, n).domain),
        Layout(("y", "x"), (n, n), (1920, 1920), (480, 480)),
    )
    assert cost.amplification == pytest.approx((1 + 192 / 1920) ** 2, rel=1e-3)


# ---- memory --------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_field() -> None:
    totals = {
        n: plan_of(Endless(n, n), blend(256, 192), outer=(2048, 2048), memory_limit="8 GiB").memory
        for n in (16_384, 65_536, 1_048_576)
    }
    assert len({m.total for m in totals.values()}) == 1


def test_memory_does_not_grow_with_the_height_of_a_super_tile() -> None:
    """A lattice is swept row by row: only width counts."""
    low, tall = (
        plan_of(
            Endless(65_536, 4096), blend(256, 192), outer=(t, 2048), memory_limit="8 GiB"
        ).memory
        for t in (2048, 65_536)
    )
    assert tall.total == low.total
    irregular = gp.Patcher(gp.Rectangular((256, 256)), gp.Random(50))
    low, tall = (
        plan_of(Endless(8192, 4096), irregular, outer=(t, 2048), memory_limit="64 GiB").memory
        for t in (2048, 8192)
    )
    assert tall.state == 4 * low.state


def test_a_limit_that_is_too_small_names_what_is_needed() -> None:
    with pytest.raises(gp.MemoryPlanError) as caught:
        plan_of(Endless(20_000, 20_000), blend(256, 192), memory_limit="100 MiB")
    message = str(caught.value)
    assert "\n" not in message
    assert "a super-tile of 512 x 512 cells needs" in message
    assert "a worker may use 70.0 MiB, 70% of its limit" in message
    wanted = message.partition("memory_limit='")[2].partition("'")[0]
    assert isinstance(caught.value, MemoryError)
    # what the message asks for is enough (it is rounded to a tenth)
    number, unit = wanted.split()
    plan_of(Endless(20_000, 20_000), blend(256, 192), memory_limit=f"{float(number) + 0.1} {unit}")


def test_an_outer_patcher_has_to_fit_too() -> None:
    with pytest.raises(gp.MemoryPlanError, match="super-tile of 16384 x 16384 cells needs"):
        plan_of(
            Endless(16_384, 16_384), blend(256, 192), outer=(16_384, 16_384), memory_limit="512 MiB"
        )


@pytest.mark.parametrize("bad", [0, -1, float("nan"), "many", "", "4 GiB GiB", True, "1.2.3 MB"])
def test_bad_memory_limits(bad: Any) -> None:
    with pytest.raises(gp.OptionError, match="number of bytes"):
        plan_of(Endless(64, 64), blend(16, 12), memory_limit=bad)


@pytest.mark.parametrize("bad", [0, -2, 1.5, float("nan"), "two", True])
def test_bad_slots(bad: Any) -> None:
    with pytest.raises(gp.OptionError, match="slots"):
        plan_of(Endless(64, 64), blend(16, 12), slots=bad)


# ---- the automatic choice ------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["400 MiB", "700 MiB", "2 GiB", "16 GiB"])
@pytest.mark.parametrize("shape", [(8192, 8192), (30_000, 3000), (100_000, 100_000)])
@pytest.mark.parametrize(("size", "step"), [(256, 192), (64, 32), (1024, 512)])
def test_the_choice_fits_and_no_listed_alternative_is_better(
    limit: str, shape: tuple[int, int], size: int, step: int
) -> None:
    field, patcher = Endless(*shape), blend(size, step)
    plan = plan_of(field, patcher, memory_limit=limit, slots=4)
    usable = int(0.7 * parse_bytes(limit))
    assert plan.memory.total <= usable
    chosen = work(plan)
    for other in plan.rejected:
        tile = tuple(other["tile"])
        again = plan_of(field, patcher, memory_limit="1 TiB", slots=4, outer=tile)
        assert again.cost.amplification == pytest.approx(other["R"], abs=1e-4)
        assert again.memory.total == other["memory"]
        if other["memory"] > usable:
            assert "a worker may use" in other["reason"]
        else:
            percent = float(other["reason"].partition(" %")[0])
            assert "% more work" in other["reason"] or percent <= 1  # a tie goes to less memory
            # The score knows of tasks to start and of workers that die; still, the busiest slot
            # must not have much more to do than under the alternative.
            assert chosen <= 1.25 * work(again)


def work(plan: gp.Plan) -> int:
    """Patches run by the busiest slot, when the largest super-tiles are handed out first."""
    touched = sorted((plan.grid.count_touching(tile.box) for tile in plan.layout), reverse=True)
    slots = [0] * plan.slots
    for patches in touched:
        heapq.heapreplace(slots, slots[0] + patches)
    return max(slots)


def test_the_choice_feeds_all_slots() -> None:
    for slots in (1, 2, 8, 32):
        plan = plan_of(Endless(16_384, 16_384), blend(256, 192), memory_limit="8 GiB", slots=slots)
        assert plan.n_supertiles >= slots


def test_small_fields_are_one_super_tile() -> None:
    plan = plan_of(Endless(100, 100), blend(16, 12), slots=1)
    assert plan.n_supertiles == 1
    assert plan.cost.amplification == 1


def test_a_plan_for_a_petabyte_takes_no_time() -> None:
    """O(1): nothing is listed, walked or read."""
    field = Endless(10_000_000, 10_000_000)
    grid = blend(256, 192).grid(field.domain)
    layout = Layout(grid.dims, grid.shape, (8192, 8192), (512, 512))
    cost = cost_of(grid, layout)
    assert cost.patches == 52_083**2
    assert layout.count == 1221**2
    assert layout.supertile(10**6).box == Box((6709248, 8192), (6717440, 16384))
    assert 1 < cost.amplification < 1.06
