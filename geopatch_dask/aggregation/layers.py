"""Holistic aggregations: exact, because every cell keeps all of its at most K layers.

The median of a cell needs all values it got.  Under owner-computes there are at most
``K = prod_d ceil(P_w / S)`` of them, and the sweep holds a ring of rows only, so memory is K layers
of the ring and does not grow with the field::

    patches    |==a0==|                     layer 0   a0 a0 a1 a1 a2 a2
                   |==a1==|                 layer 1   .  .  a0 .  a1 .      each cell fills its
                       |==a2==|             n         1  1  2  1  2  1      layers from below

A patch goes to one layer per cell, the first free one, so the layers of a cell are in ordinal
order.  Irregular anchors have a K, too: what lies around a cell, and not their number in all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
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
from geopatch_dask.aggregation.output import saturated
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import load_object

__all__ = ["Learned", "Median", "Mode", "Quantile"]

Array = npt.NDArray[Any]
Leading = tuple[int, ...]
Reduce = Callable[[Array, "npt.NDArray[np.int32]"], Array]
#: Bytes of layers finalized at once: sorting works on a copy, and this bounds it.
PIECE = 1 << 20
#: Cells that a function of the user's is given come in multiples of it, the last one repeated.
WIDTH = 64


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
            if level == len(layers):
                if not here.any():
                    break
                layers = state.lengthen("layers")  # more than K: patches were given again
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
        return self._by_pieces(state, self.reduce)

    def _by_pieces(self, state: State, reduce: Reduce) -> dict[str, Array]:
        n, layers = state["n"], state["layers"]
        axis = n.ndim - state.box.ndim
        row = len(layers) * layers.itemsize * max(n.size // max(n.shape[axis], 1), 1)
        step = max(PIECE // row, 1)
        found = []
        for first in range(0, n.shape[axis], step):
            at = row_index(state.box.ndim, slice(first, first + step))
            counts = n[at]
            piece = layers[at].reshape(len(layers), -1)
            values = reduce(piece, counts.reshape(-1))
            values = values + values.dtype.type(0)  # -0.0 is 0.0
            found.append(values.reshape(*self._extra(), *counts.shape))
        if not found:
            return {"": np.zeros((*self._extra(), *n.shape))}
        return {"": np.concatenate(found, axis=axis + len(self._extra()))}

    def finalizing_bytes(self, dtype: np.dtype[Any]) -> int:
        """One more float64 per cell; the sorted pieces are small."""
        return 8

    def _extra(self) -> Leading:
        return ()

    @abstractmethod
    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> Array:
        """Values of some cells, shape (*extra axes, cells).

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


class Ranked(Layered):
    """Base of order statistics: a value of the sorted layers, or one between two of them.

    The answer is a float64; but 64-bit integers that are stored as integers stay integers where
    there is nothing to interpolate, because float64 lacks most of them beyond 2**53.
    """

    def finalize_for(self, state: State, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
        """Integers where they have to be, as said above."""
        kept = state["layers"].dtype
        whole = kept.kind in "iu" and kept.itemsize == 8 and dtypes[""].kind in "iu"
        return self._by_pieces(state, self._whole) if whole else self.finalize(state)

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> Array:
        """Sort, and interpolate."""
        found = [np.where(at, low, mid) for at, low, mid in self._ranks(ordered(layers, n), n)]
        return np.stack(found).reshape(*self._extra(), -1)

    def _whole(self, layers: Array, n: npt.NDArray[np.int32]) -> Array:
        """The same, each value rounded to an integer of the layers' type."""
        found = [
            np.where(at, low, saturated(mid, None, low.dtype))
            for at, low, mid in self._ranks(ordered(layers, n), n)
        ]
        return np.stack(found).reshape(*self._extra(), -1)

    @abstractmethod
    def _ranks(self, values: Array, n: npt.NDArray[np.int32]) -> Iterator[tuple[Array, ...]]:
        """For each answer: where it is a value of the layers, that value, else a float64."""

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """One array, with a quantile axis in front where there are several."""
        return {"": Part(self._extra() + leading, averaged(dtype))}


@dataclass(frozen=True)
class Quantile(Ranked):
    """Exact quantiles of the valid values of each cell, linear between order statistics.

    Parameters
    ----------
    q : float or sequence of floats in [0, 1]
        A sequence adds a leading axis ``quantile``.

    Notes
    -----
    ``h = (n - 1) q``, value ``x[floor h] + (h - floor h) (x[floor h + 1] - x[floor h])``, numpy's
    default; computed in float64.  Between a number and an infinity lies that infinity, as for
    :class:`Median` (numpy says NaN, or infinity, depending on q); between two of them, no answer.
    64-bit integers stay exact where h is whole or the two values agree, if the output is of whole
    numbers.

    Raises
    ------
    OptionError
        For a ``q`` that is no number in [0, 1], nor some of them.
    """

    q: float | Sequence[float] = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "q", _checked_q(self.q))

    def _extra(self) -> Leading:
        return (len(self.q),) if isinstance(self.q, tuple) else ()

    def _ranks(self, values: Array, n: npt.NDArray[np.int32]) -> Iterator[tuple[Array, ...]]:
        for q in self.q if isinstance(self.q, tuple) else (self.q,):
            height = np.maximum(n - 1, 0) * float(q)
            below = np.floor(height).astype(np.int64)
            above = np.minimum(below + 1, np.maximum(n - 1, 0))
            low = np.take_along_axis(values, below[None], axis=0)[0]
            high = np.take_along_axis(values, above[None], axis=0)[0]
            share = height - below
            yield (
                (share == 0) | (low == high),
                low,
                _between(low.astype(np.float64), high.astype(np.float64), share),
            )

    def part_dims(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """A quantile axis in front where there are several."""
        return ("quantile", *dims) if isinstance(self.q, tuple) else dims

    def labels(self) -> dict[str, tuple[float, ...]]:
        """The quantiles."""
        return {"quantile": self.q} if isinstance(self.q, tuple) else {}


def _checked_q(q: Any) -> float | tuple[float, ...]:
    """One quantile or several, as Python floats."""
    several = isinstance(q, list | tuple | np.ndarray) and np.ndim(q) > 0
    values = tuple(q) if several else (q,)
    numbers = all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
    if not values or not numbers or not all(0 <= v <= 1 for v in values):
        raise OptionError(f"q must be a number in [0, 1], or a list of them, got {q!r}")
    found = tuple(float(v) for v in values)
    return found if several else found[0]


def _between(low: Array, high: Array, share: Array) -> Array:
    """Numpy's interpolation, from the nearer end, so that the results are numpy's to the bit."""
    with np.errstate(invalid="ignore", over="ignore"):
        step = high - low
        near = np.where(share < 0.5, low + step * share, high - step * (1 - share))
        # There is no going along an infinite step, but the two can be weighed.
        return np.asarray(np.where(np.isfinite(step), near, low * (1 - share) + high * share))


@dataclass(frozen=True)
class Median(Ranked):
    """Exact median of the valid values of each cell."""

    def _ranks(self, values: Array, n: npt.NDArray[np.int32]) -> Iterator[tuple[Array, ...]]:
        """The middle value, or the mean of the two middle ones."""
        low = np.take_along_axis(values, np.maximum(n - 1, 0)[None] // 2, axis=0)[0]
        high = np.take_along_axis(values, np.maximum(n, 1)[None] // 2, axis=0)[0]
        with np.errstate(invalid="ignore", over="ignore"):
            yield low == high, low, (low.astype(np.float64) + high.astype(np.float64)) / 2


@dataclass(frozen=True)
class Mode(Layered):
    """Most frequent valid value of each cell; ties go to the smallest."""

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> Array:
        """The value with the longest run among the sorted ones."""
        values = ordered(layers, n)
        run = np.zeros(values.shape[1], np.int32)
        best_run = np.zeros_like(run)
        best: Array = values[0].copy()
        for level in range(len(values)):
            used = level < n
            same = values[level] == values[level - 1] if level else np.zeros(len(run), bool)
            run = np.where(same, run + 1, 1)
            better = used & (run > best_run)
            best_run[better] = run[better]
            best[better] = values[level][better]
        return best

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """One array of the operator's dtype; a bool has no room for a fill."""
        return {"": Part(leading, self.result_dtype(dtype))}


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

    Notes
    -----
    The dtype that the function returns is kept until the result is rounded to that of the output.
    Pieces are C-contiguous and some multiple of 64 cells wide (the last cell repeated), because
    numpy adds up a single column in another order than many.  Matrix products may still depend on
    how many cells there are; ``numpy.einsum`` and reductions along axis 0 do not.
    """

    function: Callable[[Array, Array], npt.ArrayLike] | str

    def reduce(self, layers: Array, n: npt.NDArray[np.int32]) -> Array:
        """Call the function."""
        call = load_object(self.function) if isinstance(self.function, str) else self.function
        cells = len(n)
        wide = np.minimum(np.arange(-(-cells // WIDTH) * WIDTH), cells - 1)
        n, layers = n[wide], layers[:, wide]
        unused = np.arange(len(layers))[:, None] >= n
        blank = np.asarray(np.nan if layers.dtype.kind == "f" else 0, layers.dtype)
        values: Array = np.asarray(call(np.ascontiguousarray(np.where(unused, blank, layers)), n))
        if values.shape != n.shape or values.dtype.kind not in "iufb":
            raise OptionError(
                f"the function of Learned returned {values.dtype} {values.shape} for {len(n)} "
                "cells; it must return one real number per cell"
            )
        return values[:cells]

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """One array, a float unless told otherwise by the output."""
        return {"": Part(leading, averaged(dtype))}
