"""Partial pooling: shrink the regression of every patch towards the population of patches.

    python partial_pooling.py [--out FOLDER]

In each patch the second band depends on the first by an intercept and a slope that vary slowly in
space; few cells are valid in some patches, and their own regression is noise.  The first pass fits
every patch once and finds the mean and spread of the coefficients over all patches.  The second
pass weighs each patch's own fit against that population by its uncertainty: no pooling where data
abound, complete pooling where there are none.
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

NOISE = 4.0
#: Valid cells from which on a patch speaks for the population.
ENOUGH = 100


def make_field() -> tuple[gp.ArrayField, np.ndarray]:
    """Predictor and response, sparsely observed on the right; and the true slope."""
    rng = np.random.default_rng(11)
    shape = (256, 384)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / 64
    slope = 2 + 0.5 * np.sin(x) * np.cos(y)
    predictor = rng.normal(0, 1, shape)
    response = 1 + slope * predictor + rng.normal(0, NOISE, shape)
    seen = rng.random(shape) < np.where(x < 3, 0.5, 0.004)
    return gp.ArrayField(np.stack([predictor, np.where(seen, response, np.nan)])), slope


def regression(patch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (intercept, slope) of a patch and their covariance; NaN from too few cells."""
    predictor, response = (band[~np.isnan(patch[1])] for band in patch)
    if len(response) < 4:
        return np.full(2, np.nan), np.full((2, 2), np.nan)
    design = np.stack([np.ones_like(predictor), predictor], axis=1)
    information = design.T @ design / NOISE**2
    covariance = np.linalg.inv(information)
    return covariance @ (design.T @ response) / NOISE**2, covariance


def fit(patch: np.ndarray) -> np.ndarray:
    """Pass 1: the parameters of one patch, a vector; missing where data hardly determine them.

    Noise of poor fits would otherwise pass for spread of the population.
    """
    enough = np.count_nonzero(~np.isnan(patch[1])) >= ENOUGH
    return regression(patch)[0] if enough else np.full(2, np.nan)


def shrunk(patch: np.ndarray, context: dict[str, np.ndarray]) -> np.ndarray:
    """Pass 2: posterior mean of the slope, over the whole patch."""
    own, covariance = regression(patch)
    prior, spread = context["mean"], context["cov"]
    if np.isnan(own).any():
        best = prior
    else:
        weight = spread @ np.linalg.inv(spread + covariance)
        best = prior + weight @ (own - prior)
    return np.full(patch.shape[-2:], best[1])


def unpooled(patch: np.ndarray) -> np.ndarray:
    """For comparison: every patch for itself."""
    return np.full(patch.shape[-2:], regression(patch)[0][1])


def main(arguments: list[str] | None = None) -> None:
    """Run both, compare with the truth, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    field, slope = make_field()
    patcher = gp.Patcher(gp.Rectangular((32, 32)), gp.RegularStride((16, 16)), gp.Hann())

    alone = gp.plan(field, patcher, unpooled, options.out / "alone.zarr", chunks=(64, 64))
    alone.run("threads", overwrite=True)
    pooled = gp.plan(
        field, patcher, shrunk, options.out / "pooled.zarr",
        context=gp.Covariance(), over=fit, chunks=(64, 64),
    )  # fmt: skip
    print(pooled.run("threads", overwrite=True))

    maps = {
        "true slope": slope,
        "every patch alone": gp.open(options.out / "alone.zarr").values,
        "partially pooled": gp.open(options.out / "pooled.zarr").values,
    }
    figure, axes = plt.subplots(3, 1, figsize=(7, 10), layout="constrained")
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        error = float(np.sqrt(np.nanmean((values - slope) ** 2)))
        print(f"{name}: rms error {error:.3f}, {int(np.isnan(values).sum())} cells without answer")
        image = axis.imshow(values, vmin=1, vmax=3, cmap="viridis")
        axis.set_title(f"{name}   (rms error {error:.2f})")
    figure.colorbar(image, ax=axes, label="slope")
    figure.savefig(options.out / "partial_pooling.png", dpi=90)
    print(options.out / "partial_pooling.png")


if __name__ == "__main__":
    main()
