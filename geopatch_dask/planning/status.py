"""How far a target has come, read from its records: while it runs, after a crash, when done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopatch_dask.errors import TargetError
from geopatch_dask.planning.core import read_plan
from geopatch_dask.planning.drawing import draw_states, pyplot
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.planning.units import bytes_text
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger, Record, fingerprints
from geopatch_dask.store.template import is_complete

__all__ = ["Status", "status"]


@dataclass(frozen=True)
class Status:
    """The state of every super-tile of a target.

    Parameters
    ----------
    target, fingerprint : str
    complete : bool
        Whether the target says it is finished.
    layout : Layout
    states : mapping of super-tile id to "done", "empty", "failed" or "pending"
    records : mapping of id to Record
        Of done, empty and failed super-tiles.
    problems : tuple of str
        Records that are not trusted, and why.
    """

    target: str
    fingerprint: str
    complete: bool
    layout: Layout
    states: Mapping[str, str]
    records: Mapping[str, Record]
    problems: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Super-tiles by state."""
        found = {"done": 0, "empty": 0, "failed": 0, "pending": 0}
        for state in self.states.values():
            found[state] += 1
        return found

    def totals(self) -> dict[str, int]:
        """Sums over the records: patches, rows, bytes written; fill, uncovered, missing cells."""
        names = ("patches", "bytes_written", "fill", "uncovered", "missing", "rows")
        kept = [r for r in self.records.values() if r.state != "failed"]
        return {name: sum(getattr(r, name) for r in kept) for name in names}

    def __str__(self) -> str:
        counts, totals = self.counts, self.totals()
        lines = [
            f"target       {self.target}  ({'complete' if self.complete else 'not complete'})",
            f"fingerprint  {self.fingerprint[:16]}",
            f"super-tiles  {self.layout.count}: "
            + ", ".join(f"{n} {state}" for state, n in counts.items() if n),
            f"written      {bytes_text(totals['bytes_written'])} by {totals['patches']:,} patches",
            f"cells        {totals['uncovered']:,} uncovered, {totals['missing']:,} missing",
        ]
        if totals["rows"]:
            lines.append(f"rows         {totals['rows']:,}")
        failed = [r for r in self.records.values() if r.state == "failed"]
        for record in failed[:5]:
            error = record.error or {}
            lines.append(f"failed       {record.id}: {error.get('type')}: {error.get('message')}")
        lines += [f"problem      {text}" for text in self.problems[:5]]
        return "\n".join(lines)

    def draw(self, path: str | os.PathLike[str]) -> Path:
        """A map of the super-tiles, coloured by state, as PNG; needs the ``plot`` extra."""
        plt = pyplot()
        figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
        draw_states(axes, self.layout, self.states)
        axes.set_title(self.target, fontsize=8)
        figure.savefig(path, dpi=110)
        plt.close(figure)
        return Path(path)


def status(target: Any, storage_options: Mapping[str, Any] | None = None) -> Status:
    """Read how far a target has come.

    Parameters
    ----------
    target : path, URL, Location or zarr store
    storage_options : mapping
        For the target.

    Raises
    ------
    TargetError
        When no plan is recorded beside the target.
    RecordError
        When the plan itself cannot be read.
    """
    location = Location.of(target, storage_options)
    known = fingerprints(location)
    if not known:
        raise TargetError(
            f"no plan is recorded beside {location.display}; is this the target of a run?"
        )
    ledger = Ledger(location, known[-1])
    document: dict[str, Any] = read_plan(ledger.read_plan() or "")
    stored = document["layout"]
    layout = Layout(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    done = ledger.done()
    problems = list(ledger.problems)
    failed = ledger.failed()
    problems += ledger.problems
    pending = set(layout.unfinished([r.box for r in done.values()]))
    states: dict[str, str] = {}
    for tile in layout:
        if tile.ordinal not in pending:
            states[tile.id] = done[tile.id].state if tile.id in done else "done"
        else:
            states[tile.id] = "failed" if tile.id in failed else "pending"
    return Status(
        target=location.display,
        fingerprint=known[-1],
        complete=is_complete(location),
        layout=layout,
        states=states,
        records={**failed, **done},
        problems=tuple(problems),
    )
