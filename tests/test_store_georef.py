"""The georeference of an output, as three independent readers see it, with no options."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from pyproj import CRS

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Coordinate, GridDomain, RasterDomain
from geopatch_dask.store import georef
from geopatch_dask.store.regions import write_region
from geopatch_dask.store.target import finish, open_array
from geopatch_dask.store.template import ArraySpec, create

pytest.importorskip("rioxarray", reason="the acceptance test opens outputs with rioxarray")
pytest.importorskip("odc.geo.xr", reason="the acceptance test opens outputs with odc-geo")

MONTHS = Coordinate(np.array(["2001-01-01", "2001-02-01"], "datetime64[ns]"))
LAEA = "+proj=laea +lat_0=10 +lon_0=20 +x_0=3 +y_0=7 +ellps=GRS80 +units=m"
CASES = {
    "utm": ("EPSG:32633", (10.0, 0.0, 500000.0, 0.0, -10.0, 4600000.0), (30, 40), {}),
    "global": ("EPSG:4326", (1 / 12, 0.0, -180.0, 0.0, -1 / 12, 90.0), (216, 432), {}),
    "polar": ("EPSG:3413", (250.0, 0.0, -4e5, 0.0, -250.0, 3e5), (20, 30), {"time": MONTHS}),
    "laea": (LAEA, (0.5, 0.0, 12345.678, 0.0, -0.5, 9876.543), (17, 13), {}),
    "south-up": ("EPSG:32733", (2.0, 0.0, 4e5, 0.0, 2.0, 8e6), (12, 9), {}),
}


def raster(case):
    crs, transform, (rows, cols), leading = CASES[case]
    dims = (*leading, "y", "x")
    shape = (*(len(c.values) for c in leading.values()), rows, cols)
    wkt = CRS.from_user_input(crs).to_wkt()
    return RasterDomain(dims, shape, leading, wkt, transform=transform)


def written(path, domain, **options):
    """An output on ``domain`` whose cells count up, complete."""
    chunks = tuple(min(n, 8) for n in domain.shape)
    spec = ArraySpec("data", "float32", domain.dims, domain.shape, chunks, **options)
    create(path, [spec], domain, {"title": "test"})
    data = np.arange(math.prod(domain.shape), dtype="float32").reshape(domain.shape)
    write_region(open_array(path, "data"), Box.of_shape(domain.shape), data)
    finish(path)
    return data


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("case", CASES)
class TestReaders:
    def test_xarray_rioxarray_and_odc_geo(self, tmp_path, case, shards):
        domain = raster(case)
        sizes = tuple(2 * min(n, 8) for n in domain.shape) if shards else None
        data = written(tmp_path / "o.zarr", domain, shards=sizes)
        crs = rasterio.crs.CRS.from_user_input(CASES[case][0])
        dataset = xr.open_zarr(tmp_path / "o.zarr")
        assert list(dataset.data_vars) == ["data"]
        for opened in (dataset, dataset["data"]):
            assert opened.rio.crs == crs
            assert opened.rio.transform() == Affine(*domain.transform)
            box = opened.odc.geobox
            assert box.shape == domain.shape[-2:]
            assert box.transform.almost_equals(Affine(*domain.transform), 1e-9)
            assert box.crs.proj.equals(CRS.from_user_input(CASES[case][0]))
        np.testing.assert_array_equal(dataset["data"].values, data)

    def test_conventions(self, tmp_path, case, shards):
        pytest.importorskip("zarr_cm", reason="zarr-cm validates the GeoZarr conventions")
        from zarr_cm import proj, spatial, validate_all

        domain = raster(case)
        sizes = tuple(2 * min(n, 8) for n in domain.shape) if shards else None
        written(tmp_path / "o.zarr", domain, shards=sizes)
        group = json.loads((tmp_path / "o.zarr/zarr.json").read_text())
        array = json.loads((tmp_path / "o.zarr/data/zarr.json").read_text())
        for convention in (spatial, proj):
            convention.validate_group_metadata(group)
            convention.validate_array_metadata(array)
            assert convention.detect(array["attributes"])
        for document in (group, array):
            attrs = document["attributes"]
            validate_all(attrs)
            names = [c["name"] for c in attrs["zarr_conventions"]]
            assert names == ["spatial", "proj"]
            assert attrs["spatial:transform"] == list(domain.transform)
            assert attrs["spatial:shape"] == list(domain.shape[-2:])
            assert ("proj:code" in attrs) == (case != "laea")
        assert array["dimension_names"] == list(domain.dims)
        assert array["attributes"]["coordinates"] == "spatial_ref"


@pytest.mark.parametrize("case", CASES)
def test_gdal_reads_an_unsharded_output(tmp_path, case):
    domain = raster(case)
    data = written(tmp_path / "o.zarr", domain)
    with rasterio.Env() as env:
        if "Zarr" not in env.drivers():
            pytest.skip(f"GDAL {rasterio.__gdal_version__} of this rasterio has no Zarr driver")
    try:
        source = rasterio.open(f'ZARR:"{tmp_path / "o.zarr"}":/data')
    except rasterio.RasterioIOError as error:
        if "Unsupported codec: bytes" in str(error):
            pytest.skip(f"GDAL {rasterio.__gdal_version__} reads no final Zarr version 3")
        raise
    with source:
        assert source.crs == rasterio.crs.CRS.from_user_input(CASES[case][0])
        assert source.transform.almost_equals(Affine(*domain.transform), 1e-6)
        assert source.read(source.count)[3, 4] == data.reshape(-1, *data.shape[-2:])[-1, 3, 4]
        assert np.isnan(source.nodata)


class TestRaster:
    def test_labels_are_centres(self):
        labels = georef.coordinates(raster("utm"))
        assert labels["x"].values[0] == 500005.0
        assert labels["y"].values[0] == 4599995.0
        assert labels["x"].values.dtype == np.float64
        assert labels["x"].attrs["units"] == labels["y"].attrs["units"] == "m"
        assert labels["y"].attrs["standard_name"] == "projection_y_coordinate"

    def test_labels_of_degrees(self):
        labels = georef.coordinates(raster("global"))
        for dim, name, units in (
            ("y", "latitude", "degrees_north"),
            ("x", "longitude", "degrees_east"),
        ):
            assert labels[dim].attrs["standard_name"] == name
            assert labels[dim].attrs["units"] == units
            assert labels[dim].attrs["axis"] == dim.upper()

    def test_bbox_is_outer_edges(self):
        attrs = georef.group_attrs(raster("utm"))
        assert attrs["spatial:bbox"] == [500000.0, 4599700.0, 500400.0, 4600000.0]
        assert attrs["proj:code"] == "EPSG:32633"

    def test_geotransform_is_in_gdal_order(self):
        attrs = georef.spatial_ref_attrs(raster("utm"))
        assert attrs["GeoTransform"] == "500000.0 10.0 0.0 4600000.0 0.0 -10.0"
        assert attrs["crs_wkt"] == attrs["spatial_ref"]
        assert attrs["grid_mapping_name"] == "transverse_mercator"

    def test_rotated(self, tmp_path):
        transform = (8.0, 6.0, 5e5, 6.0, -8.0, 4e6)
        domain = RasterDomain(
            ("y", "x"), (12, 9), {}, CRS.from_epsg(32633).to_wkt(), transform=transform
        )
        assert georef.coordinates(domain) == {}
        bbox = georef.group_attrs(domain)["spatial:bbox"]
        assert bbox == [5e5, 4e6 - 96, 5e5 + 72 + 72, 4e6 + 54]
        written(tmp_path / "o.zarr", domain)
        dataset = xr.open_zarr(tmp_path / "o.zarr")
        assert "x" not in dataset.coords
        for opened in (dataset, dataset["data"]):
            assert opened.rio.crs.to_epsg() == 32633
            assert opened.rio.transform().almost_equals(Affine(*transform))
            assert opened.odc.geobox.transform.almost_equals(Affine(*transform))

    def test_without_crs(self, tmp_path):
        domain = RasterDomain(("y", "x"), (12, 9), transform=(2.0, 0.0, 10.0, 0.0, -2.0, 50.0))
        assert georef.group_attrs(domain) == georef.array_attrs(domain, domain.dims) == {}
        assert georef.spatial_ref_attrs(domain) is None
        written(tmp_path / "o.zarr", domain)
        dataset = xr.open_zarr(tmp_path / "o.zarr")
        assert set(dataset.variables) == {"data", "x", "y"}
        assert dataset.rio.crs is None
        assert dataset.rio.transform() == Affine(*domain.transform)

    def test_nowhere_on_earth(self, tmp_path):
        written(tmp_path / "o.zarr", RasterDomain(("y", "x"), (12, 9)))
        assert set(xr.open_zarr(tmp_path / "o.zarr").variables) == {"data"}

    def test_array_without_the_horizontal_axes_has_none_of_it(self):
        domain = raster("polar")
        assert georef.array_attrs(domain, ("time",)) == {}
        assert "proj:code" in georef.array_attrs(domain, ("time", "y", "x"))

    def test_own_attributes_survive(self):
        own = Coordinate(np.linspace(90, -90, 5), {"long_name": "my lat", "units": "degrees_north"})
        domain = RasterDomain(
            ("lat", "lon"),
            (5, 4),
            {"lat": own, "lon": Coordinate(np.arange(4.0), {"axis": "X"})},
            "EPSG:4326",
        )
        labels = georef.coordinates(domain)
        assert labels["lat"].attrs["long_name"] == "my lat"
        assert labels["lat"].attrs["axis"] == "Y"
        assert labels["lon"].attrs["standard_name"] == "longitude"

    def test_unknown_crs(self):
        domain = RasterDomain(
            ("y", "x"), (2, 2), {}, "no such thing", transform=(1, 0, 0, 0, -1, 0)
        )
        with pytest.raises(OptionError, match="not understood by PROJ"):
            georef.group_attrs(domain)

    def test_a_look_alike_gets_no_code(self):
        near = CRS.from_epsg(3035).to_wkt().replace("4321000", "4321001")
        domain = RasterDomain(("y", "x"), (2, 2), {}, near, transform=(1, 0, 0, 0, -1, 0))
        attrs = georef.group_attrs(domain)
        assert "proj:code" not in attrs
        assert "4321001" in attrs["proj:wkt2"]


class TestGrid:
    def grid(self, latitude, longitude, crs="EPSG:4326"):
        return GridDomain(
            ("month", "latitude", "longitude"),
            (2, len(latitude), len(longitude)),
            {
                "month": MONTHS,
                "latitude": Coordinate(latitude, {"units": "degrees_north"}),
                "longitude": Coordinate(longitude, {"units": "degrees_east"}),
            },
            crs,
        )

    def test_regular_labels_give_a_transform(self, tmp_path):
        domain = self.grid(
            np.linspace(90, -90, 13).astype("float32"), np.linspace(-180, 165, 24).astype("float32")
        )
        assert georef.transform_of(domain) == (15.0, 0.0, -187.5, 0.0, -15.0, 97.5)
        written(tmp_path / "o.zarr", domain)
        data = xr.open_zarr(tmp_path / "o.zarr")["data"]
        assert data.rio.crs.to_epsg() == 4326
        assert data.odc.geobox.crs.epsg == 4326
        assert data.rio.transform() == Affine(15.0, 0.0, -187.5, 0.0, -15.0, 97.5)
        assert data.latitude.dtype == np.float32

    def test_irregular_labels_give_none(self, tmp_path):
        domain = self.grid(np.array([80.0, 50.0, 40.0]), np.arange(4.0))
        assert georef.transform_of(domain) is None
        assert "GeoTransform" not in georef.spatial_ref_attrs(domain)
        attrs = georef.array_attrs(domain, domain.dims)
        assert [c["name"] for c in attrs["zarr_conventions"]] == ["proj"]
        assert not [name for name in attrs if name.startswith("spatial:")]
        written(tmp_path / "o.zarr", domain)
        assert xr.open_zarr(tmp_path / "o.zarr").rio.crs.to_epsg() == 4326

    def test_without_crs_labels_stay_as_they_are(self):
        domain = self.grid(np.array([80.0, 50.0]), np.arange(4.0), crs=None)
        assert georef.coordinates(domain)["latitude"].attrs == {"units": "degrees_north"}
        assert georef.array_attrs(domain, domain.dims) == {}

    def test_axes_are_found_by_attribute_or_name(self):
        y = Coordinate(np.arange(3.0), {"axis": "Y"})
        x = Coordinate(np.arange(3.0), {"standard_name": "projection_x_coordinate"})
        domain = GridDomain(("rows", "cols"), (3, 3), {"rows": y, "cols": x}, "EPSG:32633")
        assert georef.spatial_dims(domain) == ("rows", "cols")
        assert georef.spatial_dims(GridDomain(("level", "lat"), (3, 3))) is None
        assert georef.spatial_ref_attrs(GridDomain(("a", "b"), (3, 3), {}, "EPSG:4326")) is None
        assert georef.transform_of(GridDomain(("lat", "lon"), (3, 3))) is None
