"""docs/deploy/slurm.md, followed to the letter on a real Slurm."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from services.slurm import Slurm, eventually

import geopatch_dask as gp

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "deploy" / "slurm.md"


@pytest.fixture(scope="module")
def credentials() -> None:
    """In place of those of the object store, which nothing here needs."""


def test_the_page_about_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import blocks
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    slurm = Slurm.running()
    slurm.cancel_all()
    home, folder = tmp_path / "home", tmp_path / "work"
    for made in (home, folder):
        made.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for name, value in {**slurm.env, "HOME": str(home), "PATH": path, "REPO": str(ROOT)}.items():
        monkeypatch.setenv(name, value)  # the shell's, and that of jobs which Python submits
    try:
        blocks.run_page(PAGE, folder, {})
        eventually("everything is given back", lambda: not slurm.jobs(), 20)
    finally:
        slurm.cancel_all()
        plt.close("all")
    for name in ("slope.zarr", "by-driver.zarr", "by-array.zarr", "from-python.zarr"):
        assert gp.status(folder / name).complete, name
    assert (home / ".config" / "dask" / "jobqueue.yaml").exists()
    logs = "".join(log.read_text() for log in (folder / "geopatch-logs").glob("*.err"))
    assert "Start Nanny" in logs  # workers were jobs, and wrote where the page says


def test_the_message_on_the_page_is_the_one_of_the_code() -> None:
    """What a worker over its memory looks like; the numbers are of a test beside this one."""
    from geopatch_dask.clusters.deaths import Death
    from geopatch_dask.execute.losses import _message

    class Memory:
        total = int(312.4 * 2**20)

    class Plan:
        memory, memory_limit = Memory, 1 << 30

    told = _message(Plan, "super-tile y256-512_x0-256", Death(by_kernel=True, limit=1280 << 20))  # type: ignore[arg-type]
    page = " ".join(PAGE.read_text("utf-8").split())
    assert told in page
