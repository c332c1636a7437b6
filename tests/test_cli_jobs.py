"""``geopatch submit`` and ``retry``; runs that others follow and cancel; shares."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cli_jobs import Raw, Shop, geopatch

import geopatch_dask as gp
from geopatch_dask.cli.progress import Following
from geopatch_dask.store.jobs import RunState

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


def slow(shop: Shop, seconds: float) -> str:
    """A job of 36 patches that take some time each."""
    options = Raw(f"{{ seconds = {seconds} }}")
    return shop.job({"operator.function": "MODULE:slow", "operator.options": options})


def wait_for_a_run(shop: Shop) -> None:
    """Until somebody says that he works on the target."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(gp.TargetError):  # no plan beside it yet
            if gp.attach(shop.target).runs:
                return
        time.sleep(0.02)
    raise AssertionError("nobody began")


def test_retry_computes_what_failed(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": f"{shop.module}:flaky"})
    (shop.folder / "broken").touch()
    assert geopatch("run", job) == 1
    assert "the lamp" in capsys.readouterr().err
    assert geopatch("status", str(shop.target)) == 1
    assert "1 failed" in capsys.readouterr().out
    (shop.folder / "broken").unlink()
    assert shop.calls > 0
    assert geopatch("retry", job, "--cluster", "sync") == 0
    assert "super-tiles 4: 1 done, 3 done before" in capsys.readouterr().out
    assert geopatch("status", str(shop.target)) == 0
    assert geopatch("retry", str(shop.target), "--cluster", "sync") == 0  # nothing left


def test_retry_of_nothing_is_bad_input(tmp_path: Path, capsys: Captured) -> None:
    assert geopatch("retry", str(tmp_path / "no.zarr")) == 2
    assert "no.zarr" in capsys.readouterr().err


def test_a_patch_that_is_left_out_is_exit_1_until_retried(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": f"{shop.module}:flaky"})
    (shop.folder / "broken").touch()
    assert geopatch("run", job, "--on-error", "fill") == 1
    told = capsys.readouterr()
    assert "FAILED and left out" in told.out
    assert "geopatch retry computes them again" in told.err
    assert geopatch("status", job) == 1
    assert "geopatch retry computes them again" in capsys.readouterr().err
    (shop.folder / "broken").unlink()
    assert geopatch("retry", job, "--cluster", "sync") == 0
    assert geopatch("status", job) == 0


def test_shares_one_after_another(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job, "--share", "0/2") == 0
    told = capsys.readouterr().err
    assert "this share is done; others are not yet" in told
    assert "2/2 super-tiles" in told
    assert geopatch("run", job, "--share", "1/2") == 0
    assert gp.status(shop.target).complete
    assert geopatch("run", job, "--share", "2/2") == 2
    assert "shares count from 0" in capsys.readouterr().err


def test_a_policy_that_makes_no_sense_is_bad_input(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    for words in (("--on-error", "ignore"), ("--timeout", "soon"), ("--attempts", "0")):
        assert geopatch("run", job, *words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert geopatch("run", job, "--timeout", "5 min") == 2  # the job runs in one thread
    assert "a timeout needs processes" in capsys.readouterr().err
    assert not shop.target.exists()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_in_the_background_is_followed_and_cancelled(shop: Shop, capsys: Captured) -> None:
    job = slow(shop, 0.3)
    assert geopatch("submit", job) == 0
    assert "submitted" in capsys.readouterr().out
    wait_for_a_run(shop)
    assert geopatch("status", job, "--cancel") == 0
    assert "what they did is kept" in capsys.readouterr().out
    assert geopatch("status", job, "--cancel") == 2  # nobody there any more
    assert not gp.status(shop.target).complete
    (log,) = shop.folder.glob("*.log")
    assert "cancelled" in log.read_text()
    assert geopatch("run", slow(shop, 0.3), "--quiet") == 0


@pytest.mark.parametrize("words", [["--log", "{log}"], ["--log={log}"]])
def test_the_log_of_a_background_job_is_not_for_the_run(
    shop: Shop, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = shop.job()
    begun: list[list[str]] = []

    class Begun:
        """A process that ended well at once."""

        pid = 1

        def __init__(self, command: list[str], **kwargs: object) -> None:
            begun.append(command[3:])

        def poll(self) -> int:
            return 0

    monkeypatch.setattr("geopatch_dask.cli.jobs.subprocess.Popen", Begun)
    given = [word.format(log=shop.folder / "my.log") for word in words]
    assert geopatch("submit", job, *given, "--log-every", "5") == 0
    assert begun == [["run", job, "--log-every", "5"]]
    assert (shop.folder / "my.log").exists()


def said(share: str, before: int = 0, total: int = 25, done: int = 20) -> RunState:
    return replace(RunState.begin(share=share), before=before, total=total, done=done)


@pytest.mark.parametrize(
    ("runs", "line"),
    [
        ([said(f"{i}/4") for i in range(4)], "80/100 super-tiles (80%)"),
        ([said("0/4"), said("1/4", before=10)], "40/50 super-tiles (80%)"),
        ([said("", 60, 40)], "80/100 super-tiles (80%, 60 of them before)"),
        ([said("", 60, 40), said("", 70, 30, 5)], "85/100 super-tiles (85%, 60 of them before)"),
    ],
)
def test_following_several_runs(runs: list[RunState], line: str, capsys: Captured) -> None:
    with Following(every=0) as shown:
        shown(runs[:1])
        shown(runs)
    assert line in capsys.readouterr().err


@pytest.mark.slow
def test_following_a_run(shop: Shop, capsys: Captured) -> None:
    job = slow(shop, 0.1)
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(geopatch("run", job, "--quiet")))
    thread.start()
    wait_for_a_run(shop)
    assert geopatch("status", job, "--follow") == 0
    thread.join()
    assert done == [0]
    told = capsys.readouterr()
    assert "super-tiles" in told.err
    assert "(complete)" in told.out
    assert geopatch("status", job, "--follow") == 0
    assert "nobody works on it" in capsys.readouterr().err


def test_bad_input_of_a_background_job_is_said_here(shop: Shop, capsys: Captured) -> None:
    job = shop.job({"operator.function": f"{shop.module}:nothing"})
    assert geopatch("submit", job) == 2
    assert "has no 'nothing'" in capsys.readouterr().err
    assert not list(shop.folder.glob("*.log"))
