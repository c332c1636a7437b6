"""Rows of one super-tile: what exists once per patch comes from the owner of its anchor.

A super-tile runs patches that reach in from its neighbours, because their cells are its own; their
rows are not.  In a run whose only outputs are tables nobody needs those patches, and they are not
run at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from geopatch_dask.aggregation.rows import Row, rows_of
from geopatch_dask.patch.anchors import IntArray
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.planning.supertile import SuperTile
from geopatch_dask.planning.tables import Table

__all__ = ["Emission", "wanted"]


class Emission:
    """The rows of one table that one super-tile writes.

    Parameters
    ----------
    table : Table
    grid : PatchGrid
    tile : SuperTile

    Attributes
    ----------
    ordinals : ndarray of int64, ascending
        Patches that have rows here.
    """

    def __init__(self, table: Table, grid: PatchGrid, tile: SuperTile) -> None:
        self.table, self.sheet = table, table.sheet(grid)
        self.points = self.sheet.asked(tile.box)
        owned = grid.owned(tile.box) if self.points is None else sorted(self.points)
        self.ordinals: IntArray = np.asarray(owned, np.int64)
        # Points that lie in no patch belong to no anchor: whoever owns the first cell tells them.
        self.rows: list[Row] = self.sheet.nowhere() if not any(tile.box.start) else []
        self._mine = frozenset(self.ordinals.tolist())

    def add(self, patch: Patch, result: Any) -> None:
        """Take the rows of a patch, if they are ours; patches come in ordinal order.

        Raises
        ------
        OperatorError
            When a row does not fit the columns of the plan.
        """
        if patch.ordinal not in self._mine:
            return
        found, _ = rows_of(result, f"{self.sheet.what}, patch {patch.ordinal} at {patch.anchor}")
        points = () if self.points is None else self.points[patch.ordinal]
        self.rows += self.sheet.rows(patch.ordinal, patch.anchor, found, points)

    def finished(self) -> Any:
        """All rows as a ``pyarrow.Table``, in the order of its key."""
        if self.points is not None:
            self.rows.sort(key=lambda row: int(row[self.sheet.key]))
        return self.sheet.table(self.rows)


def wanted(emissions: Sequence[Emission]) -> IntArray:
    """Ordinals, ascending, of patches that have rows in any of the tables."""
    found = [emission.ordinals for emission in emissions]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
