"""Every aggregation against plain numpy on stacked patches, for random jobs and for hard values.

The oracle (``oracles.py``) lays all patches over one another and reduces along the first axis.
Integers and extremes must agree exactly.  Sums of floats may differ by the order of additions, and
by the analytic normaliser: both are bounded by a few roundings per layer, relative to the largest
magnitudes involved.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import AGGREGATIONS, ESTIMATES, Job, estimating, examples, jobs

import geopatch_dask as gp
from geopatch_dask.aggregation.output import settle
from geopatch_dask.testing import assert_layout_invariant, merged

Array = npt.NDArray[Any]


@given(jobs())
@examples(200)
def test_every_aggregation_is_what_numpy_says(job: Job) -> None:
    if not job.patcher.n_anchors(job.field):
        return
    found = merged(job.field, job.patcher, job.operator, job.output)
    stack = oracles.stack(job.field, job.patcher, job.operator, job.output.missing)
    values, answered = oracles.answer(job.patcher.aggregation, stack)
    fill = job.output.fill_value
    expected, _ = settle(values, answered, found.dtype, hole(found.dtype) if fill is None else fill)
    if found.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected)
        return
    largest = np.abs(np.where(np.isfinite(stack.values), stack.values, 0)).max(initial=0)
    bound = (4 * len(stack.values) + 8) * np.finfo(np.float64).eps * float(largest) * 100
    if isinstance(job.patcher.aggregation, gp.Variance):
        bound = max(bound, 1e-12 * float(largest) ** 2)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(
            found, expected, rtol=1e-5 if found.itemsize < 8 else 1e-9, atol=bound
        )


@given(jobs(), st.sampled_from(ESTIMATES))
@examples(150)
def test_votes_posteriors_and_layers_are_what_numpy_says(
    job: Job, aggregation: gp.Aggregation
) -> None:
    """Windows, riding axes, missing cells and infinities; sums in the order of ordinals."""
    if not job.patcher.n_anchors(job.field):
        return
    job = estimating(job, aggregation)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*streaming_safe")
        found = merged(job.field, job.patcher, job.operator, job.output)
    stack = oracles.stack(job.field, job.patcher, job.operator, job.output.missing)
    expected = oracles.answers(aggregation, stack)
    arrays = found if isinstance(found, dict) else {"data": found}
    assert sorted(arrays) == sorted(f"data_{part}" if part else "data" for part in expected)
    main = next(iter(arrays.values())).dtype
    for part, (values, answered) in expected.items():
        array = arrays[f"data_{part}" if part else "data"]
        fill = job.output.fill_value if array.dtype == main else None
        fill = hole(array.dtype) if fill is None else fill
        settled, _ = settle(values, answered, array.dtype, fill)
        if part in ("mu", "var", "share"):
            np.testing.assert_allclose(array, settled, rtol=1e-12 if array.itemsize == 8 else 1e-6)
        else:
            np.testing.assert_array_equal(array, settled, err_msg=part)


def hole(dtype: np.dtype[Any]) -> float | int:
    if dtype.kind == "f":
        return float("nan")
    return int(np.iinfo(dtype).max if dtype.kind == "u" else np.iinfo(dtype).min)


# ---- hard values ---------------------------------------------------------------------------------


def layered(layers: Any, aggregation: gp.Aggregation, of: Any = None, **output: Any) -> Array:
    """Aggregate layers that lie exactly over one another: one patch per layer, in this order."""
    array = np.asarray(layers, of)
    field = gp.ArrayField(np.zeros(array.shape[1:]), dims=("x",) if array.ndim == 2 else None)
    cells = array.shape[1:]
    patcher = gp.Patcher(
        gp.Rectangular(cells), gp.Explicit([(0,) * len(cells)] * len(array)), None, aggregation
    )
    patches = zip(patcher.split(field), array, strict=True)
    return patcher.merge((p.with_data(a) for p, a in patches), field, gp.Output(**output))


def test_variance_keeps_its_digits() -> None:
    """Mean 1e8, standard deviation 1e-3: a difference of sums of squares has no digit left.

    The running mean is rounded to 1e-8, which is 1e-5 of a standard deviation.
    """
    layers = 1e8 + 1e-3 * np.random.default_rng(0).standard_normal((200, 50))
    expected = np.var(layers - 1e8, axis=0, ddof=1)
    np.testing.assert_allclose(layered(layers, gp.Variance()), expected, rtol=1e-4)


def test_variance_needs_two_values() -> None:
    nan = np.nan
    found = layered([[1.0, 1.0, nan, 5.0], [3.0, nan, nan, 5.0]], gp.Variance())
    np.testing.assert_array_equal(found, [2.0, nan, nan, 0.0])
    ints = layered([[1, 7], [4, 7]], gp.Variance(), "int16")
    assert ints.dtype == np.float32
    np.testing.assert_array_equal(ints, [4.5, 0.0])


@pytest.mark.parametrize("aggregation", [gp.Max(), gp.Min(), gp.Sum(), gp.Mean(), gp.OverlapAdd()])
def test_negative_zero_is_zero(aggregation: gp.Aggregation) -> None:
    """Else the sign of a zero would depend on which patch came first."""
    for layers in ([[-0.0]], [[-0.0], [0.0]], [[0.0], [-0.0]], [[-0.0], [-0.0]]):
        found = layered(layers, aggregation)
        assert found[0] == 0
        assert not np.signbit(found[0])


def test_infinities() -> None:
    inf, nan = np.inf, np.nan
    layers = [[inf, -inf, inf, 1.0, nan], [2.0, -inf, -inf, inf, inf]]
    for aggregation, expected in (
        (gp.Sum(), [inf, -inf, nan, inf, inf]),
        (gp.Mean(), [inf, -inf, nan, inf, inf]),
        (gp.OverlapAdd(), [inf, -inf, nan, inf, inf]),
        (gp.Max(), [inf, -inf, inf, inf, inf]),
        (gp.Min(), [2.0, -inf, -inf, 1.0, inf]),
        (gp.Range(), [inf, nan, inf, inf, nan]),
        (gp.Any(), [1, 1, 1, 1, 1]),
        (gp.Count(), [2, 2, 2, 2, 1]),
    ):
        np.testing.assert_array_equal(layered(layers, aggregation), expected)


def test_an_infinite_value_under_a_weight_of_zero_does_not_count() -> None:
    """0 times infinity is NaN; but where a window has a hole, a patch says nothing."""
    field = gp.ArrayField(np.array([1.0, np.inf, 3.0, 4.0]), dims=("x",))
    window = gp.Custom(lambda shape: np.array([1.0, 0.0, 1.0])[: shape[0]])
    for aggregation in (gp.OverlapAdd(), gp.WeightedSum()):
        patcher = gp.Patcher(gp.Rectangular((3,)), gp.Explicit([(0,)]), window, aggregation)
        found = patcher.merge(patcher.split(field), field)
        np.testing.assert_array_equal(found, [1.0, np.nan, 3.0, np.nan])
    patcher = gp.Patcher(gp.Rectangular((3,)), gp.Explicit([(0,), (1,)]), window)
    shown = (p.with_data(np.where(p.ordinal == 0, p.data, 7.0)) for p in patcher.split(field))
    np.testing.assert_array_equal(patcher.merge(shown, field), [1.0, 7.0, 3.0, 7.0])


BIG = 2**53 + 1  # the first integer that float64 does not have


def test_large_integers_are_exact() -> None:
    layers = [[BIG, -BIG, 2**62], [1, -1, 2**61], [BIG, -BIG, -(2**60)]]
    exact = np.array(layers, np.int64)
    for aggregation, expected in (
        (gp.Sum(), exact.sum(axis=0)),
        (gp.Max(), exact.max(axis=0)),
        (gp.Min(), exact.min(axis=0)),
        (gp.Range(), exact.max(axis=0) - exact.min(axis=0)),
    ):
        found = layered(layers, aggregation, "int64")
        assert found.dtype == np.int64
        assert found.tolist() == expected.tolist()


def test_the_whole_range_of_64_bits() -> None:
    low, high, top = -(2**63), 2**63 - 1, 2**64 - 1
    layers = [[low, high, 0], [high, low, -5]]
    assert layered(layers, gp.Max(), "int64").tolist() == [high, high, 0]
    assert layered(layers, gp.Min(), "int64").tolist() == [low, low, -5]
    # high - low does not fit: it saturates, as everything does that does not fit, and never wraps
    assert layered(layers, gp.Range(), "int64").tolist() == [high, high, 5]
    unsigned = [[top, 0], [1, top]]
    assert layered(unsigned, gp.Max(), "uint64").tolist() == [top, top]
    assert layered(unsigned, gp.Range(), "uint64").tolist() == [top - 1, top]
    assert layered(unsigned, gp.Sum(), "uint64", dtype="uint64").dtype == np.uint64


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cells_where_everything_is_missing(aggregation: gp.Aggregation, dtype: str) -> None:
    layers = [[1.0, np.nan, np.nan], [2.0, 3.0, np.nan], [4.0, np.nan, np.nan]]
    found = layered(layers, aggregation, dtype)
    one_is_enough = not isinstance(aggregation, gp.Variance)
    hole_value = hole(found.dtype)
    holes = np.isnan(found) if hole_value != hole_value else found == hole_value
    if isinstance(aggregation, gp.Count):
        assert found.tolist() == [3, 1, 0]  # reached, but nothing valid: zero is the answer
    else:
        assert holes.tolist() == [False, not one_is_enough, True]


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=repr)
def test_one_patch_and_no_patch(aggregation: gp.Aggregation) -> None:
    field = gp.ArrayField(np.array([[3.0, 0.0], [-2.0, np.nan]]))
    patcher = gp.Patcher(gp.Rectangular((2, 2)), gp.RegularStride((2, 2)), gp.Boxcar(), aggregation)
    one = patcher.merge(patcher.split(field), field)
    name = type(aggregation).__name__.rstrip("_")
    nan, none = np.nan, 255
    expected = {
        "Range": [[0, 0], [0, nan]],
        "Variance": [[nan, nan], [nan, nan]],
        "Any": [[1, 0], [1, none]],
        "All": [[1, 0], [1, none]],
        "Count": [[1, 1], [1, 0]],
    }.get(name, [[3, 0], [-2, nan]])
    np.testing.assert_array_equal(one, expected)
    nothing = patcher.merge([], field)
    assert nothing.shape == (2, 2)
    hole_value = hole(nothing.dtype)
    assert (np.isnan(nothing) if hole_value != hole_value else nothing == hole_value).all()


def test_an_operators_own_word_for_missing() -> None:
    layers = [[1, 255, 255], [3, 5, 255]]
    found = layered(layers, gp.Mean(), "uint8", missing=255)
    np.testing.assert_array_equal(found, np.array([2.0, 5.0, np.nan], "float32"))
    counted = layered([[1.0, -9.0], [np.nan, -9.0]], gp.Count(), missing=-9)
    assert counted.tolist() == [1, 0]


# ---- dtypes: one rounding, at the end ------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "dtypes"),
    [
        (gp.OverlapAdd(), {"uint8": "float32", "int32": "float64", "float32": "float32"}),
        (gp.Mean(), {"int16": "float32", "int64": "float64", "float64": "float64"}),
        (gp.Variance(), {"uint16": "float32", "uint32": "float64"}),
        (gp.Sum(), {"uint8": "int64", "uint64": "uint64", "float32": "float32"}),
        (gp.WeightedSum(), {"uint8": "float64", "float32": "float32"}),
        (gp.Max(), {"uint8": "uint8", "int64": "int64", "float32": "float32", "bool": "uint8"}),
        (gp.Range(), {"int16": "int64", "uint8": "uint8"}),
        (gp.Count(), {"float32": "int32"}),
        (gp.Any(), {"float32": "uint8", "bool": "uint8"}),
    ],
    ids=lambda v: repr(v)[:12],
)
def test_default_dtypes(aggregation: gp.Aggregation, dtypes: dict[str, str]) -> None:
    for dtype, expected in dtypes.items():
        assert aggregation.result_dtype(np.dtype(dtype)) == expected
        assert layered([[1, 0], [0, 1]], aggregation, dtype).dtype == expected


def test_integers_are_rounded_once_half_to_even_and_saturate() -> None:
    layers = [[1.0, 2.0, 300.0, -7.0, np.nan, np.inf], [2.0, 3.0, 300.0, -7.0, np.nan, 0.0]]
    found = layered(layers, gp.Mean(), dtype="uint8")
    assert found.tolist() == [2, 2, 255, 0, 255, 255]
    assert layered(layers, gp.Mean(), dtype="int8", fill_value=-1).tolist()[4] == -1


def test_sums_of_float32_do_not_drift() -> None:
    """A thousand layers of 0.1: accumulated in float64, rounded once."""
    layers = np.full((1000, 1), 0.1, np.float32)
    assert layered(layers, gp.Sum())[0] == np.float32(np.float64(np.float32(0.1)) * 1000)
    assert layered(layers, gp.Mean())[0] == np.float32(0.1)


@pytest.mark.parametrize("layers", [255, 256, 300])
def test_counts_do_not_overflow(layers: int) -> None:
    """However many patches lie over one another, also where cells are missing."""
    values = np.ones((layers, 2), np.float32)
    values[0, 1] = np.nan
    assert layered(values, gp.Count()).tolist() == [layers, layers - 1]
    np.testing.assert_array_equal(layered(values, gp.Mean()), [1.0, 1.0])
    field = gp.ArrayField(np.array([1.0, np.nan, 2.0]), dims=("x",))
    patcher = gp.Patcher(gp.Rectangular((3,)), gp.Explicit([(0,)] * layers), None, gp.Count())
    stored = assert_layout_invariant(field, patcher, np.positive)
    assert stored.tolist() == [layers, 0, layers]


# ---- states --------------------------------------------------------------------------------------


@given(st.sampled_from(AGGREGATIONS), st.sampled_from(["f8", "i8"]), st.data())
@examples(120)
def test_states_merge_to_the_single_pass(
    aggregation: gp.Aggregation, dtype: str, data: st.DataObject
) -> None:
    """Any split into runs of ordinals: exact for integers, extremes, flags and counts."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n = data.draw(st.integers(1, 12))
    layers = np.rint(rng.standard_normal((n, 5)) * 50)
    if dtype == "f8":
        layers = rng.standard_normal((n, 5))
        layers[rng.random((n, 5)) < 0.3] = np.nan
    layers = layers.astype(dtype)
    field = gp.ArrayField(np.zeros(5), dims=("x",))
    patcher = gp.Patcher(gp.Rectangular((5,)), gp.Explicit([(0,)] * n), gp.Hann(), aggregation)
    grid = patcher.grid(field.domain)
    ends = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))

    def state(first: int, last: int) -> Any:
        made = aggregation.init(grid, grid.box, (), layers.dtype, complete=False)
        for i in range(first, last):
            weights = grid.weights((0,), grid.box) if grid.weighted else None
            aggregation.add(made, grid.box, layers[i], weights)
        return made

    single, parts = state(0, n), [state(a, b) for a, b in zip([0, *ends], [*ends, n], strict=True)]
    combined = parts[0]
    for part in parts[1:]:
        combined = aggregation.merge(combined, part)
    answers = [aggregation.answered(s) for s in (single, combined)]
    masks = [np.ones(5, bool) if a is None else np.broadcast_to(a, 5) for a in answers]
    np.testing.assert_array_equal(*masks)
    values = [
        np.where(m, aggregation.finalize(s), 0)
        for m, s in zip(masks, (single, combined), strict=True)
    ]
    is_float_sum = isinstance(aggregation, gp.Sum | gp.WeightedSum | gp.Variance) and not (
        dtype == "i8" and isinstance(aggregation, gp.Sum)
    )
    if is_float_sum:
        np.testing.assert_allclose(*values, rtol=1e-12, atol=1e-12)
    else:
        np.testing.assert_array_equal(*values)
