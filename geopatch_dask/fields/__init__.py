"""Lazy inputs: each field is picklable configuration, opened where it is read."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from geopatch_dask.credentials import redact
from geopatch_dask.errors import OptionError
from geopatch_dask.fields.array import ArrayField
from geopatch_dask.fields.base import Field, field_from_config, promoted
from geopatch_dask.fields.header import GDAL_CACHE
from geopatch_dask.fields.raster import RasterField
from geopatch_dask.fields.source import normal_uri
from geopatch_dask.fields.stores import is_zarr
from geopatch_dask.fields.xarray import XarrayField, in_xarray

__all__ = [
    "GDAL_CACHE",
    "ArrayField",
    "Field",
    "RasterField",
    "XarrayField",
    "as_field",
    "field_from_config",
    "promoted",
]

#: Suffixes that xarray reads better than GDAL (all variables, labels, leading axes).
_XARRAY_SUFFIXES = {".nc", ".nc4", ".h5", ".grib", ".grib2"}


def as_field(obj: Any) -> Field:
    """A field from whatever describes one.

    Parameters
    ----------
    obj : Field, DataArray, ndarray, str or path-like
        A field is returned as it is.  A path or URL of a Zarr store (or ending in ``.nc``,
        ``.nc4``, ``.h5``, ``.grib``) becomes an :class:`XarrayField`, any other a
        :class:`RasterField`.

    Raises
    ------
    OptionError
        For anything else.
    """
    if isinstance(obj, Field):
        return obj
    if in_xarray(obj):
        return XarrayField(obj)
    if isinstance(obj, np.ndarray):
        return ArrayField(obj)
    if isinstance(obj, str | os.PathLike):
        uri = normal_uri(obj)
        suffix = PurePosixPath(redact(uri)).suffix.lower()
        if suffix in _XARRAY_SUFFIXES or is_zarr(uri):
            return XarrayField(uri)
        return RasterField(uri)
    raise OptionError(
        f"a field is a path, a URL, a DataArray, an array or a Field, not {type(obj).__name__}"
    )
