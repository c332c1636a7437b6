"""Does a statistic merge?  The same values, cut in many ways, must say the same.

A first pass sees a field in blocks and merges their states over a tree.  That tree is fixed, so a
statistic that does not merge correctly gives the same wrong numbers everywhere: no comparison of
two runs can find it.  What finds it is the definition::

    finalize(update(all values))  =  finalize(merge(update(some), update(the others)))

for any split, in any order, with empty states in between.  Sums of floats may differ by their
rounding, so equality is up to a tolerance; what must hold exactly is that a state consists of
arrays of numbers, and that merging changes nothing but its left side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.statistic import Statistic, StatisticState, joined, merge_tree
from geopatch_dask.errors import VerificationError

__all__ = ["Seen", "assert_merges"]

Array = npt.NDArray[Any]


class Seen(Statistic):
    """Keeps all it sees, as a list of ``(values, keys)``; for small fields."""

    def __init__(self) -> None:
        self.pieces: list[tuple[Array, npt.NDArray[np.uint64]]] = []

    def init(self, bands: int) -> StatisticState:
        """Nothing: what is seen stays in this object."""
        return {}

    def update(self, state: StatisticState, values: Array, keys: npt.NDArray[np.uint64]) -> None:
        """Keep a copy."""
        self.pieces.append((values.copy(), keys.copy()))

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Nothing to do."""
        return left

    def finalize(self, state: StatisticState) -> dict[str, Any]:
        """All values in order, (bands, n), and their keys, (n,)."""
        if not self.pieces:  # a field without patches
            return {"values": np.zeros((1, 0)), "keys": np.zeros(0, np.uint64)}
        values, keys = zip(*self.pieces, strict=True)
        return {"values": np.concatenate(values, axis=1), "keys": np.concatenate(keys)}


def assert_merges(
    statistic: Statistic, values: Array, keys: npt.NDArray[np.uint64], rtol: float
) -> dict[str, Any]:
    """Raise unless a statistic says the same of values that are cut and merged in any way.

    Parameters
    ----------
    statistic : Statistic
    values : ndarray, shape (bands, n)
    keys : ndarray of uint64, shape (n,)
    rtol : float
        Largest difference, as a share of the largest magnitude in the array.

    Returns
    -------
    dict of str to number or ndarray
        What one state that saw all values says.

    Raises
    ------
    VerificationError
        Naming the split, the number and the first entry that differs.
    OptionError
        When it does not merge at all.
    """
    n = values.shape[1]

    def state(first: int, last: int) -> StatisticState:
        made = statistic.init(len(values))
        statistic.update(made, np.ascontiguousarray(values[:, first:last]), keys[first:last])
        for name, array in made.items():
            if array.dtype.hasobject:
                raise VerificationError(
                    f"{type(statistic).__name__}: {name!r} of its state holds Python objects, "
                    "which no record can hold; make it an array of numbers"
                )
        return made

    def said(merged: StatisticState) -> dict[str, Any]:
        return dict(statistic.finalize(merged))

    whole = said(state(0, n))
    for what, ends in _splits(n):
        spans = list(zip([0, *ends], [*ends, n], strict=True))
        trees = {
            "over a tree": merge_tree(statistic, [state(a, b) for a, b in spans]),
            "from the left": reduce(_checked(statistic), [state(a, b) for a, b in spans]),
            "in reverse": reduce(_checked(statistic), [state(a, b) for a, b in spans[::-1]]),
        }
        for how, merged in trees.items():
            _assert_close(said(merged), whole, rtol, f"{statistic!r} of {what}, merged {how},")
    return whole


def _splits(n: int) -> Iterator[tuple[str, Sequence[int]]]:
    """Where to cut ``n`` values, and what to call it."""
    rng = np.random.default_rng(7)
    yield "two halves", [n // 2]
    yield "one value and the others", [min(1, n)]
    yield "an empty piece and all values", [0]
    yield "seven uneven pieces", sorted(rng.integers(0, n + 1, 6).tolist())


def _checked(statistic: Statistic) -> Any:
    """Merge, and see that the right side stays what it was: another task may still need it."""

    def merge(left: StatisticState, right: StatisticState) -> StatisticState:
        before = {name: array.copy() for name, array in right.items()}
        found = joined(statistic, left, right)
        for name, array in before.items():
            if array.tobytes() != right[name].tobytes():
                raise VerificationError(
                    f"{type(statistic).__name__}.merge changes {name!r} of its right side, which "
                    "another task may still need; copy it first"
                )
        return found

    return merge


def _assert_close(
    found: Mapping[str, Any], expected: Mapping[str, Any], rtol: float, what: str
) -> None:
    if set(found) != set(expected):
        raise VerificationError(f"{what} gives {sorted(found)}, in one piece {sorted(expected)}")
    for name in expected:
        left, right = np.asarray(found[name]), np.asarray(expected[name])
        if left.shape != right.shape:
            raise VerificationError(
                f"{what} gives {name!r} of shape {left.shape}, in one piece {right.shape}"
            )
        differs = _differs(left, right, rtol)
        if differs.any():
            first = tuple(int(i) for i in np.argwhere(np.atleast_1d(differs))[0])
            raise VerificationError(
                f"{what} gives {np.atleast_1d(left)[first]!r} for {name!r} at {first}, in one "
                f"piece {np.atleast_1d(right)[first]!r}; merge must not depend on how values were "
                "split"
            )


def _differs(left: Array, right: Array, rtol: float) -> npt.NDArray[np.bool_]:
    """Where two arrays differ by more than rounding; NaN equals NaN."""
    if "O" in (left.dtype.kind, right.dtype.kind) or left.dtype.kind not in "fiub":
        return np.asarray(left != right)
    a, b = left.astype(np.float64), right.astype(np.float64)
    size = np.abs(b[np.isfinite(b)]).max(initial=0.0)
    return ~np.isclose(a, b, rtol=rtol, atol=rtol * size, equal_nan=True)
