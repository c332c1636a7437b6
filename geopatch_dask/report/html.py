"""The report of a run as one page: no script, no network, readable on paper.

Everything is drawn from three things that are beside the target: the JSON of the plan, the report
of the last run, and the records.  The page of a run that died half-way is made in the same way.
Its size is bounded: maps and timeline are coarsened (:mod:`.maps`, :mod:`.timeline`), lists are cut
and say so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from geopatch_dask.planning.memory import MemoryPlan
from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.report.charts import memory_bars, phase_bars
from geopatch_dask.report.details import (
    failed_section,
    first_pass,
    hollow,
    left_out,
    problems,
    slowest,
)
from geopatch_dask.report.maps import PATTERNS, legend, seconds_map, state_map
from geopatch_dask.report.markup import Markup, shortened, tag
from geopatch_dask.report.style import CSS
from geopatch_dask.report.survey import Survey, layout_of, survey
from geopatch_dask.report.timeline import PHASES, Span, spans_of, timeline
from geopatch_dask.store.records import Record

__all__ = ["report_html"]

#: The page may do nothing but show itself, whatever got into it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
#: Most characters of a name.
_NAME = 300


def report_html(
    plan: Mapping[str, Any], report: Mapping[str, Any], records: Sequence[Record]
) -> str:
    """Draw the report of a run.  Pure: the same three things give the same page.

    Parameters
    ----------
    plan : mapping
        The JSON of ``plan.json``.
    report : mapping
        That of ``report.json``; empty while there is none.
    records : sequence of Record
        Of super-tiles that are done, empty or failed, of any layout.

    Returns
    -------
    str
        An HTML document of less than 5 MB, at any number of super-tiles.  All text in it is
        escaped.

    Raises
    ------
    RecordError
        When the plan does not say how the output is cut.
    """
    facts = _Facts(plan, report, records)
    body = [
        PATTERNS,
        tag("main", *_head(facts), *_maps(facts), *_times(facts), *_lists(facts), *_about(facts)),
    ]
    top = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{facts.verdict}: {facts.target}"),
        tag("style", Markup(CSS)),
    ]
    page = tag("html", tag("head", *top), tag("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


@dataclass(frozen=True)
class _Facts:
    """What is told, computed once; numbers of strangers are kept within reason."""

    plan: Mapping[str, Any]
    report: Mapping[str, Any]
    records: Sequence[Record]

    @cached_property
    def survey(self) -> Survey:
        return survey(layout_of(self.plan), self.records)

    @cached_property
    def done(self) -> list[Record]:
        return [r for r in self.records if r.state != "failed"]

    @cached_property
    def spans(self) -> list[Span]:
        return spans_of(self.records)

    @property
    def target(self) -> str:
        return shortened(self.report.get("target") or _in(self.plan, "target", "url"), _NAME)

    @property
    def complete(self) -> bool:
        """As the report says; without one, whether every super-tile is done."""
        told = self.report.get("complete")
        counts = self.survey.counts
        return told if isinstance(told, bool) else not counts["pending"] + counts["failed"]

    @property
    def verdict(self) -> str:
        if self.complete:
            holes = self.sum("uncovered") + self.sum("failed_patches")
            return "complete, with gaps" if holes else "complete"
        return "cancelled" if self.report.get("cancelled") is True else "not complete"

    @cached_property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, over all records; phases that are not ours as one."""
        found: dict[str, float] = defaultdict(float)
        for record in self.done:
            for name, value in record.seconds.items():
                found[name if name in PHASES else "other"] += float(min(value, 1e9))
        return dict(found)

    @cached_property
    def peaks(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for r in self.done:
            if r.peak_rss:
                worker = f"{r.host}:{r.pid}"
                found[worker] = max(found.get(worker, 0), min(r.peak_rss, 2**62))
        return found

    @property
    def planned(self) -> int:
        """Bytes of one worker slot."""
        told = _number(self.report.get("planned_memory"))
        try:
            return told or MemoryPlan(**self.plan["memory"]).total
        except (KeyError, TypeError):
            return 0

    @cached_property
    def versions(self) -> dict[str, list[str]]:
        """Versions by package; more than one where workers did not agree."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for record in self.records:
            for package, number in record.versions.items():
                found[package][number] += 1
        return {name: [v for v, _ in seen.most_common(4)] for name, seen in found.items()}

    def sum(self, name: str) -> int:
        """Of one number over the super-tiles that are done."""
        values: list[int] = [getattr(record, name) for record in self.done]
        return min(sum(values), 2**62)


# ---- sections ------------------------------------------------------------------------------


def _head(facts: _Facts) -> Iterable[Markup]:
    good = facts.verdict == "complete"
    badge = tag("span", f"{'✓' if good else '✗'} {facts.verdict}", class_="badge " + _look(good))
    yield tag("div", badge)
    yield tag("h1", facts.target)
    yield tag("p", tag("code", shortened(facts.plan.get("fingerprint", ""), 64)), class_="what")
    yield from _running(facts)
    yield tag("div", *_boxes(facts), class_="facts")


def _running(facts: _Facts) -> Iterable[Markup]:
    """Runs under way, where whoever asks for the page knows of them."""
    for text in _texts(facts.report.get("running"))[:20]:
        yield tag("p", "Running ", shortened(text, _NAME))


def _boxes(facts: _Facts) -> Iterable[Markup]:
    counts, report = facts.survey.counts, facts.report
    total = sum(counts.values())
    ready = total - counts["pending"] - counts["failed"]
    yield _box(f"{ready:,} of {total:,}", "super-tiles done")
    if counts["failed"]:
        yield _box(f"{counts['failed']:,}", "super-tiles failed", warn=True)
    if (seconds := report.get("seconds")) is not None:
        yield _box(_time(seconds), "wall time of the last run")
    elif facts.spans:
        wall = max(s.stop for s in facts.spans) - facts.spans[0].start
        yield _box(_time(wall), "from the first record to the last")
    yield _box(_time(sum(facts.phases.values())), "worker time")
    yield _box(f"{facts.sum('patches'):,}", "patches run")
    yield _box(bytes_text(facts.sum("bytes_read")), "read, uncompressed")
    yield _box(bytes_text(facts.sum("bytes_written")), "written")
    for name, words in (
        ("uncovered", "cells reached by no patch"),
        ("failed_patches", "patches failed and left out"),
    ):
        value = facts.sum(name)
        yield _box(f"{value:,}", words, warn=value > 0)
    yield _box(f"{facts.sum('missing'):,}", "cells of missing data")
    if no_answer := facts.sum("hollow_patches"):
        yield _box(f"{no_answer:,}", "patches with data and no answer", warn=True)
    if rows := min(sum(r.rows for r in facts.done), 2**62):
        yield _box(f"{rows:,}", "rows of tables")
    again = sum(r.attempts > 1 for r in facts.records)
    yield _box(f"{_retries(facts):,}", "requests to stores repeated")
    yield _box(f"{again:,}", "super-tiles tried again")


def _maps(facts: _Facts) -> Iterable[Markup]:
    mosaic = facts.survey.mosaic()
    timed, key = seconds_map(mosaic)
    yield tag("h2", "Super-tiles")
    left = [tag("h3", "by state"), state_map(mosaic), legend(facts.survey.counts)]
    right = [tag("h3", "by seconds of worker time"), timed, key]
    yield tag("div", tag("div", *left), tag("div", *right), class_="side")
    notes = []
    if mosaic.block != (1, 1):
        notes.append(
            f"A cell of the map stands for {mosaic.block[0]} x {mosaic.block[1]} super-tiles: the "
            "worst state of them, the mean of their seconds."
        )
    if mosaic.stacked > 1:
        notes.append(
            f"The last two axes of {len(facts.survey.layout.dims)}; a cell stands for the "
            f"{mosaic.stacked:,} super-tiles behind it: the worst state, the mean of the seconds."
        )
    if notes:
        yield tag("p", " ".join(notes), class_="note")


def _times(facts: _Facts) -> Iterable[Markup]:
    yield tag("h2", "Workers")
    keys = [
        tag("span", _swatch(f"f-{name}"), name, class_="key")
        for name in (*PHASES, "other", "failed")
        if name in PHASES or any(s.kind == name for s in facts.spans)
    ]
    yield tag("p", "Bars by the phase that took longest: ", *keys, class_="keys")
    yield timeline(facts.spans)
    limit = _number(facts.plan.get("memory_limit"))
    phases = [tag("h3", "Worker time by phase"), phase_bars(facts.phases)]
    memory = [tag("h3", "Peak memory, planned and measured")]
    memory.append(memory_bars(facts.peaks, facts.planned, limit))
    yield tag("div", tag("div", *phases), tag("div", *memory), class_="side")


def _lists(facts: _Facts) -> Iterable[Markup]:
    told = facts.report.get("failures")
    pairs = [
        (str(f.get("id", "")), str(f.get("error", "")))
        for f in (told if isinstance(told, list) else [])
        if isinstance(f, Mapping)
    ]
    yield first_pass(_mapping(facts.report.get("first_pass")))
    yield failed_section(facts.records, pairs)
    yield left_out(facts.records)
    yield hollow(facts.records)
    yield problems(_texts(facts.report.get("problems")))
    yield slowest(facts.records)


def _about(facts: _Facts) -> Iterable[Markup]:
    layout, report = facts.survey.layout, facts.report
    cut = ", ".join(f"{d} {n:,}" for d, n in zip(layout.dims, layout.shape, strict=True))
    versions = [
        f"{name} {' and '.join(shortened(v, 40) for v in found)}"
        for name, found in list(facts.versions.items())[:40]
    ]
    mixed = [name for name, found in facts.versions.items() if len(found) > 1]
    rows = [
        ("output", f"{cut} cells"),
        ("super-tiles", f"{layout.count:,} of {_by(layout.tile)}"),
        (
            "chunks",
            _by(layout.chunks) + (f", shards {_by(layout.shards)}" if layout.shards else ""),
        ),
        ("operator", _in(facts.plan, "parts", "operator", "name")),
        ("field", _in(facts.plan, "field", "path") or _in(facts.plan, "field", "kind")),
        ("begun", report.get("started")),
        ("done before", report.get("skipped")),
        ("written through", report.get("client")),
        ("worker slots", facts.plan.get("slots")),
        ("versions", ", ".join(versions)),
    ]
    yield tag("h2", "About this run")
    shown = [(name, value) for name, value in rows if value not in (None, "")]
    pairs = [
        tag(t, shortened(v, 2000)) for row in shown for t, v in zip(("dt", "dd"), row, strict=True)
    ]
    yield tag("dl", *pairs)
    if mixed:
        yield tag("p", f"Workers had different versions of {', '.join(mixed)}.", class_="bad")


# ---- parts ---------------------------------------------------------------------------------


def _box(value: str, words: str, warn: bool = False) -> Markup:
    look = "fact warn" if warn else "fact"
    return tag("div", tag("b", value), tag("span", words, class_="note"), class_=look)


def _swatch(look: str) -> Markup:
    picture = tag("rect", x=1, y=1, width=16, height=12, class_=look)
    return tag("svg", picture, width=18, height=14, aria_hidden="true")


def _look(good: bool) -> str:
    return "good" if good else "bad"


def _retries(facts: _Facts) -> int:
    """Of all records, or of the last run's report, which also counts attempts that failed."""
    numbers = facts.report.get("numbers")
    told = _number(numbers.get("retries")) if isinstance(numbers, Mapping) else 0
    return max(told, facts.sum("retries"))


def _time(seconds: object) -> str:
    if isinstance(seconds, int | float) and seconds >= 0:
        return seconds_text(float(min(seconds, 1e9)))
    return "?"


def _number(value: object) -> int:
    """A count, or 0 for what is none."""
    return min(value, 2**62) if type(value) is int and value > 0 else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _in(data: object, *keys: str) -> str:
    """A text somewhere in JSON, "" when it is not there."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, str) else ""


def _by(numbers: Sequence[int]) -> str:
    return " x ".join(map(str, numbers))
