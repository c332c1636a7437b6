"""``geopatch plan``, ``run`` and ``status``: what they do, say and return."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from cli_jobs import Raw, Shop, geopatch, stored

import geopatch_dask as gp
from geopatch_dask.cli.progress import Counts, Lines
from geopatch_dask.report.outcome import Outcome

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


# ---- plan ----------------------------------------------------------------------------------


def test_plan_explains_and_writes_nothing(shop: Shop, capsys: Captured) -> None:
    job, before = shop.job(), shop.paths() | {"job.toml"}
    assert geopatch("plan", job) == 0
    told = capsys.readouterr()
    assert "25 of 64 x 64" in told.out
    assert "4 of 128 x 128" in told.out
    assert told.err == ""
    assert shop.paths() == before


def test_plan_says_what_run_would_refuse(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job, "--quiet") == 0
    assert geopatch("plan", job) == 0
    assert "would refuse" not in capsys.readouterr().err
    assert geopatch("plan", job, "--window", "boxcar") == 0
    assert "geopatch run would refuse this: " in capsys.readouterr().err


def test_plan_takes_flags_alone(
    shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.folder)
    words = "--field scene.tif --size 64,64 --step 48 --window hann --target out.zarr --outer 128"
    words += f" --operator {shop.module}:double --chunks 64 --cluster sync --memory-limit 4GiB"
    assert geopatch("plan", *words.split()) == 0
    assert "4 of 128 x 128" in capsys.readouterr().out


def test_plan_writes_json_and_a_drawing_where_asked(shop: Shop, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    file, drawing = shop.folder / "plan.json", shop.folder / "plan.png"
    assert geopatch("plan", shop.job(), "--json", str(file), "--draw", str(drawing)) == 0
    assert drawing.read_bytes().startswith(b"\x89PNG")
    plan = gp.Plan.from_json(file.read_text())
    assert plan.n_supertiles == 4
    capsys.readouterr()
    assert geopatch("plan", shop.job(), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == plan.fingerprint


def test_plan_for_a_cluster_that_is_down_needs_only_numbers(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"cluster.kind": "tcp://127.0.0.1:9", "run.workers": 3})
    assert geopatch("plan", job, "--memory-limit", "2 GiB") == 0
    assert "on 3 slots" in capsys.readouterr().out


# ---- run -----------------------------------------------------------------------------------


def test_run_then_run_again(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job) == 0
    told = capsys.readouterr()
    assert "(complete)" in told.out
    assert "4: 4 done" in told.out
    assert shop.calls > 25
    first = stored(shop.target)
    assert first
    assert geopatch("run", job) == 0
    assert "4 done before" in capsys.readouterr().out
    assert shop.calls == 3  # the patches that planning tries
    assert stored(shop.target) == first


def test_another_layout_and_scheduler_give_the_same_bytes(shop: Shop) -> None:
    job = shop.job()
    assert geopatch("run", job, "--quiet") == 0
    other = shop.folder / "other.zarr"
    words = ["--outer", "64,256", "--target", str(other), "--cluster", "threads"]
    assert geopatch("run", job, "--quiet", "--workers", "2", *words) == 0
    assert stored(other) == stored(shop.target)


def test_overwrite_starts_afresh(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job) == 0
    assert shop.calls
    assert geopatch("run", job, "--overwrite") == 0
    assert shop.calls > 25
    assert "done before" not in capsys.readouterr().out


def test_a_failed_supertile_is_exit_1_and_mending_finishes_it(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": "MODULE:flaky"})
    (shop.folder / "broken").touch()
    assert geopatch("run", job) == 1
    told = capsys.readouterr()
    assert "NOT COMPLETE" in told.out
    last = told.err.splitlines()[-1]
    assert last.startswith("geopatch: incomplete: 1 of 4 super-tiles failed")
    assert "the lamp is out" in last
    assert len(shop.records()) == 3

    assert geopatch("status", str(shop.target)) == 1
    told = capsys.readouterr()
    assert "1 failed" in told.out
    assert "the lamp" in told.err

    (shop.folder / "broken").unlink()
    assert shop.calls
    assert geopatch("run", job) == 0
    assert shop.calls < 25
    assert "3 done before" in capsys.readouterr().out
    assert geopatch("status", str(shop.target)) == 0


def test_uncovered_cells_are_exit_1_unless_allowed(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"patch.boundary": "drop", "patch.step": 64, "patch.size": 60})
    assert geopatch("run", job) == 1
    told = capsys.readouterr()
    assert "(complete)" in told.out
    last = told.err.splitlines()[-1]
    assert re.match(r"geopatch: incomplete: [\d,]+ cells were reached by no patch", last)
    assert "--allow-uncovered" in last
    assert "Warning" not in told.err
    assert geopatch("run", job, "--allow-uncovered") == 0
    assert geopatch("status", str(shop.target)) == 1
    assert geopatch("status", str(shop.target), "--allow-uncovered") == 0
    job = shop.job(
        {"patch.boundary": "drop", "patch.step": 64, "patch.size": 60, "run.allow_uncovered": True}
    )
    assert geopatch("status", job) == 0


def test_quiet_says_nothing_but_failures(shop: Shop, capsys: Captured) -> None:
    assert geopatch("run", shop.job({"run.quiet": True})) == 0
    assert capsys.readouterr() == ("", "")
    job = shop.job({"operator.function": "MODULE:flaky", "output.target": "b.zarr"})
    (shop.folder / "broken").touch()
    assert geopatch("run", job, "--quiet") == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1


def test_keys_of_the_output_arrive(shop: Shop) -> None:
    job = shop.job(
        {
            "output.dtype": "int16",
            "output.fill_value": -9999,
            "output.name": "twice",
            "output.attrs": Raw('{units = "DN"}'),
            "output.shards": 128,
            "operator.missing": "mask",
        }
    )
    assert geopatch("run", job, "--quiet") == 0
    array = zarr.open_group(str(shop.target), mode="r")["twice"]
    assert isinstance(array, zarr.Array)
    assert array.dtype == np.int16
    assert array.shards == (128, 128)
    assert array.attrs["units"] == "DN"
    assert array[35, 70] == -9999


def test_an_interrupt_is_exit_130_and_keeps_what_is_done(
    shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopatch_dask.execute import api

    job = shop.job()
    add = api.Report.add

    def pressed(report: api.Report, outcome: Outcome) -> None:
        add(report, outcome)
        if sum(report.summary.states.values()) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api.Report, "add", pressed)
        assert geopatch("run", job) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"geopatch: interrupted: 2 of 4 super-tiles are done and kept; run", last)
    assert shop.calls
    assert geopatch("run", job, "--quiet") == 0
    assert shop.calls < 25


def test_a_store_that_breaks_off_is_exit_1(
    shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopatch_dask.execute.runs import run

    def gone(target: object) -> bool:
        raise gp.TargetError("the disk\nis gone")

    job = shop.job()
    with monkeypatch.context() as patch:
        patch.setattr(run, "is_complete", gone)
        assert geopatch("run", job) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("geopatch: error: the run broke off (TargetError: the disk is gone)")
    assert "4 of 4 super-tiles are done and kept" in last


def test_a_reader_that_goes_away_is_no_traceback(
    shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    job = shop.job()
    with os.fdopen(theirs, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        assert geopatch("plan", job) == 1
    assert capsys.readouterr().err == ""


# ---- status --------------------------------------------------------------------------------


def test_status_as_json_and_as_a_drawing(shop: Shop, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    job = shop.job()
    assert geopatch("run", job, "--quiet") == 0
    drawing = shop.folder / "status.png"
    assert geopatch("status", job, "--json", "--draw", str(drawing)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"] is True
    assert found["supertiles"] == 4
    assert found["states"]["done"] == 4
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_status_of_what_was_left_behind(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job, "--quiet") == 0
    shop.records()[0].unlink()
    assert geopatch("run", job, "--cluster", "sync", "--quiet") == 0
    shop.records()[0].unlink()
    root = shop.target / "zarr.json"
    root.write_text(root.read_text().replace('"geopatch:complete": true', '"x": 1'))
    assert geopatch("status", str(shop.target)) == 1
    assert "run the same command again" in capsys.readouterr().err


# ---- progress ------------------------------------------------------------------------------


def outcome(seconds: float, state: str = "done") -> Outcome:
    numbers = {"patches": 10, "bytes_read": 2048, "bytes_written": 1024}
    return Outcome(0, "t", state, numbers, {"operate": seconds})


def test_the_estimate_leaves_out_how_long_workers_took_to_start() -> None:
    now = [100.0]
    counts = Counts(10, clock=lambda: now[0])
    assert counts.eta is None
    now[0] = 130.0
    assert "0/10 super-tiles, none done after 30.0 s" in counts.line()
    assert "starting" in counts.short()
    counts.add(outcome(5.0), todo=8)  # two were done before
    assert counts.reached == 3
    assert counts.eta == pytest.approx(35.0)
    now[0] = 135.0
    counts.add(outcome(5.0, "failed"), todo=8)
    assert counts.eta == pytest.approx(30.0)
    line = counts.line()
    assert "4/10 super-tiles (40%, 2 of them before)" in line
    assert "20 patches (2.0/s)" in line
    assert "1 failed" in line
    assert "ETA 30.0 s" in line
    for _ in range(6):
        counts.add(outcome(1.0), todo=8)
    assert counts.line().endswith("after 35.0 s")


def test_without_a_terminal_there_are_lines_and_a_last_one(shop: Shop, capsys: Captured) -> None:
    job = shop.job(
        {"operator.function": "MODULE:slow", "operator.options": Raw("{seconds = 0.02}")}
    )
    assert geopatch("run", job, "--log-every", "0.1") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("geopatch: ") and "super-tiles" in line for line in lines)
    assert any("ETA" in line and "patches" in line for line in lines[:-1])
    assert lines[-1].startswith("geopatch: 4/4 super-tiles (100%)")


def test_lines_come_also_while_a_supertile_takes_long(capsys: Captured) -> None:
    import time

    with Lines(3, every=0.05):
        time.sleep(0.2)
    assert "0/3 super-tiles, none done after" in capsys.readouterr().err
