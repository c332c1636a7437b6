"""The attributes that put an array on Earth, for every reader at once.

There is no single convention that xarray, rioxarray, odc-geo, GDAL and QGIS all follow, so the
same facts are written three ways that agree::

    out.zarr            zarr_conventions [spatial, proj], proj:*, spatial:*         GeoZarr (group)
      data (..., y, x)  the same, grid_mapping and coordinates: "spatial_ref"       GeoZarr, CF
      y, x              float64 pixel *centres*; standard_name, axis, units         CF, GDAL <= 3.12
      spatial_ref       the CF grid mapping, crs_wkt, GeoTransform                  CF

``coordinates: "spatial_ref"`` is what makes ``xr.open_zarr(out)`` with no option keep the CRS:
without it ``spatial_ref`` comes back as one more data variable.

What is left out, and why:

* no CRS: none of this, only the labels the domain has;
* a CRS without an EPSG-like code: no ``proj:code``, the WKT says it all;
* a rotated or sheared raster: no 1-D ``y`` and ``x``, since no 1-D label is true there.  rioxarray
  and odc-geo then read ``GeoTransform``; GDAL before 3.13 sees the CRS but no transform;
* a grid whose labels are not evenly spaced: no transform, the labels stand.

Functions here are pure: a domain goes in, plain JSON comes out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyproj import CRS
from pyproj.exceptions import CRSError

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.domain import Affine6, Coordinate, GridDomain, RasterDomain
from geopatch_dask.store.labels import jsonable

__all__ = [
    "SPATIAL_REF",
    "array_attrs",
    "coordinates",
    "group_attrs",
    "spatial_dims",
    "spatial_ref_attrs",
    "transform_of",
]

#: Name of the 0-d variable that holds the CRS.
SPATIAL_REF = "spatial_ref"

_ROOT = "https://raw.githubusercontent.com/zarr-conventions"
_PAGE = "https://github.com/zarr-conventions"
#: Registrations of the conventions, version 0.1; their schemas fix every character.
_SPATIAL = {
    "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "schema_url": f"{_ROOT}/spatial/refs/tags/v0.1/schema.json",
    "spec_url": f"{_PAGE}/spatial/blob/v0.1/README.md",
    "name": "spatial",
    "description": "Spatial coordinate information",
}
_PROJ = {
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "schema_url": f"{_ROOT}/proj/refs/tags/v0.1/schema.json",
    "spec_url": f"{_PAGE}/proj/blob/v0.1/README.md",
    "name": "proj",
    "description": "Coordinate reference system information for geospatial data",
}

#: How the horizontal axes of a grid may be called, y before x.
_NAMES = (
    frozenset({"y", "lat", "latitude", "projection_y_coordinate", "grid_latitude"}),
    frozenset({"x", "lon", "longitude", "projection_x_coordinate", "grid_longitude"}),
)
#: Largest departure from even spacing, in cells, at which a transform is still told.  Labels in
#: float32 are off by about 1e-5 of a cell; GDAL allows 1e-3.
_EVEN = 1e-3


def spatial_dims(domain: GridDomain) -> tuple[str, str] | None:
    """The names of the y and x axes, or None when the domain has no such pair.

    A raster's are its last two.  A grid's are told by the ``axis`` or ``standard_name`` attribute
    of their labels, else by their names.
    """
    if isinstance(domain, RasterDomain):
        return domain.dims[-2], domain.dims[-1]
    found = [
        [dim for dim in domain.dims if _is_axis(domain, dim, letter, names)]
        for letter, names in zip("YX", _NAMES, strict=True)
    ]
    if len(found[0]) == 1 and len(found[1]) == 1:
        return found[0][0], found[1][0]
    return None


def transform_of(domain: GridDomain) -> Affine6 | None:
    """The affine transform of the whole domain, if it follows one.

    Returns
    -------
    Affine6 or None
        Of the outer corner of the first cell.  A grid's is told from evenly spaced labels.
    """
    if isinstance(domain, RasterDomain) and domain.transform is not None:
        return domain.transform
    dims = spatial_dims(domain)
    if dims is None:
        return None
    y, x = (_spacing(domain.coords.get(dim)) for dim in dims)
    if y is None or x is None:
        return None
    return (x[1], 0.0, x[0] - x[1] / 2, 0.0, y[1], y[0] - y[1] / 2)


def coordinates(domain: GridDomain) -> dict[str, Coordinate]:
    """The labels to write, one entry per labelled axis, with CF attributes.

    Attributes that the domain's own labels have are kept; missing ones are added.
    """
    labelled: dict[str, Coordinate] = {}
    horizontal = _axis_attrs(domain)
    for dim, n in zip(domain.dims, domain.shape, strict=True):
        values = domain.labels(dim, 0, n)
        if values is not None:
            own = domain.coords[dim].attrs if dim in domain.coords else {}
            labelled[dim] = Coordinate(values, {**horizontal.get(dim, {}), **own})
    return labelled


def spatial_ref_attrs(domain: GridDomain) -> dict[str, Any] | None:
    """Attributes of the ``spatial_ref`` variable; None when the domain has no CRS or no y and x.

    Raises
    ------
    OptionError
        When the domain's CRS is not one that PROJ understands.
    """
    if not _georeferenced(domain):
        return None
    crs = _crs(domain.crs)
    wkt = crs.to_wkt()
    attrs: dict[str, Any] = {**crs.to_cf(), "crs_wkt": wkt, "spatial_ref": wkt}
    transform = transform_of(domain)
    if transform is not None:
        a, b, c, d, e, f = (float(v) for v in transform)
        attrs["GeoTransform"] = " ".join(map(repr, (c, a, b, f, d, e)))  # GDAL's order
    plain: dict[str, Any] = jsonable(attrs)
    return plain


def group_attrs(domain: GridDomain) -> dict[str, Any]:
    """GeoZarr attributes of the group; empty without a CRS."""
    dims = spatial_dims(domain)
    if dims is None or not _georeferenced(domain):
        return {}
    crs = _crs(domain.crs)
    attrs: dict[str, Any] = {"zarr_conventions": [dict(_PROJ)]}
    code = _code(crs)
    if code is not None:
        attrs["proj:code"] = code
    attrs["proj:wkt2"] = crs.to_wkt()
    transform = transform_of(domain)
    if transform is not None:
        shape = [domain.size(dim) for dim in dims]
        attrs["zarr_conventions"].insert(0, dict(_SPATIAL))
        attrs["spatial:dimensions"] = list(dims)
        attrs["spatial:transform_type"] = "affine"
        attrs["spatial:transform"] = [float(v) for v in transform]
        attrs["spatial:shape"] = shape
        attrs["spatial:bbox"] = _bbox(transform, shape)
        attrs["spatial:registration"] = "pixel"
    return attrs


def array_attrs(domain: GridDomain, dims: Sequence[str]) -> dict[str, Any]:
    """Attributes of an array with these axes; empty unless it has y and x and there is a CRS.

    The GeoZarr attributes are repeated on every array: readers of one array do not look at the
    group above it.
    """
    horizontal = spatial_dims(domain)
    if horizontal is None or not set(horizontal) <= set(dims) or not _georeferenced(domain):
        return {}
    return {
        "grid_mapping": SPATIAL_REF,
        "coordinates": SPATIAL_REF,
        **group_attrs(domain),
    }


def _georeferenced(domain: GridDomain) -> bool:
    return domain.crs is not None and spatial_dims(domain) is not None


def _is_axis(domain: GridDomain, dim: str, letter: str, names: frozenset[str]) -> bool:
    attrs: Mapping[str, Any] = domain.coords[dim].attrs if dim in domain.coords else {}
    if "axis" in attrs:
        return bool(attrs["axis"] == letter)
    return str(attrs.get("standard_name", dim)).lower() in names or dim.lower() in names


def _spacing(coordinate: Coordinate | None) -> tuple[float, float] | None:
    """First label and step of evenly spaced numeric labels, else None."""
    if (
        coordinate is None
        or coordinate.values.dtype.kind not in "iuf"
        or len(coordinate.values) < 2
    ):
        return None
    values = coordinate.values.astype(np.float64)
    first, step = float(values[0]), float(values[-1] - values[0]) / (len(values) - 1)
    if not math.isfinite(step) or step == 0:
        return None
    off = np.abs(values - (first + step * np.arange(len(values)))).max()
    return (first, step) if off <= _EVEN * abs(step) else None


def _axis_attrs(domain: GridDomain) -> dict[str, dict[str, Any]]:
    """CF attributes of the y and x labels, from the CRS."""
    dims = spatial_dims(domain)
    if dims is None or not _georeferenced(domain):
        return {}
    described = {axis["axis"]: axis for axis in _crs(domain.crs).cs_to_cf() if "axis" in axis}
    attrs: dict[str, dict[str, Any]] = {}
    for dim, letter in zip(dims, "YX", strict=True):
        axis = {**described.get(letter, {}), "axis": letter}
        if "units" in axis:
            axis["units"] = {"metre": "m", "1 metre": "m"}.get(axis["units"], axis["units"])
        attrs[dim] = jsonable(axis)
    return attrs


def _bbox(transform: Affine6, shape: Sequence[int]) -> list[float]:
    """Outer edges of the raster, ``[xmin, ymin, xmax, ymax]``; of its four corners when rotated."""
    a, b, c, d, e, f = (float(v) for v in transform)
    rows, cols = shape
    corners = [(0, 0), (0, cols), (rows, 0), (rows, cols)]
    xs = [a * col + b * row + c for row, col in corners]
    ys = [d * col + e * row + f for row, col in corners]
    return [min(xs), min(ys), max(xs), max(ys)]


def _code(crs: CRS) -> str | None:
    """``"EPSG:32633"``, when the registry's entry is this very CRS."""
    authority = crs.to_authority(min_confidence=100)
    if authority is None:
        return None
    same = CRS.from_authority(*authority).equals(crs, ignore_axis_order=True)
    return ":".join(authority) if same else None


@functools.lru_cache(maxsize=64)
def _crs(text: str | None) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise OptionError(f"the CRS of the output is not understood by PROJ: {error}") from error
