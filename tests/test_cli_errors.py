"""Bad input: exit 2, one line on stderr that says what to do, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from cli_jobs import Raw, Shop, geopatch, stored

from geopatch_dask.clusters import address

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


def refused(capsys: Captured, *words: str) -> str:
    """The one line that such a command says."""
    capsys.readouterr()
    assert geopatch(*words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert len(lines) == 1, told.err
    assert lines[0].startswith("geopatch: error: ")
    return lines[0]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"field.path": "nowhere.tif"}, "no such file"),
    ({"field.bands": 9}, "9"),
    ({"field.bands": 0}, "counted from 1"),
    ({"field.mask": "nowhere.tif"}, "no such file"),
    ({"patch.size": 999}, "a patch needs 999"),
    ({"patch.size": 0}, "size must be whole cells, at least 1; got 0"),
    ({"patch.step": 0}, "step must be whole cells, at least 1; got 0"),
    ({"patch.step": Raw("nan")}, "step must be whole cells, at least 1; got nan"),
    ({"patch.step": 1.5}, "got 1.5"),
    ({"patch.boundary": "wrap"}, "boundary 'wrap' is none of"),
    ({"patch.boundary": "raise", "patch.size": 60}, "choose [patch] boundary = 'shift'"),
    ({"output.chunks": 0}, "chunks must be whole cells"),
    ({"output.shards": 96}, "use shards of 128"),
    ({"run.outer": 96}, "use 128"),
    ({"run.outer": 0}, "outer must be whole cells"),
    ({"run.outer": "large"}, "neither 'auto'"),
    ({"run.memory_limit": "1 MB"}, "give it [run] memory_limit = '"),
    ({"run.memory_limit": "much"}, "write 4294967296 or '4 GiB'"),
    ({"cluster.kind": "thread"}, "did you mean 'threads'?"),
    ({"operator.function": "MODULE:trimmed"}, "its last 2 axes must be (64, 64)"),
    ({"operator.function": "MODULE:raising"}, "failed on patch 0"),
    ({"operator.function": "MODULE:absent"}, "has no 'absent'"),
    ({"operator.function": "nowhere_at_all:f"}, "cannot import 'nowhere_at_all'"),
    ({"operator.function": "double"}, "is not of the form 'module:name'"),
    ({"operator.function": "torn:f"}, "cannot import 'torn' of 'torn:f': SyntaxError"),
    ({"operator.takes": "both"}, "neither 'array' nor 'patch'"),
    ({"output.dtype": "uint8", "output.fill_value": 300}, "does not fit in uint8"),
    ({"output.target": "a_file"}, "a_file"),
    ({"output.target": "a_file/out.zarr"}, "a_file"),
    ({"output.target": "a_folder"}, "a_folder"),
    ({"output.storage_options": Raw('{secret = "hunter2"}')}, "env:"),
    ({"patch.widow": 1}, "[patch] has no key 'widow'; did you mean 'window'?"),
    ({"ruin.outer": 1}, "did you mean [run]?"),
    ({"output.outer": 1}, "it belongs in [run]"),
    ({"run.workers": "two"}, "[run] workers must be a whole number"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_jobs(shop: Shop, capsys: Captured, changes: dict[str, Any], says: str) -> None:
    (shop.folder / "torn.py").write_text("def f(:\n")
    (shop.folder / "a_file").write_text("mine")
    (shop.folder / "a_folder").mkdir()
    (shop.folder / "a_folder" / "notes.txt").write_text("mine")
    job = shop.job(changes)
    before = shop.paths()
    assert says in (line := refused(capsys, "run", job)), line
    assert "hunter2" not in line
    assert shop.paths() == before
    assert (shop.folder / "a_file").read_text() == "mine"


def test_bad_files(shop: Shop, capsys: Captured) -> None:
    before = shop.paths()
    assert "no job file" in refused(capsys, "run", str(shop.folder / "nowhere.toml"))
    assert "cannot be read" in refused(capsys, "run", str(shop.folder))
    torn = shop.folder / "torn.toml"
    torn.write_text("[field\npath = 3")
    assert "is not TOML" in refused(capsys, "run", str(torn))
    torn.write_bytes(b"\xff\xfe\x00")
    assert "is not TOML" in refused(capsys, "plan", str(torn))
    assert shop.paths() == before | {"torn.toml"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runn"], "did you mean 'run'?"),
        ([], "--help"),
        (["run", "--clustre", "sync"], "did you mean --cluster?"),
        (["run"], "--field"),
        (["status"], "TARGET"),
        (["status", "nowhere.zarr"], "no plan is recorded beside"),
        (["demo", "--size", "many"], "invalid int value"),
        (["demo", "--size", "100"], "at least 512"),
        (["demo", "--workers", "0"], "--workers must be at least 1"),
        (["run", "--workers", "0"], "[run] workers must be a whole number, at least 1"),
    ],
)
def test_bad_words(
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *words)
    assert says in line
    assert not list(tmp_path.iterdir())


def test_a_target_with_another_plan_names_what_differs(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job, "--quiet") == 0
    before, records = stored(shop.target), shop.records()
    line = refused(capsys, "run", job, "--step", "32")
    assert "sampler.step" in line
    assert "--overwrite" in line
    line = refused(capsys, "run", job, "--chunks", "32", "--outer", "128")
    assert "chunks" in line
    assert stored(shop.target) == before
    assert shop.records() == records
    assert geopatch("run", job, "--step", "32", "--overwrite", "--quiet") == 0
    assert shop.records() != records


def test_a_zarr_of_somebody_else_is_left_alone(shop: Shop, capsys: Captured) -> None:
    group = zarr.open_group(str(shop.target), mode="w")
    group.create_array("theirs", data=np.arange(4))
    job = shop.job()
    before = shop.paths()
    assert "out.zarr" in refused(capsys, "run", job)
    assert shop.paths() == before


def test_no_scheduler_at_the_address(
    shop: Shop, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "TIMEOUT", 0.5)
    job = shop.job({"cluster.kind": "tcp://127.0.0.1:9"})
    before = shop.paths()
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in refused(capsys, "run", job)
    assert shop.paths() == before


def test_drawings_and_files_that_cannot_be_written(shop: Shop, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    job = shop.job()
    for flag in ("--json", "--draw"):
        capsys.readouterr()
        assert geopatch("plan", job, flag, str(shop.folder / "no" / "such" / "x.png")) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert told[0].startswith("geopatch: error: ")


def test_traceback_is_shown_when_asked_for(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": "MODULE:raising"})
    assert geopatch("run", job, "--traceback") == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "in raising" in told
    assert told.splitlines()[-1].startswith("geopatch: error: ")


def test_help_and_version(capsys: Captured) -> None:
    assert geopatch("--version") == 0
    assert capsys.readouterr().out.startswith("geopatch 0.")
    assert geopatch("--help") == 0
    told = capsys.readouterr().out
    assert "example:" in told
    assert "geopatch run --field" in told
    for name in ("demo", "plan", "run", "status"):
        assert geopatch(name, "--help") == 0
    assert "[patch]" in capsys.readouterr().out
