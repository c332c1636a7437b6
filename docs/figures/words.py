"""Draw the words: patch, stride, overlap, window, super-tile, halo.

``python docs/figures/words.py`` writes ``docs/images/words.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "words.png"
SIZE, STEP, TILE, CELLS = 16, 10, 32, 64
BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#D55E00", "#555555"


def frame(axes: plt.Axes, title: str) -> None:
    axes.set(xlim=(-1, CELLS + 1), ylim=(CELLS + 1, -1), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10, loc="left")
    axes.add_patch(Rectangle((0, 0), CELLS, CELLS, facecolor="#F2F2F2", edgecolor=GREY))


def box(
    axes: plt.Axes, x: float, y: float, w: float, h: float, colour: str, **more: object
) -> None:
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, **more))


def arrow(axes: plt.Axes, start: tuple[float, float], stop: tuple[float, float]) -> None:
    style = {"arrowstyle": "<->", "color": "black", "lw": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", stop, start, arrowprops=style)


def patches(axes: plt.Axes) -> None:
    frame(axes, "patches: a size, and a stride")
    for i in range(3):
        box(axes, 4 + STEP * i, 10, SIZE, SIZE, (BLUE, GREEN, RED)[i], lw=1.6)
    axes.add_patch(Rectangle((4 + STEP, 10), SIZE - STEP, SIZE, color=BLUE, alpha=0.25, lw=0))
    arrow(axes, (4, 7), (4 + SIZE, 7))
    axes.text(12, 5.5, "size", ha="center", fontsize=9)
    arrow(axes, (4, 29), (4 + STEP, 29))
    axes.text(9, 33.5, "stride", ha="center", fontsize=9)
    axes.annotate("overlap", (17, 24), (30, 40), fontsize=9, arrowprops={"arrowstyle": "->"})
    axes.text(4, 52, "every patch goes to the operator;\nits results are blended", fontsize=9)


def window(axes: plt.Axes) -> None:
    frame(axes, "window: how much a cell of a patch counts")
    profile = gp.Hann().profile(SIZE * 3)
    weights = np.outer(profile, profile)
    axes.imshow(weights, extent=(6, 34, 36, 8), cmap="Blues", vmin=0, zorder=2)
    box(axes, 6, 8, 28, 28, BLUE, lw=1.6, zorder=3)
    axes.plot(6 + 28 * (np.arange(48) + 0.5) / 48, 60 - 16 * profile, color=BLUE)
    axes.plot([6, 34], [60, 60], color=GREY, lw=0.8)
    axes.text(38, 24, "all in\nthe middle", fontsize=9)
    axes.text(38, 56, "its profile\n(Hann)", fontsize=9)


def tiles(axes: plt.Axes) -> None:
    frame(axes, "super-tiles: what one task owns, and reads")
    for line in range(TILE, CELLS, TILE):
        axes.plot([line, line], [0, CELLS], color=GREY, lw=1)
        axes.plot([0, CELLS], [line, line], color=GREY, lw=1)
    grid = gp.Patcher(gp.Rectangular((SIZE,)), gp.RegularStride((STEP,)), gp.Boxcar()).grid(
        gp.GridDomain(("x",), (CELLS,))
    )
    starts = sorted(a[0] for a in grid.anchors if a[0] + SIZE > TILE)
    first = starts[0]
    axes.add_patch(Rectangle((TILE, TILE), TILE, TILE, color=GREEN, alpha=0.25, lw=0))
    box(axes, first, first, CELLS - first, CELLS - first, GREEN, lw=1.6, ls="--")
    owned = [start for start in starts if start >= TILE]
    box(axes, owned[1], owned[1], SIZE, SIZE, BLUE, lw=1.6)
    box(axes, starts[1], owned[0], SIZE, SIZE, RED, lw=1.6)
    box(axes, owned[1], starts[0], SIZE, SIZE, RED, lw=1.6)
    for row, (text, colour) in enumerate(
        (
            ("filled: the cells that one task owns and writes", GREEN),
            ("dashed: what it reads; beyond the fill, the halo", GREEN),
            ("a patch that only this task runs", BLUE),
            ("patches that neighbours run again", RED),
        )
    ):
        axes.text(1, 4 + 4.6 * row, text, fontsize=8, color=colour, backgroundcolor="#F2F2F2")


def main() -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    patches(left)
    window(middle)
    tiles(right)
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
