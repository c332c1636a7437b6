"""Draw the pods of a job on Kubernetes, and who talks to whom.

``python docs/figures/kubernetes.py`` writes ``docs/images/kubernetes.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

OUT = Path(__file__).parents[1] / "images" / "kubernetes.png"
#: Faces of boxes: what the operator is told, what it makes, what is outside.
TOLD, MADE, OUTSIDE = "#f3e6c8", "#d9e8f0", "#e4e4e4"

Corner = tuple[float, float]


def box(ax: Axes, at: Corner, size: Corner, title: str, text: str, face: str) -> None:
    """A box with a title and small print."""
    style = "round,pad=0.02,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(at, *size, boxstyle=style, facecolor=face, edgecolor="#444"))
    x, top = at[0] + size[0] / 2, at[1] + size[1]
    ax.text(x, top - 0.12, title, ha="center", va="top", fontsize=9, weight="bold")
    ax.text(x, top - 0.52, text, ha="center", va="top", fontsize=7.5, linespacing=1.35)


def arrow(ax: Axes, start: Corner, end: Corner, text: str, at: Corner) -> None:
    """An arrow from who asks to who is asked."""
    shape = {"arrowstyle": "-|>", "color": "#333", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=shape)
    ax.text(*at, text, fontsize=7.5, ha="center", va="center", color="#222")


def main() -> None:
    """Draw and save."""
    fig, ax = plt.subplots(figsize=(9, 4.6))
    ax.set_xlim(0, 12)
    ax.set_ylim(0, 6.2)
    ax.set_axis_off()
    frame = FancyBboxPatch((3.0, 0.2), 5.9, 5.5, boxstyle="round,pad=0.02", fill=False, ls="--")
    ax.add_patch(frame)
    ax.text(5.95, 5.95, "your namespace, closed by a network policy", ha="center", fontsize=8.5)
    box(ax, (0.1, 3.9), (2.1, 1.5), "kubectl", "apply -k overlays/job\nlogs geopatch-runner", TOLD)
    box(
        ax,
        (0.1, 1.2),
        (2.1, 1.6),
        "Dask operator",
        "makes the pods,\nand ends them",
        OUTSIDE,
    )
    box(ax, (3.3, 3.9), (2.4, 1.5), "runner", "geopatch run job.toml\nplans, drives, reports", MADE)
    box(
        ax, (6.3, 3.9), (2.4, 1.5), "scheduler", "hands out numbers of\nsuper-tiles; no array", MADE
    )
    for i in (2, 1, 0):
        corner = (3.5 + 0.18 * i, 0.5 + 0.16 * i)
        box(ax, corner, (4.7, 1.9), "", "", MADE)
    text = "a pod for each slot: read, compute, write, record\nlimit = memory of the slot + 512 MiB"
    box(ax, (3.5, 0.5), (4.7, 1.9), "workers", text, MADE)
    box(
        ax,
        (9.8, 1.0),
        (2.0, 3.4),
        "bucket",
        "scene.tif\n\nndvi.zarr\n\nndvi.zarr.geopatch\n(records)",
        OUTSIDE,
    )
    arrow(ax, (1.15, 3.9), (1.15, 2.82), "DaskJob", (1.65, 3.35))
    arrow(ax, (2.22, 2.0), (3.0, 2.0), "", (0, 0))
    arrow(ax, (5.72, 4.6), (6.28, 4.6), "8786", (6.0, 4.82))
    arrow(ax, (7.3, 2.76), (7.3, 3.88), "8786", (7.65, 3.6))
    arrow(ax, (8.6, 1.6), (9.78, 1.6), "443", (9.25, 1.8))
    ax.plot([4.5, 4.5, 9.3], [3.88, 3.25, 3.25], color="#333", lw=1.1)
    arrow(ax, (9.3, 3.25), (9.78, 3.25), "443: metadata, records", (5.7, 3.08))
    fig.savefig(OUT, dpi=130, bbox_inches="tight")
    plt.close(fig)


if __name__ == "__main__":
    main()
