"""Windows: non-negative weights that say how much each cell of a patch counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, holey, pyramid

import geopatch_dask as gp

PROFILES = (gp.Boxcar(), gp.Hann(), gp.Tukey(0.4), gp.Gaussian(0.3))


@pytest.mark.parametrize("window", PROFILES, ids=repr)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 255, 256])
def test_profiles_are_positive_and_symmetric(window: Any, n: int) -> None:
    profile = window.profile(n)
    assert profile.dtype == np.float64
    assert profile.shape == (n,)
    assert (profile > 0).all()
    np.testing.assert_allclose(profile, profile[::-1], rtol=1e-12)
    assert window.support((n,)) == ((0, n),)


@pytest.mark.parametrize("n", [2, 8, 30, 256])
def test_hann_is_a_partition_of_unity_at_half_its_length(n: int) -> None:
    profile = gp.Hann().profile(n)
    np.testing.assert_allclose(profile[: n // 2] + profile[n // 2 :], 1.0, atol=4e-16)


@pytest.mark.parametrize("n", [3, 8, 64])
def test_symmetric_hann_is_numpys_and_has_no_end_points(n: int) -> None:
    window = gp.Hann("symmetric")
    np.testing.assert_array_equal(window.profile(n), np.hanning(n))
    assert window.support((n, 5)) == ((1, n - 1), (1, 4))
    with pytest.raises(gp.OptionError, match="use a larger patch"):
        window.support((2,))


def test_tukey_goes_from_boxcar_to_hann() -> None:
    np.testing.assert_array_equal(gp.Tukey(0).profile(16), np.ones(16))
    np.testing.assert_allclose(gp.Tukey(1).profile(16), gp.Hann().profile(16), rtol=1e-14)
    profile = gp.Tukey(0.5).profile(16)
    np.testing.assert_array_equal(profile[4:12], np.ones(8))
    np.testing.assert_allclose(profile[:4], gp.Hann().profile(8)[:4], rtol=1e-14)


def test_gaussian_has_the_width_it_says() -> None:
    n, sigma = 101, 0.5
    x = np.arange(n) - 50
    expected = np.exp(-0.5 * (x / (sigma * n / 2)) ** 2)
    np.testing.assert_allclose(gp.Gaussian(sigma).profile(n), expected, rtol=1e-14)


@pytest.mark.parametrize("sigma", [0.1, 0.03, 0.01, 1e-6])
def test_narrow_gaussians_still_reach_their_corners(sigma: float) -> None:
    """exp(-500) is a number, its square is zero: a corner cell would be lost without a word."""
    field = gp.ArrayField(np.ones((20, 20)))
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((4, 4)), gp.Gaussian(sigma))
    np.testing.assert_allclose(patcher.merge(patcher.split(field), field), 1.0, rtol=1e-14)


@given(st.sampled_from(PROFILES), st.lists(st.integers(1, 9), min_size=1, max_size=3))
@examples(40)
def test_weights_are_the_outer_product_of_profiles(window: Any, shape: list[int]) -> None:
    weights = window.weights(shape)
    expected = window.profile(shape[0])
    for n in shape[1:]:
        expected = expected[..., None] * window.profile(n)
    np.testing.assert_array_equal(weights, expected)
    assert weights.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        weights[...] = 0  # it is shared between patches


def test_custom_windows_have_the_support_of_what_they_return() -> None:
    assert gp.Custom(pyramid).support((4, 5)) == ((0, 4), (0, 5))
    assert gp.Custom(holey).support((4, 5)) == ((1, 4), (0, 5))
    np.testing.assert_array_equal(gp.Custom(pyramid).weights((3, 3))[1], [1, 2, 1])
    by_name = gp.Custom("strategies:pyramid")
    np.testing.assert_array_equal(by_name.weights((4, 5)), pyramid((4, 5)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda shape: np.ones((2, 2)), r"shape \(2, 2\) for a patch of \(4, 4\)"),
        (lambda shape: -np.ones(shape), "negative or not finite"),
        (lambda shape: np.full(shape, np.nan), "negative or not finite"),
    ],
)
def test_custom_windows_are_checked(function: Any, message: str) -> None:
    with pytest.raises(gp.OptionError, match=message):
        gp.Custom(function).weights((4, 4))


def test_a_window_that_is_zero_everywhere_is_refused_with_its_patcher() -> None:
    field = gp.ArrayField(np.ones((8, 8)))
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)), gp.Custom(np.zeros))
    with pytest.raises(gp.OptionError, match="zero on all 4 cells"):
        patcher.grid(field.domain)


def test_a_window_is_no_matter_to_aggregations_that_do_not_weigh() -> None:
    field = gp.ArrayField(np.arange(64.0).reshape(8, 8))
    patcher = gp.Patcher(
        gp.Rectangular((4, 4)), gp.RegularStride((4, 4)), gp.Custom(np.zeros), gp.Mean()
    )
    assert next(patcher.split(field)).weights is None
    np.testing.assert_array_equal(
        patcher.merge(patcher.split(field), field), np.arange(64.0).reshape(8, 8)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: gp.Hann("periodic"),  # type: ignore[arg-type]
        lambda: gp.Tukey(-0.1),
        lambda: gp.Tukey(1.1),
        lambda: gp.Tukey(float("nan")),
        lambda: gp.Gaussian(0),
        lambda: gp.Gaussian(-1),
        lambda: gp.Gaussian(float("nan")),
        lambda: gp.Gaussian(float("inf")),
    ],
)
def test_bad_values(make: Any) -> None:
    with pytest.raises(gp.OptionError):
        make()
