"""What a run did, in numbers and words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from geopatch_dask.errors import RunIncomplete
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.report.markup import clean, first_line
from geopatch_dask.report.outcome import Outcome, Summary
from geopatch_dask.store.records import Record, now

__all__ = ["Failure", "Report", "hollow_text"]


#: Super-tiles that a report names.
_NAMED = 100
#: Most characters of an error in a line.
_LINE = 300


def hollow_text(names: Sequence[str]) -> str:
    """What super-tiles with hollow patches mean, and what to do about them.

    >>> hollow_text(["y0-8_x0-8"])[:66]
    'patches with data, of which the operator made nothing but missing '
    """
    named = ", ".join(map(clean, names[:5])) + (" ..." if len(names) > 5 else "")
    return (
        "patches with data, of which the operator made nothing but missing values, in "
        f"{named}; if that is wrong, mend it, and geopatch retry computes them again"
    )


@dataclass(frozen=True)
class Failure:
    """A super-tile that was given up: its id, and ``Type: message`` of the error.

    In the process that drove the run, the first of a report has its traceback, too.
    """

    id: str
    error: str
    traceback: str = field(default="", repr=False, compare=False)


@dataclass
class Report:
    """The report of one run.

    Parameters
    ----------
    target : str
    fingerprint : str
    supertiles : int
        Of the plan.
    skipped : int
        Found done by earlier runs.
    seconds : float
        Wall time.
    planned_memory : int, bytes
        Peak of one worker slot by the plan.
    summary : Summary
        Of this run.
    totals : dict
        Cells of the whole target, earlier runs included: ``fill``, ``uncovered``, ``missing``;
        and ``rows``, where there are tables.
    failed_patches : int
        Patches of the whole target that failed and were left out.
    hollow : list of str
        Super-tiles of the whole target with hollow patches: they had data, and the operator made
        nothing but missing values of it.  The first hundred.
    failures : list of Failure
    problems : list of str
        Records that were not trusted, and the like.
    complete : bool
    cancelled : bool
        Whether somebody asked the run to stop.
    first_pass : dict
        Why the first pass of the plan failed, if it did: ``error``, a line, and ``traceback``.
    cause : RunIncomplete or None
        The same as an exception, in the process that drove the run; not in the JSON.
    started : str
        UTC, ISO 8601.
    client : str
        What moves bytes to the target.
    """

    target: str
    fingerprint: str
    supertiles: int
    skipped: int = 0
    seconds: float = 0.0
    planned_memory: int = 0
    summary: Summary = field(default_factory=Summary)
    totals: dict[str, int] = field(default_factory=dict)
    failed_patches: int = 0
    hollow: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complete: bool = False
    cancelled: bool = False
    first_pass: dict[str, str] = field(default_factory=dict)
    cause: RunIncomplete | None = field(default=None, repr=False, compare=False)
    started: str = field(default_factory=now)
    client: str = ""

    @classmethod
    def start(
        cls, plan: PlanBase, records: Mapping[str, Record], problems: Iterable[str]
    ) -> Report:
        """The report of a run that has not begun."""
        names = ["fill", "uncovered", "missing", *(["rows"] if plan.tables else [])]
        return cls(
            target=plan.target.display,
            fingerprint=plan.fingerprint,
            supertiles=plan.n_supertiles,
            planned_memory=plan.memory.total,
            totals={name: sum(getattr(r, name) for r in records.values()) for name in names},
            failed_patches=sum(r.failed_patches for r in records.values()),
            hollow=[r.id for r in records.values() if r.hollow_patches][:_NAMED],
            problems=list(problems),
            client=getattr(plan.target, "client_name", ""),
        )

    def add(self, outcome: Outcome) -> None:
        """Count one super-tile."""
        self.summary = self.summary + Summary.of(outcome)
        if outcome.state == "failed":
            where = (outcome.error or {}).get("traceback", "") if not self.failures else ""
            self.failures.append(Failure(outcome.id, outcome.why, where))
            return
        for name in self.totals:
            self.totals[name] += outcome.numbers[name]
        self.failed_patches += outcome.numbers["failed_patches"]
        if outcome.numbers["hollow_patches"] and len(self.hollow) < _NAMED:
            self.hollow.append(outcome.id)

    @property
    def ok(self) -> bool:
        """Whether the target is complete, every cell was covered, and no patch was left out."""
        return self.complete and not self.holes

    @property
    def holes(self) -> int:
        """Cells that no patch reached, and patches that failed and were left out."""
        return self.totals.get("uncovered", 0) + self.failed_patches

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without secrets."""
        return {
            "schema": 1,
            "target": self.target,
            "fingerprint": self.fingerprint,
            "started": self.started,
            "client": self.client,
            "supertiles": self.supertiles,
            "skipped": self.skipped,
            "states": dict(self.summary.states),
            "seconds": round(self.seconds, 3),
            "seconds_by_phase": {k: round(v, 3) for k, v in self.summary.seconds.items()},
            "numbers": dict(self.summary.numbers),
            "totals": self.totals,
            "planned_memory": self.planned_memory,
            "failed_patches": self.failed_patches,
            "hollow": self.hollow,
            "failures": [{"id": f.id, "error": f.error} for f in self.failures],
            "problems": self.problems,
            "complete": self.complete,
            "cancelled": self.cancelled,
            "first_pass": self.first_pass,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of :meth:`to_json`."""
        summary = Summary(
            states=data["states"],
            numbers=data["numbers"],
            seconds=data["seconds_by_phase"],
            failed=tuple(failure["id"] for failure in data["failures"]),
            complete=data["complete"],
        )
        names = ["target", "fingerprint", "supertiles", "skipped", "seconds", "planned_memory"]
        names += ["totals", "problems", "complete", "cancelled", "started", "client"]
        names += ["failed_patches", "hollow"]
        failures = [Failure(**failure) for failure in data["failures"]]
        first_pass = data.get("first_pass", {})  # older ones have none
        given = {name: data[name] for name in names}
        return cls(summary=summary, failures=failures, first_pass=first_pass, **given)

    def __str__(self) -> str:
        lines = [f"{name:<12}{text}" for name, text in self._lines()]
        return "\n".join(lines)

    def _lines(self) -> Iterable[tuple[str, str]]:
        s, n = self.summary, self.summary.numbers
        state = "complete" if self.complete else "NOT COMPLETE"
        state += ", cancelled" if self.cancelled else ""
        yield "target", f"{self.target}  ({state})"
        counts = [f"{s.done} done"]
        for name, value in (
            ("empty", s.states.get("empty", 0)),
            ("failed", s.states.get("failed", 0)),
            ("done before", self.skipped),
        ):
            if value:
                counts.append(f"{value} {name}")
        yield "super-tiles", f"{self.supertiles}: " + ", ".join(counts)
        yield "wall time", seconds_text(self.seconds)
        if n.get("patches"):
            left_out = f", {n['failed_patches']:,} FAILED and left out"
            yield "patches", f"{n['patches']:,}{left_out if n['failed_patches'] else ''}"
            yield (
                "bytes",
                f"{bytes_text(n['bytes_read'])} read, {bytes_text(n['bytes_written'])} written "
                f"({self.client}"
                + (f", {n['retries']:,} requests repeated)" if n["retries"] else ")"),
            )
            phases = sorted(s.seconds.items(), key=lambda kv: -kv[1])
            yield "worker time", ", ".join(f"{k} {seconds_text(v)}" for k, v in phases if v >= 0.05)
            peak, planned = bytes_text(n["peak_rss"]), bytes_text(self.planned_memory)
            yield "memory", f"{peak} peak of a worker, {planned} planned"
        yield "cells", ", ".join(f"{self.totals.get(k, 0):,} {k}" for k in ("uncovered", "missing"))
        if "rows" in self.totals:
            yield "rows", f"{self.totals['rows']:,}"
        if self.hollow:
            yield "hollow", hollow_text(self.hollow)
        if self.first_pass:
            yield "failed", first_line(self.first_pass["error"], _LINE)
        for failure in self.failures[:5]:
            yield "failed", f"{failure.id}: {first_line(failure.error, _LINE)}"
        if len(self.failures) > 5:
            yield "", f"... and {len(self.failures) - 5} more: geopatch status --failed lists them"
        for problem in self.problems[:5]:
            yield "problem", problem
