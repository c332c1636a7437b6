"""A target that is deleted or replaced while a run works on it: told at once, never complete."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_jobs import Raw, Shop, geopatch

import geopatch_dask as gp
from geopatch_dask.execute.driving import drive
from geopatch_dask.execute.target import presence
from geopatch_dask.execute.target.presence import TargetGone, absence

FIELD = gp.ArrayField(np.random.default_rng(0).random((80, 80)))
PATCHER = gp.Patcher(gp.Rectangular(10), gp.RegularStride(10))
#: What a user removes, and what the run says of it.
REMOVED = {
    "the target": (["out.zarr"], "out.zarr was deleted while this run worked on it"),
    "the records": (["out.zarr.geopatch"], "the records beside .*out.zarr were deleted"),
    "both": (["out.zarr", "out.zarr.geopatch"], "out.zarr was deleted while this run worked"),
}

Captured = pytest.CaptureFixture[str]


def sleepy(patch: Any) -> Any:
    time.sleep(0.05)
    return patch * 2


def planned(folder: Path, operator: Any = sleepy, **options: Any) -> gp.Plan:
    target = folder / "out.zarr"
    return gp.plan(FIELD, PATCHER, operator, target, outer=20, chunks=20, slots=2, **options)


def recorded(folder: Path) -> int:
    return len(list((folder / "out.zarr.geopatch").glob("*/tiles/*.json")))


def remove(folder: Path, names: list[str]) -> None:
    """What ``rm -rf`` does, which does not mind that somebody writes there."""
    for name in names:
        while (folder / name).exists():
            shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def meanwhile(folder: Path, do: Callable[[], object], after: int = 3) -> Iterator[None]:
    """Within it, something is done by another thread once so many super-tiles are recorded."""

    over = threading.Event()

    def wait() -> None:
        while recorded(folder) < after:
            if over.wait(0.005):
                return
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def check_again(folder: Path) -> None:
    """The same command starts anew, and ends with what an undisturbed run would have."""
    assert planned(folder).run("threads").complete
    cells = FIELD.read(gp.Box((0, 0), (80, 80)))
    np.testing.assert_array_equal(gp.open(folder / "out.zarr").values, cells * 2)


@pytest.mark.parametrize("what", REMOVED)
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_target_that_is_deleted_ends_the_run(tmp_path: Path, what: str, scheduler: str) -> None:
    names, told = REMOVED[what]
    plan = planned(tmp_path)
    with (
        meanwhile(tmp_path, lambda: remove(tmp_path, names)),
        pytest.raises(TargetGone, match=told) as caught,
    ):
        plan.run(scheduler, on_failure="return")
    assert "run the same command again" in str(caught.value)
    assert isinstance(caught.value, gp.RunIncomplete)
    assert not list(tmp_path.glob("out.zarr.geopatch/*/report.json"))
    assert not list(tmp_path.glob("out.zarr.geopatch/*/failed/*"))
    check_again(tmp_path)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("what", REMOVED)
def test_real_workers_whose_target_is_deleted(tmp_path: Path, what: str) -> None:
    names, told = REMOVED[what]
    with (
        meanwhile(tmp_path, lambda: remove(tmp_path, names)),
        pytest.raises(TargetGone, match=told),
    ):
        planned(tmp_path).run()
    check_again(tmp_path)


def test_the_pulse_looks_before_anything_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fails for want of records, so that the end of the run would be the first to tell."""
    monkeypatch.setattr(drive, "BEAT", 0.02)
    computed = []
    with (
        meanwhile(tmp_path, lambda: remove(tmp_path, ["out.zarr.geopatch"])),
        pytest.raises(TargetGone, match="the records beside"),
    ):
        planned(tmp_path).run("sync", progress=lambda outcome, n, of: computed.append(outcome))
    assert 3 <= len(computed) < 16


def test_a_target_that_is_replaced_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "BEAT", 0.02)

    def replace() -> None:
        planned(tmp_path, np.square).run("sync", overwrite=True)

    with (
        meanwhile(tmp_path, replace),
        pytest.raises(TargetGone, match="was replaced by another run"),
    ):
        planned(tmp_path).run("sync")


def test_the_command_says_so_and_exits_1(tmp_path: Path, capsys: Captured) -> None:
    shop = Shop.open(tmp_path)
    job = shop.job(
        {"operator.function": "MODULE:slow", "operator.options": Raw("{ seconds = 0.05 }")}
    )
    with meanwhile(tmp_path, lambda: remove(tmp_path, ["out.zarr"]), after=1):
        assert geopatch("run", job) == 1
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert last.startswith(f"geopatch: error: {tmp_path / 'out.zarr'} was deleted while this run")
    assert last.endswith("run the same command again, which starts anew")
    assert "Traceback" not in told.err
    assert geopatch("run", job) == 0


# ---- what is no sign of anything -----------------------------------------------------------


def test_a_target_that_is_there(tmp_path: Path) -> None:
    plan = planned(tmp_path, np.square)
    plan.run("sync")
    assert absence(plan) is None


@pytest.mark.parametrize("kind", ["forbidden", "unreachable"])
def test_a_store_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refused(target: object) -> Any:
        raise gp.TargetError("no answer", kind=kind)

    plan = planned(tmp_path, np.square)
    monkeypatch.setattr(presence, "read_root", refused)
    assert absence(plan) is None


def test_what_is_no_chunk_of_ours_is_left_alone(tmp_path: Path) -> None:
    for name in ("data/c/0/0", "data/mine.txt"):
        path = tmp_path / "out.zarr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with pytest.raises(gp.TargetError, match="never deleted"):
        planned(tmp_path, np.square).run("sync")
    assert (tmp_path / "out.zarr" / "data" / "c" / "0" / "0").exists()
    (tmp_path / "out.zarr" / "data" / "mine.txt").unlink()
    (tmp_path / "out.zarr" / "theirs").mkdir()
    with pytest.raises(gp.TargetError, match="never deleted"):
        planned(tmp_path, np.square).run("sync")
    (tmp_path / "out.zarr" / "theirs").rmdir()
    assert planned(tmp_path, np.square).run("sync").complete
