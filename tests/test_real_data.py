"""Real files, end to end: read, patched, reconstructed, and opened by other people's software.

Each result is compared with plain numpy on arrays that rasterio or xarray read in one go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import sample_operators as ops
import xarray as xr

import geopatch_dask as gp
from geopatch_dask.testing import Cut, assert_layout_invariant, assert_same_bytes, merged, read_back

Array = npt.NDArray[Any]


def ndvi(x: Array) -> Array:
    """(nir - red) / (nir + red), of bands R, G, B, NIR."""
    red, nir = x[0], x[3]
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((nir - red) / (nir + red)).astype("float32")


def window(size: int) -> Array:
    """The raised cosine, written down once more."""
    profile = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return np.outer(profile, profile)


def overlap_add(values: Array, size: int, step: int, operator: Any) -> Array:
    """Weighted means of patches over the last two axes, NaN left out, by plain numpy."""
    height, width = values.shape[-2:]
    weights = window(size)
    total = total_weight = None
    for top in anchors(height, size, step):
        for left in anchors(width, size, step):
            at = (..., slice(top, top + size), slice(left, left + size))
            result = operator(np.ascontiguousarray(values[at])).astype(np.float64)
            if total is None:
                total = np.zeros((*result.shape[:-2], height, width))
                total_weight = np.zeros_like(total)
            valid = ~np.isnan(result)
            total[at] += np.where(valid, result * weights, 0)
            total_weight[at] += np.where(valid, weights, 0)
    with np.errstate(invalid="ignore"):
        return total / total_weight


def anchors(n: int, size: int, step: int) -> list[int]:
    """Boundary "shift"."""
    regular = list(range(0, n - size + 1, step))
    return regular if regular[-1] == n - size else [*regular, n - size]


def blend(size: int, step: int) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular((size, size)), gp.RegularStride((step, step)), gp.Hann(), gp.OverlapAdd()
    )


def masked(path: Path) -> Array:
    """All bands, nodata as NaN."""
    with rasterio.open(path) as dataset:
        values: Array = dataset.read().astype("float32")
        values[values == dataset.nodata] = np.nan
    return values


def test_landsat_nodata_is_left_out_and_never_blended(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "landsat_2020.tif"
    values = masked(path)
    holes = np.isnan(values)
    assert 0 < holes.sum() < 1000
    target = tmp_path / "out.zarr"
    plan = gp.plan(path, blend(64, 48), np.sqrt, target, outer=(256, 256), chunks=(128, 128))
    report = plan.run("threads")
    found = read_back(target)
    expected = overlap_add(values, 64, 48, np.sqrt)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), holes)  # per band
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # a pointwise operator changes no value: what is next to a hole is exact, too
    np.testing.assert_allclose(found, np.sqrt(values), rtol=1e-6)
    assert report.totals == {"fill": holes.sum(), "uncovered": 0, "missing": holes.sum()}


def test_landsat_smoothed_around_holes(real_data: Path, tmp_path: Path) -> None:
    """An operator that spreads NaN: a hole grows by its reach at most, and never by a patch."""
    path = real_data / "landsat_2020.tif"
    values = masked(path)
    patcher = blend(64, 48)
    plan = gp.plan(path, patcher, ops.smooth, tmp_path / "o.zarr", outer=(96, 96), chunks=(96, 96))
    plan.run("sync")
    found = read_back(tmp_path / "o.zarr")
    assert_same_bytes(found, merged(path, patcher, ops.smooth))
    np.testing.assert_allclose(found, overlap_add(values, 64, 48, ops.smooth), rtol=1e-5)
    holes, grown = np.isnan(values), np.isnan(ops.smooth(values))
    assert np.isnan(found[holes]).all()
    assert not np.isnan(found[~grown]).any()
    assert grown.sum() < 10 * holes.sum()


def test_landsat_written_as_it_came(real_data: Path, tmp_path: Path) -> None:
    """uint8 in, uint8 out, 0 where nothing is known: the file comes back as it was."""
    path = real_data / "landsat_2020.tif"
    plan = gp.plan(
        *(path, blend(64, 48), ops.identity, tmp_path / "o.zarr"),
        output=gp.Output(dtype="uint8", fill_value=0),
        chunks=(128, 128),
    )
    plan.run("sync")
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(read_back(tmp_path / "o.zarr"), dataset.read())


def test_dsm_has_holes_that_are_no_numbers(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "dsm.tif"
    values = masked(path)[0]  # one band: no band axis
    plan = gp.plan(path, blend(32, 16), ops.smooth, tmp_path / "o.zarr", chunks=(64, 64))
    plan.run("sync")
    found = read_back(tmp_path / "o.zarr")
    np.testing.assert_allclose(found, overlap_add(values, 32, 16, ops.smooth), rtol=1e-5)
    real = found[~np.isnan(found)]
    assert np.nanmin(values) - 1e-3 <= real.min() <= real.max() <= np.nanmax(values) + 1e-3
    cuts = [
        Cut((128, 120), (64, 40)),
        Cut((259, 72), (33, 24)),
        Cut((96, 283), (48, 283), (96, 283)),
    ]
    for aggregation in (gp.Max(), gp.Variance(), gp.Count()):
        patcher = gp.Patcher(
            gp.Rectangular((32, 32)), gp.RegularStride((16, 16)), None, aggregation
        )
        assert_layout_invariant(path, patcher, ops.mixing, cuts=cuts)


def test_naip_ndvi(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "naip_20190904.tif"
    values = masked(path)
    plan = gp.plan(
        *(path, blend(128, 96), ndvi, tmp_path / "o.zarr"),
        chunks=(256, 256),
        output=gp.Output(name="ndvi", attrs={"long_name": "NDVI", "units": "1"}),
    )
    plan.run("threads")
    found = read_back(tmp_path / "o.zarr", "ndvi")
    assert found.shape == values.shape[1:]
    np.testing.assert_allclose(found, ndvi(values), rtol=1e-5, atol=1e-7)
    opened = gp.open(tmp_path / "o.zarr")
    assert opened.name == "ndvi"
    assert opened.attrs["units"] == "1"


#: Reflectances to classes: bands R, G, B, NIR, as shares of their sum in 1/255.
CLASSES = ("water", "bare", "grass", "wood")


def class_scores(x: Array) -> Array:
    """Four scores per cell, relative to what is usual in the patch, so that patches disagree."""
    with np.errstate(invalid="ignore", divide="ignore"):
        green = (x[3] - x[0]) / (x[3] + x[0])
        wet = (x[1] - x[3]) / (x[1] + x[3])
    dark = 1 - x[:3].mean(axis=0) / 255
    usual = np.float32(0) if np.isnan(green).all() else np.nanmean(green, dtype=np.float64)
    usual = np.float32(usual)
    raw = np.stack([4 * wet + dark, usual - 3 * green, 3 * (green - usual), green - usual + dark])
    scores = np.exp(raw.astype(np.float64))
    return np.asarray((scores / scores.sum(axis=0)).astype("float32"))


def voted(x: Array) -> dict[str, Array]:
    scores = class_scores(x)
    hard = np.where(np.isnan(scores).any(axis=0), np.nan, scores.argmax(axis=0))
    return {"cover": hard.astype("float32"), "likely": scores}


def stacked_votes(values: Array, size: int, step: int) -> tuple[Array, Array, Array]:
    """Plain numpy: hard votes per class, summed scores, valid votes."""
    height, width = values.shape[-2:]
    hard = np.zeros((len(CLASSES), height, width), np.int64)
    soft = np.zeros((len(CLASSES), height, width))
    n = np.zeros((height, width), np.int64)
    for top in anchors(height, size, step):
        for left in anchors(width, size, step):
            at = (..., slice(top, top + size), slice(left, left + size))
            told = voted(np.ascontiguousarray(values[at]))
            known = ~np.isnan(told["cover"])
            for label in range(len(CLASSES)):
                hard[label][at] += told["cover"] == label
            soft[at] += np.where(known, told["likely"], 0)
            n[at] += known
    return hard, soft, n


@pytest.mark.parametrize("name", ["naip_20100629.tif", "naip_20190904.tif"])
def test_naip_votes_and_their_confidence(name: str, real_data: Path, tmp_path: Path) -> None:
    """Land cover by majority, how sure, and by how many; equal to plain numpy in every cell."""
    path, size, step = real_data / name, 128, 72
    patcher = gp.Patcher(
        gp.Rectangular((size, size)),
        gp.RegularStride((step, step)),
        aggregation={"cover": gp.HardVote(len(CLASSES)), "likely": gp.SoftVote(len(CLASSES))},
    )
    plan = gp.plan(path, patcher, voted, tmp_path / "o.zarr", chunks=128, outer=(256, 512))
    assert plan.run("threads").complete
    hard, soft, n = stacked_votes(masked(path), size, step)
    some = np.maximum(n, 1)
    cover = np.where(n > 0, hard.argmax(axis=0), 255)
    likely = np.where(n > 0, soft.argmax(axis=0), 255)
    found = {array.name: read_back(plan.target, array.name) for array in plan.arrays}
    np.testing.assert_array_equal(found["cover"], cover)
    np.testing.assert_array_equal(found["likely"], likely)
    for key in ("cover", "likely"):
        np.testing.assert_array_equal(found[f"{key}_votes"], n)
        assert found[key].dtype == np.uint8
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(n > 0, hard.max(axis=0) / some, np.nan).astype("float32")
        sure = np.where(n > 0, soft.max(axis=0) / soft.sum(axis=0), np.nan).astype("float32")
    np.testing.assert_array_equal(found["cover_share"], share)
    np.testing.assert_allclose(found["likely_share"], sure, rtol=1e-6)
    assert len(np.unique(cover[n > 0])) == len(CLASSES), "all classes appear"
    assert 0.01 < (share[n > 0] < 1).mean() < 0.9, "patches do not always agree"
    opened = gp.open(tmp_path / "o.zarr")
    assert opened["cover_share"].dims == ("y", "x")


@pytest.mark.filterwarnings("ignore:variable .* has non-conforming '_FillValue'")
def test_climate_fields_with_month_and_level_riding_along(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    path = real_data / "eraint_uvz.nc"
    field = gp.XarrayField(path, "u")
    patcher = gp.Patcher(
        gp.Rectangular({"latitude": 48, "longitude": 64}, "reflect"),
        gp.RegularStride({"latitude": 36, "longitude": 48}),
        gp.Hann(),
        gp.OverlapAdd(),
    )
    patch = patcher.patch_at(field, (36, 48))
    assert patch.dims == ("month", "level", "latitude", "longitude")
    assert patch.data.shape == (2, 3, 48, 64)
    np.testing.assert_allclose(patch.coords["latitude"], 90 - 0.75 * np.arange(36, 84))
    target = tmp_path / "u.zarr"
    plan = gp.plan(field, patcher, ops.mixing, target, outer=(120, 240), chunks=(60, 120))
    plan.run("threads")
    assert_same_bytes(read_back(target), merged(field, patcher, ops.mixing))
    with xr.open_dataset(path) as source, xr.open_zarr(target) as opened:
        assert opened["data"].dims == source["u"].dims
        assert opened["data"].shape == source["u"].shape
        for name in source["u"].dims:
            np.testing.assert_array_equal(opened[name].values, source[name].values)
            assert opened[name].dtype == source[name].dtype
        same = gp.plan(*(field, patcher, ops.identity, tmp_path / "same.zarr"), chunks=(60, 120))
        same.run("sync")
        np.testing.assert_allclose(
            gp.open(tmp_path / "same.zarr").values, source["u"].values, rtol=1e-12
        )


@pytest.mark.cluster
def test_rasters_are_opened_by_the_workers(real_data: Path, tmp_path: Path, client: Any) -> None:
    path = real_data / "naip_20190904.tif"
    plan = gp.plan(
        *(path, blend(96, 72), ops.mixing, tmp_path / "o.zarr"), outer=(256, 512), chunks=(128, 128)
    )
    assert plan.run(client).complete
    assert_same_bytes(read_back(tmp_path / "o.zarr"), merged(path, blend(96, 72), ops.mixing))


# ---- what other software sees --------------------------------------------------------------------

RASTERS = ["landsat_2020.tif", "dsm.tif", "naip_20190904.tif"]


def doubled(path: Path, target: Path, **options: Any) -> None:
    gp.plan(path, blend(64, 48), ops.identity, target, **options).run("sync")


@pytest.mark.parametrize("name", RASTERS)
@pytest.mark.parametrize("shards", [None, (256, 256)])
def test_xarray_opens_it_with_no_options(
    name: str, shards: Any, real_data: Path, tmp_path: Path
) -> None:
    rioxarray = pytest.importorskip("rioxarray")
    odc = pytest.importorskip("odc.geo.xr")
    assert rioxarray
    doubled(real_data / name, tmp_path / "o.zarr", chunks=(64, 64), shards=shards)
    with rasterio.open(real_data / name) as source:
        crs, transform, bounds = source.crs, source.transform, source.bounds
        x, y = source.xy(3, 5)
        pixel = source.read(1)[3, 5]
    opened = xr.open_zarr(tmp_path / "o.zarr")
    array = opened["data"]
    assert array.rio.crs == crs
    assert array.rio.transform().almost_equals(transform, 1e-9)
    assert array.rio.bounds() == pytest.approx(tuple(bounds))
    assert array.odc.geobox.crs.epsg == crs.to_epsg()
    assert array.odc.geobox.affine.almost_equals(transform, 1e-9)
    assert array.odc.geobox.shape == array.shape[-2:]
    assert odc
    nearest = array.sel(x=x, y=y, method="nearest")
    assert float(nearest.values.reshape(-1)[0]) == pytest.approx(float(pixel))
    assert opened.attrs["geopatch:complete"] is True


@pytest.mark.parametrize("name", RASTERS)
def test_gdal_opens_it(name: str, real_data: Path, tmp_path: Path) -> None:
    """CRS, transform and a pixel, where this GDAL has a Zarr driver that reads version 3."""
    with rasterio.Env() as env:
        if "Zarr" not in env.drivers():
            pytest.skip(f"GDAL {rasterio.__gdal_version__} of this rasterio has no Zarr driver")
    doubled(real_data / name, tmp_path / "o.zarr", chunks=(64, 64))
    try:
        opened = rasterio.open(f'ZARR:"{tmp_path / "o.zarr"}":/data')
    except rasterio.RasterioIOError as error:
        if "Unsupported codec" in str(error):
            pytest.skip(f"GDAL {rasterio.__gdal_version__} reads no final Zarr version 3")
        raise
    with rasterio.open(real_data / name) as source, opened:
        assert opened.crs == source.crs
        assert opened.transform.almost_equals(source.transform, 1e-9)
        assert (opened.count, opened.shape) == (source.count, source.shape)
        for band in range(1, source.count + 1):
            assert opened.read(band)[100, 200] == pytest.approx(source.read(band)[100, 200])
