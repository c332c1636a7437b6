"""What all sketches promise: states merge exactly, in any order, and values are what they are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from geopatch_dask.aggregation.sketches import (
    ApproxCardinality,
    ApproxMode,
    ApproxQuantile,
    Reservoir,
    StreamingHistogram,
)
from geopatch_dask.aggregation.sketches.values import canonical, mixed, numbers_of, unmixed
from geopatch_dask.aggregation.statistic import Statistic, StatisticState, merge_tree
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import Configurable

SKETCHES: list[Statistic] = [
    ApproxQuantile(q=(0.0, 0.1, 0.5, 1.0)),
    ApproxQuantile(relative_error=0.05, exponents=(-1074, 1024)),
    ApproxCardinality(p=6),
    ApproxCardinality(),
    ApproxMode(k=3),
    StreamingHistogram(bins=5),
    StreamingHistogram(bins=64),
    StreamingHistogram(bins=7, range=(-2, 5.5)),
    Reservoir(k=8, seed=3),
    Reservoir(k=1),
]
every_sketch = pytest.mark.parametrize("sketch", SKETCHES, ids=repr)

# Values whose handling is easy to get wrong, each alone and among others.
ODD = [
    0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 5e-324, -5e-324, 2.2e-308, 1.4e-45, 1e-40,
    1.7976931348623157e308, -1.7976931348623157e308, 3.4e38, 3.5e38, 2.0**53, 0.1, 1e8, 1e8 + 1e-3,
]  # fmt: skip
floats = st.one_of(
    st.sampled_from(ODD),
    st.floats(-10, 10),
    st.floats(width=32),
    st.floats(),
)
integers = st.one_of(
    st.integers(-5, 5), st.integers(2**53 - 3, 2**53 + 9), st.integers(-(2**63), 2**63 - 1)
)


def fed(sketch: Statistic, values: npt.ArrayLike, keys: npt.ArrayLike | None = None) -> Any:
    """The state after one pass; one band for values of one axis."""
    array = np.atleast_2d(np.asarray(values))
    state = sketch.init(len(array))
    places = np.arange(array.shape[1]) if keys is None else np.asarray(keys)
    sketch.update(state, array, places.astype(np.uint64))
    return state


def copied(state: StatisticState) -> StatisticState:
    return {name: array.copy() for name, array in state.items()}


def same(one: StatisticState, other: StatisticState) -> None:
    """Equal to the bit: -0.0 is not +0.0 here."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.shape == other[name].shape, name
        assert array.tobytes() == other[name].tobytes(), name


@st.composite
def splits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Two bands of values, their keys, and a way to deal them out into parts in any order."""
    n = draw(st.integers(0, 40))
    pick = draw(st.sampled_from([floats, integers]))
    if pick is integers:
        flat = draw(st.lists(pick, min_size=2 * n, max_size=2 * n))
        values = np.array(flat, np.int64).reshape(2, n)
    else:
        flat = draw(st.lists(pick, min_size=2 * n, max_size=2 * n))
        values = np.array(flat, np.float64).reshape(2, n)
    order = np.array(draw(st.permutations(list(range(n)))), np.int64)
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    keys = np.arange(n, dtype=np.uint64) * np.uint64(draw(st.sampled_from([1, 7, 2**61 + 1])))
    return values, keys, np.split(order, cuts)


@every_sketch
@examples(40)
@given(case=splits())
def test_any_split_in_any_order_is_the_single_pass(sketch: Statistic, case: Any) -> None:
    values, keys, parts = case
    whole = fed(sketch, values, keys)
    states = [fed(sketch, values[:, part], keys[part]) for part in parts]
    merged = sketch.init(2)
    for state in states:
        merged = sketch.merge(merged, copied(state))
    same(merged, whole)
    same(merge_tree(sketch, [copied(state) for state in states[::-1]]), whole)
    one_by_one = sketch.init(2)
    for part in parts:
        sketch.update(one_by_one, values[:, part], keys[part])
    same(one_by_one, whole)


@every_sketch
def test_merge_is_commutative_and_associative_and_changes_neither(sketch: Statistic) -> None:
    rng = np.random.default_rng(1)
    n = 3000
    values = np.round(np.exp(rng.normal(size=(2, n)) * 3), 2) * rng.choice([-1, 1], (2, n))
    values[0, ::7], values[1, ::50] = np.nan, np.inf
    parts = np.split(np.arange(n), [10, 1700])
    a, b, c = (fed(sketch, values[:, part], part) for part in parts)
    left, right = copied(a), copied(b)
    for array in (*a.values(), *b.values()):
        array.setflags(write=False)  # as states arrive from another process
    ab = sketch.merge(a, b)
    same(a, left)
    same(b, right)
    assert not any(np.shares_memory(ab[n], s[n]) for s in (a, b) for n in ab)
    same(ab, sketch.merge(copied(b), copied(a)))
    same(sketch.merge(copied(ab), c), sketch.merge(copied(a), sketch.merge(copied(b), copied(c))))
    same(sketch.merge(copied(ab), c), fed(sketch, values))


@every_sketch
def test_an_empty_state_is_neutral(sketch: Statistic) -> None:
    state = fed(sketch, [[1.5, -2, np.nan, np.inf]])
    same(sketch.merge(copied(state), sketch.init(1)), state)
    same(sketch.merge(sketch.init(1), copied(state)), state)
    same(sketch.merge(sketch.init(1), sketch.init(1)), sketch.init(1))
    same(fed(sketch, np.empty((1, 0))), sketch.init(1))
    same(fed(sketch, np.full((1, 9), np.nan)), sketch.init(1))
    sketch.finalize(sketch.init(3))


@every_sketch
def test_pieces_are_one_pass(sketch: Statistic, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the pieces inside an update is no part of the result."""
    values = np.random.default_rng(2).normal(size=(2, 1000)) * 1e3
    whole = fed(sketch, values)
    monkeypatch.setattr("geopatch_dask.aggregation.sketches.values.PIECE", 17)
    same(fed(sketch, values), whole)


@every_sketch
def test_bands_are_independent(sketch: Statistic) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 400)) * np.array([[1], [1e6], [1e-6]])
    values[1, 5:] = np.nan
    together = fed(sketch, values)
    for band in range(3):
        alone = fed(sketch, values[band])
        same({name: array[band : band + 1] for name, array in together.items()}, alone)


@every_sketch
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u4", "i4", "i8", "u8", "f2", "f4", "f8", "?"])
def test_a_number_is_the_same_in_every_dtype(sketch: Statistic, dtype: str) -> None:
    numbers = np.arange(120) % (2 if dtype == "?" else 100)
    same(fed(sketch, numbers.astype(dtype)), fed(sketch, numbers.astype(np.float64)))


@every_sketch
def test_negative_zero_is_zero(sketch: Statistic) -> None:
    same(fed(sketch, [-0.0, 1.0, -0.0]), fed(sketch, [0.0, 1.0, 0.0]))
    same(fed(sketch, [-0.0, -0.0]), fed(sketch, [0, 0]))


@every_sketch
def test_any_layout_of_memory(sketch: Statistic) -> None:
    values = np.random.default_rng(4).normal(size=(2, 300)).astype(np.float32)
    whole = fed(sketch, values)
    same(fed(sketch, np.asfortranarray(values)), whole)
    same(fed(sketch, values.astype(">f4")), whole)
    same(fed(sketch, np.repeat(values, 2, axis=1)[:, ::2]), whole)
    frozen = values.copy()
    frozen.setflags(write=False)
    same(fed(sketch, frozen), whole)
    assert (frozen == values).all()


@every_sketch
def test_configuration_survives_json(sketch: Statistic) -> None:
    config = json.loads(json.dumps(sketch.get_config()))
    assert Configurable.from_config(config) == sketch
    assert type(sketch).from_config(config).get_config() == config
    hash(sketch)


@every_sketch
def test_shapes_and_dtypes_that_make_no_sense(sketch: Statistic) -> None:
    keys = np.arange(4, dtype=np.uint64)
    for values in (np.zeros(4), np.zeros((2, 4)), np.zeros((1, 2, 2))):
        with pytest.raises(OptionError, match=r"shape \(1, n\)"):
            sketch.update(sketch.init(1), values, keys)
    for dtype in (np.complex128, "M8[s]", "U3", object):
        with pytest.raises(OptionError, match="real numbers"):
            sketch.update(sketch.init(1), np.zeros((1, 4), dtype), keys)


BAD: list[tuple[type[Statistic], dict[str, Any], str]] = [
    (ApproxQuantile, {"q": 1.1}, r"\[0, 1\]"),
    (ApproxQuantile, {"q": -0.1}, r"\[0, 1\]"),
    (ApproxQuantile, {"q": (0.5, float("nan"))}, r"\[0, 1\]"),
    (ApproxQuantile, {"q": ()}, "q must be"),
    (ApproxQuantile, {"q": "half"}, "q must be"),
    (ApproxQuantile, {"relative_error": 0}, "relative_error"),
    (ApproxQuantile, {"relative_error": 1.0}, "relative_error"),
    (ApproxQuantile, {"relative_error": "1 %"}, "relative_error"),
    (ApproxQuantile, {"exponents": (5, 5)}, "high exponent"),
    (ApproxQuantile, {"exponents": (-2000, 5)}, "low exponent"),
    (ApproxQuantile, {"exponents": 3}, "two integers"),
    (ApproxCardinality, {"p": 3}, "4 ... 18"),
    (ApproxCardinality, {"p": 19}, "4 ... 18"),
    (ApproxCardinality, {"p": 8.0}, "integer"),
    (ApproxMode, {"k": 0}, "1 ... 1024"),
    (ApproxMode, {"k": True}, "integer"),
    (StreamingHistogram, {"bins": 0}, "bins"),
    (StreamingHistogram, {"bins": 2.5}, "integer"),
    (StreamingHistogram, {"range": (1, 1)}, "go up"),
    (StreamingHistogram, {"range": (2, 1)}, "go up"),
    (StreamingHistogram, {"range": (0, float("inf"))}, "go up"),
    (StreamingHistogram, {"range": (-1.7e308, 1.7e308)}, "go up"),
    (StreamingHistogram, {"range": (float("nan"), 1)}, "go up"),
    (StreamingHistogram, {"range": (1e16, 1e16 + 4)}, "too narrow"),
    (StreamingHistogram, {"range": 5}, "two numbers"),
    (StreamingHistogram, {"range": ("a", "b")}, "two numbers"),
    (Reservoir, {"k": 0}, "k of Reservoir"),
    (Reservoir, {"seed": 0.5}, "seed"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD, ids=str)
def test_options_that_make_no_sense(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        kind(**options)


def test_the_mixer_is_inverted() -> None:
    words = np.random.default_rng(5).integers(0, 2**64, 10000, dtype=np.uint64)
    words[:3] = 0, 1, 2**64 - 1
    assert (unmixed(mixed(words.copy())) == words).all()


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=5))
def test_numbers_are_identified_exactly(numbers: list[int]) -> None:
    for dtype in (np.int64, np.uint64):
        held = [x for x in numbers if np.iinfo(dtype).min <= x <= np.iinfo(dtype).max]
        bits, kinds = canonical(np.array(held, dtype))
        kinds = np.zeros(len(bits), np.uint8) if kinds is None else kinds
        assert numbers_of(bits, kinds) == held
        assert len(set(zip(bits.tolist(), kinds.tolist(), strict=True))) == len(set(held))
