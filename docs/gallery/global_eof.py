"""Global EOFs of a cube: principal components over all cells, projected patch by patch.

    python global_eof.py [CUBE.nc VARIABLE] [--out FOLDER]

The first pass accumulates the covariance between the leading entries (months and levels, here) over
every cell of the globe; its eigenvectors are the EOFs.  The second pass projects each patch on
them.  Without a cube, a small one is made.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import geopatch_dask as gp

COMPONENTS = 3


def make_cube() -> xr.DataArray:
    """Twelve months of two travelling waves and noise, on a 2-degree globe."""
    rng = np.random.default_rng(5)
    lat, lon = np.arange(90, -91, -2.0), np.arange(-180, 180, 2.0)
    month = np.arange(12)
    phase = 2 * np.pi * month[:, None, None] / 12
    wave = np.cos(np.radians(lat))[None, :, None] * np.cos(np.radians(2 * lon)[None, None] - phase)
    dipole = np.sin(np.radians(lat))[None, :, None] * np.sin(phase)
    cube = 10 * wave + 6 * dipole + rng.normal(0, 0.5, (12, len(lat), len(lon)))
    coords = {"month": month, "latitude": lat, "longitude": lon}
    return xr.DataArray(cube, coords, ("month", "latitude", "longitude"), name="u")


def eofs(cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances and EOFs (rows), largest first; each EOF with its largest entry positive."""
    variance, vectors = np.linalg.eigh(cov)
    variance, vectors = variance[::-1], vectors[:, ::-1].T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return variance, vectors * np.sign(largest)


def project(patch: np.ndarray, context: dict[str, np.ndarray]) -> np.ndarray:
    """The operator: a patch of shape (*leading, h, w) to its first principal components."""
    _, vectors = eofs(context["cov"])
    cells = patch.reshape(len(context["mean"]), -1) - context["mean"][:, None]
    return (vectors[:COMPONENTS] @ cells).reshape(COMPONENTS, *patch.shape[-2:])


def main(arguments: list[str] | None = None) -> None:
    """Run, compare with numpy, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cube", nargs="?")
    parser.add_argument("variable", nargs="?")
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    source = options.cube or make_cube()
    field = gp.XarrayField(source, options.variable) if options.cube else gp.XarrayField(source)

    patcher = gp.Patcher(gp.Rectangular((64, 64)), gp.RegularStride((48, 48)), gp.Hann())
    components = gp.Output(name="components", dims=("component",))
    target = options.out / "eof.zarr"
    plan = gp.plan(
        field, patcher, project, target, context=gp.Covariance(), output=components, chunks=(64, 64)
    )
    print(plan.run("threads", overwrite=True))

    found = patcher.reduce(field, gp.Covariance())
    variance = eofs(found["cov"])[0]
    whole = field.read(field.domain.box).reshape(len(found["mean"]), -1).astype(np.float64)
    whole = whole - whole.mean(axis=1, keepdims=True)
    singular = np.linalg.svd(whole, full_matrices=False)[1]
    exact = singular**2 / (whole.shape[1] - 1)
    print("explained variance:", np.round(100 * variance[:COMPONENTS] / variance.sum(), 2), "%")
    print("largest relative difference from numpy's SVD:",
          f"{np.abs(variance / exact - 1)[:COMPONENTS].max():.1e}")  # fmt: skip

    maps = gp.open(target)
    figure, axes = plt.subplots(COMPONENTS, 1, figsize=(7, 9), layout="constrained")
    for i, axis in enumerate(axes):
        limit = float(np.abs(maps[i]).max())
        axis.imshow(maps[i], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_title(f"component {i + 1}: {100 * variance[i] / variance.sum():.1f} % of variance")
    figure.savefig(options.out / "global_eof.png", dpi=90)
    print(options.out / "global_eof.png")


if __name__ == "__main__":
    main()
