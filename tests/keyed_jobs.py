"""One small job with a table, and what it gives in RAM, for several test modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keyed_operators as ops
import numpy as np
import sample_operators as sample

import geopatch_dask as gp

RNG = np.random.default_rng(5)
VALUES = RNG.random((40, 60)).astype("f4")
FIELD = gp.ArrayField(VALUES, crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6))


def patcher_of(aggregation: Any = None) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), gp.Hann(), aggregation or gp.ByIndex()
    )


def plan_of(target: Any, operator: Any = ops.stats, aggregation: Any = None, **options: Any) -> Any:
    options = {"outer": (16, 16), "memory_limit": "1 TiB", "slots": 2, **options}
    return gp.plan(FIELD, patcher_of(aggregation), operator, target, **options)


def merged(operator: Any = ops.stats, aggregation: Any = None) -> Any:
    patcher = patcher_of(aggregation)
    return patcher.merge((p.with_data(operator(p.data)) for p in patcher.split(FIELD)), FIELD)


def same(left: Any, right: Any) -> bool:
    return bool(ipc(left) == ipc(right))


def ipc(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


BOTH = {"height": gp.OverlapAdd(), "stats": gp.ByIndex()}


def both(x: Any) -> dict[str, Any]:
    return {"height": x * 2, "stats": {"mean": x.mean()}}


class Noting:
    """``stats``, leaving a line per call in a file."""

    def __init__(self, log: Path) -> None:
        self.log = str(log)

    def __call__(self, x: Any) -> dict[str, Any]:
        sample.note(self.log, "call")
        return ops.stats(x)


CELLS = np.arange(20 * 26, dtype="f4").reshape(20, 26)


def rows_of(function: Any, field: Any = None, sampler: Any = None, **options: Any) -> Any:
    """Rows of patches of 8 x 8 every 6 cells."""
    source = gp.ArrayField(CELLS) if field is None else field
    patcher = gp.Patcher(
        gp.Rectangular(options.pop("size", (8, 8)), options.pop("boundary", "shift")),
        sampler or gp.RegularStride((6, 6)),
        aggregation=gp.ByIndex(**options),
    )
    return patcher.merge((p.with_data(function(p)) for p in patcher.split(source)), source)


def values(rows: Any, name: str = "value") -> list[Any]:
    return [row[name] for row in rows.values()]
