"""The columns that say where a patch is, and query points."""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

import numpy as np
import pandas as pd
import pytest
from keyed_jobs import CELLS as VALUES
from keyed_jobs import rows_of as merge
from pyproj import CRS

import geopatch_dask as gp
from geopatch_dask.aggregation.place import Places


def raster(transform: Any, crs: Any = "EPSG:32633") -> gp.ArrayField:
    return gp.ArrayField(VALUES, crs=crs, transform=transform)


def polygon(wkb: bytes) -> list[tuple[float, float]]:
    order, kind, rings, n = struct.unpack_from("<BIII", wkb)
    assert (order, kind, rings, n, len(wkb)) == (1, 3, 1, 5, 13 + 80)
    numbers = struct.unpack_from("<10d", wkb, 13)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def area(ring: list[tuple[float, float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2


class TestPlaces:
    @pytest.mark.parametrize(
        "transform",
        [
            (10, 0, 5e5, 0, -10, 5e6),  # north up
            (10, 0, 5e5, 0, 20, 5e6),  # south up
            (6, 8, 5e5, 8, -6, 5e6),  # rotated
            (-10, 0, 5e5, 0, -10, 5e6),  # mirrored
        ],
    )
    @pytest.mark.parametrize("boundary", ["shift", "pad", "shrink"])
    def test_the_outline_is_that_of_the_transform(self, transform, boundary):
        rows = merge(lambda p: p.transform and 1, raster(transform), boundary=boundary)
        grid = gp.Patcher(gp.Rectangular((8, 8), boundary), gp.RegularStride((6, 6))).grid(
            raster(transform).domain
        )
        a, b, c, d, e, f = transform
        for anchor, row in rows.items():
            ring = polygon(row["geometry"])
            assert ring[0] == ring[-1]
            box = grid.indices(anchor)
            corners = {
                (a * col + b * line + c, d * col + e * line + f)
                for line in (box.start[0], box.stop[0])
                for col in (box.start[1], box.stop[1])
            }
            assert set(ring) == corners
            cells = box.shape[0] * box.shape[1]
            assert area(ring) == pytest.approx(cells * abs(a * e - b * d)), "counterclockwise"

    def test_the_centre(self):
        rows = merge(lambda p: 1, raster((10, 0, 5e5, 0, -10, 5e6)), geometry="point")
        row = rows[6, 12]
        order, kind, x, y = struct.unpack("<BI2d", row["geometry"])
        assert (order, kind) == (1, 1)
        assert (x, y) == (row["x"], row["y"]) == (5e5 + 160, 5e6 - 100)

    def test_no_labels_on_a_rotated_raster(self):
        rows = merge(lambda p: 1, raster((6, 8, 5e5, 8, -6, 5e6)))
        assert list(rows[0, 0]) == ["ordinal", "anchor_y", "anchor_x", "geometry", "value"]

    def test_auto_needs_crs_transform_and_both_axes(self):
        north_up = (10, 0, 5e5, 0, -10, 5e6)
        assert "geometry" in merge(lambda p: 1, raster(north_up))[0, 0]
        assert "geometry" not in merge(lambda p: 1, raster(north_up, None))[0, 0]
        assert "geometry" not in merge(lambda p: 1)[0, 0]
        assert "geometry" not in merge(lambda p: 1, raster(north_up), geometry=None)[0, 0]
        bands = merge(lambda p: 1, raster(north_up), gp.RegularStride({"y": 6}), size={"y": 8})
        assert "geometry" not in next(iter(bands.values()))
        with pytest.raises(gp.OptionError, match="geometry='box' needs a raster with a transform"):
            merge(lambda p: 1, geometry="box")

    def test_a_box_spans_axes_that_ride_along(self):
        found = merge(
            lambda p: 1,
            *(raster((10, 0, 5e5, 0, -10, 5e6), None), gp.RegularStride({"y": 6})),
            size={"y": 8},
            geometry="box",
        )
        xs = {x for x, _ in polygon(found[0,]["geometry"])}
        assert xs == {5e5, 5e5 + 260}

    def test_metadata_is_geoparquet(self):
        pytest.importorskip("pyarrow")
        for crs in ("EPSG:4326", "EPSG:32633", None):
            table = merge(lambda p: 1, raster((1, 0, 5, 0, -1, 50), crs), geometry="box").table()
            geo = json.loads(table.schema.metadata[b"geo"])
            column = geo["columns"][geo["primary_column"]]
            assert (geo["version"], column["encoding"]) == ("1.1.0", "WKB")
            assert column["geometry_types"] == ["Polygon"]
            assert column["orientation"] == "counterclockwise"
            if crs is None:
                assert column["crs"] is None
            else:
                assert CRS.from_json_dict(column["crs"]) == CRS(crs)
        assert b"geo" not in merge(lambda p: 1).table().schema.metadata

    def test_centres_of_labelled_axes(self):
        coords = {
            "time": pd.date_range("2020-01-01", periods=6, freq="D").to_numpy(),
            "name": np.array(list("abcdefgh")),
            "lat": np.array([80.0, 60, 40, 20, 0, -20, -40]),
        }
        field = gp.ArrayField(
            np.zeros((6, 8, 7), "f4"), dims=("time", "name", "lat"), coords=coords
        )
        rows = merge(
            lambda p: 1,
            *(field, gp.RegularStride({"time": 2, "name": 4, "lat": 4})),
            size={"time": 4, "name": 4, "lat": 3},
        )
        row = rows[2, 4, 4]
        assert row["time"] == np.datetime64("2020-01-04T12")
        assert (row["name"], row["lat"]) == ("f", -20.0)
        assert row["time"].dtype.kind == "M"

    def test_labels_beyond_the_edge(self):
        field = gp.ArrayField(
            np.zeros((6, 3), "f4"),
            dims=("y", "name"),
            coords={"y": 10.0 * np.arange(6), "name": np.array(["a", "b", "c"])},
        )
        sampler = gp.Explicit([(-7, -3), (4, 1)])
        rows = merge(lambda p: 1, field, sampler, boundary="pad", size=(8, 4))
        assert [row["y"] for row in rows.values()] == [-35.0, 75.0]
        assert [row["name"] for row in rows.values()] == [None, "c"]
        grid = gp.Patcher(gp.Rectangular((8, 4), "pad"), sampler).grid(field.domain)
        assert [c.type for c in Places(grid, None).columns[3:]] == ["float64", "string"]


class TestPoints:
    def test_one_row_per_point_from_the_nearest_patch(self):
        points = [(13.0, 2.0), (3.2, 3.9), (3.2, 3.9), (19.99, 25.99), (20.0, 3.0)]
        rows = merge(lambda p: p.ordinal, points=points)
        assert list(rows) == [0, 1, 2, 3, 4]
        assert [row["value"] for row in rows.values()] == [4, 0, 0, 11, None]
        assert rows[0]["point_y"] == 13.0
        assert (rows[0]["anchor_y"], rows[0]["ordinal"]) == (6, 4)
        assert rows[4]["ordinal"] is None
        assert rows[4]["point_x"] == 3.0

    def test_of_equally_near_patches_the_first_speaks(self):
        rows = merge(lambda p: p.ordinal, points=[(7.0, 4.0)])
        assert rows[0]["value"] == 0

    def test_points_of_a_raster_are_in_its_crs(self):
        for transform in ((10, 0, 5e5, 0, -10, 5e6), (6, 8, 5e5, 8, -6, 5e6)):
            a, b, c, d, e, f = transform
            row, col = 9.3, 14.6
            point = (d * col + e * row + f, a * col + b * row + c)
            found = merge(lambda p: p.anchor[0], raster(transform), points=[point])
            assert found[0]["anchor_y"] == 6
            assert found[0]["anchor_x"] == 12

    def test_points_on_descending_uneven_labels(self):
        lat = np.array([50.0, 40, 35, 30, 20, 10, 0, -20, -40, -60])
        field = gp.ArrayField(np.zeros((10,), "f4"), dims=("lat",), coords={"lat": lat})
        rows = merge(
            lambda p: p.anchor[0],
            *(field, gp.RegularStride((2,))),
            size=(2,),
            points=[(51.0,), (56.0,), (38.0,), (31.0,), (-55.0,), (-69.0,), (-71.0,)],
        )
        assert [row["value"] for row in rows.values()] == [0, None, 0, 2, 8, 8, None]

    def test_several_rows_per_patch_are_repeated_for_each_point(self):
        rows = merge(
            lambda p: [{"i": i} for i in range(p.ordinal % 3)],
            points=[(1, 1), (1, 16), (2, 17)],
        )
        assert {point: [row["i"] for row in held] for point, held in rows.items()} == {
            1: [0, 1],
            2: [0, 1],
        }

    def test_points_that_make_no_sense_here(self):
        with pytest.raises(gp.OptionError, match="points have 3 numbers each, patches the axes y"):
            merge(lambda p: 1, points=[(1, 2, 3)])
        named = gp.ArrayField(
            np.zeros((20, 20), "f4"),
            dims=("name", "x"),
            coords={"name": np.array(list("abcde" * 4))},
        )
        with pytest.raises(gp.OptionError, match="ordered numbers as labels of axis 'name'"):
            merge(lambda p: 1, named, points=[(1, 2)])
        with pytest.raises(gp.OptionError, match="both y and x as patch axes"):
            merge(
                lambda p: 1,
                *(raster((6, 8, 5e5, 8, -6, 5e6)), gp.RegularStride({"y": 6})),
                size={"y": 8},
                points=[(1,)],
            )
