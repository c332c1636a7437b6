"""Runs on a real Slurm, and what ends them: workers, walltimes, nodes, memory, the driver itself.

Whatever ends, the same command again gives the bytes of a run on this machine that nothing
disturbed, and computes nothing that has a record.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_rasters import write_terrain
from services.slurm import Slurm, eventually

import geopatch_dask as gp
from geopatch_dask.cli.job import load_job

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
#: Name of a worker's job.
WORKER = "geopatch"

#: Tests set the pace, seconds per patch, while a run goes on: it changes no byte and no identity.
MODEL = """
import time
from pathlib import Path
import numpy as np

PACE = Path(__file__).with_name("pace")

def smooth(patch):
    time.sleep(float(PACE.read_text() or 0))
    return np.sqrt(np.abs(patch))

def greedy(patch):
    if np.nanmax(patch) > 1e6:
        eaten = [np.ones(64 << 17) for _ in range(40)]  # 64 MiB each: more than a job has
        return patch * len(eaten)
    return np.sqrt(np.abs(patch))
"""

JOB = """
[field]
path = "scene.tif"
[patch]
size = 64
step = 32
window = "hann"
[operator]
function = "model:smooth"
[output]
target = "out.zarr"
chunks = 64
[run]
outer = 64
workers = 2
memory_limit = "400MiB"
[cluster]
kind = "slurm"
walltime = "00:10:00"
interface = "lo"
"""


@pytest.fixture(scope="module")
def credentials() -> None:
    """In place of those of the object store, which nothing here needs."""


@pytest.fixture(scope="module")
def up() -> Slurm:
    return Slurm.running()


@pytest.fixture
def slurm(up: Slurm) -> Iterator[Slurm]:
    """With both nodes up, and no job, before and after."""
    up.cancel_all()
    yield up
    up.cancel_all()


@dataclass
class Work:
    """A folder with a job; ``geopatch run job.toml`` in it."""

    folder: Path
    slurm: Slurm

    @property
    def env(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**os.environ, **self.slurm.env, "PATH": path, "HOME": str(self.folder)}

    def pace(self, seconds: float) -> None:
        """Of a patch, from now on."""
        (self.folder / "pace").write_text(str(seconds))

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        with (self.folder / "run.log").open("ab") as log:
            return subprocess.Popen(
                ["geopatch", "run", "job.toml", *flags],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
            )

    def finish(self, *flags: str, status: int = 0) -> str:
        """Run it to its end; what it said."""
        done = subprocess.run(
            ["geopatch", "run", "job.toml", *flags],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr + self.said()
        return done.stdout + done.stderr

    def submit(self, script: str, *flags: str) -> str:
        """The id of the job."""
        done = subprocess.run(
            [
                "sbatch",
                "--parsable",
                *flags[:-1],
                str(ROOT / "deploy" / "slurm" / script),
                flags[-1],
            ],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def said(self) -> str:
        """The ends of all logs."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("geopatch-logs/*")]
        return "\n".join(f"---- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def records(self, where: str = "tiles") -> dict[str, dict[str, Any]]:
        """Records by name, as they are now."""
        found = {}
        for file in self.folder.glob(f"out.zarr.geopatch/*/{where}/*.json"):
            try:
                found[file.stem] = json.loads(file.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue
        return found

    def wait_for_records(self, count: int, run: subprocess.Popen[bytes] | None = None) -> None:
        """Until so many super-tiles are done; ``run`` has to go on meanwhile."""

        def there() -> bool:
            found = len(self.records())
            assert run is None or run.poll() is None, f"it ended, {found} are done:\n{self.said()}"
            return found >= count

        eventually(f"{count} records", there, 90)

    def add_to_job(self, **words: str) -> None:
        """Lines at the end of it: ``[cluster]``."""
        lines = "".join(f"{word} = {value}\n" for word, value in words.items())
        text = (self.folder / "job.toml").read_text()
        for word in words:
            text = "".join(x for x in text.splitlines(True) if not x.startswith(f"{word} = "))
        (self.folder / "job.toml").write_text(text + lines)

    def check(self, reference: Mapping[str, bytes], before: Mapping[str, Any]) -> None:
        """Complete, the same bytes, and what had a record was not touched."""
        assert gp.status(self.folder / "out.zarr").complete
        assert objects(self.folder / "out.zarr") == reference
        after = self.records()
        assert {name: after[name] for name in before} == before


def objects(target: Path) -> dict[str, bytes]:
    """Every object by name, but for the identity, which holds path and time of the scene's file."""
    found = {
        str(file.relative_to(target)): file.read_bytes()
        for file in target.rglob("*")
        if file.is_file()
    }
    attributes = json.loads(found["zarr.json"])["attributes"]
    for name in ("geopatch:fingerprint", "geopatch:template"):
        found["zarr.json"] = found["zarr.json"].replace(attributes[name].encode(), b"...")
    return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_terrain(tmp_path_factory.mktemp("scene") / "scene.tif", 512)


@pytest.fixture(scope="module")
def reference(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run on this machine writes that nothing disturbs."""
    work = Work(tmp_path_factory.mktemp("reference"), Slurm(Path("/nowhere"), False))
    _fill(work.folder, scene)
    work.finish("--cluster", "threads")
    return objects(work.folder / "out.zarr")


def _fill(folder: Path, scene: Path) -> None:
    (folder / "scene.tif").write_bytes(scene.read_bytes())
    (folder / "model.py").write_text(MODEL)
    (folder / "pace").write_text("0")
    (folder / "job.toml").write_text(JOB)


@pytest.fixture
def work(slurm: Slurm, scene: Path, tmp_path: Path) -> Work:
    _fill(tmp_path, scene)
    made = Work(tmp_path, slurm)
    made.pace(0.05)
    return made


# ---- workers -------------------------------------------------------------------------------


def test_jobs_of_workers_are_cancelled_in_mid_run(
    work: Work, slurm: Slurm, reference: dict[str, bytes]
) -> None:
    """As a preemption: again and again, and no super-tile is given up for it."""
    run = work.start()
    cancelled = []
    for count in (4, 16, 30):
        work.wait_for_records(count, run)
        eventually("a worker", lambda: slurm.running_jobs(WORKER))
        cancelled.append(slurm.running_jobs(WORKER)[0])
        slurm("scancel", cancelled[-1])
    work.pace(0)
    assert run.wait(180) == 0, work.said()
    assert [slurm.state(job) for job in cancelled] == ["CANCELLED"] * 3
    work.check(reference, {})
    assert not work.records("failed")
    eventually("all jobs are given back", lambda: not slurm.jobs(), 20)


def test_jobs_come_with_the_work_and_go_without(
    work: Work, slurm: Slurm, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fewest to the most, and back once nothing is left to do for half a minute."""
    for name in ("SLURM_CONF", "PATH", "HOME"):
        monkeypatch.setenv(name, work.env[name])
    monkeypatch.chdir(work.folder)
    work.pace(0.3)
    job = load_job(work.folder / "job.toml")
    words = {"memory": job.memory_limit, "interface": "lo", "walltime": "00:10:00"}
    with (
        job.importable(),
        gp.cluster("slurm", adapt=(1, 4), folders=job.folders, **words) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        plan = gp.plan(**job.plan_arguments(), memory_limit=job.memory_limit, slots=4)
        eventually("the fewest", lambda: len(slurm.running_jobs(WORKER)) == 1)
        run = pool.submit(plan.run, client)
        eventually("the most", lambda: len(slurm.running_jobs(WORKER)) == 4)
        assert not run.done()
        work.pace(0)
        assert run.result(180).complete
        eventually("the fewest again", lambda: len(slurm.jobs(WORKER)) == 1, 120)
    work.check(reference, {})
    eventually("all jobs are given back", lambda: not slurm.jobs(), 20)


def test_workers_retire_before_the_walltime(
    work: Work, slurm: Slurm, reference: dict[str, bytes]
) -> None:
    """After 25 s here; their jobs end well, others take their place, and nothing failed."""
    work.pace(0.3)
    work.add_to_job(walltime='"1"', margin='"33 s"')
    run = work.start()
    eventually("workers", lambda: len(slurm.running_jobs(WORKER)) == 2)
    first = set(slurm.running_jobs(WORKER))
    eventually("they retire", lambda: any(slurm.ended(job) for job in first))
    eventually("others come", lambda: set(slurm.running_jobs(WORKER)) - first)
    work.pace(0)
    assert run.wait(120) == 0, work.said()
    states = {slurm.state(job) for job in first}
    assert "COMPLETED" in states
    assert states <= {"COMPLETED", "CANCELLED"}  # at the end of the run
    work.check(reference, {})
    assert not work.records("failed")
    attempts = {name: record["attempts"] for name, record in work.records().items()}
    # A worker that retires hands over what it holds.  The last one cannot: nobody is there to take
    # the plan.  Dask then says that it could not be retired, it ends all the same, and the two
    # super-tiles that it has (one at work, one in its queue) count as lost with their machine:
    # they are started again, once somebody comes, and not held against anybody.
    assert sum(n > 1 for n in attempts.values()) <= 2, (attempts, work.said())
    assert max(attempts.values()) <= 2, (attempts, work.said())


def test_slurm_kills_a_worker_at_its_walltime(
    work: Work, slurm: Slurm, reference: dict[str, bytes]
) -> None:
    """As if the margin had been too small: the limit of a running job is lowered."""
    work.pace(0.5)
    run = work.start()
    eventually("workers", lambda: len(slurm.running_jobs(WORKER)) == 2)
    late = slurm.running_jobs(WORKER)[0]
    slurm("scontrol", "update", f"jobid={late}", "TimeLimit=1")
    eventually("its time is over", lambda: slurm.ended(late), 120)
    assert slurm.state(late) == "TIMEOUT"
    before = work.records()
    assert len(before) < 64
    work.pace(0)
    assert run.wait(120) == 0, work.said()
    work.check(reference, before)
    assert not work.records("failed")


# ---- nodes and memory ----------------------------------------------------------------------


def test_a_node_is_lost(work: Work, slurm: Slurm, reference: dict[str, bytes]) -> None:
    work.add_to_job(directives='["--exclusive"]')  # one worker on each node
    work.pace(0.1)
    run = work.start()
    eventually("workers", lambda: len(slurm.running_jobs(WORKER)) == 2)
    work.wait_for_records(8, run)
    lost = next(j for j in slurm.running_jobs(WORKER) if slurm.told(j, "NodeList") == "n2")
    slurm.kill_node("n2")
    eventually("the job is gone", lambda: slurm.ended(lost))
    assert slurm.state(lost) == "NODE_FAIL"
    work.pace(0)
    assert run.wait(180) == 0, work.said()
    work.check(reference, {})
    assert not work.records("failed")


def test_the_kernel_kills_a_worker_and_the_report_says_so(work: Work, slurm: Slurm) -> None:
    if not slurm.memory:
        pytest.skip("this machine has no memory cgroup of version 1 that could be written")
    with_peak(work.folder / "scene.tif")
    # Dask looks ten times a second and would often be first: here it is told not to.
    prologue = "export DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE=False"
    work.add_to_job(prologue=f"'{prologue}'", function="'model:greedy'")
    text = (work.folder / "job.toml").read_text()
    text = text.replace("function = 'model:greedy'\n", "")
    text = text.replace("[operator]\n", "[operator]\nmemory = 1\nfunction = 'model:greedy'\n")
    (work.folder / "job.toml").write_text(text.replace("step = 32", "step = 64"))
    said = work.finish(status=1)
    failed = work.records("failed")
    assert len(failed) == 1
    error = next(iter(failed.values()))["error"]
    assert error["type"] == "WorkerLost"
    assert "was killed by the kernel for want of memory" in error["message"]
    assert "400.0 MiB allowed per slot, 656.0 MiB for its whole job" in error["message"]
    assert "was killed by the kernel for want of memory" in said
    assert len(work.records()) == 63  # all others are done
    logs = "".join(log.read_text() for log in work.folder.glob("geopatch-logs/*.err"))
    assert "oom-kill event" in logs  # Slurm's own word


def with_peak(path: Path) -> None:
    """One cell of the scene that the operator cannot digest."""
    import rasterio

    with rasterio.open(path, "r+") as file:
        values = file.read(1)
        values[200, 200] = 2e6
        file.write(values, 1)
    assert np.isfinite(values).all()


# ---- the driver ----------------------------------------------------------------------------


def test_the_driver_is_killed(work: Work, slurm: Slurm, reference: dict[str, bytes]) -> None:
    """kill -9: nobody cancels its workers, so they have to notice."""
    run = work.start()
    work.wait_for_records(8, run)
    run.kill()
    run.wait()
    eventually("the workers end by themselves", lambda: not slurm.jobs(WORKER), 90)
    before = work.records()
    assert 8 <= len(before) < 64
    work.pace(0)
    work.finish()
    work.check(reference, before)


def test_the_driver_as_a_job_is_cancelled_and_submitted_again(
    work: Work, slurm: Slurm, reference: dict[str, bytes]
) -> None:
    driver = work.submit("driver.sbatch", "--mem=500", "job.toml")
    work.wait_for_records(8)
    slurm("scancel", driver)
    eventually("it ends", lambda: slurm.ended(driver))
    eventually("it took its workers with it", lambda: not slurm.jobs(), 30)
    assert slurm.state(driver) == "CANCELLED"
    assert slurm.told(driver, "Restarts") == "0"
    before = work.records()
    assert 8 <= len(before) < 64
    work.pace(0)
    driver = work.submit("driver.sbatch", "--mem=500", "--wait", "job.toml")
    assert slurm.state(driver) == "COMPLETED", work.said()
    work.check(reference, before)


def test_the_driver_goes_on_after_its_walltime(
    work: Work, slurm: Slurm, reference: dict[str, bytes]
) -> None:
    """Slurm warns it, it cancels its workers, goes back into the queue, and goes on."""
    work.pace(0.5)
    time_ = ("--mem=500", "--time=2", "--signal=B:USR1@80")
    driver = work.submit("driver.sbatch", *time_, "job.toml")
    eventually("it waits again", lambda: slurm.told(driver, "Restarts") == "1", 120)
    before = work.records()
    assert len(before) < 64
    eventually("its workers are gone", lambda: not slurm.jobs(WORKER))
    work.pace(0)

    def ended() -> bool:
        # Slurm lets a job that comes back wait for two minutes; a test need not.
        if slurm.state(driver) == "PENDING":
            slurm("scontrol", "update", f"jobid={driver}", "StartTime=now", check=False)
        return slurm.ended(driver)

    eventually("it ends", ended, 180)
    assert slurm.state(driver) == "COMPLETED", work.said()
    work.check(reference, before)


def test_an_array_of_shares(work: Work, slurm: Slurm, reference: dict[str, bytes]) -> None:
    """One task is cancelled in the middle; the second step computes what it left."""
    work.pace(0.1)
    size = ("--cpus-per-task=1", "--mem-per-cpu=1000")
    first = work.submit("array.sbatch", "--array=0-3", *size, "job.toml")
    work.wait_for_records(4)
    slurm("scancel", f"{first}_2")
    work.pace(0)
    eventually("the array ends", lambda: not slurm.jobs(), 120)
    before = work.records()
    assert len(before) < 64, "the task was cancelled too late"
    work.submit(
        "array.sbatch", f"--dependency=afterany:{first}", "--array=0-0", "--wait", *size, "job.toml"
    )
    work.check(reference, before)
