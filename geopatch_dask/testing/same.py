"""Whether two outputs are the same to the bit; and if not, where they begin to differ.

Arrays are compared as bytes, so NaN equals NaN of the same payload and -0.0 differs from 0.0;
tables as Arrow writes them, with the metadata of their schemas.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.table import arrow
from geopatch_dask.errors import VerificationError

__all__ = ["assert_same_bytes", "assert_same_table"]

Array = npt.NDArray[Any]


def assert_same_bytes(found: Array, expected: Array, what: str = "the output") -> None:
    """Raise unless two arrays have the same dtype, shape and bytes (NaN payloads and -0.0 too).

    Raises
    ------
    VerificationError
        Naming the first cell that differs, both values, and how many differ.
    """
    if found.dtype != expected.dtype or found.shape != expected.shape:
        raise VerificationError(
            f"{what} is {found.dtype} {found.shape}, expected {expected.dtype} {expected.shape}"
        )
    if found.tobytes() == expected.tobytes():
        return
    differs = np.atleast_1d(_bits(found) != _bits(expected))
    first = tuple(int(i) for i in np.argwhere(differs)[0])
    raise VerificationError(
        f"{what} differs in {int(differs.sum()):,} of {differs.size:,} cells; the first is "
        f"{first}: {np.atleast_1d(found)[first]!r}, expected {np.atleast_1d(expected)[first]!r}"
    )


def assert_same_table(found: Any, expected: Any, what: str = "the table") -> None:
    """Raise unless two tables have the same columns, metadata and bytes.

    Parameters
    ----------
    found, expected : pyarrow.Table
    what : str

    Raises
    ------
    VerificationError
        Naming what differs: the schema, the number of rows, or the first row and column.
    """
    if not found.schema.equals(expected.schema, check_metadata=True):
        raise VerificationError(f"{what} has columns {found.schema}, expected {expected.schema}")
    if found.num_rows != expected.num_rows:
        raise VerificationError(f"{what} has {found.num_rows} rows, expected {expected.num_rows}")
    if _stream(found) == _stream(expected):
        return
    for row in range(found.num_rows):
        for name in found.schema.names:
            ours, theirs = (table.select([name]).slice(row, 1) for table in (found, expected))
            if _stream(ours) != _stream(theirs):
                raise VerificationError(
                    f"{what} differs, first in row {row}, column {name!r}: "
                    f"{ours[name][0]}, expected {theirs[name][0]}"
                )


def _stream(table: Any) -> bytes:
    """A table as Arrow's bytes, cut to what it holds."""
    pa = arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.take(pa.array(np.arange(table.num_rows))))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
