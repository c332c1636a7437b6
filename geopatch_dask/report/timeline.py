"""Who worked when: a row per worker process, a bar per super-tile.

Times are those that the workers wrote down.  Hours in which nobody worked (between a crash and the
next run) are cut out and said so.  A process that computes several super-tiles at the same time has
several lanes.  Bars that would be thinner than :data:`_LEAST` pixels are merged with their
neighbours and coloured by what took most of their time, so a timeline of a hundred thousand
super-tiles is no larger than one of a few thousand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

from geopatch_dask.planning.units import seconds_text
from geopatch_dask.report.markup import Markup, joined, shortened, tag
from geopatch_dask.report.survey import busy
from geopatch_dask.store.records import Record

__all__ = ["PHASES", "Span", "spans_of", "timeline", "workers_of"]

#: Phases of a super-tile in the order in which they come.
PHASES = ("read", "operate", "aggregate", "finalize", "write", "sync")
_WIDTH, _LEFT, _RIGHT = 800, 170, 30
#: Pixels: of a bar at least, of a lane, of a row at least and between rows.
_LEAST, _LANE, _ROW, _BETWEEN = 3.0, 11, 13, 4
#: Most rows, lanes of one of them, and lanes in all.
WORKERS, _LANES, _ALL_LANES = 40, 16, 96
#: More bars than this have no tooltips.
_LABELLED = 1500
#: Idle seconds, share of the busy time, beyond which a pause is cut out; most cuts; their pixels.
_IDLE, _SHARE, _CUTS, _CUT = 60.0, 0.2, 8, 26
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)


@dataclass(frozen=True, slots=True)
class Span:
    """One super-tile in the life of a worker; seconds since the epoch."""

    worker: str
    start: float
    stop: float
    kind: str
    id: str


@dataclass(slots=True)
class _Bar:
    """Some spans drawn as one; pixels."""

    start: float
    stop: float
    lane: int
    spans: list[Span]
    shares: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def kind(self) -> str:
        return max(self.shares, key=lambda kind: self.shares[kind])

    def add(self, span: Span, stop: float) -> None:
        self.stop = max(self.stop, stop)
        self.spans.append(span)
        self.shares[span.kind] += span.stop - span.start + 1e-6


def spans_of(records: Iterable[Record]) -> list[Span]:
    """Spans in the order of their beginning; of failures only the moment of giving up is known.

    Records without readable times are left out.
    """
    found = []
    for record in records:
        start, stop = _moment(record.started), _moment(record.finished)
        if start is None or stop is None:
            continue
        start = stop if record.state == "failed" else min(start, stop)
        found.append(Span(f"{record.host}:{record.pid}", start, stop, _kind(record), record.id))
    return sorted(found, key=lambda span: (span.start, span.stop))


def workers_of(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Spans by worker, in the order in which workers began; failures are nobody's."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        if span.kind != "failed":
            found.setdefault(span.worker, []).append(span)
    return found


def timeline(spans: Sequence[Span]) -> Markup:
    """The timeline, as an SVG element with its notes.

    Parameters
    ----------
    spans : sequence of Span
        Of :func:`spans_of`.
    """
    if not spans:
        return tag("p", "No super-tile has been finished yet.", class_="note")
    clock = _Clock(spans)
    rows = workers_of(spans)
    shown = set(sorted(rows, key=lambda w: -sum(s.stop - s.start for s in rows[w]))[:WORKERS])
    room = min(_LANES, max(_ALL_LANES // max(len(shown), 1), 1))
    y, most = 6.0, 0
    parts: list[Markup] = []
    bars: list[tuple[_Bar, float, float]] = []
    for worker in (w for w in rows if w in shown):
        lanes, mine = _bars(rows[worker], clock, room)
        height = max(lanes * _LANE, _ROW)
        parts.append(_row(worker, len(rows[worker]), y, height))
        bars += [(bar, y + bar.lane * height / lanes, height / lanes) for bar in mine]
        most = max(most, lanes)
        y += height + _BETWEEN
    given_up = [span for span in spans if span.kind == "failed"]
    if given_up:
        parts.append(_row("given up", len(given_up), y, _ROW))
        bars += [(bar, y, float(_ROW)) for bar in _bars(given_up, clock, 1)[1]]
        y += _ROW + _BETWEEN
    total = (_LEFT + _WIDTH + _RIGHT, y + 34)
    picture = tag(
        "svg",
        tag("title", "Timeline of the workers"),
        *parts,
        *clock.drawn(y),
        _drawn(bars),
        viewBox=f"0 0 {total[0]:g} {total[1]:g}",
        style=f"max-width:{total[0]:g}px",
        role="img",
        class_="timeline",
    )
    return joined(
        [tag("div", picture, class_="wide"), *_notes(clock, len(rows) - len(shown), most)]
    )


def _notes(clock: _Clock, hidden: int, lanes: int) -> Iterable[Markup]:
    began = datetime.fromtimestamp(clock.pieces[0][0], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    words = [f"Time since {began}, by the clocks of the workers."]
    if len(clock.pieces) > 1:
        words.append("Times in which nobody worked are cut out.")
    if lanes > 1:
        words.append("A worker with several lanes computes several super-tiles at the same time.")
    if hidden:
        words.append(f"{hidden:,} more workers, which did less, are not shown.")
    yield tag("p", " ".join(words), class_="note")


# ---- time to pixels ------------------------------------------------------------------------


class _Clock:
    """Seconds to pixels, with long pauses cut out."""

    def __init__(self, spans: Sequence[Span]) -> None:
        covered: list[list[float]] = []
        for span in spans:
            if covered and span.start <= covered[-1][1]:
                covered[-1][1] = max(covered[-1][1], span.stop)
            else:
                covered.append([span.start, span.stop])
        worked = sum(b - a for a, b in covered)
        gaps = [(right[0] - left[1], i) for i, (left, right) in enumerate(pairwise(covered))]
        long = [(gap, i) for gap, i in gaps if gap > max(_IDLE, _SHARE * worked)]
        cuts = {i for _, i in sorted(long, reverse=True)[:_CUTS]}
        #: Begin and end of what is drawn in one piece.
        self.pieces: list[tuple[float, float]] = []
        first = covered[0][0]
        for i, (_, stop) in enumerate(covered):
            if i in cuts or i == len(covered) - 1:
                self.pieces.append((first, stop))
                first = covered[i + 1][0] if i in cuts else first
        shown = sum(b - a for a, b in self.pieces)
        self.scale = (_WIDTH - _CUT * (len(self.pieces) - 1)) / max(shown, 1e-3)
        self.offsets = [float(_LEFT)]
        for a, b in self.pieces:
            self.offsets.append(self.offsets[-1] + (b - a) * self.scale + _CUT)

    def at(self, moment: float) -> float:
        """Pixel of a moment."""
        for (a, b), offset in zip(self.pieces, self.offsets, strict=False):
            if moment <= b:
                return offset + max(moment - a, 0.0) * self.scale
        return float(_LEFT + _WIDTH)

    def drawn(self, bottom: float) -> list[Markup]:
        """Ticks, and marks where time was cut out."""
        zero, parts = self.pieces[0][0], []
        shown = sum(b - a for a, b in self.pieces)
        step = next((s for s in _STEPS if shown / s <= 8), 86400 * max(int(shown / 6e5), 1))
        last = -100.0
        for (a, b), offset in zip(self.pieces, self.offsets, strict=False):
            tick = -(-(a - zero) // step) * step
            while zero + tick <= b:
                x = offset + (zero + tick - a) * self.scale
                parts.append(tag("line", x1=_n(x), x2=_n(x), y1=2, y2=_n(bottom), class_="grid"))
                if x - last >= 56:
                    words = _ticked(tick)
                    parts.append(tag("text", words, x=_n(x), y=_n(bottom + 15), class_="tick mid"))
                    last = x
                tick += step
        return [*parts, *self._cuts(bottom)]

    def _cuts(self, bottom: float) -> Iterable[Markup]:
        last = -100.0
        for ((_, left), (right, _)), offset in zip(
            pairwise(self.pieces), self.offsets[1:], strict=False
        ):
            x = offset - _CUT / 2
            yield tag("rect", x=_n(x - 4), y=2, width=8, height=_n(bottom), class_="cut")
            if x - last >= 70:
                words = f"{_ticked(right - left)} idle"
                yield tag("text", words, x=_n(x), y=_n(bottom + 29), class_="tick mid")
                last = x


def _ticked(seconds: float) -> str:
    """A round time, short.

    >>> _ticked(0), _ticked(90), _ticked(7200), _ticked(200000)
    ('0', '90 s', '2 h', '2.3 d')
    """
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit or (seconds >= unit and seconds % unit < 1):
            count = seconds / unit
            return f"{count:.2g} {name}" if count < 100 else f"{count:.0f} {name}"
    return f"{seconds:.0f} s" if seconds else "0"


# ---- bars ----------------------------------------------------------------------------------


def _bars(spans: Sequence[Span], clock: _Clock, most: int) -> tuple[int, list[_Bar]]:
    """Bars of one worker, and how many lanes they need."""
    ends: list[float] = []
    last: list[_Bar | None] = []
    found: list[_Bar] = []
    for span in spans:
        lane = next((k for k, end in enumerate(ends) if span.start >= end - 1e-3), len(ends))
        if lane == len(ends) and lane < most:
            ends.append(0.0)
            last.append(None)
        lane = min(lane, most - 1)
        ends[lane] = max(ends[lane], span.stop)
        start, stop = clock.at(span.start), clock.at(span.stop)
        bar = last[lane]
        if bar is None or not _joins(bar, start, stop):
            bar = last[lane] = _Bar(start, stop, lane, [])
            found.append(bar)
        bar.add(span, stop)
    return max(len(ends), 1), found


def _joins(bar: _Bar, start: float, stop: float) -> bool:
    """Whether a span is drawn as part of the bar before it."""
    if start < bar.stop - 1:  # more at the same time than there are lanes
        return True
    thin = bar.stop - bar.start < _LEAST and stop - start < _LEAST
    return stop - bar.start < _LEAST or (thin and start - bar.stop < 1)


def _row(name: str, count: int, y: float, height: float) -> Markup:
    label = name if len(name) <= 24 else f"{name[:8]}...{name[-13:]}"
    words = f"{name}: {count:,} super-tiles"
    middle = _n(y + height / 2 + 4)
    text = tag("text", label, tag("title", words), x=_LEFT - 8, y=middle, class_="tick end")
    ground = {"x": _LEFT, "y": _n(y), "width": _WIDTH, "height": _n(height)}
    return joined([tag("rect", class_="lane", **ground), text])


def _drawn(bars: Sequence[tuple[_Bar, float, float]]) -> Markup:
    """Bars of one kind as one path; failures last, on top of all."""
    paths: dict[str, list[str]] = defaultdict(list)
    labels = []
    for bar, y, height in bars:
        width = max(bar.stop - bar.start - 0.7, _LEAST - 0.7)
        paths[bar.kind].append(
            f"M{_n(bar.start)} {_n(y + 0.5)}h{_n(width)}v{_n(height - 1)}h{_n(-width)}z"
        )
        if len(bars) <= _LABELLED:
            place = {"x": _n(bar.start), "y": _n(y), "width": _n(width), "height": _n(height)}
            labels.append(tag("rect", tag("title", _words(bar)), class_="over", **place))
    order = sorted(paths, key=lambda kind: kind == "failed")
    drawn = [tag("path", d="".join(paths[kind]), class_=f"f-{kind}") for kind in order]
    return joined([*drawn, *labels])


def _words(bar: _Bar) -> str:
    first = bar.spans[0]
    if bar.kind == "failed":
        more = f" and {len(bar.spans) - 1} more" if len(bar.spans) > 1 else ""
        return f"{shortened(first.id, 80)}{more} given up"
    seconds = seconds_text(sum(s.stop - s.start for s in bar.spans))
    what = shortened(first.id, 80) if len(bar.spans) == 1 else f"{len(bar.spans)} super-tiles"
    return f"{what}, {seconds}, mostly {bar.kind}"


def _kind(record: Record) -> str:
    """What took most of the time of a super-tile."""
    if record.state == "failed":
        return "failed"
    if not busy(record):
        return "other"
    phase = max(record.seconds, key=lambda name: record.seconds[name])
    return phase if phase in PHASES else "other"


def _moment(text: str) -> float | None:
    """Seconds since the epoch; None for what is no time."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _n(value: float) -> str:
    """A number for a path: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")
