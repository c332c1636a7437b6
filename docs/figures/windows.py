"""Draw the windows: their profiles, and what overlapping patches sum to.

``python docs/figures/windows.py`` writes ``docs/images/windows.png``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "windows.png"


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    cells = np.arange(64)
    for window, text in (
        (gp.Boxcar(), "Boxcar()"),
        (gp.Tukey(0.5), "Tukey(0.5)"),
        (gp.Hann(), "Hann()"),
        (gp.Gaussian(0.5), "Gaussian(0.5)"),
    ):
        left.plot(cells, window.profile(64), label=text)
    left.set(title="weight along a patch of 64 cells", xlabel="cell", ylim=(0, 1.05))
    left.legend(fontsize=8)

    domain = gp.GridDomain(("x",), (256,))
    for step in (32, 48, 60):
        patcher = gp.Patcher(gp.Rectangular((64,)), gp.RegularStride((step,)), gp.Hann())
        _, sums = patcher.grid(domain).axis_sums(0, 0, 256)
        right.plot(sums, label=f"stride {step}")
    right.set(title="sum of Hann weights on 256 cells: what is divided by", xlabel="cell")
    right.legend(fontsize=8)
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
