"""The task: one integer in, one small outcome out.

A task opens what it needs from the plan's configuration, computes its super-tile, and only after
all data is stored writes the record that says so.  Errors of the field, the operator or the store
become an outcome, not an exception: one bad super-tile does not poison a graph.

A failed attempt erases nothing: what it wrote is right, if not all, and somebody else may be
working on the same super-tile (a backup, a second run).  Whoever decides that there will be no more
attempts calls :func:`give_up`, which makes the cells fill and says so in ``failed/``.  How the two
find out when they meet is told in :mod:`geopatch_dask.store.marks`.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import RecordError, TargetError
from geopatch_dask.execute.attempt.events import kind_of
from geopatch_dask.execute.attempt.kernel import Counts, Kernel
from geopatch_dask.execute.attempt.logs import log_start, log_tile
from geopatch_dask.execute.attempt.metrics import count_tile, in_progress, peak_rss
from geopatch_dask.execute.attempt.policy import DEFAULT, Policy, backoff
from geopatch_dask.execute.attempt.versions import recorded_versions
from geopatch_dask.fields.handles import forget_handles
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.supertile import SuperTile
from geopatch_dask.report.outcome import Outcome
from geopatch_dask.retries import counting, repetitions
from geopatch_dask.store.backends import forget_clients
from geopatch_dask.store.bundles import packed
from geopatch_dask.store.marks import claim, is_erasable, settle
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.regions import sync_region, write_region
from geopatch_dask.store.tables import delete_parts, write_part
from geopatch_dask.store.target import is_complete, open_array, reopen

__all__ = ["finish_tile", "give_up", "run_tile"]

#: Lines of a traceback kept in a record.
TRACEBACK_LINES = 60
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

    What went wrong is in the outcome and erases nothing; only an interruption is raised.
    """
    tile = plan.supertile(ordinal)
    blank = _blank(plan, tile, attempt)
    log_start(plan, ordinal, attempt, policy)
    with in_progress(plan, attempt), counting() as repeated:
        try:
            if attempt > 1:
                _rebuild(plan)
            record, found = _finished(plan, tile, blank, context, policy)
            outcome, end = _outcome(plan, record), "found" if found else record.state
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # whatever an operator or a store may raise: sys.exit, too
            outcome, end = _failure(plan, blank, error), "failed"
    # Those of a record that was found are another attempt's; of ours, those of writing it are new.
    before = outcome.numbers.get("retries", 0) if end == "found" else 0
    return _told(plan, outcome.repeated(before + repeated.value), end, policy)


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
    for _ in range(ROUNDS):
        mark = claim(ledger, blank)
        record = _done(blank, _compute(plan, tile, context, policy))
        ledger.put(record)
        if settle(ledger, tile.id, mark):
            return record, False
        ledger.withdraw(tile.id)  # whoever gave it up may have made its cells fill in between
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
    except RecordError:  # torn, say: it is none
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
    retries: int = 0,
) -> Outcome:
    """Make a super-tile fill and record why, unless somebody has finished it.

    What goes wrong with that is in the outcome as well.

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
    retries : int
        Requests that the attempts repeated.
    """
    tile = plan.supertile(ordinal)
    text = {key: plan.scrub(error[key]) for key in ("type", "message", "traceback")}
    record = replace(
        _blank(plan, tile, attempts), state="failed", error=text, retries=retries, finished=_now()
    )
    with counting() as repeated:
        try:
            if (done := _made_fill(plan, tile, record)) is not None:
                found = _outcome(plan, done).repeated(done.retries + retries + repeated.value)
                return _told(plan, found, "found", policy)
        except Exception as store:  # which may be why it failed: it stays without any record
            why = plan.scrub(str(store)) or type(store).__name__
            text |= {"message": f"{text['message']}; and that could not be recorded: {why}"}
    given_up = replace(_outcome(plan, record), error=text | {"kind": error["kind"]})
    return _told(plan, given_up.repeated(retries + repeated.value), "given_up", policy)


def _made_fill(plan: PlanBase, tile: SuperTile, record: Record) -> Record | None:
    """Give a super-tile up and return None; or the record of who has finished it."""
    ledger = Ledger(plan.target, plan.fingerprint)
    if (done := _recorded(ledger, tile)) is not None:
        return done
    for _ in range(ROUNDS):
        _mark(plan, ledger, record)
        try:
            if _erase(plan, tile, ledger):
                return None
        except BaseException:
            with suppress(Exception):  # it may have been computed while cells were made fill
                _mark(plan, ledger, record)
            raise
    _mark(plan, ledger, record)  # who keeps computing it will see it, and once more write the data
    return None


def _mark(plan: PlanBase, ledger: Ledger, record: Record) -> None:
    """Say that a super-tile is given up, and that it is not done: its data may be fill."""
    ledger.put_failed(record)
    ledger.withdraw(record.id)
    if is_complete(plan.target):
        reopen(plan.target)


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
        versions=dict(recorded_versions()),
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
        retries=repetitions(),
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
    target = plan.target
    arrays = {array.name: open_array(target, array.name) for array in plan.arrays}
    written: list[tuple[str, Box]] = []

    def write(name: str, box: Box, values: npt.NDArray[np.generic]) -> int:
        written.append((name, box))
        return write_region(arrays[name], box, values, target)

    def emit(name: str, table: Any) -> tuple[int, int]:
        return write_part(target, name, tile.id, table)

    counts = Kernel(plan, write, context, emit, policy).run(tile)
    began = time.perf_counter()
    for name, box in written:  # the record must not outlive the data in a power cut
        sync_region(arrays[name], box, target)
    counts.seconds["sync"] += time.perf_counter() - began
    return counts


def _erase(plan: PlanBase, tile: SuperTile, ledger: Ledger) -> bool:
    """Make a failed super-tile fill: rows that some attempt wrote of it are no result.

    False as soon as somebody computes it again.
    """
    top, bottom, rows = tile.box.start[0], tile.box.stop[0], plan.layout.unit[0]
    delete_parts(plan.target, [table.name for table in plan.tables], tile.id)
    for array in plan.arrays:
        stored = open_array(plan.target, array.name)
        for start in range(top, bottom, rows):
            if not is_erasable(ledger, tile.id):
                return False
            box = tile.box.replace(0, start, min(start + rows, bottom)).prepend(array.leading)
            write_region(stored, box, np.full(box.shape, array.fill, array.dtype), plan.target)
    return is_erasable(ledger, tile.id)


def _failure(plan: PlanBase, blank: Record, error: BaseException) -> Outcome:
    lines = plan.scrub("".join(traceback.format_exception(error))).splitlines()
    return Outcome(
        ordinal=blank.ordinal,
        id=blank.id,
        state="failed",
        numbers={"peak_rss": peak_rss()},
        error={
            "type": type(error).__name__,
            "message": plan.scrub(str(error)),
            "traceback": "\n".join(lines[-TRACEBACK_LINES:]),
            "kind": kind_of(error),
        },
        worker=f"{blank.host}:{blank.pid}",
        attempt=blank.attempts,
    )


def _outcome(plan: PlanBase, record: Record) -> Outcome:
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
        record=b"" if record.error else packed(plan.target, record.to_bytes()),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
