"""An 8192 x 8192 float32 raster, 256/192 Hann overlap-add, against the floor.

Both run three times, by turns; the ratio is that of the medians.  The floor includes starting
its two processes, and so does ours: a LocalCluster of two, from its start to the closed target.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from common import floor, make_raster, result

import geopatch_dask as gp

SIZE = 8192
ROUNDS = 7
LIMIT = 1.6


def twice(values):
    """The operator: what the floor does to its blocks."""
    return values * 2


def ours(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of a whole run, and of the part after the cluster is up."""
    for path in (target, target.with_name(target.name + ".geopatch")):
        shutil.rmtree(path, ignore_errors=True)
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
    )
    began = time.perf_counter()
    plan = gp.plan(source, patcher, twice, target, slots=2, memory_limit="4 GiB")
    report = plan.run()
    return time.perf_counter() - began, sum(report.summary.seconds.values()) / 2


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        source = make_raster(Path(folder) / "terrain.tif", SIZE)
        floors, runs, work = [], [], []
        for _ in range(ROUNDS):
            floors.append(floor(source, Path(folder) / "floor.zarr"))
            total, busy = ours(source, Path(folder) / "out.zarr")
            runs.append(total)
            work.append(busy)
            print(f"floor {floors[-1]:.2f} s   ours {runs[-1]:.2f} s   of it work {busy:.2f} s")
    base = statistics.median(floors)
    result(
        "raster 8192",
        statistics.median(runs) / base,
        LIMIT,
        "x floor",
        seconds=[round(v, 2) for v in runs],
        floor_seconds=[round(v, 2) for v in floors],
        work_seconds=[round(v, 2) for v in work],
    )


if __name__ == "__main__":
    main()
