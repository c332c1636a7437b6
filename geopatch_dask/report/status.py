"""How far a target has come, read from its records: while it runs, after a crash, when done.

Nothing but the target's store is asked: no scheduler, no process of the run.  The target's own
document says which plan it is of, so that folders need not be listed to find it, and where listing
is forbidden the records of all super-tiles are asked for one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopatch_dask.errors import OptionError, RecordError, TargetError
from geopatch_dask.planning.core import read_plan
from geopatch_dask.planning.drawing import pyplot
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.report.html import report_html
from geopatch_dask.report.markup import clean, first_line, shortened
from geopatch_dask.report.places import frame_of, place_of
from geopatch_dask.report.report import hollow_text
from geopatch_dask.report.survey import COLOURS, STATES, layout_of, survey
from geopatch_dask.store.jobs import RunState, runs
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger, Record, current_fingerprint
from geopatch_dask.store.target import COMPLETE, read_root

if TYPE_CHECKING:
    import geopandas
    from rich.console import Group

__all__ = ["Status", "status"]

#: Failures and problems that are told without being asked.
_FAILURES, _PROBLEMS = 10, 5
#: Most characters of an error in a line.
_LINE = 300
#: What whoever sees failures does next.
_NEXT = (
    "geopatch status --traceback shows where; once the cause is mended, geopatch retry computes "
    "them again"
)


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
    runs : tuple of RunState
        Runs that work on the target, or died doing so.
    plan, report : mapping
        The JSON of the plan, and of the last run's report; {} while there is none.
    attributes : mapping
        Of the target's group.
    """

    target: str
    fingerprint: str
    complete: bool
    layout: Layout
    states: Mapping[str, str]
    records: Mapping[str, Record]
    problems: tuple[str, ...] = ()
    runs: tuple[RunState, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict, repr=False)
    report: Mapping[str, Any] = field(default_factory=dict, repr=False)
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Super-tiles by state."""
        found = {"done": 0, "empty": 0, "failed": 0, "pending": 0}
        for state in self.states.values():
            found[state] += 1
        return found

    @property
    def failed(self) -> list[Record]:
        """Records of super-tiles that were given up."""
        return [r for r in self.records.values() if r.state == "failed"]

    def totals(self) -> dict[str, int]:
        """Sums over the records of what is done.

        Patches, those left out, hollow ones, rows, bytes written; fill, uncovered, missing cells;
        requests to stores that were repeated.
        """
        names = ["patches", "failed_patches", "hollow_patches", "bytes_written"]
        names += ["fill", "uncovered", "missing", "rows", "retries"]
        kept = [r for r in self.records.values() if r.state != "failed"]
        return {name: sum(getattr(r, name) for r in kept) for name in names}

    # ---- text ------------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = [*self._lines(), *self._failures(), *self._doubts()]
        return "\n".join(f"{name:<13}{text}" for name, text in lines)

    def table(self, failed: bool = False, traceback: bool = False) -> Group:
        """Counts, totals and failures for a terminal, to be printed by rich.

        Parameters
        ----------
        failed : bool
            Name every failed super-tile, and not only the first few.
        traceback : bool
            Show where each of them failed, too.
        """
        from rich.console import Group  # workers import this module, and print nothing
        from rich.table import Table
        from rich.text import Text

        facts = Table.grid(padding=(0, 1, 0, 0))
        facts.add_column(min_width=12, style="dim")
        facts.add_column(overflow="fold")
        for name, text in [*self._lines(), *self._doubts()]:
            facts.add_row(Text(name), Text(text))
        if not self.failed:
            return Group(facts)
        errors = Table(box=None, pad_edge=False, header_style="bold")
        errors.add_column("failed", style="red", no_wrap=True)
        errors.add_column("attempts", justify="right")
        errors.add_column("error", overflow="fold")
        shown = self.failed if failed else self.failed[:_FAILURES]
        for record in shown:
            errors.add_row(Text(clean(record.id)), str(record.attempts), Text(_why(record)))
        left = len(self.failed) - len(shown)
        more = [Text(_more(left))] if left else []
        where = [Text(_where(record)) for record in shown] if traceback else []
        return Group(facts, Text(), errors, *more, *where, Text(f"\n{_NEXT}"))

    def _lines(self) -> Iterator[tuple[str, str]]:
        counts, totals = self.counts, self.totals()
        yield "target", f"{self.target}  ({'complete' if self.complete else 'not complete'})"
        yield "fingerprint", self.fingerprint[:16]
        states = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        yield "super-tiles", f"{self.layout.count}: {states}"
        for run in self.runs:
            yield _doing(run), _heard(run)
        if isinstance(told := self.report.get("first_pass"), Mapping) and told:
            yield "failed", first_line(told.get("error"), _LINE)
        written = bytes_text(totals["bytes_written"])
        yield "written", f"{written} by {totals['patches']:,} patches"
        yield "cells", f"{totals['uncovered']:,} uncovered, {totals['missing']:,} missing"
        if totals["failed_patches"]:
            errors = [text for record in self.records.values() for text in record.patch_errors]
            first = f"; the first: {first_line(errors[0], _LINE)}" if errors else ""
            yield "left out", f"{totals['failed_patches']:,} patches whose operator failed{first}"
        if totals["hollow_patches"]:
            names = [r.id for r in self.records.values() if r.hollow_patches]
            yield "hollow", f"{totals['hollow_patches']:,} {hollow_text(names)}"
        if totals["rows"]:
            yield "rows", f"{totals['rows']:,}"
        if totals["retries"]:
            yield "retries", f"{totals['retries']:,} requests to stores repeated"

    def _failures(self) -> Iterator[tuple[str, str]]:
        for record in self.failed[:_FAILURES]:
            yield "failed", f"{clean(record.id)}: {_why(record)}"
        if len(self.failed) > _FAILURES:
            yield "", _more(len(self.failed) - _FAILURES)
        if self.failed:
            yield "", _NEXT

    def _doubts(self) -> Iterator[tuple[str, str]]:
        for text in self.problems[:_PROBLEMS]:
            yield "problem", shortened(text, _LINE)
        if len(self.problems) > _PROBLEMS:
            yield "", f"... and {len(self.problems) - _PROBLEMS:,} more"

    # ---- pictures --------------------------------------------------------------------------

    def plot(self, ax: Any = None) -> Any:
        """A map of the super-tiles by state; needs the ``plot`` extra.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            A new figure's by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        plt = pyplot()
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        axes = plt.subplots(figsize=(7, 6), layout="constrained")[1] if ax is None else ax
        whole = survey(self.layout, list(self.records.values()))
        mosaic = whole.mosaic()
        (rows, columns), (height, width) = mosaic.states.shape, mosaic.shape
        extent = (0, columns * mosaic.cells[1], rows * mosaic.cells[0], 0)
        colours = ListedColormap([COLOURS[name] for name in STATES])
        look = {"cmap": colours, "vmin": -0.5, "vmax": len(STATES) - 0.5, "aspect": "auto"}
        axes.imshow(mosaic.states, extent=extent, interpolation="nearest", **look)
        if max(rows, columns) <= 64:
            axes.hlines([r * mosaic.cells[0] for r in range(rows)], 0, width, "k", linewidth=0.4)
            axes.vlines(
                [c * mosaic.cells[1] for c in range(columns)], 0, height, "k", linewidth=0.4
            )
        axes.set(xlim=(0, width), ylim=(height, 0), xlabel=f"{mosaic.dims[1]} (cells)")
        axes.set_ylabel(f"{mosaic.dims[0]} (cells)" if mosaic.dims[0] else "")
        if not mosaic.dims[0]:
            axes.set_yticks([])
        axes.set_aspect("equal" if mosaic.dims[0] else "auto")
        axes.set_title(self.target, fontsize=8)
        handles = [
            Patch(facecolor=COLOURS[name], edgecolor="k", label=f"{name} {n}")
            for name, n in whole.counts.items()
            if n
        ]
        # Beside the map: every corner of it is a super-tile that may be the one looked for.
        beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
        axes.legend(handles=handles, fontsize=8, **beside)
        return axes

    def draw(self, path: str | os.PathLike[str]) -> Path:
        """:meth:`plot` as a PNG."""
        plt = pyplot()
        axes = self.plot()
        axes.figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(axes.figure)
        return Path(path)

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """One row per super-tile, with its polygon; needs the ``geo`` extra.

        Returns
        -------
        geopandas.GeoDataFrame
            Columns ``id``, ``state``, ``seconds``, numbers of the record, ``worker``,
            ``finished``, ``error`` and ``geometry``.  In the CRS of the target; without one, or
            on labels that are not evenly spaced, ``crs`` is None and coordinates are cells.

        Raises
        ------
        GeopatchError
            When geopandas is not installed.
        """
        place = place_of(self.layout, self.attributes)
        return frame_of(self.layout, self.states, self.records, place)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """The report of the last run, or of a run under way, as one HTML file.

        Raises
        ------
        OptionError
            When the file cannot be written.
        """
        told = dict(self.report) | {"target": self.target, "complete": self.complete}
        told["problems"] = list(self.problems)
        told["running"] = [_heard(run) for run in self.runs if run.alive]
        page = report_html(self.plan, told, list(self.records.values()))
        out = Path(path)
        try:
            out.write_text(page, "utf-8")
        except OSError as error:
            raise OptionError(f"{out} cannot be written: {error.strerror}") from None
        return out


def status(target: Any, storage_options: Mapping[str, Any] | None = None) -> Status:
    """Read how far a target has come.

    Needs permission to read; to list, too, only where the target itself is gone.

    Parameters
    ----------
    target : path, URL, Location or zarr store
    storage_options : mapping
        For the target.

    Raises
    ------
    TargetError
        When no plan is recorded beside the target, or it cannot be read.
    RecordError
        When the plan itself cannot be read.
    """
    location = Location.of(target, storage_options)
    found = (read_root(location) or {}).get("attributes")
    attributes = found if isinstance(found, dict) else {}
    fingerprint = current_fingerprint(location)
    ledger = Ledger(location, fingerprint) if fingerprint else None
    text = ledger.read_plan() if ledger else None
    if ledger is None or text is None:
        raise TargetError(
            f"no plan is recorded beside {location.display}; is this the target of a run?"
        )
    document = read_plan(text)
    layout = layout_of(document)
    # Ids are made only where they are needed: where listing is forbidden.
    done = ledger.done(expected=(tile.id for tile in layout))
    problems = list(ledger.problems)
    failed = ledger.failed(expected=(tile.id for tile in layout if tile.id not in done))
    problems += ledger.problems
    report = _report(ledger, problems)
    return Status(
        target=location.display,
        fingerprint=ledger.fingerprint,
        complete=attributes.get(COMPLETE) is True,
        layout=layout,
        states=_states(layout, done, failed),
        records={**failed, **done},
        problems=tuple(problems),
        runs=_runs(ledger),
        plan=document,
        report=report,
        attributes=attributes,
    )


def _states(
    layout: Layout, done: Mapping[str, Record], failed: Mapping[str, Record]
) -> dict[str, str]:
    pending = set(layout.unfinished([r.box for r in done.values()]))
    states: dict[str, str] = {}
    for tile in layout:
        if tile.ordinal not in pending:
            states[tile.id] = done[tile.id].state if tile.id in done else "done"
        else:
            states[tile.id] = "failed" if tile.id in failed else "pending"
    return states


def _runs(ledger: Ledger) -> tuple[RunState, ...]:
    """Runs that are known; none where listing is forbidden."""
    with _unless_forbidden():
        return tuple(runs(ledger))
    return ()


def _report(ledger: Ledger, problems: list[str]) -> Mapping[str, Any]:
    """The last run's; who may not list is told that an absent object is forbidden."""
    try:
        with _unless_forbidden():
            return ledger.read_report() or {}
    except RecordError as error:
        problems.append(str(error))
    return {}


@contextmanager
def _unless_forbidden() -> Iterator[None]:
    try:
        yield
    except TargetError as error:
        if error.kind != "forbidden":
            raise


def _doing(run: RunState) -> str:
    """What a run is at, in a word."""
    if not run.alive:
        return "died"
    return "running" if run.begun else "waiting"


def _heard(run: RunState) -> str:
    failed = f", {run.failed:,} failed" if run.failed else ""
    share = f", share {clean(run.share)}" if run.share else ""
    far = f"on {clean(run.host)}:{run.pid}, {run.done:,} of {run.total:,}{failed}{share}"
    ago = f"{run.age:.0f} s" if run.age < 60 else seconds_text(run.age)
    if not run.begun:
        how = "submitted from" if run.state == "submitted" else "taken up by"
        return f"{how} {clean(run.host)}:{run.pid} {ago} ago, has not begun"
    if run.alive:
        return f"{far}, heard from {ago} ago"
    return f"{far}, not heard from for {ago}: run the same command again"


def _why(record: Record) -> str:
    """The first line of an error."""
    error = record.error or {}
    return first_line(f"{error.get('type')}: {error.get('message')}", _LINE)


def _where(record: Record) -> str:
    """The traceback of an error, under the name of its super-tile."""
    trace = (record.error or {}).get("traceback") or "no traceback was recorded"
    return f"\n{clean(record.id)}\n{clean(trace)}"


def _more(count: int) -> str:
    return f"... and {count:,} more: --failed lists them"
