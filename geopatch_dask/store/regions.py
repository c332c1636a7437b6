"""Writing whole objects, and nothing else.

Zarr stores an array in objects of one shape, the **write unit**: the shard, or the chunk when
there are no shards.  Two tasks that write cells of the same object overwrite each other, because
an object can only be replaced as a whole.  So a region is written here only if it is made of whole
units (or ends with the array)::

      0        u        2u       3u  n
      |--------|--------|--------|---|       u = write unit, n = cells
      [ task 0 ][  task 1       ][ 2 ]       ok: the last unit is cut by the end of the array
          [ task 3 ]                         AlignmentError: objects 0 and 1 belong to others

Zarr itself would read a shard before it replaces it, even when every cell is new.  That costs a
request, and a damaged object could then never be repaired by writing it again.  The array is
therefore written through a view of the store in which nothing exists yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NoReturn

import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, StorePath, WrapperStore

from geopatch_dask.errors import AlignmentError, OptionError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.store.backends import fsync
from geopatch_dask.store.location import Location, raise_target_error

__all__ = ["sync_region", "write_region", "write_unit"]


def write_unit(chunks: Sequence[int], shards: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one stored object, in cells.

    Raises
    ------
    AlignmentError
        When chunks do not divide shards; names the axis and the numbers.

    Examples
    --------
    >>> write_unit((256, 256), None), write_unit((256, 256), (1024, 512))
    ((256, 256), (1024, 512))
    """
    for axis, chunk in enumerate(chunks):
        if chunk < 1:
            raise AlignmentError(f"chunks {tuple(chunks)}: axis {axis} has {chunk}, at least 1")
    if shards is None:
        return tuple(int(n) for n in chunks)
    if len(shards) != len(chunks):
        raise AlignmentError(f"shards {tuple(shards)} and chunks {tuple(chunks)} differ in axes")
    for axis, (shard, chunk) in enumerate(zip(shards, chunks, strict=True)):
        if shard < 1 or shard % chunk:
            near = max(shard // chunk, 1) * chunk
            raise AlignmentError(
                f"axis {axis}: chunks of {chunk} cells do not divide shards of {shard}; "
                f"use a multiple of {chunk}, for instance {near}"
            )
    return tuple(int(n) for n in shards)


def write_region(
    array: zarr.Array[Any], box: Box, data: npt.NDArray[Any], place: Location | None = None
) -> int:
    """Write whole chunks or shards of an array.

    Parameters
    ----------
    array : zarr.Array
        From :func:`~geopatch_dask.store.target.open_array`.
    box : Box, cells of the array
        Starts at a multiple of the write unit on every axis; ends at one or with the array.
    data : ndarray, shape ``box.shape``, dtype of the array
    place : Location, optional
        Of the target: how messages name it, without its credentials.

    Returns
    -------
    int
        Bytes handed to the store, compressed.  An object that holds only the fill value is not
        stored (it is deleted if it was there) and counts nothing.

    Raises
    ------
    AlignmentError
        When part of an object would be written.
    OptionError
        When shape or dtype of the data differ from those of the box and the array.
    TargetError
        When the store fails.
    """
    where = array.path or "array"
    unit = write_unit(array.chunks, array.shards)
    _check_aligned(where, box, array.shape, unit)
    if data.shape != box.shape or data.dtype != array.dtype:
        raise OptionError(
            f"{where}: data of shape {data.shape} and dtype {data.dtype} do not fit a box of shape "
            f"{box.shape} and dtype {array.dtype}"
        )
    if not box:
        return 0
    blank = _BlankStore(array.store)
    try:
        metadata: Any = array.metadata
        at = StorePath(blank, array.path)
        view = zarr.Array(zarr.AsyncArray(metadata, at, {"write_empty_chunks": False}))
        view[box.slices()] = data
    except Exception as error:
        _raise("write", array, box, error, place)
    return sum(blank.sizes)


def sync_region(array: zarr.Array[Any], box: Box, place: Location | None = None) -> None:
    """Force the objects of a region to the disk, so that they survive a power cut.

    Arguments as for :func:`write_region`.

    Only local files need it, and only against the death of the machine: what another process was
    told is written survives the death of the writer anyway.  Elsewhere this does nothing.

    Raises
    ------
    TargetError
    """
    store = array.store
    if not isinstance(store, LocalStore) or not box:
        return
    paths = [store.root / array.path / key for key in _keys(array, box)]
    try:
        written = [path for path in paths if path.exists()]
        for path in [*written, *sorted({path.parent for path in written})]:
            fsync(path)
    except OSError as error:
        _raise("flush", array, box, error, place)


def _raise(
    action: str, array: zarr.Array[Any], box: Box, error: Exception, place: Location | None
) -> NoReturn:
    if place is None:
        raise_target_error(action, f"{array.store_path} {box}", error)
    where = f"{place.display.rstrip('/')}/{array.path.rpartition('/')[2]}"
    raise_target_error(action, f"{where} {box}", error, place.storage_options)


def _check_aligned(where: str, box: Box, shape: Sequence[int], unit: Sequence[int]) -> None:
    if box.ndim != len(shape):
        raise AlignmentError(f"{where}: a box of {box.ndim} axes in an array of {len(shape)}")
    for axis, (start, stop, n, u) in enumerate(zip(box.start, box.stop, shape, unit, strict=True)):
        if start < 0 or stop > n or start > stop:
            raise AlignmentError(
                f"{where}: axis {axis}: cells {start} to {stop} are not inside the {n} of the array"
            )
        if start % u or (stop % u and stop != n):
            raise AlignmentError(
                f"{where}: axis {axis}: cells {start} to {stop} are not whole write units of {u} "
                f"(array of {n}), so another task would share an object; start at a multiple of "
                f"{u} and stop at one or at {n}"
            )


def _keys(array: zarr.Array[Any], box: Box) -> Iterator[str]:
    """Keys of the objects of a region, relative to the array."""
    unit = write_unit(array.chunks, array.shards)
    metadata: Any = array.metadata
    ranges = [range(a // u, -(-b // u)) for a, b, u in zip(box.start, box.stop, unit, strict=True)]
    for coords in product(*ranges):
        yield metadata.encode_chunk_key(coords)


class _BlankStore(WrapperStore[Store]):
    """A store that can be written, in which nothing exists; counts the bytes it was given."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.sizes: list[int] = []

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return None

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return None

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        return [None for _ in key_ranges]

    async def exists(self, key: str) -> bool:
        return False

    async def set(self, key: str, value: Buffer) -> None:
        self.sizes.append(len(value))
        await super().set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        # Newer zarr writes to some stores without its event loop; older zarr never calls this.
        self.sizes.append(len(value))
        inner: Any = self._store
        inner.set_sync(key, value)
