"""Statistics for a first pass: moments, extremes, histograms, quantiles, covariance of bands.

Each state is per band unless said otherwise.  Moments of a block are taken around its own mean and
combined by the formulas of Chan, Golub and LeVeque (1979), which lose no digits to a large mean.
Infinities are values, and give what numpy gives: a mean that is infinite (NaN with both signs), and
no spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.quantile import ApproxQuantile
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.errors import OptionError

__all__ = ["Covariance", "Histogram", "MeanStd", "MinMax", "Quantiles"]

Array = npt.NDArray[Any]
Keys = npt.NDArray[np.uint64]


def _refined(mean: Array, rest: Array) -> Array:
    """A mean with what its sum rounded away; as it is where that is no number."""
    return np.asarray(np.where(np.isfinite(rest), mean + rest, mean))


def _between(left: Array, right: Array, share: Array) -> Array:
    """The mean of two means, of which the right one has a share of the values."""
    delta = right - left
    # Infinity minus infinity is no distance to go.
    plain = left * (1 - share) + right * share
    return np.asarray(np.where(np.isfinite(delta), left + delta * share, plain))


@dataclass(frozen=True)
class MeanStd(Statistic):
    """Mean and standard deviation of the valid values of each band.

    Parameters
    ----------
    ddof : int
        Divisor ``n - ddof``; 0, numpy's default, normalises to exactly unit variance.

    Notes
    -----
    ``finalize`` gives ``n``, ``mean`` and ``std``, each of shape (bands,); NaN where there are too
    few values.  24 bytes per band.  Integers beyond 2**53 are rounded to float64 first.
    """

    ddof: int = 0

    def init(self, bands: int) -> StatisticState:
        """Count, mean, sum of squared deviations."""
        return {"n": np.zeros(bands, np.int64), "mean": np.zeros(bands), "m2": np.zeros(bands)}

    def update(self, state: StatisticState, values: Array, keys: Keys) -> None:
        """Moments of the block, then one merge."""
        wide = values.astype(np.float64)
        valid = ~np.isnan(wide)
        n = valid.sum(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = np.where(valid, wide, 0.0).sum(axis=1) / np.maximum(n, 1)
            deviation = np.where(valid, wide - mean[:, None], 0.0)
            mean = _refined(mean, deviation.sum(axis=1) / np.maximum(n, 1))
            deviation = np.where(valid, wide - mean[:, None], 0.0)
            block = {"n": n, "mean": mean, "m2": (deviation * deviation).sum(axis=1)}
        state.update(self.merge(state, block))

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Chan's formula."""
        n = left["n"] + right["n"]
        share = right["n"] / np.maximum(n, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = right["mean"] - left["mean"]
            return {
                "n": n,
                "mean": _between(left["mean"], right["mean"], share),
                "m2": left["m2"] + right["m2"] + delta * delta * left["n"] * share,
            }

    def finalize(self, state: StatisticState) -> dict[str, Any]:
        """``n``, ``mean``, ``std``."""
        n = state["n"]
        with np.errstate(invalid="ignore", divide="ignore"):
            std = np.sqrt(state["m2"] / np.where(n > self.ddof, n - self.ddof, np.nan))
        return {"n": n, "mean": np.where(n > 0, state["mean"], np.nan), "std": std}


@dataclass(frozen=True)
class MinMax(Statistic):
    """Smallest and largest valid value of each band.

    Notes
    -----
    ``finalize`` gives ``n``, ``min`` and ``max``, shape (bands,); NaN where there is no value.
    Exact for floats and for integers up to 2**53; beyond, the nearest float64.  24 bytes per band.
    """

    def init(self, bands: int) -> StatisticState:
        """Count and extremes."""
        return {
            "n": np.zeros(bands, np.int64),
            "min": np.full(bands, np.inf),
            "max": np.full(bands, -np.inf),
        }

    def update(self, state: StatisticState, values: Array, keys: Keys) -> None:
        """Extremes of the block."""
        wide = values.astype(np.float64) + 0.0  # -0.0 is 0.0
        valid = ~np.isnan(wide)
        block = {
            "n": valid.sum(axis=1),
            "min": np.where(valid, wide, np.inf).min(axis=1, initial=np.inf),
            "max": np.where(valid, wide, -np.inf).max(axis=1, initial=-np.inf),
        }
        state.update(self.merge(state, block))

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """The outer extremes."""
        return {
            "n": left["n"] + right["n"],
            "min": np.minimum(left["min"], right["min"]),
            "max": np.maximum(left["max"], right["max"]),
        }

    def finalize(self, state: StatisticState) -> dict[str, Any]:
        """``n``, ``min``, ``max``."""
        some = state["n"] > 0
        return {
            "n": state["n"],
            "min": np.where(some, state["min"], np.nan),
            "max": np.where(some, state["max"], np.nan),
        }


@dataclass(frozen=True)
class Histogram(Statistic):
    """Counts between fixed edges.

    Parameters
    ----------
    edges : sequence of float, ascending
        Bins are half-open, the last one closed, as in numpy.  Values are compared as float64, which
        rounds integers beyond 2**53.

    Notes
    -----
    ``finalize`` gives ``counts`` (bands, bins), ``edges``, and ``below``, ``above`` and ``missing``
    (bands,): nothing is dropped silently.
    """

    edges: Sequence[float]

    def __post_init__(self) -> None:
        edges = tuple(float(v) for v in self.edges)
        if len(edges) < 2 or not all(a < b for a, b in pairwise(edges)):
            raise OptionError(f"edges must be at least two ascending numbers, got {self.edges!r}")
        object.__setattr__(self, "edges", edges)

    def init(self, bands: int) -> StatisticState:
        """Bins, and what lies outside them: below, above, missing."""
        return {"counts": np.zeros((bands, len(self.edges) + 2), np.int64)}

    def update(self, state: StatisticState, values: Array, keys: Keys) -> None:
        """Sort values into bins."""
        edges = np.asarray(self.edges)
        bins = len(edges) - 1
        for band, row in enumerate(values.astype(np.float64)):
            slot = np.searchsorted(edges, row, side="right")  # 0 below, 1 .. bins inside
            slot[row == edges[-1]] = bins
            slot[np.isnan(row)] = bins + 2
            state["counts"][band] += np.bincount(slot, minlength=bins + 3)

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Add."""
        return {"counts": left["counts"] + right["counts"]}

    def finalize(self, state: StatisticState) -> dict[str, Any]:
        """``counts``, ``edges``, ``below``, ``above``, ``missing``."""
        counts = state["counts"]
        return {
            "counts": counts[:, 1:-2],
            "edges": np.asarray(self.edges),
            "below": counts[:, 0],
            "above": counts[:, -2],
            "missing": counts[:, -1],
        }


@dataclass(frozen=True)
class Covariance(Statistic):
    """Covariance between bands, over the cells where all bands are valid.

    Parameters
    ----------
    ddof : int
        Divisor ``n - ddof``.

    Notes
    -----
    ``finalize`` gives ``n`` (a number), ``mean`` (bands,) and ``cov`` (bands, bands).  Its
    eigenvectors are the global principal components, or EOFs, of the bands: see
    the gallery script ``global_eof.py``.  ``8 b (b + 1)`` bytes for b bands.
    """

    ddof: int = 1

    def init(self, bands: int) -> StatisticState:
        """Count, means, co-moments."""
        return {
            "n": np.zeros(1, np.int64),
            "mean": np.zeros(bands),
            "moment": np.zeros((bands, bands)),
        }

    def update(self, state: StatisticState, values: Array, keys: Keys) -> None:
        """Co-moments of the block around its means, then one merge."""
        wide = values.astype(np.float64)
        wide = wide[:, ~np.isnan(wide).any(axis=0)]
        n = wide.shape[1]
        with np.errstate(invalid="ignore", over="ignore"):
            mean = wide.sum(axis=1) / max(n, 1)
            mean = _refined(mean, (wide - mean[:, None]).sum(axis=1) / max(n, 1))
            deviation = wide - mean[:, None]
            # Row by row, not one matrix product: BLAS adds in an order that depends on threads.
            moment = np.stack([(deviation * row).sum(axis=1) for row in deviation])
        block = {"n": np.array([n]), "mean": mean, "moment": (moment + moment.T) / 2}
        state.update(self.merge(state, block))

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Chan's formula, for products of deviations."""
        n = left["n"] + right["n"]
        share = right["n"] / np.maximum(n, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = right["mean"] - left["mean"]
            outer = delta[:, None] * delta[None, :]
            return {
                "n": n,
                "mean": _between(left["mean"], right["mean"], share),
                "moment": left["moment"] + right["moment"] + outer * (left["n"] * share),
            }

    def finalize(self, state: StatisticState) -> dict[str, Any]:
        """``n``, ``mean``, ``cov``."""
        n = int(state["n"][0])
        divisor = n - self.ddof if n > self.ddof else np.nan
        mean = state["mean"] if n else np.full_like(state["mean"], np.nan)
        return {"n": n, "mean": mean, "cov": state["moment"] / divisor}


@dataclass(frozen=True)
class Quantiles(ApproxQuantile):
    """Quantiles of each band for a first pass: 2, 50 and 98 %, to within 0.1 % of their value.

    The same sketch as :class:`ApproxQuantile` with the defaults of a contrast stretch; 2.3 MB per
    band.
    """

    q: float | tuple[float, ...] = (0.02, 0.5, 0.98)
    relative_error: float = 0.001
