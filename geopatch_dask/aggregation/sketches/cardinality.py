"""How many different numbers a field holds: HyperLogLog.

Every number is hashed to 64 bits.  The first p bits choose one of m = 2^p registers; the register
keeps the largest *rank* it has seen, the position of the first 1 among the other bits::

    hash      0110 ... 1 | 0001 1010 ...        p = 14
              register       rank 4

A rank of r is seen about once in 2^r different numbers, so that the ranks tell how many there
were; a number that is seen again changes nothing.  Registers are maxima, so states are merged
exactly and in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.values import (
    KINDS,
    Array,
    Bits,
    Kinds,
    canonical,
    mixed,
    rows_of,
    slices,
    whole_number,
)
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.patch.anchors import random_bits

__all__ = ["ApproxCardinality"]

# What is added to the bits of a number of each kind before hashing, so that kinds do not collide.
_SALTS = random_bits(0, np.arange(KINDS), stream=1)
# Ranks are read off the exponent of a float, so off at most 52 bits; the chance of a larger rank,
# 2^-52 per number, is out of sight of any estimate.
_RANK_BITS = 52


@dataclass(frozen=True)
class ApproxCardinality(Statistic):
    """The number of different values, by HyperLogLog.

    Parameters
    ----------
    p : int, default 14
        From 4 to 18: ``2^p`` registers.

    Notes
    -----
    *Error*: the standard error is ``1.04 / sqrt(2^p)`` of the count (p = 14: 0.8 %; p = 18: 0.2 %),
    and smaller for counts below ``2^p``; about 1 estimate in 20 is off by more than twice, 1 in
    300 by more than three times as much.  There is no bias to correct at any size: the estimator
    is Ertl's, which covers the range of linear counting and that of the raw estimate of the
    original in one formula.

    *What is counted*: numbers, whatever their dtype.  3 and 3.0 are one value, -0.0 and +0.0 are
    one, float32(0.1) and 0.1 are two, 2**53 and 2**53 + 1 (int64) are two, either infinity is one.
    NaN is ignored.

    *State*: ``2^p`` bytes per band: 16 KB with the default.

    *Source*: P. Flajolet, E. Fusy, O. Gandouet, F. Meunier, "HyperLogLog", AofA 2007; the
    estimator is the improved raw one of O. Ertl, "New cardinality estimation algorithms for
    HyperLogLog sketches", arXiv:1702.01284 (2017).

    Examples
    --------
    >>> sketch = ApproxCardinality()
    >>> state = sketch.init(bands=1)
    >>> sketch.update(state, np.arange(5000)[None] % 1000, np.arange(5000, dtype=np.uint64))
    >>> bool(abs(sketch.finalize(state)["count"][0] / 1000 - 1) < 0.025)
    True
    """

    p: int = 14

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", whole_number(self.p, "p of ApproxCardinality", 4, 18))

    @property
    def standard_error(self) -> float:
        """Relative standard error of the count."""
        return 1.04 / math.sqrt(2**self.p)

    @property
    def _longest(self) -> int:
        """How many bits are looked at for a rank."""
        return min(64 - self.p, _RANK_BITS)

    def init(self, bands: int) -> StatisticState:
        """Registers that have seen nothing."""
        return {"registers": np.zeros((bands, 2**self.p), np.uint8)}

    def update(
        self, state: StatisticState, values: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> None:
        """Raise registers; the keys do not matter."""
        registers = state["registers"]
        for band, row in enumerate(rows_of(values, len(registers))):
            for part in slices(len(row)):
                self._raise(registers[band], _hashed(*canonical(row[part])))

    def _raise(self, registers: npt.NDArray[np.uint8], words: Bits) -> None:
        """Raise the registers of one band."""
        index = (words >> np.uint64(64 - self.p)).view(np.int64)
        rest = (words << np.uint64(self.p)) >> np.uint64(64 - _RANK_BITS)
        # 52 bits are exact as float64, and its exponent says where the first 1 is: a rest in
        # [2^e, 2^(e+1)) has rank 52 - e; zero, whose exponent field is 0, has the longest.
        exponent = rest.view(np.int64).astype(np.float64).view(np.int64) >> 52
        rank = np.minimum(1023 + _RANK_BITS - 1 - exponent, self._longest) + 1
        ranks = rank.astype(np.uint8)
        news = np.flatnonzero(registers[index] < ranks)  # few, once the registers have settled
        np.maximum.at(registers, index[news], ranks[news])

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Keep the larger of each register."""
        return {"registers": np.maximum(left["registers"], right["registers"])}

    def finalize(self, state: StatisticState) -> dict[str, Array]:
        """Estimate.

        Returns
        -------
        dict
            ``count``: float64, shape (bands,). ``standard_error``: relative, one number.
        """
        top = self._longest + 1
        counts = [np.bincount(row, minlength=top + 1) for row in state["registers"]]
        return {
            "count": np.array([_estimate(c.tolist()) for c in counts], np.float64),
            "standard_error": np.asarray(self.standard_error),
        }


def _hashed(bits: Bits, kinds: Kinds | None) -> Bits:
    """64 random bits per number; overwrites ``bits``."""
    bits += _SALTS[0] if kinds is None else _SALTS[kinds]
    mixed(bits)
    bits += _SALTS[0]
    return mixed(bits)


def _estimate(multiplicity: list[int]) -> float:
    """Ertl's improved raw estimate from how many registers hold each value, 0 to the largest."""
    m = sum(multiplicity)
    z = m * _tau(1 - multiplicity[-1] / m)
    for count in multiplicity[-2:0:-1]:
        z = 0.5 * (z + count)
    z += m * _sigma(multiplicity[0] / m)
    return m / (2 * math.log(2)) * m / z


def _sigma(x: float) -> float:
    """``x + sum of x^(2^k) 2^(k-1)``: what registers that saw nothing stand for."""
    if x == 1:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    """``(1 - x - sum of (1 - x^(2^-k))^2 2^-k) / 3``: what full registers stand for."""
    if x in (0, 1):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) ** 2 * y
    return z / 3
