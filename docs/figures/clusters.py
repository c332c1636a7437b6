"""Draw where scheduler and workers are, for every kind of cluster.

``python docs/figures/clusters.py`` writes ``docs/images/clusters.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

OUT = Path(__file__).parents[1] / "images" / "clusters.png"
#: Faces of boxes: this process, what is started, what was there before.
HERE, MADE, THERE = "#f3e6c8", "#d9e8f0", "#e4e4e4"

#: Of every kind: its name, what this process is, where scheduler and workers are, with their faces.
KINDS = (
    ("local", "client, scheduler", None, ("processes here", MADE)),
    ("slurm, pbs", "client, scheduler", None, ("batch jobs", MADE)),
    ("kubernetes", "client", ("scheduler: a pod", MADE), ("a pod per slot", MADE)),
    ("tcp://, tls://", "client", ("scheduler", THERE), ("its workers", THERE)),
)


def box(ax: Axes, at: tuple[float, float], size: tuple[float, float], text: str, face: str) -> None:
    """A box with a line of text."""
    style = "round,pad=0.02,rounding_size=0.1"
    ax.add_patch(FancyBboxPatch(at, *size, boxstyle=style, facecolor=face, edgecolor="#444"))
    ax.text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ha="center", va="center", fontsize=8)


def main() -> None:
    """Draw and save."""
    fig, ax = plt.subplots(figsize=(9, 3.3))
    ax.set_xlim(-0.1, 12.1)
    ax.set_ylim(-0.6, 4.4)
    ax.set_axis_off()
    line = {"color": "#333", "lw": 1.1}
    for i, (kind, here, scheduler, (workers, face)) in enumerate(KINDS):
        left = 3.05 * i
        ax.text(left + 1.35, 4.15, kind, ha="center", fontsize=10, weight="bold")
        box(ax, (left, 3.0), (2.7, 0.75), here, HERE)
        top = 3.0
        if scheduler is not None:
            ax.plot([left + 1.35] * 2, [2.98, 2.37], **line)
            box(ax, (left + 0.2, 1.6), (2.3, 0.75), *scheduler)
            top = 1.6
        for j in range(3):
            x = left + 0.42 + 0.93 * j
            ax.plot([left + 1.35, x], [top - 0.02, 0.82], **line)
            box(ax, (x - 0.35, 0.25), (0.7, 0.55), "slot", face)
        ax.text(left + 1.35, -0.1, workers, ha="center", va="center", fontsize=8)
    ax.text(
        0,
        -0.55,
        "yellow: this process; blue: started by it, and ended; grey: left as it is",
        fontsize=8,
        color="#444",
    )
    fig.savefig(OUT, dpi=130, bbox_inches="tight")
    plt.close(fig)


if __name__ == "__main__":
    main()
