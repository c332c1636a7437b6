"""Records painted onto the grid of super-tiles, against a reference that looks at every cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import failed, grid, plan_of, record

from geopatch_dask.errors import RecordError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.report.survey import STATES, Survey, busy, layout_of, survey
from geopatch_dask.store.records import Record

UNIT = 2


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, list[Record]]:
    """A layout, and records of it and of another one with the same chunks."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 13)) for _ in range(ndim))
    layouts = []
    for _ in range(2):
        tile = tuple(UNIT * draw(st.integers(1, 4)) for _ in range(ndim))
        layouts.append(Layout(("time", "y", "x")[-ndim:], shape, tile, (UNIT,) * ndim))
    records = []
    for layout in layouts:
        for ordinal in range(layout.count):
            kind = draw(st.sampled_from(["none", "none", "done", "empty", "failed", "gaps"]))
            if kind == "failed":
                records.append(failed(layout, ordinal))
            elif kind != "none":
                state = "empty" if kind == "empty" else "done"
                holes = {"failed_patches": 1} if kind == "gaps" else {}
                records.append(record(layout, ordinal, state=state, **holes))
    return layouts[0], records


def reference(layout: Layout, records: list[Record]) -> np.ndarray[Any, Any]:
    """States of super-tiles, cell by cell."""
    done, bad = np.zeros(layout.shape, bool), np.zeros(layout.shape, bool)
    worst = np.zeros(layout.shape, int)
    for one in records:
        where = one.box.slices()
        if one.state == "failed":
            bad[where] = True
            continue
        done[where] = True
        code = "gaps" if one.failed_patches else one.state
        worst[where] = np.maximum(worst[where], STATES.index(code))
    found = []
    for tile in layout:
        where = tile.box.slices()
        if done[where].all():
            found.append(worst[where].max())
        else:
            found.append(STATES.index("failed" if bad[where].any() else "pending"))
    return np.array(found).reshape(layout.counts)


@given(cases())
def test_states_are_those_of_the_cells(case: tuple[Layout, list[Record]]) -> None:
    layout, records = case
    found = survey(layout, records)
    assert (found.states == reference(layout, records)).all()
    assert sum(found.counts.values()) == layout.count
    done = [r.box for r in records if r.state != "failed"]
    open_tiles = np.isin(found.states.ravel(), [STATES.index(s) for s in ("pending", "failed")])
    assert np.flatnonzero(open_tiles).tolist() == layout.unfinished(done)


@given(cases())
def test_no_second_is_lost(case: tuple[Layout, list[Record]]) -> None:
    layout, records = case
    seconds = survey(layout, records).seconds
    spent = sum(busy(r) for r in records if r.state != "failed")
    assert np.nansum(seconds) == pytest.approx(spent)
    assert np.isnan(seconds).all() == (not spent)


@given(cases(), st.integers(1, 5))
def test_a_coarse_cell_keeps_the_worst_state_and_the_mean_time(
    case: tuple[Layout, list[Record]], most: int
) -> None:
    layout, records = case
    whole = survey(layout, records)
    mosaic = whole.mosaic(most)
    grid3 = (1,) * (3 - len(layout.counts)) + layout.counts
    states, seconds = whole.states.reshape(grid3), whole.seconds.reshape(grid3)
    a, b = mosaic.block
    assert mosaic.states.shape == (-(-grid3[1] // a), -(-grid3[2] // b))
    assert max(mosaic.states.shape) <= most
    for (row, column), state in np.ndenumerate(mosaic.states):
        rows, columns = slice(row * a, row * a + a), slice(column * b, column * b + b)
        assert state == states[:, rows, columns].max()
        # Along axes that are not shown first, then over the block.
        piles = seconds[:, rows, columns]
        known = [np.nanmean(p) for p in piles.reshape(len(piles), -1).T if np.isfinite(p).any()]
        if known:
            assert mosaic.seconds[row, column] == pytest.approx(np.mean(known))
        else:
            assert np.isnan(mosaic.seconds[row, column])


def test_boxes_that_are_not_of_this_output_are_passed_over() -> None:
    layout = grid(2, 2)
    strange = [
        record(layout, 0, box=box)
        for box in (
            Box((0,), (4,)),
            Box((-64, 0), (0, 64)),
            Box((0, 0), (640, 64)),
            Box((9, 9), (9, 9)),
        )
    ]
    assert survey(layout, strange).counts["pending"] == 4


def test_a_box_that_covers_half_a_chunk_does_not_cover_it() -> None:
    layout = grid(1, 1)
    half = record(layout, 0, box=Box((0, 0), (64, 63)))
    assert survey(layout, [half]).counts["pending"] == 1


def test_seconds_of_any_size_can_be_drawn() -> None:
    one = record(grid(1, 1), 0)
    for value in (10**400, 1e308):
        assert busy(replace(one, seconds={"read": value, "write": value})) == 1e9


@pytest.mark.parametrize("layout", [None, {}, {"dims": ["y"]}, [], {"dims": 3}])
def test_a_plan_that_does_not_say_how_it_is_cut(layout: object) -> None:
    with pytest.raises(RecordError, match=r"plan\.json does not say how the output is cut"):
        layout_of({"layout": layout})
    assert layout_of(plan_of(grid(3, 4, cut=5))) == grid(3, 4, cut=5)


def test_an_empty_survey_is_all_pending() -> None:
    found = survey(grid(2, 3), [])
    assert isinstance(found, Survey)
    assert found.counts == {"empty": 0, "done": 0, "gaps": 0, "pending": 6, "failed": 0}
    assert np.isnan(found.mosaic().seconds).all()
