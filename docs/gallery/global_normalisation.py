"""Normalise a scene by its own mean and standard deviation, in one job of two passes.

    python global_normalisation.py [SCENE.tif] [--out FOLDER]

The first pass sees every valid cell once and finds the mean and standard deviation of each band;
the second hands them to the operator of every patch.  Without a scene, a small one is made.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from rasterio.transform import from_origin

import geopatch_dask as gp


def make_scene(path: Path) -> Path:
    """Two bands with different levels, and a hole of nodata."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:300, 0:360] / 60
    scene = np.stack([120 + 30 * np.sin(x + y), 60 + 12 * np.cos(2 * x - y)])
    scene = (scene + rng.normal(0, 3, scene.shape)).clip(1, 255).astype(np.uint8)
    scene[:, 100:140, 180:260] = 0
    profile = {"driver": "GTiff", "count": 2, "height": 300, "width": 360, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 30, 30), "nodata": 0}
    with rasterio.open(path, "w", **profile, **place) as target:
        target.write(scene)
    return path


def normalise(patch: np.ndarray, context: dict[str, np.ndarray]) -> np.ndarray:
    """The operator: one patch, shape (bands, h, w), and what the first pass found."""
    mean, std = (context[name][:, None, None] for name in ("mean", "std"))
    return (patch.astype(np.float64) - mean) / std


def main(arguments: list[str] | None = None) -> None:
    """Run, check, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scene", nargs="?")
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    scene = options.scene or make_scene(options.out / "scene.tif")

    patcher = gp.Patcher(gp.Rectangular((128, 128)), gp.RegularStride((96, 96)), gp.Hann())
    plan = gp.plan(scene, patcher, normalise, options.out / "normalised.zarr", context=gp.MeanStd())
    print(plan.run("threads", overwrite=True))

    result = gp.open(options.out / "normalised.zarr")
    values = result.values
    bands = values.reshape(len(values), -1) if values.ndim == 3 else values.reshape(1, -1)
    for i, band in enumerate(bands, start=1):
        print(f"band {i}: mean {np.nanmean(band):+.1e}, std - 1 {np.nanstd(band) - 1:+.1e}")

    figure, axes = plt.subplots(1, len(bands), figsize=(5 * len(bands), 4), layout="constrained")
    for i, axis in enumerate(np.atleast_1d(axes)):
        image = axis.imshow(
            values[i] if values.ndim == 3 else values, cmap="RdBu_r", vmin=-3, vmax=3
        )
        axis.set_title(f"band {i + 1}, standard deviations from its mean")
    figure.colorbar(image, ax=axes)
    figure.savefig(options.out / "global_normalisation.png", dpi=90)
    print(options.out / "global_normalisation.png")


if __name__ == "__main__":
    main()
