"""Contract 3: memory is planned.

What a worker holds beyond an idle one is what the plan adds up; none of it grows with the height
of a super-tile, nor with the size of the field.
"""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_fields import Endless
from sample_rasters import write_terrain
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.aggregation import passes
from geopatch_dask.aggregation.statistic import merge_tree
from geopatch_dask.execute.attempt.first_pass import context_of
from geopatch_dask.execute.attempt.kernel import Kernel
from geopatch_dask.execute.attempt.stage import leaf_runs, run_leaves, settle_context

MIB = 1 << 20


def double(x: Any) -> Any:
    return x * 2


def peak(plan: gp.Plan) -> int:
    """Most bytes that numpy held while the first super-tile was computed, output not kept."""
    kernel, tile = Kernel(plan, lambda *written: 0), plan.supertile(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kernel.run(tile)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def planned(plan: gp.Plan) -> int:
    """The parts of the memory plan that this process allocates while it computes."""
    memory = plan.memory
    return memory.total - memory.reserved - memory.reader


def plan_of(height: int, width: int, **options: Any) -> gp.Plan:
    aggregation = options.pop("aggregation", gp.OverlapAdd())
    may_miss = options.pop("may_miss", True)
    operator = options.pop("operator", double)
    step = options.pop("step", 96)
    patcher = gp.Patcher(
        gp.Rectangular((128, 128)), gp.RegularStride((step, step)), gp.Hann(), aggregation
    )
    return gp.plan(
        *(Endless(height, width, may_miss=may_miss), patcher, operator, MemoryStore()),
        outer=(height, width),
        chunks=(128, 512),
        memory_limit="64 GiB",
        **options,
    )


def test_memory_does_not_grow_with_the_height_of_a_super_tile() -> None:
    low, tall = (peak(plan_of(height, 1024)) for height in (1024, 8192))
    assert tall < 1.05 * low + MIB


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"may_miss": False},
        pytest.param({"step": 32}, marks=pytest.mark.slow),
        {"aggregation": gp.Variance()},
        {"aggregation": gp.Max()},
        {"operator": gp.Operator(double, batch=8)},
    ],
    ids=["plain", "nothing missing", "many layers", "variance", "maximum", "batches"],
)
def test_what_is_allocated_is_what_was_planned(options: dict[str, Any]) -> None:
    """Never more than planned (5 % for small objects), and the plan is not a wild guess either."""
    plan = plan_of(2048, 2048, **options)
    found, expected = peak(plan), planned(plan)
    assert found <= 1.05 * expected, f"{found / MIB:.1f} MiB, planned {expected / MIB:.1f}"
    assert found >= 0.5 * expected, f"{found / MIB:.1f} MiB, planned {expected / MIB:.1f}"


def labels(x: Any, k: int) -> Any:
    return np.floor(np.abs(x) * 7) % k


def scores(x: Any, k: int) -> Any:
    return np.broadcast_to(np.abs(np.nan_to_num(x)), (k, *x.shape)).astype("float32")


@pytest.mark.parametrize(("k", "may_miss"), [(50, True), (200, False)])
@pytest.mark.parametrize("soft", [False, True])
def test_votes_with_many_classes_stay_within_the_plan(k: int, may_miss: bool, soft: bool) -> None:
    """Neither moving the ring nor finding the winner copies what it has of every class."""
    plan = plan_of(
        *(640, 512),
        aggregation=gp.SoftVote(k) if soft else gp.HardVote(k),
        operator=partial(scores if soft else labels, k=k),
        may_miss=may_miss,
    )
    found, expected = peak(plan), planned(plan)
    assert found <= 1.05 * expected, f"{found / MIB:.1f} MiB, planned {expected / MIB:.1f}"
    assert found >= 0.5 * expected, f"{found / MIB:.1f} MiB, planned {expected / MIB:.1f}"


@pytest.mark.parametrize("aggregation", [gp.Median(), gp.Quantile((0.1, 0.9))], ids=repr)
def test_layers_stay_within_the_plan(aggregation: gp.Aggregation) -> None:
    plan = plan_of(1024, 1024, aggregation=aggregation, step=32)
    found, expected = peak(plan), planned(plan)
    assert found <= 1.05 * expected, f"{found / MIB:.1f} MiB, planned {expected / MIB:.1f}"
    assert found >= 0.5 * expected, f"{found / MIB:.1f} MiB, planned {expected / MIB:.1f}"


def test_irregular_anchors_hold_a_whole_super_tile_and_say_so() -> None:
    patcher = gp.Patcher(gp.Rectangular((128, 128)), gp.Random(200), gp.Hann())
    plan = gp.plan(
        *(Endless(2048, 1024, may_miss=True), patcher, double, MemoryStore()),
        outer=(2048, 1024),
        chunks=(128, 512),
        memory_limit="64 GiB",
    )
    assert peak(plan) <= 1.05 * planned(plan)


# ---- first passes --------------------------------------------------------------------------------


def rows_of(x: Any, context: Any = None) -> Any:
    return np.broadcast_to(x, (12, *x.shape))


@pytest.mark.parametrize(
    ("statistic", "over"),
    [
        (gp.Quantiles(), "field"),
        (gp.Quantiles(), "output"),
        (gp.Reservoir(50_000), "field"),
        (gp.ApproxMode(), "output"),
    ],
    ids=repr,
)
def test_a_first_pass_stays_within_the_plan(statistic: gp.Statistic, over: str) -> None:
    """States of a megabyte and more per band, in the task of all leaves, and while recorded."""
    field = gp.ArrayField(np.ones((12, 200, 200), "f4"))
    if over == "output":
        field = gp.ArrayField(np.ones((200, 200), "f4"))
    patcher = gp.Patcher(gp.Rectangular((20, 20)), gp.RegularStride((20, 20)))
    operator = gp.Operator(rows_of if over == "output" else with_context, memory=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK_EDGE", 100)
        patch.setattr(passes, "PATCHES_PER_LEAF", 25)
        plan = gp.plan(
            *(field, patcher, operator, MemoryStore()),
            context=statistic, over=over, slots=1, memory_limit="64 GiB",
        )  # fmt: skip
        found = peak_of(lambda: whole_pass(plan))
    assert found <= plan.memory.first_pass, f"{found / MIB:.1f} MiB, planned {plan.memory}"
    assert found >= 0.3 * plan.memory.first_pass, f"{found / MIB:.1f} MiB, planned {plan.memory}"
    assert plan.memory.total >= plan.memory.reserved + plan.memory.first_pass


def with_context(x: Any, context: Any) -> Any:
    return x


def whole_pass(plan: gp.Plan) -> None:
    """All leaves in tasks, whose states stay; then the tree, and the record."""
    states = [run_leaves(plan, *run) for run in leaf_runs(plan)]
    settle_context(plan, merge_tree(context_of(plan).statistic, states))


def peak_of(call: Any) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_what_a_first_pass_found_is_held_in_the_second() -> None:
    field = gp.ArrayField(np.ones((40, 40)))
    patcher = gp.Patcher(gp.Rectangular((20, 20)), gp.RegularStride((20, 20)))
    plan = gp.plan(
        *(field, patcher, with_context, MemoryStore()), context=gp.Reservoir(100_000), slots=1
    )
    assert plan.memory.context >= 8 * 100_000


# ---- resident sets of real workers ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("n", "holes"), [(8192, False), (8192, True), (16_384, False)])
def test_workers_need_what_the_plan_says(n: int, holes: bool, tmp_path: Path) -> None:
    """n x n float32, patches of 256 every 192, Hann, two workers: within 25 % of the plan."""
    raster = write_terrain(tmp_path / "terrain.tif", n, holes)
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
    )
    plan = gp.plan(*(raster, patcher, double, tmp_path / "out.zarr"), slots=2, memory_limit="2 GiB")
    report = plan.run()
    measured = report.summary.numbers["peak_rss"]
    text = f"{measured / MIB:.0f} MiB, planned {plan.memory.total / MIB:.0f}: {plan.memory}"
    assert 0.75 * plan.memory.total <= measured <= 1.25 * plan.memory.total, text


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("k", [50, 200])
def test_workers_that_vote_need_what_the_plan_says(k: int, tmp_path: Path) -> None:
    """4096 x 4096 float32, patches of 256 every 192, two workers: within 25 % of the plan."""
    raster = write_terrain(tmp_path / "terrain.tif", 4096)
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), None, gp.HardVote(k)
    )
    plan = gp.plan(
        *(raster, patcher, partial(labels, k=k), tmp_path / "out.zarr"),
        outer=(2048, 2048),
        slots=2,
        memory_limit="6 GiB",
    )
    report = plan.run()
    measured = report.summary.numbers["peak_rss"]
    text = f"{measured / MIB:.0f} MiB, planned {plan.memory.total / MIB:.0f}: {plan.memory}"
    assert 0.75 * plan.memory.total <= measured <= 1.25 * plan.memory.total, text


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_workers_need_no_more_for_a_larger_field(tmp_path: Path) -> None:
    """Super-tiles of one size: the peak of a worker does not depend on how many there are.

    The smaller field is the smallest with one that has neighbours on all sides, which reads most.
    """
    patcher = gp.Patcher(gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann())
    peaks = {}
    for n in (6144, 12_288):
        raster = write_terrain(tmp_path / f"{n}.tif", n)
        plan = gp.plan(
            *(raster, patcher, double, tmp_path / f"{n}.zarr"),
            outer=(2048, 2048),
            slots=2,
            memory_limit="2 GiB",
        )
        peaks[n] = plan.run().summary.numbers["peak_rss"]
    assert peaks[12_288] < 1.1 * peaks[6144], peaks
