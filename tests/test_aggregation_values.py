"""Votes, posteriors and layers on values that tell, against plain numpy and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.aggregation import strict
from geopatch_dask.testing import Cut, assert_layout_invariant

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _unbounded_is_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*streaming_safe")
        yield


def layered(layers: Any, aggregation: gp.Aggregation, ndim: int = 1, **output: Any) -> Any:
    """Aggregate results that lie exactly over one another: one patch per entry, in this order."""
    first = layers[0][0] if isinstance(layers[0], tuple) else layers[0]
    cells = np.shape(first)[np.ndim(first) - ndim :]
    field = gp.ArrayField(np.zeros(cells), dims=("y", "x")[-ndim:])
    patcher = gp.Patcher(
        gp.Rectangular(cells), gp.Explicit([(0,) * ndim] * len(layers)), None, aggregation
    )
    patches = (p.with_data(a) for p, a in zip(patcher.split(field), layers, strict=True))
    return patcher.merge(patches, field, gp.Output(**output))


def counted(layers: Any, aggregation: gp.Aggregation) -> tuple[Array, dict[str, int]]:
    """Valid contributions per cell, and cells of each part that hold its fill value."""
    cells = np.shape(layers[0][0])
    field = gp.ArrayField(np.zeros(cells), dims=("x",))
    grid = gp.Patcher(gp.Rectangular(cells), gp.Explicit([(0,)] * len(layers)), None, aggregation)
    where = grid.grid(field.domain)
    leading, dtype = (len(layers[0]),), np.dtype(np.float64)
    state = aggregation.init(where, where.box, leading, dtype)
    for layer in layers:
        aggregation.add(state, where.box, np.stack(layer), np.ones(cells))
    parts = dict.fromkeys(aggregation.parts(leading, dtype), dtype)
    found = aggregation.settled(state, parts, dict.fromkeys(parts, np.nan))
    return state.coverage.counts(), {part: filled for part, (_, filled) in found.items()}


# ---- posteriors ----------------------------------------------------------------------------------


def test_variances_four_and_one() -> None:
    """Weights 1 : 4; the posterior variance is 1 / (1/4 + 1)."""
    found = layered(
        [(np.array([10.0]), np.array([4.0])), (np.array([20.0]), np.array([1.0]))],
        gp.InvVarWeightedMean(),
    )
    assert found["data_mu"][0] == 18.0
    assert found["data_var"][0] == 0.8


def test_unusable_variances_are_missing_and_counted() -> None:
    mu = np.ones(6)
    bad = np.array([0.0, -1.0, np.nan, np.inf, 2.0, 0.0])
    good = np.array([4.0, 4.0, 4.0, 4.0, 2.0, np.nan])
    layers = [(mu * 9, bad), (mu, good)]
    found = layered(layers, gp.InvVarWeightedMean())
    np.testing.assert_array_equal(found["data_mu"], [1, 1, 1, 1, 5, np.nan])
    np.testing.assert_array_equal(found["data_var"], [4, 4, 4, 4, 1, np.nan])
    counts, filled = counted(layers, gp.InvVarWeightedMean())
    assert counts.tolist() == [1, 1, 1, 1, 2, 0]
    assert filled == {"mu": 1, "var": 1}


#: From 5.6e-309 on, a variance has a finite reciprocal; several precisions may still overflow.
TINY = np.array([2.3e-308, 5.7e-309, 1e-310, 5e-324, 1e308])


@pytest.mark.parametrize(("n", "known"), [(1, [1, 1, 0, 0, 1]), (2, [1, 0, 0, 0, 1]), (5, [0] * 4)])
def test_variances_whose_reciprocals_overflow(n: int, known: list[int]) -> None:
    """A mean and its variance are both there or both missing; never 0.0 beside a fill value."""
    var, there = TINY[: len(known)], np.array(known, bool)
    layers = [(np.full(len(var), 0.25), var)] * n
    found = layered(layers, gp.InvVarWeightedMean(), fill_value=-1.0)
    np.testing.assert_allclose(found["data_mu"], np.where(there, 0.25, -1.0), rtol=1e-14)
    np.testing.assert_allclose(found["data_var"], np.where(there, var / n, -1.0), rtol=1e-14)
    counts, filled = counted(layers, gp.InvVarWeightedMean())
    assert counts.tolist() == [n, n, 0, 0, n][: len(known)]
    assert filled == dict.fromkeys(("mu", "var"), int((~there).sum()))


def test_small_variances_do_not_depend_on_the_layout() -> None:
    """Windowed, some of them missing, some adding up to what has no reciprocal."""
    scales = 10.0 ** np.random.default_rng(8).uniform(-311, -305, (24, 20))
    field = gp.ArrayField(scales)
    patcher = gp.Patcher(gp.Rectangular(8), gp.RegularStride(3), gp.Hann(), gp.InvVarWeightedMean())
    cuts = [Cut((4, 4), (4, 4)), Cut((8, 20), (4, 4)), Cut((24, 12), (4, 4))]
    found = assert_layout_invariant(field, patcher, one_and_itself, cuts=cuts)
    mu, var = found["data_mu"], found["data_var"]
    assert 0 < np.isnan(mu).sum() < mu.size
    np.testing.assert_array_equal(np.isnan(mu), np.isnan(var))
    assert (var[~np.isnan(var)] > 0).all()


def one_and_itself(x: Array) -> tuple[Array, Array]:
    return np.ones_like(x), x


@given(st.integers(0, 10**6), st.integers(1, 8))
@examples(30)
def test_the_weighted_posterior(seed: int, n: int) -> None:
    """Patches that lie apart, so that a cell has other weights of each of them."""
    rng = np.random.default_rng(seed)
    mu, var = rng.normal(size=(n, 5)), rng.uniform(0.1, 9, (n, 5))
    field = gp.ArrayField(np.zeros(12), dims=("x",))
    at = rng.integers(0, 8, n)
    axes = (gp.Rectangular((5,)), gp.Explicit([(int(a),) for a in at]), gp.Hann())
    patcher = gp.Patcher(*axes, gp.InvVarWeightedMean())
    estimates = zip(patcher.split(field), mu, var, strict=True)
    found = patcher.merge((p.with_data((m, v)) for p, m, v in estimates), field)
    hann = np.sin(np.pi * (np.arange(5) + 0.5) / 5) ** 2
    precision, total = np.zeros(12), np.zeros(12)
    for a, m, v in zip(at, mu, var, strict=True):
        precision[a : a + 5] += hann / v
        total[a : a + 5] += hann * m / v
    known = precision > 0
    np.testing.assert_array_equal(np.isnan(found["data_mu"]), ~known)
    np.testing.assert_allclose(found["data_var"][known], 1 / precision[known], rtol=1e-13)
    expected = total[known] / precision[known]
    np.testing.assert_allclose(found["data_mu"][known], expected, rtol=1e-10, atol=1e-12)


def test_an_infinite_mean_under_a_weight_of_zero_does_not_count() -> None:
    """0 times infinity is NaN; but where a window has a hole, an estimate says nothing."""
    field = gp.ArrayField(np.array([1.0, np.inf, 3.0, 4.0]), dims=("x",))
    window = gp.Custom(lambda shape: np.array([1.0, 0.0, 1.0])[: shape[0]])
    anchors = gp.Explicit([(0,), (1,)])
    patcher = gp.Patcher(gp.Rectangular((3,)), anchors, window, gp.InvVarWeightedMean())
    means = (np.where(p.ordinal == 0, p.data, 7.0) for p in patcher.split(field))
    estimates = zip(patcher.split(field), means, strict=True)
    found = patcher.merge((p.with_data((m, np.ones(3))) for p, m in estimates), field)
    np.testing.assert_array_equal(found["data_mu"], [1, 7, 3, 7])
    np.testing.assert_array_equal(found["data_var"], [1, 1, 1, 1])


def test_means_that_are_infinite_both_ways_are_missing_and_counted() -> None:
    one = np.ones(3)
    layers = [(np.array([np.inf, np.inf, 2.0]), one), (np.array([-np.inf, 1.0, 4.0]), one)]
    found = layered(layers, gp.InvVarWeightedMean(), fill_value=-1.0)
    np.testing.assert_array_equal(found["data_mu"], [-1.0, np.inf, 3.0])
    np.testing.assert_array_equal(found["data_var"], [-1.0, 0.5, 0.5])
    assert counted(layers, gp.InvVarWeightedMean())[1] == {"mu": 1, "var": 1}


def test_mu_and_var_may_come_as_a_dict() -> None:
    field = gp.ArrayField(np.ones((4, 4)))
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride(4), None, gp.InvVarWeightedMean())
    patches = (p.with_data({"var": p.data * 2, "mu": p.data}) for p in patcher.split(field))
    found = patcher.merge(patches, field)
    assert set(found) == {"data_mu", "data_var"}
    assert (found["data_var"] == 2).all()


# ---- votes ---------------------------------------------------------------------------------------


def test_ties_go_to_the_lowest_class() -> None:
    found = layered([np.array([2, 1, 0]), np.array([1, 1, 2])], gp.HardVote(3))
    np.testing.assert_array_equal(found["data"], [1, 1, 0])
    np.testing.assert_array_equal(found["data_share"], np.float32([0.5, 1, 0.5]))
    np.testing.assert_array_equal(found["data_votes"], [2, 2, 2])


def test_cells_without_a_vote_hold_the_fill_value() -> None:
    labels = [np.array([np.nan, 1.0]), np.array([np.nan, np.nan])]
    found = layered(labels, gp.HardVote(2))
    np.testing.assert_array_equal(found["data"], [255, 1])
    np.testing.assert_array_equal(found["data_votes"], [0, 1])
    assert np.isnan(found["data_share"][0])


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5))
@examples(30)
def test_hard_votes_are_the_mode(seed: int, n: int, k: int) -> None:
    labels = np.random.default_rng(seed).integers(0, k, (n, 7))
    found = layered(list(labels), gp.HardVote(k))
    expected = scipy.stats.mode(labels, axis=0)
    np.testing.assert_array_equal(found["data"], expected.mode)
    np.testing.assert_array_equal(found["data_share"], (expected.count / n).astype(np.float32))


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_soft_votes_find_their_axis(axis: int) -> None:
    rng = np.random.default_rng(3)
    scores = rng.dirichlet(np.ones(3), (4, 2, 6)).transpose(0, 3, 1, 2)  # layer, class, other, cell
    position = axis % 2
    layers = [np.moveaxis(layer, 0, position) for layer in scores]
    found = layered(layers, gp.SoftVote(3, axis))
    total = scores.sum(axis=0)
    np.testing.assert_array_equal(found["data"], total.argmax(axis=0))
    np.testing.assert_allclose(found["data_share"], total.max(axis=0) / 4, rtol=1e-6)
    assert found["data"].shape == (2, 6)


def test_one_missing_class_is_a_missing_vote() -> None:
    half = np.array([[0.5, np.nan], [0.5, 1.0]])
    sure = np.array([[0.9, 0.8], [0.1, 0.2]])
    found = layered([half, sure], gp.SoftVote(2))
    np.testing.assert_array_equal(found["data_votes"], [2, 1])
    np.testing.assert_array_equal(found["data"], [0, 0])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            [0, 3],
            r"class 3; labels are 0 .. 2: give HardVote at least 4 classes, or mark 'no vote'",
        ),
        ([-1, 0], "class -1; labels are 0 .. 2: mark 'no vote' with NaN or missing="),
        ([-1, 3], "class -1; .*give HardVote at least 4"),
        ([0.5, 1], "whole numbers"),
        ([np.inf, 1.0], "class inf; labels are 0 .. 2: mark 'no vote'"),
        ([-np.inf, np.inf], "class -inf; labels are 0 .. 2: mark 'no vote'"),
        ([1e300, 1.0], r"class 1e\+300; labels are 0 .. 2: mark 'no vote'"),
        (np.array([2**64 - 1, 1], np.uint64), "labels are 0 .. 2: mark 'no vote'"),
    ],
)
def test_labels_that_are_none(labels: Any, told: str) -> None:
    with pytest.raises(gp.OperatorError, match=told):
        layered([np.array(labels)], gp.HardVote(3))


def test_negative_scores_are_refused() -> None:
    with pytest.raises(gp.OperatorError, match="softmax"):
        layered([np.array([[1.0], [-1.0]])], gp.SoftVote(2))


# ---- layers --------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
@examples(60)
def test_quantiles_are_numpys(seed: int, n: int, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    layers = np.round(rng.normal(size=(n, 9)), 1) + 0.0
    if holes:
        layers[rng.random(layers.shape) < 0.4] = np.nan
    q = (0.0, 0.1, 0.5, 0.77, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all-NaN slices
        expected, middle = np.nanquantile(layers, q, axis=0), np.nanmedian(layers, axis=0)
    np.testing.assert_array_equal(layered(list(layers), gp.Quantile(q)), expected + 0.0)
    np.testing.assert_array_equal(layered(list(layers), gp.Median()), middle + 0.0)


def test_a_median_of_infinities_and_zeros() -> None:
    layers = [np.array(v) for v in ([np.inf, -0.0, 5.0], [np.inf, 0.0, -np.inf], [1.0, -0.0, 7.0])]
    found = layered(layers, gp.Median())
    np.testing.assert_array_equal(found, [np.inf, 0.0, 5.0])
    assert not np.signbit(found[1])


def test_integers_beyond_2_to_the_53_stay_exact() -> None:
    big = 2**53 + 1
    layers = [np.array([big, big]), np.array([big + 2, 7]), np.array([big, 7])]
    assert layered(layers, gp.Mode()).tolist() == [big, 7]
    assert layered(layers, gp.Mode()).dtype == np.int64


@given(st.integers(0, 10**6), st.integers(1, 9))
@examples(30)
def test_the_mode_is_scipys(seed: int, n: int) -> None:
    layers = np.random.default_rng(seed).integers(-2, 2, (n, 11)).astype(np.float32)
    expected = scipy.stats.mode(layers, axis=0).mode
    np.testing.assert_array_equal(layered(list(layers), gp.Mode()), expected + np.float32(0))


def test_a_learned_function_sees_ordinal_order() -> None:
    layers = [np.array([3.0, np.nan]), np.array([1.0, 4.0]), np.array([2.0, np.nan])]

    def first_and_count(values: Array, n: Array) -> Array:
        return values[0] * 10 + n

    np.testing.assert_array_equal(layered(layers, gp.Learned(first_and_count)), [33.0, 41.0])


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 8))
@examples(40)
def test_states_merge_to_the_single_pass(seed: int, n: int, split: int) -> None:
    """Any split of the patches, for everything that adds or sorts exactly."""
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, 4, (n, 6)).astype(float)
    layers[rng.random(layers.shape) < 0.3] = np.nan
    field = gp.ArrayField(np.zeros(6), dims=("x",))
    for aggregation in (gp.Median(), gp.Mode(), gp.HardVote(4), gp.Quantile((0.2, 0.9))):
        patcher = gp.Patcher(gp.Rectangular((6,)), gp.Explicit([(0,)] * n), None, aggregation)
        grid = patcher.grid(field.domain)

        def state(rows: Array, kind: Any = aggregation, where: Any = grid) -> Any:
            held = kind.init(where, where.box, (), np.float64, complete=False)
            for row in rows:
                kind.add(held, where.box, row, None)
            return held

        whole = aggregation.finalize(state(layers))
        parts = aggregation.merge(state(layers[:split]), state(layers[split:]))
        merged = aggregation.finalize(parts)
        for name in whole if isinstance(whole, dict) else [None]:
            left = whole if name is None else whole[name]
            right = merged if name is None else merged[name]
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), aggregation


# ---- unbounded memory ----------------------------------------------------------------------------


def test_a_plain_merge_of_layers_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict, "_warned", set())
    assert not gp.Median.streaming_safe
    assert gp.Mean.streaming_safe
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layered([np.ones(3)], gp.Median())
        layered([np.ones(3)], gp.Median())
    told = [str(w.message) for w in caught if "streaming_safe" in str(w.message)]
    assert len(told) == 1
    assert "ApproxQuantile" in told[0]


def test_strict_makes_it_an_error() -> None:
    gp.set_strict(True)
    try:
        with pytest.raises(gp.OptionError, match="streaming_safe"):
            layered([np.ones(3)], gp.Median())
    finally:
        gp.set_strict(False)


# ---- one patch, no patch, nothing but missing cells, infinities ----------------------------------

EVERY: tuple[tuple[gp.Aggregation, tuple[int, ...]], ...] = (
    (gp.HardVote(3), ()),
    (gp.SoftVote(3), (3,)),
    (gp.SoftVote(3, -1), (3,)),
    (gp.InvVarWeightedMean(), (2,)),
    (gp.Median(), ()),
    (gp.Quantile((0.1, 0.9)), ()),
    (gp.Mode(), ()),
    (gp.Learned(lambda layers, n: layers[0]), ()),
)


def parts_of(found: Any) -> dict[str, Array]:
    return found if isinstance(found, dict) else {"data": found}


def is_hole(values: Array) -> bool:
    if values.dtype.kind == "f":
        return bool(np.isnan(values).all())
    return bool((values == np.iinfo(values.dtype).max).all())


def named(value: object) -> str:
    """The same in every process: the address of a function is not."""
    return type(value).__name__ if isinstance(value, gp.Learned) else repr(value)


@pytest.mark.parametrize(("aggregation", "leading"), EVERY, ids=named)
def test_no_patch(aggregation: gp.Aggregation, leading: tuple[int, ...]) -> None:
    """A field that no patch fits: everything holds its fill value, in RAM and in a plan."""
    field = gp.ArrayField(np.ones((5, 6), "float32"))
    patcher = gp.Patcher(
        gp.Rectangular((8, 8), "drop"), gp.RegularStride((8, 8)), None, aggregation
    )
    assert patcher.n_anchors(field) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        found = assert_layout_invariant(field, patcher, np.positive, cuts=[Cut((3, 4), (3, 4))])
    names = aggregation.parts(leading, np.dtype("float32"))
    kept = parts_of(found)
    assert len(kept) == len(names)
    for name, values in kept.items():
        assert values.shape[-2:] == (5, 6)
        if name.endswith("votes"):
            assert (values == np.iinfo(values.dtype).min).all(), "not 0: no patch reaches the cell"
        else:
            assert is_hole(values), name


@pytest.mark.parametrize(("aggregation", "leading"), EVERY, ids=named)
def test_one_patch_and_missing_cells(aggregation: gp.Aggregation, leading: tuple[int, ...]) -> None:
    """One layer is its own median, mode, winner and posterior; NaN stays a hole."""
    layer = np.broadcast_to(np.array([[1.0, 2.0, np.nan]]), (*leading, 1, 3)).copy()
    given = tuple(layer) if isinstance(aggregation, gp.InvVarWeightedMean) else layer
    found = parts_of(layered([given], aggregation, ndim=2))
    for name, values in found.items():
        if name.endswith("_votes"):
            assert values.tolist() == [[1, 1, 0]]
            continue
        assert is_hole(values[..., 2]), name
        if name.endswith("_share"):
            np.testing.assert_array_equal(values[..., :2], np.float32(1 / 3 if leading else 1))
        else:
            plain = [0.0, 0.0] if isinstance(aggregation, gp.SoftVote) else [1.0, 2.0]
            expected = np.broadcast_to(plain, (*values.shape[:-1], 2))
            np.testing.assert_array_equal(values[..., :2], expected)


def test_infinities_in_votes_posteriors_and_layers() -> None:
    inf, nan = np.inf, np.nan
    found = layered([np.array([[inf, 1.0], [1.0, inf]]), np.ones((2, 2))], gp.SoftVote(2))
    np.testing.assert_array_equal(found["data"], [0, 1])
    np.testing.assert_array_equal(found["data_votes"], [2, 2])
    assert np.isnan(found["data_share"]).all(), "infinity over infinity is no share"
    found = layered([(np.array([inf, 3.0]), np.array([1.0, inf]))], gp.InvVarWeightedMean())
    np.testing.assert_array_equal(found["data_mu"], [inf, nan])
    layers = [np.array([inf, -inf, inf]), np.array([inf, 2.0, -inf]), np.array([1.0, 2.0, 0.0])]
    np.testing.assert_array_equal(layered(layers, gp.Mode()), [inf, 2.0, -inf])
    np.testing.assert_array_equal(layered(layers, gp.Quantile(0.0)), [1.0, -inf, -inf])
    assert layered([np.array([-0.0]), np.array([-0.0])], gp.Mode()).tobytes() == bytes(8)


def test_a_class_is_no_hole_because_the_field_has_its_number_for_nodata() -> None:
    """A median goes on with the field's nodata; the winner 0 must not look like "no vote"."""

    class Raw(gp.ArrayField):
        """A field whose nodata is a number among others, as ``RasterField(masked=False)`` has."""

        nodata = 0

    field = Raw(np.zeros((8, 8), "uint8"))
    assert field.dtype == np.uint8
    for aggregation, fill in ((gp.HardVote(3), 255), (gp.Median(), 0)):
        geometry = gp.Rectangular(3, "drop")
        patcher = gp.Patcher(geometry, gp.RegularStride(3), aggregation=aggregation)
        plan = gp.plan(field, patcher, np.copy, MemoryStore(), output=gp.Output(dtype="uint8"))
        assert plan.arrays[0].fill == fill


# ---- many classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, -1])
def test_the_share_of_many_classes_does_not_depend_on_the_tile(axis: int) -> None:
    """A box of one cell would be summed in another order, if numpy had its way."""
    scores = np.random.default_rng(4).random((20, 12, 14))
    aggregation = gp.SoftVote(20, axis)
    patcher = gp.Patcher(gp.Rectangular((12, 14)), gp.RegularStride(14), None, aggregation)
    grid = patcher.grid(gp.ArrayField(np.zeros((12, 14))).domain)

    def share(box: gp.Box) -> Array:
        state = aggregation.init(grid, box, (20,))
        aggregation.add(state, box, scores[:, *box.slices()], None)
        return aggregation.finalize(state)["share"]

    whole = share(grid.box)
    for y, x in np.ndindex(12, 14):
        box = gp.Box.at((y, x), (1, 1))
        assert share(box).tobytes() == whole[box.slices()].tobytes()


@pytest.mark.parametrize("k", [1, 255, 256, 300])
def test_the_dtype_holds_all_classes_and_a_fill_value(k: int) -> None:
    found = layered([np.array([k - 1, 0.0, np.nan])], gp.HardVote(k))
    assert found["data"].dtype == (np.uint8 if k < 256 else np.uint16)
    assert found["data"].tolist() == [k - 1, 0, np.iinfo(found["data"].dtype).max]


def test_unusable_estimates_are_counted_in_the_report() -> None:
    """A variance of zero is missing data: such cells are in the report, not in silence."""

    def estimate(x: Array) -> tuple[Array, Array]:
        return x, np.where(x > 3, 1.0, 0.0)

    field = gp.ArrayField(np.arange(36.0).reshape(6, 6))
    patcher = gp.Patcher(gp.Rectangular((3, 3)), gp.RegularStride(3), None, gp.InvVarWeightedMean())
    plan = gp.plan(field, patcher, estimate, MemoryStore(), chunks=3, outer=3)
    report = plan.run("sync")
    assert report.totals["missing"] == 2 * 4, "four cells, in two arrays"
    assert report.totals["uncovered"] == 0
