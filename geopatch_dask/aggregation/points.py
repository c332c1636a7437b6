"""Query points: which patch speaks for a station, a float, a plot.

Points are given in the labels of the patch axes, as in ``sel(method="nearest")``, and become
fractions of cells, where cell i covers [i, i + 1)::

    labels          10.0    10.5    11.0    11.5          y = 10.9
    cells         |   0   |   1   |   2   |   3   |       c = 2.3
                                      ^
    patches       [---------------]                       centre 1.0, 1.3 cells away
                          [---------------]               centre 2.0 <- the nearest

Patches overlap, so several may contain a point; the one whose centre is nearest speaks for it (in
units of the patch's size, axis by axis; of equal ones the first in the sampler's order).  A table
thus has one row per point, in the order of the points, as a list of stations wants it.  A point
that no patch contains has a row too: of nulls, so that nothing is lost without a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.anchors import IntArray
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain, RasterDomain
from geopatch_dask.patch.grid import PatchGrid

__all__ = ["NOWHERE", "PointFloats", "checked_points", "near", "nearest_patches", "to_cells"]

PointFloats = npt.NDArray[np.float64]

#: In place of an ordinal: no patch contains the point.
NOWHERE = -1


def checked_points(points: Any) -> tuple[tuple[float, ...], ...]:
    """Points as tuples of floats.

    Raises
    ------
    OptionError
        For points that are not finite numbers, equally many each.
    """
    try:
        found = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.ndim != 2 or not found.shape[1] or not np.isfinite(found).all():
        raise OptionError(
            "points must be a list of positions, one finite number per patch axis each: "
            f"[(y, x), ...]; got {str(points)[:80]}"
        )
    return tuple(tuple(point) for point in found.tolist())


def to_cells(points: Sequence[Sequence[float]], grid: PatchGrid) -> PointFloats:
    """Points in cells of the field; NaN outside.

    Parameters
    ----------
    points : sequence of positions, in the labels of the patch axes

    Returns
    -------
    ndarray of float64, shape (points, patch axes)

    Raises
    ------
    OptionError
        When points have another number of axes than patches, or the labels of an axis are no
        ordered numbers.
    """
    given = np.asarray(points, np.float64).reshape(len(points), -1)
    if given.shape[1] != len(grid.dims):
        raise OptionError(
            f"points have {given.shape[1]} numbers each, patches the axes {', '.join(grid.dims)}"
        )
    known = _by_transform(given, grid)
    columns = [
        known[axis] if axis in known else _by_labels(given[:, axis], grid.domain, dim)
        for axis, dim in enumerate(grid.dims)
    ]
    cells = np.stack(columns, axis=1)
    inside = ((cells >= 0) & (cells < grid.field_shape)).all(axis=1)
    cells[~inside] = np.nan
    return cells


def _by_transform(given: PointFloats, grid: PatchGrid) -> dict[int, PointFloats]:
    """Rows and columns of points on a raster, by patch axis."""
    domain = grid.domain
    if not isinstance(domain, RasterDomain) or domain.transform is None:
        return {}
    a, b, c, d, e, f = domain.transform
    y, x = domain.dims[-2:]
    if b == 0 and d == 0:
        return {
            axis: (given[:, axis] - origin) / step
            for dim, origin, step in ((y, f, e), (x, c, a))
            if dim not in domain.coords
            for axis in [k for k, name in enumerate(grid.dims) if name == dim]
        }
    if not {y, x} <= set(grid.dims):
        raise OptionError(f"points on a rotated raster need both {y} and {x} as patch axes")
    row, col = grid.dims.index(y), grid.dims.index(x)
    dy, dx = given[:, row] - f, given[:, col] - c
    area = a * e - b * d
    return {row: (a * dy - d * dx) / area, col: (e * dx - b * dy) / area}


def _by_labels(given: PointFloats, domain: GridDomain, dim: str) -> PointFloats:
    """Positions along an axis of labelled cells; as they are where there are no labels."""
    labels = domain.labels(dim, 0, domain.size(dim))
    if labels is None:
        return given
    steps = np.diff(labels) if labels.dtype.kind in "iuf" else np.zeros(1)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise OptionError(
            f"points need ordered numbers as labels of axis {dim!r}; its labels are {labels.dtype}"
            + (", in no order" if labels.dtype.kind in "iuf" else "")
        )
    values = labels.astype(np.float64)
    if len(values) == 1:
        return np.where(given == values[0], 0.5, np.nan)
    wide = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    index = np.arange(-1.0, len(values) + 1)
    if steps[0] < 0:
        wide, index = wide[::-1], index[::-1]
    found: PointFloats = np.interp(given, wide, index, np.nan, np.nan) + 0.5
    return found


def near(cells: PointFloats, grid: PatchGrid, box: Box) -> npt.NDArray[np.intp]:
    """Points that a patch may contain whose anchor lies in a box of output cells."""
    num, den = grid.scale.as_integer_ratio()
    keep = ~np.isnan(cells).any(axis=1)
    for axis, (start, stop, n) in enumerate(zip(box.start, box.stop, grid.shape, strict=True)):
        if start > 0:
            keep &= cells[:, axis] >= start * den // num
        if stop < n:
            keep &= cells[:, axis] < -(-stop * den // num) + grid.size[axis]
    return np.flatnonzero(keep)


def nearest_patches(cells: PointFloats, grid: PatchGrid) -> IntArray:
    """The ordinal of the patch that speaks for each point; :data:`NOWHERE` where there is none.

    Parameters
    ----------
    cells : ndarray of float64, shape (points, patch axes)
        From :func:`to_cells`.
    """
    found = np.full(len(cells), NOWHERE, np.int64)
    size = np.asarray(grid.size)
    for i in np.flatnonzero(~np.isnan(cells).any(axis=1)).tolist():
        point = cells[i]
        low = [math.floor(v - p) + 1 for v, p in zip(point, grid.size, strict=True)]
        high = [math.floor(v) + 1 for v in point]
        ordinals = grid.anchors.within(low, high)
        if not len(ordinals):
            continue
        start = grid.anchors.at(ordinals)
        stop = start + size
        if grid.geometry.boundary == "shrink":
            start, stop = np.maximum(start, 0), np.minimum(stop, grid.field_shape)
        away = ((point - (start + stop) / 2) / size) ** 2
        found[i] = ordinals[np.argmin(away.sum(axis=1))]
    return found
