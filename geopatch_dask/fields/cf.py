"""From a DataArray to a domain: labels, CF attributes, grid mapping, transform.

A cube becomes a :class:`~geopatch_dask.patch.domain.RasterDomain` only when its *last two* axes are
evenly spaced map axes and it says which CRS (or ``GeoTransform``) they are in; a latitude-longitude
cube that names none stays a :class:`~geopatch_dask.patch.domain.GridDomain`.  Either way the labels
are the source's own, to the bit.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj

from geopatch_dask.errors import OptionError
from geopatch_dask.fields.georef import affine6, crs_wkt, labels_transform
from geopatch_dask.patch.domain import Affine6, Coordinate, GridDomain, RasterDomain

if TYPE_CHECKING:  # xarray brings pandas: half a second and 50 MB that rasters do without
    import xarray as xr

__all__ = ["block_shape", "candidates", "domain_of", "fill_values", "row_blocks"]

#: How much of a cell a stored GeoTransform may be off the labels before it counts as stale: slicing
#: a DataArray moves its labels and leaves the attribute behind.
_STALE = 0.1

_NAMES = {
    "x": ({"x", "lon", "longitude", "easting"}, {"projection_x_coordinate", "longitude"}),
    "y": ({"y", "lat", "latitude", "northing"}, {"projection_y_coordinate", "latitude"}),
}


def domain_of(array: xr.DataArray, crs: str | None, mapping: xr.Variable | None) -> GridDomain:
    """The domain of a DataArray.

    Parameters
    ----------
    array : DataArray
    crs : str or None
        WKT2 that overrides the array's own.
    mapping : Variable or None
        Its grid mapping variable.
    """
    dims = tuple(str(dim) for dim in array.dims)
    found = ((dim, _coordinate(array, dim)) for dim in dims)
    coords = {dim: c for dim, c in found if c is not None}
    attrs = {} if mapping is None else mapping.attrs
    wkt = crs or _mapping_crs(attrs)
    stored = _geotransform(attrs)
    if (wkt or stored) and len(dims) >= 2 and _map_axes_last(array):
        transform = _transform(coords, dims, stored, array.shape[-2:])
        if transform is not None:
            return RasterDomain(dims, array.shape, coords, wkt, transform)
    return GridDomain(dims, array.shape, coords, wkt)


def _transform(
    coords: dict[str, Coordinate],
    dims: tuple[str, ...],
    stored: Affine6 | None,
    shape: tuple[int, ...],
) -> Affine6 | None:
    """From the labels; the stored one where there are none, or where it says the same exactly."""
    y, x = coords.get(dims[-2]), coords.get(dims[-1])
    if stored is None:
        return None if y is None or x is None else labels_transform(y.values, x.values)
    a, b, c, d, e, f = stored
    if b or d:  # a rotated raster: its 1-D labels, if any, say nothing
        return stored
    for labels, first, step, n in ((y, f, e, shape[0]), (x, c, a, shape[1])):
        if labels is None:
            continue
        if labels.values.dtype.kind not in "iuf":
            return None
        ends = np.array([labels.values[0], labels.values[-1]], dtype=np.float64)
        centres = first + step * np.array([0.5, n - 0.5])
        if not np.all(np.abs(ends - centres) <= _STALE * abs(step)):
            return None if y is None or x is None else labels_transform(y.values, x.values)
    return stored


def _map_axes_last(array: xr.DataArray) -> bool:
    """Whether nothing says that the map axes are others than the last two, y before x."""
    kinds = [_axis_kind(array, str(dim)) for dim in array.dims]
    return not any(kinds[:-2]) and kinds[-2] != "x" and kinds[-1] != "y"


def _axis_kind(array: xr.DataArray, dim: str) -> str | None:
    attrs = array.coords[dim].attrs if dim in array.coords else {}
    for kind, (names, standard) in _NAMES.items():
        if attrs.get("axis") == kind.upper() or attrs.get("standard_name") in standard:
            return kind
        if dim.lower() in names:
            return kind
    return None


def _coordinate(array: xr.DataArray, dim: str) -> Coordinate | None:
    """Labels of an axis as plain numbers, dates or text; None where it has none."""
    if dim not in array.coords:
        return None
    variable = array.coords[dim].variable
    if variable.dtype.kind == "O":
        plain = _plain_labels(variable)
        if plain is None:
            return None
        variable = plain
    values = np.array(variable.values)
    native = values.dtype.newbyteorder("=") if values.dtype.kind in "iufc" else values.dtype
    return Coordinate(values.astype(native, copy=False), _plain(variable.attrs))


def _plain_labels(variable: xr.Variable) -> xr.Variable | None:
    """Text as fixed-width text, dates of other calendars as CF numbers with units and calendar."""
    import xarray as xr

    if all(isinstance(value, str) for value in variable.values):
        return xr.Variable(variable.dims, variable.values.astype(str), variable.attrs)
    with contextlib.suppress(Exception):  # whatever else is in there, it labels nothing
        encoded = xr.conventions.encode_cf_variable(variable)
        if encoded.dtype.kind in "iuf":
            return encoded
    return None


def _plain(attrs: Any) -> dict[str, Any]:
    """Attributes as JSON; what JSON cannot say becomes text."""
    found: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        plain = value is None or isinstance(value, str | bool | int | float | list | dict)
        found[str(name)] = value if plain else str(value)
    return found


def _mapping_crs(attrs: dict[str, Any]) -> str | None:
    for name in ("crs_wkt", "spatial_ref"):
        if attrs.get(name):
            return crs_wkt(str(attrs[name]))
    if attrs.get("grid_mapping_name"):
        try:
            return crs_wkt(pyproj.CRS.from_cf(attrs))
        except (pyproj.exceptions.CRSError, KeyError) as error:
            raise OptionError(
                f"grid mapping {attrs['grid_mapping_name']!r} is incomplete ({error}); give crs="
            ) from None
    return None


def _geotransform(attrs: dict[str, Any]) -> Affine6 | None:
    """The ``GeoTransform`` attribute, in GDAL's order, if it holds six usable numbers."""
    text = attrs.get("GeoTransform")
    if text is None:
        return None
    with contextlib.suppress(ValueError, TypeError):  # OptionError is a ValueError
        parts = text.split() if isinstance(text, str) else list(text)
        c, a, b, f, d, e = (float(part) for part in parts)
        return affine6((a, b, c, d, e, f))
    return None


def fill_values(array: xr.DataArray) -> tuple[float | int, ...]:
    """Markers of missing cells that xarray has *not* turned into NaN.

    Decoding moves ``_FillValue`` and ``missing_value`` from the attributes into the encoding; one
    that is still an attribute (``mask_and_scale=False``, rioxarray's default) still marks cells.
    """
    found: list[float | int] = []
    for name in ("_FillValue", "missing_value"):
        value = array.attrs.get(name)
        if value is None:
            continue
        for item in np.atleast_1d(np.asarray(value)).ravel():
            if item.dtype.kind in "iuf" and item == item and item.item() not in found:
                found.append(item.item())
    return tuple(found)


def block_shape(array: xr.DataArray) -> tuple[int, ...]:
    """Chunk shape of the source, cells; one row of the last axis where it is not chunked.

    Contiguous data has no block that must be read as a whole, and a plan that reads by blocks must
    not be told to read everything.
    """
    encoding = array.encoding
    preferred = encoding.get("preferred_chunks") or {}
    sizes = encoding.get("chunksizes") or encoding.get("chunks")
    if not preferred and sizes and len(sizes) == array.ndim:
        preferred = dict(zip(array.dims, sizes, strict=True))
    chunks = {dim: max(sizes) for dim, sizes in array.chunksizes.items()} or preferred
    if not chunks:
        return row_blocks(array.shape)
    return tuple(
        min(int(np.max(chunks.get(dim, n))), n)
        for dim, n in zip(array.dims, array.shape, strict=True)
    )


def row_blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The block shape of contiguous data.

    >>> row_blocks((3, 100, 200))
    (1, 1, 200)
    """
    return (1,) * (len(shape) - 1) + shape[-1:]


def candidates(dataset: xr.Dataset) -> list[str]:
    """Variables that can be fields: numbers on at least one axis, and nobody's bounds."""
    bounds = {v.attrs.get("bounds") for v in dataset.variables.values()} | {
        v.encoding.get("bounds") for v in dataset.variables.values()
    }
    return sorted(  # a Zarr group lists its arrays in no fixed order
        str(name)
        for name, v in dataset.data_vars.items()
        if v.ndim and v.dtype.kind in "biufc" and name not in bounds
    )
