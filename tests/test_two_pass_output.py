"""A first pass over the output: what is written, once per patch, and nothing that is missing.

The oracle is plain numpy on the results of patches, one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOUNDARIES, arrays, axes, cuts, examples, samplers
from test_two_pass import STATISTICS, same
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.aggregation import passes
from geopatch_dask.execute.attempt.stage import recorded_context
from geopatch_dask.testing import assert_statistic

Array = npt.NDArray[Any]

VALUES = np.arange(64.0).reshape(8, 8)
FIELD = gp.ArrayField(VALUES)
#: The first three rows are missing.
HOLED = gp.ArrayField(np.where(np.arange(8)[:, None] < 3, np.nan, VALUES))


def patcher(size: Any = (4, 4), step: Any = (2, 2), boundary: Any = "shift") -> gp.Patcher:
    return gp.Patcher(gp.Rectangular(size, boundary), gp.RegularStride(step), None, gp.Mean())


def as_it_is(x: Array, context: Any = None) -> Array:
    return x


def finer(x: Array, context: Any = None) -> Array:
    for axis in range(x.ndim):
        x = x.repeat(2, axis)
    return x


def coarser(x: Array, context: Any = None) -> Array:
    return x[(slice(None, None, 2),) * x.ndim]


def dark(x: Array, context: Any = None) -> Any:
    return np.ma.masked_greater(x, 40.0)


def classes(x: Array, context: Any = None) -> Array:
    return np.where(x > 40, 255, 1).astype("u1")


def found_by(operator: Any, field: Any = FIELD, over: Any = "output", **options: Any) -> Any:
    """What a plan records, which a statistic in RAM has to be equal to."""
    where, statistic = options.pop("patcher", patcher()), options.pop("statistic", gp.MinMax())
    plan = gp.plan(field, where, operator, MemoryStore(), context=statistic, over=over, **options)
    assert plan.run("sync").complete
    recorded, problem = recorded_context(plan)
    assert recorded is not None
    assert not problem
    call = operator if over == "output" else None
    output = options.get("output")
    assert same(recorded, where.reduce(field, statistic, over, call, output))
    return recorded


def test_a_stored_plan_knows_what_is_missing_and_how_many_bands_there_are(tmp_path: Path) -> None:
    output = gp.Output(missing=255)
    plan = gp.plan(
        *(FIELD, patcher(), classes, tmp_path / "out.zarr"),
        context=gp.MinMax(), over="output", output=output,
    )  # fmt: skip
    stored = gp.Plan.from_json(plan.to_json(), field=FIELD, operator=plan.operator)
    assert stored.context == plan.context
    assert stored.context is not None
    assert (stored.context.missing, stored.context.shape) == (255, (1, 16))


# ---- what is missing -----------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["output", "operator"])
def test_masked_cells_do_not_count(over: str) -> None:
    masked = gp.Operator(as_it_is, missing="mask", fill=-9999.0)
    chosen: Any = over if over == "output" else masked
    found = found_by(masked if over == "output" else as_it_is, HOLED, chosen)
    # of rows 3 to 7, rows 3 to 5 are in two patches; columns are in 3 patches of 4
    assert (found["min"][0], found["max"][0], found["n"][0]) == (24.0, 63.0, 96)


def test_cells_under_a_mask_do_not_count() -> None:
    assert found_by(dark)["max"][0] == 40.0


def test_what_the_output_calls_missing_does_not_count() -> None:
    found = found_by(classes, output=gp.Output(missing=255))
    assert found["max"][0] == 1.0
    assert found["n"][0] < 144
    assert found_by(classes)["max"][0] == 255.0


def test_the_operator_of_a_patch_masks_too() -> None:
    masked = gp.Operator(lambda x: x, missing="mask", fill=-9999.0)
    found = gp.per_patch(gp.MinMax(), "min", masked)
    patch = patcher().patch_at(HOLED, 0)
    assert found.run([patch], scale=None)[0].item() == 24.0


@pytest.mark.parametrize("boundary", ["pad", "reflect"])
def test_cells_beyond_the_field_do_not_count(boundary: str) -> None:
    field = gp.ArrayField(np.full((6, 6), 3.0))
    where = gp.Patcher(
        gp.Rectangular((4, 4), boundary), gp.Explicit([(-2, -2), (3, 3)]), None, gp.Mean()
    )
    found = found_by(as_it_is, field, patcher=where)
    assert (found["min"][0], found["n"][0]) == (3.0, 4 + 9)
    each = gp.per_patch(gp.MeanStd(), "n")
    assert [each.run([p], scale=None)[0].item() for p in where.split(field)] == [4, 9]


# ---- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize(("operator", "scale"), [(finer, 2), (coarser, "1/2")])
def test_results_at_another_scale(ndim: int, operator: Any, scale: Any) -> None:
    values = VALUES[0] if ndim == 1 else VALUES
    field = gp.ArrayField(values, dims=("y", "x")[-ndim:])
    where = patcher((4,) * ndim, (2,) * ndim)
    found = found_by(
        operator, field, patcher=where, statistic=gp.MeanStd(), output=gp.Output(scale=scale)
    )
    seen = np.concatenate([operator(p.data).ravel() for p in where.split(field)])
    assert found["n"].tolist() == [seen.size], "one band of cells"
    np.testing.assert_allclose(found["mean"], [seen.mean()], rtol=1e-13)


@pytest.mark.parametrize("seed", [0, 1])
def test_keys_at_another_scale_are_those_of_its_cells(seed: int) -> None:
    """A reservoir as large as the output holds every cell; keys that repeat would lose some."""
    field = gp.ArrayField(np.random.default_rng(seed).normal(size=(8, 8)))
    found = found_by(finer, field, statistic=gp.Reservoir(9 * 64), output=gp.Output(scale=2))
    seen = np.concatenate([finer(p.data).ravel() for p in patcher().split(field)])
    np.testing.assert_array_equal(np.sort(found["values"][0]), np.sort(seen))


def test_another_operator_keeps_the_scale_of_the_field() -> None:
    found = found_by(finer, over=gp.Operator(np.negative), output=gp.Output(scale=2))
    assert (found["min"][0], found["n"][0]) == (-63.0, 144)


@pytest.mark.parametrize("statistic", [gp.MeanStd(), gp.MinMax(), gp.Covariance()], ids=repr)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_every_patch_has_as_many_bands(statistic: Any, before: int, after: int) -> None:
    def uneven(x: Array, context: Any = None) -> Array:
        return x[None].repeat(before if x[0, 0] < 20 else after, 0)

    with pytest.raises(gp.OperatorError, match=f"{after} bands for patch 5 .* and {before} before"):
        patcher().reduce(FIELD, statistic, "output", uneven)


def test_bands_may_not_change_between_tasks_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches 0, 4 and 8 are tried; only patch 5 is another, in a task of its own."""
    monkeypatch.setattr(passes, "PATCHES_PER_LEAF", 1)

    def uneven(x: Array) -> Array:
        return np.zeros(2 if x[0, 0] == 20 else 1)

    plan = gp.plan(
        *(FIELD, patcher(), as_it_is, MemoryStore()), context=gp.MinMax(), over=uneven, slots=2
    )
    with pytest.raises(gp.RunIncomplete, match="2 bands for patch 5"):
        plan.run("sync")


def test_a_result_without_numbers_is_refused() -> None:
    with pytest.raises(gp.OperatorError, match="return real numbers"):
        patcher().reduce(FIELD, gp.MinMax(), "output", lambda x: np.array(["a", "b"]))


# ---- no patch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: type(s).__name__)
def test_no_patch(statistic: gp.Statistic, scheduler: Any) -> None:
    field = gp.ArrayField(np.ones((5, 6)))
    where = patcher((8, 8), (8, 8), "drop")
    plan = gp.plan(field, where, as_it_is, MemoryStore(), context=statistic, over="output")
    with pytest.warns(gp.UncoveredWarning):
        assert plan.run(scheduler).complete
    recorded, _ = recorded_context(plan)
    assert recorded is not None
    assert same(recorded, where.reduce(field, statistic, "output", as_it_is))
    assert same(recorded, assert_statistic(field, where, statistic, np.sqrt))


# ---- in RAM, as in a plan ------------------------------------------------------------------------


class Shift:
    """What a factory builds."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: Array, context: Any = None) -> Array:
        return x + (self.by if context is None else context["mean"][0])


def scaled_patch(patch: gp.Patch, factor: float, context: Any = None) -> Array:
    return patch.data * factor + patch.ordinal


@pytest.mark.parametrize(
    "operator",
    [
        gp.Operator(Shift, factory=True, options={"by": 3.0}),
        gp.Operator(Shift, factory=True, options={"by": 3.0}, batch=4),
        gp.Operator(scaled_patch, takes="patch", options={"factor": 0.5}),
        gp.Operator(as_it_is, missing="mask", fill=7.0),
        "test_two_pass_output:as_it_is",
        as_it_is,
    ],
    ids=["factory", "batch", "patch", "mask", "name", "callable"],
)
@pytest.mark.parametrize("over", ["field", "output", "operator"])
def test_any_operator_has_the_same_numbers_in_ram(operator: Any, over: Any) -> None:
    chosen = gp.Operator(np.negative, missing="mask") if over == "operator" else over
    target = MemoryStore()
    gp.plan(
        *(HOLED, patcher(), operator, target), context=gp.MeanStd(), over=chosen, chunks=5, outer=5
    ).run("sync")
    merged = patcher().two_pass(HOLED, operator, gp.MeanStd(), chosen)
    assert gp.open(target).values.tobytes() == merged.tobytes()


def test_two_passes_in_ram_at_another_scale() -> None:
    target, output = MemoryStore(), gp.Output(scale=2, missing=5.0)
    gp.plan(
        *(FIELD, patcher(), finer, target), context=gp.MeanStd(), over="output", output=output
    ).run("sync")
    merged = patcher().two_pass(FIELD, finer, gp.MeanStd(), "output", output)
    assert gp.open(target).values.tobytes() == merged.tobytes()


# ---- random layouts ------------------------------------------------------------------------------

ORACLES: dict[type, Callable[[Array, dict[str, Any]], None]] = {}


def says(kind: type) -> Callable[[Any], Any]:
    def keep(check: Any) -> Any:
        ORACLES[kind] = check
        return check

    return keep


@says(gp.MeanStd)
def moments(row: Array, found: dict[str, Any]) -> None:
    assert found["n"] == row.size
    real = row[np.isfinite(row)]
    if row.size and real.size == row.size:
        near = {"rtol": 1e-9, "atol": 1e-9 * np.abs(row).max()}
        np.testing.assert_allclose(found["mean"], row.mean(), **near)


@says(gp.MinMax)
def extremes(row: Array, found: dict[str, Any]) -> None:
    assert found["n"] == row.size
    if row.size:
        assert (found["min"], found["max"]) == (row.min(), row.max())


@says(gp.Histogram)
def bins(row: Array, found: dict[str, Any]) -> None:
    inside = row[(row >= -2) & (row <= 3)]
    edges = (-2.0, -1.0, 0.0, 0.5, 3.0)
    np.testing.assert_array_equal(found["counts"], np.histogram(inside, edges)[0])
    assert (found["below"], found["above"]) == ((row < -2).sum(), (row > 3).sum())


@says(gp.ApproxQuantile)
@says(gp.Quantiles)
def ranks(row: Array, found: dict[str, Any]) -> None:
    assert found["n"] == row.size


@says(gp.ApproxCardinality)
def different(row: Array, found: dict[str, Any]) -> None:
    exact = np.unique(row).size
    assert abs(found["count"] - exact) <= max(2, 0.05 * exact)


@says(gp.Reservoir)
def sample(row: Array, found: dict[str, Any]) -> None:
    kept = np.asarray(found["values"])
    kept = kept[~np.isnan(kept)]
    assert kept.size == min(20, row.size)
    assert np.isin(kept, row).all()


def check_oracle(statistic: gp.Statistic, flat: Array, found: dict[str, Any]) -> None:
    """Band by band against plain numpy, on the values that count."""
    check = ORACLES.get(type(statistic))
    for band, row in enumerate(flat.astype(np.float64)):
        if check is not None:
            of_band = {k: v[band] for k, v in found.items() if np.shape(v)[:1] == (len(flat),)}
            check(row[~np.isnan(row)], of_band)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[gp.ArrayField, gp.Patcher, int]:
    boundary = draw(st.sampled_from(BOUNDARIES))
    ndim = draw(st.sampled_from([1, 2]))
    cut = draw(axes(boundary, ndim))
    dims = tuple(a.dim for a in cut)
    shape = tuple(a.n for a in cut)
    if riding := draw(st.integers(0, 1)):
        dims, shape = ("r", *dims), (draw(st.integers(1, 3)), *shape)
    places = tuple(range(riding, len(dims)))
    values, nodata = draw(arrays(shape, places))
    where = gp.Patcher(
        gp.Rectangular(tuple(a.size for a in cut), boundary),
        draw(samplers(boundary, cut, False)),
        None,
        gp.Mean(),
    )
    return gp.ArrayField(values, dims=dims, nodata=nodata), where, ndim


def results(field: Any, where: gp.Patcher, ndim: int, double: bool) -> Array:
    """What all patches say of cells of the field: (bands, n)."""
    pieces = []
    for patch in where.split(field):
        data = patch.data
        limits = zip(patch.indices.start, field.domain.shape[-ndim:], strict=True)
        data = data[(..., *(slice(max(-a, 0), n - a) for a, n in limits))]
        for axis in range(-ndim, 0) if double else ():
            data = data.repeat(2, axis)
        pieces.append(data.reshape(-1, int(np.prod(data.shape[-ndim:]))))
    return np.concatenate(pieces, axis=1)


@pytest.mark.filterwarnings("ignore::geopatch_dask.UncoveredWarning")
@given(st.data())
@examples(25)
def test_statistics_of_random_layouts(data: st.DataObject) -> None:
    field, where, ndim = data.draw(layouts())
    statistic = data.draw(st.sampled_from(STATISTICS))
    over = data.draw(st.sampled_from(["field", "output"]))
    scale = data.draw(st.sampled_from([1, 2]))
    operator = Twice(ndim) if scale == 2 else as_it_is
    output = gp.Output(scale=scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "BLOCK_EDGE", data.draw(st.integers(2, 9)))
        patch.setattr(passes, "PATCHES_PER_LEAF", data.draw(st.integers(1, 5)))
        expected = where.reduce(field, statistic, over, operator, output)
        shape = tuple(scale * n for n in where.grid(field.domain).shape)
        plan = gp.plan(
            *(field, where, operator, MemoryStore()),
            **data.draw(cuts(shape)).options(),
            context=statistic, over=over, slots=data.draw(st.integers(1, 7)), output=output,
            memory_limit="64 GiB",
        )  # fmt: skip
        plan.run("sync")
    recorded, _ = recorded_context(plan)
    assert recorded is not None
    assert same(recorded, expected)
    if over == "field":
        flat = field.read(gp.Box.of_shape(field.domain.shape)).reshape(
            -1, int(np.prod(field.domain.shape[-ndim:]))
        )
    else:
        flat = results(field, where, ndim, scale == 2)
    check_oracle(statistic, flat, expected)


class Twice:
    """Two cells of each, along the patch axes."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def __call__(self, x: Array, context: Any = None) -> Array:
        for axis in range(-self.ndim, 0):
            x = x.repeat(2, axis)
        return x
