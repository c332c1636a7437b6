"""The first columns of every table: which patch a row is of, and where that is.

::

    ordinal   anchor_y  anchor_x   y         x          geometry        what the operator returned
    int64     int64     int64      float64   float64    binary (WKB)
    |         |                    |                    |
    |         first cell           centre of the        outline (or centre) of the patch, in the
    |                              patch, as labelled   CRS of the raster
    in the sampler's order

Labels of the centre: of the middle cell where the patch has an odd number of cells, else midway
between those of the two middle cells (names have no middle: the first of the two).  Cells beyond
the edge, which ``pad`` and ``reflect`` read, count like the others.

Geometries are `WKB <https://www.ogc.org/standards/sfa/>`_, x before y whatever the CRS says, as
GeoParquet wants them.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from pyproj import CRS

from geopatch_dask.aggregation.column import Column, type_of
from geopatch_dask.aggregation.rows import Row
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Affine6, GridDomain, RasterDomain
from geopatch_dask.patch.grid import PatchGrid

__all__ = ["GEOMETRY", "ORDINAL", "Geometry", "Places", "check_geometry", "geo_metadata"]

#: What the geometry column holds; ``"auto"`` is ``"box"`` where the field has CRS and transform.
Geometry = Literal["auto", "box", "point"]

ORDINAL, GEOMETRY = "ordinal", "geometry"

#: Byte order (little) and type codes of WKB.
_LITTLE, _POINT, _POLYGON = 1, 1, 3


def check_geometry(kind: object) -> None:
    """Raise :class:`OptionError` for an unknown kind of geometry, naming the known ones."""
    if kind is not None and kind not in get_args(Geometry):
        raise OptionError(f"geometry {kind!r} is none of {', '.join(get_args(Geometry))}, None")


class Places:
    """Where the patches of a grid are.

    Parameters
    ----------
    grid : PatchGrid
    geometry : Geometry or None

    Attributes
    ----------
    columns : tuple of Column
    geometry : {"box", "point"} or None

    Raises
    ------
    OptionError
        For a geometry where there is no transform to make it from.
    """

    def __init__(self, grid: PatchGrid, geometry: Geometry | None) -> None:
        self.grid = grid
        self.geometry = _resolved(geometry, grid)
        labels = {dim: _label_type(grid.domain, dim) for dim in grid.dims}
        self.labels = {dim: Column(dim, kind) for dim, kind in labels.items() if kind is not None}
        self.columns = (
            Column(ORDINAL, "int64"),
            *(Column(f"anchor_{dim}", "int64") for dim in grid.dims),
            *self.labels.values(),
            *([Column(GEOMETRY, "binary")] if self.geometry else []),
        )

    def row(self, ordinal: int, anchor: Sequence[int]) -> Row:
        """The values of one patch, by column."""
        indices = self.grid.indices(anchor)
        row: Row = {ORDINAL: np.int64(ordinal)}
        for dim, first in zip(self.grid.dims, anchor, strict=True):
            row[f"anchor_{dim}"] = np.int64(first)
        for dim, column in self.labels.items():
            axis = self.grid.dims.index(dim)
            middle = _centre(self.grid.domain, dim, indices.start[axis], indices.stop[axis])
            row[dim] = column.fit(middle, rounding=False)
        if self.geometry:
            row[GEOMETRY] = _wkb(self.grid, indices, self.geometry)
        return row

    @property
    def metadata(self) -> dict[str, str]:
        """What a table with these columns says about itself: the ``geo`` key of GeoParquet."""
        return geo_metadata(self.grid.domain.crs, self.geometry) if self.geometry else {}


@functools.lru_cache(maxsize=64)
def _geo_json(crs: str | None, geometry: str) -> str:
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon" if geometry == "box" else "Point"],
        "crs": None if crs is None else CRS.from_user_input(crs).to_json_dict(),
    }
    if geometry == "box":
        column["orientation"] = "counterclockwise"
    found = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
    return json.dumps(found, sort_keys=True)


def geo_metadata(crs: str | None, geometry: str) -> dict[str, str]:
    """GeoParquet 1.1 metadata, the CRS as PROJJSON; a null CRS is an unknown one."""
    return {"geo": _geo_json(crs, geometry)}


def _resolved(kind: Geometry | None, grid: PatchGrid) -> str | None:
    domain = grid.domain
    transform = domain.transform if isinstance(domain, RasterDomain) else None
    if kind is None:
        return None
    if kind == "auto":
        placed = transform is not None and domain.crs is not None
        return "box" if placed and set(domain.dims[-2:]) <= set(grid.dims) else None
    if transform is None:
        raise OptionError(
            f"geometry={kind!r} needs a raster with a transform; this field has the axes "
            f"{', '.join(domain.dims)} and none: use geometry=None, rows have its labels"
        )
    return kind


def _label_type(domain: GridDomain, dim: str) -> str | None:
    """The type of the column of labels along an axis; None where there are none to store."""
    labels = domain.labels(dim, 0, min(domain.size(dim), 1))
    if labels is None:
        return None
    if labels.dtype.kind in "iuf":
        return "float64"
    if labels.dtype.kind == "M":
        return type_of(np.zeros((), labels.dtype)[()])
    return "string" if all(isinstance(label, str) for label in labels) else None


def _centre(domain: GridDomain, dim: str, start: int, stop: int) -> Any:
    """The label of the middle of some cells of an axis; None where it has no labels there."""
    low, high = (start + stop - 1) // 2, (start + stop) // 2
    labels = domain.labels(dim, low, high + 1)
    if labels is None:  # names do not go on beyond the edge
        labels = domain.labels(dim, low, low + 1)
    if labels is None or not len(labels):
        return None
    first, last = labels[0], labels[-1]
    if labels.dtype.kind in "iuf":
        return np.float64(first) if low == high else (np.float64(first) + np.float64(last)) / 2
    if labels.dtype.kind == "M":
        return first + (last - first) // 2
    return str(first)


def _wkb(grid: PatchGrid, indices: Box, kind: str) -> bytes:
    """The outline or the centre of some cells as well-known binary."""
    domain = grid.domain
    a, b, c, d, e, f = _transform(domain)
    limits = dict(
        zip(grid.dims, zip(indices.start, indices.stop, strict=True), strict=True)
    )  # an axis that rides along is taken whole
    rows, cols = (limits.get(dim, (0, domain.size(dim))) for dim in domain.dims[-2:])

    def corner(row: float, col: float) -> tuple[float, float]:
        return a * col + b * row + c, d * col + e * row + f

    if kind == "point":
        return struct.pack("<BI2d", _LITTLE, _POINT, *corner(sum(rows) / 2, sum(cols) / 2))
    (top, bottom), (left, right) = rows, cols
    ring = [(top, left), (bottom, left), (bottom, right), (top, right), (top, left)]
    if a * e - b * d > 0:  # rows go up: turn the ring round, so that it runs counterclockwise
        ring.reverse()
    numbers = [value for row, col in ring for value in corner(row, col)]
    return struct.pack("<BIII10d", _LITTLE, _POLYGON, 1, len(ring), *numbers)


def _transform(domain: GridDomain) -> Affine6:
    if not isinstance(domain, RasterDomain) or domain.transform is None:
        raise OptionError("a geometry needs a raster with a transform")
    return domain.transform
