"""One patch: the numbers an operator sees, and where they belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Affine6, GridDomain
from geopatch_dask.patch.window import FloatArray

__all__ = ["Patch"]


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch of a field, or of what an operator made of one.

    Parameters
    ----------
    data : ndarray, shape (*riding axes, *patch axes), C-contiguous
        A real array, never a lazy reader.  Missing cells are NaN.
    anchor : tuple of int, cells
        First cell on every patch axis.
    ordinal : int
        Index in the sampler's canonical order.
    indices : Box over the patch axes
        What was read; leaves the domain under ``pad`` and ``reflect``.
    footprint : Box over the patch axes
        The output cells it writes: inside the domain, and inside the window's support.
    weights : ndarray of float64, shape ``footprint.shape``, or None
        The window on the footprint; None for aggregations that do not weigh.
    dims : tuple of str
        Names of the axes of ``data``: riding axes first, then patch axes.
    domain : GridDomain or None
        The domain of the field, for :attr:`coords` and :attr:`transform`.
    """

    data: Any
    anchor: tuple[int, ...]
    ordinal: int
    indices: Box
    footprint: Box
    weights: FloatArray | None = None
    dims: tuple[str, ...] = ()
    domain: GridDomain | None = None

    def with_data(self, data: Any) -> Patch:
        """The same place, other numbers: whatever an operator returned, be it a dict or rows.

        A masked array keeps its mask, which says where there is no answer.
        """
        kept = isinstance(data, Mapping | tuple | list | np.ma.MaskedArray | None)
        kept = kept or hasattr(data, "to_records")
        return dataclasses.replace(self, data=data if kept else np.asarray(data))

    @property
    def patch_dims(self) -> tuple[str, ...]:
        """Names of the patch axes."""
        return self.dims[len(self.dims) - self.indices.ndim :]

    @property
    def coords(self) -> dict[str, npt.NDArray[Any]]:
        """Labels of every axis that has any; y and x of a raster are cell centres, CRS units."""
        if self.domain is None:
            return {}
        limits = dict(
            zip(
                self.patch_dims,
                zip(self.indices.start, self.indices.stop, strict=True),
                strict=True,
            )
        )
        found = {
            dim: self.domain.labels(dim, *limits.get(dim, (0, self.domain.size(dim))))
            for dim in self.dims
        }
        return {dim: labels for dim, labels in found.items() if labels is not None}

    @property
    def transform(self) -> Affine6 | None:
        """Affine transform of this patch, rasterio's six numbers; None off rasters."""
        if self.domain is None:
            return None
        return self.domain.transform_at(dict(zip(self.patch_dims, self.indices.start, strict=True)))

    @property
    def crs(self) -> str | None:
        """WKT2 of the coordinate reference system."""
        return None if self.domain is None else self.domain.crs
