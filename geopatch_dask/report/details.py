"""The lists of a report: slow and failed super-tiles, patches left out or hollow, problems.

Every list is cut at a length, and says how much is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from geopatch_dask.planning.units import bytes_text
from geopatch_dask.report.markup import EMPTY, Markup, joined, shortened, tag
from geopatch_dask.report.survey import busy
from geopatch_dask.report.timeline import PHASES
from geopatch_dask.store.records import Record

__all__ = ["failed_section", "first_pass", "hollow", "left_out", "problems", "slowest", "table"]

#: Rows of the table of slow ones; failures shown, with their tracebacks and without; other rows.
_SLOW, _TRACED, _NAMED, _ROWS = 10, 100, 1000, 50
#: Most characters of a traceback, a message and a name.
_TRACE, _MESSAGE, _ID = 6000, 500, 120


def slowest(records: Sequence[Record]) -> Markup:
    """The super-tiles that took longest, phase by phase."""
    order = sorted((r for r in records if r.state != "failed"), key=lambda r: (-busy(r), r.ordinal))
    if not order:
        return EMPTY
    heads = ["super-tile", "n:seconds in all", *(f"n:{name}" for name in PHASES)]
    heads += ["n:patches", "n:peak memory", "n:attempts", "worker"]
    rows = []
    for record in order[:_SLOW]:
        phases = [_seconds(record.seconds.get(name)) for name in PHASES]
        memory = bytes_text(min(record.peak_rss, 2**62)) if record.peak_rss else "-"
        numbers = [f"{record.patches:,}", memory, str(record.attempts)]
        rows.append([_id(record.id), _seconds(busy(record)), *phases, *numbers, _worker(record)])
    return joined([tag("h2", "Slowest super-tiles"), table(heads, rows)])


def failed_section(records: Sequence[Record], told: Iterable[tuple[str, str]] = ()) -> Markup:
    """Super-tiles that were given up, with error and traceback.

    Parameters
    ----------
    records : sequence of Record
        All of them; failures of super-tiles that somebody has finished since are left out.
    told : pairs of id and error
        Failures of the last run's report; those that have a record are left out here.
    """
    done = {r.id for r in records if r.state != "failed"}
    failed = [r for r in records if r.state == "failed" and r.id not in done]
    recorded = done | {r.id for r in failed}
    rest = [(name, error) for name, error in told if name not in recorded]
    if not failed and not rest:
        return EMPTY
    parts = [tag("h2", f"Failed super-tiles: {len(failed) + len(rest):,}")]
    parts += [_failure(record) for record in failed[:_TRACED]]
    plain = [(r.id, _why(r)) for r in failed[_TRACED:]] + rest
    items = [tag("li", _id(name), ": ", shortened(error, _MESSAGE)) for name, error in plain]
    if items:
        parts.append(tag("ul", *items[:_NAMED]))
    if len(items) > _NAMED:
        parts.append(_more(len(items) - _NAMED))
    return joined(parts)


def first_pass(failure: Mapping[str, Any]) -> Markup:
    """Why the first pass failed, with its traceback, if it did."""
    if not failure:
        return EMPTY
    what = tag("summary", tag("b", shortened(str(failure.get("error", "")), _MESSAGE)))
    trace = tag("pre", _tail(str(failure.get("traceback", ""))))
    return joined([tag("h2", "The first pass failed"), tag("details", what, trace)])


def left_out(records: Sequence[Record]) -> Markup:
    """Patches whose operator failed and that were left out, because the run was told to."""
    return _patches(
        records,
        lambda r: r.failed_patches,
        "Patches left out",
        "Their operator failed; they count as missing data.",
        {
            "n:left out": lambda r: f"{r.failed_patches:,}",
            "n:of patches": _count,
            "why, the first of them": lambda r: _lines(r.patch_errors),
        },
    )


def hollow(records: Sequence[Record]) -> Markup:
    """Patches with data, of which the operator made nothing but missing values."""
    return _patches(
        records,
        lambda r: r.hollow_patches,
        "Patches without an answer",
        "They had data. If that is wrong, mend the operator; geopatch retry computes them again.",
        {"n:without an answer": lambda r: f"{r.hollow_patches:,}", "n:of patches": _count},
    )


def problems(texts: Sequence[Any]) -> Markup:
    """What was not trusted, and the like."""
    if not texts:
        return EMPTY
    items = [tag("li", shortened(text, _MESSAGE)) for text in texts[:_ROWS]]
    parts = [tag("h2", f"Problems: {len(texts):,}"), tag("ul", *items)]
    return joined(parts if len(texts) <= _ROWS else [*parts, _more(len(texts) - _ROWS)])


def _patches(
    records: Sequence[Record],
    number: Callable[[Record], int],
    title: str,
    note: str,
    columns: Mapping[str, Callable[[Record], object]],
) -> Markup:
    """Super-tiles with patches of some sort, those with most of them first."""
    found = [r for r in records if number(r) and r.state != "failed"]
    if not found:
        return EMPTY
    order = sorted(found, key=lambda r: (-number(r), r.ordinal))
    rows = [[_id(r.id), *(cell(r) for cell in columns.values())] for r in order[:_ROWS]]
    parts = [
        tag("h2", f"{title}: {sum(map(number, found)):,} in {len(found):,} super-tiles"),
        tag("p", note, class_="note"),
        table(["super-tile", *columns], rows),
    ]
    return joined(parts if len(order) <= _ROWS else [*parts, _more(len(order) - _ROWS)])


def _count(record: Record) -> str:
    return f"{record.patches:,}"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; a head that begins with ``n:`` is that of numbers."""
    looks = ["n" if head.startswith("n:") else None for head in heads]
    top = [
        tag("th", head.removeprefix("n:"), class_=look)
        for head, look in zip(heads, looks, strict=True)
    ]
    body = [
        tag("tr", *(tag("td", cell, class_=look) for cell, look in zip(row, looks, strict=True)))
        for row in rows
    ]
    return tag("div", tag("table", tag("tr", *top), *body), class_="wide")


def _failure(record: Record) -> Markup:
    error = record.error or {}
    what = f"{record.attempts} attempt{'s' if record.attempts > 1 else ''}, {record.finished}"
    return tag(
        "details",
        tag("summary", _id(record.id), ": ", tag("b", shortened(_why(record), _MESSAGE))),
        tag("p", shortened(what, _ID), class_="note"),
        tag("pre", _tail(error.get("traceback", ""))),
    )


def _why(record: Record) -> str:
    error: Mapping[str, str] = record.error or {}
    return f"{error.get('type', '')}: {error.get('message', '')}"


def _tail(text: str) -> str:
    """The end of a traceback, where the error is."""
    return text if len(text) <= _TRACE else f"... ({len(text) - _TRACE:,} more)\n{text[-_TRACE:]}"


def _lines(texts: Sequence[str]) -> Markup:
    return joined(tag("div", shortened(text, _MESSAGE)) for text in texts[:3])


def _id(name: str) -> Markup:
    return tag("span", shortened(name, _ID), class_="id")


def _worker(record: Record) -> str:
    return shortened(f"{record.host}:{record.pid}", _ID)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{float(min(seconds, 1e9)):,.2f}"


def _more(count: int) -> Markup:
    return tag("p", f"... and {count:,} more.", class_="note")
