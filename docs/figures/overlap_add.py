"""Draw overlap-add on one axis: patches that each err at their edges, and what their mean is.

``python docs/figures/overlap_add.py`` writes ``docs/images/overlap_add.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "overlap_add.png"
CELLS, SIZE, STEP, REACH = 240, 64, 32, 8


def operator(patch: np.ndarray) -> np.ndarray:
    """A running mean that knows nothing beyond its patch, and so errs near both ends."""
    padded = np.concatenate([np.zeros(REACH), patch, np.zeros(REACH)])
    return np.convolve(padded, np.ones(2 * REACH + 1) / (2 * REACH + 1), "valid")


def merged(field: gp.ArrayField, step: int, window: gp.Window) -> np.ndarray:
    patcher = gp.Patcher(
        gp.Rectangular((SIZE,)), gp.RegularStride((step,)), window, gp.OverlapAdd()
    )
    found = patcher.merge((p.with_data(operator(p.data)) for p in patcher.split(field)), field)
    return np.asarray(found)


def main() -> None:
    cells = np.arange(CELLS)
    values = 2 + np.sin(cells / 17) + 0.3 * np.sin(cells / 5)
    field = gp.ArrayField(values)
    patcher = gp.Patcher(gp.Rectangular((SIZE,)), gp.RegularStride((STEP,)), gp.Hann())
    figure, (top, middle, low) = plt.subplots(
        3, 1, figsize=(9, 6.2), sharex=True, layout="constrained"
    )
    whole = operator(values)
    top.plot(cells, whole, color="#BBBBBB", lw=5, label="in one piece")
    weights = patcher.window.profile(SIZE)
    for i, patch in enumerate(patcher.split(field)):
        where = patch.anchor[0] + np.arange(SIZE)
        colour = f"C{i % 5}"
        top.plot(where, operator(patch.data), color=colour, lw=1.2)
        middle.fill_between(where, weights * operator(patch.data), color=colour, alpha=0.35, lw=0)
    top.set_title(
        "what the operator says of each patch: wrong near its ends", loc="left", fontsize=10
    )
    top.legend(fontsize=8, loc="lower right")
    middle.set_title(
        "the same, weighted by a window: the ends hardly count", loc="left", fontsize=10
    )
    inner = slice(REACH, -REACH)
    side, blended = merged(field, SIZE, gp.Boxcar()), merged(field, STEP, gp.Hann())
    low.plot(cells, side, color="#D55E00", lw=1, label="patches side by side: seams")
    low.plot(cells, blended, color="#0072B2", label="sum of weighted results / sum of weights")
    low.plot(cells, whole, color="black", lw=1, ls=":", label="in one piece")
    low.legend(fontsize=8, loc="upper center", ncol=3)
    low.set_ylim(0.4, 4.2)
    low.set_title("put together", loc="left", fontsize=10)
    low.set_xlabel(f"{CELLS} cells, patches of {SIZE}")
    print(
        "largest error away from the edges of the field:",
        *(f"{abs(found - whole)[inner].max():.2f}" for found in (side, blended)),
    )
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
