"""Draw what ``gp.verify`` compares: records, super-tile by super-tile, and windows anywhere.

``python docs/figures/trust.py`` writes ``docs/images/trust.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

OUT = Path(__file__).parents[1] / "images" / "trust.png"
#: Cells of the output, of a super-tile, and of a chunk.
SHAPE, TILE, CHUNK = (300, 400), 100, 50
DONE, WRONG, EDGE = "#d9e8f0", "#d9534f", "#5b7f95"


def target(ax: Axes, title: str) -> None:
    """The output, cut into super-tiles, and those into chunks."""
    height, width = SHAPE
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            ax.add_patch(Rectangle((x, y), TILE, TILE, facecolor=DONE, edgecolor=EDGE, lw=1.6))
    ax.hlines(range(0, height, CHUNK), 0, width, color=EDGE, lw=0.4)
    ax.vlines(range(0, width, CHUNK), 0, height, color=EDGE, lw=0.4)
    ax.set_xlim(-4, width + 4)
    ax.set_ylim(height + 4, -4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_title(title, fontsize=9)


def main() -> None:
    """Draw and save."""
    rng = np.random.default_rng(3)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    target(left, "records: the checksum of every super-tile,\ntaken again from what is stored")
    for y in range(0, SHAPE[0], TILE):
        for x in range(0, SHAPE[1], TILE):
            wrong = (y, x) == (100, 200)
            text = "differs" if wrong else "same"
            left.text(x + 25, y + 25, text, ha="center", va="center", fontsize=7.5, zorder=3)
    left.add_patch(Rectangle((250, 150), CHUNK, CHUNK, facecolor=WRONG, edgecolor="k", zorder=2))
    left.annotate(
        "an object was lost:\nthe super-tile, computed again,\nnames it and its first wrong cell",
        *((275, 175), (200, 345)),
        fontsize=8,
        ha="center",
        va="center",
        annotation_clip=False,
        arrowprops={"arrowstyle": "-|>", "color": "#333"},
    )
    target(right, "windows: random boxes, computed again\nthrough another layout, byte for byte")
    for _ in range(9):
        size = rng.integers(15, 95, 2)
        corner = rng.integers(0, np.array(SHAPE) - size)
        box = Rectangle((corner[1], corner[0]), size[1], size[0], facecolor="#f0ad4e99")
        box.set_edgecolor("#8a5a00")
        right.add_patch(box)
    right.text(
        *(200, 345),
        "they cross borders of chunks and super-tiles,\nwhere a layout could show",
        fontsize=8,
        ha="center",
        va="center",
    )
    fig.savefig(OUT, dpi=130, bbox_inches="tight")
    plt.close(fig)


if __name__ == "__main__":
    main()
