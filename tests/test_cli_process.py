"""The command in processes of its own: signals, terminals, pipes, workers that import operators."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_jobs import Raw, Shop, command, geopatch, stored

SLOW = {"operator.function": "MODULE:slow", "operator.options": Raw("{seconds = 0.05}")}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


def interrupted(shop: Shop, job: str, records: int) -> tuple[int, str]:
    """Run a job, press Ctrl-C after some records: exit code and what was said."""
    process = subprocess.Popen(
        command("run", job),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # In the background of a script, Ctrl-C is ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 200
        while len(shop.records()) < records and time.monotonic() < until:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything in front of it
        _, told = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, told


@pytest.mark.slow
def test_ctrl_c_then_the_same_command_on_processes(shop: Shop) -> None:
    """Under the default local cluster; the rerun uses ``processes``: both import the operator,
    which lies beside the job file and nowhere else."""
    job = shop.job({**SLOW, "run.outer": 64, "cluster.kind": "local", "run.workers": 1})
    code, told = interrupted(shop, job, 2)
    assert code == 130, told
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    found = re.match(r"geopatch: interrupted: (\d+) of 16 super-tiles are done and kept; run", last)
    assert found, told
    kept = shop.records()
    assert int(found[1]) == len(kept)
    assert 2 <= len(kept) < 16
    stamps = {path: path.stat().st_mtime_ns for path in kept}

    assert shop.calls
    assert geopatch("run", job, "--cluster", "processes", "--quiet") == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps
    left = 16 - len(kept)
    assert shop.calls <= 3 + 9 * left  # what planning tries, and at most 3 x 3 per super-tile

    whole = shop.folder / "whole.zarr"
    words = ["--cluster", "sync", "--outer", "256", "--target", str(whole), "--quiet"]
    assert geopatch("run", job, *words, "--set", "operator.options={seconds=0}") == 0
    assert stored(whole) == stored(shop.target)


@pytest.mark.cluster
def test_a_cluster_that_runs_already_finds_the_operator_too(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    from distributed import LocalCluster

    job = shop.job()
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        assert geopatch("run", job, "--cluster", cluster.scheduler_address) == 0
    assert "4: 4 done" in capsys.readouterr().out
    whole = shop.folder / "whole.zarr"
    assert geopatch("run", job, "--outer", "256", "--target", str(whole), "--quiet") == 0
    assert stored(whole) == stored(shop.target)


def test_bad_input_is_one_line_and_exit_2(shop: Shop) -> None:
    job = shop.job({"field.bands": 9})
    before = shop.paths()
    done = subprocess.run(command("run", job), capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("geopatch: error: ")
    assert shop.paths() == before


@pytest.mark.slow
def test_a_terminal_gets_a_bar(shop: Shop) -> None:
    job = shop.job({**SLOW, "run.outer": 64})
    shown = _on_a_terminal(command("run", job, "--set", "operator.options={seconds=0.01}"))
    assert "16/16 super-tiles" in shown
    assert "━" in shown
    assert "failed" in shown
    assert "ETA" in shown
    assert "\x1b[" in shown  # drawn over, not line after line
    assert "(complete)" in shown


def _on_a_terminal(words: list[str]) -> str:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        ready, _, _ = select.select([ours], [], [], 0.2)
        try:
            piece = os.read(ours, 65536) if ready else None
        except OSError:  # the other end is closed
            break
        if piece == b"":
            break
        shown += piece or b""
    os.close(ours)
    assert process.wait(timeout=30) == 0, shown.decode(errors="replace")
    return shown.decode()
