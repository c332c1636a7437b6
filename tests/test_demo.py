"""The demo: its scene, its operators, its picture, and that a second run finds everything done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import zarr
from cli_jobs import geopatch
from rasterio.transform import from_origin

from geopatch_dask.cli.job import load_job
from geopatch_dask.demo import identity, job_text, ndvi
from geopatch_dask.demo.scene import CLOUDY, Landscape, make_scene
from geopatch_dask.errors import OptionError

Captured = pytest.CaptureFixture[str]


# ---- the scene -----------------------------------------------------------------------------


def test_a_scene_is_a_function_of_size_and_seed(tmp_path: Path) -> None:
    land = Landscape(512, 3)
    cells = land.rows(256, 512)
    assert cells.dtype == np.uint8
    assert cells.shape == (3, 256, 512)
    assert np.array_equal(cells, Landscape(512, 3).rows(256, 512))
    assert not np.array_equal(cells, Landscape(512, 4).rows(256, 512))

    assert make_scene(tmp_path / "a.tif", 512, 3)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.crs.to_epsg() == 32632
        assert file.nodata == 0
        assert file.profile["tiled"]
        assert np.array_equal(file.read()[:, 256:], cells)


def test_clouds_hide_all_bands_and_nothing_else_is_zero() -> None:
    cells = Landscape(512, 0).rows(0, 512)
    cloud = (cells == 0).any(axis=0)
    assert np.array_equal(cloud, (cells == 0).all(axis=0))
    assert CLOUDY / 2 < cloud.mean() < CLOUDY * 2


def test_a_scene_is_made_once_and_never_over_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    assert make_scene(path, 512, 0)
    stamp = path.stat().st_mtime_ns
    assert not make_scene(path, 512, 0)
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(OptionError, match="seed 0; choose another --out"):
        make_scene(path, 512, 1)
    assert make_scene(path, 512, 1, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]

    profile: dict[str, Any] = {"width": 4, "height": 4, "count": 1, "dtype": "uint8"}
    place = {"crs": "EPSG:32632", "transform": from_origin(0, 0, 10, 10)}
    with rasterio.open(path, "w", driver="GTiff", **profile, **place) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
    with pytest.raises(OptionError, match="no demo scene and is left alone"):
        make_scene(path, 512, 1, overwrite=True)


# ---- the operators -------------------------------------------------------------------------


def smoothed(band: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Sum over valid neighbours, weights (1 2 1) / 4 by (1 2 1) / 4; zeros outside."""
    padded = np.pad(np.where(valid, band, 0).astype(np.float64), 1)
    total = np.zeros(band.shape)
    for dy, wy in zip((0, 1, 2), (0.25, 0.5, 0.25), strict=True):
        for dx, wx in zip((0, 1, 2), (0.25, 0.5, 0.25), strict=True):
            total += wy * wx * padded[dy : dy + band.shape[0], dx : dx + band.shape[1]]
    return total


def test_ndvi_equals_the_formula_written_out() -> None:
    rng = np.random.default_rng(0)
    patch = rng.uniform(1, 255, (3, 20, 30)).astype(np.float32)
    patch[:, 5:9, 10:14] = np.nan
    patch[2, 0, 0] = np.nan  # missing in one band is missing
    valid = ~np.isnan(patch).any(axis=0)
    red, nir = smoothed(patch[0], valid), smoothed(patch[2], valid)
    with np.errstate(invalid="ignore"):
        expected = np.where(valid, (nir - red) / (nir + red), np.nan)
    before = patch.copy()
    found = ndvi(patch, radius=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(patch, before)


def test_ndvi_mixes_neighbours_unless_told_not_to() -> None:
    patch = np.ones((2, 9, 9), np.float32)
    patch[1, 4, 4] = 3
    assert np.count_nonzero(ndvi(patch, radius=3)) == 49
    assert np.count_nonzero(ndvi(patch, radius=0)) == 1
    assert np.isnan(ndvi(np.zeros((2, 3, 3), np.float32))).all()
    assert ndvi(np.ones((5, 2, 9, 9), np.uint8)).shape == (5, 9, 9)


def test_identity_is_the_identity() -> None:
    patch = np.arange(6).reshape(2, 3)
    assert identity(patch) is patch


# ---- the job and the picture ---------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 700, 4096])
def test_the_job_of_every_size_is_a_job(tmp_path: Path, size: int) -> None:
    (tmp_path / "demo.toml").write_text(job_text(size))
    job = load_job(tmp_path / "demo.toml")
    assert job.target == str(tmp_path / "ndvi.zarr")
    (outer, _), (chunk, _) = job.get("run", "outer"), job.get("output", "chunks")
    assert outer % chunk == 0
    assert outer < size


def test_a_difference_of_one_bit_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from geopatch_dask.demo.picture import compare

    cells = np.random.default_rng(0).random((2100, 2050), np.float32)
    cells[100:200] = np.nan
    arrays = []
    for name in ("a", "b"):
        array = zarr.create_array(
            str(tmp_path / name), shape=cells.shape, chunks=(511, 512), dtype="float32"
        )
        array[:] = cells
        arrays.append(array)
    same = compare(*arrays)
    assert (same.cells, same.differing) == (2100 * 2050, 0)
    assert np.isnan(same.difference[60]).all()
    assert np.nanmax(same.difference) == 0
    assert same.output.shape == same.difference.shape == (1050, 1025)

    arrays[1][2099, 2049] = np.nextafter(cells[2099, 2049], np.float32(2))
    arrays[1][150, 7] = 0.5
    found = compare(*arrays)
    assert found.differing == 2
    assert found.difference[1049, 1024] > 0
    assert np.isinf(found.difference[75, 3]) or found.difference[75, 3] == 0.5


@pytest.mark.cluster
def test_the_demo_and_the_demo_again(tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "show"
    words = ["demo", "--size", "512", "--workers", "2", "--out", str(folder)]
    assert geopatch(*words) == 0
    told = capsys.readouterr()
    assert "0 of 262,144 cells differ from the single-pass reference" in told.out
    assert "4: 4 done" in told.out
    assert "try next" in told.out
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    made = {p: p.stat().st_mtime_ns for p in folder.rglob("c/*/*")}
    assert made

    assert geopatch(*words) == 0
    told = capsys.readouterr()
    assert "nothing was recomputed: all 4 super-tiles were done before" in told.out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("c/*/*")} == made
    assert geopatch("status", str(folder / "demo.toml")) == 0

    assert geopatch(*words, "--seed", "5") == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "choose another --out, or --overwrite" in told.err
