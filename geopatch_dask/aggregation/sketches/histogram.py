"""A histogram whose bins do not depend on the order in which values arrive.

With ``range=`` the bins are known beforehand.  Without, they shall divide the span between the
smallest and the largest value, which nobody knows before the end; so values are counted on a fine
dyadic grid, cells ``[i 2^e, (i + 1) 2^e)`` with the smallest e for which B cells cover what has
been seen so far::

    e = 0    | 3 | 0 | 5 | 2 | 4 | 1 | 0 | 7 |              B = 8, values from 0 to 8
    e = 1    |   3   |   7   |   5   |   7   | 2 |          a value of 9 arrived

When the span grows, pairs of cells become one cell; since ``floor(floor(x / 2^e) / 2)`` is
``floor(x / 2^(e+1))``, the counts are then what they would have been had e been known from the
beginning.  The exponent and the place of the grid follow from the exact minimum and maximum alone,
so that states of the same values are the same bits, whatever the order and the splits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.values import (
    Array,
    extremes,
    floats,
    rows_of,
    slices,
    whole_number,
)
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.errors import OptionError

__all__ = ["StreamingHistogram"]

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: Cells of the fine grid per bin, at least.
_FINE = 64
# float64: bits of precision, exponent of the smallest number, and one above the largest
_PRECISION, _LEAST, _LARGEST = 53, -1074, 1024
_HUGE = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class StreamingHistogram(Statistic):
    """Counts in bins of equal width, over a given range or from the smallest to the largest value.

    Parameters
    ----------
    bins : int, default 64
        Up to 65536.
    range : (float, float), optional
        The first and the last edge.  Default: the exact extremes of the finite values.

    Notes
    -----
    *Error with a range*: none.  A bin holds exactly the values with ``edges[i] <= x < edges[i+1]``
    (the last one: ``<=``), edges and values compared as float64.

    *Error without*: the first and the last edge are exact; the counts are those of inner edges
    that are off by at most 1/63 of the width of a bin (or by half a unit in the last place of the
    largest magnitude, if that is more), for every data set and order.  Constant data: one unit
    around the value is divided, as ``numpy.histogram`` does.

    *Missing data*: NaN is ignored.  What lies outside the range, and the infinities always, is
    counted in ``below`` and ``above``.  Integers beyond 2**53 are rounded to float64.

    *State*: ``8 bins + 16`` bytes per band with a range, else ``512 bins + 32`` with ``bins``
    rounded up to a power of two: 33 KB with the default.

    *Source*: of this project.  Pairs of cells are collapsed as in UDDSketch (I. Epicoco, C. Melle,
    M. Cafaro, M. Pulimeno, G. Morleo, IEEE Access 2020), but on a linear grid, not a logarithmic
    one, whose cells are too wide where values are far from zero and close to each other.

    Examples
    --------
    >>> sketch = StreamingHistogram(bins=4)
    >>> state = sketch.init(bands=1)
    >>> sketch.update(state, np.array([[0.0, 1, 1, 2, 3, 3, 3, 8]]), np.arange(8, dtype=np.uint64))
    >>> sketch.finalize(state)["counts"].tolist(), sketch.finalize(state)["edges"].tolist()
    ([[3, 4, 0, 1]], [[0.0, 2.0, 4.0, 6.0, 8.0]])
    """

    bins: int = 64
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        bins = whole_number(self.bins, "bins of StreamingHistogram", 1, 65536)
        object.__setattr__(self, "bins", bins)
        if self.range is not None:
            object.__setattr__(self, "range", _range(self.range, bins))

    @property
    def cells(self) -> int:
        """Counts that are held: the bins themselves, or the cells of the fine grid."""
        return self.bins if self.range else _FINE * 2 ** (self.bins - 1).bit_length()

    def init(self, bands: int) -> StatisticState:
        """No counts, and extremes that every value replaces."""
        state: StatisticState = {
            "counts": np.zeros((bands, self.cells), np.int64),
            "below": np.zeros(bands, np.int64),
            "above": np.zeros(bands, np.int64),
        }
        if not self.range:
            state["min"], state["max"] = np.full(bands, np.inf), np.full(bands, -np.inf)
        return state

    def update(
        self, state: StatisticState, values: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> None:
        """Count; the keys do not matter."""
        add = _Bins(*self.range, self.bins).count if self.range else self._count
        for band, row in enumerate(rows_of(values, len(state["counts"]))):
            for part in slices(len(row)):
                piece = floats(row[part])
                if piece.size:
                    add(state, band, piece)

    def _count(self, state: StatisticState, band: int, piece: Floats) -> None:
        """Count one piece on the fine grid."""
        low, high = extremes(piece)
        if low > high or not (-np.inf < piece.min() and piece.max() < np.inf):
            state["below"][band] += np.count_nonzero(piece == -np.inf)
            state["above"][band] += np.count_nonzero(piece == np.inf)
            piece = piece[np.isfinite(piece)]
        if not piece.size:
            return
        self._widen(state, band, low, high)
        grid = _Grid.over(float(state["min"][band]), float(state["max"][band]), self.cells)
        np.add.at(state["counts"][band], grid.cell(piece), 1)

    def _widen(self, state: StatisticState, band: int, low: float, high: float) -> None:
        """Let the grid of one band cover a span too."""
        before = float(state["min"][band]), float(state["max"][band])
        after = min(low, before[0]), max(high, before[1])
        if after == before or after[0] > after[1]:
            return
        state["min"][band], state["max"][band] = after
        counts = state["counts"][band]
        if before[0] <= before[1]:
            old, new = _Grid.over(*before, self.cells), _Grid.over(*after, self.cells)
            filled = np.flatnonzero(counts)
            held = counts[filled]
            counts[:] = 0
            # Shifting by 63 leaves the sign, as shifting by more would.
            coarse = (filled + old.origin) >> min(new.exponent - old.exponent, 63)
            np.add.at(counts, coarse - new.origin, held)

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Bring both to one grid, then add."""
        merged = {name: array.copy() for name, array in left.items()}
        if not self.range:
            right = {name: array.copy() for name, array in right.items()}
            for band in range(len(merged["below"])):
                self._widen(merged, band, float(right["min"][band]), float(right["max"][band]))
                self._widen(right, band, float(merged["min"][band]), float(merged["max"][band]))
        for name in ("counts", "below", "above"):
            merged[name] += right[name]
        return merged

    def finalize(self, state: StatisticState) -> dict[str, Array]:
        """Gather cells into bins.

        Returns
        -------
        dict
            ``counts``: int64, shape (bands, bins). ``edges``: float64, shape (bands, bins + 1);
            NaN for a band without finite values. ``below``, ``above``: int64, shape (bands,).
            ``n``: valid values, the sum of the other three.
        """
        counts = state["counts"].copy()
        edges = np.empty((len(counts), self.bins + 1))
        if self.range:
            edges[:] = _Bins(*self.range, self.bins).edges
        else:
            counts = np.empty((len(edges), self.bins), np.int64)
            for band in range(len(edges)):
                counts[band], edges[band] = self._gathered(state, band)
        below, above = state["below"].copy(), state["above"].copy()
        n = counts.sum(axis=1) + below + above
        return {"counts": counts, "edges": edges, "below": below, "above": above, "n": n}

    def _gathered(self, state: StatisticState, band: int) -> tuple[Counts, Floats]:
        """Counts and edges of one band."""
        low, high = float(state["min"][band]), float(state["max"][band])
        if low > high:
            return np.zeros(self.bins, np.int64), np.full(self.bins + 1, np.nan)
        held = state["counts"][band]
        if low == high:
            half = max(0.5, math.ulp(low) * self.bins)
            edges = _even(max(low - half, -_HUGE), min(high + half, _HUGE), self.bins)
            counts = np.zeros(self.bins, np.int64)
            counts[np.searchsorted(edges[1:-1], low, side="right")] = held.sum()
            return counts, edges
        grid, edges = _Grid.over(low, high, self.cells), _even(low, high, self.bins)
        cuts = np.clip(grid.boundary(edges), 0, self.cells)
        cuts[0], cuts[-1] = 0, self.cells
        before = np.concatenate([[0], np.cumsum(held)])
        return np.diff(before[cuts]), edges


@dataclass(frozen=True)
class _Grid:
    """Cells ``[i 2^exponent, (i + 1) 2^exponent)``, counted from i = origin."""

    exponent: int
    origin: int

    @staticmethod
    def over(low: float, high: float, cells: int) -> _Grid:
        """The finest grid that covers a span with so many cells.

        Never finer than the last place of the largest magnitude, so that i is an exact float.
        """
        finest = max(math.frexp(max(abs(low), abs(high)))[1] - _PRECISION, _LEAST)
        exponent = finest
        if high > low:  # start one or two below the answer
            span = high - low
            width = math.frexp(span)[1] if span < math.inf else _LARGEST
            exponent = max(finest, width - cells.bit_length() - 1)
        while _floor(high, exponent) - _floor(low, exponent) >= cells:
            exponent += 1
        return _Grid(exponent, _floor(low, exponent))

    def cell(self, values: Floats) -> npt.NDArray[np.int64]:
        """The cell of each value, from 0."""
        if self.exponent > 0:
            # Rounding down first keeps tiny negative numbers from vanishing in the division.
            scaled = np.floor(values)
            scaled *= 2.0**-self.exponent
        elif self.exponent >= -1000:
            scaled = values * 2.0**-self.exponent
        else:
            scaled = np.ldexp(values, -self.exponent)
        np.floor(scaled, out=scaled)
        scaled -= self.origin
        return scaled.astype(np.int64)

    def boundary(self, edges: Floats) -> npt.NDArray[np.int64]:
        """The boundary between cells that is nearest to each edge, from 0."""
        return np.rint(np.ldexp(edges, -self.exponent)).astype(np.int64) - self.origin


@dataclass(frozen=True)
class _Bins:
    """Bins of equal width over a given range."""

    low: float
    high: float
    bins: int

    @cached_property
    def edges(self) -> Floats:
        """All edges."""
        return _even(self.low, self.high, self.bins)

    def count(self, state: StatisticState, band: int, piece: Floats) -> None:
        """Count one piece."""
        if not (self.low <= piece.min() and piece.max() <= self.high):
            below, above = piece < self.low, piece > self.high
            state["below"][band] += np.count_nonzero(below)
            state["above"][band] += np.count_nonzero(above)
            piece = piece[~(below | above)]
        edges = self.edges
        guess = piece - self.low
        guess /= self.high - self.low
        guess *= self.bins
        index = guess.astype(np.int64)
        np.minimum(index, self.bins - 1, out=index)
        # The guess is rounded: a value next to an edge may be on its other side.
        index -= piece < edges[index]
        index += (piece >= edges[index + 1]) & (index < self.bins - 1)
        np.add.at(state["counts"][band], index, 1)


def _floor(value: float, exponent: int) -> int:
    """``floor(value / 2^exponent)``, exactly."""
    if exponent > 0:
        return math.floor(value) >> exponent
    return math.floor(math.ldexp(value, -exponent))


def _even(low: float, high: float, bins: int) -> Floats:
    """Edges of bins of equal width; the ends are exact."""
    steps = np.arange(bins) / bins
    width = high - low
    inner = low + steps * width if width < np.inf else 2 * (low / 2 + steps * (high / 2 - low / 2))
    return np.append(np.minimum(inner, high), high)


def _range(given: Any, bins: int) -> tuple[float, float]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise OptionError(f"range must be two numbers, low and high, got {given!r}")
    try:
        low, high = float(given[0]) + 0.0, float(given[1]) + 0.0
    except (TypeError, ValueError):
        raise OptionError(f"range must be two numbers, low and high, got {given!r}") from None
    if not (low < high and np.isfinite(high - low)):
        raise OptionError(f"range must go up from a finite number to another, got {given!r}")
    if not (np.diff(_even(low, high, bins)) > 0).all():
        raise OptionError(f"range {given!r} is too narrow for {bins} bins of float64")
    return low, high
