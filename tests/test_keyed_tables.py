"""Tables on the store: where they are, what a plan says of them, what a reader gets."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keyed_operators as ops
import numpy as np
import pandas as pd
import pytest
import sample_operators as sample
import xarray as xr
from keyed_jobs import BOTH, FIELD, VALUES, both, merged, patcher_of, plan_of, same
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import IncompleteWarning
from geopatch_dask.testing import Cut, assert_layout_invariant, assert_same_table

pa = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _holes_are_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        yield


class TestWhere:
    def test_beside_the_arrays(self, tmp_path):
        target = tmp_path / "out.zarr"
        plan = plan_of(target, both, BOTH, chunks=(16, 16))
        plan.run("sync")
        names = sorted(p.name for p in tmp_path.iterdir())
        assert names == ["out.zarr", "out.zarr.geopatch", "out.zarr.tables"]
        inside = sorted(p.name for p in (tmp_path / "out.zarr.tables" / "stats.parquet").iterdir())
        assert inside == [
            "_common_metadata",
            *(f"part-{t.id}.parquet" for t in sorted(plan.layout, key=lambda t: t.id)),
        ]
        assert {p.name for p in target.iterdir()} == {
            "zarr.json",
            "height",
            "x",
            "y",
            "spatial_ref",
        }
        assert list(xr.open_zarr(target).data_vars) == ["height"]
        assert same(gp.read_table(target), merged(both, BOTH)["stats"].table())
        assert same(gp.read_table(target, "stats"), gp.read_table(target))

    def test_a_parquet_target_is_the_dataset(self, tmp_path):
        target = tmp_path / "stats.parquet"
        plan_of(target).run("sync")
        assert {p.name for p in tmp_path.iterdir()} == {"stats.parquet", "stats.parquet.geopatch"}
        assert json.loads((target / "_geopatch.json").read_text())["attributes"][
            "geopatch:complete"
        ]
        frame = pd.read_parquet(target)  # other readers pass over what begins with _
        ours = gp.read_table(target).to_pandas()
        pd.testing.assert_frame_equal(
            frame.sort_values("ordinal", ignore_index=True), ours, check_dtype=True
        )
        with pytest.raises(gp.TargetError, match=r"is a table: gp\.read_table"):
            gp.open(target)

    def test_only_tables_beside_a_zarr(self, tmp_path):
        target = tmp_path / "out.zarr"
        two = {"a": gp.ByIndex(), "b": gp.ByIndex(points=[(4.9999e6, 5.001e5)])}
        operator = gp.Operator(sample.identity, version="1")
        operator = replace(operator, function=lambda x: {"a": x.max(), "b": {"v": x.min()}})
        plan_of(target, operator, two).run("threads")
        assert gp.read_table(target, "a").num_rows == 70
        assert gp.read_table(target, "b").num_rows == 1
        with pytest.raises(gp.OptionError, match="holds the tables a, b: name one"):
            gp.read_table(target)
        with pytest.raises(gp.TargetError, match="holds no table 'c', but a, b"):
            gp.read_table(target, "c")
        with pytest.raises(gp.TargetError, match=r"holds no arrays, only tables: gp\.read_table"):
            gp.open(target)

    def test_a_parquet_target_holds_one_table(self, tmp_path):
        target = tmp_path / "out.parquet"
        for operator, aggregation in ((both, BOTH), (sample.identity, gp.OverlapAdd())):
            with pytest.raises(gp.OptionError, match=r"ends in \.parquet, which is for one table"):
                plan_of(target, operator, aggregation, chunks=(16, 16))
        assert not target.exists()

    def test_what_is_not_ours_is_not_touched(self, tmp_path):
        target = tmp_path / "theirs.parquet"
        pd.DataFrame({"a": [1]}).to_parquet(target)
        with pytest.raises(gp.TargetError, match="a file and a folder"):
            plan_of(target).run("sync")
        folder = tmp_path / "more.parquet"
        folder.mkdir()
        shutil.move(target, folder / "part-0.parquet")
        for overwrite in (False, True):
            with pytest.raises(gp.TargetError, match="never deleted"):
                plan_of(folder).run("sync", overwrite=overwrite)
        assert [p.name for p in folder.iterdir()] == ["part-0.parquet"]

    def test_the_owner_emits_though_the_window_is_zero_at_the_anchor(self, tmp_path):
        target = tmp_path / "out.zarr"
        patcher = gp.Patcher(
            gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), gp.Hann("symmetric"), BOTH
        )
        plan = gp.plan(
            *(FIELD, patcher, both, target), outer=(7, 7), chunks=(7, 7), memory_limit="1 TiB"
        )
        corner = plan.supertile(0).box  # anchor 6 is in its last row, cell 7 in the next tile
        assert corner.stop == (7, 7)
        plan.run("sync")
        records = Ledger(Location.of(target), plan.fingerprint).done()
        assert records["y0-7_x0-7"].tables == {"stats": 4}
        assert sum(record.rows for record in records.values()) == 70
        assert same(gp.read_table(target), merged(both, BOTH)["stats"].table())

    def test_no_table_there(self, tmp_path):
        with pytest.raises(gp.TargetError, match="there is no table at"):
            gp.read_table(tmp_path / "out.parquet")
        plan_of(tmp_path / "out.zarr", sample.identity, gp.OverlapAdd(), chunks=(16, 16)).run(
            "sync"
        )
        with pytest.raises(gp.TargetError, match=r"holds no table; gp\.open"):
            gp.read_table(tmp_path / "out.zarr")

    def test_in_an_open_store(self):
        target = MemoryStore()
        plan_of(target, both, BOTH, chunks=(16, 16)).run("threads")
        assert same(gp.read_table(target), merged(both, BOTH)["stats"].table())
        assert any(k.startswith(".tables/stats.parquet/part-") for k in target._store_dict)
        plan_of(target, both, {"height": gp.Mean(), "stats": gp.ByIndex()}, chunks=(16, 16)).run(
            "threads", overwrite=True
        )
        assert same(gp.read_table(target), merged(both, BOTH)["stats"].table())

    def test_over_fsspec(self):
        target = "memory://keyed/out.parquet"
        plan_of(target).run("threads")
        assert same(gp.read_table(target), merged().table())

    def test_reconstruct_gives_the_table(self, tmp_path):
        found = gp.reconstruct(
            *(FIELD, patcher_of(), ops.stats, tmp_path / "out.parquet"), client="sync"
        )
        assert same(found, merged().table())

    def test_records_may_be_left_behind(self, tmp_path):
        target = tmp_path / "out.parquet"
        plan_of(target).run("sync")
        shutil.rmtree(tmp_path / "out.parquet.geopatch")
        assert same(gp.read_table(target), merged().table())


class TestPlan:
    def test_json_round_trip(self, tmp_path):
        schema = {"mean": "float32", "least": "float64", "most": "float64", "n": "int64"}
        for aggregation in (gp.ByIndex(), gp.ByIndex(schema=schema, points=[(5e6 - 5, 5e5 + 5)])):
            plan = plan_of(tmp_path / "out.parquet", ops.stats, aggregation)
            again = gp.Plan.from_json(plan.to_json(), field=FIELD)
            assert again.tables == plan.tables
            assert again.fingerprint == plan.fingerprint
            assert again.to_json() == plan.to_json()
        again.run("sync")
        assert gp.read_table(tmp_path / "out.parquet").num_rows == 1

    def test_the_fingerprint_covers_the_columns(self, tmp_path):
        target = tmp_path / "out.parquet"
        plan = plan_of(target, np.mean)
        plan.run("sync")
        assert plan.parts["tables"] == {"data": [["value", "float32"]]}
        wide = gp.ByIndex(schema={"value": "float64"})
        with pytest.raises(gp.PlanMismatch, match=r"differs in aggregation\.schema, tables\.data"):
            plan_of(target, np.mean, wide).run("sync")
        plan_of(target, np.mean, wide).run("sync", overwrite=True)
        assert gp.read_table(target)["value"].type == pa.float64()

    def test_explain_report_and_status(self, tmp_path):
        target = tmp_path / "out.zarr"
        plan = plan_of(target, both, BOTH, chunks=(16, 16))
        text = str(plan.explain())
        assert "stats: 70 rows, at most one per patch; ordinal, anchor_y, anchor_x, y, x, g" in text
        assert plan.explain().numbers["tables"]["stats"]["rows"] == 70
        report = plan.run("sync")
        assert report.totals["rows"] == 70
        assert "rows        70" in str(report)
        assert report.to_json()["numbers"]["rows"] == 70
        assert gp.status(target).totals()["rows"] == 70
        assert "rows         70" in str(gp.status(target))
        again = plan.run("sync")
        assert (again.skipped, again.totals["rows"]) == (plan.n_supertiles, 70)

    def test_explain_of_a_table_alone(self, tmp_path):
        plan = plan_of(tmp_path / "out.parquet")
        assert "no chunks: tables only" in str(plan.explain())
        assert "1.000  70 patches run for 70 needed" in str(plan.explain())
        assert plan.memory.rows > 70 * 4
        ragged = gp.ByIndex(schema={"value": "int64"})
        plan = plan_of(tmp_path / "out.parquet", list_of_two, ragged)
        assert "any number of rows for each of 70 patches" in str(plan.explain())

    def test_explain_of_points(self, tmp_path):
        points = [(5e6 - 5, 5e5 + 5), (5e6 - 6, 5e5 + 6), (5e6 - 205, 5e5 + 5), (0, 0)]
        plan = plan_of(tmp_path / "out.parquet", ops.stats, gp.ByIndex(points=points))
        text = str(plan.explain())
        assert "4 rows, one per point" in text
        assert "1 of 4 points lie in no patch: nulls" in text
        assert "2 patches run for 2 needed" in text

    def test_the_tile_alone_says_where_to_cut(self, tmp_path):
        plan = plan_of(tmp_path / "out.parquet", outer=(7, 13))
        assert plan.layout.tile == (7, 13)
        assert plan.cost.patches_run == 70, "of an anchor there is one owner"
        assert gp.plan(FIELD, patcher_of(), ops.stats, tmp_path / "o.parquet").n_supertiles >= 1

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            (gp.Output(dtype="float32"), "output 'data' is a table, which has no dtype"),
            (gp.Output(scale=2), "output 'data' is a table, which has no scale"),
            (gp.Output(fill_value=0), "output 'data' is a table, which has no fill_value"),
        ],
    )
    def test_options_of_cells(self, tmp_path, output, message):
        with pytest.raises(gp.OptionError, match=message):
            plan_of(tmp_path / "out.parquet", output=output)

    def test_the_name_of_a_table(self, tmp_path):
        plan = plan_of(tmp_path / "out.zarr", output=gp.Output(name="stats"))
        plan.run("sync")
        assert (tmp_path / "out.zarr.tables" / "stats.parquet").is_dir()
        twice = {"height": gp.Output(name="a"), "stats": gp.Output(name="a")}
        with pytest.raises(gp.OptionError, match="two outputs are named 'a'"):
            plan_of(tmp_path / "b.zarr", both, BOTH, output=twice, chunks=(16, 16))

    def test_a_scale_is_that_of_the_arrays(self, tmp_path):
        target = tmp_path / "out.zarr"
        plan = plan_of(
            *(target, coarser, BOTH),
            output={"height": gp.Output(name="h", scale="1/2")},
            outer=(8, 8),
            chunks=(8, 8),
        )
        plan.run("sync")
        assert gp.open(target).shape == (20, 30)
        assert gp.read_table(target)["ordinal"].to_pylist() == list(range(70))

    def test_what_the_trial_finds(self, tmp_path):
        target = tmp_path / "out.parquet"
        for operator, message in (
            (sample.identity, r"patch 0 at \(0, 0\): column 'value' is an array of shape \(8, 8\)"),
            (nothing, r"patches 0, 35, 69 were tried and have no rows.*ByIndex\(schema="),
            (taken, "has a column 'geometry', which says where the patch is"),
            (wavering, r"output 'data', patch \d+ at .*: column 'value' is int64, got float64"),
        ):
            with pytest.raises(gp.GeopatchError, match=message):
                plan_of(target, operator)
        with pytest.raises(gp.OperatorError, match="column 'value' is string, got float32"):
            plan_of(target, np.mean, gp.ByIndex(schema={"value": str}))
        with pytest.raises(gp.OperatorError, match="got a batch of 4 and returned no entries"):
            plan_of(target, gp.Operator(np.mean, batch=4))
        assert not list(tmp_path.iterdir())
        empty = gp.ByIndex(schema={"value": "int8"})
        plan_of(target, nothing, empty).run("sync")
        table = gp.read_table(target)
        assert (table.num_rows, table["value"].type) == (0, pa.int8())
        assert set(gp.status(target).states.values()) == {"empty"}

    def test_a_row_that_does_not_fit_fails_its_super_tile(self, tmp_path):
        target = tmp_path / "out.parquet"
        with pytest.raises(gp.RunIncomplete, match="column 'v' is int64, got float64"):
            plan_of(target, gp.Operator(once_a_float, takes="patch")).run("sync")
        with pytest.warns(IncompleteWarning, match="rows not computed yet"):
            assert 0 < gp.read_table(target).num_rows < 70


def list_of_two(x: Any) -> list[int]:
    return [1, 2]


def nothing(x: Any) -> None:
    return None


def taken(x: Any) -> dict[str, Any]:
    return {"geometry": b""}


def wavering(x: Any) -> Any:
    return 1 if x[0, 0] == VALUES[0, 0] else 1.5


def coarser(x: Any) -> dict[str, Any]:
    return {"height": x[::2, ::2], "stats": x.mean()}


def once_a_float(patch: gp.Patch) -> dict[str, Any]:
    return {"v": 1.5 if patch.ordinal == 20 else 1}


class TestTesting:
    def test_rows_that_keep_the_contract(self):
        cuts = [Cut((9, 13), (9, 13)), Cut((40, 7), (40, 7))]
        expected = assert_layout_invariant(FIELD, patcher_of(), ops.stats, cuts=cuts)
        assert same(expected, merged().table())
        none = gp.Patcher(
            gp.Rectangular((50, 50), "drop"), gp.RegularStride((50, 50)), None, gp.ByIndex()
        )
        assert assert_layout_invariant(FIELD, none, ops.stats).num_rows == 0

    def test_rows_that_do_not(self):
        with pytest.raises(gp.VerificationError, match=r"differs, first in row 0, column 'value'"):
            assert_layout_invariant(FIELD, patcher_of(), Drifting())

    def test_same_table_means_every_bit(self):
        table = merged().table()
        assert_same_table(table, table.slice(0))
        for other, message in (
            (table.slice(1), "has 69 rows, expected 70"),
            (table.replace_schema_metadata(None), "has columns"),
            (table.drop_columns(["n"]), "has columns"),
            (
                table.set_column(7, "least", pa.array([None] * 70, pa.int64())),
                "first in row 0, column 'least': None, expected 0",
            ),
        ):
            with pytest.raises(gp.VerificationError, match=message):
                assert_same_table(other, table)


class Drifting:
    """Not a function of its patch."""

    calls = 0

    def __call__(self, x: Any) -> int:
        self.calls += 1
        return self.calls
