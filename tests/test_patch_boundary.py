"""The six edge rules: which anchors, what a patch shows beyond the edge, what is covered.

    shift    the last anchor moves inward           everything covered
    reflect  the last patch overflows, mirrored     everything covered
    pad      the last patch overflows, filled       everything covered
    shrink   the last patch is cut                  everything covered
    drop     patches that do not fit are left out   a rest is uncovered, and counted
    raise    an error if any patch does not fit     everything covered, or an error

All of them can be merged and reconstructed; "covered" is for a regular stride with S <= P.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOUNDARIES, WINDOWS, Axis, axes, cuts, examples
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.patch.boundary import lattice, reflected
from geopatch_dask.testing import Cut, assert_same_bytes, read_back

COVERING = ("shift", "reflect", "pad", "shrink", "raise")


@pytest.mark.parametrize(
    ("n", "p", "s", "mode", "anchors"),
    [
        (18, 8, 6, "shift", [0, 6, 10]),
        (18, 8, 6, "reflect", [0, 6, 12]),
        (18, 8, 6, "pad", [0, 6, 12]),
        (18, 8, 6, "shrink", [0, 6, 12]),
        (18, 8, 6, "drop", [0, 6]),
        (20, 8, 6, "raise", [0, 6, 12]),
        (20, 8, 6, "shift", [0, 6, 12]),  # it fits: nothing is moved
        (8, 8, 6, "shift", [0]),
        (5, 8, 6, "pad", [0]),  # a field smaller than a patch
        (5, 8, 6, "reflect", [0]),
        (5, 8, 6, "shrink", [0]),
        (5, 8, 6, "drop", []),
        (20, 4, 7, "shift", [0, 7, 14, 16]),  # gaps, S > P
        (20, 4, 7, "pad", [0, 7, 14]),  # an anchor at 21 would lie outside
        (1, 1, 1, "shift", [0]),
    ],
)
def test_anchors_of_one_axis(n: int, p: int, s: int, mode: Any, anchors: list[int]) -> None:
    assert lattice(n, p, s, mode, "x").tolist() == anchors


def test_what_does_not_fit_is_an_error_that_names_the_remedy() -> None:
    with pytest.raises(gp.BoundaryError, match="up to cell 14; choose boundary='shift'"):
        lattice(18, 8, 6, "raise", "x")
    for mode in ("shift", "raise"):
        with pytest.raises(gp.BoundaryError, match="patch of at most 5 cells there, or boundary="):
            lattice(5, 8, 6, mode, "x")  # type: ignore[arg-type]
    with pytest.raises(gp.OptionError, match="'wrap' is none of shift, reflect"):
        gp.Rectangular((2, 2), "wrap")  # type: ignore[arg-type]


@given(st.integers(-40, 40), st.integers(1, 30), st.integers(1, 12))
@examples(200)
def test_mirrors_agree_with_numpy(start: int, length: int, n: int) -> None:
    """The edge is not repeated, and mirror images repeat for ever: ``np.pad(mode="reflect")``."""
    mirrored = np.pad(np.arange(n), 80, mode="reflect") if n > 1 else np.zeros(161, int)
    assert reflected(start, start + length, n).tolist() == (
        mirrored[start + 80 : start + 80 + length].tolist()
    )


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_what_a_patch_shows_beyond_the_edge(dtype: str) -> None:
    values = np.arange(30).reshape(5, 6).astype(dtype)
    field = gp.ArrayField(values)
    shown = {
        mode: gp.Patcher(gp.Rectangular((4, 4), mode, 7), gp.Explicit([(3, -2)])).patch_at(field, 0)
        for mode in ("reflect", "pad", "shrink")
    }
    mirrored = np.pad(values, 4, mode="reflect")[7:11, 2:6]
    padded = np.pad(values, 4, constant_values=7)[7:11, 2:6]
    np.testing.assert_array_equal(shown["reflect"].data, mirrored)
    np.testing.assert_array_equal(shown["pad"].data, padded)
    np.testing.assert_array_equal(shown["shrink"].data, values[3:, :2])
    for patch in shown.values():
        assert patch.data.dtype == values.dtype
        assert patch.data.flags.c_contiguous
        assert patch.footprint == gp.Box((3, 0), (5, 2))  # what it writes is inside, always


def test_padding_never_counts() -> None:
    """What ``pad`` fills with reaches the operator, and no cell of the output."""
    field = gp.ArrayField(np.ones((5, 5)))
    patcher = gp.Patcher(gp.Rectangular((4, 4), "pad", 1e9), gp.RegularStride((3, 3)), gp.Hann())
    merged = patcher.merge(patcher.split(field), field)
    np.testing.assert_allclose(merged, 1.0, rtol=1e-14)


# ---- a field of ones -----------------------------------------------------------------------------


def ones(cut: list[Axis]) -> gp.ArrayField:
    return gp.ArrayField(np.ones([a.n for a in cut]), dims=tuple(a.dim for a in cut))


def patcher_for(cut: list[Axis], boundary: Any, window: Any, aggregation: Any) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular(tuple(a.size for a in cut), boundary),
        gp.RegularStride(tuple(a.step for a in cut)),
        window,
        aggregation,
    )


def layers(patcher: gp.Patcher, field: gp.Field) -> np.ndarray[Any, Any]:
    """How many patches write each cell with a weight above zero, by walking over all of them."""
    count = np.zeros(field.domain.shape, int)
    for patch in patcher.split(field):
        weights = np.ones(patch.footprint.shape) if patch.weights is None else patch.weights
        count[patch.footprint.slices()] += weights > 0
    return count


def tolerance(layers: int) -> float:
    """How far the blend of K ones may be from one, in float64.

    Numerator and denominator are sums of the same K weights, rounded in another order (the
    denominator is an outer product of 1-D sums): K roundings each, and one for every factor.
    """
    return (2 * layers + 8) * np.finfo(np.float64).eps


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    "window", [*WINDOWS, gp.Hann("symmetric")], ids=lambda w: repr(w).partition(" at ")[0]
)
@given(data=st.data())
@examples(5)
def test_ones_stay_ones_on_covered_cells_and_the_others_are_counted(
    boundary: str, window: Any, data: st.DataObject
) -> None:
    cut = data.draw(axes(boundary, data.draw(st.sampled_from([1, 2, 2, 3]))))
    if window == gp.Hann("symmetric") and min(a.size for a in cut) < 3:
        return
    field = ones(cut)
    patcher = patcher_for(cut, boundary, window, gp.OverlapAdd())
    count = layers(patcher, field)
    layout = data.draw(cuts(field.domain.shape))
    target = MemoryStore()
    plan = gp.plan(field, patcher, np.positive, target, memory_limit="1 TiB", **layout.options())
    if (count == 0).any():
        with pytest.warns(gp.UncoveredWarning, match=f"^{(count == 0).sum():,} cells"):
            report = plan.run("sync")
    else:
        report = plan.run("sync")
    found = read_back(target)
    assert_same_bytes(found, patcher.merge(patcher.split(field), field))
    np.testing.assert_array_equal(np.isnan(found), count == 0)
    covered = found[count > 0]
    assert np.abs(covered - 1).max(initial=0) <= tolerance(int(count.max()))
    assert (covered.astype(np.float32) == 1).all()  # stored as float32 they are ones exactly
    assert report.totals["uncovered"] == report.totals["fill"] == (count == 0).sum()
    assert report.totals["missing"] == 0
    assert report.ok == (count > 0).all()


@given(st.sampled_from(COVERING), st.sampled_from(WINDOWS[:4]), st.data())
@examples(60)
def test_regular_strides_leave_no_gap(boundary: str, window: Any, data: st.DataObject) -> None:
    cut = data.draw(axes(boundary, data.draw(st.sampled_from([1, 2, 3]))))
    if any(a.step > a.size for a in cut):
        return
    field = ones(cut)
    assert layers(patcher_for(cut, boundary, window, gp.OverlapAdd()), field).min() >= 1


def test_dropped_cells_are_fill_and_counted_on_the_report() -> None:
    field = gp.ArrayField(np.ones((18, 18), "uint8"))
    patcher = gp.Patcher(
        gp.Rectangular((8, 8), "drop"), gp.RegularStride((6, 6)), gp.Hann(), gp.Max()
    )
    store = MemoryStore()
    plan = gp.plan(field, patcher, np.positive, store, **Cut((5, 5), (5, 5)).options())
    with pytest.warns(gp.UncoveredWarning, match="128 cells"):
        report = plan.run("threads")
    found = read_back(store)
    assert (found[:14, :14] == 1).all()
    assert (found == 255).sum() == report.totals["uncovered"] == 18 * 18 - 14 * 14
    assert report.complete
    assert not report.ok
