"""Sketches on a coarse grid: how steep, and how varied, every chunk of an operator's output is.

    python block_sketches.py [HEIGHTS.tif] [--out FOLDER]

First an operator turns heights into slopes, patch by patch, blended where patches overlap.  Then
two sketches summarise the finished slopes, chunk by chunk, each cell once: the 90 % quantile, and
how many different whole degrees there are.  Without heights, some are made.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import geopatch_dask as gp

CELLS = 32


def make_heights() -> gp.ArrayField:
    """Noise with more energy in long waves, rougher towards the east; 10 m cells."""
    rng = np.random.default_rng(8)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(384), np.fft.fftfreq(256)))
    spectrum = np.fft.fft2(rng.normal(size=frequency.shape)) / np.maximum(frequency, 1e-3) ** 1.7
    heights = np.fft.ifft2(spectrum).real * np.linspace(0.2, 2, 384)
    heights *= 400 / np.ptp(heights)
    return gp.ArrayField(
        heights.astype("float32"), transform=(10, 0, 5e5, 0, -10, 5e6), crs="EPSG:32633"
    )


def slope(patch: gp.Patch) -> np.ndarray:
    """The operator: degrees, from heights and the size of a cell."""
    heights = patch.data.reshape(patch.indices.shape)
    east, _, _, _, north, _ = patch.transform
    down, across = np.gradient(heights.astype(np.float64), abs(north), abs(east))
    return np.degrees(np.arctan(np.hypot(down, across))).astype("float32")


def main(arguments: list[str] | None = None) -> None:
    """Run, summarise, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heights", nargs="?")
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    field = options.heights or make_heights()

    patcher = gp.Patcher(gp.Rectangular((48, 48)), gp.RegularStride((36, 36)), gp.Hann())
    operator, target = gp.Operator(slope, takes="patch"), options.out / "slope.zarr"
    how = {"client": "threads", "overwrite": True}
    steepness = gp.reconstruct(field, patcher, operator, target, chunks=CELLS, **how)

    # One block is one chunk of the output, unless cells= says otherwise.
    high = gp.per_block(target, gp.ApproxQuantile(0.9), "value")
    steep = gp.reconstruct(**high, target=options.out / "steep.zarr", **how)
    degrees = gp.per_block(np.rint(steepness), gp.ApproxCardinality(), "count", CELLS)
    variety = gp.reconstruct(**degrees, target=options.out / "variety.zarr", **how)
    print(f"{steepness.shape} cells, {steep.shape} blocks of {CELLS}")

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
    for axis, values, title in (
        (axes[0], steepness, "slope, degrees"),
        (axes[1], steep, "90 % of each chunk is below"),
        (axes[2], variety, "different degrees in each chunk"),
    ):
        figure.colorbar(axis.imshow(values, cmap="viridis"), ax=axis)
        axis.set_title(title)
    figure.savefig(options.out / "block_sketches.png", dpi=90)
    print(options.out / "block_sketches.png")


if __name__ == "__main__":
    main()
