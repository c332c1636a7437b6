"""What the benchmarks share: a big raster, the floor, and the form of a result."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from rasterio.transform import from_origin
from rasterio.windows import Window

BLOCK = 512


def make_raster(path: Path, n: int, seed: int = 7, *, holes: bool = False) -> Path:
    """Write an ``n x n`` float32 fractal terrain, deflate with the float predictor, in strips.

    With ``holes``, an eighth of each row is missing.

    Octaves of random grids, bilinearly interpolated; one decimal, as elevations have.
    """
    rng = np.random.default_rng(seed)
    octaves = []
    spacing = n // 4
    while spacing >= 2:
        k = n // spacing + 2
        octaves.append((spacing, rng.standard_normal((k, k)).astype(np.float32)))
        spacing //= 4
    profile = {
        "driver": "GTiff", "height": n, "width": n, "count": 1, "dtype": "float32",
        "crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10), "tiled": True,
        "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "predictor": 3,
        "zlevel": 1, "bigtiff": "IF_SAFER",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for first in range(0, n, BLOCK):
            rows = np.arange(first, min(first + BLOCK, n))
            strip = np.zeros((len(rows), n), np.float32)
            for spacing, grid in octaves:
                strip += np.float32(spacing**0.8) * _bilinear(grid, rows, n, spacing)
            if holes:
                strip[:, n // 3 : n // 3 + n // 8] = np.nan
            window = Window(0, first, n, len(rows))
            target.write(np.round(strip * 10) / 10, 1, window=window)
    return path


def _bilinear(grid: np.ndarray, rows: np.ndarray, n: int, spacing: int) -> np.ndarray:
    y, x = rows / spacing, np.arange(n) / spacing
    i, j = y.astype(int), x.astype(int)
    fy, fx = (y - i).astype(np.float32)[:, None], (x - j).astype(np.float32)
    top = grid[i][:, j] * (1 - fx) + grid[i][:, j + 1] * fx
    bottom = grid[i + 1][:, j] * (1 - fx) + grid[i + 1][:, j + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


def _copy_block(job: tuple[str, str, int, int, int]) -> int:
    source, target, row, col, size = job
    with rasterio.open(source) as data:
        height, width = min(size, data.height - row), min(size, data.width - col)
        values = data.read(1, window=Window(col, row, width, height))
    array = zarr.open_array(target, mode="r+")
    array[row : row + height, col : col + width] = values * 2
    return values.size


def floor(source: Path, target: Path, size: int = 2048, chunk: int = 512) -> float:
    """Seconds in which two processes read every block and write it: no patches, no weights."""
    with rasterio.open(source) as data:
        n = data.height
    zarr.create_array(
        target, shape=(n, n), chunks=(chunk, chunk), dtype="f4", fill_value=np.nan, overwrite=True
    )
    jobs = [
        (str(source), str(target), r, c, size) for r in range(0, n, size) for c in range(0, n, size)
    ]
    began = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_copy_block, jobs))
    return time.perf_counter() - began


def result(name: str, value: float, limit: float | None, unit: str, **detail: Any) -> None:
    """Print a result in the form that ``run.py`` reads."""
    record = {"benchmark": name, "value": value, "limit": limit, "unit": unit, "detail": detail}
    print(json.dumps(record), flush=True)
