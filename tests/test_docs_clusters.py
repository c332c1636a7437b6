"""Commands of the documentation that need a cluster, on one of loopback.

Pages are run as sessions (:mod:`test_docs`), but for blocks that name a scheduler somewhere.  Here
the address of a real one takes the place of that of the page, and every such block is carried out.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

import geopatch_dask as gp

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
try:
    import blocks
finally:
    sys.path.remove(str(DOCS / "_ext"))

BLOCKS = [
    block
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts
    for block in blocks.parse(page)
    if (block.mark, block.value) == ("skip", "needs a cluster")
]
JOB = """
field = { path = "scene.tif" }
patch = { size = 32, step = 24, window = "hann" }
operator = { function = "numpy:sqrt" }
output = { target = "out.zarr", chunks = 64 }
run = { workers = 1, memory_limit = "1 GiB" }
"""

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def commands(block: blocks.Block) -> list[str]:
    return [line[2:].partition("  # ")[0].strip() for line in block.code.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a job file, and what it reads."""
    import rasterio

    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    shape = {"driver": "GTiff", "height": 128, "width": 128, "count": 1, "dtype": "float32"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open("scene.tif", "w", **shape, **place) as file:
        file.write(np.random.default_rng(0).random((1, 128, 128), dtype="float32"))
    Path("job.toml").write_text(JOB)
    return tmp_path


def carried_out(command: str) -> str:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=200)
    if "--cancel" in command and "nobody works on it" in done.stderr:  # the line before waited
        return ""
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def started(command: str, address: str) -> subprocess.Popen[bytes]:
    """A scheduler or a worker of the page, where nobody else can connect."""
    words = shlex.split(command)
    host, _, port = address.removeprefix("tls://").partition(":")
    words += ["--host", host, "--dashboard-address", f"{host}:0"]
    words += ["--port", port] if words[1] == "scheduler" else []
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if "tls://" not in b.code], ids=lambda b: b.where
)
def test_what_the_page_says_of_a_cluster(block: blocks.Block, folder: Path) -> None:
    where = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "threads_per_worker": 1}
    with LocalCluster(n_workers=1, protocol="tcp", **where) as cluster:
        for command in commands(block):
            assert command.split()[0] == "geopatch", f"{block.where}: who runs {command}?"
            carried_out(command.replace("tcp://host:8786", cluster.scheduler_address))
    if "submit" in block.code:
        assert gp.attach("out.zarr").wait().complete


@pytest.mark.parametrize("block", [b for b in BLOCKS if "tls://" in b.code], ids=lambda b: b.where)
def test_what_the_page_says_of_an_encrypted_cluster(block: blocks.Block, folder: Path) -> None:
    carried_out("geopatch doctor --tls certs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"tls://127.0.0.1:{free.getsockname()[1]}"
    running = []
    try:
        for command in commands(block):
            here = command.replace("tls://host:8786", address)
            if here.startswith("dask "):
                running.append(started(here, address))
                time.sleep(3)
            else:
                carried_out(here)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)
    assert gp.status("out.zarr").complete


def test_there_are_such_blocks() -> None:
    assert {"clusters.md", "jobs.md"} <= {block.page.name for block in BLOCKS}
