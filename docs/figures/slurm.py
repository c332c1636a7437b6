"""Draw three ways to run on a batch system, and the life of a worker's job.

``python docs/figures/slurm.py`` writes ``docs/images/slurm.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

from geopatch_dask.clusters.jobqueue import Life

OUT = Path(__file__).parents[1] / "images" / "slurm.png"
DRIVER, WORKER, STORE, NODE = "#0072B2", "#009E73", "#D55E00", "#EEEEEE"
WAYS = {
    "driver on the login node": ("login node", False),
    "driver as a job": ("compute node", False),
    "job array": ("compute node", True),
}


def main() -> None:
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8.6, 5.6), height_ratios=(2.2, 1), layout="constrained"
    )
    for i, (title, (where, array)) in enumerate(WAYS.items()):
        way(above, 11 * i, title, where, array)
    above.set(xlim=(-0.5, 32.5), ylim=(-0.4, 9), aspect="equal")
    above.axis("off")
    life(below)
    figure.savefig(OUT, dpi=90)


def way(axes: plt.Axes, left: float, title: str, where: str, array: bool) -> None:
    """Nodes above the target they share."""
    axes.text(left + 5, 8.4, title, ha="center", weight="bold")
    box(axes, left, 0, 10, 1.3, "shared file system: target and records", STORE)
    if array:
        for k in range(3):
            x = left + 3.4 * k
            axes.add_patch(Rectangle((x, 2.6), 3.0, 4.6, color=NODE))
            box(axes, x + 0.3, 5.6, 2.4, 1.2, f"share {k}/3", DRIVER)
            for j in range(2):
                box(axes, x + 0.3, 4.3 - 1.4 * j, 2.4, 1.1, "worker", WORKER)
            arrow(axes, (x + 1.5, 2.6), (x + 1.5, 1.3))
        return
    axes.add_patch(Rectangle((left + 2.6, 5.3), 4.8, 2.5, color=NODE))
    axes.text(left + 5, 7.3, where, ha="center", va="center", fontsize=7)
    box(axes, left + 3.2, 5.6, 3.6, 1.2, "geopatch run", DRIVER)
    for k in range(3):
        x = left + 3.4 * k
        axes.add_patch(Rectangle((x, 2.4), 3.0, 1.9, color=NODE))
        box(axes, x + 0.3, 2.7, 2.4, 1.2, "worker", WORKER)
        arrow(axes, (left + 5, 5.6), (x + 1.5, 3.9))
        arrow(axes, (x + 1.5, 2.4), (x + 1.5, 1.3))


def life(axes: plt.Axes) -> None:
    """Three jobs of an hour, one after the other in the same slot."""
    of = Life.of("01:00:00", None)
    width = of.walltime / 60
    for row, (begin, shift) in enumerate([(0, -0.8), (4, 0.6), (9, 0.1)]):
        for start in (begin, begin + (of.lifetime + shift * of.stagger) / 60 + 6):
            end = (of.lifetime + shift * of.stagger) / 60
            axes.add_patch(Rectangle((start, -row), width, 0.7, color=NODE))
            axes.add_patch(Rectangle((start + 0.5, -row + 0.1), end - 0.5, 0.5, color=WORKER))
    axes.text(26, 0.35, "worker", color="white", ha="center", va="center", fontsize=8)
    axes.annotate(
        "retires, at another moment\nthan the others; replaced",
        ((of.lifetime - 0.8 * of.stagger) / 60, 0.1),
        (20, 1.0),
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "#555555"},
    )
    axes.annotate(
        "walltime",
        (60, 0.7),
        (60, 1.15),
        ha="center",
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "#555555"},
    )
    axes.set(xlim=(0, 110), ylim=(-2.2, 1.9), yticks=[0.35, -0.65, -1.65])
    axes.set_yticklabels(["slot 1", "slot 2", "slot 3"])
    axes.set_xlabel("minutes")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def box(
    axes: plt.Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    axes.add_patch(Rectangle((x, y), width, height, color=colour))
    axes.text(
        x + width / 2, y + height / 2, text, color="white", ha="center", va="center", fontsize=7
    )


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="<|-|>", mutation_scale=7, color="#555555", lw=0.8)
    )


if __name__ == "__main__":
    main()
