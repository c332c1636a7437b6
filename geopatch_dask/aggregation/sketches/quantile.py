"""Quantiles of a whole field, each within a relative error of an exact one.

Counts of logarithmic buckets (:mod:`geopatch_dask.aggregation.sketches.buckets`) say, for any q,
in which bucket the value of rank ``floor(q (n - 1))`` lies; any number of the bucket is within the
relative error of it::

    counts    ..  0   3  17  40  21   4   0  ..        n = 85, q = 0.5: rank 42
    summed    ..  0   3  20  60  81  85  85  ..
                             ^ the first sum above 42

The counts are integers, so states are added without rounding, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.buckets import LogBuckets, mantissa_bits
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

__all__ = ["ApproxQuantile"]


@dataclass(frozen=True)
class ApproxQuantile(Statistic):
    """Quantiles within a relative error, by counting in logarithmic buckets.

    Parameters
    ----------
    q : float or sequence of float, default 0.5
        Which quantiles, in [0, 1].
    relative_error : float, default 0.01
        From 1e-4 to 0.5.  Rounded down to the next ``1 / (2^(m+1) + 1)``: 0.01 gives m = 6 and
        0.0078, 0.001 gives m = 9 and 0.00098.
    exponents : (int, int), default (-149, 128)
        Magnitudes ``2^low <= |x| < 2^high`` are told apart.  The default is what float32 can hold,
        its subnormal numbers included, and all integers; (-1074, 1024) is all of float64.

    Notes
    -----
    *What is estimated*: the lower quantile, the value with exactly ``floor(q (n - 1))`` valid
    values before it in sorted order; ``numpy.quantile(values, q, method="lower")``.

    *Error*: at most ``relative_error`` of that value (plus half of 4.9e-324, where float64 itself
    is coarser than that), for every data set and order; 0 and the infinities, the minimum (q = 0)
    and the maximum (q = 1) are exact.  A value below ``2^low`` is taken for 0 (an error below
    1.4e-45 with the default); among values of ``2^high`` and more, only their end of the range is
    known, which is then the answer.  ``outside`` counts both.  Integers beyond 2**53 are rounded
    to float64 first, which adds 2^-53 of the value at most.

    *Missing data*: NaN is ignored; infinities are values, below and above all others.

    *State*: ``16 (high - low) 2^m + 72`` bytes per band: 284 KB with the defaults, 2.1 MB for all
    of float64, 8 times as much for a relative error of 0.001.

    *Source*: C. Masson, J. E. Rim, H. K. Lee, "DDSketch: a fast and fully-mergeable quantile
    sketch with relative-error guarantees", VLDB 2019; buckets interpolated linearly in each octave
    and never collapsed.

    Examples
    --------
    >>> sketch = ApproxQuantile(q=(0.25, 0.5))
    >>> state = sketch.init(bands=1)
    >>> sketch.update(state, np.arange(1.0, 1002.0)[None], np.arange(1001, dtype=np.uint64))
    >>> sketch.finalize(state)["value"].round(1).tolist()  # exactly 251 and 501
    [[251.0, 502.0]]
    """

    q: float | tuple[float, ...] = 0.5
    relative_error: float = 0.01
    exponents: tuple[int, int] = (-149, 128)

    def __post_init__(self) -> None:
        given = np.asarray(self.q)
        if given.ndim > 1 or given.dtype.kind not in "iuf" or not given.size:
            raise OptionError(f"q must be a number or a list of numbers in [0, 1], got {self.q!r}")
        if not ((given >= 0) & (given <= 1)).all():
            raise OptionError(f"every q must lie in [0, 1], got {self.q!r}")
        q = float(given) if given.ndim == 0 else tuple(float(v) for v in given)
        object.__setattr__(self, "q", q)
        if not isinstance(self.relative_error, int | float) or not (
            1e-4 <= self.relative_error <= 0.5
        ):
            raise OptionError(
                f"relative_error must lie in [1e-4, 0.5], got {self.relative_error!r}; "
                "the state doubles with every halving of it"
            )
        object.__setattr__(self, "exponents", _exponents(self.exponents))

    @property
    def buckets(self) -> LogBuckets:
        """The buckets of these options."""
        return LogBuckets(mantissa_bits(self.relative_error), *self.exponents)

    def init(self, bands: int) -> StatisticState:
        """No counts, and extremes that every value replaces."""
        return {
            "counts": np.zeros((bands, self.buckets.size), np.int64),
            "tiny": np.zeros(bands, np.int64),
            "min": np.full(bands, np.inf),
            "max": np.full(bands, -np.inf),
        }

    def update(
        self, state: StatisticState, values: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> None:
        """Count; the keys do not matter."""
        buckets = self.buckets
        for band, row in enumerate(rows_of(values, len(state["tiny"]))):
            for part in slices(len(row)):
                piece = floats(row[part])
                state["tiny"][band] += buckets.count(piece, state["counts"][band])
                low, high = extremes(piece)
                state["min"][band] = min(state["min"][band], low)
                state["max"][band] = max(state["max"][band], high)

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Add counts, keep the outer extremes."""
        return {
            "counts": left["counts"] + right["counts"],
            "tiny": left["tiny"] + right["tiny"],
            "min": np.minimum(left["min"], right["min"]),
            "max": np.maximum(left["max"], right["max"]),
        }

    def finalize(self, state: StatisticState) -> dict[str, Array]:
        """Read the quantiles off.

        Returns
        -------
        dict
            ``q``: as given. ``value``: float64, shape (bands,) or (bands, len(q)); NaN without
            values. ``n``: valid values. ``min``, ``max``: exact. ``outside``: how many values had
            a magnitude that ``exponents`` does not tell apart. The last four have shape (bands,).
        """
        q = np.asarray(self.q)
        counts = state["counts"]
        n = counts.sum(axis=1)
        value = np.full((len(counts), *q.shape), np.nan)
        low = np.where(counts[:, 0] > 0, -np.inf, state["min"])
        high = np.where(counts[:, -1] > 0, np.inf, state["max"])
        for band in np.flatnonzero(n):
            rank = np.floor(q * (n[band] - 1)).astype(np.int64)
            index = np.searchsorted(np.cumsum(counts[band]), rank, side="right")
            found = self.buckets.value(index, state["min"][band], state["max"][band])
            found = np.where(rank == 0, low[band], found)
            value[band] = np.where(rank == n[band] - 1, high[band], found)
        return {
            "q": q,
            "value": value,
            "n": n,
            "min": np.where(n > 0, low, np.nan),
            "max": np.where(n > 0, high, np.nan),
            "outside": state["tiny"] + counts[:, 1] + counts[:, -2],
        }


def _exponents(given: Any) -> tuple[int, int]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise OptionError(f"exponents must be two integers, low and high, got {given!r}")
    low = whole_number(given[0], "the low exponent", -1074, 1023)
    return low, whole_number(given[1], "the high exponent", low + 1, 1024)
