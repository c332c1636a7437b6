"""Pictures of plans and runs: super-tiles, halos, patches.  Needs the ``plot`` extra."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geopatch_dask.errors import GeopatchError
from geopatch_dask.patch.boxes import Box, hull
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.supertile import Layout

__all__ = ["STATE_COLOURS", "draw_plan", "draw_states", "pyplot"]

#: One colour per state of a super-tile; readable for the colour-blind (Okabe and Ito, 2008).
STATE_COLOURS = {
    "done": "#009E73",
    "empty": "#BBBBBB",
    "failed": "#D55E00",
    "pending": "#F5F5F5",
}
#: The super-tile that is shown in detail.
MARKED = "#56B4E9"
#: More super-tiles than this are not drawn one by one.
MOST_TILES = 20_000


def pyplot() -> Any:
    """``matplotlib.pyplot`` on a canvas that needs no display.

    Raises
    ------
    GeopatchError
        When matplotlib is not installed, naming the extra.
    """
    try:
        import matplotlib
    except ImportError:
        raise GeopatchError("drawing needs matplotlib: pip install 'geopatch_dask[plot]'") from None
    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def draw_plan(plan: PlanBase, path: str | os.PathLike[str]) -> Path:
    """Draw the last two patch axes of a plan into a PNG.

    Left: all super-tiles.  Right: one super-tile in the middle, the cells it reads, the patches it
    owns and those it shares with its neighbours.
    """
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    middle = plan.supertile(_middle(plan))
    _tiles(left, plan.layout, {middle.id: "marked"})
    left.set_title(f"{plan.n_supertiles:,} super-tiles of {_by(plan.layout.tile)}", fontsize=10)
    _one_tile(right, plan, middle.box)
    figure.suptitle(
        f"R = {plan.cost.amplification:.3f}    {plan.cost.patches:,} patches    "
        f"{plan.memory.total / 2**20:.0f} MiB per worker slot",
        fontsize=11,
    )
    out = Path(path)
    figure.savefig(out, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return out


def draw_states(axes: Any, layout: Layout, states: Mapping[str, str]) -> None:
    """Map super-tiles, coloured by state, onto matplotlib axes.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    layout : Layout
    states : mapping of super-tile id to "done", "empty" or "failed"
        Those that are not named are pending.
    """
    _tiles(axes, layout, states)
    counts = dict.fromkeys(STATE_COLOURS, 0)
    for tile in layout:
        counts[states.get(tile.id, "pending")] += 1
    handles = [
        axes.scatter(
            [], [], marker="s", s=60, color=STATE_COLOURS[s], edgecolor="k", label=f"{s} {n}"
        )
        for s, n in counts.items()
        if n
    ]
    axes.legend(handles=handles, loc="upper right", fontsize=8)


def _tiles(axes: Any, layout: Layout, states: Mapping[str, str]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes: list[Any] = []
    colours: list[str] = []
    for tile in layout:
        if len(boxes) >= MOST_TILES:
            break
        (y, x), (h, w) = _flat(tile.box)
        boxes.append(Rectangle((x, y), w, h))
        colours.append(STATE_COLOURS.get(states.get(tile.id, "pending"), MARKED))
    axes.add_collection(PatchCollection(boxes, facecolor=colours, edgecolor="k", linewidth=0.4))
    height, width = _shape2(layout.shape)
    _frame(axes, Box((0, 0), (height, width)), layout.dims)


def _one_tile(axes: Any, plan: PlanBase, box: Box) -> None:
    from matplotlib.patches import Rectangle

    ordinals = plan.grid.touching(box)
    anchors = [tuple(int(v) for v in a) for a in plan.grid.anchors.at(ordinals)]
    owned = set(plan.grid.owned(box).tolist())
    sources = [plan.grid.source(a) for a in anchors]
    read = hull([*sources, box])
    for anchor, ordinal in zip(anchors, ordinals.tolist(), strict=True):
        (y, x), (h, w) = _flat(plan.grid.footprint(anchor))
        mine = ordinal in owned
        axes.add_patch(
            Rectangle(
                (x, y),
                w,
                h,
                fill=False,
                linewidth=0.6,
                edgecolor="#0072B2" if mine else "#E69F00",
                alpha=0.8,
            )
        )
    for name, part, colour in (("reads", read, "#E69F00"), ("owns", box, "k")):
        (y, x), (h, w) = _flat(part)
        axes.add_patch(
            Rectangle((x, y), w, h, fill=False, linewidth=2, edgecolor=colour, label=name)
        )
    axes.plot([], [], color="#0072B2", label=f"{len(owned)} patches owned")
    axes.plot([], [], color="#E69F00", label=f"{len(anchors) - len(owned)} shared, run again")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=8, frameon=False)
    axes.set_title(f"the one marked: cells {box.start} to {box.stop}", fontsize=10)
    (y, x), (h, w) = _flat(read)
    pad = max(h, w) // 20 + 1
    _frame(axes, Box((y - pad, x - pad), (y + h + pad, x + w + pad)), plan.grid.dims)


def _frame(axes: Any, box: Box, dims: tuple[str, ...]) -> None:
    axes.set_xlim(box.start[1], box.stop[1])
    axes.set_ylim(box.stop[0], box.start[0])
    axes.set_aspect("equal")
    names = dims[-2:] if len(dims) > 1 else ("", dims[0])
    axes.set_ylabel(f"{names[0]} (cells)")
    axes.set_xlabel(f"{names[1]} (cells)")


def _flat(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """Start and shape of a box on its last two axes; a 1-D box is one cell high."""
    y, x = _shape2(box.start, first=0)
    h, w = _shape2(box.shape)
    return (y, x), (h, w)


def _shape2(numbers: tuple[int, ...], first: int = 1) -> tuple[int, int]:
    return (numbers[-2], numbers[-1]) if len(numbers) > 1 else (first, numbers[-1])


def _middle(plan: PlanBase) -> int:
    position = 0
    for count in plan.layout.counts:
        position = position * count + count // 2
    return position


def _by(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
