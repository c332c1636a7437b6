"""100 000 super-tiles that do nothing, through the driver's window.

What is measured is what a run costs beyond its super-tiles: super-tiles per second, and the memory
of the one process that holds scheduler, client and driver, after 5000 and at the end.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import result

import geopatch_dask as gp
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.driving.drive import drive
from geopatch_dask.execute.driving.workers import OnCluster
from geopatch_dask.execute.runs.runners import local_client
from geopatch_dask.report.outcome import Outcome

SIDE = int(os.environ.get("SIDE", "320"))  # super-tiles: 102 400
CELLS = 4
EARLY = 5_000


def nothing(plan: Any, ordinal: int, context: Any, policy: Any, attempt: int) -> Outcome:
    """What a task returns, without the task."""
    del context, policy
    names = ("patches", "failed_patches", "hollow_patches", "fill", "uncovered", "missing")
    numbers = dict.fromkeys((*names, "bytes_read", "bytes_written", "retries", "rows"), 0)
    tile = plan.supertile(ordinal)
    return Outcome(ordinal, tile.id, "done", numbers | {"peak_rss": 1}, {"read": 1e-3}, None, "w:1")


def planned(folder: Path) -> gp.Plan:
    """A plan of 102 400 super-tiles of 4 x 4 cells."""
    field = gp.ArrayField(np.zeros((SIDE * CELLS, SIDE * CELLS), "uint8"))
    patcher = gp.Patcher(gp.Rectangular(CELLS), gp.RegularStride(CELLS), gp.Boxcar(), gp.Max())
    target = folder / "out.zarr"
    return gp.plan(field, patcher, np.positive, target, outer=CELLS, chunks=CELLS, slots=2)


def rss() -> int:
    """Resident bytes of this process."""
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss


def window(plan: gp.Plan) -> None:
    """Rate and memory."""
    seen: list[int] = []
    count = 0

    def on_outcome(outcome: Outcome) -> None:
        nonlocal count
        count += 1
        if count == EARLY:
            seen.append(rss())

    with local_client(plan, plan.n_supertiles) as client:
        workers = OnCluster(plan, Policy(), client, run=nothing)
        began = time.perf_counter()
        drive(range(plan.n_supertiles), workers, Policy(), on_outcome)
        seconds = time.perf_counter() - began
        seen.append(rss())
    rate = plan.n_supertiles / seconds
    result("driver pace", 400 / rate, 1.0, "x of 400 super-tiles/s", rate=rate, seconds=seconds)
    result("driver memory", seen[1] / seen[0], 1.1, "x that after 5000", bytes=seen)


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(Path(folder))
        window(plan)


if __name__ == "__main__":
    main()
