"""Draw the sweep of one super-tile: three moments, and the rows that are in memory.

``python docs/figures/ring.py`` writes ``docs/images/ring.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

OUT = Path(__file__).parents[1] / "images" / "ring.png"
ROWS, COLUMNS, SIZE, STEP, UNIT = 96, 56, 24, 16, 16
DONE, RING, LATER = "#009E73", "#0072B2", "#F2F2F2"


def moment(axes: plt.Axes, front: int, title: str) -> None:
    """The super-tile when the patches of the row at ``front`` are next."""
    written = front // UNIT * UNIT
    bottom = min(front + SIZE, ROWS)
    for low, high, colour, alpha in (
        (0, written, DONE, 0.45),
        (written, bottom, RING, 0.35),
        (bottom, ROWS, LATER, 1.0),
    ):
        axes.add_patch(Rectangle((0, low), COLUMNS, high - low, color=colour, alpha=alpha, lw=0))
    for x in range(0, COLUMNS - SIZE + 1, STEP):
        if front + SIZE <= ROWS:
            corner, wide = (x + 0.5, front + 0.5), SIZE - 1
            axes.add_patch(Rectangle(corner, wide, wide, fill=False, edgecolor="#D55E00", lw=1.2))
    for row in range(UNIT, ROWS, UNIT):
        axes.plot([0, COLUMNS], [row, row], color="white", lw=0.8)
    axes.add_patch(Rectangle((0, 0), COLUMNS, ROWS, fill=False, edgecolor="#555555"))
    axes.set(xlim=(-2, COLUMNS + 2), ylim=(ROWS + 2, -2), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def main() -> None:
    figure, axes = plt.subplots(1, 4, figsize=(10, 3.9), layout="constrained")
    moment(axes[0], 0, "begin")
    moment(axes[1], 32, "on the way")
    moment(axes[2], 64, "near the end")
    axes[3].axis("off")
    axes[3].set(xlim=(0, 10), ylim=(10, 0))
    told = (
        (DONE, 0.45, "written: no patch\nwill change it"),
        (RING, 0.35, "the ring: the only rows\nin memory"),
        (LATER, 1.0, "not read yet"),
    )
    for i, (colour, alpha, text) in enumerate(told):
        axes[3].add_patch(Rectangle((0, 1 + 2.4 * i), 1.2, 1.2, color=colour, alpha=alpha))
        axes[3].text(1.8, 1.6 + 2.4 * i, text, va="center", fontsize=9)
    axes[3].add_patch(Rectangle((0, 8.2), 1.2, 1.2, fill=False, edgecolor="#D55E00", lw=1.2))
    axes[3].text(1.8, 8.8, "the row of patches\nthat is next", va="center", fontsize=9)
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
