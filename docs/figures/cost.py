"""Draw what a forecast is made of: slots packed into a node, and wall time by the number of nodes.

``python docs/figures/cost.py`` writes ``docs/images/cost.png``.  The plan has 1200 super-tiles,
and an operator that takes 1 s per patch; nothing is measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "cost.png"
SLOT, BESIDE, IDLE = "#9cc3d5", "#f3e6c8", "#ededed"
#: A node: cores, and GiB; a slot of a job: GiB, and what is beside it.
CORES, MEMORY, EACH, OWN = 16, 32, 4.0, 0.25


def packed(ax: Axes) -> None:
    """A node, filled with batch jobs of one slot each."""
    jobs = min(CORES, int(MEMORY // (EACH + OWN)))
    ax.add_patch(Rectangle((0, 0), CORES, MEMORY, facecolor=IDLE, edgecolor="#444", lw=1.4))
    for i in range(jobs):
        low = i * (EACH + OWN)
        ax.add_patch(Rectangle((i, low), 1, EACH, facecolor=SLOT, edgecolor="#444"))
        ax.add_patch(Rectangle((i, low + EACH), 1, OWN, facecolor=BESIDE, edgecolor="#444"))
    ax.text(11.6, 15, f"{CORES - jobs} cores\nstay idle", ha="center", fontsize=8.5)
    ax.text(6.2, 4, f"{jobs} slots of {EACH:g} GiB,\n256 MiB beside each", fontsize=8.5)
    ax.set_xlim(-0.3, CORES + 0.3)
    ax.set_ylim(-0.6, MEMORY + 0.6)
    ax.set_xlabel("cores of a node")
    ax.set_ylabel("GiB of a node")
    ax.set_title("memory runs out before cores do", fontsize=9)


def planned() -> gp.Plan:
    """Of a field that nobody reads."""
    field = gp.ArrayField(np.broadcast_to(np.float32(1), (15360, 20480)))
    patcher = gp.Patcher(gp.Rectangular(256), gp.RegularStride(192), gp.Hann())
    where = {"outer": 512, "chunks": 512, "memory_limit": "4 GiB", "slots": 8}
    plan = gp.plan(field, patcher, np.negative, "memory://cost", **where)
    return replace(plan, seconds_per_patch=1.0)


def main() -> None:
    """Draw and save."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(2, 3))
    packed(left)
    plan, counts = planned(), list(range(1, 33))
    nodes = gp.Nodes(1, CORES, f"{MEMORY} GiB", job_memory="256 MiB")
    told = [plan.explain(replace(nodes, count=n)).numbers["nodes"] for n in counts]
    (wall,) = right.plot(counts, [t["seconds"] / 60 for t in told], color="#2b6a85", lw=1.8)
    right.set_xlabel("nodes")
    right.set_ylabel("wall time, minutes", color=wall.get_color())
    right.set_ylim(bottom=0)
    other = right.twinx()
    (hours,) = other.plot(counts, [t["node_hours"] for t in told], color="#b0730b", lw=1.8, ls="--")
    other.set_ylabel("node-hours", color=hours.get_color())
    other.set_ylim(0, 2 * max(t["node_hours"] for t in told))
    right.set_title("more nodes: sooner done, and a little dearer", fontsize=9)
    fig.tight_layout()
    fig.savefig(OUT, dpi=130)
    plt.close(fig)


if __name__ == "__main__":
    main()
