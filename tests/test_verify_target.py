"""gp.verify of a path, from what lies beside it; tables; the command."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import cli_jobs
import keyed_jobs
import keyed_operators
import numpy as np
import pytest
import rasterio
import sample_operators as ops
from cli_jobs import Shop, geopatch
from rasterio.transform import from_origin

import geopatch_dask as gp
from geopatch_dask.cli.console import BAD_INPUT, INCOMPLETE, OK

PATCHER = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())
CUT: dict[str, Any] = {"outer": (32, 32), "chunks": (16, 16)}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", 0)


def write_scene(path: Path, seed: int) -> Path:
    values = np.random.default_rng(seed).random((1, 64, 64), "f4")
    profile: dict[str, Any] = {"driver": "GTiff", "width": 64, "height": 64, "count": 1}
    place = {"crs": "EPSG:32632", "transform": from_origin(0, 0, 10, 10)}
    with rasterio.open(path, "w", dtype="float32", **profile, **place) as file:
        file.write(values)
    return path


def made(
    field: Any, operator: Any, target: Path, patcher: gp.Patcher = PATCHER, **more: Any
) -> Any:
    plan = gp.plan(field, patcher, operator, target, **CUT, **more)
    plan.run("sync")
    return plan


# ---- the plan beside a target ----------------------------------------------------------------


def test_a_target_is_enough(scene: Path, tmp_path: Path) -> None:
    operator = gp.Operator(ops.make_scaler, factory=True, options={"factor": 3.0}, batch=4)
    for name, given in (("a", ops.mixing), ("b", operator), ("c", "sample_operators:mixing")):
        plan = made(scene, given, tmp_path / f"{name}.zarr")
        found = gp.verify(tmp_path / f"{name}.zarr", 4)
        assert (found.ok, found.fingerprint) == (True, plan.fingerprint)


def test_a_target_with_a_first_pass_is_enough(scene: Path, tmp_path: Path) -> None:
    made(scene, informed, tmp_path / "a.zarr", context=gp.MeanStd())
    assert gp.verify(tmp_path / "a.zarr", 4, context="recomputed").ok
    made(scene, informed, tmp_path / "b.zarr", context=gp.MeanStd(), over=ops.mixing)
    assert gp.verify(tmp_path / "b.zarr", 4, context="recomputed").ok
    made(scene, lambda x, context=None: x, tmp_path / "c.zarr", context=gp.MeanStd())
    with pytest.raises(gp.OptionError, match="pass operator="):
        gp.verify(tmp_path / "c.zarr")


def informed(x: Any, context: Any = None) -> Any:
    return ops.Informed("mean")(x, context)


def test_a_target_that_moved_is_still_verified(scene: Path, tmp_path: Path) -> None:
    made(scene, ops.mixing, tmp_path / "a.zarr")
    for suffix in ("", ".geopatch"):
        (tmp_path / f"a.zarr{suffix}").rename(tmp_path / f"b.zarr{suffix}")
    found = gp.verify(tmp_path / "b.zarr", 4)
    assert (found.ok, found.target) == (True, str(tmp_path / "b.zarr"))


def test_what_json_cannot_hold_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    values = np.random.default_rng(1).random((64, 64))
    factor = 2.0
    field, operator = gp.ArrayField(values), lambda x: x * factor
    made(field, operator, target)
    with pytest.raises(gp.OptionError, match=r"has no field .*pass field="):
        gp.verify(target)
    with pytest.raises(gp.OptionError, match=r"has no operator .*pass operator="):
        gp.verify(target, field=values)
    assert gp.verify(target, 4, field=values, operator=operator).ok
    with pytest.raises(gp.PlanMismatch, match=r"another operator: .*operator\.code.*operator="):
        gp.verify(target, field=values, operator=lambda x: x * 3)
    with pytest.raises(gp.PlanMismatch, match=r"another field: .*field\.sha256.*pass field="):
        gp.verify(target, field=values + 1, operator=operator)


def test_a_field_that_was_replaced_is_not_blamed_on_the_store(scene: Path, tmp_path: Path) -> None:
    plan = made(scene, ops.mixing, tmp_path / "out.zarr")
    write_scene(scene, 1)
    os.utime(scene, (1, 1))
    with pytest.raises(gp.PlanMismatch, match="made with another field"):
        gp.verify(tmp_path / "out.zarr")
    assert plan.fingerprint  # the plan remembers the field as it was
    other = gp.plan(scene, PATCHER, ops.mixing, tmp_path / "out.zarr", **CUT)
    with pytest.raises(gp.PlanMismatch, match="holds the result of plan"):
        gp.verify(other)


def test_places_without_a_plan(tmp_path: Path, scene: Path) -> None:
    with pytest.raises(gp.TargetError, match="there is no Zarr store"):
        gp.verify(tmp_path / "nothing.zarr")
    target = tmp_path / "out.zarr"
    plan = made(scene, ops.mixing, target)
    path = next(tmp_path.glob("out.zarr.geopatch/*/plan.json"))
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(gp.TargetError, match="no plan is recorded beside"):
        gp.verify(target)
    assert gp.verify(plan, 2).ok
    document = json.loads(whole)
    del document["layout"]
    path.write_text(json.dumps(document))
    with pytest.raises(gp.RecordError, match="not whole"):
        gp.verify(target)


def test_metadata_that_was_changed_is_told(scene: Path, tmp_path: Path) -> None:
    plan = made(scene, ops.mixing, tmp_path / "out.zarr")
    path = tmp_path / "out.zarr" / "data" / "zarr.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"data_type": "int32", "fill_value": 0}))
    with pytest.raises(gp.TargetError, match=r"int32.*the plan wrote float32"):
        gp.verify(plan)


# ---- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [None, [(12.0, 13.0), (70.5, 3.0), (-500.0, 2.0)]])
def test_rows_are_compared(points: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra")
    target = tmp_path / "out.parquet"
    if points is not None:
        points = [(5e6 - 10 * y, 5e5 + 10 * x) for y, x in points]
    plan = keyed_jobs.plan_of(target, aggregation=gp.ByIndex(points=points))
    plan.run("sync")
    found = gp.verify(plan, 12)
    assert found.ok, str(found)
    assert found.rows > 0
    part = max(target.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    assert [m.key for m in gp.verify(plan, 0, on_mismatch="return").mismatches] == [part.name]
    part.unlink()
    [gone] = gp.verify(plan, 0, on_mismatch="return").mismatches
    assert (gone.cause, gone.key, gone.detail) == ("stored", part.name, "is gone")


def test_rows_that_were_changed_are_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="tables need the extra")
    import pyarrow.parquet as pq

    target = tmp_path / "out.zarr"
    plan = keyed_jobs.plan_of(target, keyed_jobs.both, keyed_jobs.BOTH, chunks=(16, 16))
    plan.run("sync")
    assert gp.verify(plan, 12).ok
    part = tmp_path / "out.zarr.tables" / "stats.parquet" / "part-y16-32_x16-32.parquet"
    table = pq.read_table(part)
    at = table.schema.get_field_index("mean")
    values = table.column(at).to_pylist()
    values[3] += 1
    column = pa.array(values, table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), column), part)
    [found] = gp.verify(plan, 0, on_mismatch="return").mismatches
    assert (found.cause, found.record, found.what) == ("stored", "y16-32_x16-32", "stats")
    assert found.cell == (3,)
    assert found.stored == f"mean = {column[3]}"
    repaired = gp.verify(plan, 0, on_mismatch="return", repair=True)
    assert not part.exists()
    assert repaired.repaired == ("y16-32_x16-32",)
    plan.run("sync")
    assert gp.verify(plan, 12).ok


def test_a_table_that_is_not_repeatable(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra")
    calls = iter(range(10**9))

    def stats(x: Any) -> dict[str, Any]:
        return keyed_operators.stats(x) | {"n": next(calls)}

    plan = keyed_jobs.plan_of(tmp_path / "o.parquet", gp.Operator(stats, version="1"))
    plan.run("sync")
    found = gp.verify(plan, 8, on_mismatch="return")
    assert {m.cause for m in found.mismatches} == {"operator"}


# ---- the command -----------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


def said(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    found = capsys.readouterr()
    return found.out, found.err


def test_the_command_verifies_a_job(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    job = shop.job()
    assert geopatch("run", job) == OK
    said(capsys)
    assert geopatch("verify", job, "--windows", "5", "--seed", "3") == OK
    out, err = said(capsys)
    assert "5 computed again" in out
    assert "seed 3" in out
    assert err == ""


def test_the_command_finds_damage_and_repairs_it(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    job = shop.job()
    assert geopatch("run", job) == OK
    before = cli_jobs.stored(shop.target)
    (shop.target / "data" / "c" / "1" / "2").unlink()
    said(capsys)
    assert geopatch("verify", job, "--windows", "0", "--json") == INCOMPLETE
    out, err = said(capsys)
    assert json.loads(out)["mismatches"][0]["key"] == "data/c/1/2"
    assert "mismatch" in err
    assert geopatch("verify", job, "--repair") == INCOMPLETE
    assert geopatch("verify", job) == INCOMPLETE  # nothing is wrong, but something is missing
    _, err = said(capsys)
    assert "1 pending: what is done is right; run the job again for those that are pending" in err
    assert "retry" not in err  # which computes what failed
    assert geopatch("run", job) == OK
    assert geopatch("verify", job, "--records", "all") == OK
    assert cli_jobs.stored(shop.target) == before


def test_the_command_refuses_bad_input(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert geopatch("verify", str(shop.target)) == BAD_INPUT
    assert "there is no Zarr store" in said(capsys)[1]
    assert geopatch("run", shop.job()) == OK
    assert geopatch("verify", str(shop.target), "--records", "many") == BAD_INPUT
    said(capsys)
    sys.modules.pop(shop.module)
    assert geopatch("verify", str(shop.target)) == BAD_INPUT  # its module is not on the path
    assert "cannot import" in said(capsys)[1]
    monkeypatch.chdir(shop.folder)
    assert geopatch("verify", "out.zarr", "--windows", "2") == OK
