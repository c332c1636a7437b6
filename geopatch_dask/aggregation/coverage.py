"""How many valid contributions a cell has received, and of what total weight.

Where every patch of a lattice arrives whole, both are outer products of 1-D sums over the axes
(:meth:`~geopatch_dask.patch.grid.PatchGrid.axis_sums`) and no array is kept at all.  The first
patch with missing cells makes the arrays appear: the patches before it are replayed from a short
log, in their order, so the sums are those that counting from the start would have given.

Which of the two a cell uses is decided per cell, by whether all the contributions it could have
got were valid::

    weight(cell) = analytic sum          if valid contributions == lattice anchors that reach it
                   accumulated sum       otherwise

so the choice, and the bits, depend neither on the layout nor on what happened elsewhere.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.window import FloatArray

__all__ = ["BoolArray", "Coverage", "count_dtype"]

BoolArray = npt.NDArray[np.bool_]
CountArray = npt.NDArray[Any]


class Coverage:
    """Valid contributions and weight sums over a box of cells.

    Parameters
    ----------
    grid : PatchGrid
    box : Box over the patch axes
        The cells this state is about.
    leading : tuple of int
        Shape of the axes before the patch axes.
    complete : bool
        Whether every patch of the grid that touches ``box`` is going to be added exactly once (a
        super-tile promises that; a caller of ``merge`` does not).
    """

    def __init__(
        self, grid: PatchGrid, box: Box, leading: tuple[int, ...], complete: bool = True
    ) -> None:
        self.grid, self.box, self.leading = grid, box, leading
        self.analytic = grid.analytic
        self._count_dtype = count_dtype(grid) if complete else np.dtype(np.int32)
        self.n: CountArray | None = None
        self.weight: FloatArray | None = None
        self.touched: BoolArray | None = None
        self._log: list[tuple[Box, FloatArray | None]] = []
        if not (complete and self.analytic):
            self._begin()
            self.touched = np.zeros(box.shape, bool)

    def add(self, cells: Box, weights: FloatArray | None, valid: BoolArray | None) -> None:
        """Count one contribution.

        Parameters
        ----------
        cells : Box inside :attr:`box`
        weights : ndarray of float64, shape ``cells.shape``, or None
        valid : ndarray of bool, shape (*leading, *cells.shape), or None
            None when no cell is missing.
        """
        if self.n is None:
            if valid is None:
                self._log.append((cells, weights))
                return
            self._begin()
        self._count(cells, weights, valid)

    def _begin(self) -> None:
        self.n = np.zeros(self.leading + self.box.shape, self._count_dtype)
        if self.grid.weighted:
            self.weight = np.zeros(self.leading + self.box.shape)
        for cells, weights in self._log:
            self._count(cells, weights, None)
        self._log.clear()

    def _count(self, cells: Box, weights: FloatArray | None, valid: BoolArray | None) -> None:
        n = self.n
        if n is None:
            raise RuntimeError("counting has not begun")
        at = cells.index(self.box.start)
        reached: BoolArray | bool = True
        if weights is not None and not self.grid.window.separable:
            reached = weights > 0  # a custom window may have holes inside its support
            valid = reached if valid is None else valid & reached
        n[at] += 1 if valid is None else valid
        if self.touched is not None:
            self.touched[at] |= reached
        if self.weight is not None and weights is not None:
            self.weight[at] += weights if valid is None else np.where(valid, weights, 0.0)

    # ---- what the cells have got -----------------------------------------------------------

    def _sums(self) -> list[tuple[npt.NDArray[np.int64], FloatArray]]:
        limits = zip(self.box.start, self.box.stop, strict=True)
        return [self.grid.axis_sums(d, a, b) for d, (a, b) in enumerate(limits)]

    def reachable(self) -> CountArray | None:
        """Anchors that reach each cell, shape ``box.shape``; None off lattices."""
        if not self.analytic:
            return None
        return np.asarray(reduce(np.multiply.outer, (counts for counts, _ in self._sums())))

    def reached(self) -> BoolArray | None:
        """Cells that some patch reaches, shape ``box.shape``; None when all are."""
        if self.touched is not None:
            return None if self.touched.all() else self.touched
        flags = [counts > 0 for counts, _ in self._sums()]
        if all(flag.all() for flag in flags):
            return None
        return np.asarray(reduce(np.multiply.outer, flags))

    def counts(self) -> CountArray:
        """Valid contributions per cell, broadcastable to (*leading, *box.shape)."""
        if self.n is not None:
            return self.n
        counts = self.reachable()
        return counts if counts is not None else np.zeros(self.box.shape, np.int64)

    def answered(self, least: int = 1) -> BoolArray | None:
        """Cells with at least ``least`` valid contributions; None when all have.

        Broadcastable to (*leading, *box.shape).
        """
        if self.n is None and least == 1:
            return self.reached()
        enough = self.counts() >= least
        return None if enough.all() else enough

    def weights(self) -> FloatArray:
        """Sum of the weights of valid contributions, broadcastable to (*leading, *box.shape)."""
        exact: FloatArray | None = None
        if self.analytic:
            exact = np.asarray(reduce(np.multiply.outer, (sums for _, sums in self._sums())))
        if self.n is None or self.weight is None:
            return exact if exact is not None else np.zeros(self.box.shape)
        if exact is None:
            return self.weight
        return np.where(self.n == self.reachable(), exact, self.weight)

    # ---- moving ----------------------------------------------------------------------------

    def head(self, rows: int) -> Coverage:
        """The first rows of the first patch axis, as a view."""
        view = object.__new__(Coverage)
        view.grid, view.leading, view.analytic = self.grid, self.leading, self.analytic
        view.box = self.box.replace(0, self.box.start[0], self.box.start[0] + rows)
        view._log = []
        at = row_index(self.box.ndim, slice(0, rows))
        view.n = None if self.n is None else self.n[at]
        view.weight = None if self.weight is None else self.weight[at]
        view.touched = None if self.touched is None else self.touched[:rows]
        return view

    def advance(self, rows: int) -> None:
        """Forget the first rows; as many new, empty ones appear at the end."""
        self.box = self.box.replace(0, self.box.start[0] + rows, self.box.stop[0] + rows)
        for array in (self.n, self.weight):
            if array is not None:
                move_up(array, rows, self.box.ndim, 0)
        if self.touched is not None:
            move_up(self.touched, rows, self.box.ndim, False)
        kept = [(cells.intersect(self.box), cells, weights) for cells, weights in self._log]
        self._log = [
            (cells, None if weights is None else weights[cells.slices(whole.start)])
            for cells, whole, weights in kept
            if cells
        ]

    def absorb(self, other: Coverage) -> None:
        """Add the counts of a state over the same box (other patches, added elsewhere)."""
        for coverage in (self, other):
            if coverage.n is None:
                coverage._begin()
        if self.n is not None and other.n is not None:
            self.n = self.n.astype(np.int32) + other.n
        if self.weight is not None and other.weight is not None:
            self.weight += other.weight
        if self.touched is not None and other.touched is not None:
            self.touched |= other.touched


def count_dtype(grid: PatchGrid) -> np.dtype[Any]:
    """The smallest type that counts as many contributions as one cell can get."""
    return np.min_scalar_type(grid.most_layers)


def row_index(ndim: int, rows: slice) -> tuple[Any, ...]:
    """Index the first of the last ``ndim`` axes."""
    return (..., rows, *(slice(None),) * (ndim - 1))


def move_up(array: npt.NDArray[Any], rows: int, ndim: int, empty: Any) -> None:
    """Shift an array up along the first of its last ``ndim`` axes and clear what comes free."""
    height = array.shape[array.ndim - ndim]
    keep = height - rows
    if keep > 0:
        # Numpy copies through a buffer where source and destination overlap: one plane at a time,
        # or moving 200 classes would take half as much memory again as holding them.
        for plane in np.ndindex(array.shape[: array.ndim - ndim]):
            array[plane][:keep] = array[plane][rows:]
    array[row_index(ndim, slice(max(keep, 0), height))] = empty
