"""Finding 100 000 super-tiles done: what a run does first that continues another one.

On a local disk, and in a bucket (``gateway.py``) through obstore and through s3fs.  Records are
written as workers write them, and bundles as whoever drives a run does.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import result
from gateway import gateway, place

import geopatch_dask as gp
from geopatch_dask.execute.target.prepare import finished, prepare, unfinished
from geopatch_dask.store.bundles import MANY, Bundler
from geopatch_dask.store.records import Ledger, Record

SIDE = int(os.environ.get("SIDE", "320"))  # super-tiles: 102 400
CELLS = 4
SECONDS = 30
WRITERS = 16


def planned(target: Any) -> gp.Plan:
    """A plan of 102 400 super-tiles of 4 x 4 cells."""
    field = gp.ArrayField(np.zeros((SIDE * CELLS, SIDE * CELLS), "uint8"))
    patcher = gp.Patcher(gp.Rectangular(CELLS), gp.RegularStride(CELLS), gp.Boxcar(), gp.Max())
    return gp.plan(field, patcher, np.positive, target, outer=CELLS, chunks=CELLS, slots=2)


def records(plan: gp.Plan) -> Iterator[Record]:
    """As workers write them."""
    for tile in plan.layout:
        yield Record(
            id=tile.id, ordinal=tile.ordinal, fingerprint=plan.fingerprint,
            layout=plan.layout.digest, box=tile.box, state="done", checksum="00000000",
            seconds={"read": 0.1, "operate": 0.2, "write": 0.3}, host="somewhere", pid=1,
            versions={"numpy": "2.0", "zarr": "3.0", "rasterio": "1.4", "python": "3.11"},
        )  # fmt: skip


def write(plan: gp.Plan) -> None:
    """All records, and the bundles that a run makes of them."""
    prepare(plan)
    ledger = Ledger(plan.target, plan.fingerprint)
    if plan.target.is_local:  # without flushing each to the disk, which is not measured here
        folder = Path(ledger.folder.url) / "tiles"
        folder.mkdir(parents=True)
        for record in records(plan):
            (folder / f"{record.id}.json").write_bytes(record.to_bytes())
        return
    todo = records(plan)
    with ThreadPoolExecutor(WRITERS) as pool:
        while batch := list(islice(todo, MANY)):
            list(pool.map(ledger.put, batch))
            with Bundler(ledger.folder) as bundler:
                for record in batch:
                    bundler.add(zlib.compress(record.to_bytes()))


def measure(name: str, plan: gp.Plan) -> None:
    """Seconds until a run knows that all super-tiles are done."""
    began = time.perf_counter()
    found, problems = finished(plan)
    todo, _ = unfinished(plan, found)
    seconds = time.perf_counter() - began
    if todo or problems:
        raise RuntimeError(f"{len(todo)} super-tiles were not found done; {problems[:3]}")
    result(name, seconds / SECONDS, 1.0, f"x of {SECONDS} s", seconds=seconds, records=len(found))


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        plan = planned(Path(folder) / "out.zarr")
        write(plan)
        measure("resume disk", plan)
    with gateway():
        write(planned(place("out.zarr", "obstore")))
        for client in ("obstore", "fsspec"):
            measure(f"resume s3 {client}", planned(place("out.zarr", client)))


if __name__ == "__main__":
    main()
