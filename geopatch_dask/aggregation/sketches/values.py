"""What the sketches share: pieces of values, one bit pattern per number, a mixer.

Values are taken in pieces that stay in the second-level cache with their temporaries, so that a
sketch is a handful of passes over 64 Ki values at a time instead of over the whole array.

A number is identified by 64 bits and a *kind*::

    kind 0   the bits of the number as float64 (-0.0 as +0.0); every float, most integers
    kind 1   int64, two's complement: integers that float64 cannot hold exactly
    kind 2   uint64: such integers of at least 2**63

so that 3, 3.0 and float32(3) are one number, and 2**53 + 1 is not 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError

__all__ = [
    "EMPTY",
    "KINDS",
    "Array",
    "Bits",
    "Kinds",
    "canonical",
    "extremes",
    "floats",
    "mixed",
    "numbers_of",
    "restored",
    "rows_of",
    "slices",
    "unmixed",
    "whole_number",
]

Array = npt.NDArray[Any]
Bits = npt.NDArray[np.uint64]
Kinds = npt.NDArray[np.uint8]

#: Values per piece: 512 KiB as float64, half of a usual second-level cache.
PIECE = 1 << 16
#: How many kinds of numbers there are, and the kind of a place that holds none.
KINDS, EMPTY = 3, 255

# The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): every step is invertible.
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """Check an option that counts something.

    Raises
    ------
    OptionError
        When it is no integer, or not in ``low ... high``.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise OptionError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    if not low <= value <= high:
        raise OptionError(f"{name} must lie in {low} ... {high}, got {value!r}")
    return int(value)


def rows_of(values: Array, bands: int) -> Array:
    """Values with one row per band, of a dtype that sketches understand.

    Raises
    ------
    OptionError
        For another shape than (bands, n), or values that are not real numbers.
    """
    values = np.asarray(values)
    if values.ndim != 2 or len(values) != bands:
        raise OptionError(
            f"a sketch of {bands} bands takes values of shape ({bands}, n), got {values.shape}; "
            "reshape them, or start from init(bands)"
        )
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise OptionError(f"sketches take real numbers, not {values.dtype}; convert them first")
    return values


def slices(n: int) -> Iterator[slice]:
    """The pieces of ``n`` values."""
    for first in range(0, n, PIECE):
        yield slice(first, min(first + PIECE, n))


def floats(piece: Array) -> npt.NDArray[np.float64]:
    """A piece as contiguous float64, without the missing values; integers are rounded."""
    numbers = np.ascontiguousarray(piece, np.float64)
    if numbers.size and np.isnan(numbers.min()):  # a minimum is cheaper than a mask
        numbers = numbers[~np.isnan(numbers)]
    return numbers


def extremes(numbers: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Smallest and largest finite value; ``(inf, -inf)`` where there is none."""
    if not numbers.size:
        return np.inf, -np.inf
    low, high = float(numbers.min()), float(numbers.max())
    if np.isinf(low) or np.isinf(high):
        return extremes(numbers[np.isfinite(numbers)])
    return low + 0.0, high + 0.0  # -0.0 + 0.0 is +0.0


def canonical(piece: Array) -> tuple[Bits, Kinds | None]:
    """Identify numbers: their bits, and their kinds (None: all 0).  NaN is left out.

    Parameters
    ----------
    piece : ndarray of real numbers, 1-D

    Returns
    -------
    bits : ndarray of uint64
    kinds : ndarray of uint8 or None
    """
    if piece.dtype.kind == "f":
        # -0.0 + 0.0 is +0.0; the sum is a new array, which callers may overwrite
        return (floats(piece) + 0.0).view(np.uint64), None
    numbers = piece.astype(np.float64)
    if piece.dtype.itemsize < 8 or not piece.size:
        return numbers.view(np.uint64), None
    if int(piece.min()) >= -(2**53) and int(piece.max()) <= 2**53:
        return numbers.view(np.uint64), None
    signed = piece.dtype.kind == "i"
    whole = np.ascontiguousarray(piece, np.int64 if signed else np.uint64)
    fits = numbers < (2.0**63 if signed else 2.0**64)  # rounding up may have left the dtype
    fits &= np.where(fits, numbers, 0).astype(whole.dtype) == whole
    kinds = np.zeros(len(whole), np.uint8)
    kinds[~fits] = 1
    if not signed:
        kinds[~fits & (whole >= np.uint64(2**63))] = 2
    return np.where(fits, numbers.view(np.uint64), whole.view(np.uint64)), kinds


def numbers_of(bits: Bits, kinds: Kinds) -> list[float | int]:
    """The numbers that :func:`canonical` identified, one by one, as Python floats and ints."""
    found: list[float | int] = []
    for word, kind in zip(bits.ravel().tolist(), kinds.ravel().tolist(), strict=True):
        if kind in (0, EMPTY):
            found.append(float(np.uint64(word).view(np.float64)) if kind == 0 else float("nan"))
        else:
            found.append(word - 2**64 if kind == 1 and word >= 2**63 else word)
    return found


def restored(bits: Bits, kinds: Kinds) -> Array:
    """The numbers that :func:`canonical` identified, in an array of the same shape.

    float64 where that is exact.  Where some numbers are integers that float64 cannot hold: int64,
    or uint64, if every number fits (an empty place is 0 then); otherwise Python objects.
    """
    plain = np.where(kinds == 0, bits.view(np.float64), np.nan)
    if not ((kinds == 1) | (kinds == 2)).any():
        return plain
    known = plain[kinds == 0]
    if (np.floor(known) == known).all():
        signed = (kinds != 2).all() and (np.abs(known) < 2.0**63).all()
        positive = ((known >= 0) & (known < 2.0**64)).all()
        positive &= not ((kinds == 1) & (bits >= np.uint64(2**63))).any()
        if signed or positive:
            dtype = np.int64 if signed else np.uint64
            exact = np.where(kinds == 0, plain, 0).astype(dtype)
            return np.where((kinds == 1) | (kinds == 2), bits.view(dtype), exact)
    objects = np.empty(bits.shape, object)
    objects.ravel()[:] = numbers_of(bits, kinds)
    return objects


def mixed(words: Bits) -> Bits:
    """Scramble words, in place and invertibly: every bit comes to depend on every bit."""
    scratch = np.empty_like(words)
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        np.right_shift(words, np.uint64(shift), out=scratch)
        words ^= scratch
        if factor != 1:
            words *= np.uint64(factor)
    return words


def unmixed(words: Bits) -> Bits:
    """The words that :func:`mixed` scrambled."""
    words = words.copy()
    for shift, factor in zip(_SHIFTS[::-1], (1, *_FACTORS[::-1]), strict=True):
        if factor != 1:
            words *= np.uint64(pow(factor, -1, 2**64))
        # x ^ (x >> s) is undone by x ^ (x >> s) ^ (x >> 2s) ^ ...; no shift here needs a fourth
        words ^= (words >> np.uint64(shift)) ^ (words >> np.uint64(2 * shift))
    return words
