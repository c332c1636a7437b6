"""What a plan says of cells in no patch is what its run reports, and what plain numpy counts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from sample_fields import Endless
from strategies import Job, examples, holey, jobs
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.planning import holes
from geopatch_dask.planning.holes import holes_of, uncovered_cells


@pytest.fixture(autouse=True)
def _holes_are_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        yield


def same(x: Any) -> Any:
    return x


def counted(grid: PatchGrid) -> int:
    """Cells in no patch: every patch marks its own."""
    reached = np.zeros(grid.shape, bool)
    for anchor in grid.anchors:
        cells = grid.footprint(anchor)
        reached[cells.slices()] |= grid.weights(anchor, cells) > 0
    return int((~reached).sum())


def told(
    size: Any,
    sampler: Any,
    *,
    shape: tuple[int, ...] = (100, 130),
    boundary: Any = "shift",
    window: Any = None,
    aggregation: Any = None,
) -> tuple[gp.Plan, str]:
    """A plan, and what it says of uncovered cells; "" when it says nothing."""
    patcher = gp.Patcher(
        gp.Rectangular(size, boundary), sampler, window, aggregation or gp.OverlapAdd()
    )
    field = gp.ArrayField(np.ones(shape, "float32"))
    plan = gp.plan(field, patcher, same, MemoryStore())
    lines = [text for name, text in plan.explain().lines if name == "uncovered"]
    return plan, " ".join(lines)


# ---- numbers -------------------------------------------------------------------------------


@examples(150)
@given(jobs())
def test_the_count_is_that_of_plain_numpy(job: Job) -> None:
    grid = job.patcher.grid(job.field.domain)
    assert uncovered_cells(grid) == counted(grid)
    bare = grid.variant(False)
    assert uncovered_cells(bare) == counted(bare)


@examples(60)
@given(jobs())
def test_the_forecast_is_what_the_run_reports(job: Job) -> None:
    options: dict[str, Any] = {"output": job.output, "memory_limit": "1 TiB", "slots": 1}
    plan = gp.plan(job.field, job.patcher, job.operator, MemoryStore(), **options)
    explanation = plan.explain()
    report = plan.run("sync")
    assert explanation.numbers["uncovered"] == report.totals["uncovered"]
    assert bool(report.totals["uncovered"]) == ("in no patch" in str(explanation))


@examples(60)
@given(jobs())
def test_a_finer_output_is_counted_in_its_own_cells(job: Job) -> None:
    grid = job.patcher.grid(job.field.domain)
    assume(grid.window.separable)
    finer = grid.variant(grid.weighted, Fraction(2))
    assert uncovered_cells(finer) == counted(finer)


def test_every_array_and_entry_counts_as_in_the_report() -> None:
    field = gp.ArrayField(np.ones((3, 100, 130), "uint8"))
    patcher = gp.Patcher(
        gp.Rectangular(32),
        gp.RegularStride(48),
        gp.Hann("symmetric"),
        {"mean": gp.OverlapAdd(), "top": gp.Max()},  # the second takes no notice of the window
    )
    plan = gp.plan(field, patcher, lambda x: {"mean": x, "top": x[0]}, MemoryStore())
    found = holes_of(plan)
    assert found is not None
    assert found.total == 4 * 100 * 130
    assert found.cells == plan.run("sync").totals["uncovered"]
    grid = plan.patcher.grid(field.domain)
    assert found.cells == 3 * counted(grid.variant(True)) + counted(grid.variant(False))
    assert f"{found.cells:,} cells are in no patch ({100 * found.share:.1f} %)" in str(
        plan.explain()
    )


def test_a_field_of_any_size_is_counted_at_once() -> None:
    n = 2_000_000
    patcher = gp.Patcher(gp.Rectangular(32), gp.RegularStride(48))
    plan = gp.plan(Endless(n, n), patcher, same, MemoryStore(), slots=1)
    reached = np.arange(n) % 48 < 32
    reached[-32:] = True  # the last patch is moved inward
    assert plan.explain().numbers["uncovered"] == n * n - int(reached.sum()) ** 2


def test_what_would_take_long_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holes, "MOST_PATCHES", 3)
    plan, text = told(16, gp.Random(4))
    assert plan.explain().numbers["uncovered"] is None
    assert text == ""
    _, text = told(16, gp.Random(3))
    assert "in no patch" in text


def test_tables_have_no_cells() -> None:
    pytest.importorskip("pyarrow")
    patcher = gp.Patcher(gp.Rectangular(32), gp.RegularStride(48), None, gp.ByIndex())
    field = gp.ArrayField(np.ones((100, 130)))
    plan = gp.plan(field, patcher, lambda x: {"mean": float(x.mean())}, MemoryStore())
    assert plan.explain().numbers["uncovered"] == 0


# ---- words ---------------------------------------------------------------------------------


def test_whole_coverage_needs_no_word() -> None:
    for boundary in ("shift", "reflect", "pad", "shrink"):
        plan, text = told(32, gp.RegularStride(32), boundary=boundary, window=gp.Hann())
        assert text == ""
        assert plan.explain().numbers["uncovered"] == 0


def test_a_step_longer_than_the_patch() -> None:
    _, text = told(32, gp.RegularStride(48))
    assert text.endswith(
        "step 48 is longer than the patch of 32 along y, x: take a step of at most 32"
    )
    _, text = told((32, 16), gp.RegularStride((32, 20)))
    assert text.endswith(
        "step 20 is longer than the patch of 16 along x: take a step of at most 16"
    )
    # The patch that would reach the end of the axis would begin beyond it.
    _, text = told(4, gp.RegularStride(8), shape=(12, 15), boundary="pad")
    assert "step 8 is longer than the patch of 4 along y, x" in text


def test_an_edge_that_is_dropped() -> None:
    _, text = told(32, gp.RegularStride(24), boundary="drop")
    # y: patches at 0, 24, 48, up to 80 of 100; x: up to 128 of 130
    assert text.split("; ")[1:] == [
        "boundary 'drop' leaves out the last 20 cells along y: 'shift' reaches them",
        "boundary 'drop' leaves out the last 2 cells along x: 'shift' reaches them",
    ]


def test_a_window_that_is_zero_somewhere() -> None:
    _, text = told(32, gp.RegularStride(24), window=gp.Hann("symmetric"))
    assert "the window is zero at the edge of the field along y, x: " in text
    _, text = told(32, gp.RegularStride(31), window=gp.Hann("symmetric"), shape=(94, 94))
    assert "step 31 is longer than what the window leaves of the patch, 30, along y, x" in text
    _, text = told(32, gp.RegularStride(32), window=gp.Custom(holey))
    assert "the window is zero" in text
    # Who does not weigh cells does not care.
    sampler = gp.RegularStride(24)
    _, text = told(32, sampler, window=gp.Hann("symmetric"), aggregation=gp.Max())
    assert text == ""


def test_patches_that_are_strewn() -> None:
    _, text = told(16, gp.Random(5))
    assert "Random puts no patch there: more patches, or larger ones, would reach them" in text


def test_small_shares_are_not_rounded_to_nothing() -> None:
    assert str(holes.Holes(1, 10**9)) == (
        "1 cell is in no patch (less than 0.1 %) and will hold the fill value"
    )
