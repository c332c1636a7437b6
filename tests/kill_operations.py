"""``python kill_operations.py WAY FOLDER [URL]``: a small job, killed before every store operation.

The target is in the folder, or at a URL.  WAY says what it is: ``store``, an open zarr store that
counts its operations; or ``place``, a path or URL as users give it, whose clients are made to count
what changes anything: objects that are written, renamed into their place, deleted.  But for a store
in the folder it is sharded, and of fewer super-tiles.

For n = 1, 2, ...: a child process runs the job, which is killed before its n-th operation; what it
left is looked at; another child runs the job again.  Children are forked from a parent that has
imported everything and started nothing, so a round takes tenths of a second.

Prints one JSON object per round; exits when a child gets through without being killed.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sample_operators import Counted, notes
from zarr.storage import LocalStore

import geopatch_dask as gp
from geopatch_dask.store.backends import FsspecBackend, LocalBackend, ObstoreBackend
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.retry import RetryStore
from geopatch_dask.testing import FaultStore, kill_at, merged, read_back
from geopatch_dask.testing.faults import Fault


class Doubling(Counted):
    """Takes what a first pass found, and does nothing with it."""

    def __call__(self, x: Any, context: Any = None) -> Any:
        return super().__call__(x)


#: What changes anything at a place, by class.
CHANGES: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((LocalBackend, FsspecBackend, ObstoreBackend), ("write", "delete", "clear")),
    **dict.fromkeys((LocalStore, RetryStore), ("set", "set_sync", "delete", "delete_sync")),
    Path: ("replace", "unlink"),  # of temporary files
}


def count_changes(fault: Fault) -> None:
    """Have a fault before everything that this process changes at any place from now on."""
    count = itertools.count(1)

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, key: Any = "", *args: Any, **options: Any) -> Any:
            fault(next(count), name, str(key))
            return real(self, key, *args, **options) if key != "" else real(self)

        return method

    for owner, names in CHANGES.items():
        for name in names:
            if name in owner.__dict__:
                setattr(owner, name, counted(name, owner.__dict__[name]))


def planned(target: Any, log: Path, small: bool) -> gp.Plan:
    cells = (12, 24) if small else (24, 36)
    values = np.random.default_rng(3).standard_normal(cells).astype("float32")
    values[:12, 12:24] = np.nan  # one super-tile is empty: no object, only a record
    patcher = gp.Patcher(gp.Rectangular((6, 6)), gp.RegularStride((6, 6)), gp.Boxcar())
    operator = gp.Operator(Doubling(log), version="1")
    return gp.plan(
        *(gp.ArrayField(values), patcher, operator, target),
        outer=(12, 12),
        chunks=(6, 6),
        shards=(12, 12) if small else None,
        context=gp.MeanStd(),
        slots=1,
        memory_limit="1 GiB",
    )


def forked(work: Callable[[], None]) -> int:
    """The wait status of a child that does some work."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def no_fault(count: int, operation: str, key: str) -> None:
    """A store that works."""


class Round:
    """One death: what is done in the children, in order."""

    def __init__(self, way: str, folder: Path, n: int, url: str) -> None:
        self.way, self.folder, self.n, self.url = way, folder / str(n), n, url
        self.folder.mkdir()

    def plan(self, fault: Fault = no_fault) -> gp.Plan:
        place = gp.Location(
            f"{self.url}/{self.n}/out.zarr" if self.url else str(self.folder / "out.zarr")
        )
        target: Any = place
        if self.way == "store":
            target = FaultStore(place.zarr_store(), fault)
        return planned(target, self.folder / "calls.txt", self.way == "place" or bool(self.url))

    def killed(self) -> None:
        if self.way == "place":
            count_changes(kill_at(self.n))
        self.plan(kill_at(self.n)).run("sync")

    def look(self) -> None:
        """What a killed run left: super-tiles with a record, and those of them with wrong data."""
        plan = self.plan()
        expected = merged(plan.field, plan.patcher, lambda x: x * 2)
        done = Ledger(plan.target, plan.fingerprint).done()
        stored = read_back(plan.target) if done else expected
        wrong = [
            record.id
            for record in done.values()
            if stored[record.box.slices()].tobytes() != expected[record.box.slices()].tobytes()
        ]
        self.say("look", records=checksums(done), wrong=wrong)

    def rerun(self) -> None:
        """The same command on a store that works."""
        plan = self.plan()
        calls = notes(self.folder / "calls.txt")
        report = plan.run("sync")
        done = Ledger(plan.target, plan.fingerprint).done()
        made = notes(self.folder / "calls.txt") - calls
        rest = json.loads((self.folder / "look.json").read_text())["records"]
        due = sum(plan.grid.count_touching(t.box) for t in plan.layout if t.id not in rest)
        expected = merged(plan.field, plan.patcher, lambda x: x * 2)
        same = read_back(plan.target).tobytes() == expected.tobytes()
        self.say(
            "rerun",
            complete=report.complete,
            same=same,
            calls=made,
            due=due,
            records=checksums(done),
        )

    def say(self, name: str, **what: Any) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(what))

    def said(self) -> dict[str, Any]:
        return {
            name: json.loads((self.folder / f"{name}.json").read_text())
            for name in ("look", "rerun")
        }


def checksums(records: dict[str, Any]) -> dict[str, int]:
    """By id, of what a record says: it must be the same afterwards."""
    return {name: zlib.crc32(record.to_bytes()) for name, record in records.items()}


def main(way: str, folder: Path, url: str) -> None:
    for n in range(1, 10_000):
        play = Round(way, folder, n, url)
        status = forked(play.killed)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        for work in (play.look, play.rerun):
            if forked(work) != 0:
                sys.exit(f"round {n}: {work.__name__} failed")
        said = {"n": n, "signal": os.WTERMSIG(status), **play.said()}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:] or [""]))
