"""Super-tiles as polygons, in the CRS of the target.

Where the target is comes from its own document (the GeoZarr attributes of the group), not from the
field: so it works for whoever can read the target, long after the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import GeopatchError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Affine6
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.report.survey import busy
from geopatch_dask.store.records import Record

if TYPE_CHECKING:
    import geopandas

__all__ = ["Place", "frame_of", "place_of"]

#: Numbers of a record that become columns.
_NUMBERS = (
    *("attempts", "retries", "patches", "failed_patches", "bytes_read", "bytes_written"),
    *("fill", "uncovered", "missing", "rows", "peak_rss"),
)


@dataclass(frozen=True)
class Place:
    """Where cells of the output are.

    Parameters
    ----------
    dims : tuple of str
        Names of the y and x axes.
    shape : tuple of int, cells
        Along these two.
    transform : Affine6
        Of the corner of the first cell; the identity where the output is nowhere on Earth.
    crs : str or None
        WKT2.
    """

    dims: tuple[str, str]
    shape: tuple[int, int]
    transform: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    crs: str | None = None

    def corners(self, layout: Layout, boxes: Sequence[Box]) -> npt.NDArray[np.float64]:
        """Rings around boxes, shape (boxes, 5, 2), x before y; whole axes where none is cut."""
        sides: list[npt.NDArray[np.float64]] = []
        for dim, n in zip(self.dims, self.shape, strict=True):
            if dim in layout.dims:
                axis = layout.dims.index(dim)
                sides.append(np.array([float(box.start[axis]) for box in boxes]))
                sides.append(np.array([float(box.stop[axis]) for box in boxes]))
            else:
                sides += [np.zeros(len(boxes)), np.full(len(boxes), float(n))]
        top, bottom, left, right = sides
        rows = np.stack([top, top, bottom, bottom, top], axis=1)
        columns = np.stack([left, right, right, left, left], axis=1)
        a, b, c, d, e, f = self.transform
        return np.stack([a * columns + b * rows + c, d * columns + e * rows + f], axis=2)


def place_of(layout: Layout, attributes: Mapping[str, Any]) -> Place:
    """Where the output is, by the attributes of the target's group.

    Without a CRS, or without a transform: cells themselves are the coordinates, of the last two
    patch axes.
    """
    crs, dims = attributes.get("proj:wkt2"), attributes.get("spatial:dimensions")
    transform: Any = attributes.get("spatial:transform")
    shape: Any = attributes.get("spatial:shape")
    told = _numbers(transform, 6) and _numbers(shape, 2) and isinstance(dims, list)
    if told and dims and isinstance(crs, str):
        a, b, c, d, e, f = map(float, transform)
        return Place((str(dims[0]), str(dims[-1])), (shape[0], shape[1]), (a, b, c, d, e, f), crs)
    if len(layout.dims) == 1:
        return Place(("", layout.dims[0]), (1, layout.shape[0]))
    (y, x), (rows, columns) = layout.dims[-2:], layout.shape[-2:]
    return Place((y, x), (rows, columns))


def frame_of(
    layout: Layout, states: Mapping[str, str], records: Mapping[str, Record], place: Place
) -> geopandas.GeoDataFrame:
    """One row per super-tile.

    Raises
    ------
    GeopatchError
        When geopandas is not installed, naming the extra.
    """
    try:
        import geopandas
        import shapely
    except ImportError:
        raise GeopatchError(
            "tables of polygons need geopandas: pip install 'geopatch_dask[geo]'"
        ) from None
    tiles = list(layout)
    found = [records.get(tile.id) for tile in tiles]
    columns: dict[str, Any] = {
        "id": [tile.id for tile in tiles],
        "state": [states[tile.id] for tile in tiles],
        "seconds": [busy(r) if r and r.seconds else np.nan for r in found],
    }
    for name in _NUMBERS:
        columns[name] = [getattr(r, name) if r else 0 for r in found]
    columns["worker"] = [f"{r.host}:{r.pid}" if r else "" for r in found]
    columns["finished"] = [r.finished if r else "" for r in found]
    columns["error"] = [_error(r) for r in found]
    shapes = shapely.polygons(place.corners(layout, [tile.box for tile in tiles]))
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=place.crs)


def _error(record: Record | None) -> str:
    error = record.error if record else None
    return f"{error['type']}: {error['message']}" if error else ""


def _numbers(value: Any, n: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == n
        and all(isinstance(v, int | float) for v in value)
    )
