"""Contract 1 for everything beyond one plain array: layers, votes, posteriors, dicts, scales.

The same random jobs as ``test_layout_invariance.py``, with other aggregations put in.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sample_operators as ops
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from oracles import last_minus_first
from strategies import Job, cuts, examples, jobs
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.aggregation.several import members_of, outputs_for
from geopatch_dask.testing import Cut, assert_layout_invariant, assert_same_bytes, read_back

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        warnings.filterwarnings("ignore", ".*streaming_safe")
        yield


def mean_of_layers(layers: Array, n: Array) -> Array:
    """A sum, which numpy adds up in another order where there is one cell only."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # cells that nobody reached
        return np.nanmean(layers, axis=0)


LAYERED = (
    gp.Median(),
    gp.Quantile(0.3),
    gp.Quantile((0.0, 0.25, 1.0)),
    gp.Mode(),
    gp.Learned(last_minus_first),
    gp.Learned(mean_of_layers),
)


def with_aggregation(job: Job, aggregation: Any) -> Job:
    p = job.patcher
    return replace(job, patcher=gp.Patcher(p.geometry, p.sampler, p.window, aggregation))


def in_ram(job: Job) -> dict[str, Array]:
    """Names of arrays and their values through ``patcher.merge``."""
    patches = (p.with_data(job.operator.run([p])[0]) for p in job.patcher.split(job.field))
    found = job.patcher.merge(patches, job.field, job.output)
    if isinstance(found, dict):
        return found
    outputs = outputs_for(members_of(job.patcher.aggregation), job.output)
    return {next(iter(outputs.values())).name: found}


def stored(job: Job, cut: Cut, scheduler: str) -> dict[str, Array]:
    target = MemoryStore()
    plan = gp.plan(
        *(job.field, job.patcher, job.operator, target),
        **cut.options(),
        output=job.output,
        memory_limit="1 TiB",
        slots=2,
    )
    assert plan.run(scheduler).complete
    return {array.name: read_back(target, array.name) for array in plan.arrays}


def check(job: Job, data: st.DataObject) -> None:
    if not job.patcher.n_anchors(job.field):
        return
    reference = in_ram(job)
    for scheduler in ("sync", "threads"):
        found = stored(job, data.draw(cuts(job.cuttable), label=scheduler), scheduler)
        assert set(found) == set(reference)
        for name, values in reference.items():
            assert_same_bytes(found[name], values, f"{name} under {scheduler}")


@given(jobs(), st.sampled_from(LAYERED), st.data())
@examples(30)
def test_layers_of_a_cell(job: Job, aggregation: gp.Aggregation, data: st.DataObject) -> None:
    check(with_aggregation(job, aggregation), data)


def spread(x: Array, operator: gp.Operator, patch: gp.Patch) -> dict[str, Any]:
    """A dict of all kinds: a plain array, classes, probabilities, an estimate and its variance."""
    del x
    value = np.asarray(operator.run([patch])[0], np.float64)
    finite = np.where(np.isfinite(value), value, 0.0)
    first = finite.reshape(-1, *patch.indices.shape)[0] if value.size else finite
    classes = np.where(np.isnan(value), np.nan, np.floor(np.abs(finite)) % 4)
    scores = np.stack([np.abs(first), np.abs(first - 1), np.ones_like(first)])
    return {
        "plain": value,
        "classes": classes,
        "soft": scores,
        "estimate": (value, np.abs(finite) - 0.1),
    }


def spread_patch(patch: gp.Patch, operator: gp.Operator) -> dict[str, Any]:
    return spread(patch.data, operator, patch)


@given(jobs(), st.sampled_from([gp.OverlapAdd(), gp.Max(), gp.Median()]), st.data())
@examples(15)
def test_a_dict_of_outputs(job: Job, plain: gp.Aggregation, data: st.DataObject) -> None:
    members = {
        "plain": plain,
        "classes": gp.HardVote(4),
        "soft": gp.SoftVote(3),
        "estimate": gp.InvVarWeightedMean(),
    }
    operator = gp.Operator(
        partial(spread_patch, operator=job.operator), takes="patch", version="spread"
    )
    # every output names its own leading axes, because their lengths differ
    lead = job.operator.run([job.patcher.patch_at(job.field, 0)])[0] if len_of(job) else None
    if lead is None:
        return
    extra = tuple(f"e{d}" for d in range(np.ndim(lead) - len(job.cuttable)))
    output = {
        "plain": gp.Output(name="plain", dims=extra),
        "classes": gp.Output(name="classes", dims=extra),
        "soft": gp.Output(name="soft", dims=("class",)),
        "estimate": gp.Output(name="estimate", dims=extra),
    }
    changed: Any = replace(with_aggregation(job, members), operator=operator, output=output)
    check(changed, data)


def len_of(job: Job) -> int:
    return job.patcher.n_anchors(job.field)


# ---- scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["shift", "shrink", "pad", "reflect", "drop"])
@pytest.mark.parametrize(("scale", "step"), [(4, 5), (2, 3), ("1/2", 4), ("3/2", 6)])
def test_a_finer_or_coarser_output(boundary: Any, scale: Any, step: int) -> None:
    """Repeating (or taking every n-th of) a block-constant field is exact on every cell."""
    factor = gp.Output(scale=scale).factor
    rng = np.random.default_rng(1)
    values = np.kron(rng.normal(size=(2, 12, 13)), np.ones((1, 2, 2)))[:, :, :24]
    field = gp.ArrayField(values, transform=(10, 0, 500, 0, -10, 900), crs="EPSG:32633")
    patcher = gp.Patcher(
        gp.Rectangular((8, 8), boundary), gp.RegularStride((step, step)), gp.Hann(), gp.OverlapAdd()
    )
    operator = partial(ops.rescaled, num=factor.numerator, den=factor.denominator)
    output = gp.Output(scale=scale)
    reference = patcher.merge(
        (p.with_data(operator(p.data)) for p in patcher.split(field)), field, output
    )
    shape = (2, int(24 * factor), int(24 * factor))
    assert reference.shape == shape
    expected = ops.rescaled(values, factor.numerator, factor.denominator)
    seen = ~np.isnan(reference)
    assert seen.all() or boundary == "drop"
    np.testing.assert_allclose(reference[seen], expected[seen], rtol=1e-12)
    for tile, scheduler in (((8, 8), "sync"), ((16, 24), "threads")):
        target = MemoryStore()
        plan = gp.plan(
            field, patcher, operator, target, output=output, chunks=(8, 8), outer=tile, slots=2
        )
        assert plan.run(scheduler).complete
        assert_same_bytes(read_back(target), reference, str(tile))
        transform = plan.output_domain.transform_at({})
        cell = 10 / float(factor)
        assert transform == (cell, 0, 500, 0, -cell, 900)


def test_coordinates_of_a_finer_grid_are_centres() -> None:
    lat = gp.patch.domain.Coordinate(np.array([3.0, 2.0, 1.0, 0.0]), {"units": "degrees_north"})
    field = gp.XarrayField(
        xr.DataArray(
            np.ones((4, 4)),
            {"lat": lat.values, "lon": [0.0, 1, 2, 3]},
            ("lat", "lon"),
            attrs={},
        )
    )
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)))
    plan = gp.plan(
        field,
        patcher,
        partial(ops.rescaled, num=2, den=1),
        MemoryStore(),
        output=gp.Output(scale=2),
    )
    plan.run("sync")
    found = gp.open(plan.target)
    np.testing.assert_allclose(found.lat, [3.25, 2.75, 2.25, 1.75, 1.25, 0.75, 0.25, -0.25])


# ---- the class axis ------------------------------------------------------------------------------

FEW = [Cut((4, 4), (4, 4)), Cut((12, 8), (6, 8))]


def scored(x: Array) -> Array:
    """Two levels, three classes: (2, h, w) -> (2, 3, h, w)."""
    x = np.nan_to_num(x)
    scores = np.stack([np.abs(x), np.abs(x - x.mean()), np.full_like(x, 0.5)], axis=1)
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def classes_last(x: Array) -> Array:
    """(2, h, w) -> (2, h, w, 3) of a model, turned round as the engine wants it."""
    return np.moveaxis(np.moveaxis(scored(x), 1, -1), -1, 0)


@pytest.mark.parametrize(
    ("axis", "operator", "dims"),
    [
        (1, scored, None),
        (-1, scored, None),
        ("class", scored, ("level", "class")),
        (0, classes_last, None),
        ("class", classes_last, ("class", "level")),
    ],
)
def test_the_class_axis_may_be_any_that_can_be_named(axis: Any, operator: Any, dims: Any) -> None:
    field = gp.ArrayField(np.random.default_rng(7).normal(size=(2, 13, 17)))
    for several in (False, True):
        vote = gp.SoftVote(3, axis)
        aggregation: Any = {"c": vote, "m": gp.Mean()} if several else vote
        patcher = gp.Patcher(gp.Rectangular((6, 6)), gp.RegularStride((4, 5)), None, aggregation)
        output: Any = gp.Output(name="c", dims=dims)
        run = partial(beside, operator=operator) if several else operator
        found = assert_layout_invariant(
            *(field, patcher, run),
            output={"c": output, "m": gp.Output("m", dims=("a", "b"))} if several else output,
            cuts=FEW,
        )
        plain = gp.Patcher(
            gp.Rectangular((6, 6)), gp.RegularStride((4, 5)), None, gp.SoftVote(3, 1)
        )
        expected = plain.merge((p.with_data(scored(p.data)) for p in plain.split(field)), field)
        for part in ("", "_share", "_votes"):
            assert_same_bytes(found[f"c{part}"], expected[f"data{part}"], part)


def beside(x: Array, operator: Any) -> dict[str, Array]:
    return {"c": operator(x), "m": scored(x)}


def test_the_names_of_a_plan_are_those_of_its_output() -> None:
    field = gp.ArrayField(np.ones((2, 8, 8)))
    vote = gp.SoftVote(3, "class")
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)), None, vote)
    output = gp.Output(dims=("level", "class"))
    plan = gp.plan(field, patcher, scored, MemoryStore(), output=output, slots=1)
    assert plan.arrays[0].dims == ("level", "y", "x")
    assert plan.patcher.aggregation == gp.SoftVote(3, 1), "as it is stored, and told apart"
    for wrong in (None, gp.Output(dims=("level", "kind"))):
        with pytest.raises(gp.OptionError, match=r"named 'class'.*: gp.Output\(dims=") as caught:
            gp.plan(field, patcher, scored, MemoryStore(), output=wrong, slots=1)
        assert "\n" not in str(caught.value)
        with pytest.raises(gp.OptionError, match=r"no axis named 'class'"):
            patcher.merge([], field, wrong)


# ---- masked arrays ------------------------------------------------------------------------------


def masked(x: Array) -> Any:
    return np.ma.masked_greater(x, 40.0)


def masked_both(x: Array) -> Any:
    return {"a": masked(x), "b": (masked(x), np.ones_like(x))}


@pytest.mark.parametrize(
    ("aggregation", "operator"),
    [(gp.Mean(), masked), ({"a": gp.Max(), "b": gp.InvVarWeightedMean()}, masked_both)],
)
def test_what_is_masked_is_missing_in_ram_as_in_a_plan(aggregation: Any, operator: Any) -> None:
    cells = np.arange(64.0).reshape(8, 8)
    field = gp.ArrayField(cells)
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((2, 2)), None, aggregation)
    in_ram = patcher.merge((p.with_data(operator(p.data)) for p in patcher.split(field)), field)
    target = MemoryStore()
    plan = gp.plan(field, patcher, operator, target, slots=2)
    plan.run("sync")
    for name, values in (in_ram if isinstance(in_ram, dict) else {"data": in_ram}).items():
        assert_same_bytes(read_back(target, name), values, name)
        if name != "b_var":
            np.testing.assert_array_equal(np.isnan(values), cells > 40)


def interpolated(labels: Any, scale: float, n: int) -> Array:
    """Labels of the middles of ``n`` cells, going on in a straight line beyond the ends."""
    places = (np.arange(n) + 0.5) / scale - 0.5
    known = np.asarray(labels, float)
    low = np.clip(np.floor(places).astype(int), 0, len(known) - 2)
    return np.asarray(known[low] + (places - low) * (known[low + 1] - known[low]))


@pytest.mark.parametrize("scale", [4, "1/2", "3/2"])
def test_stored_coordinates_at_another_scale(scale: Any) -> None:
    """Read from the store: of a raster with its transform, and of axes with labels of their own."""
    factor = gp.Output(scale=scale).factor
    s = float(factor)
    shape = tuple(int(np.ceil(n * s)) for n in (5, 7))
    patcher = gp.Patcher(gp.Rectangular((4, 4), "pad"), gp.RegularStride((4, 4)))
    operator = partial(ops.rescaled, num=factor.numerator, den=factor.denominator)
    values = np.arange(35.0).reshape(5, 7)

    def stored(field: Any) -> Any:
        output = gp.Output(scale=scale)
        options = {"chunks": (3, 3), "outer": (6, 3), "slots": 1}
        plan = gp.plan(field, patcher, operator, MemoryStore(), output=output, **options)
        plan.run("sync")
        return gp.open(plan.target)

    raster = stored(gp.ArrayField(values, transform=(10, 0, 500, 0, -20, 900), crs="EPSG:32633"))
    assert raster.shape == shape
    np.testing.assert_allclose(raster.x, 500 + 10 / s * (np.arange(shape[1]) + 0.5), rtol=1e-14)
    np.testing.assert_allclose(raster.y, 900 - 20 / s * (np.arange(shape[0]) + 0.5), rtol=1e-14)
    told = [float(v) for v in raster.spatial_ref.attrs["GeoTransform"].split()]
    np.testing.assert_allclose(told, [500, 10 / s, 0, 900, 0, -20 / s], rtol=1e-14)
    lat, lon = [50.0, 45.0, 30.0, 20.0, 5.0], np.arange(7) * 0.25 - 180
    labelled = xr.DataArray(values, {"lat": lat, "lon": lon}, ("lat", "lon"))
    found = stored(gp.XarrayField(labelled))
    np.testing.assert_allclose(found.lat, interpolated(lat, s, shape[0]), rtol=1e-14)
    np.testing.assert_allclose(found.lon, interpolated(lon, s, shape[1]), rtol=1e-14)


# ---- a dict of outputs: one group, one record ----------------------------------------------------


def test_each_output_has_its_own_dtype_and_fill_and_all_share_one_record(tmp_path: Any) -> None:
    values = np.random.default_rng(2).random((24, 30))
    values[3:9, 4:20] = np.nan
    patcher = gp.Patcher(
        gp.Rectangular((8, 8)),
        gp.RegularStride((4, 4)),
        aggregation={"a": gp.Mean(), "b": gp.HardVote(3), "c": gp.Max()},
    )
    output = {
        "a": gp.Output(name="mean", dtype="int16", fill_value=-99, attrs={"units": "1"}),
        "b": gp.Output(name="class", fill_value=7),
    }
    plan = gp.plan(
        *(gp.ArrayField(values), patcher, in_classes, tmp_path / "o.zarr"),
        output=output, chunks=8, outer=(16, 16),
    )  # fmt: skip
    report = plan.run("threads")
    assert report.complete
    records = list((tmp_path / "o.zarr.geopatch" / plan.fingerprint[:8] / "tiles").iterdir())
    assert len(records) == plan.n_supertiles == 4, "one record for all outputs of a super-tile"
    stored = {array.name: read_back(plan.target, array.name) for array in plan.arrays}
    assert {name: str(v.dtype) for name, v in stored.items()} == {
        "mean": "int16", "class": "uint8", "class_share": "float32", "class_votes": "int32",
        "c": "float64",
    }  # fmt: skip
    hole = (5, 8)
    assert [stored[name][hole] for name in ("mean", "class", "class_votes")] == [-99, 7, 0]
    assert np.isnan(stored["c"][hole])
    assert gp.open(tmp_path / "o.zarr")["mean"].attrs["units"] == "1"


def in_classes(x: Array) -> dict[str, Array]:
    return {"a": x * 100, "b": np.floor(x * 3), "c": x}


# ---- bad input -----------------------------------------------------------------------------------


def negative(x: Array) -> Array:
    return np.stack([x, -x])


@pytest.mark.parametrize(
    ("aggregation", "operator", "output", "told"),
    [
        (gp.HardVote(2), ops.constant(3), None, "at least 4 classes"),
        (gp.SoftVote(3), ops.constant(1), None, "needs 3 classes"),
        (gp.SoftVote(2, 1), ops.stacked, None, r"before the patch are \(2,\); name the one"),
        (gp.SoftVote(3), ops.stacked, None, r"needs 3 classes there, but .* are \(2,\)"),
        (gp.HardVote(2), ops.constant(-1), None, "got class -1; labels are 0 .. 1"),
        (gp.HardVote(300), ops.constant(1), gp.Output(dtype="uint8"), "uint8 cannot hold 300 cla"),
        (gp.HardVote(256), ops.constant(1), gp.Output(dtype="u1", fill_value=0), "use uint16"),
        (gp.SoftVote(2), negative, None, "negative scores; apply softmax"),
        ({"a": gp.Mean()}, ops.named("b"), None, "output 'a': the operator did not return it"),
        ({"a": gp.Mean()}, ops.named("a", "b"), None, "output 'b': no aggregation"),
        ({"a": "mean"}, ops.named("a"), None, "must map names to aggregations"),
        ("mean", ops.identity, None, "aggregation must be a"),
        ({"a": gp.Mean()}, ops.named("a"), gp.Output(), "one Output per key"),
        ({"a": gp.Mean()}, ops.constant(1), None, "return a dict"),
        (gp.Mean(), ops.named("b"), None, "one aggregation per key"),
        (gp.InvVarWeightedMean(), ops.constant(1), None, r"\(mu, var\)"),
        ({"a": gp.Mean()}, ops.named("a"), {"x": gp.Output()}, "'x' has no aggregation"),
        (gp.Mean(), ops.constant(1), gp.Output(scale=3), "must be"),
        (gp.Mean(), ops.constant(1), gp.Output(scale="1/3"), "multiple of 3"),
        (
            {"a": gp.Mean(), "b": gp.Mean()},
            ops.named("a", "b"),
            {"a": gp.Output(name="a", scale=2)},
            r"share one grid, but have scales a: 2, b: 1; run twice",
        ),
        (gp.Mean(), ops.constant(1), gp.Output(scale="4/3"), "multiple of 3"),
    ],
)
def test_bad_outputs_are_told_in_one_line(
    aggregation: Any, operator: Any, output: Any, told: str, tmp_path: Any
) -> None:
    field = gp.ArrayField(np.ones((16, 16)))

    def run() -> None:
        patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((4, 4)), None, aggregation)
        gp.plan(field, patcher, operator, tmp_path / "out.zarr", output=output).run("sync")

    with pytest.raises(gp.GeopatchError, match=told) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("q", [-0.1, 1.5, float("nan"), (), (0.5, 2)])
def test_a_quantile_outside_0_1_is_refused(q: Any) -> None:
    with pytest.raises(gp.OptionError, match=r"\[0, 1\]"):
        gp.Quantile(q)
