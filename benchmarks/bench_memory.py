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


def on_a_worker(path: str) -> int:
    """:func:`idle`, on a worker that has done nothing else."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        found: int = client.submit(idle, path).result()
        return found


def measure(source: Path, target: Path) -> tuple[int, gp.Plan]:
    """The peak of a worker, and the plan that foretold it."""
    patcher = gp.Patcher(
        gp.Rectangular((256, 256)), gp.RegularStride((192, 192)), gp.Hann(), gp.OverlapAdd()
    )
    plan = gp.plan(source, patcher, twice, target, slots=2, memory_limit="4 GiB")
    return plan.run().summary.numbers["peak_rss"], plan


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for holes in (False, True):
                name = f"{size} with holes" if holes else str(size)
                source = make_raster(Path(folder) / f"{name}.tif", size, holes=holes)
                if (size, holes) == (SIZES[0], False):
                    found, reserved = on_a_worker(str(source)), MemoryModel().reserved
                    result("idle worker", found / reserved, None, "x reserved", bytes=found)
                peak, plan = measure(source, Path(folder) / f"{name}.zarr")
                detail = {"peak": peak, "planned": plan.memory.to_json(), "tile": plan.layout.tile}
                share = peak / plan.memory.total
                # A plan does not know whether cells will be missing, which takes a weight for each.
                if holes:
                    away = abs(share - 1)
                    result(f"peak memory {name}", away, 0.25, "away from the plan", **detail)
                else:
                    result(f"peak memory {name}", share, 1.0, "x the plan", **detail)


if __name__ == "__main__":
    main()
