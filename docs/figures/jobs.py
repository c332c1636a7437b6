"""Draw the life of a super-tile in a run: what ends well, what is tried again, what is given up.

``python docs/figures/jobs.py`` writes ``docs/images/jobs.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

OUT = Path(__file__).parents[1] / "images" / "jobs.png"
#: Faces of boxes: under way, tried again, ended well, given up.
WAY, AGAIN, WELL, BAD = "#e4e4e4", "#f3e6c8", "#d5ead4", "#f3d3cf"

Point = tuple[float, float]


def box(ax: Axes, at: Point, size: Point, title: str, text: str, face: str) -> None:
    """A box with a title and small print."""
    style = "round,pad=0.02,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(at, *size, boxstyle=style, facecolor=face, edgecolor="#444"))
    x, top = at[0] + size[0] / 2, at[1] + size[1]
    ax.text(x, top - 0.1, title, ha="center", va="top", fontsize=9, weight="bold")
    ax.text(x, top - 0.48, text, ha="center", va="top", fontsize=7.5, linespacing=1.35)


def arrow(ax: Axes, start: Point, end: Point, text: str = "", at: Point = (0, 0)) -> None:
    """An arrow to what comes next."""
    shape = {"arrowstyle": "-|>", "color": "#333", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=shape)
    ax.text(*at, text, fontsize=7.5, ha="center", va="center", color="#222")


#: What ended an attempt, and what the run does: title, small print.
TROUBLE = (
    ("passing failure", "store, connection:\nafter a pause,\n4 attempts in all"),
    ("worker died", "once more; then\nalone, when nothing\nelse runs"),
    ("machine is gone", "cancelled, preempted,\nbroken: as often\nas losses says"),
    ("it hangs", "its timeout ends\nthe worker;\nonce more"),
    ("operator raised", "it would raise again:\nnot tried again"),
)


def main() -> None:
    """Draw and save."""
    fig, ax = plt.subplots(figsize=(9, 4.6))
    ax.set_xlim(0, 12.6)
    ax.set_ylim(-0.1, 6.1)
    ax.set_axis_off()
    box(ax, (0.1, 4.7), (2.3, 1.2), "pending", "no record,\nor one that failed", WAY)
    box(ax, (4.6, 4.7), (3.1, 1.2), "an attempt", "read, compute, write,\nthen the record", WAY)
    box(
        ax,
        (9.4, 4.7),
        (3.1, 1.2),
        "done",
        "its record is beside the target:\nnever computed again",
        WELL,
    )
    for i, (title, text) in enumerate(TROUBLE):
        face = BAD if i == len(TROUBLE) - 1 else AGAIN
        box(ax, (0.2 + 2.48 * i, 2.15), (2.28, 1.4), title, text, face)
    frame = "round,pad=0.02,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((0.06, 1.98), 12.48, 1.74, boxstyle=frame, fill=False, ls="--"))
    box(ax, (4.4, 0.0), (3.5, 1.0), "given up", "fill value; failed/ has the traceback", BAD)
    arrow(ax, (2.43, 5.3), (4.57, 5.3), "a slot is free", (3.5, 5.5))
    arrow(ax, (7.73, 5.3), (9.37, 5.3), "it was written", (8.55, 5.5))
    arrow(ax, (6.8, 4.67), (6.8, 3.76), "it ends otherwise", (7.95, 4.2))
    arrow(ax, (5.5, 3.76), (5.5, 4.67), "again", (5.05, 4.2))
    arrow(ax, (6.15, 1.95), (6.15, 1.03), "that was the last time", (7.5, 1.5))
    ax.plot([4.37, -0.15, -0.15], [0.5, 0.5, 5.3], color="#333", lw=1.1, clip_on=False)
    arrow(ax, (-0.15, 5.3), (0.07, 5.3), "geopatch retry", (2.1, 0.72))
    fig.savefig(OUT, dpi=130, bbox_inches="tight")
    plt.close(fig)


if __name__ == "__main__":
    main()
