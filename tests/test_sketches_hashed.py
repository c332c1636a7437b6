"""The errors of the sketches that hash: how many, which most often, and a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from geopatch_dask.aggregation.sketches import ApproxCardinality, ApproxMode, Reservoir
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.anchors import random_bits

RNG = np.random.default_rng(21)


def fed(sketch: Statistic, values: np.ndarray, keys: np.ndarray | None = None) -> StatisticState:
    values = np.atleast_2d(values)
    state = sketch.init(len(values))
    places = np.arange(values.shape[1], dtype=np.uint64) if keys is None else keys
    sketch.update(state, values, places)
    return state


def result(sketch: Statistic, values: np.ndarray, keys: np.ndarray | None = None) -> dict[str, Any]:
    """What a sketch says about one band, without the axis of bands."""
    found = sketch.finalize(fed(sketch, values, keys))
    return {name: array[0] if np.ndim(array) else array for name, array in found.items()}


def nbytes(sketch: Statistic) -> int:
    return sum(array.nbytes for array in sketch.init(1).values())


# ---- how many different values -----------------------------------------------------------------


@pytest.mark.parametrize("p", [4, 8, 10])
@pytest.mark.parametrize("load", [0.1, 0.5, 1.0, 2.0, 2.5, 3.0, 5.0, 20.0])
def test_cardinality_has_the_stated_standard_error_and_no_bias(p: int, load: float) -> None:
    """Through the range where linear counting ends and the raw estimate is still biased."""
    trials, n = 250, max(int(load * 2**p), 2)
    values = np.random.default_rng([p, n]).normal(size=(trials, n))
    sketch = ApproxCardinality(p)
    errors = sketch.finalize(fed(sketch, values))["count"] / n - 1
    expected = sketch.standard_error
    assert np.sqrt((errors**2).mean()) < expected * (1.15 if p > 4 else 1.35)
    # The mean of so many estimates is known to expected / sqrt(trials); with 16 registers the
    # variance leaves a bias of its own order, expected^2 / 2.
    assert abs(errors.mean()) < 3.5 * expected / np.sqrt(trials) + expected**2 / 2


CARDINALITIES: dict[str, tuple[np.ndarray, int]] = {
    "nothing": (np.full(9, np.nan), 0),
    "constant": (np.full(50_000, 0.1), 1),
    "two points": (np.where(RNG.normal(size=50_000) > 1, 3.0, 5e-324), 2),
    "classes": (np.arange(50_000, dtype=np.int32) % 200, 200),
    "ascending integers": (np.arange(50_000), 50_000),
    "multiples of 2**20": (np.arange(50_000) << 20, 50_000),
    "powers of two": (2.0 ** np.arange(-1074, 1024), 2098),
    "beyond 2**53": (np.arange(2**53, 2**53 + 50_000), 50_000),
    "beyond 2**63": (np.arange(2**63, 2**63 + 50_000, dtype=np.uint64), 50_000),
    "subnormal": (np.arange(1, 20_001) * 5e-324, 20_000),
    "one decimal": (np.arange(-20_000, 20_000) / 10, 40_000),
    "float32": (np.linspace(0, 1, 50_000, dtype=np.float32), 50_000),
}


@pytest.mark.parametrize("name", CARDINALITIES)
@pytest.mark.parametrize("p", [12, 14, 18])
def test_cardinality_of_regular_numbers(name: str, p: int) -> None:
    values, n = CARDINALITIES[name]
    assert len(np.unique(values[~np.isnan(values)])) == n
    found = result(ApproxCardinality(p), values)
    assert found["standard_error"] == pytest.approx(1.04 / 2 ** (p / 2))
    assert abs(found["count"] - n) <= 3 * found["standard_error"] * n
    if n <= 2:
        assert round(found["count"]) == n


def test_cardinality_of_a_million_and_of_repetitions() -> None:
    values = np.random.default_rng(1).permutation(np.repeat(np.arange(1_000_000.0), 2))
    sketch = ApproxCardinality()
    once = fed(sketch, values[:1_000_000])
    assert result(sketch, values)["count"] == pytest.approx(1e6, rel=3 * sketch.standard_error)
    again = sketch.merge({k: v.copy() for k, v in once.items()}, once)
    assert (again["registers"] == once["registers"]).all()
    assert nbytes(sketch) == 2**14


def test_cardinality_tells_numbers_apart_not_dtypes() -> None:
    sketch = ApproxCardinality()
    numbers = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3, 2.0**53, 2.0**62])
    assert round(result(sketch, numbers)["count"]) == 6
    merged = sketch.merge(
        fed(sketch, np.array([3, 2**53, 2**53 + 1, 2**62, 0])), fed(sketch, numbers)
    )
    assert round(sketch.finalize(merged)["count"][0]) == 7


# ---- the most frequent values ------------------------------------------------------------------


def zipf(n: int) -> np.ndarray:
    return np.minimum(RNG.zipf(1.3, n), 10**9)


MODES: dict[str, np.ndarray] = {
    "Zipf": zipf(200_000),
    "Zipf, ascending": np.sort(zipf(200_000)) * 0.1,
    "Zipf, rarest first": np.repeat(np.arange(500) / 7, np.arange(500)),
    "normal, one decimal": np.round(RNG.normal(size=100_000), 1).astype(np.float32),
    "log-normal, rounded": np.round(np.exp(RNG.normal(size=100_000)), 2),
    "normal and one value": np.where(RNG.random(100_000) < 0.02, -9999.0, RNG.normal(size=100_000)),
    "constant": np.full(100_000, 1e-310),
    "two points": np.where(RNG.random(100_000) < 0.3, 1e300, -1e-300),
    "two points, as often": np.arange(100_000) % 2 * 5.0,
    "classes": RNG.integers(0, 40, 100_000).astype(np.uint8),
    "classes below zero": (RNG.normal(size=100_000) * 4).astype(np.int8),
    "beyond 2**53": 2**60 + zipf(100_000),
    "far below zero": -(2**60) - zipf(100_000),
    "beyond 2**63": np.uint64(2**63) + zipf(100_000).astype(np.uint64),
    "a few hundred, all as often": np.arange(100_000) % 120 * 0.3,
    "infinities": np.where(RNG.random(100_000) < 0.5, np.inf, -np.inf),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("k", [1, 16, 100])
def test_modes_are_found_and_their_counts_within_the_bound(name: str, k: int) -> None:
    values = MODES[name]
    sketch = ApproxMode(k)
    found = result(sketch, values)
    names, often = np.unique(values, return_counts=True)
    truth = dict(zip(names.tolist(), often.tolist(), strict=True))
    n = len(values)
    assert found["n"] == n
    assert found["error"] == pytest.approx(2 * np.e * n / sketch.width)
    filled = int((found["counts"] > 0).sum())
    assert filled <= k
    assert (found["counts"][filled:] == 0).all()
    answer = found["values"].tolist()[:filled]
    for value, count in zip(answer, found["counts"].tolist(), strict=False):
        assert value in truth  # exactly, integers beyond 2**53 too
        assert truth[value] <= count <= truth[value] + found["error"]
    ranked = sorted(zip(-found["counts"][:filled], answer, strict=True))
    assert [value for _, value in ranked] == answer  # by count, then by value
    # Every value more frequent than 16 n / w is there, unless k others were estimated higher.
    last = found["counts"][k - 1] if filled == k else 0
    for value, count in truth.items():
        if count > 16 * n / sketch.width and value not in answer:
            assert filled == k
            assert count <= last
    if often.max() > 16 * n / sketch.width and filled:
        assert truth[answer[0]] >= often.max() - found["error"]


def test_the_mode_of_values_that_hardly_repeat_is_none() -> None:
    found = result(ApproxMode(4), np.random.default_rng(2).normal(size=300_000))
    assert np.isnan(found["values"]).all()
    assert found["values"].dtype == np.float64
    assert found["counts"].tolist() == [0, 0, 0, 0]


def test_modes_of_bands_keep_their_dtypes_exact() -> None:
    big, both = 2**53 + 1, ApproxMode(2)
    found = both.finalize(fed(both, np.array([[big, big, 5], [7, 7, 7]])))
    assert found["values"].dtype == np.int64
    assert found["values"].tolist() == [[big, 5], [7, 0]]
    assert found["counts"].tolist() == [[2, 1], [3, 0]]
    found = both.finalize(fed(both, np.array([[2**64 - 1, 2**63]], np.uint64)))
    assert found["values"].tolist() == [[2**63, 2**64 - 1]]
    assert found["values"].dtype == np.uint64
    mixed = both.merge(fed(both, np.array([big, big])), fed(both, np.array([0.5])))
    assert both.finalize(mixed)["values"].tolist() == [[big, 0.5]]
    opposite = both.merge(fed(both, np.array([-big])), fed(both, np.array([2**64 - 1], np.uint64)))
    assert both.finalize(opposite)["values"].tolist() == [[-big, 2**64 - 1]]


def test_the_state_of_modes_has_the_stated_size() -> None:
    assert nbytes(ApproxMode()) == 160 * 2048 + 16408 == nbytes(ApproxMode(1))
    assert ApproxMode(17).width == 4096


# ---- a sample ----------------------------------------------------------------------------------


def test_the_sample_is_that_of_the_smallest_hashes() -> None:
    n = 200_000
    rng = np.random.default_rng(3)
    values, keys = rng.normal(size=n), rng.permutation(n).astype(np.uint64) * np.uint64(3)
    values[rng.random(n) < 0.2] = np.nan
    found = result(Reservoir(k=500, seed=9), values, keys)
    hashes = random_bits(9, keys, stream=0).astype(np.float64)
    best = np.argsort(np.where(np.isnan(values), np.inf, hashes))[:500]
    assert found["values"].tolist() == values[best].tolist()
    assert found["keys"].tolist() == keys[best].tolist()
    assert (found["size"], found["n"]) == (500, np.count_nonzero(~np.isnan(values)))


def test_every_place_is_sampled_as_often() -> None:
    n, k, seeds = 40, 8, 3000
    values, hits = np.arange(float(n)), np.zeros(n)
    pairs = np.zeros((n, n))
    for seed in range(seeds):
        sample = result(Reservoir(k, seed), values)["values"].astype(int)
        assert len(set(sample.tolist())) == k
        hits[sample] += 1
        pairs[np.ix_(sample, sample)] += 1
    p = k / n
    z = (hits - seeds * p) / np.sqrt(seeds * p * (1 - p))
    assert np.abs(z).max() < 4
    assert abs((z**2).mean() - (1 - 1 / n)) < 1  # chi-squared over its degrees of freedom
    together = pairs[np.triu_indices(n, 1)] / seeds
    both = p * (k - 1) / (n - 1)
    assert np.abs(together - both).max() < 5 * np.sqrt(both * (1 - both) / seeds)


@pytest.mark.parametrize("name", ["normal", "log-normal", "ascending", "two points"])
def test_means_over_the_sample_have_the_stated_error(name: str) -> None:
    n, k = 30_000, 400
    normal = np.random.default_rng(4).normal(size=n)
    values = {
        "normal": normal,
        "log-normal": np.exp(normal),
        "ascending": np.sort(normal),
        "two points": (normal > 1) * 1.0,
    }[name]
    means = [result(Reservoir(k, seed), values)["values"].mean() for seed in range(100)]
    expected = values.std() * np.sqrt((1 - k / n) / k)
    errors = (np.array(means) - values.mean()) / expected
    assert abs(errors.mean()) < 0.4
    assert 0.75 < np.sqrt((errors**2).mean()) < 1.25


def test_fewer_values_than_places() -> None:
    found = result(Reservoir(k=6), np.array([1.0, np.nan, np.inf, 3.0]))
    assert sorted(found["values"][:3].tolist()) == [1.0, 3.0, np.inf]
    assert np.isnan(found["values"][3:]).all()
    assert (found["size"], found["n"]) == (3, 3)


def test_samples_of_bands_lie_in_the_same_places_and_hold_exact_numbers() -> None:
    sketch = Reservoir(k=5)
    numbers = np.array([np.arange(50), np.arange(50) + 2**53])
    found = sketch.finalize(fed(sketch, numbers))
    assert (found["keys"][0] == found["keys"][1]).all()
    assert found["values"].dtype == np.int64
    assert (found["values"][0] == found["keys"][0].astype(np.int64)).all()
    assert (found["values"][1] - 2**53 == found["values"][0]).all()
    assert nbytes(sketch) == 25 * 5 + 8


def test_another_seed_another_sample_and_the_last_key() -> None:
    keys = np.arange(2**64 - 100, 2**64 - 1, dtype=np.uint64)
    keys = np.append(keys, np.uint64(2**64 - 1))
    values = np.arange(100.0)
    one, two = (result(Reservoir(10, seed), values, keys)["keys"].tolist() for seed in (0, -1))
    assert one != two
    everything = result(Reservoir(100), values, keys)
    assert sorted(everything["values"].tolist()) == values.tolist()


def test_a_key_given_twice_is_taken_twice_whatever_the_order() -> None:
    sketch, keys = Reservoir(k=3), np.array([5, 5, 5, 5], np.uint64)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        found = result(sketch, np.array([1.0, 2.0, 3.0, 4.0])[order], keys)
        assert found["values"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("keys", [np.arange(3), np.zeros((1, 4)), np.arange(4.0)], ids=str)
def test_keys_that_do_not_fit(keys: np.ndarray) -> None:
    with pytest.raises(OptionError, match="one integer key per value"):
        fed(Reservoir(), np.zeros((1, 4)), keys)
