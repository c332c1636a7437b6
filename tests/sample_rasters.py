"""Large rasters for tests, made row by row: a fractal terrain that compresses as real ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin

STRIP = 512


class Fractal:
    """Sums of random grids, each four times as fine as the one before, bilinearly upsampled."""

    def __init__(self, n: int, seed: int = 7) -> None:
        rng = np.random.default_rng(seed)
        self.n = n
        self.octaves: list[tuple[float, npt.NDArray[np.float32]]] = []
        size = n // 4
        while size >= 1:
            cells = n // size + 2
            # beyond this the finest grids would be as large as the raster: draw them as they go
            grid = rng.standard_normal((min(cells, 4096), min(cells, 4096))).astype(np.float32)
            self.octaves.append((float(size) ** 0.8, grid))
            size //= 4

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Heights of some rows, in steps of a tenth."""
        out = np.zeros((stop - start, self.n), np.float32)
        for k, (amplitude, grid) in enumerate(self.octaves):
            cells = self.n // max(self.n // 4 ** (k + 1), 1)
            x = np.linspace(0, cells, self.n, dtype=np.float32)
            y = x[start:stop]
            columns, below = x.astype(int), y.astype(int)
            fx, fy = x - columns, (y - below)[:, None]
            m = len(grid)
            left, right = columns % m, (columns + 1) % m
            upper, lower = grid[below % m], grid[(below + 1) % m]
            top = upper[:, left] * (1 - fx) + upper[:, right] * fx
            bottom = lower[:, left] * (1 - fx) + lower[:, right] * fx
            out += np.float32(amplitude) * (top * (1 - fy) + bottom * fy)
        return np.round(out / np.float32(self.octaves[0][0] / 100)) / np.float32(10)


def write_terrain(path: Path, n: int, holes: bool = False) -> Path:
    """An ``n x n`` float32 GeoTIFF, tiled and deflated; needs memory for a strip only.

    With ``holes``, about a tenth of the cells, the valleys, are NaN.
    """
    terrain = Fractal(n)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": n,
        "width": n,
        "count": 1,
        "dtype": "float32",
        "crs": "EPSG:32633",
        "transform": from_origin(500_000, 5_000_000, 10, 10),
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "predictor": 3,
        "zlevel": 1,
        "bigtiff": "IF_SAFER",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        for start in range(0, n, STRIP):
            rows = terrain.rows(start, min(start + STRIP, n))
            if holes:
                rows[rows < -14] = np.nan
            at = rasterio.windows.Window(0, start, n, len(rows))  # type: ignore[attr-defined]
            dataset.write(rows, 1, window=at)
    return path
