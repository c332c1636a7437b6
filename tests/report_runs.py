"""Plans, records and reports of runs that never took place: what the report is drawn from."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from geopatch_dask.planning.supertile import Layout
from geopatch_dask.store.records import Record

FINGERPRINT = "1f0c2a9e" * 8
BEGAN = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PHASES = ("read", "operate", "aggregate", "finalize", "write", "sync")
GIB = 2**30
TRACE = """Traceback (most recent call last):
  File "mine.py", line 12, in enhance
    return model(patch)
ValueError: the lamp is out"""


def plan_of(layout: Layout, **changes: Any) -> dict[str, Any]:
    """The JSON of a plan, as far as a report reads it."""
    memory = dict.fromkeys(("input", "band", "batch", "operator", "flush"), 10 << 20)
    document = {
        "schema": 1,
        "fingerprint": FINGERPRINT,
        "parts": {"operator": {"name": "mine:enhance"}},
        "field": {"kind": "raster", "path": "scene.tif"},
        "target": {"url": "s3://bucket/out.zarr", "storage_options": None},
        "layout": {
            "dims": list(layout.dims),
            "shape": list(layout.shape),
            "tile": list(layout.tile),
            "chunks": list(layout.chunks),
            "shards": layout.shards and list(layout.shards),
        },
        "memory": {"reserved": 160 << 20, "reader": 64 << 20, "state": 100 << 20, **memory},
        "memory_limit": GIB,
        "slots": 4,
    }
    return document | changes


def grid(*counts: int, tile: int = 64, cut: int = 0) -> Layout:
    """So many super-tiles along every axis; the last ones shorter by ``cut`` cells."""
    dims = ("time", "y", "x")[-len(counts) :]
    shape = tuple(n * tile - cut for n in counts)
    return Layout(dims, shape, (tile,) * len(counts), (tile // 2,) * len(counts))


@functools.lru_cache
def _digest(layout: Layout) -> str:
    return layout.digest


def record(layout: Layout, ordinal: int, **changes: Any) -> Record:
    """A record of a super-tile that is done."""
    tile = layout.supertile(ordinal)
    values: dict[str, Any] = {
        "id": tile.id,
        "ordinal": ordinal,
        "fingerprint": FINGERPRINT,
        "layout": _digest(layout),
        "box": tile.box,
        "state": "done",
        "seconds": {"read": 1.0, "operate": 3.0},
        "patches": 9,
        "host": "node",
        "pid": 100,
        "peak_rss": 300 << 20,
        "started": BEGAN.isoformat(),
        "finished": (BEGAN + timedelta(seconds=4)).isoformat(),
        "versions": {"python": "3.11.9", "numpy": "2.2.0"},
    }
    return Record(**{**values, **changes})


def failed(
    layout: Layout, ordinal: int, message: str = "the lamp is out", **changes: Any
) -> Record:
    """A record of a super-tile that was given up."""
    error = {"type": "ValueError", "message": message, "traceback": TRACE}
    values = {"state": "failed", "error": error, "seconds": {}, "peak_rss": 0, "patches": 0}
    return record(layout, ordinal, **{**values, **changes})


def history(
    layout: Layout, ordinals: list[int], workers: int = 4, seed: int = 0, start: float = 0.0
) -> list[Record]:
    """Records of a run of these super-tiles on some workers, one after the other."""
    rng = np.random.default_rng(seed)
    clocks = np.full(workers, start) + rng.uniform(0, 1.5, workers)
    found = []
    for ordinal in ordinals:
        worker = int(np.argmin(clocks))
        shares = rng.dirichlet([4, 12 if ordinal % 7 else 1, 2, 1, 3 if ordinal % 7 else 12, 0.5])
        took = float(rng.gamma(6, 0.7)) * (1 + (ordinal % 41 == 0) * 3)
        began = BEGAN + timedelta(seconds=float(clocks[worker]))
        clocks[worker] += took * 1.05
        found.append(
            record(
                layout,
                ordinal,
                seconds={
                    k: round(v * took, 6) for k, v in zip(PHASES, shares.tolist(), strict=True)
                },
                bytes_read=2**20 * 40,
                bytes_written=2**20 * 16,
                retries=int(rng.integers(0, 3) == 2),
                attempts=2 if ordinal % 29 == 5 else 1,
                missing=ordinal % 5 * 20,
                host=f"node-{worker // 2}",
                pid=4100 + worker,
                peak_rss=int(rng.normal(290, 12)) << 20,
                started=began.isoformat(),
                finished=(began + timedelta(seconds=took)).isoformat(),
            )
        )
    return found
