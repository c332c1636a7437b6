"""Arrays in memory as fields: for trials, tests, and data that came from somewhere else.

An :class:`ArrayField` *is* its data: it pickles with it, and has no configuration that could be
written into a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.fields.base import Field, check_box, promoted
from geopatch_dask.fields.cf import row_blocks
from geopatch_dask.fields.georef import affine6, crs_wkt
from geopatch_dask.fields.masks import Mask, blank, blank_nodata, check_numeric, nodata_of
from geopatch_dask.fields.source import sha256_slabs
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Coordinate, GridDomain, RasterDomain

__all__ = ["ArrayField"]


class ArrayField(Field):
    """An array in memory.

    Parameters
    ----------
    array : array-like of numbers, shape (..., y, x)
        Anything :func:`numpy.asarray` takes; a memory map stays one.  Cells that a masked array
        masks are missing.
    dims : sequence of str, optional
        Axis names.  Default: ``y, x`` for the last two, before them ``band`` (one axis) or
        ``dim_0, dim_1, ...``.
    transform : affine.Affine or 6 floats in rasterio's order, optional
        Of the last two axes, in units of the CRS.
    crs : anything pyproj or rasterio takes, optional
        With a transform or a CRS the domain is a
        :class:`~geopatch_dask.patch.domain.RasterDomain`.
    coords : mapping of str to array-like or Coordinate, optional
        Labels of axes, shape (n,) each.
    nodata : number, optional
        Cells that equal it are missing (integers are promoted).
    mask : Field, path, or None
        A field on the same grid: cells where it is 0, False or NaN are missing too.

    Raises
    ------
    OptionError
        When the array holds no numbers or no cells, or the arguments do not fit it.

    Notes
    -----
    The array is not copied: changing it afterwards changes the field.  :meth:`read` always
    returns a copy.
    """

    def __init__(
        self,
        array: Any,
        *,
        dims: Sequence[str] | None = None,
        transform: Any = None,
        crs: Any = None,
        coords: Mapping[str, Any] | None = None,
        nodata: float | int | None = None,
        mask: Any = None,
    ) -> None:
        self._missing = None if np.ma.getmask(array) is np.ma.nomask else np.ma.getmaskarray(array)
        self._values = np.asarray(np.ma.getdata(array))
        self._native = check_numeric(self._values.dtype, "the array")
        self._nodata = self._checked_nodata(nodata)
        self._domain = self._place(dims, affine6(transform), crs_wkt(crs), coords or {})
        self._mask = Mask.of(mask)
        if self._mask is not None:
            self._mask.check(self._domain, self.label)

    def _place(
        self,
        dims: Sequence[str] | None,
        transform: tuple[float, ...] | None,
        crs: str | None,
        coords: Mapping[str, Any],
    ) -> GridDomain:
        shape = self._values.shape
        if 0 in shape or not shape:
            raise OptionError(f"an array of shape {shape} has no cells to patch")
        names = _default_dims(len(shape)) if dims is None else tuple(str(d) for d in dims)
        labels = {
            str(dim): c if isinstance(c, Coordinate) else Coordinate(np.asarray(c))
            for dim, c in coords.items()
        }
        if transform is None and crs is None:
            return GridDomain(names, shape, labels)
        return RasterDomain(names, shape, labels, crs, affine6(transform))

    def _checked_nodata(self, nodata: Any) -> float | int | None:
        found = nodata_of(nodata, self._native)
        if found is None and nodata is not None and nodata == nodata:
            raise OptionError(f"nodata {nodata} is no value of {self._native}; leave it out")
        return found

    @property
    def domain(self) -> GridDomain:
        return self._domain

    @property
    def dtype(self) -> np.dtype[Any]:
        return promoted(self._native) if self.may_miss else self._native

    @property
    def secrets(self) -> Mapping[str, Any]:
        return {} if self._mask is None else self._mask.field.secrets

    @property
    def may_miss(self) -> bool:
        marks = (self._missing, self._nodata, self._mask)
        return self._native.kind in "fc" or any(mark is not None for mark in marks)

    @property
    def blocks(self) -> tuple[int, ...]:
        return row_blocks(self._values.shape)

    @property
    def nodata(self) -> float | int | None:
        return self._nodata

    @property
    def label(self) -> str:
        shape = " x ".join(map(str, self._values.shape))
        return f"ArrayField({shape} {self._native})"

    def read(self, box: Box) -> npt.NDArray[Any]:
        check_box(box, self._values.shape)
        if not box:
            return np.empty(box.shape, self.dtype)
        cut = self._values[box.slices()]
        values = np.array(cut, dtype=self.dtype, order="C", copy=True)
        if self._nodata is not None:
            if self._native.kind in "iu":  # before float64 rounds 64-bit integers
                blank(values, cut == self._nodata)
            else:
                blank_nodata(values, self._nodata)
        if self._missing is not None:
            blank(values, self._missing[box.slices()])
        if self._mask is not None:
            self._mask.apply(values, box)
        return values

    @cached_property
    def _sha256(self) -> str:
        rows = self._values.shape[0]
        row_bytes = self._values.nbytes // rows
        data = sha256_slabs(lambda a, b: self._values[a:b].astype(self._native), rows, row_bytes)
        if self._missing is None:
            return data
        missing = self._missing
        return f"{data}+{sha256_slabs(lambda a, b: missing[a:b], rows, missing.nbytes // rows)}"

    def identity(self) -> dict[str, Any]:
        """SHA-256 of the values (computed once), shape, dtype, nodata, mask."""
        return {
            "kind": self.kind,
            "sha256": self._sha256,
            "shape": list(self._values.shape),
            "dtype": self._native.name,
            "nodata": self._nodata,
            "mask": None if self._mask is None else self._mask.identity(),
        }

    def get_config(self) -> dict[str, Any]:
        """Never returns.

        Raises
        ------
        OptionError
            Always: data in memory has no configuration.
        """
        raise OptionError(
            f"{self.label}: data in memory has no configuration; save it to a file and use "
            "RasterField or XarrayField, or pass field= again"
        )


def _default_dims(n: int) -> tuple[str, ...]:
    if n == 3:
        return ("band", "y", "x")
    return (*(f"dim_{i}" for i in range(n - 2)), "y", "x")[-n:]
