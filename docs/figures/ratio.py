"""Draw R, patches run per patch needed, over the width of super-tiles, as ``explain()`` states it.

``python docs/figures/ratio.py`` writes ``docs/images/ratio.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "ratio.png"
SIZE, CELLS = 256, 16384
TILES = [512, 1024, 1536, 2048, 3072, 4096, 5632, 8192, 16384]


def ratio(step: int, tile: int) -> float:
    field = gp.ArrayField(np.broadcast_to(np.float32(1), (CELLS, CELLS)))
    patcher = gp.Patcher(gp.Rectangular(SIZE), gp.RegularStride(step), gp.Hann())
    plan = gp.plan(field, patcher, np.negative, "memory://r", outer=tile, memory_limit="64GiB")
    return float(plan.explain().numbers["R"])


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for i, step in enumerate((224, 192, 128, 64)):
        seen = (SIZE / step) ** 2
        runs = [ratio(step, tile) for tile in TILES]
        label = f"256 / {step}: each cell in {seen:.1f} patches"
        line = "o--" if step == 64 else "o-"  # R is that of 192
        left.plot(TILES, runs, line, ms=3, color=f"C{i}", label=label)
        right.plot(TILES, [seen * run for run in runs], line, ms=3, color=f"C{i}")
    for axes, title in (
        (left, "R: patches run per patch needed"),
        (right, "cells computed per cell of the field"),
    ):
        axes.set(xscale="log", xlabel="cells along a square super-tile", title=title)
        axes.set_xticks(TILES[::2], [str(tile) for tile in TILES[::2]])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    right.set(yscale="log")
    right.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    left.legend(fontsize=8)
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
