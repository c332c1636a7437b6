"""Cells that no patch reaches, counted before anything runs.

::

    step 12, patch 8          |########....########....########..|   a gap after every patch, and
    boundary drop, step 6     |######################..........  |   the rest of the axis

A cell of a lattice is reached when each of its coordinates is: along one axis, the cells that some
patch reaches are a union of intervals, and over several axes the reached cells are their product.
So the count is exact and costs one pass over the anchors of each axis, however large the field is::

    uncovered = prod_d n_d  -  prod_d reached_d

Irregular anchors, and windows that have holes of their own, are marked cell by cell where that is a
matter of a moment.  Where it is not, nothing is said: a guess would be no promise.

Cells are counted as the records of a run count them, once for every entry of every array, and the
number that is told here is the one that the report of the run tells as ``uncovered``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from geopatch_dask.patch.anchors import IntArray, LatticeAnchors
from geopatch_dask.patch.geometry import per_axis
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.sampler import RegularStride
from geopatch_dask.planning.core import PlanBase

__all__ = ["Holes", "holes_of", "uncovered_cells"]

#: Patches, cells of the output, and cells of all patches up to which irregular patches are marked
#: one by one: 32 MiB, and some tenths of a second.
MOST_PATCHES, MOST_CELLS, MOST_MARKED = 20_000, 1 << 25, 1 << 27


@dataclass(frozen=True)
class Holes:
    """Cells of the arrays of a plan that no patch reaches.

    Parameters
    ----------
    cells, total : int
        Uncovered, and all; of every entry of every array.
    why : tuple of str
        Causes, each with its remedy.
    """

    cells: int
    total: int
    why: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the cells, those that no patch reaches."""
        return self.cells / self.total if self.total else 0.0

    def __str__(self) -> str:
        percent = f"{100 * self.share:.1f}" if self.share >= 0.001 else "less than 0.1"
        them = "cell is" if self.cells == 1 else "cells are"
        told = f"{self.cells:,} {them} in no patch ({percent} %) and will hold the fill value"
        return "; ".join([told, *self.why])


def holes_of(plan: PlanBase) -> Holes | None:
    """What a run of a plan will report as uncovered; None where counting it would take long.

    Parameters
    ----------
    plan : PlanBase

    Returns
    -------
    Holes or None
    """
    cells, total = 0, 0
    why: dict[str, None] = {}  # a set that keeps its order
    for product in plan.products:
        grid = plan.grid.variant(product.aggregation.weighted, plan.grid.scale)
        entries = sum(math.prod(array.leading) for array in product.arrays)
        found = uncovered_cells(grid)
        if found is None:
            return None
        cells += found * entries
        total += grid.box.cells * entries
        if found:
            why |= dict.fromkeys(_causes(grid))
    return Holes(cells, total, tuple(why))


def uncovered_cells(grid: PatchGrid) -> int | None:
    """Output cells, over the patch axes, that no patch of a grid reaches.

    Parameters
    ----------
    grid : PatchGrid

    Returns
    -------
    int or None
        Exact; None where the patches are irregular and too many to be marked one by one.

    Examples
    --------
    >>> from geopatch_dask.patch.domain import GridDomain
    >>> from geopatch_dask.patch.geometry import Rectangular
    >>> line = GridDomain(("x",), (28,))
    >>> uncovered_cells(PatchGrid(line, Rectangular((8,)), RegularStride((12,))))
    4
    >>> uncovered_cells(PatchGrid(line, Rectangular((8,), "drop"), RegularStride((6,))))
    2
    """
    if grid.analytic:
        axes = range(len(grid.shape))
        return grid.box.cells - math.prod(_reached(grid, axis) for axis in axes)
    return _marked(grid)


def _reached(grid: PatchGrid, axis: int) -> int:
    """Cells along one axis of a lattice that some patch reaches."""
    starts, stops = _intervals(grid, axis)
    before = np.concatenate([[0], stops[:-1]])  # all are as long, so stops ascend as starts do
    return int(np.maximum(stops - np.maximum(starts, before), 0).sum())


def _intervals(grid: PatchGrid, axis: int) -> tuple[IntArray, IntArray]:
    """First cell that each patch of a lattice reaches along an axis, and the one after the last."""
    positions = grid.positions(axis)
    lo, hi = grid.support[axis]
    n = grid.shape[axis]
    return np.clip(positions + lo, 0, n), np.clip(positions + hi, 0, n)


def _marked(grid: PatchGrid) -> int | None:
    """As :func:`uncovered_cells`, cell by cell; None where that is too much work."""
    patches = len(grid.anchors)
    if (
        patches > MOST_PATCHES
        or grid.box.cells > MOST_CELLS
        or patches * math.prod(grid.out_size) > MOST_MARKED
    ):
        return None
    reached = np.zeros(grid.shape, bool)
    for anchor in grid.anchors:
        cells = grid.footprint(anchor)
        # A window of the user's own may be zero inside its support.
        there = True if grid.window.separable else grid.weights(anchor, cells) > 0
        reached[cells.slices()] |= there
    return int(reached.size - np.count_nonzero(reached))


# ---- why ---------------------------------------------------------------------------------------


def _causes(grid: PatchGrid) -> Iterator[str]:
    """Why a grid has uncovered cells, and what would change it."""
    if not isinstance(grid.anchors, LatticeAnchors):
        name = type(grid.sampler).__name__
        yield f"{name} puts no patch there: more patches, or larger ones, would reach them"
        return
    dims: dict[tuple[str, str], list[str]] = {}
    for axis, dim in enumerate(grid.dims):
        for cause in _along(grid, axis):
            dims.setdefault(cause, []).append(dim)
    for (what, remedy), some in dims.items():
        yield f"{what} along {', '.join(some)}: {remedy}"
    if not dims:
        yield "the window is zero where no other patch reaches: take another one, or a smaller step"


def _along(grid: PatchGrid, axis: int) -> Iterator[tuple[str, str]]:
    """Causes along one axis of a lattice, and their remedies."""
    n, p, (lo, hi) = grid.shape[axis], grid.size[axis], grid.support[axis]
    starts, stops = _intervals(grid, axis)
    if not len(starts):
        what = f"no patch of {p} fits the {grid.field_shape[axis]} cells"
        yield what, "take a smaller patch, or boundary 'pad'"
        return
    num, den = grid.scale.as_integer_ratio()
    widest = (hi - lo) * den // num
    step = _step(grid, axis)
    inside, beyond = bool((starts[1:] > stops[:-1]).any()), bool(stops[-1] < n)
    dropped = beyond and grid.geometry.boundary == "drop"
    if inside or (beyond and not dropped and step > widest):
        what = f"step {step} is longer than the patch of {p}"
        if widest < p:
            what = f"step {step} is longer than what the window leaves of the patch, {widest},"
        yield what, f"take a step of at most {widest}"
    if dropped:
        yield f"boundary 'drop' leaves out the last {n - stops[-1]:,} cells", "'shift' reaches them"
    elif starts[0] > 0 or (beyond and step <= widest):
        yield (
            "the window is zero at the edge of the field",
            "take one that is not, such as Hann(), or an aggregation without a window",
        )


def _step(grid: PatchGrid, axis: int) -> int:
    """The step along one axis of a lattice, cells of the field."""
    if isinstance(grid.sampler, RegularStride):
        return per_axis(grid.sampler.step, grid.domain, "step")[grid.dims[axis]]
    num, den = grid.scale.as_integer_ratio()
    return int(np.diff(grid.positions(axis)).max(initial=0)) * den // num
