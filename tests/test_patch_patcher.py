"""Split and merge in RAM: the reference that every distributed run must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from sample_fields import Watched
from strategies import Job, examples, jobs

import geopatch_dask as gp
from geopatch_dask.patch.domain import Coordinate

UTM = "EPSG:32633"


@given(jobs())
@examples(80)
def test_a_patch_is_the_same_however_it_is_asked_for(job: Job) -> None:
    """By iteration, by ordinal, by anchor; and it is a real array of the promised shape."""
    field, patcher = job.field, job.patcher
    for ordinal, patch in enumerate(patcher.split(field)):
        again = patcher.patch_at(field, ordinal)
        by_anchor = patcher.patch_at(field, patch.anchor)  # of several, the first
        assert (
            (again.ordinal, again.anchor)
            == (patch.ordinal, patch.anchor)
            == (ordinal, again.anchor)
        )
        assert by_anchor.ordinal <= ordinal
        for other in (again, by_anchor):
            assert other.data.tobytes() == patch.data.tobytes()
            assert (other.indices, other.footprint) == (patch.indices, patch.footprint)
        assert type(patch.data) is np.ndarray
        assert patch.data.flags.c_contiguous
        assert patch.data.dtype == field.dtype
        riding = [field.domain.size(d) for d in patch.dims[: -patch.indices.ndim]]
        assert patch.data.shape == (*riding, *patch.indices.shape)
        if patch.weights is not None:
            assert patch.weights.shape == patch.footprint.shape


def test_split_reads_a_patch_when_it_is_asked_for() -> None:
    field = Watched(np.zeros((40, 40)))
    patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((4, 4)))
    assert patcher.n_anchors(field) == 81
    assert patcher.anchors(field)[80] == (32, 32)
    patches = patcher.split(field)
    assert field.boxes == []
    next(patches)
    next(patches)
    assert field.boxes == [gp.Box((0, 0), (8, 8)), gp.Box((0, 4), (8, 12))]


def test_patches_are_the_callers_to_change() -> None:
    values = np.zeros((4, 8))
    field = gp.ArrayField(values)
    patcher = gp.Patcher(gp.Rectangular((4, 8)), gp.RegularStride((4, 8)))
    patch = patcher.patch_at(field, 0)
    patch.data[...] = 7
    assert (values == 0).all()
    assert (patcher.patch_at(field, 0).data == 0).all()


def test_places_that_do_not_exist() -> None:
    field = gp.ArrayField(np.zeros((16, 16)))
    patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((4, 4)))
    with pytest.raises(gp.OptionError, match=r"no patch has its anchor at \(1, 0\)"):
        patcher.patch_at(field, (1, 0))
    with pytest.raises(gp.OptionError, match=r"anchor at \(0,\): the patch axes are y, x"):
        patcher.patch_at(field, (0,))
    with pytest.raises(IndexError, match="ordinal 9 of 9 anchors"):
        patcher.patch_at(field, 9)
    assert patcher.patch_at(field, -1).ordinal == 8


# ---- where a patch is ----------------------------------------------------------------------------


def test_patches_of_a_raster_know_where_they_are() -> None:
    field = gp.ArrayField(
        np.zeros((3, 20, 30)), transform=(10, 0, 500_000, 0, -10, 4_000_000), crs=UTM
    )
    patch = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((6, 6))).patch_at(field, (6, 12))
    assert patch.dims == ("band", "y", "x")
    assert patch.patch_dims == ("y", "x")
    assert patch.transform == (10, 0, 500_120, 0, -10, 3_999_940)
    np.testing.assert_array_equal(patch.coords["x"], 500_125 + 10 * np.arange(8))
    np.testing.assert_array_equal(patch.coords["y"], 3_999_935 - 10 * np.arange(8))
    assert patch.crs is not None
    assert "WGS 84 / UTM zone 33N" in patch.crs


@pytest.mark.parametrize("boundary", ["pad", "reflect", "shrink"])
def test_patches_that_overflow_have_labels_beyond_the_edge(boundary: Any) -> None:
    """A mirrored cell has the place where it is shown, not the one it was copied from."""
    field = gp.ArrayField(np.zeros((20, 30)), transform=(10, 0, 1000, 0, -10, 5000), crs=UTM)
    patcher = gp.Patcher(gp.Rectangular((8, 8), boundary), gp.Explicit([(-3, 26)]))
    patch = patcher.patch_at(field, 0)
    rows, columns = np.arange(-3, 5), np.arange(26, 34)
    if boundary == "shrink":
        rows, columns = rows[3:], columns[:4]
    np.testing.assert_array_equal(patch.coords["y"], 4995 - 10 * rows)
    np.testing.assert_array_equal(patch.coords["x"], 1005 + 10 * columns)
    assert patch.transform == (10, 0, 1000 + 260, 0, -10, 5000 - 10 * rows[0])


def test_patches_of_a_grid_have_its_labels() -> None:
    lat = np.linspace(60.0, 30.0, 13)
    time = np.array(["2020-01-01", "2020-02-01"], "datetime64[ns]")
    field = gp.ArrayField(
        np.zeros((2, 13, 4)),
        dims=("time", "lat", "lon"),
        coords={"lat": Coordinate(lat, {"units": "degrees_north"}), "time": time},
    )
    patcher = gp.Patcher(gp.Rectangular((6, 4), "pad"), gp.RegularStride((5, 4)))
    patch = patcher.patch_at(field, (10, 0))
    assert patch.transform is None
    assert "lon" not in patch.coords  # it has no labels in the field
    np.testing.assert_array_equal(patch.coords["time"], time)
    np.testing.assert_allclose(patch.coords["lat"], 60 - 2.5 * np.arange(10, 16))
    inside = patcher.patch_at(field, (0, 0))
    np.testing.assert_array_equal(inside.coords["lat"], lat[:6])


def test_any_axes_may_be_patch_axes() -> None:
    """The others ride along, and come first."""
    values = np.arange(2 * 9 * 3 * 8).reshape(2, 9, 3, 8)
    field = gp.ArrayField(values, dims=("time", "y", "level", "x"))
    patcher = gp.Patcher(gp.Rectangular({"y": 4, "x": 5}), gp.RegularStride({"x": 3, "y": 4}))
    patch = patcher.patch_at(field, (5, 3))
    assert patch.dims == ("time", "level", "y", "x")
    np.testing.assert_array_equal(patch.data, values[:, 5:9, :, 3:8].transpose(0, 2, 1, 3))
    merged = patcher.merge(patcher.split(field), field)
    np.testing.assert_allclose(merged, values.transpose(0, 2, 1, 3))


# ---- merge ---------------------------------------------------------------------------------------


def test_a_few_patches_may_be_merged() -> None:
    """What the others would have written is missing, not zero."""
    field = gp.ArrayField(np.arange(144.0).reshape(12, 12))
    patcher = gp.Patcher(gp.Rectangular((6, 6)), gp.RegularStride((3, 3)), gp.Hann())
    some = [patcher.patch_at(field, i) for i in (0, 4)]
    merged = patcher.merge(iter(some), field.domain)
    covered = np.zeros((12, 12), bool)
    for patch in some:
        covered[patch.footprint.slices()] = True
    np.testing.assert_allclose(merged[covered], np.arange(144.0).reshape(12, 12)[covered])
    assert np.isnan(merged[~covered]).all()


def test_a_patch_given_twice_counts_twice() -> None:
    field = gp.ArrayField(np.arange(16.0).reshape(4, 4))
    patcher = gp.Patcher(
        gp.Rectangular((4, 4)), gp.RegularStride((4, 4)), gp.Hann(), gp.OverlapAdd()
    )
    patch = patcher.patch_at(field, 0)
    twice = patcher.merge([patch, patch.with_data(patch.data + 2)], field)
    np.testing.assert_allclose(twice, field.read(field.domain.box) + 1)


def test_merging_nothing_gives_fill() -> None:
    field = gp.ArrayField(np.ones((2, 4, 4)))
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)))
    nothing = patcher.merge([], field)
    assert nothing.shape == (2, 4, 4)
    assert np.isnan(nothing).all()


def test_results_that_do_not_fit_are_errors() -> None:
    field = gp.ArrayField(np.ones((8, 8), "float32"))
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)))
    patches = list(patcher.split(field))
    with pytest.raises(gp.OperatorError, match=r"patch 1 at \(0, 4\) has shape \(3, 4\)"):
        patcher.merge([patches[0], patches[1].with_data(np.ones((3, 4), "f4"))], field)
    with pytest.raises(gp.OperatorError, match=r"dtype float64, the first had float32.*astype"):
        patcher.merge([patches[0], patches[1].with_data(np.ones((4, 4)))], field)


def test_axes_of_the_wrong_kind() -> None:
    size, step = gp.Rectangular((4, 4)), gp.RegularStride((4, 4))
    with pytest.raises(gp.OptionError, match="geometry must be a Rectangular"):
        gp.Patcher((4, 4), step)  # type: ignore[arg-type]
    with pytest.raises(gp.OptionError, match="sampler must be a Sampler"):
        gp.Patcher(size, (4, 4))  # type: ignore[arg-type]
    with pytest.raises(gp.OptionError, match="window must be a Window"):
        gp.Patcher(size, step, np.hanning)  # type: ignore[arg-type]
    with pytest.raises(gp.OptionError, match="aggregation must be"):
        gp.Patcher(size, step, gp.Hann(), "mean")  # type: ignore[arg-type]
    with pytest.raises(gp.OptionError, match="aggregation must be an Aggregation"):
        gp.Patcher(size, step, gp.Hann(), gp.Hann())  # type: ignore[arg-type]


@pytest.mark.parametrize("statistic", [gp.ApproxQuantile(), gp.MeanStd()])
def test_a_statistic_is_no_aggregation(statistic: Any) -> None:
    """It would be found out by the plan, or by a merge in RAM, each in words of its own."""
    told = rf"{type(statistic).__name__} is a statistic.*context=.*patcher.reduce.*per_block"
    for aggregation in (statistic, {"a": gp.Mean(), "b": statistic}):
        with pytest.raises(gp.OptionError, match=told) as caught:
            gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)), None, aggregation)
        assert "\n" not in str(caught.value)


BAD_CELLS = [0, -3, 1.5, float("nan"), float("inf"), True, "4", None, np.float64(4)]


@pytest.mark.parametrize("bad", BAD_CELLS, ids=repr)
def test_sizes_and_steps_are_whole_positive_cells(bad: Any) -> None:
    makers = [gp.Rectangular, gp.RegularStride, gp.JitteredStride]
    for make in makers:
        for value in (bad, (4, bad), {"x": bad}):
            with pytest.raises(gp.OptionError, match=r"whole cells, at least 1; got .*"):
                make(value)
    for make in (gp.Random, lambda n: gp.PoissonDisk(2.0, n)):
        with pytest.raises(gp.OptionError, match="whole cells"):
            make(bad)


@pytest.mark.parametrize("empty", [(), {}, []])
def test_no_axis_at_all(empty: Any) -> None:
    with pytest.raises(gp.OptionError, match=r"names no axis|is empty"):
        gp.Rectangular(empty)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), float("inf")])
def test_jitter_is_a_share(bad: float) -> None:
    with pytest.raises(gp.OptionError, match=r"jitter must lie in \[0, 1\]"):
        gp.JitteredStride((4, 4), bad)


@pytest.mark.parametrize("bad", [0, 0.5, -1, float("nan"), float("inf")])
def test_poisson_distances_are_at_least_a_cell(bad: float) -> None:
    with pytest.raises(gp.OptionError, match="min_dist must be at least 1 cell"):
        gp.PoissonDisk(bad)


@pytest.mark.parametrize("bad", [1.5, float("nan"), None, "1", True])
def test_seeds_are_whole_numbers(bad: Any) -> None:
    for make in (
        lambda: gp.Random(3, bad),
        lambda: gp.JitteredStride((4, 4), 0.5, bad),
        lambda: gp.PoissonDisk(4.0, 30, bad),
    ):
        with pytest.raises(gp.OptionError, match="seed"):
            make()


@pytest.mark.parametrize("bad", [[], [(0.5, 1)], [(1, 2), (3,)], [(True, False)], "ab", [1, 2]])
def test_explicit_positions_are_tuples_of_whole_cells(bad: Any) -> None:
    with pytest.raises(gp.OptionError, match="list of tuples of whole cells"):
        gp.Explicit(bad)


def test_axes_that_the_field_does_not_have() -> None:
    field = gp.ArrayField(np.zeros((8, 8)))
    step = gp.RegularStride((4, 4))
    with pytest.raises(gp.OptionError, match="names axis 'lat'; the field has y, x"):
        gp.Patcher(gp.Rectangular({"lat": 4}), step).anchors(field)
    with pytest.raises(gp.OptionError, match="has 3 numbers, the field 2 axes"):
        gp.Patcher(gp.Rectangular((2, 4, 4)), step).anchors(field)
    with pytest.raises(gp.OptionError, match="step names axes y, x, the patch x"):
        gp.Patcher(gp.Rectangular({"x": 4}), step).anchors(field)


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 300), ("uint8", -1), ("int16", np.nan)])
def test_pad_values_fit_the_field(dtype: str, value: float) -> None:
    """Wrapping 300 to 44 would be a value that nobody asked for."""
    field = gp.ArrayField(np.ones((5, 5), dtype))
    patcher = gp.Patcher(gp.Rectangular((4, 4), "pad", value), gp.RegularStride((4, 4)))
    with pytest.raises(gp.OptionError, match="pad_value"):
        list(patcher.split(field))
