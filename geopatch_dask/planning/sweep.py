"""How a super-tile is swept: which rows are held, read and written at a time.

Patches of a lattice arrive row of anchors by row of anchors, so cells behind the front are final.
A ring of accumulators slides down the super-tile; whenever a whole row of write units lies behind
the front it is divided, rounded and written, once::

        base -> +-------------------------+  <- final below the front: flushed q rows at a time
                |  q   (write unit)       |
       front -> |- - - - - - - - - - - - -|  next anchor row, or the oldest patch still in a batch
                |  lag + P_w              |  cells that patches may still change
                +-------------------------+

Irregular anchors are in no such order: the ring is as tall as the super-tile, and so is the read.
The numbers here are used twice, by the memory model and by the kernel, and are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geopatch_dask.patch.anchors import LatticeAnchors
from geopatch_dask.patch.grid import PatchGrid

__all__ = ["Sweep", "sweep_of"]

#: Reads are at least this many rows: a band per anchor row would decode strips too often.
LEAST_BAND = 128


@dataclass(frozen=True)
class Sweep:
    """Rows along the first patch axis.

    Parameters
    ----------
    swept : bool
        Whether the ring slides.
    rows_state : int
        Height of the accumulators.
    rows_in : int
        Height of the input buffer.
    band : int
        Rows read at once, a multiple of the field's blocks where that is sensible.
    flush : int
        Rows written at once: the write unit.
    """

    swept: bool
    rows_state: int
    rows_in: int
    band: int
    flush: int


def sweep_of(
    grid: PatchGrid,
    height: int,
    rows_read: int,
    per_row: int,
    unit: int,
    block: int,
    batch: int,
) -> Sweep:
    """The sweep of a super-tile.

    Parameters
    ----------
    grid : PatchGrid
    height : int, cells
        Of the super-tile along the first patch axis.
    rows_read : int, cells
        It reads along that axis.
    per_row : int
        Anchors it touches per row of anchors.
    unit : int, cells
        Write unit along that axis.
    block : int, cells
        Storage block of the field along that axis.
    batch : int
        Patches per operator call.
    """
    size, num, den = grid.size[0], *grid.scale.as_integer_ratio()
    flush = min(unit, height)
    if not isinstance(grid.anchors, LatticeAnchors):
        return Sweep(False, height, rows_read, rows_read, flush)
    steps = np.diff(grid.anchors.axes[0])
    step = int(steps.max(initial=0))
    lo, hi = grid.support[0]
    lag = math.ceil((batch - 1) / max(per_row, 1)) * step * num // den
    band = _band(block, size)
    mirrored = step if grid.geometry.boundary == "reflect" else 0
    return Sweep(
        swept=True,
        rows_state=min(height, flush + (hi - lo) + lag),
        rows_in=min(rows_read, size + band + mirrored),
        band=min(band, rows_read),
        flush=flush,
    )


def _band(block: int, size: int) -> int:
    if block > 4 * size + 1024:  # one huge block: no height of band avoids decoding it again
        return max(size, LEAST_BAND)
    return block * -(-LEAST_BAND // block)


def product(values: Sequence[int]) -> int:
    """Product as a Python int."""
    return math.prod(int(v) for v in values)
