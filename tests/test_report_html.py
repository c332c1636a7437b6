"""The report as a page: what it says, that nobody can write into it, and how large it gets."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import BEGAN, GIB, failed, grid, history, plan_of, record

from geopatch_dask.errors import RecordError
from geopatch_dask.report.html import report_html
from geopatch_dask.report.maps import seconds_map, state_map
from geopatch_dask.report.markup import Markup, tag
from geopatch_dask.report.survey import Mosaic, survey

NASTY = (
    "</style><script>alert(1)</script>",
    '" onload="alert(1)',
    "<img src=https://example.org/x.png>",
    "]]> --> &lt;b&gt; &#60;",
    "\x00\x1b[31m\u202e\ud800\uffff",
)
#: Attributes that the page uses; none of them runs anything.
ATTRIBUTES = {
    *("aria-hidden", "charset", "class", "content", "d", "fill", "height", "href", "http-equiv"),
    *("id", "lang", "name", "patternTransform", "patternUnits", "preserveAspectRatio", "role"),
    *("stroke-width", "style", "transform", "viewBox", "width", "x", "x1", "x2", "y", "y1", "y2"),
}


def parsed(page: str) -> ET.Element:
    """The page, which is also XML: every tag is closed, every attribute quoted."""
    page.encode("utf-8")
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def text_of(page: str) -> str:
    root = parsed(page)
    for style in root.iter("style"):
        style.text = ""
    return " ".join(" ".join(root.itertext()).split())


def check_harmless(page: str) -> None:
    root = parsed(page)
    for element in root.iter():
        assert element.tag not in {"script", "img", "iframe", "object", "a", "link", "form"}
        assert set(element.attrib) <= ATTRIBUTES, element.attrib
        assert element.get("href", "#").startswith("#")
        assert "url(" not in element.get("style", "")
    css = next(root.iter("style")).text or ""
    assert "//" not in css
    assert "@import" not in css
    assert "url(" not in css


# ---- what it says --------------------------------------------------------------------------


def test_a_finished_run() -> None:
    layout = grid(3, 4)
    records = history(layout, list(range(12)))
    report = {
        "target": "s3://bucket/out.zarr",
        "complete": True,
        "seconds": 75.0,
        "client": "s3fs 2026.9.0",
        "numbers": {"retries": 40},
        "skipped": 2,
    }
    page = report_html(plan_of(layout), report, records)
    check_harmless(page)
    text = text_of(page)
    for said in (
        "✓ complete s3://bucket/out.zarr",
        "12 of 12 super-tiles done",
        "1 min 15 s wall time of the last run",
        "108 patches run",
        "40 requests to stores repeated",
        f"{sum(r.missing for r in records):,} cells of missing data",
        "written through s3fs 2026.9.0",
        "python 3.11.9, numpy 2.2.0",
        "operator mine:enhance",
        "field scene.tif",
        "Planned: 374.0 MiB for one super-tile at a time. Limit: 1.0 GiB.",
    ):
        assert said in text, said
    for absent in ("Failed", "left out:", "no answer", "Problems", "not done yet", "(!)"):
        assert absent not in text, absent
    for worker in {f"{r.host}:{r.pid}" for r in records}:
        assert text.count(worker) >= 2  # in the timeline and with its memory
    assert page == report_html(plan_of(layout), report, records)


def test_a_run_that_died_has_no_report_and_still_a_page() -> None:
    layout = grid(4, 4)
    records = [
        *history(layout, list(range(6))),
        replace(record(layout, 6), failed_patches=2, patch_errors=("ValueError: NaN in patch",)),
        failed(layout, 7),
        failed(layout, 8, "another & <worse>"),
        replace(record(layout, 9, pid=7), peak_rss=900 << 20, attempts=3, retries=5, uncovered=11),
    ]
    records[0] = replace(records[0], hollow_patches=3)
    text = text_of(report_html(plan_of(layout), {}, records))
    for said in (
        "✗ not complete",
        "8 of 16 super-tiles done",
        "from the first record to the last",
        "2 super-tiles failed",
        "Failed super-tiles: 2",
        "y64-128_x192-256 : ValueError: the lamp is out",
        "return model(patch)",
        "another & <worse>",
        "Patches left out: 2 in 1 super-tiles",
        "ValueError: NaN in patch",
        "3 patches with data and no answer",
        "Patches without an answer: 3 in 1 super-tiles",
        "geopatch retry computes them again",
        "11 cells reached by no patch",
        "6 not done yet",
        "2 done, with patches left out or cells uncovered",
        "1 of 6 workers took more than planned",
        "s3://bucket/out.zarr",
    ):
        assert said in text, said
    assert "wall time" not in text


def test_nothing_done_yet() -> None:
    text = text_of(report_html(plan_of(grid(2, 3)), {}, []))
    for said in (
        "0 of 6 super-tiles done",
        "No super-tile has been finished yet",
        "6 not done yet",
    ):
        assert said in text, said
    assert "Slowest" not in text


def test_complete_is_what_the_target_says() -> None:
    layout = grid(1, 2)
    records = [record(layout, 0), record(layout, 1)]
    plan = plan_of(layout)
    assert "✓ complete" in text_of(report_html(plan, {}, records))
    assert "✗ not complete" in text_of(report_html(plan, {"complete": False}, records))
    cancelled = {"complete": False, "cancelled": True}
    assert "✗ cancelled" in text_of(report_html(plan, cancelled, records[:1]))
    gaps = [records[0], replace(records[1], uncovered=4)]
    assert "✗ complete, with gaps" in text_of(report_html(plan, {"complete": True}, gaps))


def test_a_failure_that_was_mended_is_not_told() -> None:
    layout = grid(1, 2)
    told = {"failures": [{"id": "x0-64", "error": "OSError: no route"}]}
    mended = [failed(layout, 0), record(layout, 0), record(layout, 1)]
    assert "Failed" not in text_of(report_html(plan_of(layout), {}, mended))
    text = text_of(report_html(plan_of(layout), told, mended))
    assert "Failed super-tiles: 1" in text  # it could not even be recorded
    assert "OSError: no route" in text


def test_slowest_are_ten_in_order() -> None:
    layout = grid(5, 5)
    records = [record(layout, i, seconds={"operate": i + 0.25}) for i in range(25)]
    page = report_html(plan_of(layout), {}, records)
    table = text_of(page).split("Slowest super-tiles")[1]
    shown = [float(v) for v in re.findall(r"x\d+-\d+ (\d+\.\d\d)", table)]
    assert shown == [i + 0.25 for i in range(24, 14, -1)]


def test_workers_with_other_versions_are_told() -> None:
    layout = grid(1, 2)
    records = [record(layout, 0), record(layout, 1, versions={"numpy": "2.1.0"})]
    text = text_of(report_html(plan_of(layout), {}, records))
    assert "numpy 2.2.0 and 2.1.0" in text
    assert "Workers had different versions of numpy." in text


@pytest.mark.parametrize("counts", [(1,), (40,), (1, 1), (2, 700), (700, 2), (3, 5, 6), (2, 1, 1)])
def test_any_number_of_axes(counts: tuple[int, ...]) -> None:
    layout = grid(*counts)
    count = layout.count
    page = report_html(plan_of(layout), {}, [record(layout, i) for i in range(0, count, 2)])
    check_harmless(page)
    text = text_of(page)
    assert f"{-(-count // 2)} of {count:,} super-tiles done" in text
    assert ("super-tiles behind it" in text) == (len(counts) == 3 and counts[0] > 1)
    assert ("stands for" in text) == (max(counts) > 256 or (len(counts) == 3 and counts[0] > 1))


def test_a_plan_without_a_layout_is_refused() -> None:
    with pytest.raises(RecordError, match="how the output is cut"):
        report_html({}, {}, [])


# ---- nobody writes into it -----------------------------------------------------------------


def poisoned(text: str) -> str:
    """A page with this text wherever text of strangers can be."""
    layout = grid(2, 3)
    names = replace(layout, dims=(text + "y", text + "x"))
    plan = plan_of(names, fingerprint=text)
    plan |= {"parts": {"operator": {"name": text}}, "field": {"path": text, "kind": text}}
    error = {"type": text, "message": text, "traceback": text}
    records = [
        replace(
            record(layout, 0),
            id=text,
            host=text,
            seconds={text: 1.0, "read": 2.0},
            versions={text: text},
            failed_patches=1,
            patch_errors=(text, text),
        ),
        replace(failed(layout, 1), id=text + "1", error=error, started=text),
        replace(failed(layout, 2), id=text + "2", error=error, host=text),
        record(layout, 3, host=text, started=text),
        record(layout, 4, state="empty", seconds={}),
    ]
    report = {
        "target": text,
        "client": text,
        "started": text,
        "running": [text],
        "problems": [text, {"a": text}],
        "failures": [{"id": text + "3", "error": text}, text],
        "numbers": text,
        "seconds": text,
        "skipped": text,
        "complete": text,
    }
    return report_html(plan, report, records)


@pytest.mark.parametrize("text", NASTY)
def test_text_of_strangers_is_text(text: str) -> None:
    page = poisoned(text)
    check_harmless(page)
    assert "<script" not in page
    assert not set(page) & set("\x00\x1b\u202e\ud800\uffff")


@settings(max_examples=30)
@given(st.text(st.characters(), min_size=1, max_size=30))
def test_any_text_is_text(text: str) -> None:
    check_harmless(poisoned(text))


def test_children_that_are_not_markup_are_escaped() -> None:
    assert tag("p", "<b>", 3, tag("i", "&")) == "<p>&lt;b&gt;3<i>&amp;</i></p>"
    assert tag("p", title='"', class_=None) == '<p title="&quot;"></p>'
    assert tag("p", Markup("<br/>")) == "<p><br/></p>"


def test_numbers_of_strangers_do_no_harm() -> None:
    layout = grid(1, 3)
    huge = 10**400
    big = dict.fromkeys(("bytes_read", "bytes_written", "patches", "uncovered", "retries"), huge)
    records = [
        record(layout, 0, **big, peak_rss=huge, missing=huge, seconds={"read": huge, "x": 1e308}),
        record(layout, 1, started="0001-01-01T00:00:00", finished="9999-12-31T23:59:59+00:00"),
        record(
            layout, 2, started="9999-12-31T23:59:59+00:00", finished="0001-01-01T00:00:00-23:00"
        ),
    ]
    report = {"seconds": huge, "planned_memory": huge, "numbers": {"retries": -huge}}
    check_harmless(report_html(plan_of(layout, memory_limit=huge), report, records))
    for odd in (float("nan"), float("inf"), -1, None, True):
        check_harmless(report_html(plan_of(layout), {"seconds": odd, "problems": odd}, records[:1]))


# ---- bounded -------------------------------------------------------------------------------


def test_the_worst_map_is_small() -> None:
    """No two cells that touch are of one class: nothing can be merged."""
    rng = np.random.default_rng(0)
    states = rng.integers(0, 5, (256, 256)).astype(np.int8)
    seconds = rng.uniform(1, 2, (256, 256))
    shape = (256 * 64, 256 * 64)
    mosaic = Mosaic(states, seconds, (1, 1), (64, 64), shape, ("y", "x"), 1)
    assert len(state_map(mosaic)) < 1_500_000
    assert len(seconds_map(mosaic)[0]) < 1_500_000


def test_a_thousand_workers_and_tracebacks_are_cut_and_counted() -> None:
    layout = grid(40, 100)
    records = [record(layout, i, pid=i + 1, peak_rss=(200 << 20) + i) for i in range(1000)]
    text = "x" * 20_000
    error = {"type": "E", "message": text, "traceback": text}
    records += [failed(layout, i, error=error) for i in range(1000, 3500)]
    page = report_html(plan_of(layout), {"problems": [text] * 500}, records)
    assert len(page) < 3_000_000
    told = text_of(page)
    for said in (
        "960 more workers, which did less, are not shown",
        "976 more workers took at most",
        "Failed super-tiles: 2,500",
        "... and 1,400 more.",
        "... and 450 more.",
    ):
        assert said in told, said


@pytest.mark.slow
def test_a_hundred_thousand_super_tiles() -> None:
    layout = grid(250, 400)
    records = history(layout, list(range(99_000)), workers=64)
    for i in range(0, 99_000, 500):
        records[i] = failed(layout, records[i].ordinal, finished=records[i].finished)
    page = report_html(plan_of(layout), {}, records)
    assert len(page.encode()) < 5_000_000
    check_harmless(page)
    mosaic = survey(layout, records).mosaic()
    assert (mosaic.states == 4).sum() == 198  # every failure is seen


# ---- pictures ------------------------------------------------------------------------------


def shapes(picture: str, look: str) -> list[tuple[float, float, float, float]]:
    """Rectangles ``(x, y, width, height)`` of the paths of a class."""
    found = []
    for path in ET.fromstring(picture).iter("path"):
        if path.get("class") != look:
            continue
        rows = re.findall(r"M(\S+) ([-\d.]+)h([-\d.]+)v([-\d.]+)h", path.get("d", ""))
        found += [tuple(map(float, row)) for row in rows]
    return found


def test_a_map_shows_every_cell_once_and_y_points_down() -> None:
    layout = grid(7, 9, cut=20)
    records = [record(layout, i) for i in range(30)] + [failed(layout, 40)]
    mosaic = survey(layout, records).mosaic()
    picture = state_map(mosaic)
    seen = np.zeros((7, 9), int)
    for look in ("s-done", "o-pending", "o-failed"):
        for x, y, width, height in shapes(picture, look):
            seen[int(y) : int(y + height), int(x) : int(x + width)] += 1
    assert (seen == 1).all()
    assert shapes(picture, "o-failed") == [(4, 4, 1, 1)]
    titles = [t.text for t in ET.fromstring(picture).iter("title")]
    assert "y 256 to 320, x 256 to 320: failed" in titles
    assert "y 384 to 428, x 512 to 556: pending" in titles  # the last ones are cut


def test_classes_of_seconds_hold_all_that_is_known() -> None:
    layout = grid(4, 4)
    spent = [1.0, 1.1, 2.0, 3.0, 50.0, 60.0, 200.0]
    records = [record(layout, i, seconds={"read": v}) for i, v in enumerate(spent)]
    picture, key = seconds_map(survey(layout, records).mosaic())
    cells = [shape for k in range(7) for shape in shapes(picture, f"s-t{k}")]
    assert sum(width * height for _, _, width, height in cells) == len(spent)
    words = " ".join(ET.fromstring(key).itertext())
    assert words.startswith("1 s to 2.13 s")  # factors, because some took very much longer
    assert "3 min 20 s" in words
    assert "none known" in words


def test_equal_seconds_are_one_class() -> None:
    layout = grid(2, 2)
    _, key = seconds_map(survey(layout, [record(layout, i) for i in range(4)]).mosaic())
    assert "".join(ET.fromstring(key).itertext()) == "4 s"


def test_a_limit_far_away_does_not_press_the_bars_flat() -> None:
    layout = grid(1, 1)
    near = report_html(plan_of(layout), {}, [record(layout, 0)])
    far = report_html(plan_of(layout, memory_limit=64 * GIB), {}, [record(layout, 0)])
    assert 'class="line-limit"' in near
    assert 'class="line-limit"' not in far
    assert "Limit: 64.0 GiB." in text_of(far)


def test_times_begin_where_the_first_worker_began() -> None:
    layout = grid(1, 1)
    text = text_of(report_html(plan_of(layout), {}, [record(layout, 0)]))
    assert f"Time since {BEGAN:%Y-%m-%d %H:%M:%S} UTC" in text
