"""Tables: Parquet datasets beside (or in place of) the Zarr store.

::

    out.zarr/                              arrays; nothing but Zarr
    out.zarr.tables/stats.parquet/         one folder per table: a Parquet dataset
        _common_metadata                   its columns, also when there are no rows
        part-y0-512_x0-512.parquet         rows of the patches that this super-tile owns
    out.zarr.geopatch/<fp8>/tiles/*.json   the records, which say how many rows each part has

A run whose only output is one table may be given a target that ends in ``.parquet``: then the
target is the folder of parts itself, and ``_geopatch.json`` in it stands for the group document.

A part is written whole, before the record that speaks of it, and deleted after that record.  A part
that no record speaks of is what a dead worker left: it is never read, and removed when the run
finishes.  A super-tile without rows writes no part.  The row order within a dataset is by part;
:func:`read_rows` sorts.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from geopatch_dask.aggregation.keyed import SORTED_BY
from geopatch_dask.aggregation.table import arrow, settled
from geopatch_dask.errors import OptionError, RecordError, TargetError
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import (
    COMPLETE,
    TABLE_NAMES,
    TABLES,
    IncompleteWarning,
    existing_root,
    holds_one_table,
    is_complete,
    owner,
    reopen,
)

__all__ = [
    "delete_parts",
    "drop_strays",
    "folder_of",
    "forget",
    "parts",
    "read_rows",
    "write_part",
    "write_schema",
]

_COLUMNS = "_common_metadata"
_PART, _PARQUET = "part-", ".parquet"
#: Parts read at the same time.
_READERS = 16


def folder_of(place: Location, name: str) -> Location:
    """Where the parts of a table are."""
    if holds_one_table(place):
        return place
    return place.sibling(TABLES).child(f"{name}{_PARQUET}")


def write_schema(place: Location, name: str, table: Any) -> None:
    """Record the columns of a table, so that it can be read before it has a row.

    Parameters
    ----------
    place : Location
        Of the target.
    name : str
    table : pyarrow.Table
        Without rows.

    Raises
    ------
    TargetError
    """
    folder_of(place, name).write(_COLUMNS, _to_bytes(table))


def write_part(place: Location, name: str, tile: str, table: Any) -> tuple[int, int]:
    """Write the rows of one super-tile; returns bytes written and their CRC-32.

    Raises
    ------
    TargetError
    """
    data = _to_bytes(table)
    folder_of(place, name).write(_part(tile), data)
    return len(data), zlib.crc32(data)


def parts(place: Location, name: str, expected: Collection[str] | None = None) -> set[str]:
    """Super-tiles that have a part, recorded or not.

    Parameters
    ----------
    place : Location
        Of the target.
    name : str
    expected : collection of str, optional
        Ids to look for one by one where listing is forbidden.  Parts of others are not found then.

    Raises
    ------
    TargetError
    """
    folder = folder_of(place, name)
    try:
        names = [path.rpartition("/")[2] for path in folder.list()]
    except TargetError as error:
        if error.kind != "forbidden" or expected is None:
            raise
        hidden = replace(folder, lists=False)
        with ThreadPoolExecutor(_READERS) as pool:
            there = pool.map(lambda tile: hidden.exists(_part(tile)), expected)
            return {tile for tile, found in zip(expected, there, strict=True) if found}
    return {
        name.removeprefix(_PART).removesuffix(_PARQUET)
        for name in names
        if name.startswith(_PART) and name.endswith(_PARQUET)
    }


def delete_parts(place: Location, names: Iterable[str], tile: str) -> None:
    """Forget the rows of a super-tile; to be called after its record is gone.

    Raises
    ------
    TargetError
    """
    for name in names:
        folder_of(place, name).delete(_part(tile))


def forget(
    ledger: Ledger, tables: Sequence[str], tiles: Collection[str], reopens: bool = True
) -> None:
    """Forget super-tiles, done or failed, and their rows: the next run computes their cells.

    A target that calls itself complete stops doing so first, whatever happens in between.

    Parameters
    ----------
    ledger : Ledger
    tables : sequence of str
        Of the target.
    tiles : collection of str
        Ids.
    reopens : bool
        False where the cells of these super-tiles are done all the same: others cover them.

    Raises
    ------
    TargetError
    """
    if tiles and reopens and is_complete(ledger.location):
        reopen(ledger.location)
    for tile in tiles:
        ledger.delete(tile)
        delete_parts(ledger.location, tables, tile)


def drop_strays(place: Location, names: Sequence[str], ledger: Ledger) -> None:
    """Delete parts that no record speaks of; to be called when everything is done.

    Raises
    ------
    TargetError
    """
    if not names or not place.lists:  # then readers, too, go by the records
        return
    recorded = set(ledger.names())
    for name in names:
        for tile in sorted(parts(place, name) - recorded):
            delete_parts(place, [name], tile)


def read_rows(place: Location, name: str | None, expected: Iterable[str]) -> Any:
    """A table of a target, sorted; what :func:`geopatch_dask.read_table` gives.

    Parameters
    ----------
    place : Location
        Of the target.
    name : str, optional
        Which table, where there are several.
    expected : iterable of str
        Ids of super-tiles, to ask for where listing is forbidden.

    Raises
    ------
    TargetError
        When there is no target, or it has no such table.
    RecordError
        When a part is missing or damaged.
    GeopatchError
        When pyarrow is not installed.

    Warns
    -----
    IncompleteWarning
    """
    arrow()
    root = existing_root(place)
    attributes = root.get("attributes", {})
    chosen = _chosen(place, attributes.get(TABLE_NAMES) or [], name)
    complete = attributes.get(COMPLETE) is True
    if not complete:
        warnings.warn(
            f"{place.display} is not complete: rows not computed yet are not in the table",
            IncompleteWarning,
            stacklevel=3,  # whoever called read_table
        )
    folder = folder_of(place, chosen)
    raw = folder.read(_COLUMNS)
    if raw is None:
        raise TargetError(f"{folder.display} has no {_COLUMNS}: run the plan again")
    schema = _from_bytes(raw, f"{folder.display}/{_COLUMNS}").schema
    ledger = Ledger(place, str(owner(root)))
    done = ledger.done(expected=expected)
    wanted: dict[str, int | None]
    wanted = {r.id: r.tables[chosen] for r in done.values() if r.tables.get(chosen)}
    if not done and not ledger.problems and complete:
        # Someone copied the result without its records; strays were removed when it was finished.
        wanted = dict.fromkeys(sorted(parts(place, chosen)))
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda tile: _read_part(folder, tile, wanted[tile], schema), wanted))
    return settled(tables, schema, (schema.metadata or {})[SORTED_BY.encode()].decode())


def _chosen(place: Location, names: Sequence[str], name: str | None) -> str:
    if not names:
        raise TargetError(f"{place.display} holds no table; gp.open reads its arrays")
    if name is None and len(names) > 1:
        raise OptionError(f"{place.display} holds the tables {', '.join(names)}: name one of them")
    if name is not None and name not in names:
        raise TargetError(f"{place.display} holds no table {name!r}, but {', '.join(names)}")
    return name or names[0]


def _read_part(folder: Location, tile: str, rows: int | None, schema: Any) -> Any:
    where = f"{folder.display}/{_part(tile)}"
    raw = folder.read(_part(tile))
    if raw is None:
        raise RecordError(f"{where} is gone, but its super-tile is recorded: run the plan again")
    table = _from_bytes(raw, where)
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise RecordError(f"{where} has other columns than the table: delete it and run again")
    if rows is not None and table.num_rows != rows:
        raise RecordError(
            f"{where} has {table.num_rows} rows, its record says {rows}: delete it and run again"
        )
    return table


def _part(tile: str) -> str:
    return f"{_PART}{tile}{_PARQUET}"


def _to_bytes(table: Any) -> bytes:
    pa = arrow()
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, compression="zstd", version="2.6")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_bytes(data: bytes, where: str) -> Any:
    pa = arrow()
    try:
        # Not read_table: that looks for more parts, and for columns in the names of folders.
        return pa.parquet.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise RecordError(
            f"{where} is damaged ({line}): delete it and run the plan again"
        ) from None
