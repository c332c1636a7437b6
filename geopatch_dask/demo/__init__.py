"""A scene, an operator and a picture: what ``geopatch demo`` runs.

The operators are ordinary functions of arrays, importable on any worker, and useful on other data
too: ``geopatch_dask.demo:ndvi``, ``geopatch_dask.demo:identity``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["identity", "job_text", "ndvi"]

#: Name of the array in the target.
NAME = "ndvi"
#: Cells per side of a patch, and between patches.
PATCH, STEP = 256, 192


def identity(patch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The patch as it is: cuts, blends and rewrites a field.

    Parameters
    ----------
    patch : ndarray of any shape and dtype

    Returns
    -------
    ndarray
        The same.
    """
    return patch


def ndvi(
    patch: npt.NDArray[Any], red: int = 0, nir: int = -1, radius: int = 3
) -> npt.NDArray[np.float32]:
    """The vegetation index of smoothed bands: ``(nir - red) / (nir + red)``.

    Both bands are smoothed by a binomial filter, so every cell depends on its neighbours and what a
    patch says near its border is worse than what it says in the middle: the case that overlapping,
    weighted patches are for.  Missing neighbours do not count; missing cells stay missing.

    Parameters
    ----------
    patch : ndarray, shape (..., band, y, x)
        NaN where missing.
    red, nir : int
        Positions of the bands, from 0; negative ones count from the end.
    radius : int, cells
        Half-width of the filter; 0 does not smooth.

    Returns
    -------
    ndarray of float32, shape (..., y, x)
        -1 to 1; NaN where the cell itself is missing or both bands are zero.
    """
    bands = [patch[..., band, :, :].astype(np.float32) for band in (red, nir)]
    valid = ~np.isnan(bands[0] + bands[1])
    # The number of neighbours that count is the same for both bands and cancels in the ratio.
    low, high = (_smooth(np.where(valid, band, np.float32(0)), radius) for band in bands)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = (high - low) / (high + low)
    index[~valid] = np.nan
    return np.asarray(index, np.float32)


def _smooth(values: npt.NDArray[np.float32], radius: int) -> npt.NDArray[np.float32]:
    """``radius`` passes of (1 2 1) / 4 along y and x; zeros outside."""
    for _ in range(radius):
        for axis in (-2, -1):
            lined = np.moveaxis(values, axis, 0)
            passed = lined * np.float32(0.5)
            passed[1:] += lined[:-1] * np.float32(0.25)
            passed[:-1] += lined[1:] * np.float32(0.25)
            values = np.moveaxis(passed, 0, axis)
    return values


def job_text(size: int) -> str:
    """The job file of the demo.

    Parameters
    ----------
    size : int, cells per side
        Of the scene; decides how large super-tiles are (four along each axis, at least two).
    """
    chunk = min(512, size // 4)
    return f"""\
# What `geopatch demo` ran.  Paths are relative to this file.  Change something, and:
#   geopatch plan demo.toml        what would happen
#   geopatch run demo.toml         do it; run it again to continue
#   geopatch status demo.toml      how far it is

[field]
path = "scene.tif"                            # nodata 0 is missing: never read as a value

[patch]
size = [{PATCH}, {PATCH}]
step = [{STEP}, {STEP}]
window = "hann"                               # or {{ class = "Tukey", alpha = 0.3 }}
aggregation = "overlap-add"

[operator]
function = "geopatch_dask.demo:ndvi"          # "module:name"; modules beside this file are found
options = {{ red = 0, nir = 2, radius = 3 }}

[output]
target = "{NAME}.zarr"
name = "{NAME}"
chunks = [{chunk}, {chunk}]
attrs = {{ long_name = "vegetation index of smoothed bands", units = "1" }}

[run]
outer = [{2 * chunk}, {2 * chunk}]                          # super-tiles; "auto" finds the cheapest
"""
