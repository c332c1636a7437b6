"""The input of a super-tile, a band of rows at a time.

Each band is read once and starts at a multiple of the field's blocks, so no block is decoded twice
within a super-tile.  Rows that no later patch needs are dropped::

    source rows   |----- kept -----|----- band just read -----|  not read yet
                  ^ keep           ^ front
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.fields.base import Field
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patcher import read_cells

__all__ = ["Bands"]


class Bands:
    """Rows of a field in RAM, sliding down.

    Parameters
    ----------
    field : Field
    grid : PatchGrid
    source : Box over the patch axes
        Everything the super-tile reads.
    band : int
        Rows per read.
    capacity : int
        Rows to make room for; more are allocated if that was too few.
    """

    def __init__(
        self, field: Field, grid: PatchGrid, source: Box, band: int, capacity: int
    ) -> None:
        self.field, self.grid, self.source, self.band = field, grid, source, band
        self.capacity = capacity
        self.keep = self.front = source.start[0]
        self.buffer: npt.NDArray[Any] | None = None
        self.bytes_read = 0

    @property
    def origin(self) -> tuple[int, ...]:
        """First cell of :meth:`rows`."""
        return (self.keep, *self.source.start[1:])

    def need(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Make rows ``start .. stop-1`` available; earlier ones will not be asked for again.

        Returns
        -------
        ndarray, shape (*riding, rows, *other patch axes)
            The first row is ``self.origin[0]``.
        """
        start = max(start, self.source.start[0])
        stop = min(stop, self.source.stop[0])
        while self.front < stop:
            self._drop(start)
            end = min((self.front // self.band + 1) * self.band, self.source.stop[0])
            self._append(read_cells(self.field, self.grid, self._rows(self.front, end)))
            self.front = end
        buffer = self.buffer
        if buffer is None:
            return read_cells(self.field, self.grid, self._rows(start, start))
        axis = buffer.ndim - self.source.ndim
        return buffer[(slice(None),) * axis + (slice(0, self.front - self.keep),)]

    def _rows(self, start: int, stop: int) -> Box:
        return self.source.replace(0, start, stop)

    def _drop(self, start: int) -> None:
        """Forget rows before ``start``."""
        gone = min(start, self.front) - self.keep
        if gone <= 0:
            return
        if self.buffer is not None:
            axis = self.buffer.ndim - self.source.ndim
            lead = (slice(None),) * axis
            left = self.front - self.keep - gone
            self.buffer[(*lead, slice(0, left))] = self.buffer[(*lead, slice(gone, gone + left))]
        self.keep += gone

    def _append(self, rows: npt.NDArray[Any]) -> None:
        axis = rows.ndim - self.source.ndim
        held, new = self.front - self.keep, rows.shape[axis]
        self.bytes_read += rows.nbytes
        if held == 0 and new >= self.capacity:
            self.buffer = rows  # one read for everything: no copy
            return
        height = max(self.capacity, held + new)
        if self.buffer is None or self.buffer.shape[axis] < held + new:
            bigger = np.empty((*rows.shape[:axis], height, *rows.shape[axis + 1 :]), rows.dtype)
            if self.buffer is not None:
                lead = (slice(None),) * axis
                bigger[(*lead, slice(0, held))] = self.buffer[(*lead, slice(0, held))]
            self.buffer = bigger
        self.buffer[(*(slice(None),) * axis, slice(held, held + new))] = rows
