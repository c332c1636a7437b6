"""The exact median of 16 layers at real size: it finishes, in the memory that was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_rasters import write_terrain

import geopatch_dask as gp
from geopatch_dask.patch.boxes import Box

SIZE, PATCH, STEP = 8192, 256, 64


def tilted(x: Any) -> Any:
    """Differs between the patches that reach a cell, so that the median has something to choose."""
    return x - x.mean(dtype=np.float64).astype(np.float32)


def oracle(field: gp.Field, patcher: gp.Patcher, window: Box) -> Any:
    """Plain numpy: all patches over a window, stacked; the median along the stack."""
    grid = patcher.grid(field.domain)
    layers = []
    for ordinal in grid.touching(window):
        patch = patcher.patch_at(field, int(ordinal))
        layer = np.full(window.shape, np.nan)
        cells = patch.footprint.intersect(window)
        layer[cells.slices(window.start)] = tilted(patch.data)[cells.slices(patch.indices.start)]
        layers.append(layer)
    return np.nanmedian(layers, axis=0).astype(np.float32)


@pytest.mark.slow
def test_the_exact_median_of_a_large_raster(tmp_path: Path) -> None:
    source = write_terrain(tmp_path / "terrain.tif", SIZE)
    patcher = gp.Patcher(
        gp.Rectangular((PATCH, PATCH)), gp.RegularStride((STEP, STEP)), None, gp.Median()
    )
    field = gp.RasterField(source)
    assert patcher.grid(field.domain).most_layers == 16
    plan = gp.plan(field, patcher, tilted, tmp_path / "m.zarr", slots=2, memory_limit="4 GiB")
    report = plan.run()
    assert report.complete
    peak = report.summary.numbers["peak_rss"]
    print(f"{report}\n{plan.memory.to_json()}")
    assert peak == pytest.approx(plan.memory.total, rel=0.25)
    stored = gp.open(tmp_path / "m.zarr")
    rng = np.random.default_rng(5)
    for row, col in [(0, 0), (SIZE - 40, SIZE - 40), *rng.integers(0, SIZE - 40, (6, 2)).tolist()]:
        window = Box.at((row, col), (40, 40))
        found = stored[window.slices()].values
        np.testing.assert_array_equal(found, oracle(field, patcher, window))
