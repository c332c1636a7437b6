"""Tables of a plan: which results of the operator are rows, and what columns they have.

The columns are decided here, once, from the given schema or from the rows of the patches that the
operator was tried on; workers only check.  So every super-tile writes the same columns, whatever
its own first row would have said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geopatch_dask.aggregation.column import Column
from geopatch_dask.aggregation.keyed import ByIndex, Sheet
from geopatch_dask.aggregation.points import NOWHERE, nearest_patches
from geopatch_dask.aggregation.rows import Row, fitted, inferred
from geopatch_dask.aggregation.table import arrow
from geopatch_dask.errors import OperatorError
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.planning.probe import Probe

__all__ = ["Table", "memory_of_rows", "table_of"]

#: Bytes that a value takes while its row is collected: a Python object, and its place in a dict.
VALUE_BYTES = 120
#: What pyarrow and one Parquet writer add to the resident set of a process, measured (26.0).
ARROW_BYTES = 96 << 20
#: Copies of the rows of a super-tile while they are written: rows, Arrow, Parquet.
COPIES = 3


@dataclass(frozen=True)
class Table:
    """One table of the target.

    Parameters
    ----------
    key : str
        In the dict that the operator returns; ``""`` where its whole result is rows.
    name : str
    keyed : ByIndex
    columns : tuple of Column
        The operator's.
    several : bool
        Whether a patch may have any number of rows; else it has at most one.
    row_bytes : int
        Of the rows of one patch while they are collected, the most that was seen.
    """

    key: str
    name: str
    keyed: ByIndex
    columns: tuple[Column, ...]
    several: bool
    row_bytes: int

    def sheet(self, grid: PatchGrid) -> Sheet:
        """All columns, and how rows come about."""
        return Sheet(self.keyed, grid, self.columns, f"output {self.name!r}")

    def patches(self, grid: PatchGrid) -> int:
        """How many patches speak: all of them, or those nearest to the points."""
        sheet = self.sheet(grid)
        if sheet.cells is None:
            return len(grid.anchors)
        nearest = nearest_patches(sheet.cells, grid)
        return len(np.unique(nearest[nearest != NOWHERE]))

    def lost(self, grid: PatchGrid) -> int:
        """How many of the points no patch contains."""
        return len(self.sheet(grid).nowhere())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; the aggregation is not in it, it is the patcher's."""
        return {
            "key": self.key,
            "name": self.name,
            "columns": [column.to_json() for column in self.columns],
            "several": self.several,
            "row_bytes": self.row_bytes,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], members: Mapping[str, Any]) -> Table:
        """The inverse of :meth:`to_json`, with the patcher's aggregations."""
        columns = tuple(Column(*pair) for pair in stored["columns"])
        return cls(**{**stored, "columns": columns}, keyed=members[stored["key"]])


def table_of(key: str, name: str, keyed: ByIndex, found: Probe, grid: PatchGrid) -> Table:
    """Decide the columns of a table.

    Raises
    ------
    GeopatchError
        When pyarrow is not installed.
    OperatorError
        When the rows that were tried do not fit each other or the schema, or there were none.
    OptionError
        When geometry or points do not go with the field, or a name is taken.
    """
    arrow()
    what = f"output {name!r}"
    tried = found.rows.get(key, ())
    rows = [(patch.where(what), row) for patch in tried for row in patch.rows]
    columns = keyed.columns
    if columns is None:
        if tried and not rows:
            raise OperatorError(
                f"{what}: patches {', '.join(str(patch.ordinal) for patch in tried)} were tried "
                "and have no rows, so the columns are unknown; give ByIndex(schema={...})"
            )
        columns = inferred(rows, what)
    for where, row in rows:
        fitted(row, columns, where, keyed.schema is not None)
    table = Table(
        key=key,
        name=name,
        keyed=keyed,
        columns=columns,
        several=any(patch.several for patch in tried),
        row_bytes=0,
    )
    standard = len(table.sheet(grid).columns) - len(columns)
    most = max((_bytes(patch.rows, standard) for patch in tried), default=0)
    return Table(**{**vars(table), "row_bytes": most})


def memory_of_rows(tables: Sequence[Table], patches: int) -> int:
    """Bytes that the rows of a super-tile with so many patches take, and what writes them."""
    return ARROW_BYTES + patches * sum(table.row_bytes for table in tables) if tables else 0


def _bytes(rows: tuple[Row, ...], standard: int) -> int:
    values = [value for row in rows for value in row.values()]
    held = sum(math.ceil(getattr(value, "nbytes", 8)) for value in values)
    return COPIES * (held + VALUE_BYTES * (len(values) + standard * len(rows)))
