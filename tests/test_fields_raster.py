"""Rasters: masks of every kind, windows, identity, configuration, threads, and broken files."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config
from rasterio.transform import from_origin

from geopatch_dask.errors import FieldError, GeopatchError, OptionError
from geopatch_dask.fields import GDAL_CACHE, ArrayField, RasterField, as_field, field_from_config
from geopatch_dask.fields import header as header_module
from geopatch_dask.fields import raster as raster_module
from geopatch_dask.fields.georef import crs_wkt
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import RasterDomain

TRANSFORM = from_origin(500000, 5000000, 10, 10)


def write(path, data, **kw):
    """A GeoTIFF; `mask`, `alpha` and `descriptions` are for us, the rest for rasterio."""
    mask, alpha, names = kw.pop("mask", None), kw.pop("alpha", False), kw.pop("names", None)
    cube = data if data.ndim == 3 else data[None]
    options = {
        "driver": "GTiff",
        "crs": "EPSG:32633",
        "transform": TRANSFORM,
        "dtype": cube.dtype,
        "count": len(cube),
        "height": cube.shape[1],
        "width": cube.shape[2],
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **options | kw) as d:
        if alpha:
            d.colorinterp = [*d.colorinterp[:-1], ColorInterp.alpha]
        d.write(cube)
        if mask is not None:
            d.write_mask(mask)
        for i, name in enumerate(names or (), 1):
            d.set_band_description(i, name)
    return path


def whole(field):
    return field.read(field.domain.box)


def ramp(bands=3, h=60, w=70, dtype="uint8"):
    n = bands * h * w
    return (np.arange(n) * 7 % 251).reshape(bands, h, w).astype(dtype)


@pytest.fixture
def rgb(tmp_path):
    return write(tmp_path / "rgb.tif", ramp(), names=("red", "green", "blue"))


# ---- what a field says about itself --------------------------------------------------


def test_several_bands_without_missing_cells_keep_their_dtype(rgb):
    field = RasterField(rgb)
    assert field.dtype == np.uint8
    assert not field.may_miss
    assert field.nodata is None
    assert field.domain.dims == ("band", "y", "x")
    assert field.domain.shape == (3, 60, 70)
    assert field.domain.coords["band"].values.tolist() == [1, 2, 3]
    assert field.domain.coords["band"].attrs["descriptions"] == ["red", "green", "blue"]
    assert field.blocks[0] == 1
    assert field.blocks[2] == 70
    np.testing.assert_array_equal(whole(field), ramp())


def test_georeference(rgb):
    domain = RasterField(rgb).domain
    assert isinstance(domain, RasterDomain)
    assert domain.transform == (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    assert domain.crs is not None
    assert domain.crs.startswith("PROJCRS[")  # WKT2
    assert rasterio.crs.CRS.from_wkt(domain.crs) == rasterio.crs.CRS.from_epsg(32633)
    assert domain.labels("x", 0, 2).tolist() == [500005.0, 500015.0]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_that_is_nowhere_has_no_transform(tmp_path):
    path = write(tmp_path / "a.png", ramp(1), driver="PNG", crs=None, transform=None)
    domain = RasterField(path).domain
    assert domain.transform is None
    assert domain.crs is None


def test_one_band_file_and_one_band_number_are_two_dimensional(tmp_path, rgb):
    single = RasterField(write(tmp_path / "one.tif", ramp(1)))
    assert single.domain.dims == ("y", "x")
    green = RasterField(rgb, bands=2)
    assert green.domain.dims == ("y", "x")
    assert len(green.blocks) == 2
    np.testing.assert_array_equal(whole(green), ramp()[1])
    assert RasterField(rgb, bands=[2]).domain.dims == ("band", "y", "x")


def test_bands_in_any_order(rgb):
    field = RasterField(rgb, bands=(3, 1))
    assert field.domain.coords["band"].values.tolist() == [3, 1]
    assert field.domain.coords["band"].attrs["descriptions"] == ["blue", "red"]
    np.testing.assert_array_equal(whole(field), ramp()[[2, 0]])


def test_reads_are_contiguous_native_and_writable(tmp_path):
    path = write(tmp_path / "f8.tif", ramp(dtype="float64"), interleave="pixel")
    values = RasterField(path).read(Box((1, 3, 5), (3, 20, 33)))
    assert values.flags.c_contiguous
    assert values.flags.writeable
    assert values.dtype == np.float64
    assert values.dtype.isnative


# ---- missing cells -------------------------------------------------------------------


def test_nodata_becomes_nan_and_promotes(tmp_path):
    data = ramp()
    field = RasterField(write(tmp_path / "a.tif", data, nodata=0))
    assert field.dtype == np.float32
    assert field.may_miss
    assert field.nodata == 0
    assert isinstance(field.nodata, int)
    expected = data.astype(np.float32)
    expected[data == 0] = np.nan
    np.testing.assert_array_equal(whole(field), expected)


def test_masked_false_returns_stored_values(tmp_path):
    data = ramp(4)
    path = write(tmp_path / "a.tif", data, nodata=0, photometric="RGB", alpha=True)
    field = RasterField(path, masked=False)
    assert field.dtype == np.uint8
    assert not field.may_miss
    np.testing.assert_array_equal(whole(field), data)  # the alpha band is one of them


def with_nodata(path, value):
    """A VRT that gives a file a nodata value, whatever rasterio would write."""
    vrt = path.with_suffix(".vrt")
    rasterio.shutil.copy(path, vrt, driver="VRT")
    tag = f"<NoDataValue>{value}</NoDataValue><ColorInterp>"
    vrt.write_text(vrt.read_text().replace("<ColorInterp>", tag))
    return vrt


def test_nodata_that_no_cell_can_have(tmp_path):
    field = RasterField(with_nodata(write(tmp_path / "a.tif", ramp()), -9999))
    np.testing.assert_array_equal(whole(field), ramp())


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_wide_integers_are_compared_before_they_are_rounded(tmp_path, dtype):
    data = np.full((4, 4), 2**60 + 1, dtype)
    data[0, 0] = 2**60  # the same float64 as its neighbours
    field = RasterField(with_nodata(write(tmp_path / "a.tif", data), 2**60))
    assert field.dtype == np.float64
    assert field.nodata == 2**60
    assert np.isnan(whole(field)).sum() == 1


def test_float_nodata_nearest_value(tmp_path):
    lowest = np.finfo(np.float32).min
    data = ramp(1, dtype="float32")[0]
    data[3, 4] = lowest
    data[5, 6] = np.nan
    values = whole(RasterField(write(tmp_path / "a.tif", data, nodata=float(lowest))))
    assert np.argwhere(np.isnan(values)).tolist() == [[3, 4], [5, 6]]


def test_a_nan_nodata_leaves_the_values(tmp_path):
    data = ramp(1, dtype="float32")[0]
    data[3, 4] = np.nan
    field = RasterField(write(tmp_path / "a.tif", data, nodata=np.nan))
    np.testing.assert_array_equal(whole(field), data)
    assert field.nodata is None


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("strip", [1, header_module._STRIP])
def test_mask_band(tmp_path, internal, strip, monkeypatch):
    monkeypatch.setattr(header_module, "_STRIP", strip)  # 1: every block row for itself
    data, mask = ramp(), np.full((60, 70), 255, "uint8")
    mask[10:20, 30:] = 0
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        write(path, data, tiled=True, blockxsize=16, blockysize=16)
        with rasterio.open(path, "r+") as d:
            d.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists() is not internal
    expected = data.astype("float32")
    expected[:, mask == 0] = np.nan
    field = RasterField(path)
    assert field.may_miss
    assert field.nodata is None
    np.testing.assert_array_equal(whole(field), expected)
    np.testing.assert_array_equal(
        RasterField(path, bands=2).read(Box((7, 9), (31, 44))), expected[1, 7:31, 9:44]
    )


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("strip", [1, header_module._STRIP])
def test_alpha_masks_and_is_not_data(tmp_path, interleave, strip, monkeypatch):
    monkeypatch.setattr(header_module, "_STRIP", strip)
    data = ramp(4)
    data[3] = np.where(data[3] < 40, 0, 128)  # half transparent is not missing
    path = write(
        tmp_path / "a.tif",
        data,
        photometric="RGB",
        alpha=True,
        interleave=interleave,
        tiled=True,
        blockxsize=32,
        blockysize=16,
    )
    field = RasterField(path)
    expected = data[:3].astype("float32")
    expected[:, data[3] == 0] = np.nan
    assert field.domain.coords["band"].values.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(whole(field), expected)
    asked = whole(RasterField(path, bands=(2, 4)))
    np.testing.assert_array_equal(asked[0], expected[1])
    np.testing.assert_array_equal(asked[1], data[3])  # asked for by name, alpha is data
    np.testing.assert_array_equal(whole(RasterField(path, bands=1)), expected[0])


def test_nodata_of_several_bands_at_once(tmp_path):
    data = ramp()
    data[:, 5, 5] = (1, 2, 3)
    data[0, 6, 6] = 1
    path = write(tmp_path / "a.tif", data)
    with rasterio.open(path, "r+") as d:
        d.update_tags(NODATA_VALUES="1 2 3")
    found = np.isnan(whole(RasterField(path)))
    expected = (data == np.array([1, 2, 3])[:, None, None]).all(axis=0)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, data.shape))


def test_mask_field_and_mask_path(tmp_path, rgb):
    keep = np.ones((60, 70), bool)
    keep[:, :9] = False
    expected = ramp().astype("float32")
    expected[:, ~keep] = np.nan
    by_field = RasterField(rgb, mask=ArrayField(keep))
    np.testing.assert_array_equal(whole(by_field), expected)
    assert by_field.dtype == np.float32
    path = write(tmp_path / "keep.tif", keep.astype("uint8"))
    by_path = RasterField(rgb, mask=path)
    np.testing.assert_array_equal(whole(by_path), expected)
    again = field_from_config(
        json.loads(json.dumps({"kind": by_path.kind, **by_path.get_config()}))
    )
    np.testing.assert_array_equal(whole(again), expected)
    assert again.identity() == by_path.identity()
    assert by_path.identity() != RasterField(rgb).identity()


def test_nan_in_a_mask_is_missing(rgb):
    mask = np.ones((60, 70), "float32")
    mask[0, 0], mask[1, 1] = np.nan, 0
    values = RasterField(rgb, bands=1, mask=ArrayField(mask)).read(Box((0, 0), (2, 2)))
    assert np.isnan(values).tolist() == [[True, False], [False, True]]


def test_mask_per_band(rgb):
    keep = np.ones((3, 60, 70), bool)
    keep[1] = False
    assert np.isnan(whole(RasterField(rgb, mask=ArrayField(keep)))).mean(axis=(1, 2)).tolist() == [
        0,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("kw", "text"),
    [
        ({"transform": from_origin(500000, 5000003, 10, 10)}, "0.3 cells apart"),
        ({"crs": "EPSG:32634"}, "CRS WGS 84 / UTM zone 34N"),
        ({"transform": from_origin(500000, 5000000, 10.1, 10)}, "transform"),
    ],
)
def test_a_mask_on_another_grid_is_refused(tmp_path, rgb, kw, text):
    mask = write(tmp_path / "m.tif", np.ones((60, 70), "uint8"), **kw)
    field = RasterField(rgb, mask=mask)
    with pytest.raises(OptionError, match="reproject") as caught:
        _ = field.dtype, field.read(Box((0, 0, 0), (1, 1, 1)))
    assert text in str(caught.value)


def test_a_mask_of_another_shape_is_refused(rgb):
    with pytest.raises(OptionError, match=r"\(60, 71\) against \(60, 70\)"):
        _ = RasterField(rgb, mask=ArrayField(np.ones((60, 71)))).may_miss


def test_a_mask_of_several_bands_is_told_how_to_choose_one(tmp_path, rgb):
    path = write(tmp_path / "m.tif", np.ones((5, 60, 70), "uint8"), photometric="minisblack")
    for bands, has in ((None, 3), (1, 1)):
        with pytest.raises(OptionError, match=rf"has 5 bands, .* has {has}: ") as caught:
            _ = RasterField(rgb, bands=bands, mask=path).may_miss
        assert "bands=1" in str(caught.value)
        assert "resample" not in str(caught.value)
    assert RasterField(rgb, mask=RasterField(path, bands=1)).may_miss
    assert RasterField(rgb, mask=RasterField(path, bands=[1, 2, 4])).may_miss  # one for each
    # On another grid, too: then the grid is what has to be mended first.
    with pytest.raises(OptionError, match="resample it first"):
        _ = RasterField(rgb, mask=ArrayField(np.ones((4, 30, 35)))).may_miss
    with pytest.raises(OptionError, match="has 5 entries of 't', "):
        _ = RasterField(rgb, mask=ArrayField(np.ones((5, 60, 70)), dims=("t", "y", "x"))).may_miss


def test_mask_with_masked_false_makes_no_sense(rgb):
    with pytest.raises(OptionError, match="choose one"):
        RasterField(rgb, mask=rgb, masked=False)
    with pytest.raises(OptionError, match="wrap an array in ArrayField"):
        RasterField(rgb, mask=np.ones((60, 70)))


# ---- any window is a slice of the whole ----------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Files that exercise every way of reading: (field, its whole)."""
    folder = tmp_path_factory.mktemp("many")
    tiled = {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"}
    rng = np.random.default_rng(3)
    data = rng.integers(0, 9, (4, 90, 75)).astype("int16")
    mask = rng.integers(0, 2, (90, 75)).astype("uint8") * 255
    alpha = data.astype("uint16")
    paths = [
        write(folder / "nodata.tif", data, nodata=3, interleave="pixel", **tiled),
        write(folder / "strips.tif", data[:1].astype("float32"), nodata=3),
        write(folder / "mask.tif", data, mask=mask, interleave="band", **tiled),
        write(folder / "alpha.tif", alpha, alpha=True, photometric="RGB", **tiled),
        write(folder / "wide.tif", data.astype("int64"), nodata=3, **tiled),
    ]
    rasterio.shutil.copy(paths[2], folder / "mask.vrt", driver="VRT")
    rasterio.shutil.copy(paths[0], folder / "cog.tif", driver="COG", BLOCKSIZE=128)
    fields = [RasterField(p) for p in (*paths, folder / "mask.vrt", folder / "cog.tif")]
    fields.append(RasterField(paths[0], mask=ArrayField(mask)))
    return [(field, whole(field)) for field in fields]


@st.composite
def boxes(draw, shape):
    limits = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    return Box(tuple(a for a, _ in limits), tuple(b for _, b in limits))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), which=st.integers(0, 7), strip=st.sampled_from([1, 20000, 2**24]))
def test_any_window_is_a_slice_of_the_whole(many, data, which, strip, monkeypatch):
    monkeypatch.setattr(header_module, "_STRIP", strip)
    field, expected = many[which]
    box = data.draw(boxes(field.domain.shape))
    values = field.read(box)
    assert values.dtype == field.dtype
    assert values.flags.c_contiguous
    assert values.tobytes() == expected[box.slices()].tobytes()


def test_cog_vrt_and_tif_say_the_same(many):
    assert np.array_equal(many[0][1], many[6][1], equal_nan=True)
    assert np.array_equal(many[2][1], many[5][1], equal_nan=True)
    for field, values in many:
        assert np.isnan(values).any(), field


@pytest.mark.parametrize(
    "box", [Box((0, 0), (4, 4)), Box((0, 0, 0), (1, 61, 1)), Box((-1, 0, 0), (1, 1, 1))]
)
def test_a_box_that_leaves_the_field_is_refused(rgb, box):
    with pytest.raises(OptionError, match="field of shape"):
        RasterField(rgb).read(box)


def test_an_empty_box_reads_nothing(rgb):
    assert RasterField(rgb).read(Box((0, 5, 5), (3, 5, 9))).shape == (3, 0, 4)


# ---- real rasters --------------------------------------------------------------------


def test_landsat_nodata(real_data):
    field = RasterField(real_data / "landsat_2020.tif")
    with rasterio.open(real_data / "landsat_2020.tif") as d:
        stored = d.read()
    values = whole(field)
    assert field.domain.shape == (4, 377, 697)
    assert field.blocks == (1, 256, 256)
    np.testing.assert_array_equal(np.isnan(values), stored == 0)
    assert (stored == 0).any()
    np.testing.assert_array_equal(values[stored != 0], stored[stored != 0])


def test_dsm_nodata(real_data):
    field = RasterField(real_data / "dsm.tif")
    assert field.domain.dims == ("y", "x")
    assert field.nodata == -9999
    assert np.nanmin(whole(field)) > -9999


def test_slightly_different_grids_are_told_apart(real_data):
    field = RasterField(real_data / "naip_20100629.tif", mask=real_data / "naip_20190904.tif")
    with pytest.raises(OptionError, match=r"0\.283 cells apart"):
        _ = field.domain, field.dtype


# ---- configuration, identity, pickle -------------------------------------------------


def test_configuration_round_trip(rgb):
    field = RasterField(rgb, bands=[1, 3], options={"OVERVIEW_LEVEL": "NONE"}, masked=False)
    config = json.loads(json.dumps({"kind": field.kind, **field.get_config()}))
    again = field_from_config(config)
    assert isinstance(again, RasterField)
    assert again.get_config() == field.get_config()
    assert again.identity() == field.identity()
    np.testing.assert_array_equal(whole(again), whole(field))


def test_unknown_configurations_are_refused():
    with pytest.raises(OptionError, match="RasterField"):
        field_from_config({"kind": "TeapotField"})
    with pytest.raises(OptionError, match="bandz"):
        field_from_config({"kind": "RasterField", "path": "a.tif", "bandz": 1})
    with pytest.raises(OptionError, match="unknown kind"):
        field_from_config({"kind": "json:JSONDecoder"})


def test_identity_is_json_and_follows_the_file(rgb):
    first = RasterField(rgb).identity()
    assert json.loads(json.dumps(first)) == first
    assert first["uri"] == str(rgb)
    assert first["size"] == rgb.stat().st_size
    assert first["mtime_ns"] == rgb.stat().st_mtime_ns
    assert RasterField(rgb).identity() == first
    assert RasterField(rgb, bands=[1]).identity() != first
    assert RasterField(rgb, masked=False).identity() != first
    os.utime(rgb, ns=(1, 1))
    assert RasterField(rgb).identity() != first


def test_identity_of_a_vrt_follows_its_sources(tmp_path, rgb):
    rasterio.shutil.copy(rgb, tmp_path / "a.vrt", driver="VRT")
    first = RasterField(tmp_path / "a.vrt").identity()
    os.utime(rgb, ns=(1, 1))
    assert RasterField(tmp_path / "a.vrt").identity() != first


def test_statistics_beside_a_file_do_not_change_its_identity(rgb):
    first = RasterField(rgb).identity()
    Path(f"{rgb}.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert RasterField(rgb).identity() == first


def test_pickle_is_configuration_only(rgb):
    field = RasterField(rgb, bands=(1, 2), mask=RasterField(rgb, bands=1))
    values = whole(field)
    _ = field.domain
    data = pickle.dumps(field)
    assert len(data) < 2000
    assert b"Dataset" not in data
    again = pickle.loads(data)
    assert "_facts" not in vars(again)
    assert "domain" not in vars(again)
    assert whole(again).tobytes() == values.tobytes()


def test_nothing_is_opened_before_it_is_needed(tmp_path):
    field = RasterField(tmp_path / "later.tif")
    assert "later.tif" in repr(field)
    pickle.dumps(field)
    write(tmp_path / "later.tif", ramp(1))
    assert field.dtype == np.uint8


def test_relative_paths_mean_the_same_elsewhere(rgb, monkeypatch, tmp_path):
    monkeypatch.chdir(rgb.parent)
    field = RasterField("rgb.tif")
    monkeypatch.chdir("/")
    assert whole(field).shape == (3, 60, 70)
    assert field.get_config()["path"] == str(rgb)
    assert RasterField(f"file://{rgb}").get_config()["path"] == str(rgb)


def test_as_field(rgb):
    assert isinstance(as_field(rgb), RasterField)
    assert isinstance(as_field(str(rgb)), RasterField)
    field = RasterField(rgb)
    assert as_field(field) is field
    with pytest.raises(OptionError, match="not list"):
        as_field([[1, 2], [3, 4]])


# ---- threads, processes, changing files ----------------------------------------------


def test_eight_threads(many):
    field, expected = many[3]
    rng = np.random.default_rng(0)
    starts = [tuple(int(rng.integers(0, n - 9)) for n in (90, 75)) for _ in range(400)]

    def work(start):
        box = Box((0, *start), (3, start[0] + 9, start[1] + 9))
        return field.read(box).tobytes() == expected[box.slices()].tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, starts))


def test_each_thread_has_its_own_few_handles(tmp_path):
    fields = [RasterField(write(tmp_path / f"{i}.tif", ramp(1))) for i in range(20)]

    def datasets():
        for field in fields:
            whole(field)
        return len(raster_module._DATASETS), id(fields[-1]._open().dataset)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        (n1, first), (n2, second) = one.submit(datasets).result(), two.submit(datasets).result()
    assert n1 == n2 == 16
    assert first != second


def test_a_rewritten_file_is_opened_again(tmp_path):
    path = tmp_path / "a.tif"
    write(path, ramp(1))
    field = RasterField(path)
    whole(field)
    write(path, ramp(1) + 1)
    os.utime(path, ns=(5, 5))
    np.testing.assert_array_equal(whole(field), ramp(1)[0] + 1)
    write(path, ramp(1, h=30))
    with pytest.raises(
        FieldError, match="has changed from 1 bands of 60 x 70 uint8 to 1 bands of 30"
    ):
        field.read(Box((0, 0), (1, 1)))


def test_a_fork_opens_its_own_handles(rgb):
    code = f"""
import os, sys
from geopatch_dask.fields import RasterField
from geopatch_dask.fields import raster
field = RasterField({str(rgb)!r})
a = field.read(field.domain.box).tobytes()
before = field._open().dataset
pid = os.fork()
if pid == 0:
    ok = len(raster._DATASETS) == 0
    ok = ok and field.read(field.domain.box).tobytes() == a and field._open().dataset is not before
    os._exit(0 if ok else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_gdal_cache_is_bounded(rgb):
    whole(RasterField(rgb))
    assert get_gdal_config("GDAL_CACHEMAX") <= GDAL_CACHE


# ---- hostile input -------------------------------------------------------------------


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert ";" in text  # what; remedy
    return text


def test_missing_file(tmp_path):
    with pytest.raises(FieldError, match="no such file") as caught:
        _ = RasterField(tmp_path / "none.tif").domain
    assert str(tmp_path / "none.tif") in one_line(caught)
    assert isinstance(caught.value, OSError)


def test_directory_text_and_zarr(tmp_path):
    (tmp_path / "text.tif").write_text("no raster at all")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "zarr.json").write_text("{}")
    for path in (tmp_path, tmp_path / "text.tif"):
        with pytest.raises(FieldError, match="cannot be opened as a raster") as caught:
            _ = RasterField(path).domain
        one_line(caught)
    with pytest.raises(FieldError, match="XarrayField"):
        _ = RasterField(tmp_path / "store").domain


def test_band_numbers(rgb):
    with pytest.raises(FieldError, match="has no band 9; choose bands= from 1 to 3"):
        _ = RasterField(rgb, bands=9).domain
    with pytest.raises(FieldError, match="no band 4"):
        _ = RasterField(rgb, bands=[1, 4]).dtype
    for bad in (0, -1, [], [1, 0], "12", 1.5, True, [1.5], [[1]]):
        with pytest.raises(OptionError, match="counted from 1"):
            RasterField(rgb, bands=bad)


@pytest.mark.parametrize("bad", ["", "  ", None, 5, b"a.tif"])
def test_paths_that_are_none(bad):
    with pytest.raises(OptionError, match="path or URL"):
        RasterField(bad)


@pytest.mark.parametrize("compress", [None, "deflate", "lzw"])
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("left", [0.4, 0.99])
def test_a_truncated_file_raises_and_never_gives_zeros(tmp_path, compress, tiled, left):
    data = np.random.default_rng(0).integers(1, 255, (3, 256, 256)).astype("uint8")
    block = {"blockxsize": 64, "blockysize": 64} if tiled else {}
    path = write(tmp_path / "a.tif", data, tiled=tiled, compress=compress, **block)
    os.truncate(path, int(path.stat().st_size * left))
    field = RasterField(path)
    for _ in range(2):  # and does not poison the next read either
        with pytest.raises(FieldError, match="incomplete or damaged") as caught:
            whole(field)
        assert str(path) in one_line(caught)


def test_a_vrt_without_its_source_raises(tmp_path, rgb):
    rasterio.shutil.copy(rgb, tmp_path / "a.vrt", driver="VRT")
    field = RasterField(tmp_path / "a.vrt")
    _ = field.domain
    rgb.unlink()
    with pytest.raises(FieldError):
        whole(RasterField(tmp_path / "a.vrt"))


def test_a_file_with_subdatasets_names_them(real_data):
    with pytest.raises(FieldError, match="3 subdatasets") as caught:
        _ = RasterField(real_data / "eraint_uvz.nc").domain
    assert "XarrayField" in one_line(caught)


# ---- secrets -------------------------------------------------------------------------

SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@127.0.0.1:9/a.tif",
        f"http://127.0.0.1:9/a.tif?X-Amz-Signature={SECRET}&x=1",
        f"/vsicurl/http://me:{SECRET}@127.0.0.1:9/a.tif?sig={SECRET}",
        f"/vsicurl?token={SECRET}&url=http://127.0.0.1:9/a.tif",
        f'PG:"dbname=a password={SECRET}"',
    ],
)
def test_secrets_stay_out_of_every_text(url):
    field = RasterField(url)
    assert SECRET not in repr(field)
    assert SECRET not in field.label
    with pytest.raises(FieldError) as caught:
        _ = field.domain
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET not in text
    with pytest.raises(OptionError, match="carries credentials") as refused:
        field.get_config()
    assert SECRET not in str(refused.value)


def test_options_must_not_hold_credentials(rgb):
    with pytest.raises(OptionError, match="AWS_SECRET_ACCESS_KEY"):
        RasterField(rgb, options={"AWS_SECRET_ACCESS_KEY": SECRET})


@contextlib.contextmanager
def served(folder):
    """A web server in another process: GDAL may hold the GIL while it waits for one."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield "http://127.0.0.1:" + server.stdout.readline().split("port ")[1].split()[0]
    finally:
        server.kill()
        server.communicate()


def test_a_url_reads_and_identifies_itself(rgb, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served(rgb.parent) as url:
        field = RasterField(f"{url}/rgb.tif?sig={SECRET}&version=1")
        np.testing.assert_array_equal(whole(field), ramp())
        identity = field.identity()
        assert identity["uri"] == f"{url}/rgb.tif"
        assert identity["size"] == rgb.stat().st_size
        assert SECRET not in json.dumps(identity)
        resigned = RasterField(f"{url}/rgb.tif?sig=other&version=1").identity()
        assert resigned == identity
        assert RasterField(f"{url}/rgb.tif?version=2").identity() != identity
        assert crs_wkt("EPSG:32633").split(",")[0] in field.domain.crs


def test_every_error_is_a_geopatch_error(tmp_path):
    with pytest.raises(GeopatchError):
        _ = RasterField(tmp_path / "no.tif").dtype
