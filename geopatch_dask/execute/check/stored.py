"""What lies on the store, read back: regions, rows, checksums, and the objects they come from.

The checksum in a record is the CRC-32 of the cells in the order in which the kernel wrote them::

    for each row of write units, from the top        crc = crc32(cells, crc)
        for each array of the plan
    for each table with rows                         crc = crc32(crc32(part), crc)

so it can be taken again from what is stored.  A chunk that was deleted reads as fill, one that was
swapped reads as another's cells: both change the sum.  One that cannot be decoded is named.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from geopatch_dask.aggregation.table import arrow
from geopatch_dask.errors import RecordError, TargetError
from geopatch_dask.failures import judged
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.probe import OutputArray
from geopatch_dask.store.location import raise_target_error
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.regions import write_unit
from geopatch_dask.store.tables import folder_of

__all__ = ["Stored", "Unreadable", "bits", "untrusted"]

#: Failures that say nothing about the object that was asked for.
_ELSEWHERE = ("forbidden", "unreachable", "busy")


class Unreadable(Exception):
    """An object that is there and cannot be decoded, or a part that is gone.

    Parameters
    ----------
    what : str
        Array or table.
    key : str
        Of the object, relative to the target.
    why : str
    """

    def __init__(self, what: str, key: str, why: str) -> None:
        super().__init__(f"{key}: {why}")
        self.what, self.key, self.why = what, key, why


def bits(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same cells as unsigned integers, so that NaN and -0.0 compare by their bytes."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


class Stored:
    """The arrays and tables of a finished or unfinished target, for reading.

    Parameters
    ----------
    plan : PlanBase

    Raises
    ------
    TargetError
        When an array is missing, or has not the dtype and shape of the plan.
    """

    def __init__(self, plan: PlanBase) -> None:
        self.plan = plan
        self.arrays = {array.name: self._open(array) for array in plan.arrays}

    def _open(self, array: OutputArray) -> zarr.Array[Any]:
        place = self.plan.target
        try:
            found: zarr.Array[Any] = zarr.open_array(
                place.zarr_store(read_only=True),
                path=f"{place.path}/{array.name}".strip("/"),
                mode="r",
                zarr_format=3,
            )
        except Exception as error:
            raise_target_error(
                "open", f"{place.display}/{array.name}", error, place.storage_options
            )
        shape, dtype = array.leading + self.plan.grid.shape, np.dtype(array.dtype)
        if found.shape != shape or found.dtype != dtype:
            raise TargetError(
                f"{place.display}/{array.name} is {found.dtype} {found.shape}, the plan wrote "
                f"{dtype} {shape}: its zarr.json was changed; run with overwrite=True"
            )
        return found

    # ---- cells -----------------------------------------------------------------------------

    def read(self, name: str, box: Box) -> npt.NDArray[Any]:
        """Cells of a box over all axes, C-contiguous.

        Raises
        ------
        Unreadable
            Naming the first object of the box that cannot be decoded.
        TargetError
            When the store cannot be reached.
        """
        array: Any = self.arrays[name]
        try:
            return np.ascontiguousarray(array[box.slices()])
        except Exception as error:  # every codec has its own
            self._raise_elsewhere(name, error)
            for key, part in self._objects(name, box):
                try:
                    array[part.slices()]
                except Exception as broken:
                    self._raise_elsewhere(name, broken)
                    raise Unreadable(name, key, f"cannot be decoded ({_line(broken)})") from broken
            raise Unreadable(name, name, f"cannot be read ({_line(error)})") from error

    def key(self, name: str, cell: tuple[int, ...]) -> str:
        """Key of the object that holds a cell."""
        return next(self._objects(name, Box.at(cell, (1,) * len(cell))))[0]

    def _objects(self, name: str, box: Box) -> Iterator[tuple[str, Box]]:
        """Objects of a box: their keys, relative to the target, and their cells."""
        array = self.arrays[name]
        unit = write_unit(array.chunks, array.shards)
        metadata: Any = array.metadata
        pairs = zip(box.start, box.stop, unit, strict=True)
        for coords in product(*(range(a // u, -(-b // u)) for a, b, u in pairs)):
            start = tuple(c * u for c, u in zip(coords, unit, strict=True))
            cells = Box.at(start, unit).intersect(Box.of_shape(array.shape))
            yield f"{name}/{metadata.encode_chunk_key(coords)}", cells

    def _raise_elsewhere(self, name: str, error: Exception) -> None:
        """Trouble of the store, the system or this process is no damaged object."""
        if _is_elsewhere(error):
            place = self.plan.target
            raise_target_error("read", f"{place.display}/{name}", error, place.storage_options)

    # ---- rows ------------------------------------------------------------------------------

    def part(self, name: str, tile: str) -> bytes:
        """The Parquet file with the rows of a super-tile.

        Raises
        ------
        Unreadable
            When it is gone.
        TargetError
        """
        folder = folder_of(self.plan.target, name)
        file = f"part-{tile}.parquet"  # the layout on disk, see store/tables.py
        data = folder.read(file)
        if data is None:
            raise Unreadable(name, file, "is gone")
        return data

    def rows(self, name: str, record: Record) -> Any:
        """The rows of a super-tile, a pyarrow.Table; None where its record has none.

        Raises
        ------
        Unreadable
        TargetError
        """
        if not record.tables.get(name):
            return None
        data, pa = self.part(name, record.id), arrow()
        try:
            return pa.parquet.ParquetFile(pa.BufferReader(data)).read()
        except (pa.ArrowException, OSError) as error:
            self._raise_elsewhere(name, error)
            raise Unreadable(
                name, f"part-{record.id}.parquet", f"cannot be decoded ({_line(error)})"
            ) from error

    # ---- sums ------------------------------------------------------------------------------

    def checksum(self, record: Record) -> tuple[str, int]:
        """What the checksum of a record would be now, and how many cells hold the fill value.

        Raises
        ------
        Unreadable
        TargetError
        """
        plan, crc, filled = self.plan, 0, 0
        top, bottom, rows = record.box.start[0], record.box.stop[0], plan.layout.unit[0]
        for start in range(top, bottom, rows) if plan.arrays else ():
            piece = record.box.replace(0, start, min(start + rows, bottom))
            for array in plan.arrays:
                cells = self.read(array.name, piece.prepend(array.leading))
                crc = zlib.crc32(cells.data, crc)
                fill = bits(np.asarray(array.fill).astype(array.dtype).reshape(1))
                filled += int(np.count_nonzero(bits(cells) == fill))
        for table in plan.tables:
            if record.tables.get(table.name):
                part = zlib.crc32(self.part(table.name, record.id))
                crc = zlib.crc32(part.to_bytes(4, "little"), crc)
        return f"{crc:08x}", filled


def untrusted(ledger: Ledger, expected: Sequence[str] = ()) -> dict[str, str]:
    """Super-tiles whose records cannot be trusted, and why.

    Parameters
    ----------
    ledger : Ledger
    expected : sequence of str
        Ids to ask for where listing is forbidden.

    Raises
    ------
    TargetError
    """
    try:
        names = ledger.names()
    except TargetError as error:
        if error.kind != "forbidden" or not expected:
            raise
        names = list(expected)
    found: dict[str, str] = {}
    for name in sorted(names):
        try:
            ledger.get(name)
        except RecordError as error:
            found[name] = str(error)
    return found


def _is_elsewhere(error: BaseException) -> bool:
    """Whether a failure says nothing about the object that was asked for.

    What the system says is trouble of here and now, even where no other attempt would help: bytes
    that cannot be decoded make no system call fail.  Memory is the doubtful case, since damage may
    ask for any amount of it; nothing is to be forgotten on a doubt.
    """
    kind, transient = judged(error)
    if transient or kind in _ELSEWHERE:
        return True
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno):
            return True
        link = link.__cause__ or link.__context__
    return False


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
