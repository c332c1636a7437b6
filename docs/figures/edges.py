"""Draw the six edge rules on one axis.

``python docs/figures/edges.py`` writes ``docs/images/edges.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "edges.png"
CELLS, SIZE, STEP = 18, 8, 6
NOTES = {
    "shift": "the last patch moves in",
    "reflect": "mirrored beyond the edge",
    "pad": "filled beyond the edge",
    "shrink": "the last patch is cut",
    "drop": "the rest is uncovered, and counted",
    "raise": "an error: patches do not end at the edge",
}


def main() -> None:
    figure, axes = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
    domain = gp.GridDomain(("x",), (CELLS,))
    for row, (mode, note) in enumerate(NOTES.items()):
        top = -row
        axes.add_patch(Rectangle((0, top - 0.42), CELLS, 0.84, color="#EEEEEE"))
        if mode != "raise":
            patcher = gp.Patcher(
                gp.Rectangular((SIZE,), boundary=mode), gp.RegularStride((STEP,)), gp.Boxcar()
            )
            grid = patcher.grid(domain)
            for i, anchor in enumerate(grid.anchors):
                patch(axes, grid, anchor, top + 0.14 - 0.26 * (i % 3), i)
        axes.text(-0.4, top, mode, ha="right", va="center", family="monospace")
        axes.text(21.6, top, note, ha="left", va="center", fontsize=9)
    axes.set(xlim=(-3.2, 35), ylim=(-5.6, 0.6), xticks=[0, 6, 12, 18], yticks=[])
    axes.set_xlabel(f"{CELLS} cells, patches of {SIZE} every {STEP}", loc="left")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(OUT, dpi=90)


def patch(axes: plt.Axes, grid: object, anchor: tuple[int, ...], low: float, number: int) -> None:
    """What is read in outline, what is written filled."""
    read, written = grid.indices(anchor), grid.footprint(anchor)
    colour = ("#0072B2", "#009E73", "#D55E00")[number % 3]
    axes.add_patch(
        Rectangle((read.start[0], low), read.shape[0], 0.2, fill=False, edgecolor=colour)
    )
    axes.add_patch(
        Rectangle((written.start[0], low), written.shape[0], 0.2, color=colour, alpha=0.6)
    )


if __name__ == "__main__":
    main()
