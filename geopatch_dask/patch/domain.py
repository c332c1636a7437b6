"""What a field lives on: named axes, their lengths and labels, and where they are on Earth.

A :class:`GridDomain` is a product of labelled axes (a climate cube).  A :class:`RasterDomain` is a
grid whose last two axes, ``y`` and ``x``, are spaced by an affine transform.  Both are small,
immutable and picklable; neither knows how the data is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boxes import Box

__all__ = ["Affine6", "Coordinate", "GridDomain", "RasterDomain"]

#: ``(a, b, c, d, e, f)`` in rasterio's order: ``x = a col + b row + c``, ``y = d col + e row + f``,
#: of the top-left *corner* of cell (row, col), in units of the CRS.
Affine6 = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, eq=False)
class Coordinate:
    """The labels along one axis.

    Parameters
    ----------
    values : ndarray, shape (n,), any dtype (numbers, datetime64, str)
    attrs : mapping of str to JSON-like
        CF attributes such as ``units`` and ``standard_name``.
    """

    values: npt.NDArray[Any]
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GridDomain:
    """A product of named axes.

    Parameters
    ----------
    dims : tuple of str
        Axis names, slowest first.
    shape : tuple of int, cells
    coords : mapping of str to Coordinate
        Labels of those axes that have any, keyed by axis name.
    crs : str or None
        WKT2 of the horizontal coordinate reference system.

    Raises
    ------
    OptionError
        When names, lengths and labels disagree.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    crs: str | None = None

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.shape) or len(set(self.dims)) != len(self.dims):
            raise OptionError(f"dims {self.dims} do not name the axes of shape {self.shape}")
        for name, coordinate in self.coords.items():
            if name not in self.dims:
                raise OptionError(f"coordinate {name!r} labels no axis of {self.dims}")
            n = self.shape[self.dims.index(name)]
            if coordinate.values.shape != (n,):
                raise OptionError(
                    f"coordinate {name!r} has shape {coordinate.values.shape}, its axis {n} cells"
                )

    @property
    def box(self) -> Box:
        """The box of all cells."""
        return Box.of_shape(self.shape)

    def size(self, dim: str) -> int:
        """Cells along one axis."""
        return self.shape[self.axis(dim)]

    def axis(self, dim: str) -> int:
        """Position of an axis; :class:`OptionError` names the axes there are."""
        try:
            return self.dims.index(dim)
        except ValueError:
            raise OptionError(f"no axis {dim!r}; the field has {', '.join(self.dims)}") from None

    def transform_at(self, origin: Mapping[str, int]) -> Affine6 | None:
        """The affine transform of a window whose first cell is ``origin``; None on plain grids."""
        del origin
        return None

    def labels(self, dim: str, start: int, stop: int) -> npt.NDArray[Any] | None:
        """Labels of cells ``start <= i < stop``, or None; cells outside the axis extrapolate.

        Numeric labels are extended with the spacing at the edge, so that a padded patch has
        coordinates too; labels that cannot be extended (dates are, names are not) give None.
        """
        coordinate = self.coords.get(dim)
        if coordinate is None:
            return None
        return _extended(coordinate.values, start, stop)


@dataclass(frozen=True, eq=False)
class RasterDomain(GridDomain):
    """A grid whose axes ``y`` and ``x`` (the last two) follow an affine transform.

    Parameters
    ----------
    transform : Affine6 or None
        Of the whole raster; None for an image that is nowhere on Earth.
    """

    transform: Affine6 | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dims) < 2:
            raise OptionError(f"a raster needs two axes, got {self.dims}")

    def transform_at(self, origin: Mapping[str, int]) -> Affine6 | None:
        """The transform of the window whose first cell is ``origin`` (axis name -> index)."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        y, x = self.dims[-2:]
        row, col = origin.get(y, 0), origin.get(x, 0)
        return (a, b, a * col + b * row + c, d, e, d * col + e * row + f)

    def labels(self, dim: str, start: int, stop: int) -> npt.NDArray[Any] | None:
        """Labels of an axis; for y and x the float64 centres of the cells, from the transform.

        A rotated raster has no 1-D labels: None.
        """
        if dim not in self.dims[-2:] or self.transform is None or dim in self.coords:
            return super().labels(dim, start, stop)
        a, b, c, d, e, f = self.transform
        if b != 0 or d != 0:
            return None
        centre = np.arange(start, stop, dtype=np.float64) + 0.5
        return c + a * centre if dim == self.dims[-1] else f + e * centre


def _extended(values: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any] | None:
    """``values[start:stop]`` where indices outside the array continue its edge spacing."""
    n = len(values)
    inside = values[max(start, 0) : max(min(stop, n), 0)]
    before = np.arange(start, min(stop, 0))
    after = np.arange(max(start, n), stop) - (n - 1)
    if not len(before) and not len(after):
        return inside
    if n < 2 or values.dtype.kind not in "iufM":
        return None
    parts: Sequence[npt.NDArray[Any]] = (
        values[0] + (values[1] - values[0]) * before,
        inside,
        values[-1] + (values[-1] - values[-2]) * after,
    )
    return np.concatenate(parts)
