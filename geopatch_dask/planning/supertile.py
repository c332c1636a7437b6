"""Super-tiles: boxes of output cells, each owned by one task.

Per axis, super-tile k owns ``[kT, (k+1)T)``, cut at the domain.  T is a multiple of the write unit
(the shard, or the chunk where there are no shards), so no storage object has two writers; patch
size and stride owe T nothing::

       |<----------- T ----------->|               S stride, P_w support of the window
     a a a a a a a a a a a a a a a a               e = ceil(P_w / S) - 1 patches reach in
     |==|                                          touch(k): every patch that meets the box
        |==|  touches k, owned by k-1              own(k):   every patch whose anchor is in it

A super-tile is named after the cells it owns (``y2048-4096_x0-2048``), not after a number in some
layout, so that a run can be resumed with super-tiles of another shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from geopatch_dask.errors import AlignmentError
from geopatch_dask.patch.boxes import Box, box_id
from geopatch_dask.planning.identity import digest

__all__ = ["Layout", "SuperTile", "box_id", "write_units"]


@dataclass(frozen=True, slots=True)
class SuperTile:
    """One task: the cells it owns.

    Parameters
    ----------
    ordinal : int
        Row-major position in the layout.
    id : str
        Name made of the cells it owns.
    box : Box over the patch axes
    """

    ordinal: int
    id: str
    box: Box


@dataclass(frozen=True)
class Layout:
    """How the output is cut, over the patch axes.

    Parameters
    ----------
    dims : tuple of str
    shape : tuple of int, cells
        Of the domain.
    tile : tuple of int, cells
        T per axis; at most the domain, rounded up to whole write units.
    chunks : tuple of int, cells
        Zarr's unit of compression.
    shards : tuple of int or None, cells
        Zarr's unit of storage, a multiple of ``chunks``; None stores every chunk by itself.

    Raises
    ------
    AlignmentError
        When the three do not divide one another, naming axis, numbers and remedy.

    Examples
    --------
    >>> layout = Layout(("y", "x"), (100, 70), (64, 64), (32, 32))
    >>> layout.count, layout.supertile(3).id
    (4, 'y64-100_x64-70')
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    tile: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for d, dim in enumerate(self.dims):
            chunk, tile = self.chunks[d], self.tile[d]
            if self.shards is not None and self.shards[d] % chunk:
                raise AlignmentError(
                    f"axis {dim!r}: shards of {self.shards[d]} cells do not hold whole chunks of "
                    f"{chunk}; use shards of {_ceil(self.shards[d], chunk)}"
                )
            unit = self.unit[d]
            if tile % unit and tile < self.shape[d]:
                raise AlignmentError(
                    f"axis {dim!r}: super-tiles of {tile} cells would share "
                    f"{'shards' if self.shards else 'chunks'} of {unit} with their neighbours and "
                    f"two tasks would write one object; use {_ceil(tile, unit)}, or a write unit "
                    f"that divides {tile}"
                )

    @property
    def unit(self) -> tuple[int, ...]:
        """The write unit: the shard, or the chunk where there are none."""
        return self.shards if self.shards is not None else self.chunks

    @property
    def counts(self) -> tuple[int, ...]:
        """Super-tiles along each axis."""
        return tuple(-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))

    @property
    def digest(self) -> str:
        """A short name of this way of cutting: which cells an ordinal stands for."""
        return digest([self.tile, self.chunks, self.shards])[:16]

    @property
    def count(self) -> int:
        """Number of super-tiles."""
        return math.prod(self.counts)

    def supertile(self, ordinal: int) -> SuperTile:
        """The super-tile at a row-major position: a pure function of the number."""
        if not 0 <= ordinal < self.count:
            raise IndexError(f"super-tile {ordinal} of {self.count}")
        index = np.unravel_index(ordinal, self.counts)
        start = tuple(int(k) * t for k, t in zip(index, self.tile, strict=True))
        stop = tuple(min(a + t, n) for a, t, n in zip(start, self.tile, self.shape, strict=True))
        return SuperTile(ordinal, box_id(self.dims, Box(start, stop)), Box(start, stop))

    def __iter__(self) -> Iterator[SuperTile]:
        return (self.supertile(i) for i in range(self.count))

    def objects(self) -> int:
        """Storage objects of one array over the patch axes."""
        return math.prod(-(-n // u) for n, u in zip(self.shape, self.unit, strict=True))

    def unfinished(self, done: Sequence[Box]) -> list[int]:
        """Ordinals of super-tiles not wholly covered by finished boxes, of this layout or another.

        Works on write units, of which every finished box holds whole ones.
        """
        grid = tuple(-(-n // u) for n, u in zip(self.shape, self.unit, strict=True))
        covered = np.zeros(grid, bool)
        for box in done:
            covered[self._units(box, inner=True)] = True
        # A super-tile holds whole write units, or is all there is along an axis.
        open_units = np.argwhere(~covered) * self.unit // self.tile
        tiles = np.ravel_multi_index(tuple(open_units.T), self.counts)
        return [int(ordinal) for ordinal in np.unique(tiles)]

    def overlapping(self, ordinals: Sequence[int], boxes: Sequence[Box]) -> list[int]:
        """Positions of the boxes that share cells with some of these super-tiles."""
        if not ordinals:
            return []
        taken = np.zeros([-(-n // u) for n, u in zip(self.shape, self.unit, strict=True)], bool)
        for ordinal in ordinals:
            taken[self._units(self.supertile(ordinal).box, inner=False)] = True
        return [i for i, box in enumerate(boxes) if taken[self._units(box, inner=False)].any()]

    def _units(self, box: Box, inner: bool) -> tuple[slice, ...]:
        found = []
        for a, b, u, n in zip(box.start, box.stop, self.unit, self.shape, strict=True):
            if inner:
                found.append(slice(-(-a // u), -(-n // u) if b == n else b // u))
            else:
                found.append(slice(a // u, -(-b // u)))
        return tuple(found)


def write_units(
    shape: Sequence[int], chunks: Sequence[int] | None, shards: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunks and shards over the patch axes, defaults filled in and cut down to small domains.

    The default chunk is 512 cells on the last two axes (1 MiB of float32: within the 0.5 to 4 MiB
    that cloud readers like) and 1 on others.  A chunk or shard larger than the domain shrinks to
    it, so that small fields do not carry large buffers.
    """
    n = len(shape)
    if chunks is None:
        chunks = tuple(shards) if shards is not None else (1,) * max(n - 2, 0) + (512,) * min(n, 2)
        if shards is not None:
            chunks = tuple(_divisor(s, 512) for s in shards)
    kept = tuple(min(int(c), int(size)) for c, size in zip(chunks, shape, strict=True))
    if shards is None:
        return kept, None
    limits = (_ceil(int(size), c) for size, c in zip(shape, kept, strict=True))
    return kept, tuple(min(int(s), limit) for s, limit in zip(shards, limits, strict=True))


def _divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` that is at most ``most``."""
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def _ceil(n: int, unit: int) -> int:
    return -(-n // unit) * unit
