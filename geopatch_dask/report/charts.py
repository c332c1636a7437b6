"""Bars: time by phase, and memory of every worker against what was planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.report.markup import Markup, joined, shortened, tag
from geopatch_dask.report.timeline import PHASES

__all__ = ["memory_bars", "phase_bars"]

_WIDTH, _LEFT, _RIGHT = 240, 124, 136
_HEIGHT, _STEP = 14, 21
#: Most workers that get a bar.
_WORKERS = 24
#: A limit so many times what is shown beside it is told in words: it would press all bars flat.
_FAR = 3.0


def phase_bars(seconds: Mapping[str, float]) -> Markup:
    """Worker time by phase, in the order of the work; what is not one of ours is ``other``.

    Parameters
    ----------
    seconds : mapping of phase to seconds
    """
    known = {name: float(seconds.get(name, 0.0)) for name in PHASES}
    other = sum(float(v) for name, v in seconds.items() if name not in known)
    if other:
        known["other"] = other
    total = sum(known.values())
    if not total:
        return tag("p", "No time is known.", class_="note")
    longest = max(known.values())
    rows = []
    for k, (name, value) in enumerate(known.items()):
        words = f"{seconds_text(value)}, {value / total:.0%}"
        rows.append(_bar(k, name, value / longest, words, f"f-{name}"))
    return _chart("Worker time by phase", len(rows), rows)


def memory_bars(peaks: Mapping[str, int], planned: int, limit: int) -> Markup:
    """Peak resident memory by worker, the plan and the limit as lines.

    Parameters
    ----------
    peaks : mapping of worker to bytes
    planned, limit : int, bytes
        Of one worker slot; 0 where it is not known.
    """
    if not peaks:
        return tag("p", "No memory was measured.", class_="note")
    order = sorted(peaks, key=lambda worker: (-peaks[worker], worker))
    most = max(peaks[order[0]], planned, 1)
    near = 0 < limit <= _FAR * most
    top = 1.04 * max(most, limit if near else 0)
    rows = []
    for k, worker in enumerate(order[:_WORKERS]):
        above = bool(planned) and peaks[worker] > planned
        words = bytes_text(peaks[worker]) + (" (!)" if above else "")
        look = "m-above" if above else "m-within"
        rows.append(_bar(k, worker, peaks[worker] / top, words, look))
    rows += _lines([("planned", planned), ("limit", limit if near else 0)], top, len(rows))
    chart = _chart("Peak memory by worker", min(len(order), _WORKERS) + 1, rows)
    return joined([chart, _notes(order[_WORKERS:], peaks, planned, limit)])


def _notes(hidden: Sequence[str], peaks: Mapping[str, int], planned: int, limit: int) -> Markup:
    words = []
    if planned:
        words.append(f"Planned: {bytes_text(planned)} for one super-tile at a time.")
    if limit:
        words.append(f"Limit: {bytes_text(limit)}.")
    if planned and (count := sum(peak > planned for peak in peaks.values())):
        words.append(f"(!) {count:,} of {len(peaks):,} workers took more than planned.")
    if hidden:
        words.append(f"{len(hidden):,} more workers took at most {bytes_text(peaks[hidden[0]])}.")
    return tag("p", " ".join(words), class_="note")


def _lines(marks: Sequence[tuple[str, int]], top: float, rows: int) -> list[Markup]:
    bottom, shown = rows * _STEP + 2, [(name, value) for name, value in marks if value]
    found = []
    for (name, value), side in zip(shown, ("tick end", "tick"), strict=False):
        x = _LEFT + _WIDTH * value / top
        found.append(tag("path", d=f"M{x:.1f} 0V{bottom + 10}", class_=f"line-{name}"))
        away = -4 if side == "tick end" else 4
        found.append(tag("text", name, x=f"{x + away:.1f}", y=bottom + 12, class_=side))
    return found


def _bar(k: int, name: str, share: float, words: str, look: str) -> Markup:
    y = k * _STEP + 3
    width = max(share * _WIDTH, 0.5)
    label = name if len(name) <= 19 else f"{name[:5]}...{name[-11:]}"
    whole = tag("title", shortened(name, 300))
    parts = [
        tag("text", label, whole, x=_LEFT - 8, y=y + 11, class_="tick end"),
        tag("rect", x=_LEFT, y=y, width=f"{width:.1f}", height=_HEIGHT, class_=look),
        tag("text", words, x=_LEFT + _WIDTH + 8, y=y + 11, class_="tick"),
    ]
    return joined(parts)


def _chart(title: str, rows: int, parts: Sequence[Markup]) -> Markup:
    size = (_LEFT + _WIDTH + _RIGHT, rows * _STEP + 6)
    look = {"viewBox": f"0 0 {size[0]} {size[1]}", "style": f"max-width:{size[0]}px"}
    return tag("svg", tag("title", title), *parts, role="img", class_="chart", **look)
