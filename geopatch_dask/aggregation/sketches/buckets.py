"""Logarithmic buckets of floats: the top bits of a float are its bucket.

An IEEE float is sign, exponent e and mantissa; cutting the mantissa after m bits leaves a number
that counts the buckets of equal width into which each octave [2^e, 2^(e+1)) is divided::

    |x|      2^e                2^(e+1)                              2^(e+2)
    m = 2     |    |    |    |    |        |        |        |        |
    bits      e00  e01  e10  e11  ...

which is the logarithm of |x|, interpolated linearly within octaves.  A bucket [a, b) is at most
2^-m wide relative to a, so that the value v = 2ab / (a + b) is off by at most 1 / (2^(m+1) + 1) of
any number in it.  A shift finds the bucket; nothing is rounded.

All counts of a band lie in one array, ascending by value, N buckets for each sign::

    -inf | <= -2^high | N negative | zero | N positive | >= 2^high | +inf
      0        1         2 ... N+1   N+2    N+3 ... 2N+2    2N+3      2N+4

This is DDSketch with the linearly interpolated mapping (Masson, Rim and Lee, VLDB 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.values import Array

__all__ = ["LogBuckets", "mantissa_bits"]

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# float64: bits of mantissa, bias of the exponent, smallest exponent of a normal number
_MANTISSA, _BIAS, _NORMAL = 52, 1023, -1022
_MAGNITUDE = 2**63 - 1


def mantissa_bits(relative_error: float) -> int:
    """Fewest bits of mantissa that keep buckets within a relative error.

    Examples
    --------
    >>> [mantissa_bits(e) for e in (0.5, 0.01, 0.001)]
    [0, 6, 9]
    """
    bits = 0
    while 1 / (2 ** (bits + 1) + 1) > relative_error:
        bits += 1
    return bits


@dataclass(frozen=True)
class LogBuckets:
    """Buckets of ``2^low <= |x| < 2^high``, each octave divided into ``2^bits``.

    Parameters
    ----------
    bits : int
        Of the mantissa; at most 52.
    low, high : int
        Exponents.  A nonzero number below ``2^low`` is counted as zero, and separately as *tiny*;
        one of at least ``2^high`` in the outermost bucket of its sign.
    """

    bits: int
    low: int
    high: int

    @property
    def per_sign(self) -> int:
        """Buckets of each sign: N."""
        return (self.high - self.low) << self.bits

    @property
    def size(self) -> int:
        """Entries of the array of counts."""
        return 2 * self.per_sign + 5

    def count(self, piece: Floats, counts: Counts, scale: int = 0) -> int:
        """Count the values of a piece.

        Parameters
        ----------
        piece : ndarray of float64, contiguous, without NaN
            The values, divided by ``2^scale``.
        counts : ndarray of int64, shape (size,)
            What to add to.

        Returns
        -------
        int
            How many of them were tiny.
        """
        tiny = 0
        if self.low - scale < _NORMAL:  # subnormal numbers have no exponent of their own
            subnormal = np.abs(piece) < 2.0**_NORMAL
            if subnormal.any():
                tiny = self.count(piece[subnormal] * 2.0**64, counts, scale - 64)
                piece = piece[~subnormal]
        middle = counts[self.per_sign + 2]
        ends = counts[1], counts[-2]
        np.add.at(counts, self._index(piece, scale), 1)
        if counts[self.per_sign + 2] > middle:
            tiny += int(counts[self.per_sign + 2] - middle - np.count_nonzero(piece == 0))
        for outermost, beyond, before, what in (
            (1, 0, ends[0], -np.inf),
            (-2, -1, ends[1], np.inf),
        ):
            if counts[outermost] > before:
                infinite = np.count_nonzero(piece == what)
                counts[outermost] -= infinite
                counts[beyond] += infinite
        return tiny

    def _index(self, piece: Floats, scale: int) -> npt.NDArray[np.int64]:
        """Where each value is counted; infinities with the outermost buckets."""
        words = piece.view(np.int64)
        index = words & _MAGNITUDE
        index >>= _MANTISSA - self.bits
        index -= ((self.low - scale + _BIAS) << self.bits) - 1
        np.clip(index, 0, self.per_sign + 1, out=index)
        sign = words >> 63  # -1 or 0; x ^ -1 - -1 is -x
        index ^= sign
        index -= sign
        index += self.per_sign + 2
        return index

    def value(self, index: npt.NDArray[np.int64], low: float, high: float) -> Array:
        """Numbers that stand for some entries of the array of counts.

        Parameters
        ----------
        index : ndarray of int64
        low, high : float
            Extremes of the finite values: nothing finite lies outside them, and the outermost
            buckets, which have no end, are represented by them.

        Returns
        -------
        ndarray of float64
        """
        n = self.per_sign
        distance = index - (n + 2)
        bucket = np.clip(np.abs(distance) - 1, 0, max(n - 1, 0))
        octave, step = bucket >> self.bits, bucket & ((1 << self.bits) - 1)
        slope = 1.0 + step / 2.0**self.bits
        centre = slope + slope / (2.0 * ((1 << self.bits) + step) + 1.0)
        with np.errstate(over="ignore"):
            size = np.ldexp(centre, octave + self.low)
        found = np.where(distance == 0, 0.0, np.where(distance < 0, -size, size))
        found = np.where(distance == -n - 1, low, np.where(distance == n + 1, high, found))
        found = np.clip(found, low, high) if low <= high else found
        return np.where(distance < -n - 1, -np.inf, np.where(distance > n + 1, np.inf, found))
