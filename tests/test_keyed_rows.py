"""Rows in RAM: what an operator may return, and which types fit."""

from __future__ import annotations

import datetime
import json
import sys

import keyed_operators as ops
import numpy as np
import pandas as pd
import pytest
from keyed_jobs import CELLS as VALUES
from keyed_jobs import rows_of as merge
from keyed_jobs import values

import geopatch_dask as gp
from geopatch_dask.aggregation.column import Column, Misfit, type_name, type_of
from geopatch_dask.patch.config import from_config


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
