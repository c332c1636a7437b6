"""The command that ``test_run_kill.py`` starts and kills: ``python kill_job.py FOLDER``.

A job of 64 super-tiles on a LocalCluster of its own, slow enough to be caught in the middle.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sample_operators import Counted

import geopatch_dask as gp


class Slow(Counted):
    """Three milliseconds per patch, each of them noted."""

    def __call__(self, x: Any) -> Any:
        time.sleep(0.003)
        return super().__call__(x)


def job(folder: Path, target: str = "out.zarr", outer: Any = (20, 20)) -> gp.Plan:
    """The same plan, from whichever process asks."""
    values = np.load(folder / "field.npy")
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((6, 6)), gp.Hann())
    return gp.plan(
        *(gp.ArrayField(values), patcher, Slow(folder / "calls.txt"), folder / target),
        outer=outer,
        chunks=(10, 10),
        slots=2,
        memory_limit="2 GiB",
    )


if __name__ == "__main__":
    job(Path(sys.argv[1])).run()
