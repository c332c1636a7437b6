"""Arrays in memory, and the small pure parts that all fields share."""

from __future__ import annotations

import pickle

import affine
import numpy as np
import pyproj
import pytest
import rasterio.crs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geopatch_dask.credentials import holds_secret, redact
from geopatch_dask.errors import OptionError
from geopatch_dask.fields import ArrayField, as_field, field_from_config
from geopatch_dask.fields.base import Field, promoted
from geopatch_dask.fields.georef import affine6, crs_wkt, grid_difference, labels_transform, spacing
from geopatch_dask.fields.handles import Handles
from geopatch_dask.fields.source import local_path, normal_uri, sha256_slabs
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Coordinate, GridDomain, RasterDomain


def whole(field):
    return field.read(field.domain.box)


# ---- ArrayField ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((5,), ("x",)),
        ((4, 5), ("y", "x")),
        ((3, 4, 5), ("band", "y", "x")),
        ((2, 3, 4, 5), ("dim_0", "dim_1", "y", "x")),
    ],
)
def test_default_dims(shape, dims):
    domain = ArrayField(np.zeros(shape)).domain
    assert domain.dims == dims
    assert domain.shape == shape
    assert type(domain) is GridDomain


def test_georeferenced():
    transform = affine.Affine(10, 0, 5e5, 0, -10, 5e6)
    domain = ArrayField(np.zeros((4, 5)), transform=transform, crs="EPSG:32633").domain
    assert isinstance(domain, RasterDomain)
    assert domain.transform == (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
    assert domain.crs.startswith("PROJCRS[")
    only_crs = ArrayField(np.zeros((4, 5)), crs=4326).domain
    assert isinstance(only_crs, RasterDomain)
    assert only_crs.transform is None


def test_labels():
    field = ArrayField(
        np.zeros((2, 3)),
        dims=("time", "x"),
        coords={
            "time": np.array(["2020", "2021"], "M8[Y]"),
            "x": Coordinate(np.arange(3), {"units": "m"}),
        },
    )
    assert field.domain.coords["x"].attrs == {"units": "m"}
    assert field.domain.coords["time"].values.dtype.kind == "M"
    with pytest.raises(OptionError, match="its axis 3 cells"):
        ArrayField(np.zeros((2, 3)), coords={"x": [1, 2]})
    with pytest.raises(OptionError, match="do not name the axes"):
        ArrayField(np.zeros((2, 3)), dims=("a", "a"))


@pytest.mark.parametrize(
    ("dtype", "expected"), [("uint8", "float32"), ("int32", "float64"), ("float32", "float32")]
)
def test_nodata(dtype, expected):
    field = ArrayField(np.array([[0, 1], [2, 0]], dtype), nodata=0)
    assert field.dtype == expected
    assert field.may_miss
    assert np.isnan(whole(field)).tolist() == [[True, False], [False, True]]


def test_nodata_is_compared_before_rounding():
    values = np.array([[2**60, 2**60 + 1]])
    assert np.isnan(whole(ArrayField(values, nodata=2**60))).tolist() == [[True, False]]


def test_integers_keep_their_dtype_and_bytes():
    values = np.arange(12, dtype=">i8").reshape(3, 4) + 2**60
    field = ArrayField(values)
    assert field.dtype == np.int64
    assert field.dtype.isnative
    assert not field.may_miss
    np.testing.assert_array_equal(whole(field), values)


def test_masked_array_and_mask_field():
    values = np.ma.masked_equal(np.arange(12, dtype="uint8").reshape(3, 4), 5)
    field = ArrayField(values, mask=ArrayField(np.arange(12).reshape(3, 4) != 7), nodata=9)
    assert np.flatnonzero(np.isnan(whole(field))).tolist() == [5, 7, 9]
    assert field.dtype == np.float32
    plain = ArrayField(np.ma.MaskedArray(np.zeros((2, 2), "uint8")))
    assert plain.dtype == np.uint8


def test_bool_and_complex():
    assert whole(ArrayField(np.eye(3, dtype=bool))).dtype == bool
    assert (
        whole(ArrayField(np.eye(3, dtype=bool), mask=ArrayField(np.ones((3, 3))))).dtype
        == np.float32
    )
    assert ArrayField(np.zeros((2, 2), complex)).may_miss


def test_reads_are_copies():
    values = np.zeros((3, 4))
    whole(ArrayField(values))[:] = 1
    assert values.max() == 0


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    values=hnp.arrays(
        st.sampled_from(["uint8", ">i4", "float32", "bool"]),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
    ),
    nodata=st.sampled_from([None, 0]),
    fortran=st.booleans(),
)
def test_any_box_is_a_slice_of_the_whole(data, values, nodata, fortran):
    field = ArrayField(np.asfortranarray(values) if fortran else values, nodata=nodata)
    limits = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in values.shape]
    box = Box(tuple(a for a, _ in limits), tuple(b for _, b in limits))
    got = field.read(box)
    assert got.flags.c_contiguous
    assert got.dtype == field.dtype
    assert got.tobytes() == whole(field)[box.slices()].tobytes()


def test_identity():
    values = np.arange(12.0).reshape(3, 4)
    first = ArrayField(values).identity()
    assert first == ArrayField(np.asfortranarray(values)).identity()
    assert first == ArrayField(values.astype(">f8")).identity()
    assert first != ArrayField(values.T).identity()
    assert first != ArrayField(values + 1).identity()
    assert first != ArrayField(values, nodata=3).identity()
    masked = np.ma.MaskedArray(values, values > 5)
    assert first != ArrayField(masked).identity()


def test_pickle_carries_the_data():
    field = ArrayField(np.arange(12.0).reshape(3, 4), crs=4326, nodata=3)
    field.identity()
    again = pickle.loads(pickle.dumps(field))
    assert whole(again).tobytes() == whole(field).tobytes()
    assert again.identity() == field.identity()
    assert again.domain.crs == field.domain.crs


def test_memory_has_no_configuration():
    with pytest.raises(OptionError, match="pass field= again"):
        ArrayField(np.zeros((2, 2))).get_config()


def test_memory_maps_stay_on_disk(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(20.0).reshape(4, 5))
    field = ArrayField(np.load(path, mmap_mode="r"))
    assert isinstance(field._values.base, np.memmap) or isinstance(field._values, np.memmap)
    np.testing.assert_array_equal(field.read(Box((1, 1), (3, 3))), [[6, 7], [11, 12]])


def test_as_field():
    assert isinstance(as_field(np.zeros((2, 2))), ArrayField)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ArrayField(np.zeros((0, 3))), "no cells"),
        (lambda: ArrayField(np.float64(3)), "no cells"),
        (lambda: ArrayField(np.array([["a"]])), "hold numbers"),
        (lambda: ArrayField(np.zeros((2, 2), "M8[D]")), "hold numbers"),
        (lambda: ArrayField(np.zeros((2, 2), object)), "hold numbers"),
        (lambda: ArrayField(np.zeros((2, 2), "u1"), nodata=-9999), "is no value of uint8"),
        (lambda: ArrayField(np.zeros((2, 2)), transform=(1, 2, 3)), "six finite numbers"),
        (lambda: ArrayField(np.zeros((2, 2)), transform=(5e5, 10, 0, 5e6, 0, -10)), "order"),
        (lambda: ArrayField(np.zeros((2, 2)), transform=(np.nan,) * 6), "six finite numbers"),
        (lambda: ArrayField(np.zeros((2, 2)), crs="EPSG:99999999"), "EPSG code or WKT"),
        (lambda: ArrayField(np.zeros(3), crs=4326), "two axes"),
        (
            lambda: ArrayField(np.zeros((2, 2)), mask=ArrayField(np.zeros((3, 3)))),
            "not on the grid",
        ),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(OptionError, match=text):
        make()


# ---- what fields share ---------------------------------------------------------------


class OwnField(ArrayField):
    """A user's field: found again by module and name."""

    def __init__(self, side):
        super().__init__(np.full((side, side), 7.0))
        self.side = side

    def get_config(self):
        return {"side": self.side}


def test_a_users_field_is_found_again():
    assert OwnField.kind.endswith(":OwnField")
    again = field_from_config({"kind": OwnField.kind, "side": 3})
    assert isinstance(again, OwnField)
    assert again.domain.shape == (3, 3)


def test_promoted():
    small = {np.dtype(d) for d in ("bool", "u1", "i1", "u2", "i2")}
    assert {promoted(d) for d in small} == {np.dtype("f4")}
    assert {promoted(np.dtype(d)) for d in ("i4", "u4", "i8", "u8", "f8")} == {np.dtype("f8")}
    assert promoted(np.dtype("c8")) == np.dtype("c8")
    assert issubclass(ArrayField, Field)


def test_one_crs_one_text():
    text = crs_wkt("EPSG:32633")
    assert text == crs_wkt(32633) == crs_wkt(text) == crs_wkt(pyproj.CRS.from_epsg(32633))
    assert crs_wkt(None) is None
    assert crs_wkt(rasterio.crs.CRS()) is None
    assert pyproj.CRS.from_wkt(crs_wkt(rasterio.crs.CRS.from_epsg(32633))).to_epsg() == 32633


def test_spacing():
    assert spacing(np.arange(3)) == (0.0, 1.0)
    assert spacing(np.array([1.0])) is None
    assert spacing(np.array([1.0, np.nan, 3.0])) is None
    assert spacing(np.array([2.0, 2.0])) is None
    assert spacing(np.array(["a", "b"])) is None
    float32 = (np.arange(36000) * 0.01 - 180).astype("f4")
    assert spacing(float32)[1] == pytest.approx(0.01, rel=1e-6)
    assert labels_transform(np.arange(3.0), np.array([0.0, 1.0, 3.0])) is None


def test_affine6():
    assert affine6(affine.Affine.translation(3, 4)) == (1.0, 0.0, 3.0, 0.0, 1.0, 4.0)
    assert affine6(None) is None
    for bad in ("abcdef", 5, (0,) * 6):
        with pytest.raises(OptionError):
            affine6(bad)


def test_grids_are_compared_where_both_know():
    raster = ArrayField(np.zeros((3, 4, 5)), transform=(1, 0, 0, 0, -1, 0), crs=32633).domain
    assert grid_difference(raster, ArrayField(np.zeros((4, 5))).domain) is None
    same = ArrayField(np.zeros((4, 5)), transform=(1, 0, 1e-4, 0, -1, 0), crs="EPSG:32633").domain
    assert grid_difference(raster, same) is None
    labelled = ArrayField(
        np.zeros((4, 5)), coords={"x": np.arange(5) + 0.5, "y": -0.5 - np.arange(4)}
    )
    assert grid_difference(raster, labelled.domain) is None
    moved = ArrayField(np.zeros((4, 5)), coords={"x": np.arange(5) + 1.0})
    assert "x from 1.0 to 5.0 against x from 0.5 to 4.5" in grid_difference(raster, moved.domain)
    dates = np.array(["2020", "2021"], "M8[Y]")
    one = ArrayField(np.zeros((2, 3)), dims=("time", "x"), coords={"time": dates}).domain
    other = ArrayField(
        np.zeros((2, 3)), dims=("time", "x"), coords={"time": dates + np.timedelta64(1, "Y")}
    ).domain
    assert "time from 2021" in grid_difference(one, other)


def test_texts_without_secrets():
    for text in (
        "https://me:pw@host/a.tif",
        "/vsicurl/https://me:pw@host/a.tif?sig=pw",
        "s3://pw:pw@bucket/a?X-Amz-Credential=pw",
        "cannot open PG:host=h password=pw user=u",
        "two: https://me:pw@a/x and https://you:pw@b/y?token=pw.",
    ):
        assert "pw" not in redact(text), text
    assert redact("/data/what?.tif") == "/data/what?.tif"
    assert not holds_secret("/data/me@home/a.tif")
    assert not holds_secret("s3://bucket/a.tif")


def test_local_paths(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    assert local_path("s3://b/a.tif") is None
    assert local_path("/vsis3/b/a.tif") is None
    assert local_path("/vsizip//vsicurl/https://h/a.zip/b.tif") is None
    assert local_path(f"/vsizip/{tmp_path}/a.zip/in/b.tif") == tmp_path / "a.zip"
    assert local_path(f"zip://{tmp_path}/a.zip!b.tif") == tmp_path / "a.zip"
    assert local_path(f'NETCDF:"{tmp_path}/a.zip":u') == tmp_path / "a.zip"
    assert normal_uri(f"file://{tmp_path}/a%20b.tif") == f"{tmp_path}/a b.tif"


def test_hash_does_not_depend_on_slabs():
    values = np.arange(1000).reshape(100, 10)
    whole_hash = sha256_slabs(lambda a, b: values[a:b], 100, 80)
    assert sha256_slabs(lambda a, b: values[a:b], 100, 2**24, 7) == whole_hash


def test_handles_are_least_recently_used():
    closed = []
    handles = Handles(closed.append, size=2)
    assert handles.get("a", 1, lambda: "A1") == "A1"
    handles.get("b", 1, lambda: "B1")
    assert handles.get("a", 1, lambda: "never") == "A1"
    handles.get("c", 1, lambda: "C1")
    assert closed == ["B1"]
    assert handles.get("a", 2, lambda: "A2") == "A2"
    assert closed == ["B1", "A1"]
    handles.drop("nothing")
    assert len(handles) == 2
