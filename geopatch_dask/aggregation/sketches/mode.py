"""The most frequent values of a field, by a linear sketch.

Count-Min (Cormode and Muthukrishnan 2005): some rows of w counters; every row hashes a value to one
of its counters and adds 1.  Whatever else fell on the same counter makes it larger, never smaller,
so that the least of the counters of a value is at least its count, and hardly more.

To *find* frequent values, not only to count a given one, they are sketched by prefixes too.  A
value is 66 bits (64 scrambled bits and a kind), cut after 11, 22, ... 66::

    level 0      11 bits         2048 plain counters
    level 1      22 bits         3 rows of w          a prefix is at least as frequent as each
    ..                                                value that begins with it, so below a
    level 5      66 bits         8 rows of w          rare prefix nothing frequent is missed

The search goes down from the frequent prefixes of one level to those among their 2048 extensions
on the next.  A prefix is frequent above 16 n / w: at most w / 16 counters of a row are that large,
so that 2048 / 16^3, half an extension of a frequent prefix, gets through three rows by mistake, and
the search does not branch out; eight rows on the last level leave next to no mistake in the answer.
Counters are sums of integers, so states are added in any order.
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

_STEP = 11
_FAN = 1 << _STEP
#: Rows of each level after the first, as slices of all rows.
_LEVELS = (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12), slice(12, 20))
_LAST = len(_LEVELS) - 1
_ROWS = _LEVELS[_LAST].stop
#: A value is frequent above this many w-ths of all values.
_FREQUENT = 16
# Multiply-shift hashing (Dietzfelbinger et al. 1997): an odd factor per row for the words, and one
# for the kinds.
_FACTORS = random_bits(0, np.arange(_ROWS), stream=2) | np.uint64(1)
_KIND_FACTORS = random_bits(0, np.arange(_ROWS), stream=3) | np.uint64(1)
_ONCE = np.asarray(1)
#: Values that the counters are made for, at least: a smaller k is no reason to overlook the mode.
_FEWEST = 16
# Prefixes that are extended at a time: bounds the memory of the search.
_BATCH = 16


@dataclass(frozen=True)
class ApproxMode(Statistic):
    """The k most frequent values and how often they occur, by a hierarchical Count-Min sketch.

    Parameters
    ----------
    k : int, default 16
        How many values to return, up to 1024.

    Notes
    -----
    With n valid values and w = 128 k counters per row (k rounded up to a power of two, 16 or more):

    *Found*: every value with a share above 16 / w is a candidate, for certain (k = 16: 0.8 %);
    of all candidates, the k with the largest estimated counts are returned, fewer if there are
    fewer.  Where no value is that frequent, there is none: raise ``k``.

    *Counted*: an estimated count is never too low.  It is too high by more than ``2 e n / w``
    (k = 16: 0.27 % of n) with a probability of at most ``e^-8`` (0.03 %), by the eight rows of the
    last level alone; a value that does not occur at all is returned with one below ``1e-5 k``.
    Where there are at most some hundred different values, counts are exact as a rule.

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
        return 8 * _FREQUENT << (max(self.k, _FEWEST) - 1).bit_length()

    def init(self, bands: int) -> StatisticState:
        """No counts."""
        return {
            "root": np.zeros((bands, _FAN), np.int64),
            "rows": np.zeros((bands, _ROWS, self.width), np.int64),
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
        total = state["kinds"][band]
        if kinds is None:
            total[0] += often.sum() if often.ndim else often * len(words)
        else:
            np.add.at(total, kinds, often)
        index = (words >> np.uint64(64 - _STEP)).view(np.int64)
        np.add.at(state["root"][band], index, often)
        scratch = np.empty_like(words)
        for level, rows in enumerate(_LEVELS):
            prefixes = words if level == _LAST else words >> np.uint64(64 - _STEP * (level + 2))
            for row in range(_ROWS)[rows]:
                column = self._columns(prefixes, kinds if level == _LAST else None, row, scratch)
                np.add.at(state["rows"][band, row], column, often)

    def _columns(
        self, prefixes: Bits, kinds: Kinds | None, row: int, out: Bits
    ) -> npt.NDArray[np.int64]:
        """The counter of each prefix in one row."""
        np.multiply(prefixes, _FACTORS[row], out=out)
        if kinds is not None:
            out += kinds * _KIND_FACTORS[row]
        out >>= np.uint64(65 - self.width.bit_length())
        return out.view(np.int64)

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Add."""
        return {name: counts + right[name] for name, counts in left.items()}

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
            words, sorts, often = self._candidates({name: a[band] for name, a in state.items()})
            numbers = numbers_of(words, sorts)
            ranks = sorted(range(len(numbers)), key=lambda i: (-int(often[i]), numbers[i]))
            best = ranks[: self.k]
            bits[band, : len(best)] = words[best]
            kinds[band, : len(best)] = sorts[best]
            counts[band, : len(best)] = often[best]
        n = state["kinds"].sum(axis=1)
        return {
            "values": restored(bits, kinds),
            "counts": counts,
            "n": n,
            "error": 2 * math.e * n / self.width,
        }

    def _candidates(self, state: StatisticState) -> tuple[Bits, Kinds, Counts]:
        """Bits, kinds and estimated counts of every value that may be frequent, for one band."""
        least = int(state["kinds"].sum()) * _FREQUENT // self.width + 1
        words = np.flatnonzero(state["root"] >= least).astype(np.uint64)
        counts = state["root"][words.view(np.int64)]
        kinds = np.zeros(len(words), np.uint8)
        for level in range(len(_LEVELS)):
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
        sorts = np.zeros(_FAN, np.uint8)
        if level == _LAST:  # nine bits are left; the other two are the kind, of which one is unused
            sorts = (fan & np.uint64(3)).astype(np.uint8)
            fan, sorts = (fan >> np.uint64(2))[sorts < KINDS], sorts[sorts < KINDS]
        bits = np.uint64(9 if level == _LAST else _STEP)
        words = ((words << bits)[:, None] | fan).ravel()
        kinds, counts = np.tile(sorts, len(counts)), np.repeat(counts, len(fan))
        if level == _LAST:
            counts = np.minimum(counts, state["kinds"][kinds])
        for row in range(_ROWS)[_LEVELS[level]]:
            keep = np.flatnonzero(counts >= least)
            words, kinds, counts = words[keep], kinds[keep], counts[keep]
            column = self._columns(
                words, kinds if level == _LAST else None, row, np.empty_like(words)
            )
            counts = np.minimum(counts, state["rows"][row][column])
        keep = np.flatnonzero(counts >= least)
        return words[keep], kinds[keep], counts[keep]


def _tallied(piece: Array) -> tuple[Array, Counts]:
    """Different values and how often each occurs, where that is cheap to know: narrow integers."""
    if piece.dtype.kind == "f" or not piece.size:
        return piece, _ONCE
    low = int(piece.min())
    if int(piece.max()) - low >= len(piece):
        return piece, _ONCE
    wide = piece.dtype if piece.dtype.itemsize == 8 else np.dtype(np.int64)
    tally = np.bincount((piece.astype(wide) - wide.type(low)).astype(np.int64))
    steps = np.flatnonzero(tally)
    return steps.astype(wide) + wide.type(low), tally[steps]
