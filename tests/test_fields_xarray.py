"""Grids through xarray: domains, missing cells, chunks, stores, identity, and broken input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from geopatch_dask.errors import FieldError, OptionError
from geopatch_dask.fields import ArrayField, RasterField, XarrayField, as_field, field_from_config
from geopatch_dask.fields import xarray as xarray_module
from geopatch_dask.fields.georef import crs_wkt
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain, RasterDomain

UTM = crs_wkt("EPSG:32633")


def whole(field):
    return field.read(field.domain.box)


def cube(crs=None, transform=None, name="t", **kw):
    """A (time, y, x) DataArray, georeferenced as rioxarray does it."""
    data = np.arange(2 * 6 * 8, dtype="int16").reshape(2, 6, 8)
    coords = {
        "time": np.array(["2020-01-01", "2020-07-01"], "M8[ns]"),
        "y": 1000.0 - 10 * np.arange(6) - 5,
        "x": 500.0 + 10 * np.arange(8) + 5,
    } | kw
    array = xr.DataArray(data, dims=("time", "y", "x"), coords=coords, name=name)
    array.x.attrs |= {"units": "m", "standard_name": "projection_x_coordinate"}
    if crs:
        attrs = {"crs_wkt": crs, "spatial_ref": crs}
        if transform:
            attrs["GeoTransform"] = transform
        array = array.assign_coords(spatial_ref=xr.Variable((), 0, attrs))
        array.attrs["grid_mapping"] = "spatial_ref"
    return array


def climate():
    rng = np.random.default_rng(1)
    return xr.DataArray(
        rng.random((3, 2, 7, 9)),
        dims=("month", "level", "latitude", "longitude"),
        coords={
            "month": [1, 4, 7],
            "latitude": np.linspace(90, -90, 7, dtype="float32"),
            "longitude": np.arange(9) * 40.0 - 180,
        },
        name="u",
    )


@pytest.fixture(params=["v3", "v2", "v3-consolidated"])
def zarr_path(request, tmp_path):
    path = tmp_path / "a.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube(UTM).to_dataset().to_zarr(
            path,
            zarr_format=2 if request.param == "v2" else 3,
            consolidated=request.param != "v3",
            encoding={"t": {"chunks": (1, 4, 8)}},
        )
    return path


@pytest.fixture
def nc_path(tmp_path):
    path = tmp_path / "a.nc"
    cube(UTM).to_dataset().to_netcdf(path, engine="scipy")
    return path


# ---- domains -------------------------------------------------------------------------


def test_a_climate_cube_stays_a_grid_with_its_own_labels():
    domain = XarrayField(climate()).domain
    assert type(domain) is GridDomain
    assert domain.crs is None
    assert domain.dims == ("month", "level", "latitude", "longitude")
    assert set(domain.coords) == {"month", "latitude", "longitude"}
    labels = domain.coords["latitude"].values
    assert labels.dtype == np.float32
    assert labels.tobytes() == climate().latitude.values.tobytes()


def test_a_grid_mapping_makes_a_raster_and_keeps_the_labels():
    source = cube(UTM)
    domain = XarrayField(source).domain
    assert isinstance(domain, RasterDomain)
    assert domain.crs == UTM
    assert domain.transform == (10.0, 0.0, 500.0, 0.0, -10.0, 1000.0)
    assert domain.coords["x"].values.tobytes() == source.x.values.tobytes()
    assert domain.coords["x"].attrs["units"] == "m"
    assert domain.coords["time"].values.dtype.kind == "M"
    assert domain.labels("x", 2, 3).tolist() == [525.0]


def test_without_a_crs_regular_labels_are_no_raster():
    assert type(XarrayField(cube()).domain) is GridDomain


def test_crs_given_by_hand():
    domain = XarrayField(cube(), crs="EPSG:32633").domain
    assert isinstance(domain, RasterDomain)
    assert domain.crs == UTM
    other = XarrayField(cube(UTM), crs="EPSG:3857").domain
    assert other.crs == crs_wkt(3857)


def test_irregular_labels_are_no_raster_but_keep_the_crs():
    domain = XarrayField(cube(UTM, x=np.arange(8.0) ** 2)).domain
    assert type(domain) is GridDomain
    assert domain.crs == UTM


@pytest.mark.parametrize("order", [("y", "x", "time"), ("time", "x", "y")])
def test_map_axes_that_are_not_last_are_no_raster(order):
    assert type(XarrayField(cube(UTM).transpose(*order)).domain) is GridDomain


def test_geotransform_without_labels_and_stale_after_slicing():
    source = cube(UTM, "500 10 0 1000 0 -10")
    bare = source.drop_vars(["x", "y"])
    assert XarrayField(bare).domain.transform == (10.0, 0.0, 500.0, 0.0, -10.0, 1000.0)
    cut = source.isel(y=slice(2, None), x=slice(1, None))  # the attribute stays behind
    assert XarrayField(cut).domain.transform == (10.0, 0.0, 510.0, 0.0, -10.0, 980.0)


def test_geotransform_is_exact_where_labels_are_rounded():
    source = cube(UTM, "500.1 10 0 1000 0 -10", x=(500.1 + 10 * np.arange(8) + 5).astype("f4"))
    assert XarrayField(source).domain.transform[2] == 500.1


def test_rotated_geotransform():
    source = cube(UTM, "500 10 1 1000 1 -10").drop_vars(["x", "y"])
    assert XarrayField(source).domain.transform == (10.0, 1.0, 500.0, 1.0, -10.0, 1000.0)


def test_crs_from_cf_parameters():
    source = cube("x")
    source.spatial_ref.attrs.clear()
    source.spatial_ref.attrs |= {
        "grid_mapping_name": "latitude_longitude",
        "semi_major_axis": 6378137.0,
        "inverse_flattening": 298.257223563,
    }
    assert XarrayField(source).domain.crs.startswith("GEOGCRS")


def test_text_labels_and_absent_labels():
    source = cube().rename(time="band").assign_coords(band=np.array(["red", "nir"], object))
    domain = XarrayField(source).domain
    assert domain.coords["band"].values.dtype.kind == "U"
    assert "y" not in XarrayField(source.drop_vars("y")).domain.coords


def test_rioxarray_agrees(tmp_path):
    rioxarray = pytest.importorskip("rioxarray")
    import rasterio
    from rasterio.transform import from_origin

    data = np.arange(12, dtype="uint8").reshape(3, 4)
    options = {"count": 1, "height": 3, "width": 4, "dtype": "uint8", "nodata": 0}
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 10, 10)}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **options, **place) as d:
        d.write(data, 1)
    raster = RasterField(tmp_path / "a.tif")
    with rioxarray.open_rasterio(tmp_path / "a.tif") as opened:  # undecoded: _FillValue in attrs
        field = XarrayField(opened.isel(band=0, drop=True))
        assert field.domain.transform == raster.domain.transform
        assert field.domain.crs == raster.domain.crs
        assert field.dtype == np.float32
        assert field.nodata == 0
        np.testing.assert_array_equal(whole(field), whole(raster))


# ---- missing cells -------------------------------------------------------------------


def test_integers_without_fill_keep_their_dtype(zarr_path, nc_path):
    for field in (XarrayField(zarr_path), XarrayField(nc_path), XarrayField(cube())):
        assert field.dtype == np.int16
        assert field.dtype.isnative
        assert not field.may_miss
        values = whole(field)
        assert values.dtype == np.int16
        np.testing.assert_array_equal(values, cube().values)


@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
def test_decoded_fill(tmp_path, name):
    path = tmp_path / "a.zarr"
    source = cube().where(cube() != 7)
    source.to_dataset().to_zarr(path, encoding={"t": {"dtype": "int16", name: -1}})
    field = XarrayField(path)
    assert field.may_miss
    assert field.nodata == -1
    assert np.argwhere(np.isnan(whole(field))).tolist() == [[0, 0, 7]]


def test_undecoded_fill_is_missing_too():
    source = cube()
    source.attrs["_FillValue"] = np.int16(3)
    source.attrs["missing_value"] = [np.int16(5)]
    field = XarrayField(source)
    assert field.dtype == np.float32
    assert np.argwhere(np.isnan(whole(field))).tolist() == [[0, 0, 3], [0, 0, 5]]
    assert source.values[0, 0, 3] == 3  # the source is not touched
    wide = source.astype("int64") + 2**60
    wide.attrs["_FillValue"] = 2**60
    assert np.isnan(whole(XarrayField(wide))).sum() == 1


def test_mask(zarr_path):
    keep = np.ones((6, 8), bool)
    keep[2] = False
    field = XarrayField(zarr_path, mask=ArrayField(keep))
    values = whole(field)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(~keep, (2, 6, 8)))
    labelled = xr.DataArray(keep, dims=("y", "x"), coords={"y": cube().y, "x": cube().x})
    np.testing.assert_array_equal(whole(XarrayField(zarr_path, mask=XarrayField(labelled))), values)


def test_a_mask_elsewhere_is_refused():
    keep = climate()[0, 0] > 0.5
    assert np.isnan(whole(XarrayField(climate(), mask=XarrayField(keep)))).any()
    with pytest.raises(
        OptionError, match=r"latitude from -90.0 to 90.0 against latitude from 90.0"
    ):
        XarrayField(climate(), mask=XarrayField(keep[::-1]))
    with pytest.raises(OptionError, match=r"shape \(7, 8\) against \(7, 9\)"):
        XarrayField(climate(), mask=XarrayField(keep[:, 1:]))


# ---- reading -------------------------------------------------------------------------


@st.composite
def boxes(draw, shape):
    limits = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    return Box(tuple(a for a, _ in limits), tuple(b for _, b in limits))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    source = climate().where(climate() > 0.1)
    encoding = {
        "u": {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -1, "chunks": (1, 2, 4, 5)}
    }
    source.to_dataset().to_zarr(folder / "packed.zarr", encoding=encoding)
    sharded = {"u": {"chunks": (1, 2, 2, 3), "shards": (3, 2, 4, 6)}}
    source.to_dataset().to_zarr(folder / "sharded.zarr", encoding=sharded)
    source.to_dataset().to_netcdf(folder / "plain.nc", engine="scipy")
    mask = XarrayField(climate()[0, 0] > 0.3)
    fields = [
        XarrayField(folder / "packed.zarr"),
        XarrayField(folder / "sharded.zarr"),
        XarrayField(folder / "plain.nc"),
        XarrayField(source.transpose(*reversed(source.dims))),
        XarrayField(folder / "sharded.zarr", mask=mask),
    ]
    return [(field, whole(field)) for field in fields]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), which=st.integers(0, 4))
def test_any_box_is_a_slice_of_the_whole(many, data, which):
    field, expected = many[which]
    box = data.draw(boxes(field.domain.shape))
    values = field.read(box)
    assert values.dtype == field.dtype
    assert values.flags.c_contiguous
    assert values.flags.writeable
    assert values.tobytes() == expected[box.slices()].tobytes()


def test_blocks(many, tmp_path):
    assert many[0][0].blocks == (1, 2, 4, 5)
    assert many[1][0].blocks == (1, 2, 2, 3)  # the unit of decoding, not the shard
    assert many[2][0].blocks == (1, 1, 1, 9)  # contiguous: a row
    assert XarrayField(cube()).blocks == (1, 1, 8)


def test_a_dask_array_is_computed_where_it_is_read():
    pytest.importorskip("dask.array")
    field = XarrayField(cube().chunk({"y": 4}))
    assert field.blocks == (2, 4, 8)
    np.testing.assert_array_equal(field.read(Box((0, 1, 0), (2, 5, 8))), cube().values[:, 1:5])


def test_memory_is_not_handed_out():
    source = climate()
    field = XarrayField(source)
    whole(field)[:] = -1
    assert source.values.min() >= 0


def test_reading_opens_no_dask_and_keeps_nothing(zarr_path):
    field = XarrayField(zarr_path)
    whole(field)
    array, _ = field._open()
    assert array.chunks is None
    assert not array.variable._in_memory


def test_eight_threads(many):
    rng = np.random.default_rng(0)
    jobs = [
        (i % len(many), tuple(int(rng.integers(0, n)) for n in (3, 2, 5, 6))) for i in range(200)
    ]

    def work(job):
        field, expected = many[job[0]]
        start = job[1] if job[0] != 3 else job[1][::-1]
        box = Box.at(start, (1, 1, 2, 2)).intersect(field.domain.box)
        return field.read(box).tobytes() == expected[box.slices()].tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, jobs))


def test_era_interim(real_data):
    path = real_data / "eraint_uvz.nc"
    field = XarrayField(path, "u")
    assert type(field.domain) is GridDomain
    assert field.domain.shape == (2, 3, 241, 480)
    assert field.dtype == np.float64
    assert field.dtype.isnative
    latitude = field.domain.coords["latitude"]
    assert latitude.values[0] > latitude.values[-1]
    assert latitude.attrs["units"] == "degrees_north"
    with xr.open_dataset(path) as dataset:
        np.testing.assert_array_equal(whole(field), dataset.u.values)
    with pytest.raises(FieldError, match="holds 3 variables of numbers"):
        _ = XarrayField(path).domain


# ---- configuration, identity, pickle -------------------------------------------------


def test_configuration_round_trip(zarr_path, nc_path):
    for path in (zarr_path, nc_path):
        field = XarrayField(path, "t", crs=32634, mask=configured(path))
        config = json.loads(json.dumps({"kind": field.kind, **field.get_config()}))
        again = field_from_config(config)
        assert again.get_config() == field.get_config()
        assert again.identity() == field.identity()
        assert again.domain.crs == field.domain.crs
        np.testing.assert_array_equal(whole(again), whole(field))


def configured(path):
    return XarrayField(path, "t", crs=32634)


def test_memory_has_no_configuration():
    with pytest.raises(OptionError, match="pass field= again"):
        XarrayField(cube()).get_config()


def test_pickle_of_a_path_is_small_and_holds_no_handle(zarr_path):
    field = XarrayField(zarr_path)
    values = whole(field)
    data = pickle.dumps(field)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert not {"domain", "_facts"} & vars(again).keys()
    assert whole(again).tobytes() == values.tobytes()
    assert again.domain.shape == field.domain.shape


def test_pickle_of_data(nc_path):
    again = pickle.loads(pickle.dumps(XarrayField(climate())))
    np.testing.assert_array_equal(whole(again), climate().values)
    with xr.open_dataset(nc_path, engine="scipy") as dataset:
        lazy = XarrayField(dataset["t"])
        assert whole(pickle.loads(pickle.dumps(lazy))).tobytes() == whole(lazy).tobytes()


def test_identity_of_a_store(zarr_path):
    first = XarrayField(zarr_path).identity()
    assert json.loads(json.dumps(first)) == first
    assert first["variable"] == "t"
    assert first["files"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(zarr_path)
    assert XarrayField(zarr_path).identity() == first  # no value has changed
    zarr.open_group(zarr_path, mode="r+")["t"][0] = 5
    assert XarrayField(zarr_path).identity() != first


def test_identity_of_a_file(nc_path):
    first = XarrayField(nc_path).identity()
    assert first["uri"] == str(nc_path)
    assert first["mtime_ns"] == nc_path.stat().st_mtime_ns
    os.utime(nc_path, ns=(1, 1))
    assert XarrayField(nc_path).identity() != first


def test_identity_of_data(nc_path):
    first = XarrayField(climate()).identity()
    assert first == XarrayField(climate()).identity()
    assert first == XarrayField(climate().chunk({"month": 1})).identity()
    assert first != XarrayField(climate() + 1).identity()
    assert first != XarrayField(climate().rename(month="time")).identity()


def test_urls_of_fsspec(zarr_path, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(zarr_path), "/fields/a.zarr", recursive=True)
    try:
        field = XarrayField("memory://fields/a.zarr")
        np.testing.assert_array_equal(whole(field), cube().values)
        identity = field.identity()
        assert identity["uri"] == "memory://fields/a.zarr"
        assert len(identity["metadata"]) == 64
    finally:
        memory.rm("/fields", recursive=True)


def test_a_replaced_remote_store_is_not_read_through_an_old_handle(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        for zarr_format in (2, 3):
            path = tmp_path / f"{zarr_format}.zarr"
            cube().to_dataset().to_zarr(path, zarr_format=zarr_format, consolidated=False)
            if memory.exists("/replaced"):
                memory.rm("/replaced", recursive=True)
            memory.put(str(path), "/replaced/a.zarr", recursive=True)
            field = XarrayField("memory://replaced/a.zarr")
            np.testing.assert_array_equal(whole(field), cube().values)
            assert pickle.loads(pickle.dumps(field))._key == field._key
    finally:
        memory.rm("/replaced", recursive=True)


def test_groups(tmp_path):
    cube().to_dataset().to_zarr(tmp_path / "a.zarr", group="deep/er", consolidated=False)
    field = XarrayField(tmp_path / "a.zarr", group="deep/er")
    assert whole(field).shape == (2, 6, 8)
    assert field.identity()["files"] >= 1
    assert whole(XarrayField(tmp_path / "a.zarr" / "deep" / "er")).shape == (2, 6, 8)


def test_unconsolidated_stores_open_without_a_warning(tmp_path):
    cube().to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert XarrayField(tmp_path / "a.zarr").domain.shape == (2, 6, 8)


def test_a_rewritten_store_is_opened_again(tmp_path):
    path = tmp_path / "a.nc"
    cube().to_dataset().to_netcdf(path, engine="scipy")
    field = XarrayField(path)
    whole(field)
    (cube() + 1).rename("t").to_dataset().to_netcdf(path, engine="scipy")
    os.utime(path, ns=(5, 5))
    np.testing.assert_array_equal(whole(field), cube().values + 1)
    cube().isel(y=slice(3)).to_dataset().to_netcdf(path, engine="scipy")
    with pytest.raises(FieldError, match="has changed from"):
        field.read(Box((0, 0, 0), (1, 1, 1)))


def test_as_field(zarr_path, nc_path, tmp_path):
    assert isinstance(as_field(zarr_path), XarrayField)
    assert isinstance(as_field(str(nc_path)), XarrayField)
    assert isinstance(as_field(cube()), XarrayField)
    assert isinstance(as_field(cube().to_dataset()), XarrayField)
    assert isinstance(as_field("s3://bucket/a.zarr"), XarrayField)
    assert isinstance(as_field("https://host/a.nc?sig=1"), XarrayField)
    shutil.move(zarr_path, tmp_path / "no_suffix")
    assert isinstance(as_field(tmp_path / "no_suffix"), XarrayField)


# ---- hostile input -------------------------------------------------------------------


def refused(what, field, error=FieldError):
    with pytest.raises(error, match=what) as caught:
        _ = field().domain
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_wrong_sources(tmp_path, zarr_path):
    (tmp_path / "text.nc").write_text("no netCDF at all")
    (tmp_path / "short.nc").write_bytes(b"CDF\x01")
    assert "no such file" in refused("none.zarr", lambda: XarrayField(tmp_path / "none.zarr"))
    refused("cannot be opened by xarray", lambda: XarrayField(tmp_path / "text.nc"))
    refused("short.nc", lambda: XarrayField(tmp_path / "short.nc"))
    refused("is a directory, and no Zarr store", lambda: XarrayField(tmp_path))
    refused("cannot be opened by xarray", lambda: XarrayField(zarr_path / "t"))
    refused("cannot be opened by xarray", lambda: XarrayField(zarr_path, group="nothere"))


def test_variables(tmp_path):
    source = (
        cube()
        .to_dataset()
        .assign(other=cube(), when=("time", np.array(["2020", "2021"], "M8[ns]")), scalar=3)
    )
    source.to_zarr(tmp_path / "a.zarr", consolidated=False)
    assert "(other, t)" in refused("holds 2 variables", lambda: XarrayField(tmp_path / "a.zarr"))
    refused("no variable 'q'; it holds other, t", lambda: XarrayField(tmp_path / "a.zarr", "q"))
    refused("fields hold numbers", lambda: XarrayField(tmp_path / "a.zarr", "when"))
    refused("no cells to patch", lambda: XarrayField(tmp_path / "a.zarr", "scalar"))
    refused("holds 2 variables", lambda: XarrayField(source))
    assert XarrayField(source, "other").domain.shape == (2, 6, 8)


def test_bounds_are_no_second_variable(tmp_path):
    source = cube().to_dataset().assign(x_bnds=(("x", "n"), np.zeros((8, 2))))
    source.x.attrs["bounds"] = "x_bnds"
    assert whole(XarrayField(source)).shape == (2, 6, 8)


def test_data_that_cannot_be_a_field():
    refused("fields hold numbers", lambda: XarrayField(cube().astype(str)), OptionError)
    refused("no cells", lambda: XarrayField(cube().isel(x=slice(0))), OptionError)
    refused("chooses from a Dataset", lambda: XarrayField(cube(), "q"), OptionError)
    refused("is open", lambda: XarrayField(cube(), engine="zarr"), OptionError)
    refused("path or URL", lambda: XarrayField(np.zeros((3, 3))), OptionError)
    refused("coordinate reference", lambda: XarrayField(cube(), crs="EPSG:1"), OptionError)
    refused("incomplete", lambda: XarrayField(bad_mapping()), OptionError)


def bad_mapping():
    source = cube("x")
    source.spatial_ref.attrs = {"grid_mapping_name": "teapot"}
    return source


def test_a_damaged_chunk_raises(zarr_path):
    field = XarrayField(zarr_path)
    _ = field.dtype
    chunks = [p for p in (zarr_path / "t").rglob("*") if p.is_file() and p.name[0] not in "z."]
    assert chunks
    for chunk in chunks:
        chunk.write_bytes(b"\x00\x01\x02")
    with pytest.raises(FieldError, match="cannot be read"):
        whole(field)


def test_a_missing_package_names_the_extra(nc_path, monkeypatch):
    def no_engine(*args, **kwargs):
        raise ValueError("found the following matches in xarray's IO backends: ['scipy']. But ...")

    monkeypatch.setattr(xr, "open_dataset", no_engine)
    text = refused("netCDF-3", lambda: XarrayField(nc_path))
    assert "pip install 'geopatch_dask[netcdf]'" in text


def test_netcdf4(tmp_path):
    pytest.importorskip("h5py")
    path = tmp_path / "a.nc"
    encoding = {"t": {"chunksizes": (1, 3, 4), "zlib": True}}
    cube(UTM).to_dataset().to_netcdf(path, engine="h5netcdf", encoding=encoding)
    field = XarrayField(path)
    assert field.blocks == (1, 3, 4)
    assert isinstance(field.domain, RasterDomain)
    np.testing.assert_array_equal(whole(field), cube().values)
    os.truncate(path, path.stat().st_size // 2)
    refused("a.nc", lambda: XarrayField(path))


def test_a_store_that_changes_dtype_is_noticed(tmp_path):
    path = tmp_path / "a.zarr"
    cube().to_dataset().to_zarr(path, consolidated=False)
    field = XarrayField(path)
    assert field.dtype == np.int16
    shutil.rmtree(path)
    cube().astype("float64").to_dataset().to_zarr(path, consolidated=False)
    with pytest.raises(FieldError, match="has changed"):
        field.read(Box((0, 0, 0), (1, 1, 1)))


def test_secrets_in_urls_and_options():
    secret = "hunter2secret"
    field = XarrayField(f"http://me:{secret}@127.0.0.1:9/a.zarr?sig={secret}")
    assert secret not in repr(field)
    with pytest.raises(FieldError) as caught:
        _ = field.domain
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(OptionError, match="carries credentials"):
        field.get_config()
    with pytest.raises(OptionError, match="looks like a credential") as caught:
        XarrayField("s3://b/a.zarr", options={"storage_options": {"key": "a", "secret": secret}})
    assert secret not in str(caught.value)
    XarrayField("s3://b/a.zarr", options={"storage_options": {"anon": True, "token": "anon"}})


def test_handles_are_bounded(tmp_path):
    fields = []
    for i in range(18):
        cube().to_dataset().to_zarr(tmp_path / f"{i}.zarr", consolidated=False)
        fields.append(XarrayField(tmp_path / f"{i}.zarr"))

    def work():
        for field in fields:
            whole(field)
        return len(xarray_module._DATASETS)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 16
