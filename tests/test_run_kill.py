"""``kill -9`` of the client in the middle of a run, then the same command.

Same bytes; finished super-tiles are not computed again (their records are untouched, and the
operator's calls, counted in a file, are those of the unfinished ones).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from kill_job import job
from sample_operators import notes

import geopatch_dask as gp
from geopatch_dask.testing import assert_same_bytes, merged, read_back

HERE = Path(__file__).parent
PROBES = 3  # patches on which every plan tries its operator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).standard_normal((160, 160)).astype("float32")
    values[100:, 100:] = np.nan
    np.save(tmp_path / "field.npy", values)
    return tmp_path


@contextmanager
def command(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The job in a process of its own, which is gone at the end, workers included."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "kill_job.py"), str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("wb"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def records(folder: Path) -> dict[str, int]:
    """Identifier and time of every record."""
    found = folder.glob("out.zarr.geopatch/*/tiles/*.json")
    return {path.stem: path.stat().st_mtime_ns for path in found}


def kill_after(folder: Path, process: subprocess.Popen[bytes], done: int, later: float) -> None:
    """SIGKILL, some time after so many super-tiles are done; returns when all workers are gone."""
    deadline = time.monotonic() + 120
    while len(records(folder)) < done:
        assert process.poll() is None, (folder / "stderr.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(later)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)


def check_finished(folder: Path, before: dict[str, int], calls: int, plans: int) -> None:
    plan = job(folder)
    rest = [tile for tile in plan.layout if tile.id not in before]
    expected = sum(plan.grid.count_touching(tile.box) for tile in rest)
    assert notes(folder / "calls.txt") - calls == expected + (plans + 1) * PROBES
    after = records(folder)
    assert {name: after[name] for name in before} == before
    assert gp.status(folder / "out.zarr").complete
    expected_array = merged(plan.field, plan.patcher, lambda x: x * 2)
    assert_same_bytes(read_back(folder / "out.zarr"), expected_array)


@pytest.mark.slow
def test_the_same_command_finishes_what_a_killed_one_began(folder: Path) -> None:
    with command(folder) as process:
        kill_after(folder, process, done=3, later=0.013)
    before, calls = records(folder), notes(folder / "calls.txt")
    assert 3 <= len(before) < 64
    assert not gp.status(folder / "out.zarr").complete
    with command(folder) as process:
        assert process.wait(120) == 0, (folder / "stderr.txt").read_text()
    check_finished(folder, before, calls, plans=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_at_random_moments(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(3):
        with command(folder) as process:
            done = len(records(folder)) + int(rng.integers(0, 16))
            kill_after(folder, process, min(done, 63), later=float(rng.uniform(0, 0.1)))
    before, calls = records(folder), notes(folder / "calls.txt")
    job(folder).run("threads")
    check_finished(folder, before, calls, plans=1)


@pytest.mark.slow
def test_killed_and_finished_with_other_super_tiles(folder: Path) -> None:
    with command(folder) as process:
        kill_after(folder, process, done=20, later=0.02)
    report = job(folder, outer=(40, 70)).run("threads")
    assert report.complete
    whole = job(folder, "whole.zarr", outer=(160, 160)).run("sync")
    assert report.totals == whole.totals
    assert read_back(folder / "out.zarr").tobytes() == read_back(folder / "whole.zarr").tobytes()


def check_rounds(output: str, least: int) -> None:
    """Every line of ``kill_operations.py``: nothing untrue was recorded, nothing done was lost."""
    rounds = [json.loads(line) for line in output.splitlines()]
    assert [r["n"] for r in rounds] == list(range(1, len(rounds) + 1))
    assert len(rounds) >= least
    for r in rounds:
        assert r["signal"] == signal.SIGKILL
        assert r["look"]["wrong"] == [], r
        assert r["rerun"]["complete"], r
        assert r["rerun"]["same"], r
        assert r["rerun"]["calls"] == r["rerun"]["due"], r
        assert r["look"]["records"].items() <= r["rerun"]["records"].items(), r
    kept = {len(r["look"]["records"]) for r in rounds}
    assert kept == set(range(max(kept) + 1))  # deaths before, between and after all records


@pytest.mark.slow
@pytest.mark.parametrize(("way", "least"), [("store", 60), ("place", 20)])
def test_killed_between_any_two_store_operations(tmp_path: Path, way: str, least: int) -> None:
    """Of an open store, and of a path: files and their renaming."""
    words = [sys.executable, str(HERE / "kill_operations.py"), way, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check_rounds(done.stdout, least)
