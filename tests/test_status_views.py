"""What ``gp.status`` can be turned into: text, a table, a map, polygons, a page, JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from cli_jobs import Shop, geopatch
from report_runs import failed, grid, record
from rich.console import Console
from test_status_read import OURS, stored

import geopatch_dask as gp
from geopatch_dask.report.places import place_of

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A target of 16 super-tiles: 3 done, 12 failed."""
    ledger = stored(tmp_path / "out.zarr")
    for ordinal in range(4, 15):
        message = f"no {ordinal} [red]lamp[/red] \x1b[31m\nand a second line"
        ledger.put_failed(failed(grid(4, 4), ordinal, message, fingerprint=OURS, attempts=2))
    return tmp_path / "out.zarr"


def printed(renderable: Any, width: int = 200) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width, force_terminal=True, color_system=None).print(renderable)
    return sink.getvalue()


# ---- text ----------------------------------------------------------------------------------


def test_a_table_of_counts_and_the_first_failures(half: Path) -> None:
    found = gp.status(half)
    text = printed(found.table())
    assert "16: 3 done, 12 failed, 1 pending" in text
    assert text.count("ValueError") == 10
    assert "... and 2 more: --failed lists them" in text
    everything = printed(found.table(failed=True))
    assert everything.count("ValueError") == 12
    assert "more" not in everything
    assert "second line" not in everything
    for record_ in found.failed:
        assert record_.id in everything
    assert "no 10 [red]lamp[/red] \ufffd[31m" in everything  # neither markup nor an escape
    for said in (text, everything, str(found)):
        assert "--traceback shows where" in said
        assert "geopatch retry computes them again" in said
        assert "\x1b" not in said
    assert str(found).count("\nfailed ") == 10
    assert "... and 2 more" in str(found)
    assert "second line" not in str(found)
    assert "retry" not in str(gp.Status("t", OURS, False, found.layout, found.states, {}))


def test_where_they_failed(half: Path, capsys: Captured) -> None:
    text = printed(gp.status(half).table(traceback=True))
    assert text.count("Traceback (most recent call last)") == 10
    assert "\x1b" not in text
    assert geopatch("status", str(half), "--failed", "--traceback") == 1
    assert capsys.readouterr().out.count("Traceback (most recent call last)") == 12


def test_a_narrow_terminal_loses_no_id(half: Path) -> None:
    text = printed(gp.status(half).table(failed=True), width=60)
    for ordinal in range(3, 15):
        assert grid(4, 4).supertile(ordinal).id in text


def test_status_on_the_command_line(half: Path, capsys: Captured) -> None:
    assert geopatch("status", str(half)) == 1
    told = capsys.readouterr()
    assert "3 done, 12 failed, 1 pending" in told.out
    assert told.out.count("ValueError") == 10
    assert "the lamp is out" in told.err
    assert geopatch("status", str(half), "--failed") == 1
    assert capsys.readouterr().out.count("ValueError") == 12
    assert geopatch("status", str(half), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["states"] == {"done": 3, "empty": 0, "failed": 12, "pending": 1}
    assert found["totals"]["retries"] == found["totals"]["failed_patches"] == 0
    assert found["runs"] == []
    assert len(found["failures"]) == 12
    assert found["failures"][1]["attempts"] == 2
    assert "Traceback (most recent call last)" in found["failures"][1]["traceback"]


def test_the_report_on_the_command_line(half: Path, tmp_path: Path, capsys: Captured) -> None:
    page = tmp_path / "seen.html"
    assert geopatch("status", str(half), "--html", str(page)) == 1
    assert f"the report is in {page}" in capsys.readouterr().err
    text = page.read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "Failed super-tiles: 12" in text
    assert geopatch("status", str(half), "--html", str(tmp_path / "no" / "such.html")) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_status_after_a_run_from_a_job(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": "MODULE:flaky"})
    (shop.folder / "broken").touch()
    assert geopatch("run", job, "--quiet") == 1
    capsys.readouterr()
    page = shop.folder / "seen.html"
    assert geopatch("status", job, "--html", str(page)) == 1
    assert "4: 3 done, 1 failed" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert "the lamp" in text
    assert "Traceback (most recent call last)" in text
    assert "wall time of the last run" in text


# ---- a map ---------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(9,), (3, 4), (2, 3, 4), (300, 70)])
def test_a_map_of_any_layout(tmp_path: Path, counts: tuple[int, ...]) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    layout = grid(*counts, cut=10)
    records = {r.id: r for r in (record(layout, 0), failed(layout, layout.count - 1))}
    states = {layout.supertile(i).id: "pending" for i in range(layout.count)}
    found = gp.Status("out.zarr", OURS, False, layout, states, records)
    axes = found.plot()
    assert axes.get_xlim() == (0, layout.shape[-1])
    assert axes.get_ylim() == (layout.shape[-2] if len(counts) > 1 else 1, 0)
    picture = axes.images[0].get_array()
    alone = len(counts) < 3 and max(counts) <= 256  # a cell keeps the worst state
    assert picture[0, 0] == (1 if alone else 3)
    assert picture[-1, -1] == 4
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["done 1", f"pending {layout.count - 2}", "failed 1"]
    _, given = plt.subplots()
    assert found.plot(given) is given
    drawn = found.draw(tmp_path / "map.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    plt.close("all")


@pytest.mark.parametrize("counts", [(9,), (2, 2), (3, 60), (60, 3)])
def test_the_legend_hides_no_supertile(counts: tuple[int, ...]) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    layout = grid(*counts, cut=10)
    states = {layout.supertile(i).id: "pending" for i in range(layout.count)}
    axes = gp.Status("out.zarr", OURS, False, layout, states, {}).plot()
    axes.figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.x0 > axes.get_window_extent().x1
    assert legend.x1 <= axes.figure.bbox.x1
    plt.close("all")


# ---- polygons ------------------------------------------------------------------------------


def test_polygons_are_where_the_target_is(shop: Shop) -> None:
    pytest.importorskip("geopandas")
    assert geopatch("run", shop.job(), "--quiet") == 0
    frame = gp.status(shop.target).to_geodataframe()
    assert frame.crs.to_epsg() == 32632
    ids = ["y0-128_x0-128", "y0-128_x128-256", "y128-256_x0-128", "y128-256_x128-256"]
    assert frame["id"].tolist() == ids
    assert set(frame["state"]) == {"done"}
    assert (frame["seconds"] > 0).all()
    assert (frame["attempts"] == 1).all()
    with rasterio.open(shop.folder / "scene.tif") as scene:
        assert tuple(frame.total_bounds) == tuple(scene.bounds)
    assert frame.geometry.iloc[1].bounds == (1280.0, -1280.0, 2560.0, 0.0)
    assert frame.geometry.area.sum() == 2560.0**2


def test_polygons_of_an_output_that_is_nowhere_are_cells(half: Path) -> None:
    pytest.importorskip("geopandas")
    frame = gp.status(half).to_geodataframe()
    assert frame.crs is None
    assert frame.geometry.iloc[1].bounds == (64.0, 0.0, 128.0, 64.0)
    assert frame["state"].value_counts().to_dict() == {"failed": 12, "pending": 1, "done": 3}
    assert frame["error"].iloc[3] == "ValueError: the lamp is out"
    assert np.isnan(frame["seconds"].iloc[15])
    assert frame["attempts"].iloc[15] == 0


def attributes(transform: list[float]) -> dict[str, Any]:
    return {
        "proj:wkt2": "LOCAL",
        "spatial:transform": transform,
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": [256, 192],
    }


def test_a_rotated_raster_has_rotated_polygons() -> None:
    layout = grid(4, 3)
    place = place_of(layout, attributes([0.0, 2.0, 100.0, 3.0, 0.0, 50.0]))
    box = layout.supertile(1).box  # rows 0 to 64, columns 64 to 128
    ring = place.corners(layout, [box])[0].tolist()
    assert ring == [[100, 242], [100, 434], [228, 434], [228, 242], [100, 242]]


def test_axes_that_are_not_cut_are_there_as_a_whole() -> None:
    layout = grid(5)  # along x alone
    place = place_of(layout, attributes([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
    corners = place.corners(layout, [tile.box for tile in layout])
    assert (corners[:, :, 1].max(axis=1) == 256).all()
    assert corners[:, 0, 0].tolist() == [0, 64, 128, 192, 256]


@pytest.mark.parametrize(
    "change",
    [
        {"proj:wkt2": None},
        {"spatial:transform": [1, 2]},
        {"spatial:shape": "big"},
        {"spatial:dimensions": None},
    ],
)
def test_half_a_georeference_is_none(change: dict[str, Any]) -> None:
    place = place_of(grid(4, 3), attributes([1.0, 0, 0, 0, 1, 0]) | change)
    assert place.crs is None
    assert place.shape == (256, 192)
