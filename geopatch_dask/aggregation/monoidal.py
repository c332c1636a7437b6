"""Monoidal aggregations: one accumulator, one associative operation.

Their results hardly depend on the order of patches; sums are still added in ordinal order, because
floating-point addition is not associative.  Negative zero is normalised to zero (the maximum of
-0.0 and +0.0 would depend on the order), and NaN never wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import Aggregation, Contribution, State, exact
from geopatch_dask.aggregation.coverage import BoolArray

__all__ = ["All", "Any_", "Count", "Max", "Min", "Sum", "WeightedSum"]

Array = npt.NDArray[Any]
Table = dict[str, tuple[npt.DTypeLike, Any]]


@dataclass(frozen=True)
class Sum(Aggregation):
    """Sum of the values; the window is ignored.

    Integers are summed exactly in int64 (uint64 in uint64); the output is int64 then.
    """

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """One sum, float64 or int64."""
        return {"sum": (exact(dtype), 0)}

    def update(self, state: State, patch: Contribution) -> None:
        """Add, nothing where missing."""
        state["sum"][patch.where] += patch.filled(0)

    def merge(self, left: State, right: State) -> State:
        """Add."""
        left["sum"][...] += right["sum"]
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """The sum."""
        return state["sum"]

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Floats keep their dtype; integers become the accumulator's."""
        return dtype if dtype.kind == "f" else exact(dtype)


@dataclass(frozen=True)
class WeightedSum(Aggregation):
    """Sum of window weight times value, not normalised."""

    weighted: ClassVar[bool] = True

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """One float64 sum."""
        return {"sum": (np.float64, 0.0)}

    def update(self, state: State, patch: Contribution) -> None:
        """Add weight times value, nothing where missing."""
        state["sum"][patch.where] += weighted(patch)

    def merge(self, left: State, right: State) -> State:
        """Add."""
        return Sum.merge(self, left, right)  # type: ignore[arg-type]  # the same one accumulator

    def finalize(self, state: State) -> Array:
        """The sum."""
        return state["sum"]

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Floats keep their dtype; integers become float64."""
        return dtype if dtype.kind == "f" else np.dtype(np.float64)


def weighted(patch: Contribution) -> Array:
    """Weight times value in float64, zero where missing."""
    weights = 1.0 if patch.weights is None else patch.weights
    product: Array = np.multiply(patch.values, weights, dtype=np.float64)
    if patch.weights is not None and not patch.weights.all():
        np.copyto(product, 0.0, where=patch.weights == 0)  # not NaN where a value is infinite
    if patch.valid is not None:
        np.copyto(product, 0.0, where=~patch.valid)
    return product


@dataclass(frozen=True)
class Max(Aggregation):
    """Largest value."""

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """One extreme, starting below everything."""
        kind = exact(dtype)
        return {"max": (kind, -np.inf if kind.kind == "f" else np.iinfo(kind).min)}

    def update(self, state: State, patch: Contribution) -> None:
        """Keep the larger."""
        _extreme(np.maximum, state["max"], patch)

    def merge(self, left: State, right: State) -> State:
        """Keep the larger."""
        np.maximum(left["max"], right["max"], out=left["max"])
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """The extreme."""
        return state["max"]


@dataclass(frozen=True)
class Min(Aggregation):
    """Smallest value."""

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """One extreme, starting above everything."""
        kind = exact(dtype)
        return {"min": (kind, np.inf if kind.kind == "f" else np.iinfo(kind).max)}

    def update(self, state: State, patch: Contribution) -> None:
        """Keep the smaller."""
        _extreme(np.minimum, state["min"], patch)

    def merge(self, left: State, right: State) -> State:
        """Keep the smaller."""
        np.minimum(left["min"], right["min"], out=left["min"])
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """The extreme."""
        return state["min"]


def _extreme(ufunc: np.ufunc, held: Array, patch: Contribution) -> None:
    at = held[patch.where]
    values = patch.filled(0)
    if values.dtype.kind == "f":
        values += 0.0  # -0.0 + 0.0 is +0.0
    ufunc(at, values, out=at, where=True if patch.valid is None else patch.valid)


@dataclass(frozen=True)
class Any_(Aggregation):  # noqa: N801  # exported as Any; the bare name would hide typing.Any here
    """Whether any valid value is non-zero: 1 or 0, as uint8 (fill 255)."""

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """One flag, off."""
        return {"flag": (np.uint8, 0)}

    def update(self, state: State, patch: Contribution) -> None:
        """Switch on where a valid value is non-zero."""
        state["flag"][patch.where] |= patch.filled(0) != 0

    def merge(self, left: State, right: State) -> State:
        """Or."""
        left["flag"][...] |= right["flag"]
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """The flag."""
        return state["flag"]

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """uint8: a bool has no room for a fill value."""
        return np.dtype(np.uint8)


@dataclass(frozen=True)
class All(Aggregation):
    """Whether all valid values are non-zero: 1 or 0, as uint8 (fill 255)."""

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """One flag, on."""
        return {"flag": (np.uint8, 1)}

    def update(self, state: State, patch: Contribution) -> None:
        """Switch off where a valid value is zero."""
        state["flag"][patch.where] &= patch.filled(1) != 0

    def merge(self, left: State, right: State) -> State:
        """And."""
        left["flag"][...] &= right["flag"]
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """The flag."""
        return state["flag"]

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """uint8: a bool has no room for a fill value."""
        return np.dtype(np.uint8)


@dataclass(frozen=True)
class Count(Aggregation):
    """How many valid values a cell has got, as int32.

    A cell that patches reached, but only with missing data, counts 0; a cell that no patch
    reached holds the fill value.
    """

    def accumulators(self, dtype: np.dtype[Any]) -> Table:
        """None: coverage counts already."""
        return {}

    def update(self, state: State, patch: Contribution) -> None:
        """Nothing to do."""

    def merge(self, left: State, right: State) -> State:
        """Add the counts."""
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> Array:
        """The counts."""
        shape = state.leading + state.box.shape
        return np.broadcast_to(state.coverage.counts(), shape).astype(np.int64)

    def answered(self, state: State) -> BoolArray | None:
        """Every cell a patch reaches."""
        return state.coverage.reached()

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """int32."""
        return np.dtype(np.int32)
