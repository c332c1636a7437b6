"""Rows in RAM: what an operator may return, which types fit, where patches are."""

from __future__ import annotations

import datetime
import itertools
import json
import struct
import sys
from typing import Any

import keyed_operators as ops
import numpy as np
import pandas as pd
import pytest
from pyproj import CRS

import geopatch_dask as gp
from geopatch_dask.aggregation.column import Column, Misfit, type_name, type_of
from geopatch_dask.aggregation.place import Places
from geopatch_dask.patch.config import from_config

VALUES = np.arange(20 * 26, dtype="f4").reshape(20, 26)


def merge(function: Any, field: Any = None, sampler: Any = None, **options: Any) -> Any:
    """Rows of patches of 8 x 8 every 6 cells."""
    source = gp.ArrayField(VALUES) if field is None else field
    patcher = gp.Patcher(
        gp.Rectangular(options.pop("size", (8, 8)), options.pop("boundary", "shift")),
        sampler or gp.RegularStride((6, 6)),
        aggregation=gp.ByIndex(**options),
    )
    return patcher.merge((p.with_data(function(p)) for p in patcher.split(source)), source)


def values(rows: Any, name: str = "value") -> list[Any]:
    return [row[name] for row in rows.values()]


class TestResults:
    def test_a_number_makes_one_column(self):
        rows = merge(lambda p: p.data.mean())
        assert list(rows)[:3] == [(0, 0), (0, 6), (0, 12)]
        assert rows[0, 6] == {"ordinal": 1, "anchor_y": 0, "anchor_x": 6, "value": 100.5}
        assert rows[0, 6]["value"].dtype == np.float32

    def test_an_array_is_a_list_column(self):
        rows = merge(lambda p: p.data[0, :3])
        assert rows[0, 0]["value"].tolist() == [0, 1, 2]

    def test_a_dict_names_the_columns(self):
        rows = merge(lambda p: {"n": p.data.size, "name": "a", "raw": b"x", "on": True, "h": [1]})
        row = rows[0, 0]
        assert list(row) == ["ordinal", "anchor_y", "anchor_x", "n", "name", "raw", "on", "h"]
        assert (row["n"], row["name"], row["raw"], row["on"]) == (64, "a", b"x", True)

    def test_a_list_is_any_number_of_rows(self):
        rows = merge(lambda p: [{"i": i} for i in range(p.ordinal % 3)])
        assert [len(held) for held in rows.values()] == [1, 2] * 4
        assert [row["i"] for row in rows[0, 12]] == [0, 1]
        assert (0, 0) not in rows
        assert merge(lambda p: [p.ordinal, 7])[0, 6][1]["value"] == 7

    def test_structured_arrays_and_frames_are_rows(self):
        for function in (ops.structured, ops.frame):
            rows = merge(lambda p, f=function: f(p.data))
            assert len(rows[0, 0]) == len(function(VALUES))
        one = np.array((1, 2.5), [("i", "i2"), ("v", "f4")])
        assert merge(lambda p: one)[0, 0]["v"] == 2.5
        assert merge(lambda p: one[()])[0, 0]["i"].dtype == np.int16

    def test_none_is_no_row(self):
        rows = merge(lambda p: {"n": p.ordinal} if p.ordinal % 2 else None)
        assert values(rows, "n") == [1, 3, 5, 7, 9, 11]

    def test_rows_keep_their_numbers_when_the_operator_reuses_its_arrays(self):
        buffer = np.zeros(2)

        def careless(patch):
            buffer[:] = patch.ordinal
            return {"v": buffer}

        assert [v.tolist() for v in values(merge(careless), "v")] == [[k, k] for k in range(12)]

    def test_patches_that_share_an_anchor_are_both_kept(self):
        twice = gp.Explicit([(2, 2), (0, 1), (2, 2)])
        rows = merge(lambda p: p.ordinal, sampler=twice)
        assert {a: [row["value"] for row in held] for a, held in rows.items()} == {
            (2, 2): [0, 2],
            (0, 1): [1],
        }

    def test_some_patches_in_any_order(self):
        field = gp.ArrayField(VALUES)
        patcher = gp.Patcher(
            gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), aggregation=gp.ByIndex()
        )
        some = [patcher.patch_at(field, k) for k in (5, 0, 3)]
        rows = patcher.merge((p.with_data(p.ordinal) for p in [*some, some[0]]), field)
        assert values(rows) == [0, 3, 5]
        assert patcher.merge([], field) == {}

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            (VALUES, r"patch 0 at \(0, 0\): column 'value' is an array of shape \(20, 26\)"),
            ((1, 2), "is a tuple: return a dict"),
            ({1: 2}, "has a column 1: columns are named by text"),
            ({"v": 1j}, "column 'v' is complex128"),
            ({"v": object()}, "column 'v' is object"),
            ({"v": {"w": 1}}, "column 'v' is dict"),
            ({"v": [[1], [2, 3]]}, "column 'v' is a list of uneven entries"),
            ({"v": None}, r"column 'v' is None in every row that was tried.*ByIndex\(schema="),
            ({"v": np.timedelta64(1, "s")}, "column 'v' is timedelta64"),
            (np.zeros((2, 2), [("a", "f4")]), r"a structured array of shape \(2, 2\)"),
            ({"v": np.ma.masked_array([1, 2], [0, 1])}, "column 'v' is a masked array of int64"),
        ],
    )
    def test_what_is_no_row(self, result, message):
        with pytest.raises(gp.OperatorError, match=message):
            merge(lambda p: result)

    def test_names_that_are_taken(self):
        with pytest.raises(gp.OptionError, match="has a column 'anchor_x', which says where"):
            merge(lambda p: {"anchor_x": 1.0})


class TestTypes:
    @pytest.mark.parametrize(
        ("first", "later", "message"),
        [
            (1, 2.5, "column 'v' is int64, got float64;"),
            (np.float32(1), 0.1, "column 'v' is float32, got float64;"),
            (np.int8(1), 300, "column 'v' is int8, got int64 300;"),
            (np.uint8(1), -1, "column 'v' is uint8, got int64 -1;"),
            (True, 1, "column 'v' is bool, got int64"),
            (1, True, "column 'v' is int64, got bool;"),
            ("a", 1, "column 'v' is string, got int64"),
            (b"a", "a", "column 'v' is binary, got string;"),
            (1, "a", "column 'v' is int64, got string;"),
            ([1, 2], 1, "column 'v' is list<int64>, got int64"),
            (1, [1, 2], "column 'v' is int64, got list<int64>;"),
            (["a"], [1], "column 'v' is list<string>, got list<int64>;"),
            (np.datetime64("2020-01-01"), 3, r"column 'v' is timestamp\[ms\], got int64"),
            (
                np.datetime64(1, "s"),
                np.datetime64(1, "ns"),
                r"column 'v' is timestamp\[ms\], got t",
            ),
            (1, 1j, "column 'v' is int64, got complex128;"),
            (1, [[1]], r"column 'v' is int64, got an array of shape \(1, 1\);"),
        ],
    )
    def test_later_rows_that_do_not_fit(self, first, later, message):
        with pytest.raises(gp.OperatorError, match=rf"patch 4 at \(6, 0\): {message}"):
            merge(lambda p: {"v": later if p.ordinal == 4 else first})

    @pytest.mark.parametrize(
        ("first", "later", "kept"),
        [
            (1, None, None),
            (1.5, 2, 2.0),
            (np.int64(1), np.uint8(7), 7),
            (np.float32(1), float("nan"), np.nan),
            (np.float32(1), -np.inf, -np.inf),
            (np.float64(1), np.float32(0.1), np.float64(np.float32(0.1))),
            (1.0, np.ma.masked, None),
            (np.datetime64(1, "ns"), np.datetime64(1, "s"), np.datetime64(1, "s")),
            (datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 2), np.datetime64("2020-01-02")),
            (pd.Timestamp(5), pd.Timestamp(6), np.datetime64(6, "ns")),
            ([1, 2], [], []),
            (["a"], [], []),
            ([0.5], np.array([], "i2"), []),
            ("a", np.str_("b"), "b"),
        ],
    )
    def test_later_rows_that_fit(self, first, later, kept):
        rows = merge(lambda p: {"v": later if p.ordinal == 4 else first})
        assert np.array_equal(rows[6, 0]["v"], kept, equal_nan=isinstance(kept, float))
        assert rows[6, 6]["v"] is not None

    def test_the_first_row_decides_unless_it_is_null(self):
        rows = merge(lambda p: {"v": None if p.ordinal < 2 else np.float32(p.ordinal), "w": 1})
        assert values(rows, "v")[:3] == [None, None, 2]
        assert values(rows, "v")[2].dtype == np.float32

    def test_columns_have_to_be_the_same(self):
        for other in ({"a": 1}, {"a": 1, "b": 2, "c": 3}):
            with pytest.raises(gp.OperatorError, match=r"patch 4 .* every row has a, b"):
                merge(lambda p, o=other: o if p.ordinal == 4 else {"a": 1, "b": 2})

    def test_a_schema_rounds_and_orders(self):
        schema = {"b": "float32", "a": "int16", "class": "list<float32>"}
        rows = merge(lambda p: {"a": 3, "b": 0.1, "class": [0.1]}, schema=schema)
        row = rows[0, 0]
        assert list(row)[3:] == ["b", "a", "class"]
        assert [row[n].dtype for n in ("b", "a", "class")] == [np.float32, np.int16, np.float32]
        assert row["b"] == np.float32(0.1)

    def test_a_schema_is_kept(self):
        with pytest.raises(gp.OperatorError, match="column 'value' is int16, got int64 99999"):
            merge(lambda p: 99999, schema={"value": "int16"})
        with pytest.raises(gp.OperatorError, match="no column 'value'; every row has value"):
            merge(lambda p: {"v": 1}, schema={"value": "int16"})

    def test_names_of_types(self):
        pa = pytest.importorskip("pyarrow")
        same = [
            ("float32", np.float32, "f4", np.dtype("float32"), pa.float32()),
            ("float64", float, "double", "float", pa.float64()),
            ("int64", int, "i8", pa.int64()),
            ("string", str, "U", "utf8", pa.string(), pa.large_string()),
            ("binary", bytes, "S", pa.binary()),
            ("bool", bool, pa.bool_()),
            ("timestamp[ms]", "datetime64[s]", "M8[ms]", pa.timestamp("ms"), pa.timestamp("s")),
            ("list<float32>", "list<f4>", "list<item: float32>", pa.list_(pa.float32())),
            ("list<timestamp[ns]>", "list<M8[ns]>", pa.list_(pa.timestamp("ns"))),
        ]
        for name, *others in same:
            assert {type_name(name), *map(type_name, others)} == {name}
        for wrong in ("complex64", "list<list<int8>>", "decimal", object, None, "M8", "m8[s]"):
            with pytest.raises(gp.OptionError, match="is none of bool, int8"):
                type_name(wrong)

    @pytest.mark.parametrize("schema", [3, "ab", {1: "f4"}, [("a", "f4"), ("a", "f4")], [("a",)]])
    def test_schemas_that_make_no_sense(self, schema):
        with pytest.raises(gp.OptionError):
            gp.ByIndex(schema=schema)

    def test_every_numpy_type_finds_its_column(self):
        for name in ("bool", "int8", "uint64", "float16", "float32", "datetime64[us]"):
            value = np.ones(3, name)
            column = Column("v", str(type_of(value)))
            assert np.array_equal(column.fit(value, False), value)
            assert column.dtype == value.dtype
        with pytest.raises(Misfit):
            type_of(np.longdouble(1))


class TestConfiguration:
    def test_it_round_trips_as_json(self):
        for keyed in (
            gp.ByIndex(),
            gp.ByIndex(schema={"class": "f4", "b": "list<i2>"}, geometry=None),
            gp.ByIndex(points=[(1, 2.5), (3, 4)], geometry="point"),
        ):
            for aggregation in (keyed, {"height": gp.OverlapAdd(), "stats": keyed}):
                patcher = gp.Patcher(
                    gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), aggregation=aggregation
                )
                config = json.loads(json.dumps(patcher.get_config()))
                assert gp.Patcher.from_config(config) == patcher
            assert from_config(json.loads(json.dumps(keyed.get_config()))) == keyed
            assert hash(keyed) == hash(from_config(keyed.get_config()))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"geometry": "outline"}, "geometry 'outline' is none of auto, box, point, None"),
            ({"points": []}, "points must be a list of positions"),
            ({"points": [(1, np.nan)]}, "points must be a list of positions"),
            ({"points": [(1, 2), (1,)]}, "points must be a list of positions"),
            ({"points": "here"}, "points must be a list of positions"),
        ],
    )
    def test_options_that_make_no_sense(self, options, message):
        with pytest.raises(gp.OptionError, match=message):
            gp.ByIndex(**options)


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


def test_ram_needs_no_pyarrow_but_tables_say_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = merge(lambda p: p.ordinal)
    assert values(rows) == list(range(12))
    with pytest.raises(gp.GeopatchError, match=r"pip install 'geopatch_dask\[table\]'"):
        rows.table()
    patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), aggregation=gp.ByIndex())
    with pytest.raises(gp.GeopatchError, match=r"pip install 'geopatch_dask\[table\]'"):
        gp.plan(VALUES, patcher, np.mean, tmp_path / "out.parquet")
    with pytest.raises(gp.GeopatchError, match=r"pip install 'geopatch_dask\[table\]'"):
        gp.read_table(tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())
