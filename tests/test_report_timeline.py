"""The timeline: who worked when, bounded at any number of super-tiles."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import BEGAN, failed, grid, history, record

from geopatch_dask.report.timeline import Span, spans_of, timeline, workers_of
from geopatch_dask.store.records import Record

LAYOUT = grid(20, 50)


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat()


def worked(ordinal: int, start: float, stop: float, **changes: Any) -> Record:
    return record(LAYOUT, ordinal, started=at(start), finished=at(stop), **changes)


def drawn(picture: str) -> list[tuple[str, float, float, float, float]]:
    """Bars: kind, x, y, width, height."""
    found = []
    for path in ET.fromstring(f"<div>{picture}</div>").iter("path"):
        look = path.get("class", "")
        if look.startswith("f-"):
            rows = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h", path.get("d", ""))
            found += [(look[2:], *map(float, row)) for row in rows]
    return found


def words(picture: str) -> str:
    return " ".join(ET.fromstring(f"<div>{picture}</div>").itertext())


def test_bars_are_where_the_work_was() -> None:
    seconds = [{"read": 3.0, "write": 1.0}, {"operate": 2.0}, {"strange": 1.0}, {}]
    records = [
        worked(0, 0, 10, seconds=seconds[0], pid=1),
        worked(1, 10, 20, seconds=seconds[1], pid=1),
        worked(2, 5, 15, seconds=seconds[2], pid=2),
        worked(3, 15, 20, seconds=seconds[3], pid=2),
    ]
    bars = sorted(drawn(timeline(spans_of(records))), key=lambda bar: (bar[2], bar[1]))
    assert [bar[0] for bar in bars] == ["read", "operate", "other", "other"]
    xs = [bar[1] for bar in bars]
    assert xs[0] < xs[2] < xs[1] < xs[3]
    assert bars[0][3] == pytest.approx(2 * bars[3][3], rel=0.02)
    assert bars[0][2] == bars[1][2] < bars[2][2] == bars[3][2]


def test_super_tiles_at_the_same_time_have_lanes() -> None:
    records = [worked(i, i % 4, 10 + i % 4) for i in range(4)]
    picture = timeline(spans_of(records))
    assert len({y for _, _, y, _, _ in drawn(picture)}) == 4
    assert "several super-tiles at the same time" in words(picture)
    one_by_one = timeline(spans_of([worked(i, 10 * i, 10 * i + 10) for i in range(4)]))
    assert len({y for _, _, y, _, _ in drawn(one_by_one)}) == 1
    assert "at the same time" not in words(one_by_one)


def test_a_night_between_two_runs_is_cut_out() -> None:
    evening = [worked(i, 10 * i, 10 * i + 10) for i in range(6)]
    morning = [worked(i, 40_000 + 10 * i, 40_010 + 10 * i) for i in range(6, 12)]
    picture = timeline(spans_of(evening + morning))
    assert "11 h idle" in words(picture)
    bars = drawn(picture)
    assert len(bars) == 12
    assert all(width > 40 for *_, width, _ in bars)
    assert "idle" not in words(timeline(spans_of(evening)))


def test_a_short_stall_is_shown_and_not_cut() -> None:
    records = [worked(0, 0, 300), worked(1, 350, 700)]
    assert "idle" not in words(timeline(spans_of(records)))


def test_failures_are_a_row_of_their_own() -> None:
    records = [worked(0, 0, 50), failed(LAYOUT, 1, host="driver", finished=at(20))]
    picture = timeline(spans_of(records))
    assert "driver" not in words(picture).replace("given up", "")
    assert [bar[0] for bar in drawn(picture)] == ["operate", "failed"]
    assert workers_of(spans_of(records)).keys() == {"node:100"}
    alone = timeline(spans_of(records[1:]))
    assert [bar[0] for bar in drawn(alone)] == ["failed"]


def test_times_that_cannot_be_read_are_left_out() -> None:
    records = [worked(0, 0, 5), record(LAYOUT, 1, started="", finished="tomorrow")]
    assert [span.id for span in spans_of(records)] == [records[0].id]
    assert "No super-tile has been finished yet" in timeline(spans_of(records[1:]))
    backwards = spans_of([worked(0, 9, 5)])[0]  # a clock that was set
    assert backwards.start == backwards.stop


def test_many_bars_are_merged_and_keep_their_place() -> None:
    records = [worked(i % 1000, i, i + 0.9) for i in range(6_000)]
    picture = timeline(spans_of(records))
    bars = drawn(picture)
    assert len(bars) < 700
    covered = sum(width for *_, width, _ in bars)
    assert covered > 0.6 * 800
    assert len(picture) < 100_000


def test_more_at_the_same_time_than_there_are_lanes() -> None:
    records = [worked(i % 1000, i * 0.01, 50 + i * 0.01) for i in range(3000)]
    bars = drawn(timeline(spans_of(records)))
    assert len({y for _, _, y, _, _ in bars}) == 16
    assert len(bars) < 100


def test_the_kind_of_a_merged_bar_is_what_took_most_time() -> None:
    slow = {"write": 1.0}
    records = [
        worked(i % 1000, i, i + 0.9, seconds=slow if i % 10 == 0 else {"read": 1.0})
        for i in range(6_000)
    ]
    assert {bar[0] for bar in drawn(timeline(spans_of(records)))} == {"read"}


@st.composite
def spans(draw: st.DrawFn) -> Span:
    kind = draw(st.sampled_from(["read", "write", "failed"]))
    start = draw(st.floats(0, 1e6) | st.integers(0, 50).map(float))
    long = 0.0 if kind == "failed" else draw(st.floats(0, 1e4) | st.just(0.0))
    return Span(f"n:{draw(st.integers(0, 60))}", start, start + long, kind, "t")


@settings(max_examples=60)
@given(st.lists(spans(), min_size=1, max_size=80))
def test_bars_stay_inside_and_do_not_cover_each_other(some: list[Span]) -> None:
    some.sort(key=lambda span: (span.start, span.stop))
    picture = timeline(some)
    bars = drawn(picture)
    assert bars
    for _, x, _, width, _ in bars:
        assert x >= 169.9
        assert x + width <= 170 + 800 + 3.1
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, x, y, width, _ in bars:
        rows.setdefault(y, []).append((x, x + width))
    for places in rows.values():
        places.sort()
        for (_, stop), (start, _) in pairwise(places):
            assert start >= stop - 3.1  # a bar is never thinner than 3 pixels


def test_workers_in_order_of_their_beginning() -> None:
    spans = spans_of(history(LAYOUT, list(range(100)), workers=6))
    first = {w: s[0].start for w, s in workers_of(spans).items()}
    assert list(first.values()) == sorted(first.values())
