"""``[cluster]`` and ``--cluster``: where a job runs, checked and planned without starting it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_jobs import Raw, Shop, command, geopatch, stored

from geopatch_dask.cli.clusters import scheduler_of, slots_and_memory
from geopatch_dask.cli.job import load_job
from geopatch_dask.cli.keys import find
from geopatch_dask.clusters.core import KINDS, words_of
from geopatch_dask.clusters.deferred import Deferred

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run.scheduler": "sync"}, "where a job runs is kind in [cluster] (--cluster)"),
        ({"cluster.kind": "slrum"}, "did you mean 'slurm'? There are local, slurm, pbs, kubern"),
        ({"cluster.wall_time": "1:00"}, "[cluster] has no key 'wall_time'; did you mean 'walltim"),
        ({"cluster.kind": "local", "cluster.walltime": "1:00"}, "'local' has no option 'walltime'"),
        ({"cluster.adapt": [0, 2]}, "[cluster] adapt does nothing with kind 'sync'"),
        (
            {"cluster.kind": "tcp://127.0.0.1:9", "cluster.queue": "x"},
            "queue does nothing with kind 'tcp://127.0.0.1:9'",
        ),
        (
            {"cluster.kind": "local", "cluster.adapt": [0, 2], "run.workers": 2},
            "give [run] workers, or [cluster] adapt, not both",
        ),
        ({"cluster.kind": "local", "cluster.adapt": 3}, "adapt must be two whole numbers"),
        ({"cluster.kind": "local", "cluster.gpus": "many"}, "gpus must be a whole number"),
        ({"cluster.kind": 3}, "[cluster] kind must be text; got 3"),
    ],
)
def test_bad_words(shop: Shop, capsys: Captured, changes: dict[str, Any], says: str) -> None:
    before = shop.paths()
    assert geopatch("plan", job := shop.job(changes)) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert geopatch("run", job) == 2
    assert shop.paths() == before | {"job.toml"}


def test_values_of_wrong_words_are_not_shown(shop: Shop, capsys: Captured) -> None:
    for changes in ({"cluster.tokn": "hunter2"}, {"cluster.queue": "hunter2"}):
        assert geopatch("run", shop.job(changes)) == 2
    assert geopatch("run", shop.job(), "--set", "clustr.token=hunter2") == 2
    assert geopatch("run", shop.job(), "--set", "cluster.token:hunter2") == 2
    assert "hunter2" not in "".join(capsys.readouterr())


def test_the_old_flag_names_the_new_one(shop: Shop, capsys: Captured) -> None:
    assert geopatch("run", shop.job(), "--scheduler", "sync") == 2
    assert "did you mean --cluster?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_of_every_kind_is_a_key(kind: str) -> None:
    for word in words_of(kind):
        key = find("cluster", word)
        assert (key.section, key.name, key.sort) == ("cluster", word, "any")
        assert key.help.rpartition("; ")[2] in KINDS


def test_a_walltime_needs_no_quotes(shop: Shop) -> None:
    words = {"cluster.kind": "slurm", "cluster.walltime": Raw("02:30:00")}
    assert load_job(shop.job(words)).cluster == ("slurm", {"walltime": "02:30:00"})


def test_another_kind_on_the_command_line_replaces_the_section(shop: Shop) -> None:
    job = shop.job({"cluster.kind": "slurm", "cluster.queue": "long", "cluster.tls": "certs"})
    assert load_job(job, {("cluster", "kind"): "local"}).cluster == ("local", {})
    same = load_job(job, {("cluster", "kind"): "slurm", ("cluster", "queue"): "short"})
    assert same.cluster == ("slurm", {"queue": "short", "tls": str(shop.folder / "certs")})
    assert geopatch("plan", job, "--cluster", "threads") == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--cluster", "slurm", "--workers", "8", "--memory-limit", "3GiB"], (8, 3 << 30)),
        (["--cluster", "pbs", "--adapt", "0,64", "--memory-limit", "3GiB"], (64, 3 << 30)),
        (["--cluster", "kubernetes", "--workers", "8", "--memory-limit", "3GiB"], (8, 3 << 30)),
        (["--cluster", "local", "--adapt", "1,3", "--memory-limit", "3GiB"], (3, 3 << 30)),
        (["--cluster", "processes", "--workers", "5", "--memory-limit", "3GiB"], (5, 3 << 30)),
        (["--cluster", "slurm", "--set", "cluster.walltime=01:00:00"], (2, None)),
        (["--cluster", "kubernetes"], (2, None)),
    ],
)
def test_planning_starts_nothing(
    shop: Shop, capsys: Captured, words: list[str], found: tuple[int, int | None]
) -> None:
    """No Slurm, no Kubernetes: only what the job says, or what the kind would give."""
    pytest.importorskip("dask_jobqueue", reason="its defaults are the kind's")
    assert geopatch("plan", shop.job({"cluster.kind": None}), *words, "--json", "-") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["slots"] == found[0]
    if found[1] is not None:
        assert plan["memory_limit"] == found[1]
    assert not shop.target.exists()


def test_what_a_cluster_would_have_is_what_it_is_asked_for(shop: Shop) -> None:
    job = load_job(
        shop.job({"cluster.kind": "slurm", "cluster.queue": "a", "run.memory_limit": "3 GiB"})
    )
    with scheduler_of(job) as how:
        assert isinstance(how, Deferred)
        assert how.kind == "slurm"
        assert how.words == {"queue": "a", "folders": job.folders, "memory": 3 << 30}
        assert slots_and_memory(job, how) == (2, 3 << 30)


def test_what_is_done_needs_no_cluster(shop: Shop, capsys: Captured) -> None:
    """There is no Slurm that could be asked for the second run."""
    pytest.importorskip("dask_jobqueue", reason="its defaults are the kind's")
    assert geopatch("run", shop.job(), "--quiet") == 0
    words = ["--cluster", "slurm", "--memory-limit", "4GiB", "--workers", "2"]
    assert geopatch("run", shop.job(), *words) == 0
    assert "(complete)" in capsys.readouterr().out


def test_retry_runs_where_the_job_file_says(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": "MODULE:flaky"})
    (shop.folder / "broken").touch()
    assert geopatch("run", job, "--quiet") == 1
    (shop.folder / "broken").unlink()
    capsys.readouterr()
    assert geopatch("retry", job, "--cluster", "slrum") == 2
    assert "did you mean 'slurm'?" in capsys.readouterr().err
    assert geopatch("retry", job, "--set", "cluster.adapt=3") == 2
    assert "adapt does nothing with kind 'sync'" in capsys.readouterr().err
    assert geopatch("retry", job) == 0


@pytest.mark.cluster
def test_words_of_the_local_cluster(shop: Shop, capsys: Captured) -> None:
    job = shop.job(
        {"cluster.kind": "local", "cluster.dashboard": False, "cluster.local_directory": "X"}
    )
    words = ["--set", f"cluster.local_directory={shop.folder / 'spill'}", "--workers", "1"]
    assert geopatch("run", job, *words) == 0
    said = capsys.readouterr()
    assert "dashboard is at" not in said.err
    assert (shop.folder / "spill").is_dir()
    whole = shop.folder / "whole.zarr"
    words = ["--cluster", "sync", "--outer", "256", "--target", str(whole), "--quiet"]
    assert geopatch("run", job, *words) == 0
    assert stored(whole) == stored(shop.target)


@pytest.mark.parametrize("kind", [pytest.param("local", marks=pytest.mark.integration), "sync"])
def test_sigterm_ends_a_run_in_order(shop: Shop, kind: str) -> None:
    """As a batch system ends the driver: what is done is kept and told, nothing stays behind."""
    slow = {"operator.function": "MODULE:slow", "operator.options": Raw("{seconds = 0.02}")}
    job = shop.job({**slow, "run.outer": 64, "cluster.kind": kind, "run.workers": 1})
    words = command("run", job)
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until = time.monotonic() + 200
        while len(shop.records()) < 2 and time.monotonic() < until:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # they may come twice
        _, told = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, told
    assert "Traceback" not in told
    kept = len(shop.records())
    assert f"geopatch: terminated: {kept} of 16 super-tiles are done and kept; run" in told
    psutil.wait_procs(family, timeout=30)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert geopatch("run", job, "--cluster", "sync", "--quiet") == 0
