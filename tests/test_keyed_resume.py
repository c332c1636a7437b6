"""Tables that survive: lost records, lost and damaged parts, other layouts, kill -9; real data."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyed_operators as ops
import numpy as np
import pytest
import rasterio
import sample_operators as sample
import xarray as xr
from keyed_jobs import Noting, merged, plan_of, same
from pyproj import CRS

import geopatch_dask as gp
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import IncompleteWarning

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def _holes_are_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        yield


class TestResume:
    def run(self, tmp_path: Path, **options: Any) -> tuple[Any, Path, Any]:
        target = tmp_path / "out.parquet"
        log = tmp_path / "calls"
        plan = plan_of(target, Noting(log), **options)
        plan.run("sync")
        log.unlink()
        return plan, target, log

    def test_a_record_is_lost_its_part_is_not(self, tmp_path):
        plan, target, log = self.run(tmp_path)
        expected = gp.read_table(target)
        ledger = Ledger(Location.of(target), plan.fingerprint)
        tile = plan.supertile(5)
        ledger.delete(tile.id)
        assert gp.read_table(target).num_rows == 70 - 9, "a part without a record is not read"
        report = plan.run("sync")
        assert sample.notes(log) == 9
        assert (report.skipped, report.totals["rows"]) == (11, 70)
        assert same(gp.read_table(target), expected)

    def test_a_part_is_lost_its_record_is_not(self, tmp_path):
        plan, target, log = self.run(tmp_path)
        expected = gp.read_table(target)
        (target / f"part-{plan.supertile(5).id}.parquet").unlink()
        with pytest.raises(gp.RecordError, match="is gone, but its super-tile is recorded: run"):
            gp.read_table(target)
        report = plan.run("sync")
        assert report.problems == ["y16-32_x16-32: its rows of 'data' are gone"]
        assert sample.notes(log) == 9
        assert same(gp.read_table(target), expected)

    @pytest.mark.parametrize("damage", ["torn", "empty", "noise", "short"])
    def test_a_damaged_part_is_never_read(self, tmp_path, damage):
        plan, target, log = self.run(tmp_path)
        expected = gp.read_table(target)
        part = target / f"part-{plan.supertile(5).id}.parquet"
        data = part.read_bytes()
        if damage == "short":
            other = (target / f"part-{plan.supertile(11).id}.parquet").read_bytes()
            part.write_bytes(other)
        else:
            part.write_bytes({"torn": data[:-7], "empty": b"", "noise": os.urandom(500)}[damage])
        with pytest.raises(gp.RecordError, match=r"part-y16-32_x16-32\.parquet .* delete it and"):
            gp.read_table(target)
        part.unlink()
        plan.run("sync")
        assert sample.notes(log) == 9
        assert same(gp.read_table(target), expected)

    def test_a_torn_part_without_a_record_is_written_again(self, tmp_path):
        plan, target, _ = self.run(tmp_path)
        expected = gp.read_table(target)
        tile = plan.supertile(5)
        Ledger(Location.of(target), plan.fingerprint).delete(tile.id)
        (target / f"part-{tile.id}.parquet").write_bytes(b"PAR1")
        (target / f"part-{plan.supertile(5).id}x.parquet").write_bytes(b"a stray")
        assert gp.read_table(target).num_rows == 61
        plan.run("sync")
        assert same(gp.read_table(target), expected)
        assert len(list(target.glob("part-*"))) == 12, "strays are gone when the run is done"

    def test_another_layout_leaves_no_row_twice(self, tmp_path):
        plan, target, log = self.run(tmp_path)
        expected = gp.read_table(target)
        ledger = Ledger(Location.of(target), plan.fingerprint)
        for k in (1, 5, 6):
            ledger.delete(plan.supertile(k).id)
        other = plan_of(target, Noting(log), outer=(48, 16), chunks=(16, 16))
        report = other.run("threads")
        assert same(gp.read_table(target), expected)
        assert report.totals["rows"] == 70
        recorded = {f"part-{t}.parquet" for t in ledger.names()}
        assert {p.name for p in target.glob("part-*")} == recorded

    def test_a_graph_of_another_layout_starts_afresh(self, tmp_path):
        _, target, log = self.run(tmp_path)
        expected = gp.read_table(target)
        other = plan_of(target, Noting(log), outer=(48, 16), chunks=(16, 16))
        assert other.to_dask().compute(scheduler="threads").complete
        assert same(gp.read_table(target), expected)
        assert len(list(target.glob("part-*"))) == 4

    def test_kill_dash_nine(self, tmp_path):
        script = tmp_path / "job.py"
        script.write_text(JOB)
        target = tmp_path / "out.parquet"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        first = subprocess.run(
            [sys.executable, str(script), str(target), "die"], env=environment, check=False
        )
        assert first.returncode == -9
        left = len(list(target.glob("part-*")))
        assert left == 5, "the last one has no record"
        with pytest.warns(IncompleteWarning):
            assert 0 < gp.read_table(target).num_rows < 70
        plan = plan_of(target)
        report = plan.run("sync")
        assert report.skipped == left - 1
        assert same(gp.read_table(target), merged().table())


JOB = """
import os, sys
import geopatch_dask as gp
import keyed_operators as ops
from geopatch_dask.execute.attempt import tile
from geopatch_dask.store.records import Ledger
import numpy as np

values = np.random.default_rng(5).random((40, 60)).astype("f4")
field = gp.ArrayField(values, crs="EPSG:32633", transform=(10, 0, 5e5, 0, -10, 5e6))
patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), gp.Hann(), gp.ByIndex())
plan = gp.plan(field, patcher, ops.stats, sys.argv[1], outer=(16, 16), slots=2)
put, n = Ledger.put, []

def dying(self, record):
    n.append(record)
    if len(n) == 5:
        os.kill(os.getpid(), 9)  # after the data, before the record
    put(self, record)

Ledger.put = dying
plan.run("sync")
"""


class TestRealData:
    def test_statistics_of_landsat_patches(self, real_data, tmp_path):
        path = real_data / "landsat_2020.tif"
        field = gp.RasterField(path, bands=[1])
        patcher = gp.Patcher(
            gp.Rectangular((64, 64)), gp.RegularStride((48, 48)), aggregation=gp.ByIndex()
        )
        target = tmp_path / "stats.parquet"
        plan = gp.plan(
            field, patcher, ops.stats, target, outer=(200, 200), memory_limit="1 TiB", slots=2
        )
        plan.run("threads")
        table = gp.read_table(target)
        with rasterio.open(path) as source:
            band, transform, crs = source.read(1), source.transform, source.crs
        frame = table.to_pandas()
        assert len(frame) == patcher.n_anchors(field)
        some_missing = 0
        for row in frame.itertuples():
            cut = band[row.anchor_y : row.anchor_y + 64, row.anchor_x : row.anchor_x + 64]
            valid = cut[cut != 0]
            some_missing += valid.size < cut.size
            assert row.n == valid.size
            if valid.size:
                assert row.mean == np.float32(valid.mean())
                assert (row.least, row.most) == (valid.min(), valid.max())
            else:
                assert np.isnan([row.mean, row.least, row.most]).all()
            left, right = (transform.c + transform.a * (row.anchor_x + k) for k in (0, 64))
            assert row.x == pytest.approx((left + right) / 2)
            assert row.y == pytest.approx(transform.f + transform.e * (row.anchor_y + 32))
            xs = struct.unpack_from("<10d", row.geometry, 13)[::2]
            assert (min(xs), max(xs)) == pytest.approx((left, right))
        assert some_missing
        geo = json.loads(table.schema.metadata[b"geo"])
        assert CRS.from_json_dict(geo["columns"]["geometry"]["crs"]) == CRS(crs)

    def test_profiles_at_stations_of_era_interim(self, real_data, tmp_path):
        """One row per station: mean profiles over the 2-D patch, month and level riding along."""
        path = real_data / "eraint_uvz.nc"
        stations = [(47.4, 8.5), (-33.9, 151.2), (71.3, -156.8), (0.0, 200.0)]
        patcher = gp.Patcher(
            gp.Rectangular({"latitude": 9, "longitude": 9}),
            gp.RegularStride({"latitude": 4, "longitude": 4}),
            aggregation=gp.ByIndex(points=stations),
        )
        target = tmp_path / "stations.parquet"
        plan = gp.plan(gp.XarrayField(path, variable="z"), patcher, profile, target)
        report = plan.run("sync")
        assert report.summary.numbers["patches"] == 3
        frame = gp.read_table(target).to_pandas()
        assert frame["point"].tolist() == [0, 1, 2, 3]
        assert frame["ordinal"].isna().tolist() == [False, False, False, True]
        with xr.open_dataset(path) as data:
            for k, (lat, lon) in enumerate(stations[:3]):
                assert abs(frame["latitude"][k] - lat) <= 0.75 * 4.5
                assert abs(frame["longitude"][k] - lon) <= 0.75 * 4.5
                near = data["z"].sel(
                    latitude=slice(frame["latitude"][k] + 3.01, frame["latitude"][k] - 3.01),
                    longitude=slice(frame["longitude"][k] - 3.01, frame["longitude"][k] + 3.01),
                )
                assert near.shape[2:] == (9, 9)
                expected = near.values.mean(axis=(2, 3)).ravel()
                assert np.allclose(frame["z"][k], expected, rtol=1e-12)


def profile(x: Any) -> dict[str, Any]:
    return {"z": x.mean(axis=(2, 3)).ravel()}
