"""How far a forecast is from the run: wall time by the plan, and by the clock.

Two operators on a 4096 x 4096 float32 raster, 256/192 Hann overlap-add, on a LocalCluster of two
processes: one that does nearly nothing, so that everything around it is seen, and one that takes
longer than all of that.  The result is the worse of the two ratios, whichever way it errs.  Run
alone: an operator that is timed while something else runs seems slow.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import make_raster, result

import geopatch_dask as gp

SIZE, SLOTS, ROUNDS = 4096, 2, 3
LIMIT = 2.0


def twice(values):
    """Nearly nothing: 0.05 ms per patch."""
    return values * 2


def spectrum(values):
    """A low-pass filter, some tens of ms per patch."""
    found = values.astype("float64")
    for _ in range(16):
        there = np.fft.rfft2(found)
        there[64:-64] = 0
        found = np.fft.irfft2(there)
    return found.astype("float32")


def measured(source: Path, folder: Path, operator: object) -> tuple[float, float, str]:
    """Seconds by the plan and by the clock, and the forecast's own account."""
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
    )
    plan = gp.plan(
        source, patcher, operator, folder / "out.zarr", slots=SLOTS, memory_limit="4 GiB"
    )
    found = plan.explain(gp.Nodes(1, SLOTS, "8 GiB"))
    began = time.perf_counter()
    report = plan.run(overwrite=True)
    took = time.perf_counter() - began
    phases = ", ".join(f"{k} {v:.2f}" for k, v in report.summary.seconds.items())
    return found.numbers["nodes"]["seconds"], took, f"{found.numbers['nodes']['work']}\n  {phases}"


def main() -> None:
    """Measure and report."""
    worst, detail = 1.0, {}
    with tempfile.TemporaryDirectory() as folder:
        source = make_raster(Path(folder) / "terrain.tif", SIZE)
        for operator in (twice, spectrum):
            runs = [measured(source, Path(folder), operator) for _ in range(ROUNDS)]
            told, took = (statistics.median(run[i] for run in runs) for i in (0, 1))
            print(f"{operator.__name__}: {told:.1f} s forecast, {took:.1f} s taken")
            for run in runs:
                print(f"  {run[0]:.2f} {run[1]:.2f}  {run[2]}")
            worst = max(worst, told / took, took / told)
            detail[operator.__name__] = {"forecast": round(told, 2), "taken": round(took, 2)}
    result("cost forecast", worst, LIMIT, "x apart", **detail)


if __name__ == "__main__":
    main()
