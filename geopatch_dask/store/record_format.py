"""What is done, and by whom: one small JSON object per super-tile.

A missing chunk does not say "not done" (Zarr stores nothing for a chunk of fill values) and a
present one does not say "done".  Only a record does::

    out.zarr.geopatch/<fp8>/plan.json            written before the first super-tile
                            tiles/<id>.json      after the data of the super-tile was acknowledged
                            failed/<id>.json     instead, when it was given up
                            report.json          at the end of a run

The order is: write the data, write the record, in place of an older one if there is one.  A process
may die between any two steps; what it leaves is a super-tile without a record, which is computed
again.  A record beside a mark in ``failed/`` is not trusted (:mod:`geopatch_dask.store.marks`).

A record is trusted only when all of it is there: it parses, every field has its type, the version
is known, it carries the fingerprint of this plan and the id of its own file, and its box is the one
that the id names, inside the output.  Anything else is a problem to report and a super-tile to
compute.  Records are JSON; nothing is ever unpickled.

A mark in ``failed/`` whose :attr:`Record.finished` is empty is a *claim*: somebody computes the
super-tile again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Literal

from geopatch_dask.errors import RecordError
from geopatch_dask.patch.boxes import Box

__all__ = ["SCHEMA", "Record", "now"]

#: Version of the record format; a reader knows exactly one.
SCHEMA = 1
#: Keys of :attr:`Record.error`.
_ERROR = frozenset({"type", "message", "traceback"})


def now() -> str:
    """The time, UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known about one super-tile once it was worked on.

    Parameters
    ----------
    id : str
        Name of the super-tile; also of its file.
    ordinal : int
        Its index in the plan.
    fingerprint : str
        Of the plan: what decides the values.
    layout : str
        Hash of the super-tiles, chunks and shards: which cells ``id`` stands for.
    box : Box, cells of the output
    state : "done", "empty" or "failed"
        Empty is done too: every cell holds the fill value.
    attempts : int
        Of this run, this one included.
    retries : int
        Requests to stores that were repeated.
    seconds : mapping of str to float
        Wall time by phase.
    bytes_read, bytes_written : int
    patches : int
        Patches run.
    failed_patches : int
        Patches whose operator failed, left out because the run was told to.
    patch_errors : tuple of str
        Why, for the first few of them.
    hollow_patches : int
        Patches with data, of which the operator made nothing but missing values.
    fill, uncovered, missing : int, cells
        Cells that hold the fill value; that no patch reached; reached only by missing data.
    tables : mapping of str to int
        Rows in its part of each table; those without rows are left out.
    checksum : str
        Hex, of the cells and parts as written.
    peak_rss : int, bytes
        Of the process.
    host : str
    pid : int
    started, finished : str
        UTC, ISO 8601; ``finished`` is "" in a claim.
    versions : mapping of str to str
        Of the packages that decide the bytes.
    error : mapping or None
        ``type``, ``message`` and ``traceback``, all text.
    schema : int

    Raises
    ------
    RecordError
        When a value has the wrong type or makes no sense.
    """

    id: str
    ordinal: int
    fingerprint: str
    layout: str
    box: Box
    state: Literal["done", "empty", "failed"]
    attempts: int = 1
    retries: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    patches: int = 0
    failed_patches: int = 0
    patch_errors: tuple[str, ...] = ()
    hollow_patches: int = 0
    fill: int = 0
    uncovered: int = 0
    missing: int = 0
    tables: Mapping[str, int] = field(default_factory=dict)
    checksum: str = ""
    peak_rss: int = 0
    host: str = ""
    pid: int = 0
    started: str = ""
    finished: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise RecordError(f"record of super-tile {self.id!r}: {problem}")

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(self.tables.values())

    def to_bytes(self) -> bytes:
        """One JSON object, UTF-8, no trailing newline: no prefix of it is a record."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}  # in the order of the class
        data["box"] = self.box.to_json()
        for name in ("seconds", "tables", "versions", "error"):
            data[name] = None if data[name] is None else dict(data[name])
        return json.dumps(data, indent=1, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "record") -> Record:
        """Read a record, or say why it is none.

        Parameters
        ----------
        data : bytes
        name : str
            Of the file, for the message.

        Raises
        ------
        RecordError
            For bytes that are torn, empty, not JSON, of an unknown version, with missing or
            unknown fields, or with values of the wrong type.
        """
        raw = parse_object(data, name)
        if type(raw.get("schema")) is not int or raw["schema"] != SCHEMA:
            raise RecordError(
                f"{name}: record version {raw.get('schema')!r}, this package reads {SCHEMA}"
            )
        if raw.keys() != _FIELDS:
            wrong = sorted(_FIELDS.symmetric_difference(raw))
            what = "missing" if wrong[0] in _FIELDS else "unknown"
            raise RecordError(f"{name}: {what} field {wrong[0]!r}")
        try:
            raw["box"] = _box(raw["box"])
            raw["patch_errors"] = _texts(raw["patch_errors"])
            return cls(**raw)
        except RecordError as error:
            raise RecordError(f"{name}: {error}") from None


_FIELDS = frozenset(f.name for f in fields(Record))


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in ``data``.

    Raises
    ------
    RecordError
        When there is none; says which file.
    """
    if not data:
        raise RecordError(f"{name}: empty file")
    try:
        raw = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{name}: torn or not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise RecordError(f"{name}: JSON, but a {type(raw).__name__} where an object belongs")
    return raw


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _box(raw: Any) -> Box:
    sides_ok = (
        isinstance(raw, list)
        and len(raw) == 2
        and all(isinstance(side, list) for side in raw)
        and len(raw[0]) == len(raw[1])
        and set(map(type, raw[0] + raw[1])) <= {int}
    )
    if not sides_ok:
        raise RecordError(f"box {raw!r} is not [start, stop] in cells")
    return Box(tuple(raw[0]), tuple(raw[1]))


def _texts(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise RecordError(f"patch_errors are {raw!r}, not texts")
    return tuple(raw)


_TEXT = ("id", "fingerprint", "layout", "checksum", "host", "started", "finished")
_COUNT = (
    *("ordinal", "attempts", "bytes_read", "bytes_written", "patches", "fill", "uncovered"),
    *("retries", "failed_patches", "hollow_patches"),
    *("missing", "peak_rss", "pid", "schema"),
)
_texts_of, _counts_of = attrgetter(*_TEXT), attrgetter(*_COUNT)


def _problem(record: Record) -> str:
    """Why these values are no record; "" when they are."""
    # By the types that occur, not value by value: 100,000 records are read when a run continues.
    if set(map(type, _texts_of(record))) != {str}:
        for name in _TEXT:
            if not isinstance(getattr(record, name), str):
                return f"{name} is {getattr(record, name)!r}, not text"
    counts = _counts_of(record)
    if set(map(type, counts)) != {int} or min(counts) < 0:
        for name in _COUNT:
            value = getattr(record, name)
            if type(value) is not int or value < 0:
                return f"{name} is {value!r}, not a whole number"
    if not isinstance(record.box, Box):
        return f"box is {record.box!r}, not a Box"
    if record.state not in ("done", "empty", "failed"):
        return f"state is {record.state!r}, not done, empty or failed"
    if not _is_map(record.seconds, int, float) or not all(
        0 <= v < float("inf") for v in record.seconds.values()
    ):
        return f"seconds are {record.seconds!r}, not times by phase"
    if not _is_map(record.tables, int) or any(n < 0 for n in record.tables.values()):
        return f"tables are {record.tables!r}, not rows by name"
    if not _is_map(record.versions, str):
        return f"versions are {record.versions!r}, not text by package"
    if record.error is not None and not (
        _is_map(record.error, str) and set(record.error) == _ERROR
    ):
        return f"error is {record.error!r}, not type, message and traceback"
    if (record.state == "failed") != (record.error is not None):
        return f"state is {record.state!r}, error is {record.error!r}"
    return ""


def _is_map(value: Any, *kinds: type) -> bool:
    return isinstance(value, Mapping) and _are(value, str) and _are(value.values(), *kinds)


def _are(values: Iterable[Any], *kinds: type) -> bool:
    """Whether all are of these types, or of types derived from them; a bool is no number."""
    found = set(map(type, values)).difference(kinds)
    return not found or all(issubclass(kind, kinds) and kind is not bool for kind in found)
