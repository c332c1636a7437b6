"""Draw a plan: all super-tiles, and one of them with the patches it runs.

``python docs/figures/supertile.py`` writes ``docs/images/supertile.png``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "supertile.png"


def main() -> None:
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
    )
    plan = gp.plan(
        np.zeros((4096, 4096), "float32"),
        patcher,
        np.negative,
        "memory://drawn",
        outer=(1024, 1024),
    )
    plan.explain().draw(OUT)


if __name__ == "__main__":
    main()
