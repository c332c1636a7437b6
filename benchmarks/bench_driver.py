"""100 000 super-tiles that do nothing, through the driver's window; and finding them done.

What is measured is what a run costs beyond its super-tiles: super-tiles per second, and the memory
of the one process that holds scheduler, client and driver, after 5000 and at the end.  Then as many
records are read as a resume reads.
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
from geopatch_dask.execute.drive import drive
from geopatch_dask.execute.policy import Policy
from geopatch_dask.execute.prepare import finished, prepare, unfinished
from geopatch_dask.execute.runners import local_client
from geopatch_dask.execute.workers import OnCluster
from geopatch_dask.report.outcome import Outcome
from geopatch_dask.store.records import Ledger, Record

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


def resume(plan: gp.Plan) -> None:
    """Seconds until a run knows that 102 400 super-tiles are done."""
    prepare(plan)
    ledger = Ledger(plan.target, plan.fingerprint)
    folder = Path(ledger.folder.url) / "tiles"
    folder.mkdir(parents=True)
    for tile in plan.layout:
        record = Record(
            id=tile.id, ordinal=tile.ordinal, fingerprint=plan.fingerprint,
            layout=plan.layout.digest, box=tile.box, state="done", checksum="00000000",
            seconds={"read": 0.1, "operate": 0.2, "write": 0.3}, host="somewhere", pid=1,
            versions={"numpy": "2.0", "zarr": "3.0"},
        )  # fmt: skip
        (folder / f"{tile.id}.json").write_bytes(record.to_bytes())
    began = time.perf_counter()
    records, _ = finished(plan)
    todo, _ = unfinished(plan, records)
    seconds = time.perf_counter() - began
    if todo:
        raise RuntimeError(f"{len(todo)} super-tiles were not found done")
    result("resume", seconds / 30, 1.0, "x of 30 s", seconds=seconds, records=len(records))


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(Path(folder))
        os.environ.get("SIDE") or resume(plan)
        window(plan)


if __name__ == "__main__":
    main()
