"""The most frequent values of a field, by a linear sketch.

Count-Min (Cormode and Muthukrishnan 2005): d rows of w counters; every row hashes a value to one
of its counters and adds 1.  Whatever else fell on the same counter makes it larger, never smaller,
so that the least of the d counters is at least the count of the value, and hardly more.

To *find* frequent values, not only to count a given one, they are sketched by prefixes too.  A
value is 66 bits (64 scrambled bits and a kind), cut after 11, 22, ... 66::

    level 0      11 bits         2048 plain counters
    level 1      22 bits         d rows of w          a prefix is at least as frequent as each
    ..                                                value that begins with it, so below a
    level 5      66 bits         d rows of w          rare prefix nothing frequent is missed

The search goes down from the frequent prefixes of one level to those among their 2048 extensions
on the next.  Counters are sums of integers, so states are added in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.values import (
    EMPTY,
    KINDS,
    Array,
    Bits,
    Kinds,
    canonical,
    mixed,
    numbers_of,
    restored,
    rows_of,
    slices,
    unmixed,
    whole_number,
)
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.patch.anchors import random_bits

__all__ = ["ApproxMode"]

Counts = npt.NDArray[np.int64]

_STEP, _LEVELS, _ROWS = 11, 5, 4
_FAN = 1 << _STEP
# Multiply-shift hashing (Dietzfelbinger et al. 1997): one odd factor per row of a level; and one
# for the kind, which only the last level has.
_FACTORS = random_bits(0, np.arange(_LEVELS * _ROWS), stream=2).reshape(_LEVELS, _ROWS) | np.uint64(
    1
)
_KIND_FACTORS = random_bits(0, np.arange(_ROWS), stream=3) | np.uint64(1)
# Prefixes that are extended at a time: bounds the memory of the search to a few times 4 MiB.
_BATCH = 256


@dataclass(frozen=True)
class ApproxMode(Statistic):
    """The k most frequent values and how often they occur, by a hierarchical Count-Min sketch.

    Parameters
    ----------
    k : int, default 16
        How many values to return, up to 1024.

    Notes
    -----
    With n valid values and w = 128 k counters per row (k rounded up to a power of two):

    *Found*: every value with a share above 1/(16 k) is a candidate, for certain (k = 16: 0.4 %);
    of all candidates, the k with the largest estimated counts are returned, fewer if there are
    fewer.  Where no value is that frequent, there is none: raise ``k``.

    *Counted*: an estimated count is never too low.  It is too high by more than ``2 e n / w``
    (k = 16: 0.27 % of n) with a probability of at most ``e^-4``, by the four independent rows of
    the last level; the sixteen rows above it make it far less likely still.  Where there are fewer
    different values than some hundred, counts are exact as a rule.

    *What is counted*: numbers, whatever their dtype, -0.0 as +0.0, infinities too; NaN is ignored.
    Values come back exactly, integers beyond 2**53 too.

    *State*: ``160 w + 16408`` bytes per band: 344 KB with the default.

    *Source*: G. Cormode and S. Muthukrishnan, "An improved data stream summary: the count-min
    sketch and its applications", J. Algorithms 2005, section 5 (heavy hitters), with a fan of 2048
    instead of 2 and prefixes of a scrambled value.

    Examples
    --------
    >>> sketch = ApproxMode(k=2)
    >>> state = sketch.init(bands=1)
    >>> sketch.update(state, np.array([[3, 1, 3, 7, 3, 1]]), np.arange(6, dtype=np.uint64))
    >>> found = sketch.finalize(state)
    >>> found["values"].tolist(), found["counts"].tolist()
    ([[3.0, 1.0]], [[3, 2]])
    """

    k: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number(self.k, "k of ApproxMode", 1, 1024))

    @property
    def width(self) -> int:
        """Counters per row: w."""
        return 128 * 2 ** (self.k - 1).bit_length()

    def init(self, bands: int) -> StatisticState:
        """No counts."""
        return {
            "root": np.zeros((bands, _FAN), np.int64),
            "levels": np.zeros((bands, _LEVELS, _ROWS, self.width), np.int64),
            "kinds": np.zeros((bands, KINDS), np.int64),
        }

    def update(
        self, state: StatisticState, values: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> None:
        """Count; the keys do not matter."""
        for band, row in enumerate(rows_of(values, len(state["kinds"]))):
            for part in slices(len(row)):
                piece, often = _tallied(row[part])
                bits, kinds = canonical(piece)
                self._count(state, band, mixed(bits), kinds, often)

    def _count(
        self, state: StatisticState, band: int, words: Bits, kinds: Kinds | None, often: Counts
    ) -> None:
        """Count scrambled values, each some number of times."""
        index = (words >> np.uint64(64 - _STEP)).view(np.int64)
        np.add.at(state["root"][band], index, often)
        np.add.at(state["kinds"][band], 0 if kinds is None else kinds, often)
        if kinds is None:
            state["kinds"][band, 0] += 0
        scratch = np.empty_like(words)
        for level in range(_LEVELS):
            prefixes = _prefixes(words, level)
            for row in range(_ROWS):
                column = self._columns(prefixes, kinds, level, row, scratch)
                np.add.at(state["levels"][band, level, row], column, often)

    def _columns(
        self, prefixes: Bits, kinds: Kinds | None, level: int, row: int, out: Bits
    ) -> npt.NDArray[np.int64]:
        """The counter of each prefix in one row of one level."""
        np.multiply(prefixes, _FACTORS[level, row], out=out)
        if kinds is not None and level == _LEVELS - 1:
            out += kinds * _KIND_FACTORS[row]
        out >>= np.uint64(65 - self.width.bit_length())
        return out.view(np.int64)

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Add."""
        for name, counts in left.items():
            counts += right[name]
        return left

    def finalize(self, state: StatisticState) -> dict[str, Array]:
        """Search.

        Returns
        -------
        dict
            ``values``: shape (bands, k), by descending count, equal counts by ascending value;
            float64, or an integer dtype where float64 is not exact. ``counts``: int64, the same
            shape, never too low; 0 marks a place that is not filled, whose value is NaN (or 0, for
            integers). ``n``: valid values, shape (bands,). ``error``: float64, shape (bands,): the
            ``2 e n / w`` of the notes.
        """
        bands = len(state["kinds"])
        bits = np.zeros((bands, self.k), np.uint64)
        kinds = np.full((bands, self.k), EMPTY, np.uint8)
        counts = np.zeros((bands, self.k), np.int64)
        for band in range(bands):
            found = self._candidates({name: array[band] for name, array in state.items()})
            numbers = numbers_of(found[0], found[1])
            ranks = sorted(range(len(numbers)), key=lambda i: (-int(found[2][i]), numbers[i]))
            best = np.array(ranks[: self.k], np.int64)
            for into, column in zip((bits, kinds, counts), found, strict=True):
                into[band, : len(best)] = column[best]
        n = state["kinds"].sum(axis=1)
        return {
            "values": restored(bits, kinds),
            "counts": counts,
            "n": n,
            "error": 2 * math.e * n / self.width,
        }

    def _candidates(self, state: StatisticState) -> tuple[Bits, Kinds, Counts]:
        """Bits, kinds and estimated counts of every value that may have a share above 8 / w."""
        least = int(state["kinds"].sum()) * 8 // self.width + 1
        words = np.flatnonzero(state["root"] >= least).astype(np.uint64)
        counts = state["root"][words.view(np.int64)]
        kinds = np.zeros(len(words), np.uint8)
        for level in range(_LEVELS):
            parts = [
                self._extended(state, level, words[i : i + _BATCH], counts[i : i + _BATCH], least)
                for i in range(0, max(len(words), 1), _BATCH)
            ]
            words, kinds, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
        bits = unmixed(words)
        real = (kinds != 0) | ~np.isnan(bits.view(np.float64))
        return bits[real], kinds[real], counts[real]

    def _extended(
        self, state: StatisticState, level: int, words: Bits, counts: Counts, least: int
    ) -> tuple[Bits, Kinds, Counts]:
        """The frequent ones among all extensions of some prefixes, with upper bounds of counts."""
        fan = np.arange(_FAN, dtype=np.uint64)
        kinds = np.zeros(_FAN, np.uint8)
        if level == _LEVELS - 1:  # nine bits are left; the other two are the kind
            kinds, fan = (fan & np.uint64(3)).astype(np.uint8), fan >> np.uint64(2)
        bits = 64 - _STEP * (_LEVELS) if level == _LEVELS - 1 else _STEP
        words = ((words << np.uint64(bits))[:, None] | fan).ravel()
        kinds, counts = np.tile(kinds, len(counts)), np.repeat(counts, _FAN)
        if level == _LEVELS - 1:
            counts = np.minimum(counts, np.append(state["kinds"], 0)[kinds])
        for row in range(_ROWS):
            keep = counts >= least
            words, kinds, counts = words[keep], kinds[keep], counts[keep]
            column = self._columns(words, kinds, level, row, np.empty_like(words))
            counts = np.minimum(counts, state["levels"][level, row][column])
        keep = counts >= least
        return words[keep], kinds[keep], counts[keep]


def _prefixes(words: Bits, level: int) -> Bits:
    """The first 22, 33, 44 or 55 bits, or all 64."""
    bits = _STEP * (level + 2)
    return words if bits > 64 else words >> np.uint64(64 - bits)


def _tallied(piece: Array) -> tuple[Array, Any]:
    """Different values and how often each occurs, where that is cheap to know: narrow integers."""
    if piece.dtype.kind == "f" or not piece.size:
        return piece, 1
    low = int(piece.min())
    if int(piece.max()) - low >= len(piece):
        return piece, 1
    wide = piece.dtype if piece.dtype.itemsize == 8 else np.dtype(np.int64)
    tally = np.bincount((piece.astype(wide) - wide.type(low)).astype(np.int64))
    steps = np.flatnonzero(tally)
    return steps.astype(wide) + wide.type(low), tally[steps]
