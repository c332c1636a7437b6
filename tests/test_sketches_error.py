"""The errors of the sketches of distributions: quantiles and histograms, against sorted data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from geopatch_dask.aggregation.sketches import ApproxQuantile, StreamingHistogram
from geopatch_dask.aggregation.sketches.buckets import mantissa_bits
from geopatch_dask.aggregation.statistic import Statistic

N = 20_000
RNG = np.random.default_rng(11)
NORMAL = RNG.normal(size=N)
LARGE = RNG.integers(2**53, 2**63 - 1, N)
TINY = 5e-324

DATA: dict[str, np.ndarray] = {
    "normal": NORMAL,
    "normal far from zero": 1e8 + 1e-3 * NORMAL,
    "log-normal": np.exp(3 * NORMAL),
    "negative log-normal": -np.exp(3 * NORMAL),
    "constant": np.full(N, -273.15),
    "zeros": np.zeros(N),
    "two points": np.where(NORMAL > 1, 7.0, -1e-3),
    "two points, one of them zero": np.where(NORMAL > 0, 0.0, 1e30),
    "ascending": np.sort(NORMAL),
    "descending": np.sort(np.exp(NORMAL))[::-1],
    "from the middle outwards": np.sort(NORMAL)[np.argsort(np.abs(np.arange(N) - N // 2))],
    "growing tenfold": 10.0 ** np.linspace(-40, 38, N),
    "growing to both sides": 10.0 ** np.linspace(-40, 38, N) * np.where(np.arange(N) % 2, 1, -1),
    "edges of buckets": np.repeat(2.0 ** np.arange(-100, 100), N // 200) * (1 + 1 / 64),
    "below edges of buckets": np.nextafter(2.0 ** np.arange(-100, 100), 0),
    "one decimal": np.round(NORMAL * 50, 1).astype(np.float32),
    "float32 subnormal": (NORMAL * 1e-41).astype(np.float32),
    "classes": RNG.integers(0, 12, N).astype(np.uint8),
    "integers beyond 2**53": LARGE,
    "negative integers beyond 2**53": -LARGE,
    "unsigned beyond 2**63": LARGE.astype(np.uint64) * 2 + 1,
    "one value": np.array([3.7]),
    "two values": np.array([1e-5, 3.7]),
}
WHOLE = (-1074, 1024)  # the data that only the whole of float64 holds
WIDE: dict[str, np.ndarray] = {
    "subnormal": NORMAL * 1e-310,
    "a few smallest numbers": RNG.integers(-3, 300, N) * TINY,
    "around the smallest normal": NORMAL * 2.3e-308,
    "huge": NORMAL * 3e307,
    "huge and tiny": np.where(NORMAL > 0, 1.7e308, TINY) * np.sign(RNG.normal(size=N)),
    "every magnitude": np.ldexp(NORMAL, RNG.integers(-1074, 1020, N)),
}
ALL = {**DATA, **WIDE}
QS = (0.0, 1e-4, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.9999, 1.0)


def result(sketch: Statistic, values: np.ndarray, parts: int = 1) -> dict[str, Any]:
    """What a sketch says about one band, without the axis of bands."""
    state = sketch.init(1)
    keys = np.arange(len(values), dtype=np.uint64)
    for part in np.array_split(np.arange(len(values)), parts):
        sketch.update(state, values[None, part], keys[part])
    found = sketch.finalize(state)
    return {k: v[0] if k != "q" and np.ndim(v) else v for k, v in found.items()}


# ---- quantiles ---------------------------------------------------------------------------------


def lower(values: np.ndarray, q: float) -> float:
    """The exact lower quantile, the definition in the docstring."""
    return float(np.sort(values)[int(np.floor(q * (len(values) - 1)))])


@pytest.mark.parametrize("name", ALL)
def test_quantiles_are_within_the_relative_error(name: str) -> None:
    values = ALL[name]
    exponents = WHOLE if name in WIDE else ApproxQuantile.exponents
    exact = np.array([lower(values, q) for q in QS])
    for error in (0.05, 0.01, 0.001):
        found = result(ApproxQuantile(QS, error, exponents), values, parts=3)
        assert found["n"] == len(values)
        assert found["outside"] == 0
        # Among subnormal numbers the bound itself is rounded, up to half of the smallest.
        off = np.abs(found["value"] - exact)
        assert (off <= error * np.abs(exact)).all()
        assert found["min"] == found["value"][0] == float(values.min())
        assert found["max"] == found["value"][-1] == float(values.max())


def test_our_lower_quantile_is_that_of_numpy() -> None:
    for n in (1, 2, 10, 101, 999):
        values = np.arange(float(n))
        for q in QS:
            assert lower(values, q) == np.quantile(values, q, method="lower")


def test_one_quantile_and_several() -> None:
    assert result(ApproxQuantile(), NORMAL)["value"].shape == ()
    assert result(ApproxQuantile((0.5,)), NORMAL)["value"].shape == (1,)
    for given_q in ([0.1, 0.9], np.array([0.1, 0.9])):
        assert ApproxQuantile(given_q).q == (0.1, 0.9)  # type: ignore[arg-type]
    assert ApproxQuantile(1).q == 1.0


def test_quantiles_without_values_and_with_missing_ones() -> None:
    sketch = ApproxQuantile((0.0, 0.5, 1.0))
    empty = result(sketch, np.full(5, np.nan))
    assert np.isnan([*empty["value"], empty["min"], empty["max"]]).all()
    assert empty["n"] == 0
    holes = np.where(np.arange(N) % 3, NORMAL, np.nan)
    holes[1] = -np.float64(np.nan)  # the other sign
    found, exact = result(sketch, holes), result(sketch, holes[~np.isnan(holes)])
    assert found["value"].tolist() == exact["value"].tolist()
    odd = np.array([0x7FF0000000000001, 0xFFF0000000000001], np.uint64).view(np.float64)
    assert result(sketch, odd)["n"] == 0  # NaN whose upper bits are those of infinity


def test_infinities_are_values_below_and_above_all_others() -> None:
    values = np.array([np.inf, 1.0, -np.inf, 2.0, np.inf])
    found = result(ApproxQuantile((0, 0.25, 0.5, 0.75, 1)), values)
    assert found["value"][[0, 3, 4]].tolist() == [-np.inf, np.inf, np.inf]
    assert found["value"][1:3] == pytest.approx([1, 2], rel=0.01)
    assert (found["min"], found["max"], found["n"], found["outside"]) == (-np.inf, np.inf, 5, 0)
    for sign in (1, -1):
        only = result(ApproxQuantile((0, 0.5, 1)), np.full(3, sign * np.inf))
        assert (only["value"] == sign * np.inf).all()
        assert only["min"] == only["max"] == sign * np.inf


def test_magnitudes_that_are_not_told_apart_are_counted() -> None:
    values = np.array([-1e300, -1e39, -1.0, 1e-50, -1e-50, 0.0, 1.0, 2e39, 3e39])
    found = result(ApproxQuantile((0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)), values)
    assert found["outside"] == 6
    assert found["value"][[0, 1]].tolist() == [-1e300, -1e300]  # the end of the range
    assert found["value"][[3, 4, 5]].tolist() == [0, 0, 0]
    assert found["value"][[7, 8]].tolist() == [3e39, 3e39]
    assert result(ApproxQuantile(exponents=WHOLE), values)["outside"] == 0


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=30), st.floats(0, 1))
@examples(200)
def test_quantiles_of_any_floats(numbers: list[float], q: float) -> None:
    values = np.array(numbers)
    exact = lower(values, q)
    value = float(result(ApproxQuantile(q, exponents=WHOLE), values)["value"])
    if np.isinf(exact):
        assert value == exact
    else:
        assert abs(value - exact) <= 0.01 * abs(exact)


def test_the_error_is_the_one_asked_for_and_the_state_the_one_stated() -> None:
    for error in (0.5, 0.2, 0.01, 0.00777, 0.001, 1e-4):
        assert 1 / (2 ** (mantissa_bits(error) + 1) + 1) <= error
    size = sum(array.nbytes for array in ApproxQuantile().init(1).values())
    assert size == 16 * (128 + 149) * 2**6 + 64
    assert size == pytest.approx(284e3, rel=0.01)


# ---- histograms --------------------------------------------------------------------------------


def slack(values: np.ndarray, edges: np.ndarray) -> float:
    """How far an inner edge may be off, by the docstring."""
    largest = float(np.abs(values.astype(np.float64)).max())
    share = 63 * (len(edges) - 1)
    return max(float(edges[-1]) / share - float(edges[0]) / share, math.ulp(largest) / 2)


@pytest.mark.parametrize("name", ALL)
def test_histograms_count_within_edges_that_are_hardly_off(name: str) -> None:
    for bins in (1, 7, 64, 100):
        check_histogram(ALL[name], bins)


def check_histogram(values: np.ndarray, bins: int) -> None:
    found = result(StreamingHistogram(bins), values, parts=3)
    counts, edges = found["counts"], found["edges"]
    assert counts.sum() == found["n"] == len(values)
    assert counts.min() >= 0
    assert (edges[1:] >= edges[:-1]).all()
    if values.min() < values.max():
        assert (edges[0], edges[-1]) == (float(values.min()), float(values.max()))
    ordered, off = np.sort(values.astype(np.float64)), slack(values, edges)
    before = np.cumsum(counts)[:-1]
    assert (before >= np.searchsorted(ordered, edges[1:-1] - off, side="left")).all()
    assert (before <= np.searchsorted(ordered, edges[1:-1] + off, side="right")).all()


@pytest.mark.parametrize("name", ["normal", "log-normal", "constant", "one decimal", "classes"])
def test_histogram_edges_are_those_of_numpy(name: str) -> None:
    values = DATA[name].astype(np.float64)
    expected = np.histogram_bin_edges(values, 10)
    assert result(StreamingHistogram(10), values)["edges"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [*DATA, "edges"])
def test_histograms_with_a_range_are_exact(name: str) -> None:
    for span in ((-1.0, 2.0), (0.0, 0.1), (-1e9, 1e9), (0, 12), (1e8, 1e8 + 1)):
        for bins in (1, 3, 64):
            check_range(name, span, bins)


def check_range(name: str, span: Any, bins: int) -> None:
    sketch = StreamingHistogram(bins, span)
    edges = sketch.finalize(sketch.init(1))["edges"][0]
    near = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)])
    values = near if name == "edges" else DATA[name]
    found = result(sketch, values, parts=2)
    numbers = values.astype(np.float64)
    index = np.searchsorted(edges, numbers, side="right") - 1
    index[numbers == edges[-1]] = bins - 1
    inside = (numbers >= edges[0]) & (numbers <= edges[-1])
    assert found["counts"].tolist() == np.bincount(index[inside], minlength=bins).tolist()
    assert found["below"] == (numbers < edges[0]).sum()
    assert found["above"] == (numbers > edges[-1]).sum()
    assert found["n"] == len(values)
    assert edges == pytest.approx(np.linspace(*span, bins + 1), rel=1e-14, abs=1e-300)


def test_histograms_set_infinities_apart_and_ignore_nan() -> None:
    values = np.array([np.inf, 0.0, 1.0, -np.inf, np.nan, -np.inf, 2.0])
    for sketch in (StreamingHistogram(2), StreamingHistogram(2, (0, 2))):
        found = result(sketch, values)
        assert found["counts"].tolist() == [1, 2]
        assert found["edges"].tolist() == [0, 1, 2]
        assert (found["below"], found["above"], found["n"]) == (2, 1, 6)
    for nothing in (np.full(3, np.nan), np.array([np.inf, -np.inf])):
        found = result(StreamingHistogram(2), nothing)
        assert np.isnan(found["edges"]).all()
        assert found["counts"].tolist() == [0, 0]
        assert found["n"] == np.count_nonzero(~np.isnan(nothing))


def test_histograms_do_not_lose_a_tiny_negative_number() -> None:
    """Dividing it by the width of a cell would underflow to zero, the cell of the positive ones."""
    values = np.array([-TINY, TINY, -1e300, 1e300] * 3)
    found = result(StreamingHistogram(2), values)
    assert found["counts"].tolist() == [6, 6]
    alone = result(StreamingHistogram(2), np.array([-TINY, TINY]))
    assert alone["counts"].tolist() == [1, 1]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=30))
@examples(200)
def test_histograms_of_any_floats(numbers: list[float]) -> None:
    values = np.array(numbers)
    found = result(StreamingHistogram(4), values, parts=2)
    assert found["counts"].sum() == len(values)
    ordered, edges, off = np.sort(values), found["edges"], slack(values, found["edges"])
    before = np.cumsum(found["counts"])[:-1]
    with np.errstate(over="ignore"):
        assert (before >= np.searchsorted(ordered, edges[1:-1] - off)).all()
        assert (before <= np.searchsorted(ordered, edges[1:-1] + off, "right")).all()


def test_the_state_of_a_histogram_has_the_stated_size() -> None:
    sizes = {b: sum(a.nbytes for a in StreamingHistogram(b).init(1).values()) for b in (64, 100)}
    assert sizes == {64: 512 * 64 + 32, 100: 512 * 128 + 32}
    given_range = StreamingHistogram(64, (0, 1)).init(1)
    assert sum(a.nbytes for a in given_range.values()) == 8 * 64 + 16
