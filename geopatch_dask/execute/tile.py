"""The task: one integer in, one small outcome out.

A task opens what it needs from the plan's configuration, computes its super-tile, and only after
all data is stored writes the record that says so.  Errors of the field, the operator or the store
become an outcome, not an exception: one bad super-tile does not poison the graph.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import TargetError
from geopatch_dask.execute.kernel import Counts, Kernel
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.identity import digest
from geopatch_dask.planning.supertile import SuperTile
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.tables import delete_parts, write_part
from geopatch_dask.store.template import open_array, sync_region, write_region

__all__ = ["Outcome", "layout_digest", "peak_rss", "run_tile"]

#: Lines of a traceback kept in a record.
TRACEBACK_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """What a task returns: under 1 kB.

    Parameters
    ----------
    ordinal : int
    id : str
    state : {"done", "empty", "failed"}
    numbers : mapping
        Patches, cells, bytes, peak RSS.
    seconds : mapping of phase to seconds
    error : str
        ``Type: message`` of a failure, shortened.
    worker : str
        ``host:pid``.
    """

    ordinal: int
    id: str
    state: str
    numbers: Mapping[str, int]
    seconds: Mapping[str, float]
    error: str = ""
    worker: str = ""


def run_tile(plan: PlanBase, ordinal: int, context: Mapping[str, Any] | None = None) -> Outcome:
    """Compute, write and record one super-tile; the function behind every tile task."""
    tile = plan.supertile(ordinal)
    ledger = Ledger(plan.target, plan.fingerprint)
    blank = Record(
        id=tile.id,
        ordinal=ordinal,
        fingerprint=plan.fingerprint,
        layout=layout_digest(plan),
        box=tile.box,
        state="empty",
        started=_now(),
        host=socket.gethostname(),
        pid=os.getpid(),
        versions=_versions(),
    )
    try:
        record = _done(blank, _compute(plan, tile, context))
        ledger.put(record)
    except Exception as error:  # anything that a user's operator, or the store, may raise
        record = _failed(blank, error)
        with contextlib.suppress(TargetError):  # a store that cannot be written is why it failed
            ledger.delete(tile.id)
            _erase(plan, tile)
            ledger.put_failed(record)
        text = f"{type(error).__name__}: {error}"[:500]
        return _outcome(record, plan.target.scrub(text))
    return _outcome(record)


def _done(blank: Record, counts: Counts) -> Record:
    return replace(
        blank,
        state="empty" if counts.fill == counts.cells and not counts.tables else "done",
        seconds={name: round(value, 6) for name, value in counts.seconds.items()},
        bytes_read=counts.bytes_read,
        bytes_written=counts.bytes_written,
        patches=counts.patches,
        fill=counts.fill,
        uncovered=counts.uncovered,
        missing=counts.fill - min(counts.uncovered, counts.fill),
        tables=counts.tables,
        checksum=f"{counts.checksum:08x}",
        peak_rss=peak_rss(),
        finished=_now(),
    )


def _compute(plan: PlanBase, tile: SuperTile, context: Mapping[str, Any] | None) -> Counts:
    arrays = {array.name: open_array(plan.target, array.name) for array in plan.arrays}
    written: list[tuple[str, Box]] = []

    def write(name: str, box: Box, values: npt.NDArray[np.generic]) -> int:
        written.append((name, box))
        return write_region(arrays[name], box, values)

    def emit(name: str, table: Any) -> tuple[int, int]:
        return write_part(plan.target, name, tile.id, table)

    counts = Kernel(plan, write, context, emit).run(tile)
    began = time.perf_counter()
    for name, box in written:  # the record must not outlive the data in a power cut
        sync_region(arrays[name], box)
    counts.seconds["sync"] += time.perf_counter() - began
    return counts


def _erase(plan: PlanBase, tile: SuperTile) -> None:
    """Make a failed super-tile fill: rows that some attempt wrote of it are no result."""
    top, bottom, rows = tile.box.start[0], tile.box.stop[0], plan.layout.unit[0]
    with contextlib.suppress(TargetError):  # a store that cannot be written is why it failed
        delete_parts(plan.target, [table.name for table in plan.tables], tile.id)
        for array in plan.arrays:
            stored = open_array(plan.target, array.name)
            for start in range(top, bottom, rows):
                box = tile.box.replace(0, start, min(start + rows, bottom)).prepend(array.leading)
                write_region(stored, box, np.full(box.shape, array.fill, array.dtype))


def _failed(blank: Record, error: Exception) -> Record:
    lines = traceback.format_exception(error)
    text = "".join(lines).splitlines()
    return replace(
        blank,
        state="failed",
        error={
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "\n".join(text[-TRACEBACK_LINES:]),
        },
        peak_rss=peak_rss(),
        finished=_now(),
    )


def _outcome(record: Record, error: str = "") -> Outcome:
    names = ("patches", "fill", "uncovered", "missing", "bytes_read", "bytes_written", "peak_rss")
    numbers = {name: getattr(record, name) for name in names}
    return Outcome(
        ordinal=record.ordinal,
        id=record.id,
        state=record.state,
        numbers={**numbers, "rows": record.rows},
        seconds=dict(record.seconds),
        error=error,
        worker=f"{record.host}:{record.pid}",
    )


def layout_digest(plan: PlanBase) -> str:
    """A short name of how the output was cut."""
    layout = plan.layout
    return digest([layout.tile, layout.chunks, layout.shards])[:16]


def peak_rss() -> int:
    """The largest resident set this process has had, bytes; 0 where the system does not tell.

    From ``VmHWM``: ``ru_maxrss`` starts at the size of the parent, which a spawned worker is not.
    """
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) * 1024 if found else 0


@cache
def _versions() -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("geopatch_dask", "numpy", "zarr", "rasterio", "xarray", "dask"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "?"
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
