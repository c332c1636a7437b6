"""Compound aggregations: several accumulators, one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import (
    Aggregation,
    Contribution,
    State,
    averaged,
    exact,
)
from geopatch_dask.aggregation.coverage import BoolArray
from geopatch_dask.aggregation.monoidal import Max, Min, Sum, WeightedSum

__all__ = ["Mean", "OverlapAdd", "Range", "Variance"]

Array = npt.NDArray[Any]
Table = dict[str, tuple[npt.DTypeLike, Any]]


@dataclass(frozen=True)
class Mean(Sum):
    """Arithmetic mean of the valid values; the window is ignored."""

    def finalize(self, state: State) -> Array:
        """Sum over count."""
        return np.asarray(state["sum"] / np.maximum(state.coverage.counts(), 1))

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Floats keep their dtype, integers become floats."""
        return averaged(dtype)


@dataclass(frozen=True)
class OverlapAdd(WeightedSum):
    """Weighted mean with the window as weights: ``sum(w x) / sum(w)`` over valid values.

    Notes
    -----
    The normaliser is analytic (an outer product of 1-D sums) on cells where nothing is missing,
    and accumulated on the others; see :mod:`geopatch_dask.aggregation.coverage`.
    """

    def finalize(self, state: State) -> Array:
        """Weighted sum over sum of weights."""
        total, weights = state["sum"], state.coverage.weights()
        # Analytic weights are a fresh array: divide into it rather than into a third one.
        fresh = state.coverage.weight is None and weights.shape == total.shape
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.divide(total, weights, out=weights if fresh else None)

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Floats keep their dtype, integers become floats."""
        return averaged(dtype)


@dataclass(frozen=True)
class Range(Aggregation):
    """Largest minus smallest valid value."""

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """Both extremes."""
        return {**Max().accumulators(dtype), **Min().accumulators(dtype)}

    def update(self, state: State, patch: Contribution) -> None:
        """Move both extremes."""
        Max().update(state, patch)
        Min().update(state, patch)

    def merge(self, left: State, right: State) -> State:
        """Take the outer extremes."""
        np.minimum(left["min"], right["min"], out=left["min"])
        return Max().merge(left, right)

    def finalize(self, state: State) -> Array:
        """Their difference; that of signed integers is taken unsigned, where it always fits."""
        high, low = state["max"], state["min"]
        if high.dtype == np.int64:
            return np.asarray(high.view(np.uint64) - low.view(np.uint64))
        with np.errstate(invalid="ignore"):
            return np.asarray(high - low)

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Floats and unsigned integers keep their dtype; signed ones become int64."""
        return dtype if dtype.kind in "fu" else exact(dtype)


@dataclass(frozen=True)
class Variance(Aggregation):
    """Variance of the valid values with ddof = 1; needs two of them.

    Notes
    -----
    Welford's update in ordinal order, which keeps all digits for a mean of 1e8 and a standard
    deviation of 1e-3; states merge by the formula of Chan, Golub and LeVeque (1979).
    """

    weighted: ClassVar[bool] = False

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """Running count, mean and sum of squared deviations."""
        return {"n": (np.int32, 0), "mean": (np.float64, 0.0), "m2": (np.float64, 0.0)}

    def update(self, state: State, patch: Contribution) -> None:
        """One step of Welford's recurrence."""
        n, mean, m2 = (state[name][patch.where] for name in ("n", "mean", "m2"))
        values = patch.filled(0).astype(np.float64, copy=False)
        n += 1 if patch.valid is None else patch.valid
        with np.errstate(invalid="ignore"):
            delta = values - mean
            step = delta / np.maximum(n, 1)
            if patch.valid is not None:
                np.copyto(step, 0.0, where=~patch.valid)
                np.copyto(delta, 0.0, where=~patch.valid)
            mean += step
            m2 += delta * (values - mean)

    def merge(self, left: State, right: State) -> State:
        """Chan's formula."""
        n_l, n_r = left["n"], right["n"]
        n = np.maximum(n_l + n_r, 1)
        delta = right["mean"] - left["mean"]
        left["m2"][...] += right["m2"] + delta * delta * (n_l / n * n_r)
        left["mean"][...] += delta * (n_r / n)
        left["n"][...] += n_r
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """Sum of squares over n - 1."""
        return np.asarray(state["m2"] / np.maximum(state["n"] - 1, 1))

    def answered(self, state: State) -> BoolArray | None:
        """Cells with at least two valid values."""
        enough = state["n"] >= 2
        return None if enough.all() else enough

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Floats keep their dtype, integers become floats."""
        return averaged(dtype)
