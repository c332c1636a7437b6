"""Holistic aggregations: exact, because every cell keeps all of its at most K layers.

The median of a cell needs all values it got.  Under owner-computes there are at most
``K = prod_d ceil(P_w / S)`` of them, and the sweep holds a ring of rows only, so memory is K layers
of the ring and does not grow with the field::

    patches    |==a0==|                     layer 0   a0 a0 a1 a1 a2 a2
                   |==a1==|                 layer 1   .  .  a0 .  a1 .      each cell fills its
                       |==a2==|             n         1  1  2  1  2  1      layers from below

A patch goes to one layer per cell, the first free one, so the layers of a cell are in ordinal
order.  Irregular anchors have no bound on K but their number; the memory plan says what that costs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import (
    LAYERS,
    Aggregation,
    Contribution,
    Part,
    State,
    averaged,
    exact,
)
from geopatch_dask.aggregation.coverage import row_index
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import load_object

__all__ = ["Learned", "Median", "Mode", "Quantile"]

Array = npt.NDArray[Any]
Leading = tuple[int, ...]
#: Bytes of layers finalized at once: sorting works on a copy, and this bounds it.
PIECE = 1 << 20


class Layered(Aggregation):
    """Base of aggregations over all values of a cell, kept in ordinal order."""

    streaming_safe: ClassVar[bool] = False

    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[Any, ...]]:
        """K layers of values, and how many are taken."""
        return {"n": (np.int32, 0), "layers": (self._kept(dtype), 0, (LAYERS,))}

    @staticmethod
    def _kept(dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype if dtype.kind in "fiu" else exact(dtype)

    def update(self, state: State, patch: Contribution) -> None:
        """Put each valid value behind the ones its cell has."""
        taken, layers = state["n"][patch.where], state["layers"]
        if not taken.size:
            return
        # The cells of one patch stand at a few levels only: a masked copy for each beats indexing.
        for level in range(int(taken.min()), int(taken.max()) + 1):
            here = taken == level
            if patch.valid is not None:
                here &= patch.valid
            if level < len(layers):
                np.copyto(layers[level][patch.where], patch.values, where=here, casting="same_kind")
        taken += 1 if patch.valid is None else patch.valid

    def merge(self, left: State, right: State) -> State:
        """Append the layers of ``right`` to those of ``left``."""
        for layer in range(len(right["layers"])):
            valid = right["n"] > layer
            if not valid.any():
                break
            where = (..., *(slice(None),) * left.box.ndim)
            patch = Contribution(right["layers"][layer], valid, None, where)
            self.update(left, patch)
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> dict[str, Array]:
        """Reduce the layers of all cells, some rows at a time."""
        n, layers = state["n"], state["layers"]
        axis = n.ndim - state.box.ndim
        names = self.parts(state.leading, layers.dtype)
        found = {k: np.zeros((*self._extra(), *n.shape), self._wide(layers.dtype)) for k in names}
        row = len(layers) * layers.itemsize * max(n.size // max(n.shape[axis], 1), 1)
        step = max(PIECE // row, 1)
        for first in range(0, n.shape[axis], step):
            at = row_index(state.box.ndim, slice(first, first + step))
            counts = n[at]
            piece = layers[at].reshape(len(layers), -1)
            for name, values in self.reduce(piece, counts.reshape(-1)).items():
                found[name][at] = values.reshape(*self._extra(), *counts.shape)
        return {k: values + values.dtype.type(0) for k, values in found.items()}  # -0.0 is 0.0

    def finalizing_bytes(self, dtype: np.dtype[Any]) -> int:
        """One more float64 per cell; the sorted pieces are small."""
        return 8

    def _extra(self) -> Leading:
        return ()

    def _wide(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float64)

    @abstractmethod
    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> dict[str, Array]:
        """Values of some cells.

        Parameters
        ----------
        layers : ndarray, shape (K, cells)
            In ordinal order; entries from ``n`` on hold nothing.
        n : ndarray of int32, shape (cells,)
        """


def ordered(layers: Array, n: npt.NDArray[np.int32]) -> Array:
    """Layers sorted per cell, unused entries last: shape (K, cells)."""
    last: Any = np.inf if layers.dtype.kind == "f" else np.iinfo(layers.dtype).max
    unused = np.arange(len(layers))[:, None] >= n
    values = np.where(unused, np.asarray(last, layers.dtype), layers)
    values.sort(axis=0)
    return values


@dataclass(frozen=True)
class Quantile(Layered):
    """Exact quantiles of the valid values of each cell, linear between order statistics.

    Parameters
    ----------
    q : float or sequence of floats in [0, 1]
        A sequence adds a leading axis ``quantile``.

    Notes
    -----
    ``h = (n - 1) q``, value ``x[floor h] + (h - floor h) (x[floor h + 1] - x[floor h])``, numpy's
    default; computed in float64.
    """

    q: float | Sequence[float] = 0.5

    def __post_init__(self) -> None:
        several = not isinstance(self.q, int | float)
        # mypy does not see what ``several`` says of the type of q.
        values = tuple(float(v) for v in self.q) if several else (float(self.q),)  # type: ignore[union-attr, arg-type]
        if not values or not all(0 <= v <= 1 for v in values):
            raise OptionError(f"quantiles must lie in [0, 1], got {self.q!r}")
        object.__setattr__(self, "q", values if several else values[0])

    def _extra(self) -> Leading:
        return (len(self.q),) if isinstance(self.q, tuple) else ()

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> dict[str, Array]:
        """Sort, and interpolate."""
        values = ordered(layers, n)
        many = self.q if isinstance(self.q, tuple) else (self.q,)
        found = np.stack([_interpolated(values, n, float(q)) for q in many])
        return {"": found if isinstance(self.q, tuple) else found[0]}

    def part_dims(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """A quantile axis in front where there are several."""
        return ("quantile", *dims) if isinstance(self.q, tuple) else dims

    def labels(self) -> dict[str, tuple[float, ...]]:
        """The quantiles."""
        return {"quantile": self.q} if isinstance(self.q, tuple) else {}

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """One array, with a quantile axis in front where there are several."""
        return {"": Part(self._extra() + leading, averaged(dtype))}


def _interpolated(values: Array, n: npt.NDArray[np.int32], q: float) -> Array:
    height = np.maximum(n - 1, 0) * q
    below = np.floor(height).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(n - 1, 0))
    low = np.take_along_axis(values, below[None], axis=0)[0].astype(np.float64)
    high = np.take_along_axis(values, above[None], axis=0)[0].astype(np.float64)
    share = height - below
    with np.errstate(invalid="ignore"):
        step = high - low
        # Numpy's interpolation, from the nearer end, so that the results are numpy's to the bit.
        between = np.where(share < 0.5, low + step * share, high - step * (1 - share))
    return np.asarray(np.where((share == 0) | (low == high), low, between))


@dataclass(frozen=True)
class Median(Quantile):
    """Exact median of the valid values of each cell."""

    q: float = 0.5

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> dict[str, Array]:
        """The middle value, or the mean of the two middle ones."""
        values = ordered(layers, n)
        low = np.take_along_axis(values, np.maximum(n - 1, 0)[None] // 2, axis=0)[0]
        high = np.take_along_axis(values, np.maximum(n, 1)[None] // 2, axis=0)[0]
        with np.errstate(invalid="ignore", over="ignore"):
            mean = (low.astype(np.float64) + high.astype(np.float64)) / 2
        return {"": np.where(low == high, low.astype(np.float64), mean)}


@dataclass(frozen=True)
class Mode(Layered):
    """Most frequent valid value of each cell; ties go to the smallest."""

    def _wide(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> dict[str, Array]:
        """The value with the longest run among the sorted ones."""
        values = ordered(layers, n)
        run = np.zeros(values.shape[1], np.int32)
        best_run, best = np.zeros_like(run), values[0].copy()
        for level in range(len(values)):
            used = level < n
            same = values[level] == values[level - 1] if level else np.zeros(len(run), bool)
            run = np.where(same, run + 1, 1)
            better = used & (run > best_run)
            best_run[better] = run[better]
            best[better] = values[level][better]
        return {"": best}

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """One array of the operator's dtype."""
        return {"": Part(leading, dtype)}


@dataclass(frozen=True)
class Learned(Layered):
    """Whatever a function makes of the values of each cell.

    Parameters
    ----------
    function : callable ``(layers, n) -> values``, or ``"module:name"``
        ``layers`` has shape (K, cells) with the valid values of a cell first, in ordinal order, NaN
        (or 0, for integers) behind them; ``n``, int32 (cells,), says how many there are.  Returns
        shape (cells,), cell by cell: it must not look at neighbours, because it is called on
        arbitrary pieces.
    """

    function: Callable[[Array, Array], npt.ArrayLike] | str

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> dict[str, Array]:
        """Call the function."""
        call = load_object(self.function) if isinstance(self.function, str) else self.function
        unused = np.arange(len(layers))[:, None] >= n
        blank = np.asarray(np.nan if layers.dtype.kind == "f" else 0, layers.dtype)
        values = np.asarray(call(np.where(unused, blank, layers), n))
        if values.shape != n.shape:
            raise OptionError(
                f"the function of Learned returned shape {values.shape} for {n.shape} cells; it "
                "must return one value per cell"
            )
        return {"": values}

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """One array, a float unless told otherwise by the output."""
        return {"": Part(leading, averaged(dtype))}
