"""What happens where patches meet the edge of the domain, one axis at a time.

::

    domain      |0 . . . . . . . . . . . . . . . . 17|        N = 18, P = 8, S = 6
    shift        [------]     [------]     .
                        [------]  [------]   last anchor moved inward to N - P = 10
    pad/reflect  [------]     [------]
                        [------]     (12..20) the last patch overflows; filled or mirrored
    shrink       the same anchors, the last patch is cut at 18
    drop         0, 6 only: cells 14..17 are uncovered, and counted
    raise        an error: the lattice does not end at the edge

``pad``, ``reflect`` and ``shrink`` stop at the first anchor whose patch reaches the edge: further
ones would add work and no cells.  All six can be merged, because what a patch *writes* is always
its footprint cut at the domain.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import BoundaryError, OptionError

__all__ = [
    "Boundary",
    "check_boundary",
    "draw_range",
    "lattice",
    "place",
    "reflected",
]

Boundary = Literal["shift", "reflect", "pad", "shrink", "drop", "raise"]

IntArray = npt.NDArray[np.int64]


def check_boundary(mode: str) -> None:
    """Raise :class:`OptionError` for an unknown mode, naming the known ones."""
    if mode not in get_args(Boundary):
        raise OptionError(f"boundary {mode!r} is none of {', '.join(get_args(Boundary))}")


def lattice(n: int, p: int, s: int, mode: Boundary, dim: str) -> IntArray:
    """Anchors of a regular stride along one axis.

    Parameters
    ----------
    n, p, s : int, cells
        Length of the axis, of a patch, of a step.
    mode : Boundary
    dim : str
        Name of the axis, for messages.

    Returns
    -------
    ndarray of int64, ascending

    Raises
    ------
    BoundaryError
        Under ``shift`` when the axis is shorter than a patch, under ``raise`` when patches do not
        end at the edge.

    Examples
    --------
    >>> [lattice(18, 8, 6, mode, "x").tolist() for mode in ("shift", "pad", "drop")]
    [[0, 6, 10], [0, 6, 12], [0, 6]]
    """
    if mode in ("shift", "drop", "raise"):
        if n < p:
            if mode == "drop":
                return np.empty(0, np.int64)
            raise too_small(n, p, dim, mode)
        anchors = np.arange(0, n - p + 1, s, dtype=np.int64)
        last = int(anchors[-1])
        if last != n - p:
            if mode == "raise":
                raise BoundaryError(
                    f"axis {dim!r}: {n} cells hold patches of {p} every {s} only up to cell "
                    f"{last + p}; choose boundary='shift' (or reflect, pad, shrink, drop)"
                )
            if mode == "shift":
                anchors = np.append(anchors, np.int64(n - p))
        return anchors
    count = max(-(-(n - p) // s), 0) + 1
    anchors = np.arange(count, dtype=np.int64) * s
    return anchors[anchors < n]  # with S > P the reaching anchor may lie beyond the edge


def too_small(n: int, p: int, dim: str, mode: str) -> BoundaryError:
    """The error for an axis shorter than a patch, with the remedies."""
    return BoundaryError(
        f"axis {dim!r} has {n} cells, a patch needs {p} under boundary={mode!r}: use a patch of "
        f"at most {n} cells there, or boundary='reflect', 'pad' or 'shrink'"
    )


def place(anchors: IntArray, n: int, p: int, mode: Boundary, dim: str) -> tuple[IntArray, Any]:
    """Fit free anchors (explicit, jittered) to one axis.

    Returns the anchors, moved inward under ``shift``, and a mask of those to keep: under ``drop``
    the ones whose patch fits.

    Raises
    ------
    BoundaryError
        For an anchor whose patch lies wholly outside, or overflows under ``raise``.
    """
    keep = np.ones(len(anchors), bool)
    if mode == "shift":
        if n < p:
            raise too_small(n, p, dim, mode)
        return np.clip(anchors, 0, n - p), keep
    fits = (anchors >= 0) & (anchors + p <= n)
    if mode == "drop":
        return anchors, fits
    bad = ~fits if mode == "raise" else (anchors + p <= 0) | (anchors >= n)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        what = "overflows" if mode == "raise" else "lies outside"
        raise BoundaryError(
            f"anchor {first} at {int(anchors[first])} on axis {dim!r}: its patch of {p} cells "
            f"{what} the {n} cells of the domain; boundary='shift' moves it in, 'drop' omits it"
        )
    return anchors, keep


def draw_range(n: int, p: int, mode: Boundary, dim: str) -> int:
    """How many positions ``0 .. m-1`` a random anchor may take along one axis.

    Under modes that fill or cut, a patch may start anywhere in the domain; else it must fit.
    """
    if mode in ("pad", "reflect", "shrink"):
        return n
    if n < p:
        raise too_small(n, p, dim, mode)
    return n - p + 1


def reflected(start: int, stop: int, n: int) -> IntArray:
    """Source cell of each index in ``start .. stop-1`` when the axis is mirrored at its ends.

    The edge cell is not repeated (numpy's ``reflect``), and the mirror images repeat for ever, so
    an axis shorter than the overflow works too.

    >>> reflected(-2, 6, 4)
    array([2, 1, 0, 1, 2, 3, 2, 1])
    """
    index = np.arange(start, stop, dtype=np.int64)
    if n == 1:
        return np.zeros_like(index)
    period = 2 * (n - 1)
    index %= period
    return np.minimum(index, period - index)
