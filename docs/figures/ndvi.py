"""Draw what the job of the Kubernetes page makes; computed here, for the bytes are the same.

``python docs/figures/ndvi.py`` writes ``docs/images/ndvi.png``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import xarray as xr

import geopatch_dask as gp
from geopatch_dask.demo.scene import make_scene

OUT = Path(__file__).parents[1] / "images" / "ndvi.png"


def main() -> None:
    patcher = gp.Patcher(gp.Rectangular(256), gp.RegularStride(192), gp.Hann())
    with tempfile.TemporaryDirectory() as folder:
        scene, target = Path(folder) / "scene.tif", Path(folder) / "ndvi.zarr"
        make_scene(scene, size=1024, seed=0)
        gp.plan(scene, patcher, "geopatch_dask.demo:ndvi", target).run("sync")
        made = xr.open_zarr(target)["data"]
        made.plot.imshow(cmap="RdYlGn", vmin=-0.3, vmax=0.9, figsize=(6.4, 5))
        plt.gca().set_aspect("equal")
        plt.savefig(OUT, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
