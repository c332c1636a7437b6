"""Statistics of a first pass on values that tell: infinities, zeros of both signs, wide integers.

Each on a field in one block and on the same field in many, against plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_two_pass import STATISTICS, same
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.aggregation import passes
from geopatch_dask.testing import assert_statistic

Array = npt.NDArray[Any]

INF, NAN = np.inf, np.nan
EDGES = (-1.0, 0.0, 1.0, 2.0)
PATCHER = gp.Patcher(gp.Rectangular(2), gp.RegularStride(2), None, gp.Max())
#: What a field of one value, or of none, is reduced with.
PLAIN = (gp.MeanStd(), gp.MinMax(), gp.Covariance(), gp.Quantiles(), gp.Histogram(EDGES))


@pytest.fixture(params=["one block", "many blocks"])
def reduced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Reduces bands of values, shape (bands, rows, columns), in one block or in many."""
    if request.param == "many blocks":
        monkeypatch.setattr(passes, "BLOCK_EDGE", 2)

    def reduce(values: Any, statistic: gp.Statistic) -> dict[str, Any]:
        return PATCHER.reduce(gp.ArrayField(np.asarray(values)), statistic)

    return reduce


# ---- infinities ----------------------------------------------------------------------------------

#: One band without, one with infinities above, one below, one with both.
ENDLESS = np.random.default_rng(0).normal(size=(4, 6, 7))
ENDLESS[1, 0, 0] = ENDLESS[1, 5, 6] = INF
ENDLESS[2, 3, 3] = -INF
ENDLESS[3, 0, 1], ENDLESS[3, 5, 0] = INF, -INF
ENDLESS[:, 2, 2] = NAN


def test_infinities_are_values_of_moments(reduced: Any) -> None:
    found = reduced(ENDLESS, gp.MeanStd())
    assert found["n"].tolist() == [41] * 4
    np.testing.assert_array_equal(found["mean"][1:], [INF, -INF, NAN])
    np.testing.assert_array_equal(found["std"][1:], [NAN] * 3)
    calm = ENDLESS[0][~np.isnan(ENDLESS[0])]
    np.testing.assert_allclose(found["mean"][0], calm.mean(), rtol=1e-13)
    np.testing.assert_allclose(found["std"][0], calm.std(), rtol=1e-13)


def test_a_band_with_infinities_spoils_no_other_covariance(reduced: Any) -> None:
    found = reduced(ENDLESS[[0, 1, 0]] * np.array([1.0, 1.0, 2.0])[:, None, None], gp.Covariance())
    assert found["n"] == 41
    calm = ENDLESS[0][~np.isnan(ENDLESS[0])]
    np.testing.assert_allclose(found["mean"], [calm.mean(), INF, 2 * calm.mean()], rtol=1e-13)
    np.testing.assert_allclose(
        found["cov"][::2, ::2], calm.var(ddof=1) * np.array([[1, 2], [2, 4]]), rtol=1e-12
    )
    assert np.isnan(found["cov"][1]).all()
    assert np.isnan(found["cov"][:, 1]).all()


def test_infinities_are_extremes_and_ends_of_histograms(reduced: Any) -> None:
    found = reduced(ENDLESS, gp.MinMax())
    flat = ENDLESS.reshape(4, -1)
    np.testing.assert_array_equal(found["min"], np.nanmin(flat, axis=1))
    np.testing.assert_array_equal(found["max"], np.nanmax(flat, axis=1))
    assert found["max"][1:].tolist() == [INF, np.nanmax(flat[2]), INF]
    counts = reduced(ENDLESS, gp.Histogram(EDGES))
    for band, row in enumerate(flat):
        np.testing.assert_array_equal(
            counts["counts"][band], np.histogram(row[np.isfinite(row)], EDGES)[0]
        )
        assert counts["below"][band] == (row < -1).sum()
        assert counts["above"][band] == (row > 2).sum()
        assert counts["missing"][band] == 1
    open_ended = reduced(ENDLESS, gp.Histogram((-INF, 0.0, INF)))
    assert not open_ended["below"].any()
    assert not open_ended["above"].any()
    assert open_ended["counts"].sum(axis=1).tolist() == [41] * 4


def test_infinities_have_ranks(reduced: Any) -> None:
    q = (0.0, 0.02, 0.5, 0.97, 1.0)
    found = reduced(ENDLESS, gp.Quantiles(q))
    exact = [np.quantile(row[~np.isnan(row)], q, method="lower") for row in ENDLESS.reshape(4, -1)]
    np.testing.assert_allclose(found["value"], exact, rtol=0.001)
    np.testing.assert_array_equal(found["value"][:, [0, -1]], np.array(exact)[:, [0, -1]])
    assert found["n"].tolist() == [41] * 4


@pytest.mark.parametrize("statistic", PLAIN, ids=lambda s: type(s).__name__)
def test_infinities_merge_in_any_order(statistic: gp.Statistic) -> None:
    assert_statistic(gp.ArrayField(ENDLESS), PATCHER, statistic)


# ---- zeros of both signs -------------------------------------------------------------------------


def test_zeros_of_both_signs_are_one_value(reduced: Any) -> None:
    values = np.zeros((2, 5, 4))
    values[0, ::2] = values[1, 1::2] = -0.0
    extremes = reduced(values, gp.MinMax())
    for name in ("min", "max"):
        assert extremes[name].tobytes() == bytes(16), "+0.0, wherever the negative ones lie"
    moments = reduced(values, gp.MeanStd())
    assert moments["mean"].tolist() == moments["std"].tolist() == [0.0, 0.0]
    counts = reduced(values, gp.Histogram(EDGES))
    assert counts["counts"].tolist() == [[0, 20, 0]] * 2
    assert (reduced(values, gp.Quantiles())["value"] == 0.0).all()


# ---- integers that are no float64 ----------------------------------------------------------------

WIDE = np.array([[[2**53 + 1, 2**53 + 3, 2**62 + 1], [-(2**62) - 1, 5, 2**53 + 1]]], np.int64)
#: The nearest float64 of every one of them.
NEAR = WIDE.astype(np.float64)


def test_integers_beyond_2_to_the_53_are_rounded_once(reduced: Any) -> None:
    """The context holds floats: extremes are the nearest ones, and never next to them."""
    extremes = reduced(WIDE, gp.MinMax())
    assert (extremes["min"].tolist(), extremes["max"].tolist()) == ([-(2.0**62)], [2.0**62])
    assert extremes["n"].tolist() == [6]
    moments = reduced(WIDE, gp.MeanStd())
    np.testing.assert_allclose(moments["mean"], NEAR.mean(), rtol=1e-12)
    np.testing.assert_allclose(moments["std"], NEAR.std(), rtol=1e-12)
    counts = reduced(WIDE, gp.Histogram((0.0, 2.0**53, 2.0**60)))
    assert counts["counts"].tolist() == [[1, 3]]  # 2**53 + 1 is taken for 2**53
    assert (counts["below"].tolist(), counts["above"].tolist()) == ([1], [1])
    median = reduced(WIDE, gp.Quantiles(0.5, exponents=(0, 64)))["value"]
    np.testing.assert_allclose(median, [2.0**53], rtol=0.001)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
def test_extremes_of_integers_are_exact_up_to_2_to_the_53(dtype: str, reduced: Any) -> None:
    info = np.iinfo(dtype)
    low, high = max(int(info.min), -(2**53)), min(int(info.max), 2**53)
    found = reduced(np.array([[[low, 1, high], [2, high - 1, low]]], dtype), gp.MinMax())
    assert (int(found["min"][0]), int(found["max"][0])) == (low, high)


# ---- nothing, and one value ----------------------------------------------------------------------


def test_nothing_but_missing_cells(reduced: Any) -> None:
    """One band without a value beside one with: NaN, and a count of none."""
    values = np.full((2, 5, 5), NAN)
    values[1] = 2.0
    moments, extremes = reduced(values, gp.MeanStd()), reduced(values, gp.MinMax())
    for found in (moments, extremes):
        assert found["n"].tolist() == [0, 25]
    np.testing.assert_array_equal(moments["mean"], [NAN, 2.0])
    np.testing.assert_array_equal(moments["std"], [NAN, 0.0])
    np.testing.assert_array_equal(extremes["min"], [NAN, 2.0])
    np.testing.assert_array_equal(extremes["max"], [NAN, 2.0])
    covariance = reduced(values, gp.Covariance())  # no cell has both bands
    assert covariance["n"] == 0
    assert np.isnan(covariance["mean"]).all()
    assert np.isnan(covariance["cov"]).all()
    quantiles = reduced(values, gp.Quantiles())
    assert quantiles["n"].tolist() == [0, 25]
    assert np.isnan(quantiles["value"][0]).all()
    np.testing.assert_allclose(quantiles["value"][1], 2.0, rtol=0.001)
    counts = reduced(values, gp.Histogram((0.0, 2.0)))
    assert counts["missing"].tolist() == [25, 0]
    assert counts["counts"].tolist() == [[0], [25]]


@pytest.mark.parametrize("value", [3.5, -INF, 2**60])
def test_one_cell(value: float, reduced: Any) -> None:
    values = np.full((1, 4, 4), NAN)
    values[0, 3, 1] = value
    moments = reduced(values, gp.MeanStd())
    assert (moments["n"].tolist(), moments["mean"].tolist()) == ([1], [value])
    np.testing.assert_array_equal(moments["std"], [0.0 if np.isfinite(value) else NAN])
    assert np.isnan(reduced(values, gp.MeanStd(ddof=1))["std"]).all(), "one value has no spread"
    extremes = reduced(values, gp.MinMax())
    assert extremes["min"].tolist() == extremes["max"].tolist() == [value]
    covariance = reduced(values, gp.Covariance())
    assert (covariance["n"], covariance["mean"].tolist()) == (1, [value])
    assert np.isnan(covariance["cov"]).all()
    assert (reduced(values, gp.Quantiles((0.0, 0.5, 1.0)))["value"] == value).all()
    counts = reduced(values, gp.Histogram(EDGES))
    assert int(counts["below"][0] + counts["above"][0]) == 1


# ---- what does not merge -------------------------------------------------------------------------


@dataclass(frozen=True)
class Middle(gp.Statistic):
    """A median, which two halves do not tell."""

    def init(self, bands: int) -> dict[str, Array]:
        return {"middle": np.zeros(bands)}

    def update(self, state: dict[str, Array], values: Array, keys: Array) -> None:
        state["middle"][...] = np.median(values, axis=1)

    def finalize(self, state: dict[str, Array]) -> dict[str, Array]:
        return dict(state)


class Forgetful(Middle):
    """Says that it merges, and returns no state."""

    def merge(self, left: Any, right: Any) -> Any:
        return left["middle"]


@pytest.mark.parametrize(
    ("statistic", "told"),
    [(Middle(), "Middle does not merge"), (Forgetful(), "must return a state")],
)
@pytest.mark.parametrize("over", ["field", "output"])
def test_what_does_not_merge_is_refused_by_one_block_and_by_a_plan(
    statistic: gp.Statistic, told: str, over: str
) -> None:
    field = gp.ArrayField(np.random.default_rng(1).random((6, 6)))
    with pytest.raises(gp.OptionError, match=told):
        PATCHER.reduce(field, statistic, over, np.negative)
    with pytest.raises(gp.OptionError, match=told):
        PATCHER.two_pass(field, with_context, statistic, over)
    operator = gp.Operator(with_context, context=True)
    with pytest.raises(gp.OptionError, match=told):
        gp.plan(field, PATCHER, operator, MemoryStore(), context=statistic, over=over)


def with_context(x: Array, context: Any) -> Array:
    return x


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: type(s).__name__)
def test_whether_one_block_merges_is_asked_of_copies(statistic: gp.Statistic) -> None:
    """The check changes no bit of what one block says."""
    field = gp.ArrayField(np.random.default_rng(2).normal(size=(2, 9, 9)))
    found = PATCHER.reduce(field, statistic)
    leaf = passes.FieldPass(field, PATCHER.grid(field.domain))
    assert leaf.leaves == 1
    assert same(found, dict(statistic.finalize(leaf.state(statistic, 0))))
