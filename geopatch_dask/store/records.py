"""The records of one plan beside one target.

::

    out.zarr.geopatch/          beside, never inside: readers of the store do not see it
        1f0c2a9e/               one folder per fingerprint, first 8 characters
            plan.json  report.json  tiles/  failed/  bundles/

Objects are written whole and never appended to, so any number of writers need no lock.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from geopatch_dask.errors import RecordError, TargetError
from geopatch_dask.patch.boxes import Box, box_id
from geopatch_dask.retries import carried
from geopatch_dask.store.bundles import FEW, copies
from geopatch_dask.store.location import Location
from geopatch_dask.store.record_format import SCHEMA, Record, now, parse_object
from geopatch_dask.store.target import STATE, owner, read_root

__all__ = ["SCHEMA", "Ledger", "Record", "current_fingerprint", "fingerprints", "mark_of", "now"]

#: Characters of the fingerprint that name its folder.
_SHORT = 8
#: One thread reads these, and sees how long a place takes to answer.
_FEW = 64
#: Seconds per object up to which it goes on alone.
_QUICK = 2e-4
_READERS = 32
#: Records that are read before they are looked at: reading and parsing at the same time, in several
#: threads, takes longer than one after the other.
_GROUP = 2048
T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass
class Ledger:
    """Reads and writes the records of the plan ``fingerprint`` beside ``location``.

    Small and picklable, like a location.

    Parameters
    ----------
    location : Location
        Of the target, not of the folder beside it.
    fingerprint : str
        Hex, at least 8 characters.

    Attributes
    ----------
    problems : list of str
        What the last :meth:`done` or :meth:`failed` found and did not trust.

    Raises
    ------
    RecordError
        For a fingerprint that cannot name a folder.
    """

    location: Location
    fingerprint: str
    problems: list[str] = field(default_factory=list, init=False, compare=False)
    _asked: bool = field(default=False, init=False, compare=False, repr=False)
    _known: tuple[tuple[str, ...], Box] | None = field(
        default=None, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]{8,}", self.fingerprint):
            raise RecordError(f"{self.fingerprint!r} is no fingerprint: 8 or more hex digits")

    @cached_property
    def folder(self) -> Location:
        """Where the records are."""
        return self.location.sibling(STATE).child(self.fingerprint[:_SHORT])

    # -- the plan and the report ---------------------------------------------------------------

    def write_plan(self, text: str) -> None:
        """Record the plan: a JSON object whose ``"fingerprint"`` is this ledger's.

        Raises
        ------
        RecordError
            When it is not.
        TargetError
        """
        self._check_plan(parse_object(text.encode(), "plan.json"))
        self.folder.write("plan.json", text.encode())
        self._asked = False

    def read_plan(self) -> str | None:
        """The recorded plan, or None when there is none.

        Raises
        ------
        RecordError
            When it is torn, or that of another fingerprint.
        TargetError
        """
        raw = self.folder.read("plan.json")
        if raw is None:
            return None
        self._check_plan(parse_object(raw, f"{self.folder.display}/plan.json"))
        return raw.decode()

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Record the report of a run, plain JSON.

        Raises
        ------
        TargetError
        """
        self.folder.write("report.json", json.dumps(dict(report), indent=1).encode())

    def read_report(self) -> dict[str, Any] | None:
        """The report of the last run, or None.

        Raises
        ------
        RecordError
            When it is torn.
        TargetError
        """
        raw = self.folder.read("report.json")
        if raw is None:
            return None
        return parse_object(raw, f"{self.folder.display}/report.json")

    # -- records -------------------------------------------------------------------------------

    def put(self, record: Record) -> None:
        """Record that a super-tile is done or empty.  Its data must have been written before.

        Raises
        ------
        RecordError
            When the record is of another plan, or of a failure.
        TargetError
        """
        self._check(record, failed=False)
        self.folder.write(_name("tiles", record.id), record.to_bytes())

    def put_failed(self, record: Record) -> None:
        """Record that a super-tile was given up; credentials are taken out of its error.

        Raises
        ------
        RecordError
            When the record is of another plan, or not of a failure.
        TargetError
        """
        self._check(record, failed=True)
        error = {k: self.location.scrub(v) for k, v in (record.error or {}).items()}
        clean = replace(record, error=error)
        self.folder.write(_name("failed", record.id), clean.to_bytes())

    def get(self, tile: str) -> Record | None:
        """The record of a super-tile that is done, or None.

        Raises
        ------
        RecordError
            When it is torn, of an unknown version, or of another plan.
        TargetError
        """
        raw = self.folder.read(_name("tiles", tile))
        return None if raw is None else self._parsed("tiles", tile, raw, self.folder)

    def is_given_up(self, tile: str) -> bool:
        """Whether a super-tile is marked as given up, by whoever did it.

        Raises
        ------
        TargetError
        """
        return self.folder.exists(_name("failed", tile))

    def withdraw(self, tile: str) -> None:
        """Take back that a super-tile is done.

        Raises
        ------
        TargetError
        """
        self.folder.delete(_name("tiles", tile))

    def forget_failure(self, tile: str) -> None:
        """Take back that a super-tile was given up.

        Raises
        ------
        TargetError
        """
        self.folder.delete(_name("failed", tile))

    def delete(self, tile: str) -> None:
        """Forget a super-tile, done or failed; to be called before its data is written again.

        Raises
        ------
        TargetError
        """
        self.withdraw(tile)
        self.forget_failure(tile)

    def done(self, expected: Iterable[str] | None = None) -> dict[str, Record]:
        """Records of super-tiles that are done or empty, keyed by id, in order of ordinals.

        A record that cannot be trusted counts as not done and is told in :attr:`problems`.

        Parameters
        ----------
        expected : iterable of str, optional
            Ids to ask for one by one where listing is forbidden.  Records of other super-tiles
            (of another layout) are not found then.

        Raises
        ------
        TargetError
        """
        return self._scan("tiles", expected)

    def names(self) -> list[str]:
        """Ids of super-tiles that have a record, trusted or not; nothing is read.

        Raises
        ------
        TargetError
        """
        return [_tile(name) for name in self.folder.list("tiles")]

    def contested(self) -> set[str]:
        """Ids that have a record *and* were given up: one of two processes died before it looked.

        Empty where listing is forbidden.

        Raises
        ------
        TargetError
        """
        try:
            marked = {_tile(name) for name in self.folder.list("failed")}
            return marked & set(self.names()) if marked else marked
        except TargetError as error:
            if error.kind != "forbidden":
                raise
            return set()

    def failed(self, expected: Iterable[str] | None = None) -> dict[str, Record]:
        """Records of super-tiles that were given up, keyed by id; otherwise as :meth:`done`."""
        return self._scan("failed", expected)

    def _scan(self, kind: str, expected: Iterable[str] | None) -> dict[str, Record]:
        folder, tiles = self._present(kind, expected)
        self.problems = []
        found = self._copied(tiles) if kind == "tiles" and len(tiles) >= FEW else []

        seen = {record.id for record in found}
        read = _each(lambda tile: folder.read(f"{kind}/{tile}.json"), tiles.keys() - seen)
        for tile, raw in read:
            try:
                if raw is not None:
                    found.append(self._parsed(kind, tile, raw, folder))
            except RecordError as error:
                self.problems.append(str(error))
        return {record.id: record for record in sorted(found, key=lambda r: r.ordinal)}

    def _present(
        self, kind: str, expected: Iterable[str] | None
    ) -> tuple[Location, dict[str, str | None]]:
        """Super-tiles that have a record, or may have one, and what a listing says of its bytes.

        With the folder to read them from.
        """
        try:
            told = self.folder.digests(kind)
            return self.folder, {_tile(name): told[name] for name in sorted(told)}
        except TargetError as error:
            if error.kind != "forbidden" or expected is None:
                raise
        return replace(self.folder, lists=False), dict.fromkeys(expected)

    def _copied(self, tiles: Mapping[str, str | None]) -> list[Record]:
        """Records that are in bundles, byte for byte what the listing speaks of."""
        wanted = {told: tile for tile, told in tiles.items() if told is not None}
        found: list[Record] = []
        for told, raw in copies(self.folder, wanted) if wanted else ():
            with suppress(RecordError):  # read one by one, which tells what is wrong
                found.append(self._parsed("tiles", wanted[told], raw, self.folder))
        return found

    def _parsed(self, kind: str, tile: str, raw: bytes, folder: Location) -> Record:
        """The record of a super-tile, if that is what these bytes are."""
        where = f"{folder.display}/{_name(kind, tile)}"
        record = Record.from_bytes(raw, where)
        if record.id != tile:
            raise RecordError(f"{where}: holds the record of super-tile {record.id!r}")
        try:
            self._check(record, failed=kind == "failed")
            self._check_box(record)
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from None
        return record

    def _check(self, record: Record, *, failed: bool) -> None:
        if record.fingerprint != self.fingerprint:
            raise RecordError(
                f"super-tile {record.id!r} is of plan {record.fingerprint[:_SHORT]}, "
                f"not of {self.fingerprint[:_SHORT]}"
            )
        if (record.state == "failed") != failed:
            raise RecordError(
                f"super-tile {record.id!r}: state {record.state!r} is in its wrong place"
            )

    def _check_box(self, record: Record) -> None:
        """Refuse a record that speaks of other cells than those it is named after."""
        if self._cells is None:
            return
        dims, output = self._cells
        box = record.box
        if box.ndim != len(dims) or box_id(dims, box) != record.id:
            raise RecordError(f"its box {box.to_json()} is not the one it is named after")
        if not box or not output.contains(box):
            raise RecordError(f"its box {box.to_json()} lies outside the output")

    @property
    def _cells(self) -> tuple[tuple[str, ...], Box] | None:
        """Axes and cells of the output, as the recorded plan has them; None before there is one.

        Asked of the plan beside the records, once, so that every reader knows them.
        """
        if self._asked:
            return self._known
        layout: Mapping[str, Any] = {}
        try:
            layout = json.loads(self.read_plan() or "{}").get("layout", {})
        except RecordError:  # who reads the plan will tell
            pass
        except TargetError as error:  # to who may not list, what is absent is forbidden
            if error.kind != "forbidden":
                raise
        with suppress(KeyError, TypeError, ValueError):
            self._known = tuple(layout["dims"]), Box.of_shape(layout["shape"])
        self._asked = True
        return self._known

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        found = plan.get("fingerprint")
        if found != self.fingerprint:
            raise RecordError(
                f"plan.json has fingerprint {found!r}, its folder is for {self.fingerprint!r}"
            )


def fingerprints(location: Location) -> list[str]:
    """Fingerprints of the plans recorded beside a target, sorted.

    Raises
    ------
    RecordError
        When a ``plan.json`` is torn or has no fingerprint.
    TargetError
    """
    state = location.sibling(STATE)
    found = []
    for folder in (name for name in state.list() if not name.startswith(".")):  # no probes
        raw = state.read(f"{folder}/plan.json")
        if raw is None:  # the run died before it wrote its plan: nothing was done
            continue
        where = f"{state.display}/{folder}/plan.json"
        value = parse_object(raw, where).get("fingerprint")
        if not isinstance(value, str) or value[:_SHORT] != folder:
            raise RecordError(f"{where}: fingerprint {value!r} is not that of its folder")
        found.append(value)
    return sorted(found)


def current_fingerprint(location: Location) -> str | None:
    """The fingerprint of the plan whose result a target holds; None when there is no plan.

    Other plans may have left records beside the target; the target itself says which one is its.

    Raises
    ------
    RecordError, TargetError
    """
    found = owner(read_root(location))
    if found is not None:
        return found
    known = fingerprints(location)
    return known[-1] if known else None


def _name(kind: str, tile: str) -> str:
    if not _ID.fullmatch(tile):
        raise RecordError(f"{tile!r} cannot name a super-tile: use letters, digits, _, . and -")
    return f"{kind}/{tile}.json"


def mark_of(tile: str) -> str:
    """The object that says that a super-tile was given up."""
    return _name("failed", tile)


def _tile(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".json")


def _each(read: Callable[[str], T], tiles: Iterable[str]) -> Iterator[tuple[str, T]]:
    """What is read of each, a group at a time, by one thread or by many.

    Many help where it takes time until a place answers.  Where it does at once they only wait for
    one another, as Python runs one at a time: 25,600 files took 3.6 s by 32 threads, 0.6 s by one.
    """
    names = sorted(tiles)
    quick, start, size = True, 0, _FEW
    with ThreadPoolExecutor(_READERS) as pool:  # starts none that is not needed
        while group := names[start : start + size]:
            began = time.perf_counter()
            if quick:
                found = [read(name) for name in group]
                quick = time.perf_counter() - began < _QUICK * len(group)
            else:
                found = list(pool.map(carried(read), group))
            yield from zip(group, found, strict=True)
            start, size = start + size, _GROUP
