"""What crashes, old runs and helping hands leave beside a target, and what of it is safe to remove.

Nothing here touches a cell.  What is removed is what no reader trusts or looks at: records that are
torn, marks of runs that died, temporary files, rows that no record speaks of.  And nothing is
removed while a run is at work, or may be: its traces look like those of a dead one.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geopatch_dask.errors import GeopatchError, RecordError
from geopatch_dask.execute.check.diagnosis import Finding, Level
from geopatch_dask.execute.check.stored import untrusted
from geopatch_dask.execute.runs.beginning import hopeless
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.context import CONTEXT_FILE, state_from_json
from geopatch_dask.planning.core import read_plan
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.report.survey import layout_of
from geopatch_dask.store.backends import PARTIAL
from geopatch_dask.store.jobs import RunState, forget_run, runs
from geopatch_dask.store.location import Location
from geopatch_dask.store.preflight import PROBE
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.tables import delete_parts, forget, parts
from geopatch_dask.store.target import (
    COMPLETE,
    DELETING,
    STATE,
    TABLE_NAMES,
    TABLES,
    finish,
    holds_one_table,
    owner,
    read_root,
)

__all__ = ["TargetChecks"]

#: Seconds after which what looks like the work of a live run is that of a dead one.
HOUR = 3600.0
AGAIN = "run the same command again"

#: Names of folders of plans, and of what is in them.
_FOLDER = re.compile(r"[A-Za-z0-9]{8}")
_KNOWN = {"plan.json", "report.json", "report.html", CONTEXT_FILE}
_KNOWN |= {"tiles", "failed", "runs", "bundles"}

#: When something may be mended: always; while no run is at work; or when none can be, since runs
#: that were composed from a graph give no sign of life.
When = Literal["always", "alone", "quiet"]


class TargetChecks:
    """Looks at one target.

    Parameters
    ----------
    place : Location
    repair : bool
        Remove what is safe to remove.

    Attributes
    ----------
    findings : list of Finding
    plan : dict or None
        The stored plan, as JSON.
    """

    def __init__(self, place: Location, repair: bool) -> None:
        self.place, self.repair = place, repair
        self.findings: list[Finding] = []
        self.done: dict[str, Record] = {}
        self.untrusted: dict[str, str] = {}
        self.plan: dict[str, Any] | None = None
        self.root = read_root(place)
        self.attributes: dict[str, Any] = (self.root or {}).get("attributes", {})

    @property
    def complete(self) -> bool:
        """Whether the target says it is finished."""
        return self.attributes.get(COMPLETE) is True

    def run(self) -> list[Finding]:
        """All checks that make sense for what is there.

        Raises
        ------
        TargetError
            When the place is forbidden or unreachable.
        """
        ours = self._is_ours()
        if ours:
            self.ledger = Ledger(self.place, str(owner(self.root)))
            self.done = self.ledger.done()
            self.untrusted = untrusted(self.ledger) if self.ledger.problems else {}
            self._stored_plan()
            self._heartbeats()
            self._records()
            self._failures()
            self._tables()
            self._consolidated()
        if ours or self.root is None:
            self._beside()
        self._partials()
        return self.findings

    # ---- the target itself -----------------------------------------------------------------

    def _is_ours(self) -> bool:
        where = self.place.display
        if self.root is None:
            self._say("warning", f"there is no target at {where}", "run a plan")
        elif not self.root:
            self._say(
                "error", f"the group's document of {where} is torn", "overwrite it (--overwrite)"
            )
        elif self.attributes.get(DELETING):
            self._say("error", f"{where} was being replaced when that run was interrupted", AGAIN)
        elif owner(self.root) is None:
            self._say("error", f"{where} was not written by a plan", "choose another target")
        else:
            return True
        return False

    def _stored_plan(self) -> None:
        where = f"plan.json beside {self.place.display}"
        try:
            text = self.ledger.read_plan()
            self.plan = None if text is None else read_plan(text)
            if self.plan is not None:
                layout_of(self.plan)
        except RecordError as error:
            self._say("error", str(error), f"{AGAIN}: it writes the plan anew")
            return
        if self.plan is None:
            self._say("error", f"{where} is gone", f"{AGAIN}: it writes the plan anew")
        elif "context" in self.plan["parts"] and self.done:
            self._context()

    def _context(self) -> None:
        raw = self.ledger.folder.read(CONTEXT_FILE)
        try:
            if raw is not None:
                state_from_json(raw, self.ledger.fingerprint)
                return
            problem = f"{CONTEXT_FILE} is gone"
        except RecordError as error:
            problem = str(error)
        self._say("warning", problem, "the first pass is computed again when it is needed")

    def _consolidated(self) -> None:
        supported = getattr(self.place.zarr_store(), "supports_consolidated_metadata", True)
        root = self.root or {}
        if not self.complete or holds_one_table(self.place) or not supported:
            return
        if "consolidated_metadata" not in root:
            text = "the target is complete, but its metadata is not consolidated: slow to open"
            self._mend("alone", text, partial(finish, self.place))

    # ---- runs ------------------------------------------------------------------------------

    def _heartbeats(self) -> None:
        for run in runs(self.ledger):
            where = f"run {run.id} on {run.host}:{run.pid}"
            if not run.begun:
                self._not_begun(run)
            elif not run.alive:
                self._mend(
                    "always",
                    f"{where} died: not heard from for {run.age:,.0f} s",
                    partial(forget_run, self.ledger, run.id),
                )
            else:
                self._say("ok", f"{where} is at work, heard from {run.age:.0f} s ago")

    def _not_begun(self, run: RunState) -> None:
        """A job that waits for a worker; one that is forgotten ends at once if it ever begins."""
        how = "submitted from" if run.state == "submitted" else "taken up by"
        ago = seconds_text(run.age)
        text = f"run {run.id}, {how} {run.host}:{run.pid} {ago} ago, has not begun"
        forget = partial(forget_run, self.ledger, run.id)
        if self.complete and run.state == "submitted":
            self._mend("always", f"{text}; the target is complete without it", forget)
        elif why := hopeless(run):
            self._mend("always", f"{text}, and cannot any more: {why}", forget)
        elif not run.alive:
            self._mend("always", f"{text}, and nobody waits for it any more", forget)
        elif run.age > HOUR:
            remedy = "see whether its cluster has workers, or gp.attach(target).cancel()"
            self._say("warning", text, remedy)
        else:
            self._say("ok", text)

    def _may_mend(self, when: When) -> bool:
        if when == "always":
            return True
        return self._alone and (when == "alone" or self._quiet)

    @cached_property
    def _alone(self) -> bool:
        """Whether no run is at work, of this plan or another."""
        ledgers = [Ledger(self.place, name) for name in self._folders if _FOLDER.fullmatch(name)]
        return not any(run.working for ledger in ledgers for run in runs(ledger))

    @cached_property
    def _quiet(self) -> bool:
        """Whether nothing was recorded lately that a run may still be building on."""
        return self.complete or all(_age(record) > HOUR for record in self.done.values())

    # ---- records ---------------------------------------------------------------------------

    def _records(self) -> None:
        for tile, problem in self.untrusted.items():
            self._mend(
                "alone",
                f"a record cannot be trusted ({problem})",
                partial(self._forget, tile),
            )
        if self.plan is None:
            return
        layout = layout_of(self.plan)
        left = len(layout.unfinished([record.box for record in self.done.values()]))
        self._counted(layout.count, left)
        self._overlaps(layout, list(self.done.values()))

    def _counted(self, count: int, left: int) -> None:
        told = f"{count - left:,} of {count:,} super-tiles are recorded as done"
        if not left and not self.complete:
            self._say("warning", f"{told}, but the target is not complete", AGAIN)
        elif left and self.complete:
            self._say("warning", f"the target is complete, but only {told}", AGAIN)
        else:
            self._say("ok", f"{told}{', the target is complete' if self.complete else ''}")

    def _overlaps(self, layout: Layout, records: Sequence[Record]) -> None:
        """Records whose cells others cover, too: every cell is to be counted once."""
        shape = [-(-n // u) for n, u in zip(layout.shape, layout.unit, strict=True)]
        times = np.zeros(shape, np.int32)
        for record in records:
            times[_units(layout, record.box)] += 1
        if not (times > 1).any():
            return
        # Those of another layout first; of the others, the later ones.
        ours = layout.digest
        for record in sorted(records, key=lambda r: (r.layout == ours, -r.ordinal)):
            where = _units(layout, record.box)
            if (times[where] > 1).all():
                times[where] -= 1
                self._mend(
                    "quiet",
                    f"record {record.id} is of cells that others are recorded for, too: counts "
                    "are too high",
                    partial(self._forget, record.id, covered=True),
                )
        if (times > 1).any():
            self._say(
                "warning",
                "records overlap in part: counts are too high",
                "overwrite the target (--overwrite), or live with it: values are right",
            )

    def _failures(self) -> None:
        failed = self.ledger.failed()
        for problem in self.ledger.problems:
            self._say("warning", f"a mark of failure cannot be read ({problem})", AGAIN)
        for tile in failed:
            if tile in self.done:  # whoever gave it up may have made its cells fill afterwards
                self._mend(
                    "quiet",
                    f"super-tile {tile} is recorded as done and as given up: it is computed anew",
                    partial(self._forget, tile),
                )
        left = [tile for tile in failed if tile not in self.done]
        if left:
            error = failed[left[0]].error or {}
            text = f"{len(left):,} super-tiles failed; the first, {left[0]}: {error.get('message')}"
            self._say("error", text, f"mend the cause and {AGAIN}")

    def _forget(self, tile: str, covered: bool = False) -> None:
        """Forget a super-tile, so that the next run computes it; unless others cover its cells."""
        forget(self.ledger, self._table_names(), [tile], reopens=not covered)

    # ---- tables ----------------------------------------------------------------------------

    def _table_names(self) -> list[str]:
        return [str(name) for name in self.attributes.get(TABLE_NAMES) or ()]

    def _tables(self) -> None:
        recorded = set(self.ledger.names())
        for name in self._table_names():
            there = parts(self.place, name)
            lost = [r.id for r in self.done.values() if r.tables.get(name) and r.id not in there]
            if lost:
                text = f"rows of {len(lost)} super-tiles are gone from table {name!r} ({lost[0]})"
                self._say("error", text, f"{AGAIN}: it computes them anew")
            for tile in sorted(there - recorded):
                self._mend(
                    "quiet",
                    f"table {name!r} has rows of {tile}, which no record speaks of",
                    partial(delete_parts, self.place, [name], tile),
                )

    # ---- strays ----------------------------------------------------------------------------

    @cached_property
    def _state(self) -> Location:
        return self.place.sibling(STATE)

    @cached_property
    def _folders(self) -> list[str]:
        """Names of folders beside the target, of plans and of strangers."""
        return [name for name in self._state.list() if not self._state.exists(name)]

    def _beside(self) -> None:
        """What lies beside a target that is of one plan, or gone: all else speaks of no data."""
        state, folders = self._state, set(self._folders)
        ours = (owner(self.root) or "")[:8]
        for name in state.list():
            if name in folders:
                inside = state.list(name) if name != ours else []
                if inside:
                    self._other(name, {path.rpartition("/")[2] for path in inside})
            elif name.startswith(PROBE):
                text = f"{state.display}/{name} is a trial of a process that was killed"
                self._mend("alone", text, partial(state.delete, name))
            else:
                self._not_ours(name)
        tables = self.place.sibling(TABLES)
        if self.root is None and not holds_one_table(self.place) and tables.list():
            text = f"{tables.display} holds tables, whose target is gone"
            self._say("warning", text, "keep a copy of what you need: the next run removes them")

    def _other(self, name: str, inside: set[str]) -> None:
        """A folder of another plan."""
        if inside - _KNOWN or not _FOLDER.fullmatch(name):
            self._not_ours(name)
            return
        state = self._state
        records = len(state.list(f"{name}/tiles"))
        size = _size(Path(state.url) / name) if state.is_local else None
        told = f"{records:,} records" + ("" if size is None else f", {bytes_text(size)}")
        whose = "a plan" if self.root is None else "another plan"
        text = f"{state.display}/{name} holds {told} of {whose}, whose data is not here"
        self._mend("alone", text, state.child(name).clear)

    def _not_ours(self, name: str) -> None:
        self._say("warning", f"{self._state.display}/{name} is not ours to judge", "look at it")

    def _partials(self) -> None:
        """Temporary files of writers that were killed; only local paths have any."""
        if not self.place.is_local:
            return
        roots = [self.place.url, self.place.sibling(STATE).url, self.place.sibling(TABLES).url]
        old = [found for root in roots for found in _old_partials(root)]
        if not old:
            return
        size = sum(size for _, size in old)
        self._mend(
            "always",  # older than any write takes
            f"{len(old):,} temporary files of writers that were killed, {bytes_text(size)}, as "
            f"{old[0][0]}",
            partial(_unlink, [path for path, _ in old]),
        )

    # ---- saying and mending ----------------------------------------------------------------

    def _say(self, level: Level, what: str, remedy: str = "") -> None:
        self.findings.append(Finding(level, what, remedy))

    def _mend(self, when: When, what: str, do: Callable[[], object]) -> None:
        """Tell of something that is safe to mend, and mend it if that is wanted, and safe now."""
        if not self._may_mend(when):
            self._say("warning", what, "a run may be at work: look again later")
        elif not self.repair:
            self.findings.append(Finding("warning", what, "--repair mends it", repairable=True))
        else:
            try:
                do()
            except GeopatchError as error:
                self._say("error", f"{what}; not repaired ({error})", "look at the store")
            else:
                self.findings.append(Finding("warning", what, repairable=True, repaired=True))


def _units(layout: Layout, box: Box) -> tuple[slice, ...]:
    return tuple(
        slice(a // u, -(-b // u)) for a, b, u in zip(box.start, box.stop, layout.unit, strict=True)
    )


def _age(record: Record) -> float:
    """Seconds since a record was written; none at all where it does not say."""
    try:
        then = datetime.fromisoformat(record.finished)
    except ValueError:
        return 0.0
    return (datetime.now(UTC) - then).total_seconds()


def _old_partials(root: str) -> Iterator[tuple[Path, int]]:
    """Old temporary files below a folder, and their bytes."""
    limit = time.time() - HOUR
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if name.endswith(PARTIAL):
                with suppress(OSError):  # gone meanwhile: somebody lives
                    about = path.stat()
                    if about.st_mtime < limit:
                        yield path, about.st_size


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
