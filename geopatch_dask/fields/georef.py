"""Coordinate reference systems and affine transforms, in one spelling each.

A CRS is WKT2 text, normalised once, so that the same CRS given as ``"EPSG:32633"`` or read from a
file compares and prints alike.  A transform is :data:`~geopatch_dask.patch.domain.Affine6`, of cell
*corners*; labels are cell *centres*::

    corner c           a = step
    |                  |-------|
    +-------+-------+-------+        centre(i) = c + a (i + 1/2)
    |   0   |   1   |   2   |
    +-------+-------+-------+
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio.crs
import rasterio.errors

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.domain import Affine6, GridDomain, RasterDomain

__all__ = ["affine6", "crs_wkt", "grid_difference", "labels_transform", "spacing"]

#: Labels off a regular spacing by less than this part of a cell count as regular: float32 degrees
#: (1.5e-5 at 180) on a 0.01 degree grid are 0.0015 cells off.
_REGULAR = 1e-2

#: Two grids are the same when no cell is off by more than this part of a cell; float32 labels
#: of one against the float64 transform of the other stay within it.
_SAME = _REGULAR


def crs_wkt(crs: Any) -> str | None:
    """A CRS as WKT2 (2019).

    Parameters
    ----------
    crs : None or anything that pyproj or rasterio takes
        ``"EPSG:32633"``, an EPSG number, WKT, PROJ text, a CRS object.

    Raises
    ------
    OptionError
        When it names no known CRS.

    Examples
    --------
    >>> crs_wkt("EPSG:32633")[:31]
    'PROJCRS["WGS 84 / UTM zone 33N"'
    """
    if crs is None:
        return None
    if isinstance(crs, rasterio.crs.CRS):
        if not crs:
            return None
        try:
            crs = crs.to_wkt(version="WKT2_2019")  # the default, WKT1, loses what it cannot say
        except rasterio.errors.CRSError:
            crs = crs.to_wkt()
    try:
        return str(pyproj.CRS.from_user_input(crs).to_wkt())
    except pyproj.exceptions.CRSError as error:
        text = " ".join(str(error).split())[:200]
        raise OptionError(
            f"no such coordinate reference system: {text}; give an EPSG code or WKT"
        ) from None


def affine6(transform: Any) -> Affine6 | None:
    """An affine transform as six floats in rasterio's order.

    Parameters
    ----------
    transform : None, affine.Affine, or 6 (or 9) numbers ``a, b, c, d, e, f``

    Raises
    ------
    OptionError
        When it is not that, not finite, in GDAL's order, or maps all cells to one line.

    Examples
    --------
    >>> affine6([10, 0, 5e5, 0, -10, 5e6])
    (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    """
    if transform is None:
        return None
    try:
        numbers = tuple(float(v) for v in transform)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in (6, 9) or not all(map(math.isfinite, numbers)):
        raise OptionError(
            f"a transform is six finite numbers a, b, c, d, e, f, not {str(transform)[:80]!r}"
        )
    a, b, c, d, e, f = numbers[:6]
    gdal_order = c == e == 0 and b > 0 > f  # rasterio's own test for it
    if a * e - b * d == 0 or gdal_order:
        raise OptionError(
            f"transform {numbers[:6]} has cells of no area or GDAL's order c, a, b, f, d, e; "
            "give it in rasterio's: a, b, c, d, e, f"
        )
    return (a, b, c, d, e, f)


def spacing(labels: npt.NDArray[Any]) -> tuple[float, float] | None:
    """First label and step of regularly spaced numbers, else None.

    Parameters
    ----------
    labels : ndarray, shape (n,)

    Examples
    --------
    >>> spacing(np.array([3.0, 2.5, 2.0])), spacing(np.array([1.0, 2.0, 4.0]))
    ((3.0, -0.5), None)
    """
    n = len(labels)
    if n < 2 or labels.dtype.kind not in "iuf":
        return None
    centres = labels.astype(np.float64)
    step = (centres[-1] - centres[0]) / (n - 1)
    fitted = centres[0] + step * np.arange(n)
    # written so that a NaN label fails it
    if not (step != 0 and np.max(np.abs(centres - fitted)) <= _REGULAR * abs(step)):
        return None
    return float(centres[0]), float(step)


def labels_transform(y: npt.NDArray[Any], x: npt.NDArray[Any]) -> Affine6 | None:
    """The transform of cells with these centres; None when they are not evenly spaced.

    >>> labels_transform(np.array([3.5, 2.5]), np.array([10.0, 12.0, 14.0]))
    (2.0, 0.0, 9.0, 0.0, -1.0, 4.0)
    """
    rows, columns = spacing(y), spacing(x)
    if rows is None or columns is None:
        return None
    (y0, dy), (x0, dx) = rows, columns
    return (dx, 0.0, x0 - dx / 2, 0.0, dy, y0 - dy / 2)


def grid_difference(one: GridDomain, other: GridDomain) -> str | None:
    """How the trailing axes of ``one`` differ from all axes of ``other``, with numbers; or None.

    Only what both know is compared: an unreferenced array of the right shape fits any grid.
    """
    n = len(other.shape)
    if n > len(one.shape) or one.shape[-n:] != other.shape:
        return f"shape {other.shape} against {one.shape[-n:]}"
    if one.crs and other.crs and not _same_crs(one.crs, other.crs):
        return f"CRS {_crs_name(other.crs)} against {_crs_name(one.crs)}"
    mine, theirs = _transform(one), _transform(other)
    if mine is not None and theirs is not None:
        worst = _corner_offset(mine, theirs, one.shape[-2], one.shape[-1])
        if not worst <= _SAME:
            return f"transform {theirs} against {mine}, up to {worst:.3g} cells apart"
        return None
    return next(_label_differences(one, other), None)


def _label_differences(one: GridDomain, other: GridDomain) -> Iterator[str]:
    for dim, theirs_dim in zip(one.dims[-len(other.dims) :], other.dims, strict=True):
        if theirs_dim == "band":  # bands are numbered by their file; they match by position
            continue
        n = one.size(dim)
        mine, theirs = one.labels(dim, 0, n), other.labels(theirs_dim, 0, n)
        if mine is None or theirs is None:
            continue
        even = spacing(mine)
        if even is not None and theirs.dtype.kind in "iuf":
            gap = np.abs(mine.astype(np.float64) - theirs.astype(np.float64)).max() / abs(even[1])
            same = bool(gap <= _SAME)
        else:
            same = np.array_equal(mine, theirs)
        if not same:
            yield (
                f"{theirs_dim} from {theirs[0]} to {theirs[-1]} against "
                f"{dim} from {mine[0]} to {mine[-1]}"
            )


def _transform(domain: GridDomain) -> Affine6 | None:
    return domain.transform if isinstance(domain, RasterDomain) else None


def _corner_offset(mine: Affine6, theirs: Affine6, rows: int, columns: int) -> float:
    """The largest distance of the four corners, in cells."""
    a, b, _, d, e, _ = mine
    cell = math.sqrt(abs(a * e - b * d))
    difference = [p - q for p, q in zip(theirs, mine, strict=True)]
    return (
        max(
            math.hypot(
                difference[0] * x + difference[1] * y + difference[2],
                difference[3] * x + difference[4] * y + difference[5],
            )
            for x in (0, columns)
            for y in (0, rows)
        )
        / cell
    )


def _same_crs(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = pyproj.CRS.from_wkt(one), pyproj.CRS.from_wkt(other)
    return bool(first.equals(second, ignore_axis_order=True))


def _crs_name(wkt: str) -> str:
    return str(pyproj.CRS.from_wkt(wkt).name)
