"""What a run did, in numbers and words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from geopatch_dask.execute.graph import Summary
from geopatch_dask.execute.tile import Outcome
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.store.records import Record

__all__ = ["Failure", "Report"]


@dataclass(frozen=True)
class Failure:
    """A super-tile that was given up: its id, and ``Type: message`` of the error."""

    id: str
    error: str


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
    failures : list of Failure
    problems : list of str
        Records that were not trusted.
    complete : bool
    """

    target: str
    fingerprint: str
    supertiles: int
    skipped: int = 0
    seconds: float = 0.0
    planned_memory: int = 0
    summary: Summary = field(default_factory=Summary)
    totals: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def start(
        cls, plan: PlanBase, records: Mapping[str, Record], problems: Iterable[str]
    ) -> Report:
        """The report of a run that has not begun."""
        names = ("fill", "uncovered", "missing", *(("rows",) if plan.tables else ()))
        return cls(
            target=plan.target.display,
            fingerprint=plan.fingerprint,
            supertiles=plan.n_supertiles,
            planned_memory=plan.memory.total,
            totals={name: sum(getattr(r, name) for r in records.values()) for name in names},
            problems=list(problems),
        )

    def add(self, outcome: Outcome) -> None:
        """Count one super-tile."""
        self.summary = self.summary + Summary.of(outcome)
        if outcome.state == "failed":
            self.failures.append(Failure(outcome.id, outcome.error))
            return
        for name in self.totals:
            self.totals[name] += outcome.numbers[name]

    @property
    def ok(self) -> bool:
        """Whether the target is complete and every cell was covered."""
        return self.complete and not self.totals.get("uncovered", 0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without secrets."""
        return {
            "schema": 1,
            "target": self.target,
            "fingerprint": self.fingerprint,
            "supertiles": self.supertiles,
            "skipped": self.skipped,
            "states": dict(self.summary.states),
            "seconds": round(self.seconds, 3),
            "seconds_by_phase": {k: round(v, 3) for k, v in self.summary.seconds.items()},
            "numbers": dict(self.summary.numbers),
            "totals": self.totals,
            "planned_memory": self.planned_memory,
            "failures": [{"id": f.id, "error": f.error} for f in self.failures],
            "problems": self.problems,
            "complete": self.complete,
        }

    def __str__(self) -> str:
        lines = [f"{name:<12}{text}" for name, text in self._lines()]
        return "\n".join(lines)

    def _lines(self) -> Iterable[tuple[str, str]]:
        s, n = self.summary, self.summary.numbers
        state = "complete" if self.complete else "NOT COMPLETE"
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
        if n:
            yield "patches", f"{n['patches']:,}"
            yield (
                "bytes",
                f"{bytes_text(n['bytes_read'])} read, {bytes_text(n['bytes_written'])} written",
            )
            phases = sorted(s.seconds.items(), key=lambda kv: -kv[1])
            yield "worker time", ", ".join(f"{k} {seconds_text(v)}" for k, v in phases if v >= 0.05)
            peak, planned = bytes_text(n["peak_rss"]), bytes_text(self.planned_memory)
            yield "memory", f"{peak} peak of a worker, {planned} planned"
        yield "cells", ", ".join(f"{self.totals.get(k, 0):,} {k}" for k in ("uncovered", "missing"))
        if "rows" in self.totals:
            yield "rows", f"{self.totals['rows']:,}"
        for failure in self.failures[:5]:
            yield "failed", f"{failure.id}: {failure.error}"
        if len(self.failures) > 5:
            yield "", f"... and {len(self.failures) - 5} more"
        for problem in self.problems[:5]:
            yield "problem", problem
