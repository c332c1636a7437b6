"""Rows as an Arrow table, and one table from many parts.

Every super-tile writes the rows of the patches it owns, so parts arrive in no order and, after a
run that was continued with other super-tiles, may repeat each other.  :func:`settled` makes one
table of them that does not tell how it was cut::

    part y0-512     ordinal 0 1 4 5 5        rows of one patch are in one part, in order
    part y512-1024  ordinal 8 9 12
    part y0-256     ordinal 0 1              the same rows once more: left out
    ----------------------------------
    settled         0 1 4 5 5 8 9 12         one chunk, values under nulls zero: the same bytes

Needs pyarrow, the ``table`` extra; it is imported when asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from geopatch_dask.aggregation.column import Column
from geopatch_dask.aggregation.rows import Row
from geopatch_dask.errors import GeopatchError

__all__ = ["arrow", "arrow_schema", "build", "settled"]


def arrow() -> Any:
    """The package ``pyarrow``, with ``pyarrow.parquet`` in it.

    Raises
    ------
    GeopatchError
        When it is not installed, naming the extra.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise GeopatchError("tables need pyarrow: pip install 'geopatch_dask[table]'") from None
    return pyarrow


def arrow_schema(columns: Iterable[Column], metadata: Mapping[str, str]) -> Any:
    """A ``pyarrow.Schema``."""
    pa = arrow()
    fields = [pa.field(column.name, _type(pa, column)) for column in columns]
    return pa.schema(fields, metadata=dict(metadata) or None)


def build(columns: Sequence[Column], rows: Sequence[Row], metadata: Mapping[str, str]) -> Any:
    """A ``pyarrow.Table`` of rows, in their order.

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of dict
        Values as :meth:`Column.fit` gives them; a missing one is null.
    metadata : mapping of str to str
    """
    pa = arrow()
    arrays = [_array(pa, column, [row.get(column.name) for row in rows]) for column in columns]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(columns, metadata))


def settled(tables: Sequence[Any], schema: Any, key: str) -> Any:
    """One table, sorted by ``key``, each key from the first part that has it.

    Parameters
    ----------
    tables : sequence of pyarrow.Table
        Columns as in ``schema``.
    schema : pyarrow.Schema
    key : str
        A column of whole numbers without nulls.
    """
    pa = arrow()
    if not tables:
        return schema.empty_table()
    whole = pa.concat_tables([_bare(pa, table, schema) for table in tables]).combine_chunks()
    keys = whole.column(key).to_numpy()
    parts = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    order = np.argsort(keys, kind="stable")
    keys, parts = keys[order], parts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    first = np.repeat(parts[starts], np.diff(starts, append=len(keys)))
    return whole.take(pa.array(order[parts == first])).combine_chunks()


def _bare(pa: Any, table: Any, schema: Any) -> Any:
    """The table under this very schema: readers of Parquet add notes of their own."""
    return pa.Table.from_arrays(table.columns, schema=schema)


def _type(pa: Any, column: Column) -> Any:
    name = column.item
    if name.startswith("timestamp"):
        item = pa.timestamp(name[10:-1])
    elif name in ("string", "binary"):
        item = getattr(pa, name)()
    else:
        item = pa.from_numpy_dtype(column.dtype)
    # Parquet has its own word for the entries of a list.
    return pa.list_(pa.field("element", item)) if column.is_list else item


def _array(pa: Any, column: Column, values: list[Any]) -> Any:
    kind = _type(pa, column)
    if column.is_list or column.dtype.kind == "O":
        texts = column.is_list and column.dtype.kind == "O"
        held = [list(v) if texts and v is not None else v for v in values]
        return pa.array(held, type=kind)
    null = np.fromiter((value is None for value in values), bool, len(values))
    numbers = np.zeros(len(values), column.dtype)
    numbers[~null] = [value for value in values if value is not None]
    return pa.array(numbers, type=kind, mask=null if null.any() else None)
