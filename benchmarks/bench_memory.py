"""Peak memory of a worker against the plan, and the resident set of an idle worker.

The idle worker is what ``MemoryModel.reserved`` states: a Dask worker process that has imported
everything, opened a raster and read one block.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench_raster import twice
from common import make_raster, result
from distributed import Client, LocalCluster

import geopatch_dask as gp
from geopatch_dask.execute.attempt.metrics import peak_rss
from geopatch_dask.planning.memory import MemoryModel

SIZES = (8192, 16384)


def idle(path: str) -> int:
    """Resident bytes of a worker that is ready to work."""
    field = gp.RasterField(path)
    field.read(gp.Box((0, 0), (512, 512)))
    return peak_rss()


def main() -> None:
    """Measure and report."""
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            source = make_raster(Path(folder) / f"{size}.tif", size)
            if size == SIZES[0]:
                with (
                    LocalCluster(
                        n_workers=1, threads_per_worker=1, dashboard_address=None
                    ) as cluster,
                    Client(cluster) as client,
                ):
                    found = client.submit(idle, str(source)).result()
                reserved = MemoryModel().reserved
                result("idle worker", found / reserved, None, "x reserved", bytes=found)
            plan = gp.plan(
                source, patcher, twice, Path(folder) / f"{size}.zarr", slots=2, memory_limit="4 GiB"
            )
            peak = plan.run().summary.numbers["peak_rss"]
            result(
                f"peak memory {size}",
                abs(peak / plan.memory.total - 1),
                0.25,
                "away from the plan",
                peak=peak,
                planned=plan.memory.to_json(),
                tile=plan.layout.tile,
            )


if __name__ == "__main__":
    main()
