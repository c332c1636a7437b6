"""Is what lies on the store what the plan computes?  Two questions, asked apart.

::

    records     checksum in the record  ==  checksum of the cells on the store ?     every byte
    windows     cells on the store      ==  the same cells, computed again ?         a sample

The first finds what happened to the store: a chunk deleted, damaged, swapped.  The second finds
what happened before anything was stored: an operator that is not repeatable, or depends on how the
output was cut; other versions of a library; a machine that miscalculates.

A difference gets a culprit.  Where the record no longer fits the store, its super-tile is computed
again to name the first wrong cell.  Where it fits and a window still differs, the operator is asked
the same question twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from geopatch_dask.errors import OptionError, TargetError
from geopatch_dask.execute.attempt.stage import recorded_context, run_leaves
from geopatch_dask.execute.check.recompute import Difference, Recomputer, random_boxes
from geopatch_dask.execute.check.stored import Stored, Unreadable, untrusted
from geopatch_dask.execute.check.verification import Cause, Mismatch, Verification
from geopatch_dask.execute.target.rebuild import rebuilt
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.operator import Operator
from geopatch_dask.planning.supertile import box_id
from geopatch_dask.store.jobs import runs
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.tables import forget

__all__ = ["verify"]

#: Cells that are read back by default, bytes: some seconds of decoding.
CHEAP = 4 << 30
#: Threads that read them; zarr decodes outside the lock of Python.
READERS = 4
#: Differences that are told one by one, and super-tiles that are computed again to name a cell.
TOLD, LOCATED = 100, 10

#: Called as things are compared: how many so far, of how many, and what they are.
Compared = Callable[[int, int, str], None]


def verify(
    plan_or_target: Any,
    windows: int = 32,
    *,
    seed: int = 0,
    records: int | str | None = None,
    operator: Operator | Callable[..., Any] | str | None = None,
    field: Any = None,
    patcher: Patcher | None = None,
    storage_options: Mapping[str, Any] | None = None,
    context: str = "recorded",
    repair: bool = False,
    on_mismatch: str = "raise",
    progress: Compared | None = None,
) -> Verification:
    """Compare a target with its records, and random windows with what the plan computes.

    Parameters
    ----------
    plan_or_target : Plan, or path, URL, Location or zarr store
    windows : int
        Random boxes of cells, up to one and a half patches long, that are computed again in this
        process, through another layout, and compared byte for byte; with the rows of the patches
        whose anchors lie in them.  0: none.
    seed : int
        Another seed, other windows.
    records : "all", int or None
        How many records are compared with what is stored.  None: all of them while that is less
        than 4 GiB of cells, else as many of them as that, at random.
    operator, field, patcher : optional
        As they were given to :func:`plan`, where the plan beside the target lacks them (lambdas,
        arrays in memory).
    storage_options : mapping
        For the target.
    context : {"recorded", "recomputed"}
        Where the plan has a first pass: take what it found, or compute that again and compare it,
        too.
    repair : bool
        Forget super-tiles whose stored data or record is wrong: the next run computes them again.
    on_mismatch : {"raise", "return"}
    progress : callable ``(compared, total, what)``

    Returns
    -------
    Verification

    Raises
    ------
    VerificationError
        When something differs; carries the Verification.
    OptionError
        When the plan cannot be rebuilt from what lies beside the target; names what to pass.
    PlanMismatch
        When field or operator are not those that the target was made with.
    TargetError
        When there is no target, or nothing of it is done.
    """
    if on_mismatch not in ("raise", "return"):
        raise OptionError(f"on_mismatch {on_mismatch!r} is neither 'raise' nor 'return'")
    if context not in ("recorded", "recomputed"):
        raise OptionError(f"context {context!r} is neither 'recorded' nor 'recomputed'")
    if type(windows) is not int or windows < 0:
        raise OptionError(f"windows {windows!r}: a number of boxes is needed, 0 for none")
    if records not in (None, "all") and (type(records) is not int or records < 0):
        raise OptionError(f"records {records!r} is neither 'all' nor a number")
    began = time.perf_counter()
    plan = rebuilt(
        plan_or_target,
        operator=operator,
        field=field,
        patcher=patcher,
        storage_options=storage_options,
    )
    check = _Check(plan, np.random.default_rng(seed), progress)
    check.records(records)
    check.windows(windows, context == "recomputed")
    repaired = check.repair() if repair else ()
    found = check.verification(seed, repaired, time.perf_counter() - began)
    if on_mismatch == "raise":
        found.raise_for_mismatch()
    return found


@dataclass
class _Finding:
    """What is known of the super-tiles so far."""

    mismatches: dict[tuple[str, str], Mismatch] = field(default_factory=dict)
    #: Records by what their checksum said; those not asked yet are not in it.
    sums: dict[str, bool] = field(default_factory=dict)
    compared: int = 0
    windows: int = 0
    problems: list[str] = field(default_factory=list)


class _Check:
    """One verification."""

    def __init__(self, plan: PlanBase, rng: np.random.Generator, progress: Compared | None) -> None:
        self.plan, self.rng, self.progress = plan, rng, progress
        self.ledger = Ledger(plan.target, plan.fingerprint)
        ids = [tile.id for tile in plan.layout]  # where listing is forbidden
        self.done = self.ledger.done(expected=ids)
        self.untrusted = untrusted(self.ledger, ids) if self.ledger.problems else {}
        self.failed = self.ledger.failed(expected=ids)
        if not self.done and not self.untrusted:
            raise TargetError(
                f"nothing of {plan.target.display} is recorded as done: run the plan, or verify "
                "where its records are"
            )
        self.stored = Stored(plan)
        self.again = Recomputer(plan, self.stored)
        self.finding = _Finding()
        self._repeatable: bool | None = None
        self._informed = plan.context is None

    # ---- records ---------------------------------------------------------------------------

    def records(self, wanted: int | str | None) -> None:
        """Compare records with what is stored."""
        for tile, text in self.untrusted.items():
            self._add(Mismatch("record", tile, "", f"cannot be trusted ({text})"))
        chosen = self._chosen(wanted)
        self.finding.compared = len(chosen)
        suspects = []
        for number, (record, problem) in enumerate(self._each(chosen), 1):
            self._tell(number, len(chosen), "records")
            self.finding.sums[record.id] = problem is None
            if problem is not None:
                suspects.append((record, problem))
        for number, (record, problem) in enumerate(suspects):
            self._convict(record, problem, number < LOCATED)

    def _chosen(self, wanted: int | str | None) -> list[Record]:
        everything = list(self.done.values())
        count = len(everything)
        if isinstance(wanted, int):
            count = min(wanted, count)
        elif wanted is None:
            sizes = np.cumsum([self._bytes(record) for record in everything] or [0])
            count = count if sizes[-1] <= CHEAP else max(int(count * CHEAP / sizes[-1]), 1)
        if count == len(everything):
            return everything
        return [everything[i] for i in sorted(self.rng.choice(len(everything), count, False))]

    def _bytes(self, record: Record) -> int:
        each = sum(np.dtype(a.dtype).itemsize * int(np.prod(a.leading)) for a in self.plan.arrays)
        return record.box.cells * each

    def _each(self, chosen: Sequence[Record]) -> Iterator[tuple[Record, Mismatch | None]]:
        """Records and what is wrong with them, in order; some are read ahead."""
        with ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(chosen), 16 * READERS):
                some = chosen[first : first + 16 * READERS]
                yield from zip(some, pool.map(self._problem, some), strict=True)

    def _problem(self, record: Record) -> Mismatch | None:
        text = self._implausible(record)
        if text:
            return Mismatch("record", record.id, "", text)
        try:
            found, filled = self.stored.checksum(record)
            for table in self.plan.tables:
                rows, told = self.stored.rows(table.name, record), record.tables.get(table.name)
                if rows is not None and rows.num_rows != told:
                    text = f"says {told} rows, {rows.num_rows} are stored"
                    return Mismatch("record", record.id, table.name, text)
        except Unreadable as broken:
            return Mismatch("stored", record.id, broken.what, broken.why, key=broken.key)
        if found != record.checksum:
            text = f"checksum {found} of what is stored, {record.checksum!r} in the record"
            return Mismatch("stored", record.id, "", text)
        if record.fill > filled:
            text = f"counts {record.fill:,} cells of fill, {filled:,} are stored"
            return Mismatch("record", record.id, "", text)
        return None

    def _implausible(self, record: Record) -> str:
        """What a record contradicts without looking at the data; "" for nothing."""
        plan, box = self.plan, record.box
        if box.ndim != len(plan.layout.dims) or box_id(plan.layout.dims, box) != record.id:
            return f"its box {box.to_json()} is not the one it is named after"
        if not box or not plan.grid.box.contains(box):
            return f"its box {box.to_json()} lies outside the output"
        strange = sorted(set(record.tables) - {table.name for table in plan.tables})
        if strange:
            return f"it counts rows of {strange[0]!r}, which the plan has not"
        cells = box.cells * sum(int(np.prod(array.leading)) for array in plan.arrays)
        if (record.state == "empty") != (record.fill == cells and not record.tables):
            return f"its state {record.state!r} does not go with {record.fill:,} cells of fill"
        if record.missing != record.fill - min(record.uncovered, record.fill):
            return f"{record.missing:,} missing cells do not go with {record.fill:,} of fill"
        return ""

    def _convict(self, record: Record, problem: Mismatch, locate: bool) -> None:
        """Name the cell, or acquit the data: the record alone may be wrong."""
        if not locate or problem.what or not problem.detail.startswith("checksum"):
            self._add(problem)
            return
        try:
            differences = self._compare(record, record.box, self.plan.layout.unit[0] + 1)
        except Unreadable as broken:
            self._add(Mismatch("stored", record.id, broken.what, broken.why, key=broken.key))
            return
        if not differences:
            text = f"{problem.detail}, which is what the plan computes"
            self._add(replace(problem, cause="record", detail=text))
        elif record.failed_patches or not self._is_repeatable(record.box):
            self._add(problem)  # the cells that differ need not be those that were changed
        else:
            for difference in differences:
                self._add(_mismatch("stored", record, difference, problem.detail))

    # ---- windows ---------------------------------------------------------------------------

    def windows(self, n: int, recompute: bool) -> None:
        """Compute windows again."""
        whole = [record for record in self.done.values() if not record.failed_patches]
        whole = [record for record in whole if not self._implausible(record)]
        if not n or not whole:
            return
        self._inform(recompute)
        start = np.array([record.box.start for record in whole])
        stop = np.array([record.box.stop for record in whole])
        boxes = [record.box for record in whole]
        self.finding.windows = n
        for number, (window, rows) in enumerate(random_boxes(self.plan, boxes, n, self.rng), 1):
            meets = ((start < window.stop) & (stop > window.start)).all(axis=1)
            for i in np.flatnonzero(meets).tolist():
                self._window(whole[i], window.intersect(whole[i].box), rows)
            self._tell(number, n, "windows")

    def _window(self, record: Record, box: Box, rows: int) -> None:
        try:
            differences = self._compare(record, box, rows)
        except Unreadable as broken:
            self._add(Mismatch("stored", record.id, broken.what, broken.why, key=broken.key))
            return
        for difference in differences:
            cause, text = self._cause(record, box)
            self._add(_mismatch(cause, record, difference, text))

    def _cause(self, record: Record, box: Box) -> tuple[Cause, str]:
        if record.id not in self.finding.sums:
            self.finding.sums[record.id] = self._problem(record) is None
        if not self.finding.sums[record.id]:
            return "stored", "what is stored is not what was written"
        if not self._is_repeatable(box):
            return "operator", "the operator gave two answers for one patch"
        theirs = ", ".join(f"{name} {value}" for name, value in record.versions.items())
        return "values", f"computed again it is something else (it was written with {theirs})"

    def _compare(self, record: Record, box: Box, rows: int) -> list[Difference]:
        self._inform(False)
        return self.again.compare(record, box, rows)

    def _is_repeatable(self, box: Box) -> bool:
        if self._repeatable is None or self._repeatable:
            self._inform(False)
            self._repeatable = self.again.repeatable(box)
        return self._repeatable

    def _inform(self, recompute: bool) -> None:
        """Let the operator have what the first pass found."""
        if self._informed:
            return
        self._informed = True
        plan = self.plan
        found, problem = recorded_context(plan)
        if plan.context is not None and (recompute or found is None):
            leaves = plan.context.source(plan.field, plan.grid, plan.operator).leaves
            made = dict(plan.context.statistic.finalize(run_leaves(plan, 0, leaves)))
            if found is None:
                why = problem or "it is not recorded"
                self.finding.problems.append(f"the first pass was computed again ({why})")
                found = made
            elif _text(made) != _text(found):
                text = f"records {_text(found)}, computed again it is {_text(made)}"
                self._add(Mismatch("values", "context.json", "", text[:1000]))
        self.again.context = found

    # ---- the end ---------------------------------------------------------------------------

    def repair(self) -> tuple[str, ...]:
        """Forget super-tiles that are wrong; the target is no longer complete then."""
        damaged = self._damaged()
        if not damaged:
            return ()
        busy = [run for run in runs(self.ledger) if run.working]
        if busy:
            where = f"{busy[0].host}:{busy[0].pid}"
            self.finding.problems.append(f"not repaired: a run on {where} works on the target")
            return ()
        forget(self.ledger, [table.name for table in self.plan.tables], damaged)
        return damaged

    def _damaged(self) -> tuple[str, ...]:
        found = self.finding.mismatches.values()
        return tuple(dict.fromkeys(m.record for m in found if m.cause in ("stored", "record")))

    def verification(self, seed: int, repaired: tuple[str, ...], seconds: float) -> Verification:
        """The result."""
        boxes = [record.box for record in self.done.values()]
        pending = self.plan.layout.unfinished(boxes)
        failed = sum(self.plan.supertile(i).id in self.failed for i in pending)
        patchy = sum(record.failed_patches > 0 for record in self.done.values())
        return Verification(
            target=self.plan.target.display,
            fingerprint=self.plan.fingerprint,
            supertiles=self.plan.n_supertiles,
            recorded=len(self.done),
            records=self.finding.compared,
            windows=self.finding.windows,
            seed=seed,
            cells=self.again.cells,
            rows=self.again.rows,
            left_out={
                "pending": len(pending) - failed,
                "failed": failed,
                "with patches left out": patchy,
            },
            mismatches=tuple(self.finding.mismatches.values())[:TOLD],
            found=len(self.finding.mismatches),
            damaged=self._damaged(),
            repaired=repaired,
            problems=tuple(self.finding.problems),
            seconds=seconds,
        )

    def _add(self, mismatch: Mismatch) -> None:
        """Keep a difference: one per super-tile and array, the first."""
        self.finding.mismatches.setdefault((mismatch.record, mismatch.what), mismatch)

    def _tell(self, number: int, total: int, what: str) -> None:
        if self.progress is not None:
            self.progress(number, total, what)


def _mismatch(cause: Cause, record: Record, found: Difference, text: str) -> Mismatch:
    return Mismatch(
        cause=cause,
        record=record.id,
        what=found.what,
        detail=text,
        box=found.box,
        cell=found.cell,
        stored=found.stored,
        recomputed=found.recomputed,
        cells=found.cells,
        key=found.key,
    )


def _text(context: Mapping[str, Any]) -> str:
    """What a first pass found, every digit of it."""
    told = {name: np.asarray(value).tolist() for name, value in sorted(context.items())}
    return repr(told)
