"""The picture of the demo: what went in, what came out, what did not change, how it was cut."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling

from geopatch_dask.demo import NAME
from geopatch_dask.patch.boxes import Box, hull
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.drawing import draw_states, pyplot
from geopatch_dask.store.records import Record
from geopatch_dask.store.target import open_array

__all__ = ["Comparison", "Scenery", "compare", "draw"]

#: Most pixels of a panel along one axis.
PIXELS = 1024
CLOUD, OWNED, SHARED = "#C9CED6", "#0072B2", "#E69F00"
#: More super-tiles than this are not labelled.
MOST_LABELS = 100


@dataclass(frozen=True)
class Comparison:
    """Two arrays, byte by byte.

    Parameters
    ----------
    cells, differing : int
        All cells; those of which any byte differs.
    output : ndarray of float32
        Every n-th cell of the first array.
    difference : ndarray of float32
        First minus second; of every block of n x n cells the largest one, NaN where both are.
    """

    cells: int
    differing: int
    output: npt.NDArray[np.float32]
    difference: npt.NDArray[np.float32]


def compare(left: Any, right: Any) -> Comparison:
    """Compare two stored arrays of one shape and dtype, some rows at a time.

    Parameters
    ----------
    left, right : arrays that can be sliced, shape (y, x), float32
    """
    height, width = left.shape
    every = max(min(height, width) // PIXELS, 1)
    step = -(-left.chunks[0] // every) * every
    differing = 0
    output, difference = [], []
    for start in range(0, height, step):
        a, b = (np.asarray(array[start : start + step]) for array in (left, right))
        unequal = a.view(np.uint32) != b.view(np.uint32)
        differing += int(np.count_nonzero(unequal))
        output.append(a[::every, ::every])
        gap = np.where(unequal, np.abs(np.nan_to_num(a) - np.nan_to_num(b)), 0)
        gap = np.where(unequal & (gap == 0), np.inf, gap)  # one is missing, or -0.0 and 0.0
        difference.append(_largest(gap, every))
    shown = np.concatenate(output)
    gaps = np.concatenate(difference)[: shown.shape[0], : shown.shape[1]]
    gaps = np.where(np.isnan(shown) & (gaps == 0), np.nan, gaps)
    return Comparison(height * width, differing, shown, gaps.astype(np.float32))


def _largest(values: npt.NDArray[Any], every: int) -> npt.NDArray[Any]:
    """The largest of every block; cells beyond the last whole block count to it."""
    rows = np.arange(0, values.shape[0], every)
    columns = np.arange(0, values.shape[1], every)
    found: npt.NDArray[Any] = np.maximum.reduceat(
        np.maximum.reduceat(values, rows, axis=0), columns, axis=1
    )
    return found


@dataclass(frozen=True)
class Scenery:
    """What the picture shows.

    Parameters
    ----------
    scene : path of the input
    plan : PlanBase
    states : mapping of super-tile id to state
    records : mapping of super-tile id to Record
    reference : PlanBase
        Of the single-pass run.
    """

    scene: Path
    plan: PlanBase
    states: Mapping[str, str]
    records: Mapping[str, Record]
    reference: PlanBase


def draw(path: str | os.PathLike[str], scenery: Scenery) -> Comparison:
    """Compare output and reference, and draw everything into one PNG.

    Returns
    -------
    Comparison
    """
    plt = pyplot()
    plan = scenery.plan
    found = compare(*(open_array(p.target, NAME) for p in (plan, scenery.reference)))
    figure, panels = plt.subplots(2, 2, figsize=(14, 12.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    extent = (0, plan.grid.shape[1], plan.grid.shape[0], 0)
    _input(panels[0, 0], scenery.scene, extent)
    _output(figure, panels[0, 1], found, extent)
    _difference(figure, panels[1, 0], found, extent)
    _map(panels[1, 1], scenery)
    for axes in panels.flat:
        axes.set_xlabel("x (cells)")
        axes.set_ylabel("y (cells)")
    height, width = plan.grid.shape
    figure.suptitle(
        f"{height:,} x {width:,} cells, {plan.cost.patches:,} overlapping patches, "
        f"{plan.n_supertiles} super-tiles",
        fontsize=15,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return found


# ---- panels --------------------------------------------------------------------------------


def _input(axes: Any, scene: Path, extent: tuple[int, ...]) -> None:
    with rasterio.open(scene) as file:
        shape = (file.count, min(file.height, PIXELS), min(file.width, PIXELS))
        red, green, nir = file.read(out_shape=shape, resampling=Resampling.average)
    stretch = ((nir, 235.0), (red, 120.0), (green, 100.0))
    colours = np.stack([np.clip(band / top, 0, 1) ** 0.85 for band, top in stretch], axis=-1)
    axes.imshow(np.where((red == 0)[..., None], _rgb(CLOUD), colours), extent=extent)
    axes.set_title("input: near infrared, red, green")
    _cloud_key(axes, "cloud: nodata 0")


def _output(figure: Any, axes: Any, found: Comparison, extent: tuple[int, ...]) -> None:
    image = axes.imshow(found.output, extent=extent, cmap=_cloudy("RdYlGn"), vmin=-0.3, vmax=0.9)
    axes.set_title("output: vegetation index, Hann overlap-add")
    figure.colorbar(image, ax=axes, pad=0.02, label="NDVI", extend="min")
    _cloud_key(axes, "missing stays missing")


def _difference(figure: Any, axes: Any, found: Comparison, extent: tuple[int, ...]) -> None:
    image = axes.imshow(found.difference, extent=extent, cmap=_cloudy("Reds"), vmin=0, vmax=1.2e-7)
    axes.set_title(f"against a single pass: {found.differing:,} of {found.cells:,} cells differ")
    bar = figure.colorbar(image, ax=axes, pad=0.02, extend="max", ticks=[0, 6e-8, 1.2e-7])
    bar.ax.set_yticklabels(["0", "6e-8", "1.2e-7"])
    bar.set_label("|output - reference|; 1.2e-7 is one float32 rounding")
    if not found.differing:
        axes.text(
            0.5,
            0.5,
            "the same bytes",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=22,
            color="#555555",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 6},
        )
    _cloud_key(axes, "missing in both")


def _map(axes: Any, scenery: Scenery) -> None:
    """Super-tiles by state; of one, the cells it reads and the patches it runs."""
    from matplotlib.patches import Rectangle

    plan = scenery.plan
    draw_states(axes, plan.layout, scenery.states)
    for coloured in axes.collections:
        coloured.set_alpha(0.4)  # lines and letters are to be read on it
    workers: dict[tuple[str, int], int] = {}
    chosen = plan.supertile(_inner(plan))
    for tile in plan.layout:
        record = scenery.records.get(tile.id)
        if record is None or tile.id == chosen.id or plan.n_supertiles > MOST_LABELS:
            continue
        worker = workers.setdefault((record.host, record.pid), len(workers) + 1)
        y, x = ((a + b) / 2 for a, b in zip(tile.box.start, tile.box.stop, strict=True))
        seconds = sum(record.seconds.values())
        axes.text(x, y, f"worker {worker}\n{seconds:.1f} s", ha="center", va="center", fontsize=8.5)

    ordinals = plan.grid.touching(chosen.box)
    owned = set(plan.grid.owned(chosen.box).tolist())
    footprints = []
    for ordinal, anchor in zip(ordinals.tolist(), plan.grid.anchors.at(ordinals), strict=True):
        cells = plan.grid.footprint(tuple(int(v) for v in anchor))
        footprints.append(cells)
        colour = OWNED if ordinal in owned else SHARED
        # drawn a little smaller: footprints on a lattice would lie edge on edge
        axes.add_patch(_frame(Rectangle, cells, colour, 0.9, 12 if ordinal in owned else 22))
    axes.add_patch(_frame(Rectangle, hull([*footprints, chosen.box]), SHARED, 2.4, 0))
    axes.add_patch(_frame(Rectangle, chosen.box, "black", 2.4, 0))
    axes.plot([], [], color="black", lw=2.4, label="the cells one super-tile owns")
    axes.plot([], [], color=SHARED, lw=2.4, label="the cells it reads (halo)")
    axes.plot([], [], color=OWNED, lw=0.9, label=f"{len(owned)} patches it owns")
    shared = len(footprints) - len(owned)
    axes.plot([], [], color=SHARED, lw=0.9, label=f"{shared} patches of neighbours, run again")
    axes.set_title("super-tiles: one task each, whole chunks, no shared writes")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, fontsize=9)


def _frame(rectangle: Any, box: Box, colour: str, width: float, inset: int) -> Any:
    """The outline of a box of cells."""
    (y, x), (height, width_) = box.start, box.shape
    return rectangle(
        (x + inset, y + inset),
        width_ - 2 * inset,
        height - 2 * inset,
        fill=False,
        linewidth=width,
        edgecolor=colour,
    )


def _inner(plan: PlanBase) -> int:
    """A super-tile with neighbours on as many sides as there are."""
    rows, columns = plan.layout.counts
    return min(rows // 2, rows - 1) * columns + min(max(columns // 2 - 1, 0), columns - 1)


def _cloudy(name: str) -> Any:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=CLOUD)


def _cloud_key(axes: Any, text: str) -> None:
    from matplotlib.patches import Patch

    handle = Patch(facecolor=CLOUD, edgecolor="#666666", label=text)
    axes.legend(handles=[handle], loc="lower left", fontsize=9, framealpha=0.9)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
