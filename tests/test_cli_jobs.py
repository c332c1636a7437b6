"""``geopatch submit`` and ``retry``; runs that others follow and cancel; shares."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest
from cli_jobs import Raw, Shop, geopatch

import geopatch_dask as gp

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
    (shop.folder / "broken").unlink()
    assert geopatch("retry", job, "--cluster", "sync") == 0


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
