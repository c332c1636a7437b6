"""An 8192 x 8192 float32 COG on S3, 256/192 Hann overlap-add, to a Zarr on S3, against the floor.

The store is a Ceph gateway on loopback (``gateway.py``).  It shares the cores with the two
processes of either side.

The floor reads every block of the COG and writes every object of the same Zarr, with two processes
and the same clients (GDAL, obstore).  Both sides have their two processes up and warm: what is
compared is the throughput of a job, ours from the plan to the closed target.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import rasterio
import zarr
from common import make_raster, result
from distributed import Client
from gateway import BUCKET, gateway, place
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

import geopatch_dask as gp
from geopatch_dask.execute.runs.runners import local_client

SIZE = 8192
CHUNK, SHARD, BLOCK = 512, 2048, 2048
ROUNDS = 7
#: The throughput is to be at least 0.7 of the floor's.
LIMIT = 1 / 0.7
LAYOUTS: dict[str, int | None] = {"unsharded": None, "sharded": SHARD}


def twice(values):
    """The operator: what the floor does to its blocks."""
    return values * 2


def put_cog(ceph: Any) -> str:
    """Make the input, and put it into the bucket."""
    with tempfile.TemporaryDirectory() as folder:
        plain = make_raster(Path(folder) / "terrain.tif", SIZE)
        cog = Path(folder) / "cog.tif"
        options = {"blocksize": BLOCK // 4, "compress": "DEFLATE", "level": 1, "predictor": "YES"}
        copy_raster(plain, cog, driver="COG", overviews="NONE", **options)
        ceph.admin.put_object(Bucket=BUCKET, Key="in.tif", Body=cog.read_bytes())
    return f"s3://{BUCKET}/in.tif"


def copy_block(job: tuple[str, str, int, int]) -> int:
    """Read, double and write one block; an object is written by one process, as ours does."""
    source, target, row, col = job
    with rasterio.open(source) as data:
        values = data.read(1, window=Window(col, row, BLOCK, BLOCK))
    array = zarr.open_array(place(target).zarr_store(), mode="r+")
    array[row : row + BLOCK, col : col + BLOCK] = values * 2
    return values.size


def floor(source: str, shards: int | None, pool: ProcessPoolExecutor) -> float:
    """Seconds in which two processes read every block and write every object."""
    began = time.perf_counter()
    zarr.create_array(
        place("floor.zarr").zarr_store(),
        shape=(SIZE, SIZE),
        chunks=(CHUNK, CHUNK),
        shards=shards and (shards, shards),
        dtype="f4",
        fill_value=float("nan"),
        overwrite=True,
    )
    corners = [(r, c) for r in range(0, SIZE, BLOCK) for c in range(0, SIZE, BLOCK)]
    list(pool.map(copy_block, [(source, "floor.zarr", *corner) for corner in corners]))
    return time.perf_counter() - began


def planned(source: str, shards: int | None) -> gp.Plan:
    """The job."""
    patcher = gp.Patcher(gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann())
    return gp.plan(
        *(source, patcher, twice, place("out.zarr")),
        chunks=CHUNK,
        shards=shards,
        slots=2,
        memory_limit="4 GiB",
    )


def ours(source: str, shards: int | None, client: Client) -> tuple[float, gp.Report]:
    """Seconds from the plan to the closed target, and the report of the run."""
    began = time.perf_counter()
    report = planned(source, shards).run(client)
    return time.perf_counter() - began, report


def measure(
    layout: str, source: str, pool: ProcessPoolExecutor, client: Client, clear: Callable[[], None]
) -> None:
    """By turns, several times each; the ratio is that of the medians."""
    shards, floors, runs, phases = LAYOUTS[layout], [], [], {}
    for _ in range(ROUNDS):
        clear()
        floors.append(floor(source, shards, pool))
        clear()
        seconds, report = ours(source, shards, client)
        runs.append(seconds)
        phases = {name: round(value / 2, 2) for name, value in report.summary.seconds.items()}
        print(f"{layout}: floor {floors[-1]:.2f} s   ours {seconds:.2f} s   per worker {phases}")
    base, median = statistics.median(floors), statistics.median(runs)
    result(
        f"s3 {layout}",
        median / base,
        LIMIT,
        "x floor",
        throughput_of_floor=round(base / median, 2),
        seconds=[round(v, 2) for v in runs],
        floor_seconds=[round(v, 2) for v in floors],
        seconds_by_phase_per_worker=phases,
        cores=os.cpu_count(),
    )


def main() -> None:
    """Measure and report."""
    spawn = multiprocessing.get_context("spawn")
    with gateway() as ceph, ProcessPoolExecutor(2, mp_context=spawn) as pool:
        source = put_cog(ceph)

        def clear() -> None:
            for key in ceph.objects(BUCKET):
                if key != "in.tif":
                    ceph.admin.delete_object(Bucket=BUCKET, Key=key)

        with local_client(planned(source, None), 2) as client:  # the one a run makes for itself
            for shards in LAYOUTS.values():  # once to warm both sides up: imports, connections
                floor(source, shards, pool)
            ours(source, None, client)
            for layout in LAYOUTS:
                measure(layout, source, pool, client, clear)


if __name__ == "__main__":
    main()
