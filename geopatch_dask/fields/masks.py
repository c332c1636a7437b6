"""Missing cells become NaN: the one place where values are blanked.

Whatever marks a cell as missing (a nodata value, a mask band, another field), the reader turns it
into :func:`blank`.  ``values`` is always an array that the reader made itself, so blanking is in
place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.fields.base import Field, field_from_config
from geopatch_dask.fields.georef import grid_difference
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain

__all__ = ["Mask", "blank", "blank_nodata", "check_numeric", "nodata_of"]


class Mask:
    """A field whose zero, False or NaN cells are missing in another field on the same grid.

    Parameters
    ----------
    field : Field
        Over the trailing axes of the field it masks (or all of them); leading axes share it.
    """

    def __init__(self, field: Field) -> None:
        self.field = field

    @classmethod
    def of(cls, mask: Any) -> Mask | None:
        """The mask that a ``mask=`` argument describes.

        Parameters
        ----------
        mask : None, Field, path or URL of a raster, or the configuration of a field

        Raises
        ------
        OptionError
            When it is none of these.
        """
        if mask is None:
            return None
        if isinstance(mask, Field):
            return cls(mask)
        if isinstance(mask, str | os.PathLike):
            return cls(field_from_config({"kind": "RasterField", "path": os.fspath(mask)}))
        if isinstance(mask, Mapping):
            return cls(field_from_config(mask))
        raise OptionError(
            f"mask= takes a Field or the path of a raster, not {type(mask).__name__}; "
            "wrap an array in ArrayField"
        )

    def check(self, domain: GridDomain, label: str) -> None:
        """Refuse a mask on another grid than ``domain``, that of the field called ``label``.

        Raises
        ------
        OptionError
            With the numbers that differ.
        """
        difference = grid_difference(domain, self.field.domain)
        if difference:
            self._check_leading(domain, label)
            raise OptionError(
                f"mask {self.field.label} is not on the grid of {label}: {difference}; "
                "resample it first (rasterio.warp.reproject, or reproject_match of rioxarray)"
            )

    def _check_leading(self, domain: GridDomain, label: str) -> None:
        """Refuse a mask whose cells may fit, but that has another number of bands (times, ...).

        Raises
        ------
        OptionError
            With the number, and how to choose one of them.
        """
        ours, theirs = domain.shape, self.field.domain.shape
        n = len(theirs) - 2
        if n < 1 or ours[-2:] != theirs[-2:] or ours[:-2][-n:] == theirs[:-2]:
            return
        axes = list(zip(self.field.domain.dims, theirs, strict=True))[:n]
        many = " x ".join(f"{size} {_plural(dim)}" for dim, size in axes)
        has = math.prod(ours[:-2])
        raise OptionError(
            f"mask {self.field.label} has {many}, {label} has {has}: a mask is one layer for all "
            "of them, or one for each; choose a band, "
            'as in mask=gp.RasterField("mask.tif", bands=1), or in a job file '
            'mask = { path = "mask.tif", bands = 1 }'
        )

    def apply(self, values: npt.NDArray[Any], box: Box) -> None:
        """Blank the missing cells of ``values``, the cells of ``box``, in place."""
        n = len(self.field.domain.shape)
        cells = self.field.read(Box(box.start[-n:], box.stop[-n:]))
        missing = cells == 0
        if cells.dtype.kind in "fc":
            missing |= np.isnan(cells)
        blank(values, missing)

    def identity(self) -> dict[str, Any]:
        """What decides the mask, as JSON."""
        return self.field.identity()

    def get_config(self) -> dict[str, Any]:
        """The configuration that :meth:`of` takes."""
        return {"kind": self.field.kind, **self.field.get_config()}


def _plural(dim: str) -> str:
    return "bands" if dim == "band" else f"entries of {dim!r}"


def blank(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> None:
    """NaN where ``missing`` (broadcast over leading axes), in place."""
    np.copyto(values, np.nan, where=missing)


def blank_nodata(values: npt.NDArray[Any], nodata: float | int | None) -> None:
    """NaN where float ``values`` equal ``nodata``, in place; None and NaN need nothing.

    The comparison happens in the dtype of ``values``: -3.4028234663852886e+38, which no float32
    is, means the float32 nearest to it.
    """
    if nodata is None or nodata != nodata:
        return
    with np.errstate(over="ignore"):
        marker = values.dtype.type(nodata)
    if not np.isinf(marker) or np.isinf(nodata):
        blank(values, values == marker)


def nodata_of(value: Any, dtype: np.dtype[Any]) -> float | int | None:
    """A nodata value as a Python number that cells of ``dtype`` can have; None when none can.

    >>> nodata_of(0.0, np.dtype("uint8")), nodata_of(-9999, np.dtype("uint8"))
    (0, None)
    """
    if value is None or value != value:
        return None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        possible = float(value).is_integer() and limits.min <= int(value) <= limits.max
        return int(value) if possible else None
    return float(value)


def check_numeric(dtype: np.dtype[Any], what: str) -> np.dtype[Any]:
    """``dtype`` in native byte order.

    Raises
    ------
    OptionError
        For dates, text and objects, which no operator can be given.
    """
    if dtype.kind not in "biufc":
        raise OptionError(f"{what} is of dtype {dtype}; fields hold numbers, so convert it first")
    return dtype.newbyteorder("=")
