"""docs/deploy/slurm.md, followed to the letter on a real Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_rasters import write_terrain
from services.slurm import Slurm, eventually

import geopatch_dask as gp

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
#: What commands of other pages are about; words of the cluster are theirs.
JOB = """
field = { path = "scene.tif" }
patch = { size = 32, step = 24, window = "hann" }
operator = { function = "numpy:square" }
output = { target = "out.zarr", chunks = 64 }
run = { outer = 64, workers = 2, memory_limit = "400 MiB" }
"""
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


@pytest.mark.parametrize("name", ["clusters.md", "jobs.md"])
def test_what_other_pages_say_of_a_batch_system(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that the runner of pages leaves out; a job array is waited for."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import blocks

    slurm = Slurm.running()
    slurm.cancel_all()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **slurm.env, "HOME": str(tmp_path), "PATH": path}
    write_terrain(tmp_path / "scene.tif", 256)
    (tmp_path / "job.toml").write_text(JOB)
    found = [b for b in blocks.parse(ROOT / "docs" / name) if b.value == "needs a batch system"]
    commands = [line[2:] for block in found for line in block.code.splitlines()]
    assert commands
    try:
        for command in commands:
            # Nodes here have 4 GB.
            here = command.replace("sbatch ", "sbatch --wait ").replace("4GiB", "400MiB")
            done = subprocess.run(
                ["bash", "-c", here], cwd=tmp_path, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{here}\n{done.stdout}{done.stderr}"
        eventually("everything is given back", lambda: not slurm.jobs(), 20)
    finally:
        slurm.cancel_all()
    assert gp.status(tmp_path / "out.zarr").complete


def test_the_message_on_the_page_is_the_one_of_the_code() -> None:
    """What a worker over its memory looks like; the numbers are of a test beside this one."""
    from geopatch_dask.clusters.deaths import Death
    from geopatch_dask.execute.driving.losses import _message

    class Memory:
        total = int(312.4 * 2**20)

    class Plan:
        memory, memory_limit = Memory, 1 << 30

    told = _message(Plan, "super-tile y256-512_x0-256", Death(by_kernel=True, limit=1280 << 20))  # type: ignore[arg-type]
    page = " ".join(PAGE.read_text("utf-8").split())
    assert told in page
