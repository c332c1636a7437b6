"""What a layout costs: patches computed twice, cells read twice, objects written.

Along one axis of a lattice, super-tiles touch ``sum_k |touch(k)|`` anchors where one tile would
touch ``n``; the product of these ratios is R, the number of patches run per patch needed::

    R = prod_d (1 + e S / T)        for long axes, e = ceil(P_w / S) - 1

The same sum over the cells that touched patches need, divided by the length of the axis, is the
read amplification.  Both are counted exactly, per axis, from the anchors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from geopatch_dask.patch.anchors import LatticeAnchors
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.planning.supertile import Layout

__all__ = ["AxisCost", "Cost", "cost_of", "spans"]

#: Super-tiles looked at, spread evenly, where anchors are irregular and exact counts would be slow.
SAMPLED_TILES = 32


@dataclass(frozen=True)
class AxisCost:
    """One axis of a lattice under one tile size; anchors and cells summed over tiles."""

    tiles: int
    anchors: int
    touched: int
    read: int
    widest_read: int
    most_touched: int


@dataclass(frozen=True)
class Cost:
    """What a layout costs.

    Parameters
    ----------
    supertiles, patches : int
        Tasks, and patches of the field.
    patches_run : int
        Patches computed in all, repeats included.
    cells_read : int
        Cells of the patch axes read in all.
    widest_read, most_touched : tuple of int
        Per axis, the most cells one super-tile reads, and the most anchors it touches.
    """

    supertiles: int
    patches: int
    patches_run: int
    cells_read: int
    widest_read: tuple[int, ...]
    most_touched: tuple[int, ...]

    @cached_property
    def amplification(self) -> float:
        """R: patches run per patch needed."""
        return self.patches_run / self.patches if self.patches else 1.0


IntArray = npt.NDArray[np.int64]


def spans(grid: PatchGrid, axis: int, tile: int) -> tuple[IntArray, IntArray, IntArray]:
    """What super-tiles touch and read along one axis of a lattice.

    Returns
    -------
    touched : ndarray of int, one per super-tile
        Anchors.
    begin, end : ndarray of int, one per super-tile that touches any
        First cell of the field that is read, and the one after the last.

    Raises
    ------
    TypeError
        When the anchors are no lattice.
    """
    if not isinstance(grid.anchors, LatticeAnchors):
        raise TypeError("exact costs per axis exist only for a lattice of anchors")
    anchors, positions = grid.anchors.axes[axis], grid.positions(axis)
    n, p = grid.field_shape[axis], grid.size[axis]
    lo, hi = grid.reach[axis]
    starts = np.arange(0, grid.shape[axis], tile)
    stops = np.minimum(starts + tile, grid.shape[axis])
    first = np.searchsorted(positions, starts - hi + 1)
    last = np.searchsorted(positions, stops - lo)
    touched = np.maximum(last - first, 0)
    some = touched > 0
    begin = anchors[np.minimum(first[some], len(anchors) - 1)] if some.any() else np.zeros(0, int)
    end = anchors[last[some] - 1] + p if some.any() else np.zeros(0, int)
    if grid.geometry.boundary == "reflect":
        # A mirrored patch reads back into the domain: at most its own overhang further.
        begin = np.where(end > n, np.maximum(np.minimum(begin, 2 * (n - 1) - end + 1), 0), begin)
    return touched, np.maximum(begin, 0), np.minimum(end, n)


def axis_cost(grid: PatchGrid, axis: int, tile: int) -> AxisCost:
    """Count one axis of a lattice exactly.

    Raises
    ------
    TypeError
        When the anchors are no lattice.
    """
    touched, begin, end = spans(grid, axis, tile)
    read = end - begin
    return AxisCost(
        tiles=len(touched),
        anchors=len(grid.positions(axis)),
        touched=int(touched.sum()),
        read=int(read.sum()),
        widest_read=int(read.max(initial=0)),
        most_touched=int(touched.max(initial=0)),
    )


def cost_of(grid: PatchGrid, layout: Layout) -> Cost:
    """Count a layout: exactly on a lattice, by a sample of super-tiles elsewhere."""
    if isinstance(grid.anchors, LatticeAnchors):
        axes = [axis_cost(grid, d, t) for d, t in enumerate(layout.tile)]
        return Cost(
            supertiles=math.prod(a.tiles for a in axes),
            patches=math.prod(a.anchors for a in axes),
            patches_run=math.prod(a.touched for a in axes),
            cells_read=math.prod(a.read for a in axes),
            widest_read=tuple(a.widest_read for a in axes),
            most_touched=tuple(a.most_touched for a in axes),
        )
    return _sampled(grid, layout)


def _sampled(grid: PatchGrid, layout: Layout) -> Cost:
    picked = np.unique(np.linspace(0, layout.count - 1, SAMPLED_TILES).astype(int))
    touched, cells = 0, 0
    widest = [0] * len(grid.shape)
    most = 0
    for ordinal in picked.tolist():
        ordinals = grid.touching(layout.supertile(ordinal).box)
        touched += len(ordinals)
        most = max(most, len(ordinals))
        if not len(ordinals):
            continue
        corners = grid.anchors.at(ordinals)
        begin = np.maximum(corners.min(axis=0), 0)
        end = np.minimum(corners.max(axis=0) + grid.size, grid.field_shape)
        read = _lengths(end - begin)
        cells += math.prod(read)
        widest = [max(a, b) for a, b in zip(widest, read, strict=True)]
    scale = layout.count / len(picked)
    return Cost(
        supertiles=layout.count,
        patches=len(grid.anchors),
        patches_run=max(round(touched * scale), len(grid.anchors)),
        cells_read=round(cells * scale),
        widest_read=tuple(widest),
        most_touched=(most,) + (1,) * (len(grid.shape) - 1),
    )


def _lengths(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Sequence[int]:
    return [max(int(v), 0) for v in values]
