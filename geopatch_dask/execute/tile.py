"""The task: one integer in, one small outcome out.

A task opens what it needs from the plan's configuration, computes its super-tile, and only after
all data is stored writes the record that says so.  Errors of the field, the operator or the store
become an outcome, not an exception: one bad super-tile does not poison a graph.

A failed attempt leaves no mark: what it wrote is right, if not all, and somebody else may be
working on the same super-tile (a backup, a second run).  Whoever decides that there will be no more
attempts calls :func:`give_up`, which makes the cells fill and says so in ``failed/``.  The two can
meet, and then each raises its flag before it looks at the other's::

    run_tile     data ->  tiles/id  -> failed/id there?   then once more, from the data on
    give_up      failed/id  ->  tiles/id there?   then take it back  -> fill

so that no order of these steps leaves a record whose data was made fill.
"""

from __future__ import annotations

import os
import platform
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import RecordError, TargetError
from geopatch_dask.execute.kernel import Counts, Kernel
from geopatch_dask.execute.logs import log_start, log_tile
from geopatch_dask.execute.metrics import count_tile, in_progress, peak_rss
from geopatch_dask.execute.policy import DEFAULT, Policy, backoff
from geopatch_dask.failures import is_transient
from geopatch_dask.fields.handles import forget_handles
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.supertile import SuperTile
from geopatch_dask.report.outcome import Outcome
from geopatch_dask.retries import take_retries
from geopatch_dask.store.backends import forget_clients
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.tables import delete_parts, write_part
from geopatch_dask.store.template import open_array, sync_region, write_region

__all__ = ["finish_tile", "give_up", "run_tile"]

#: Lines of a traceback kept in a record.
TRACEBACK_LINES = 40
#: How often a super-tile is written again because another run gave it up meanwhile.
ROUNDS = 3


def run_tile(
    plan: PlanBase,
    ordinal: int,
    context: Mapping[str, Any] | None = None,
    policy: Policy = DEFAULT,
    attempt: int = 1,
) -> Outcome:
    """Compute, write and record one super-tile; the function behind every tile task.

    Never raises an Exception: what went wrong is in the outcome, and leaves no mark on the target.
    """
    tile = plan.supertile(ordinal)
    blank = _blank(plan, tile, attempt)
    take_retries()  # what came before belongs to others
    log_start(plan, ordinal, attempt, policy)
    with in_progress(plan, attempt):
        try:
            if attempt > 1:
                _rebuild(plan)
            record, found = _finished(plan, tile, blank, context, policy)
            outcome, end = _outcome(record), "found" if found else record.state
        except Exception as error:  # anything that a user's operator, or the store, may raise
            outcome, end = _failure(plan, blank, error), "failed"
    return _told(plan, outcome, end, policy)


def _told(plan: PlanBase, outcome: Outcome, end: str, policy: Policy) -> Outcome:
    """Count and log how an attempt ended."""
    count_tile(plan, outcome, end)
    log_tile(plan, outcome, end, policy)
    return outcome


def _finished(
    plan: PlanBase,
    tile: SuperTile,
    blank: Record,
    context: Mapping[str, Any] | None,
    policy: Policy,
) -> tuple[Record, bool]:
    """The record of a super-tile, and whether somebody else had written it before."""
    ledger = Ledger(plan.target, plan.fingerprint)
    if (done := _recorded(ledger, tile)) is not None:
        return done, True
    ledger.forget_failure(tile.id)
    for _ in range(ROUNDS):
        record = _done(blank, _compute(plan, tile, context, policy))
        ledger.put(record)
        if not ledger.is_given_up(tile.id):
            return record, False
        ledger.delete(tile.id)  # whoever gave it up may have made its cells fill in between
    raise TargetError(
        f"another run of this plan keeps giving super-tile {tile.id} up: stop it, and run the same "
        "command again"
    )


def _recorded(ledger: Ledger, tile: SuperTile) -> Record | None:
    """The record that somebody wrote since the run began to look, if it can be trusted.

    A worker that died before it could tell, another run: what has a record is not computed again.
    """
    try:
        found = ledger.get(tile.id)
    except RecordError:  # the run has told of it, and computes its super-tile
        return None
    return None if found is None or ledger.is_given_up(tile.id) else found


def finish_tile(plan: PlanBase, ordinal: int, context: Mapping[str, Any] | None = None) -> Outcome:
    """As :func:`run_tile`, with the further attempts, and the giving up, that a driver sees to.

    For graphs that are computed without a driver (:meth:`geopatch_dask.Plan.to_dask`).
    """
    policy = DEFAULT
    for attempt in range(1, policy.attempts + 1):
        outcome = run_tile(plan, ordinal, context, policy, attempt)
        if outcome.error is None:
            return outcome
        if outcome.error["kind"] != "transient" or attempt == policy.attempts:
            return give_up(plan, ordinal, outcome.error, attempt, policy)
        time.sleep(backoff(ordinal, attempt))
    raise AssertionError("unreachable")


def give_up(
    plan: PlanBase,
    ordinal: int,
    error: Mapping[str, str],
    attempts: int,
    policy: Policy = DEFAULT,
) -> Outcome:
    """Make a super-tile fill and record why, unless somebody has finished it.

    Parameters
    ----------
    plan : PlanBase
    ordinal : int
    error : mapping
        ``type``, ``message``, ``traceback`` and ``kind``.
    attempts : int
        How many there were.
    policy : Policy
        What is told of it.
    """
    tile = plan.supertile(ordinal)
    text = {key: error[key] for key in ("type", "message", "traceback")}
    record = replace(_blank(plan, tile, attempts), state="failed", error=text, finished=_now())
    try:
        ledger = Ledger(plan.target, plan.fingerprint)
        ledger.put_failed(record)
        if (done := ledger.get(tile.id)) is not None:
            ledger.forget_failure(tile.id)
            return _told(plan, _outcome(done), "found", policy)
        _erase(plan, tile)
    except TargetError as store:  # which may be why it failed: it stays without any record
        message = f"{text['message']}; and that could not be recorded: {store}"
        text |= {"message": message}
        record = replace(record, error=text)
    given_up = replace(_outcome(record), error=text | {"kind": error["kind"]})
    return _told(plan, given_up, "given_up", policy)


def _blank(plan: PlanBase, tile: SuperTile, attempt: int) -> Record:
    return Record(
        id=tile.id,
        ordinal=tile.ordinal,
        fingerprint=plan.fingerprint,
        layout=plan.layout.digest,
        box=tile.box,
        state="empty",
        attempts=attempt,
        started=_now(),
        host=socket.gethostname(),
        pid=os.getpid(),
        versions=_versions(),
    )


def _rebuild(plan: PlanBase) -> None:
    """New clients, handles and models: one of them may be why the last attempt failed."""
    forget_clients()
    forget_handles()
    plan.operator.forget()


def _done(blank: Record, counts: Counts) -> Record:
    return replace(
        blank,
        state="empty" if counts.fill == counts.cells and not counts.tables else "done",
        seconds={name: round(value, 6) for name, value in counts.seconds.items()},
        retries=take_retries(),
        bytes_read=counts.bytes_read,
        bytes_written=counts.bytes_written,
        patches=counts.patches,
        failed_patches=counts.failed_patches,
        patch_errors=counts.patch_errors,
        hollow_patches=counts.hollow_patches,
        fill=counts.fill,
        uncovered=counts.uncovered,
        missing=counts.fill - min(counts.uncovered, counts.fill),
        tables=counts.tables,
        checksum=f"{counts.checksum:08x}",
        peak_rss=peak_rss(),
        finished=_now(),
    )


def _compute(
    plan: PlanBase, tile: SuperTile, context: Mapping[str, Any] | None, policy: Policy
) -> Counts:
    arrays = {array.name: open_array(plan.target, array.name) for array in plan.arrays}
    written: list[tuple[str, Box]] = []

    def write(name: str, box: Box, values: npt.NDArray[np.generic]) -> int:
        written.append((name, box))
        return write_region(arrays[name], box, values)

    def emit(name: str, table: Any) -> tuple[int, int]:
        return write_part(plan.target, name, tile.id, table)

    counts = Kernel(plan, write, context, emit, policy).run(tile)
    began = time.perf_counter()
    for name, box in written:  # the record must not outlive the data in a power cut
        sync_region(arrays[name], box)
    counts.seconds["sync"] += time.perf_counter() - began
    return counts


def _erase(plan: PlanBase, tile: SuperTile) -> None:
    """Make a failed super-tile fill: rows that some attempt wrote of it are no result."""
    top, bottom, rows = tile.box.start[0], tile.box.stop[0], plan.layout.unit[0]
    delete_parts(plan.target, [table.name for table in plan.tables], tile.id)
    for array in plan.arrays:
        stored = open_array(plan.target, array.name)
        for start in range(top, bottom, rows):
            box = tile.box.replace(0, start, min(start + rows, bottom)).prepend(array.leading)
            write_region(stored, box, np.full(box.shape, array.fill, array.dtype))


def _failure(plan: PlanBase, blank: Record, error: Exception) -> Outcome:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return Outcome(
        ordinal=blank.ordinal,
        id=blank.id,
        state="failed",
        numbers={"retries": take_retries(), "peak_rss": peak_rss()},
        error={
            "type": type(error).__name__,
            "message": plan.target.scrub(str(error)),
            "traceback": plan.target.scrub("\n".join(lines[-TRACEBACK_LINES:])),
            "kind": _kind(error),
        },
        worker=f"{blank.host}:{blank.pid}",
        attempt=blank.attempts,
    )


def _kind(error: Exception) -> str:
    """What a failure says about trying again."""
    if isinstance(error, MemoryError):
        return "memory"
    return "transient" if is_transient(error) else "permanent"


def _outcome(record: Record) -> Outcome:
    names = (
        *("patches", "failed_patches", "hollow_patches", "fill", "uncovered", "missing"),
        *("bytes_read", "bytes_written", "retries", "peak_rss", "rows"),
    )
    return Outcome(
        ordinal=record.ordinal,
        id=record.id,
        state=record.state,
        numbers={name: getattr(record, name) for name in names},
        seconds=dict(record.seconds),
        error=record.error,
        worker=f"{record.host}:{record.pid}",
        attempt=record.attempts,
    )


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
