"""Poisson-disk positions by rounds of hashed darts.

Bridson's algorithm is sequential: whether a point is accepted depends on the whole history.  Here
the domain is cut into cells so small that each holds at most one point; in every round each empty
cell throws one dart (a hash of seed, round and cell), and a dart is kept when no accepted point and
no dart of *higher priority* (a second hash) lies closer than the distance.  A round is a handful of
numpy calls over all cells, and the result depends on nothing but the seed and the domain.

Parallel dart throwing on a background grid follows Wei, "Parallel Poisson disk sampling"
(SIGGRAPH 2008).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from geopatch_dask.patch.anchors import IntArray, random_bits

__all__ = ["poisson_disk"]

BoolArray = npt.NDArray[np.bool_]


def poisson_disk(limits: Sequence[int], distance: float, rounds: int, seed: int) -> IntArray:
    """Integer positions in ``0 .. limits[d]-1``, pairwise at least ``distance`` apart.

    Parameters
    ----------
    limits : sequence of int, positions per axis
    distance : float >= 1, cells
    rounds, seed : int

    Returns
    -------
    ndarray of int64, shape (k, ndim), row-major order
    """
    ndim = len(limits)
    side = max(int(distance / math.sqrt(ndim)), 1)  # one point per cell at most
    grid = tuple(-(-m // side) for m in limits)
    base = np.indices(grid).astype(np.int64) * side
    extent = np.minimum(base + side, np.array(limits).reshape((-1,) + (1,) * ndim)) - base
    cells = np.arange(math.prod(grid), dtype=np.int64).reshape(grid)
    taken = np.zeros(grid, bool)
    points = np.zeros((ndim, *grid), np.int64)
    reach = math.ceil(distance / side)
    offsets = [o for o in itertools.product(range(-reach, reach + 1), repeat=ndim) if any(o)]
    for r in range(rounds):
        streams = [r * (ndim + 1) + d for d in range(ndim + 1)]
        darts = np.stack(
            [
                base[d]
                + (random_bits(seed, cells, streams[d]) % extent[d].astype(np.uint64)).astype(
                    np.int64
                )
                for d in range(ndim)
            ]
        )
        priority = random_bits(seed, cells, streams[ndim])
        good = ~taken
        for here, there in _neighbours(grid, offsets):
            near = _close(darts, points, here, there, distance) & taken[there]
            rival = ~taken[there] & (priority[there] > priority[here])
            good[here] &= ~(near | (_close(darts, darts, here, there, distance) & rival))
        points[:, good] = darts[:, good]
        taken |= good
    found = points[:, taken].T
    return found[np.lexsort(found.T[::-1])]


def _neighbours(
    grid: Sequence[int], offsets: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Pairs of index tuples: all cells with a neighbour at an offset, and those neighbours."""
    for offset in offsets:
        if all(abs(o) < n for o, n in zip(offset, grid, strict=True)):
            here = tuple(
                slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, grid, strict=True)
            )
            there = tuple(
                slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, grid, strict=True)
            )
            yield here, there


def _close(
    a: IntArray, b: IntArray, here: tuple[slice, ...], there: tuple[slice, ...], distance: float
) -> BoolArray:
    gap = a[(slice(None), *here)] - b[(slice(None), *there)]
    return np.asarray((gap * gap).sum(axis=0) < distance * distance)
