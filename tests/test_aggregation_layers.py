"""Medians, quantiles, modes and learned functions: widths, repeats, large integers, infinities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sample_operators as ops
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

import geopatch_dask as gp
from geopatch_dask.testing import Cut, assert_layout_invariant

Array = npt.NDArray[Any]
inf, nan = np.inf, np.nan


@pytest.fixture(autouse=True)
def _unbounded_is_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*streaming_safe")
        yield


def layered(layers: Any, aggregation: gp.Aggregation, k: int | None = None, **output: Any) -> Any:
    """Aggregate rows that lie exactly over one another, in this order; ``k`` anchors for them."""
    cells = np.shape(layers[0])
    field = gp.ArrayField(np.zeros(cells), dims=("x",))
    anchors = gp.Explicit([(0,)] * (k or len(layers)))
    patcher = gp.Patcher(gp.Rectangular(cells), anchors, None, aggregation)
    patches = list(patcher.split(field))
    shown = (patches[i % len(patches)].with_data(layer) for i, layer in enumerate(layers))
    return patcher.merge(shown, field, gp.Output(**output))


# ---- pieces of any width -------------------------------------------------------------------------


def nanmean(layers: Array, n: Array) -> Array:
    return np.nanmean(layers, axis=0)


@pytest.mark.parametrize("function", [nanmean, lambda a, n: np.einsum("kc->c", np.nan_to_num(a))])
def test_one_cell_is_added_up_like_many(function: Any) -> None:
    """Numpy adds a lone column pairwise, and many columns row by row."""
    values = np.random.default_rng(0).random((40, 300))
    learned = gp.Learned(function)
    whole = layered(list(values), learned)
    for first, cells in ((0, 1), (7, 1), (8, 2), (3, 64), (5, 65), (100, 200)):
        piece = layered(list(values[:, first : first + cells]), learned)
        assert piece.tobytes() == whole[first : first + cells].tobytes()


@pytest.mark.parametrize(
    ("n", "sampler", "tile"),
    [
        (100, gp.RegularStride((1,)), 62),  # pieces of 61 cells leave one of the tile
        (33, gp.Random(200, 1), 16),
    ],
)
def test_a_learned_mean_does_not_depend_on_the_tile(
    n: int, sampler: Any, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geopatch_dask.aggregation.layers.PIECE", 61 * 24 * 8)
    field = gp.ArrayField(np.random.default_rng(1).random(n), dims=("t",))
    patcher = gp.Patcher(gp.Rectangular((24,), "pad"), sampler, None, gp.Learned(nanmean))
    cuts = [Cut((tile,), (tile,))]
    assert_layout_invariant(field, patcher, ops.mixing, cuts=cuts, schedulers=("sync",))


def test_a_learned_mean_in_a_plane() -> None:
    """The cuts that every user's aggregation is tried with leave single cells, too."""
    field = gp.ArrayField(np.random.default_rng(2).random((17, 17)))
    patcher = gp.Patcher(
        gp.Rectangular((8, 8)), gp.RegularStride((2, 2)), None, gp.Learned(nanmean)
    )
    assert_layout_invariant(field, patcher, ops.mixing, schedulers=("sync",))


@pytest.mark.parametrize(
    "wrong", [lambda a, n: a, lambda a, n: a[0] + 1j, lambda a, n: a[0].astype(str)]
)
def test_a_learned_function_that_returns_no_numbers(wrong: Any) -> None:
    with pytest.raises(gp.OptionError, match="one real number per cell"):
        layered([np.ones(3)], gp.Learned(wrong))


# ---- more patches than anchors -------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3))
@examples(40)
def test_patches_given_again_count_again(seed: int, n: int, k: int) -> None:
    """``merge`` takes patches repeatedly: layers grow beyond what the anchors need."""
    layers = np.random.default_rng(seed).integers(0, 4, (n, 5)).astype(float)
    layers[np.random.default_rng(seed + 1).random(layers.shape) < 0.3] = nan
    for aggregation in (gp.Median(), gp.Quantile((0.3, 1.0)), gp.Mode(), gp.Learned(nanmean)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cells without a value
            found = layered(list(layers), aggregation, min(k, n))
            expected = layered(list(layers), aggregation)
        assert found.tobytes() == expected.tobytes(), aggregation


def test_states_that_are_fuller_than_k_merge() -> None:
    field = gp.ArrayField(np.zeros(2), dims=("x",))
    grid = gp.Patcher(gp.Rectangular((2,)), gp.RegularStride((2,)), None, gp.Mode()).grid(
        field.domain
    )
    assert grid.most_layers == 1
    states = []
    for rows in ([1.0, 5.0], [5.0, 7.0, 7.0, 7.0]):
        state = gp.Mode().init(grid, grid.box, complete=False)
        for row in rows:
            gp.Mode().add(state, grid.box, np.full(2, row), None)
        states.append(state)
    joined = gp.Mode().merge(*states)
    assert joined["n"].tolist() == [6, 6]
    np.testing.assert_array_equal(gp.Mode().finalize(joined)[""], [7.0, 7.0])


# ---- integers that float64 does not have ---------------------------------------------------------

BIG = 2**53 + 1


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_integers_stay_exact_where_nothing_is_interpolated(dtype: str) -> None:
    top = np.iinfo(dtype).max
    layers = np.array([[BIG, top, 1, BIG], [BIG, top - 1, 2, BIG + 8], [BIG + 2, 5, 4, 7]], dtype)
    for aggregation, expected in (
        (gp.Median(), [BIG, top - 1, 2, BIG]),
        (gp.Quantile(0.0), [BIG, 5, 1, 7]),
        (gp.Quantile(0.5), [BIG, top - 1, 2, BIG]),
        (gp.Quantile(0.25), [BIG, None, 2, None]),
        (gp.Mode(), [BIG, 5, 1, 7]),
        (gp.Learned(lambda a, n: a[0]), [BIG, top, 1, BIG]),
        (gp.Learned(lambda a, n: a.max(axis=0) - 1), [BIG + 1, top - 1, 3, BIG + 7]),
    ):
        found = layered(list(layers), aggregation, dtype=dtype).tolist()
        assert found == [f if e is None else e for f, e in zip(found, expected, strict=True)]
    several = layered(list(layers), gp.Quantile((0.0, 1.0)), dtype=dtype)
    assert several.tolist() == [layers.min(axis=0).tolist(), layers.max(axis=0).tolist()]
    halves = [np.array([1, 2, 5], dtype), np.array([2, 3, 5], dtype)]
    assert layered(halves, gp.Median(), dtype=dtype).tolist() == [2, 2, 5], "half to even"
    assert layered(halves, gp.Median()).tolist() == [1.5, 2.5, 5.0]


def test_large_integers_do_not_depend_on_the_layout() -> None:
    values = np.random.default_rng(5).integers(2**60, 2**60 + 9, (20, 24))
    patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((4, 4)), None, gp.Median())
    found = assert_layout_invariant(
        *(gp.ArrayField(values), patcher, np.positive),
        output=gp.Output(dtype="int64"),
        cuts=[Cut((4, 4), (4, 4)), Cut((20, 7), (5, 7))],
    )
    np.testing.assert_array_equal(found, values)


def test_a_mode_of_flags_has_room_for_a_fill() -> None:
    found = layered([np.array([True, False]), np.array([True, True])], gp.Mode())
    assert found.dtype == np.uint8
    assert found.tolist() == [1, 0]


# ---- infinities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.2, 0.5, 0.75])
def test_between_a_number_and_an_infinity_lies_the_infinity(q: float) -> None:
    """As for the median, whatever q; between two infinities there is no answer."""
    layers = [np.array([1.0, -inf, -inf, inf, 1.7e308]), np.array([inf, 1.0, inf, inf, -1.7e308])]
    found = layered(layers, gp.Quantile(q))
    np.testing.assert_array_equal(found[:4], [inf, -inf, nan, inf])
    assert found[4] == pytest.approx((2 * q - 1) * 1.7e308, abs=1e293), "far apart, not infinite"
    np.testing.assert_array_equal(layered(layers, gp.Median())[:4], [inf, -inf, nan, inf])


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", ["0.5", "median", None, True, [["a"]], [None], {0.5}, 1j, b"1"])
def test_a_q_that_is_no_number_is_refused(q: Any) -> None:
    with pytest.raises(gp.OptionError, match=r"q must be a number in \[0, 1\], or a list of them"):
        gp.Quantile(q)


def test_numpys_numbers_are_numbers() -> None:
    assert gp.Quantile(np.float32(0.5)) == gp.Quantile(0.5)
    assert gp.Quantile(np.int64(1)) == gp.Quantile(1.0)
    assert (
        gp.Quantile(np.array([0.25, 0.5])) == gp.Quantile([0.25, 0.5]) == gp.Quantile((0.25, 0.5))
    )


def test_a_median_has_no_options() -> None:
    with pytest.raises(TypeError):
        gp.Median(0.9)  # type: ignore[call-arg]
    assert gp.Median().get_config() == {"class": "Median"}
    assert gp.Median.from_config({"class": "Median"}) == gp.Median()
    with pytest.raises(gp.OptionError, match="Median"):
        gp.Median.from_config({"class": "Median", "q": 0.9})
