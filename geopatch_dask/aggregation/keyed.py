"""Outputs with one row (or several) per patch instead of one value per cell.

Rows exist once per patch, so nothing overlaps and nothing is added up: the super-tile that owns a
patch's anchor *emits* its rows, and the table is the union::

      +---------------+---------------+
      | a   a   a   a | a   a   a   a |   every anchor a lies in one super-tile
      |   k           |   k + 1       |
      +---------------+---------------+
         |                   |
      part-k.parquet      part-(k+1).parquet      rows in the order of the sampler

In RAM, ``merge`` gives the same rows as a dictionary, :class:`Rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from geopatch_dask.aggregation.base import Aggregation, Contribution, Part, State
from geopatch_dask.aggregation.column import Column, schema_of
from geopatch_dask.aggregation.output import Output
from geopatch_dask.aggregation.place import ORDINAL, Geometry, Places, check_geometry
from geopatch_dask.aggregation.points import (
    NOWHERE,
    checked_points,
    near,
    nearest_patches,
    to_cells,
)
from geopatch_dask.aggregation.rows import Row, fitted, inferred, rows_of
from geopatch_dask.aggregation.table import build, settled
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch

__all__ = ["SORTED_BY", "ByIndex", "Gathering", "Rows", "Sheet", "check_keyed_output"]

POINT = "point"
#: Metadata of a table: the column it is sorted by.
SORTED_BY = "geopatch:sorted_by"


@dataclass(frozen=True)
class ByIndex(Aggregation):
    """A table: what the operator returns for each patch, as rows.

    The operator may return a number, text, a 1-D array, a dict of column name to any of these, or
    several rows: a list of such results, a structured array, a pandas.DataFrame.  None is no row.

    Every row starts with ``ordinal``, ``anchor_<dim>`` (cells), the centre of the patch along each
    labelled axis (``y``, ``lat``, ``time`` ...), and ``geometry`` where there is one.  The table
    is sorted by ordinal; rows of one patch keep the operator's order.

    Parameters
    ----------
    schema : mapping of str to type, or None
        Types of the operator's columns: ``{"mean": "float32", "name": str, "spectrum":
        "list<float32>"}``.  None: those of the first row (see
        :mod:`geopatch_dask.aggregation.column` for what fits later).
    geometry : {"auto", "box", "point"} or None
        A column of WKB with GeoParquet metadata: the outline of the patch, or its centre.
        ``"auto"``: the outline where the field is a raster with a CRS and a transform.
    points : list of positions, or None
        Query points, one number per patch axis each, in the labels of the axes (cells where an
        axis has none).  The table then has one row per point, in their order: that of the patch
        that contains the point and whose centre is nearest, after ``point`` (its index) and
        ``point_<dim>`` (its position).  Points that no patch contains have nulls.  Patches that
        speak for no point are not run.  They travel with the plan: thousands, not millions.

    Raises
    ------
    OptionError
        For types and geometries that do not exist, and points that are no finite numbers.

    Examples
    --------
    >>> import numpy as np, geopatch_dask as gp
    >>> patcher = gp.Patcher(
    ...     gp.Rectangular((2, 2)), gp.RegularStride((2, 2)), aggregation=gp.ByIndex()
    ... )
    >>> field = gp.ArrayField(np.arange(8.0).reshape(2, 4))
    >>> rows = patcher.merge(
    ...     (p.with_data({"mean": p.data.mean()}) for p in patcher.split(field)), field
    ... )
    >>> [(anchor, float(row["mean"])) for anchor, row in rows.items()]
    [((0, 0), 2.5), ((0, 2), 4.5)]
    """

    schema: Any = None
    geometry: Geometry | None = "auto"
    points: Any = None

    keyed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", schema_of(self.schema))
        check_geometry(self.geometry)
        if self.points is not None:
            object.__setattr__(self, "points", checked_points(self.points))

    @property
    def columns(self) -> tuple[Column, ...] | None:
        """The operator's columns as given; None when the first row decides."""
        return None if self.schema is None else tuple(Column(*pair) for pair in self.schema)

    # ---- nothing per cell ------------------------------------------------------------------

    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[Any, ...]]:
        return {}

    def update(self, state: State, patch: Contribution) -> None:
        return None

    def finalize(self, state: State) -> dict[str, Any]:
        return {}

    def parts(self, leading: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Part]:
        return {}


class Sheet:
    """One table of one run: its columns, and the rows of each patch.

    Parameters
    ----------
    keyed : ByIndex
    grid : PatchGrid
    own : sequence of Column
        The operator's.
    what : str
        Names the output in messages.

    Attributes
    ----------
    columns : tuple of Column
    key : str
        The column the table is sorted by.

    Raises
    ------
    OptionError
        When a column of the operator has the name of one that is always there.
    """

    def __init__(self, keyed: ByIndex, grid: PatchGrid, own: Sequence[Column], what: str) -> None:
        self.keyed, self.grid, self.own, self.what = keyed, grid, tuple(own), what
        self.places = Places(grid, keyed.geometry)
        self.key = ORDINAL if keyed.points is None else POINT
        asked = [] if keyed.points is None else [Column(POINT, "int64")]
        asked += [Column(f"{POINT}_{dim}", "float64") for dim in grid.dims if asked]
        self.columns = (*asked, *self.places.columns, *self.own)
        names = [column.name for column in self.columns]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise OptionError(
                f"{what} has a column {twice[0]!r}, which says where the patch is; name it "
                f"otherwise: {', '.join(names[: len(names) - len(self.own)])} are taken"
            )
        self.cells = None if keyed.points is None else to_cells(keyed.points, grid)

    @property
    def metadata(self) -> dict[str, str]:
        """Of the table as a whole: GeoParquet's, and what it is sorted by."""
        return {**self.places.metadata, SORTED_BY: self.key}

    def asked(self, box: Box) -> dict[int, list[int]] | None:
        """Ordinals of patches with their anchor in a box that speak for points, and for which.

        None when all patches are to have rows.
        """
        if self.cells is None:
            return None
        close = near(self.cells, self.grid, box)
        patches = nearest_patches(self.cells[close], self.grid)
        mine = set(self.grid.owned(box).tolist())
        found: dict[int, list[int]] = {}
        for point, ordinal in zip(close.tolist(), patches.tolist(), strict=True):
            if ordinal in mine:
                found.setdefault(ordinal, []).append(point)
        return found

    def nowhere(self) -> list[Row]:
        """Rows of the points that no patch contains."""
        if self.cells is None:
            return []
        lost = np.flatnonzero(nearest_patches(self.cells, self.grid) == NOWHERE)
        return [self._pointed(point, {}) for point in lost.tolist()]

    def rows(
        self, ordinal: int, anchor: Sequence[int], found: Sequence[Row], points: Sequence[int] = ()
    ) -> list[Row]:
        """The rows of a patch: one for each that the operator returned, and for each point.

        Raises
        ------
        OperatorError
            When one does not fit the columns.
        """
        where = f"{self.what}, patch {ordinal} at {tuple(anchor)}"
        rounding = self.keyed.schema is not None
        place = self.places.row(ordinal, anchor)
        rows = [{**place, **fitted(row, self.own, where, rounding)} for row in found]
        if self.cells is None:
            return rows
        return [self._pointed(point, row) for point in points for row in rows]

    def table(self, rows: Sequence[Row]) -> Any:
        """A ``pyarrow.Table`` of rows, in their order."""
        return build(self.columns, rows, self.metadata)

    def _pointed(self, point: int, row: Row) -> Row:
        position = zip(self.grid.dims, self.keyed.points[point], strict=True)
        asked = {f"{POINT}_{dim}": np.float64(value) for dim, value in position}
        return {
            POINT: np.int64(point),
            **asked,
            **{column.name: row.get(column.name) for column in self.columns[1 + len(asked) :]},
        }


class Rows(dict[Any, Any]):
    """The rows of a table by anchor (by point, for query points), in the order of the table.

    A value is a row, ``{column: value}``; or a list of rows where the operator returns several per
    patch, or patches share an anchor.
    """

    def __init__(self, sheet: Sheet, rows: Sequence[Row], several: bool) -> None:
        self._sheet, self._rows = sheet, rows
        found: dict[Any, list[Row]] = {}
        for row in rows:
            found.setdefault(self._key(row), []).append(row)
        several = several or any(len(held) > 1 for held in found.values())
        super().__init__(found if several else {key: held[0] for key, held in found.items()})

    def _key(self, row: Row) -> Any:
        if self._sheet.key == POINT:
            return int(row[POINT])
        return tuple(int(row[f"anchor_{dim}"]) for dim in self._sheet.grid.dims)

    def table(self) -> Any:
        """The same rows as a ``pyarrow.Table``, equal to :func:`geopatch_dask.read_table`.

        Raises
        ------
        GeopatchError
            When pyarrow is not installed.
        """
        made = self._sheet.table(self._rows)
        return settled([made], made.schema, self._sheet.key)


class Gathering:
    """Rows of patches in RAM; the in-RAM reference of a run.

    Parameters
    ----------
    keyed : ByIndex
    grid : PatchGrid
    what : str
        Names the output in messages.
    """

    def __init__(self, keyed: ByIndex, grid: PatchGrid, what: str) -> None:
        self.keyed, self.grid, self.what = keyed, grid, what
        self.found: dict[int, tuple[tuple[int, ...], list[Row]]] = {}
        self.several = False

    def add(self, patch: Patch, result: Any) -> None:
        """Add the rows of a patch; those it had before are replaced."""
        rows, several = rows_of(result, self._where(patch.ordinal, patch.anchor))
        self.several |= several
        kept = [{name: _own(value) for name, value in row.items()} for row in rows]
        self.found[patch.ordinal] = patch.anchor, kept

    def rows(self) -> Rows:
        """All of them, in order."""
        ordered = sorted(self.found.items())
        own = self.keyed.columns
        if own is None:
            own = inferred(
                (
                    (self._where(ordinal, anchor), row)
                    for ordinal, (anchor, rows) in ordered
                    for row in rows
                ),
                self.what,
            )
        sheet = Sheet(self.keyed, self.grid, own, self.what)
        asked = sheet.asked(self.grid.box)
        found: list[Row] = []
        for ordinal, (anchor, rows) in ordered:
            points = () if asked is None else asked.get(ordinal, ())
            if asked is None or points:
                found += sheet.rows(ordinal, anchor, rows, points)
        if asked is not None:
            found = sorted([*found, *sheet.nowhere()], key=lambda row: int(row[POINT]))
        return Rows(sheet, found, self.several)

    def _where(self, ordinal: int, anchor: tuple[int, ...]) -> str:
        return f"{self.what}, patch {ordinal} at {anchor}"


def check_keyed_output(output: Output) -> None:
    """Raise :class:`OptionError` for options of cells that were given for a table."""
    plain = Output(name=output.name)
    wrong = [name for name in vars(plain) if getattr(output, name) != getattr(plain, name)]
    if wrong:
        raise OptionError(
            f"output {output.name!r} is a table, which has no {wrong[0]}; types of its columns "
            "are given as ByIndex(schema={...})"
        )


def _own(value: Any) -> Any:
    """Arrays as copies: an operator may reuse its own."""
    return value.copy() if isinstance(value, np.ndarray) else value
