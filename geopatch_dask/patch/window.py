"""How much a patch counts, cell by cell.

A separable window is one profile per axis; its weights are their outer product, which is what lets
the sum of weights be an outer product of 1-D sums.  All profiles but ``Hann("symmetric")`` are
sampled at the *midpoints* of cells, so they are strictly positive: no cell on the border of the
domain gets weight zero.

::

    Boxcar   ----------      Hann    _.-~~-._      Tukey   .-~~~~~~-.      Gaussian  _.-~~-._
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import Configurable, load_object

__all__ = ["Boxcar", "Custom", "FloatArray", "Gaussian", "Hann", "Tukey", "Window"]

FloatArray = npt.NDArray[np.float64]


class Window(Configurable):
    """Base of windows: non-negative float64 weights, dimensionless."""

    @property
    def separable(self) -> bool:
        """Whether the weights are the outer product of :meth:`profile` over the axes."""
        return True

    def profile(self, n: int) -> FloatArray:
        """Weights along one axis of ``n`` cells: float64, shape (n,)."""
        raise OptionError(f"{type(self).__name__} has no 1-D profile")

    def weights(self, shape: Sequence[int]) -> FloatArray:
        """Weights of a full patch: float64, C-contiguous, read-only, of the given shape."""
        return _outer(self, tuple(shape))

    def support(self, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Per axis, the smallest ``(start, stop)`` outside which every weight is zero.

        Raises
        ------
        OptionError
            When the window is zero everywhere.
        """
        if self.separable:
            return tuple(_nonzero(self, self.profile(n)) for n in shape)
        weights = self.weights(shape)
        axes = range(len(shape))
        return tuple(
            _nonzero(self, weights.max(axis=tuple(a for a in axes if a != axis))) for axis in axes
        )


@lru_cache(maxsize=64)
def _outer(window: Window, shape: tuple[int, ...]) -> FloatArray:
    weights = reduce(np.multiply.outer, (window.profile(n) for n in shape))
    weights = np.ascontiguousarray(weights, np.float64)
    weights.flags.writeable = False
    return weights


def _nonzero(window: Window, values: FloatArray) -> tuple[int, int]:
    inside = np.flatnonzero(values)
    if not len(inside):
        raise OptionError(f"{window} is zero on all {len(values)} cells; use a larger patch")
    return int(inside[0]), int(inside[-1]) + 1


@dataclass(frozen=True)
class Boxcar(Window):
    """Every cell counts the same."""

    def profile(self, n: int) -> FloatArray:
        """Ones."""
        return np.ones(n)


@dataclass(frozen=True)
class Hann(Window):
    """A raised cosine.

    Parameters
    ----------
    form : {"midpoint", "symmetric"}
        ``midpoint``: ``sin^2(pi (i + 1/2) / n)``, strictly positive, sums to one at stride n/2.
        ``symmetric``: ``numpy.hanning``, whose end points are zero (support n - 2).
    """

    form: Literal["midpoint", "symmetric"] = "midpoint"

    def __post_init__(self) -> None:
        if self.form not in ("midpoint", "symmetric"):
            raise OptionError(f"Hann form {self.form!r} is neither 'midpoint' nor 'symmetric'")

    def profile(self, n: int) -> FloatArray:
        """The raised cosine at ``n`` cells."""
        if self.form == "symmetric":
            return np.hanning(n).astype(np.float64)
        return np.asarray(np.sin(np.pi * _midpoints(n)) ** 2)


@dataclass(frozen=True)
class Tukey(Window):
    """Flat in the middle, cosine at both ends, at midpoints.

    Parameters
    ----------
    alpha : float in [0, 1]
        Share of the axis that is tapered: 0 is :class:`Boxcar`, 1 is :class:`Hann`.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise OptionError(f"Tukey alpha must lie in [0, 1], got {self.alpha!r}")

    def profile(self, n: int) -> FloatArray:
        """One inside, ``sin^2`` over ``alpha n / 2`` cells at either end."""
        t = _midpoints(n)
        edge = np.minimum(t, 1 - t)
        if self.alpha == 0:
            return np.ones(n)
        return np.where(edge < self.alpha / 2, np.sin(np.pi * edge / self.alpha) ** 2, 1.0)


@dataclass(frozen=True)
class Gaussian(Window):
    """A bell around the middle of the patch.

    Parameters
    ----------
    sigma : float > 0
        Standard deviation in units of half the patch.
    """

    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma < np.inf:
            raise OptionError(f"Gaussian sigma must be positive and finite, got {self.sigma!r}")

    def profile(self, n: int) -> FloatArray:
        """``exp(-x^2 / 2 s^2)`` with x from the centre and ``s = sigma n / 2`` cells.

        Never below 1e-50, so that products over the axes of a patch do not vanish.
        """
        x = np.arange(n) - (n - 1) / 2
        return np.asarray(np.maximum(np.exp(-0.5 * (x / (self.sigma * n / 2)) ** 2), 1e-50))


@dataclass(frozen=True)
class Custom(Window):
    """A window of your own.

    Parameters
    ----------
    function : callable ``(shape) -> array of that shape``, or ``"module:name"``
        Weights must be finite and non-negative.  Give a top-level function (or its name) if the
        patcher has to become JSON.
    """

    function: Callable[[tuple[int, ...]], npt.ArrayLike] | str

    @property
    def separable(self) -> bool:
        """False: nothing is known about the shape of the function."""
        return False

    def weights(self, shape: Sequence[int]) -> FloatArray:
        """What the function returns, checked."""
        return _called(self.function, tuple(shape))


@lru_cache(maxsize=64)
def _called(function: Any, shape: tuple[int, ...]) -> FloatArray:
    call = load_object(function) if isinstance(function, str) else function
    weights = np.ascontiguousarray(call(shape), np.float64).copy()
    if weights.shape != shape:
        raise OptionError(
            f"the custom window returned shape {weights.shape} for a patch of {shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise OptionError("the custom window returned weights that are negative or not finite")
    weights.flags.writeable = False
    return weights


def _midpoints(n: int) -> FloatArray:
    return (np.arange(n) + 0.5) / n
