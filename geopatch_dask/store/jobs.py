"""Who is working on a target: one small object per run, rewritten every few seconds.

::

    out.zarr.geopatch/<fp8>/runs/<id>.json      how far the run is; gone when it has ended
                                 <id>.cancel    somebody wants it to stop
                                 latest.json    the same as <id>.json, of whoever wrote last; only
                                                where listing is forbidden, to be found at all

That is all there is between a run and those who watch or cancel it: any process that can read and
write the target's store can do both, without reaching a scheduler.  An object that has not been
rewritten for :data:`STALE` seconds belongs to a run that died.  Clocks of machines are compared, so
they should agree to some seconds.

A submitted run has its object before anybody works on it::

    "submitted" ---- a worker takes it up ----> "preparing" ---- first heartbeat ----> "running"
         |
         +---- cancelled, or forgotten: the object is gone, and who takes it up then ends at once

and may keep it for hours, as a busy cluster lets it wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from geopatch_dask.errors import GeopatchError, RecordError, TargetError
from geopatch_dask.store.location import Location
from geopatch_dask.store.record_format import now, parse_object
from geopatch_dask.store.records import Ledger

__all__ = [
    "BEAT",
    "LOOK",
    "QUEUE",
    "STALE",
    "Heartbeat",
    "RunState",
    "announce",
    "cancel",
    "forget_run",
    "runs",
    "said",
    "take_up",
]

#: Seconds between two heartbeats, and after which a run counts as dead.
BEAT = 2.0
STALE = 60.0
#: Of so many heartbeats one is a look at whether the target is still there.
LOOK = 5
#: Seconds after which nobody waits for a submitted run any more that has not begun.
QUEUE = 86_400.0

_FOLDER = "runs"
_LATEST = f"{_FOLDER}/latest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run last said of itself.

    Parameters
    ----------
    id : str
    started, updated : str
        UTC, ISO 8601.
    host : str
    pid : int
        Of the process that drives it.
    total : int
        Super-tiles of this run, those found done left out.
    done, failed : int
        Of these.
    patches, bytes_read, bytes_written : int
    before : int
        Super-tiles found done.
    state : str
        ``"submitted"`` (it waits for a worker), ``"preparing"`` (a worker has taken it up) or
        ``"running"``.
    share : str
        ``"3/16"`` for a run of part of a plan, else "".
    dashboard : str
        Address of the Dask dashboard, or "".
    scheduler : str
        Of a submitted run, the address of what is to begin it, as the submitter knows it.
    """

    id: str
    started: str
    updated: str
    host: str
    pid: int
    total: int = 0
    done: int = 0
    failed: int = 0
    patches: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    before: int = 0
    state: str = "running"
    share: str = ""
    dashboard: str = ""
    scheduler: str = ""

    @property
    def age(self) -> float:
        """Seconds since it was last heard from."""
        then = datetime.fromisoformat(self.updated)
        return max((datetime.now(UTC) - then).total_seconds(), 0.0)

    @property
    def begun(self) -> bool:
        """Whether it has told how far it is: one that was submitted may wait for a worker."""
        return self.state == "running"

    @property
    def working(self) -> bool:
        """Whether it was heard from lately."""
        return self.age < STALE

    @property
    def alive(self) -> bool:
        """Whether it was heard from lately, or waits for a worker to begin it."""
        return self.age < (STALE if self.begun else QUEUE)

    @classmethod
    def begin(
        cls,
        run: str = "",
        state: str = "running",
        share: str = "",
        dashboard: str = "",
        scheduler: str = "",
    ) -> RunState:
        """Of a run that begins in this process; ``run`` is its id, if it has one already."""
        moment = now()
        return cls(
            id=run or uuid.uuid4().hex[:12],
            started=moment,
            updated=moment,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=state,
            share=share,
            dashboard=dashboard,
            scheduler=scheduler,
        )

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> RunState:
        """Read what :class:`Heartbeat` wrote.

        Raises
        ------
        RecordError
        """
        raw = parse_object(data, name)
        told: dict[str, Any] = {}
        for item in fields(cls):
            kind = int if item.type == "int" else str
            absent = None if item.default is MISSING else item.default
            told[item.name] = raw.get(item.name, absent)  # an earlier version says less
            if type(told[item.name]) is not kind:
                raise RecordError(f"{name}: {item.name} is {told[item.name]!r}")
        state = cls(**told)
        try:
            datetime.fromisoformat(state.updated)
        except ValueError as error:
            raise RecordError(f"{name}: {error}") from None
        return state


class Heartbeat:
    """Tells of one run, and listens whether it is to stop.

    A store that does not answer is no reason for a run to end: then nothing is told.

    Parameters
    ----------
    ledger : Ledger
    state : RunState
    """

    def __init__(self, ledger: Ledger, state: RunState) -> None:
        self.ledger = ledger
        self.state = state

    def beat(self, **numbers: Any) -> bool:
        """Tell how far the run is; False when somebody wants it to stop."""
        self.state = replace(self.state, updated=now(), **numbers)
        with contextlib.suppress(GeopatchError):
            announce(self.ledger, self.state)
            return not self.ledger.folder.exists(f"{_FOLDER}/{self.state.id}.cancel")
        return True

    def end(self) -> None:
        """The run has ended, in whatever way."""
        with contextlib.suppress(GeopatchError):
            forget_run(self.ledger, self.state.id)


def runs(ledger: Ledger) -> list[RunState]:
    """Runs that work on a plan's target, or died doing so, the oldest first.

    Where listing is forbidden, only the one that was heard from last.

    Raises
    ------
    TargetError
    """
    found = []
    folder, names = _present(ledger)
    for name in names:
        raw = folder.read(name) if name.endswith(".json") else None
        if raw is None:  # ended meanwhile
            continue
        with contextlib.suppress(RecordError):  # of another version: not ours to read
            found.append(RunState.from_bytes(raw, name))
    return sorted(found, key=lambda state: state.started)


def _present(ledger: Ledger) -> tuple[Location, list[str]]:
    """Where what runs say is read from, and names of it."""
    try:
        return ledger.folder, [n for n in ledger.folder.list(_FOLDER) if n != _LATEST]
    except TargetError as error:
        if error.kind != "forbidden":
            raise
    return replace(ledger.folder, lists=False), [_LATEST]


def said(ledger: Ledger, run: str) -> RunState | None:
    """What one run last said of itself; None when it has ended, or was cancelled before it began.

    Raises
    ------
    RecordError
    TargetError
    """
    name = f"{_FOLDER}/{run}.json"
    raw = ledger.folder.read(name)
    return None if raw is None else RunState.from_bytes(raw, name)


def announce(ledger: Ledger, state: RunState) -> None:
    """Tell what a run says of itself.  One that was submitted without this will not begin.

    Raises
    ------
    TargetError
    """
    data = json.dumps(asdict(state)).encode()
    ledger.folder.write(f"{_FOLDER}/{state.id}.json", data)
    if not ledger.location.lists:
        ledger.folder.write(_LATEST, data)


def take_up(ledger: Ledger, run: str) -> bool:
    """Begin a submitted run, or one whose worker died, in this process.

    Returns
    -------
    bool
        False when somebody cancelled it: nothing is to be done then, and nothing is left of it.

    Raises
    ------
    RecordError
    TargetError
    """
    before = said(ledger, run)
    if before is not None:
        mine = replace(before, state="preparing", host=socket.gethostname(), pid=os.getpid())
        if Heartbeat(ledger, mine).beat():
            return True
    forget_run(ledger, run)
    return False


def cancel(ledger: Ledger, run: RunState) -> None:
    """Ask a run to stop; it does at its next heartbeat.  One that waits for a worker is forgotten.

    Raises
    ------
    TargetError
    """
    if run.state == "submitted":
        forget_run(ledger, run.id)
    else:
        ledger.folder.write(f"{_FOLDER}/{run.id}.cancel", b"{}")


def forget_run(ledger: Ledger, run: str) -> None:
    """Remove what a run left that died, or has not begun.

    Raises
    ------
    TargetError
    """
    ledger.folder.delete(f"{_FOLDER}/{run}.json")
    ledger.folder.delete(f"{_FOLDER}/{run}.cancel")
    if not ledger.location.lists and any(state.id == run for state in runs(ledger)):
        ledger.folder.delete(_LATEST)
