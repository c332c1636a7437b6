"""The scripts of deploy/slurm and deploy/pbs, run by bash with a batch system's variables.

And docs/deploy/pbs.md, followed with a batch system that only speaks PBS.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import fake_pbs
import pytest

import geopatch_dask as gp

ROOT = Path(__file__).parents[1]
SLURM, PBS = ROOT / "deploy" / "slurm", ROOT / "deploy" / "pbs"

#: In place of geopatch: notes its arguments, then does what the test says.
STUB = """#!/bin/bash
printf '%s\\n' "$*" >>"$NOTES/geopatch"
trap 'echo 143 >>"$NOTES/ended"; exit 143' TERM
for i in $(seq "${TENTHS:-0}"); do /bin/sleep 0.1; done
exit "${STATUS:-0}"
"""
#: In place of a command of the batch system: notes its arguments, and the variables it is given.
NOTED = """#!/bin/bash
printf '%s\\n' "$*" >>"$NOTES/$(basename "$0")"
env >"$NOTES/$(basename "$0").env"
exit "${REFUSES:-0}"
"""


@dataclass
class Shell:
    """A folder with stubs, in which scripts are run."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        for name, text in {
            "geopatch": STUB,
            "scontrol": NOTED,
            "qsub": NOTED,
            "nproc": "#!/bin/bash\necho 2\n",
            "sleep": '#!/bin/bash\n[ "$1" = 30 ] || exec /bin/sleep "$1"\n',
        }.items():
            (self.folder / "bin" / name).write_text(text)
            (self.folder / "bin" / name).chmod(0o755)

    def start(self, script: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            cwd=self.folder,
            env={"PATH": path, "NOTES": str(self.folder), "HOME": str(self.folder), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: Path, *arguments: str, **env: str) -> tuple[int, str]:
        started = self.start(script, *arguments, **env)
        said, _ = started.communicate(timeout=20)
        return started.returncode, said

    def interrupt(self, script: Path, number: int, *arguments: str, **env: str) -> tuple[int, str]:
        """Send it a signal once geopatch runs."""
        started = self.start(script, *arguments, TENTHS="100", **env)
        until = time.monotonic() + 20
        while not self.noted("geopatch"):
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.1)  # until the stub listens
        started.send_signal(number)
        said, _ = started.communicate(timeout=20)
        return started.returncode, said

    def noted(self, command: str) -> list[str]:
        file = self.folder / command
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


JOB = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"}


class TestSlurmDriver:
    SCRIPT = SLURM / "driver.sbatch"

    @pytest.mark.parametrize("status", ["0", "1", "2"])
    def test_it_ends_as_geopatch_does(self, shell: Shell, status: str) -> None:
        code, said = shell.run(self.SCRIPT, "job.toml", "--quiet", STATUS=status, **JOB)
        assert code == int(status), said
        assert shell.noted("geopatch") == ["run job.toml --quiet"]
        assert not shell.noted("scontrol")

    def test_before_its_walltime_ends_it_goes_back_into_the_queue(self, shell: Shell) -> None:
        code, said = shell.interrupt(self.SCRIPT, signal.SIGUSR1, "job.toml", **JOB)
        assert shell.noted("ended") == ["143"]
        assert shell.noted("scontrol") == ["requeue 17"]
        assert "the walltime ends: back to the queue" in said
        assert code == 143

    def test_who_cancels_it_does_not_get_it_back(self, shell: Shell) -> None:
        code, said = shell.interrupt(self.SCRIPT, signal.SIGTERM, "job.toml", "--quiet", **JOB)
        assert code == 143
        # Slurm's warning before a preemption is the same signal: the log has to serve both.
        assert "SIGTERM, from scancel or from Slurm" in said
        assert "go on with: sbatch driver.sbatch job.toml --quiet" in said
        assert shell.noted("ended") == ["143"]
        assert not shell.noted("scontrol")

    def test_it_does_not_come_back_for_ever(self, shell: Shell) -> None:
        job = JOB | {"MOST_RESTARTS": "2"}
        code, said = shell.interrupt(self.SCRIPT, signal.SIGUSR1, "job.toml", **job)
        assert code == 1
        assert "started 3 times and not done" in said
        assert not shell.noted("scontrol")

    def test_a_slurm_that_does_not_take_it_back(self, shell: Shell) -> None:
        job = JOB | {"REFUSES": "1"}
        code, said = shell.interrupt(self.SCRIPT, signal.SIGUSR1, "job.toml", "--quiet", **job)
        assert code == 1
        assert "go on with: sbatch driver.sbatch job.toml --quiet" in said

    def test_without_a_job(self, shell: Shell) -> None:
        assert shell.run(self.SCRIPT, **JOB)[0] == 2
        assert not shell.noted("geopatch")


class TestSlurmArray:
    SCRIPT = SLURM / "array.sbatch"
    TASK: ClassVar = {
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MAX": "15",
        "SLURM_ARRAY_JOB_ID": "20",
        "SLURM_CPUS_PER_TASK": "4",
    }

    @pytest.mark.parametrize(
        ("env", "told"),
        [
            # The driver tries the operator: it has as much as a worker.
            ({"SLURM_MEM_PER_CPU": "4096"}, "--workers 4 --memory-limit 3277MiB"),
            ({"SLURM_MEM_PER_NODE": "10240"}, "--workers 4 --memory-limit 2048MiB"),
            ({"SLURM_MEM_PER_NODE": "2048"}, "--workers 4 --memory-limit 384MiB"),
            ({"SLURM_MEM_PER_NODE": "8704", "OWN": "512"}, "--workers 4 --memory-limit 2048MiB"),
            (
                {"SLURM_MEM_PER_NODE": "8704", "CUDA_VISIBLE_DEVICES": "0"},
                "--workers 1 --memory-limit 4352MiB",
            ),
            (
                {"SLURM_MEM_PER_NODE": "8704", "SLURM_GPUS_ON_NODE": "1"},
                "--workers 1 --memory-limit 4352MiB",
            ),
            *(  # what a task without a GPU may be told
                (
                    {"SLURM_MEM_PER_NODE": "10240", "CUDA_VISIBLE_DEVICES": none},
                    "--workers 4 --memory-limit 2048MiB",
                )
                for none in ("", "NoDevFiles", "-1")
            ),
        ],
    )
    def test_a_task_computes_its_share_with_what_it_has(
        self, shell: Shell, env: dict[str, str], told: str
    ) -> None:
        code, said = shell.run(self.SCRIPT, "job.toml", **self.TASK, **env)
        assert code == 0, said
        assert shell.noted("geopatch") == [f"run job.toml --share 3/16 --cluster local {told}"]

    def test_before_its_walltime_ends_the_task_goes_back_into_the_queue(self, shell: Shell) -> None:
        job = self.TASK | {"SLURM_MEM_PER_CPU": "4096"}
        shell.interrupt(self.SCRIPT, signal.SIGUSR1, "job.toml", **job)
        assert shell.noted("scontrol") == ["requeue 20_3"]

    def test_a_task_does_not_come_back_for_ever(self, shell: Shell) -> None:
        job = self.TASK | {"SLURM_MEM_PER_CPU": "4096", "SLURM_RESTART_COUNT": "2"}
        code, said = shell.interrupt(
            self.SCRIPT, signal.SIGUSR1, "job.toml", MOST_RESTARTS="2", **job
        )
        assert code == 1
        assert "started 3 times and its share is not done" in said
        assert not shell.noted("scontrol")

    def test_what_is_too_little_is_told(self, shell: Shell) -> None:
        job = self.TASK | {"SLURM_MEM_PER_CPU": "100"}
        code, said = shell.run(self.SCRIPT, "job.toml", **job)
        assert code == 2
        assert "400 MiB are too few for 4 workers beside 512 MiB" in said
        code, said = shell.run(self.SCRIPT, "job.toml", SLURM_CPUS_PER_TASK="4")
        assert code == 2
        assert "this is no array" in said


class TestPbs:
    DRIVER, ARRAY = PBS / "driver.pbs", PBS / "array.pbs"

    def test_before_its_walltime_ends_the_driver_submits_itself(self, shell: Shell) -> None:
        job = "job.toml --chunks 256,256"  # qsub -v would end JOB at the comma
        env = {"JOB": job, "PBS_JOBID": "5.host", "PBS_O_WORKDIR": str(shell.folder)}
        code, said = shell.run(self.DRIVER, TENTHS="100", GEOPATCH_SECONDS="0.5", **env)
        assert code == 0, said
        assert shell.noted("geopatch") == [f"run {job}"]
        assert shell.noted("ended") == ["143"]
        names = "JOB,SCRIPT,GEOPATCH_SECONDS,GEOPATCH_MORE"
        assert shell.noted("qsub") == [f"-W depend=afterany:5.host -v {names} driver.pbs"]
        variables = {f"JOB={job}", "SCRIPT=driver.pbs", "GEOPATCH_SECONDS=0.5", "GEOPATCH_MORE=49"}
        assert variables <= set(shell.noted("qsub.env"))

    def test_not_for_ever(self, shell: Shell) -> None:
        env = {"JOB": "job.toml", "GEOPATCH_MORE": "0"}
        code, said = shell.run(self.DRIVER, TENTHS="100", GEOPATCH_SECONDS="0.5", **env)
        assert code == 1
        assert "submitted again too often" in said
        assert not shell.noted("qsub")

    def test_who_cancels_it_does_not_get_it_back(self, shell: Shell) -> None:
        code, _ = shell.interrupt(self.DRIVER, signal.SIGTERM, JOB="job.toml")
        assert code == 143
        assert not shell.noted("qsub")

    @pytest.mark.parametrize("status", ["0", "1"])
    def test_it_ends_as_geopatch_does_and_leaves_no_clock(self, shell: Shell, status: str) -> None:
        began = time.monotonic()
        env = {"JOB": "job.toml", "STATUS": status}
        assert shell.run(self.DRIVER, GEOPATCH_SECONDS="15", **env)[0] == int(status)
        assert time.monotonic() - began < 10  # nobody holds its output

    @pytest.mark.parametrize(
        ("env", "share", "workers", "memory"),
        [
            ({"PBS_ARRAY_INDEX": "2", "NCPUS": "4"}, 2, 4, 3277),
            ({"PBS_ARRAY_INDEX": "1", "NCPUS": "1", "MEMORY": "4096"}, 1, 1, 2048),
            ({"PBS_ARRAY_INDEX": "1", "NCPUS": "1", "MEMORY": "900"}, 1, 1, 388),
            ({"PBS_ARRAY_INDEX": "1", "NCPUS": "4", "OWN": "512"}, 1, 4, 3968),
            ({"NCPUS": "8", "CUDA_VISIBLE_DEVICES": "1"}, 0, 1, 8192),
            ({"NCPUS": "4", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0, 4, 3277),
            ({}, 0, 2, 5461),  # what nproc says
        ],
    )
    def test_a_task_computes_its_share(
        self, shell: Shell, env: dict[str, str], share: int, workers: int, memory: int
    ) -> None:
        code, said = shell.run(self.ARRAY, JOB="job.toml", SHARES="8", **env)
        assert code == 0, said
        told = f"--workers {workers} --memory-limit {memory}MiB"
        assert shell.noted("geopatch") == [f"run job.toml --share {share}/8 --cluster local {told}"]

    @pytest.mark.parametrize(
        ("script", "share"), [(DRIVER, ""), (ARRAY, " --share 3/8 --cluster local ")]
    )
    def test_commas_reach_a_job_whose_variables_are_submitted_by_name(
        self, shell: Shell, script: Path, share: str
    ) -> None:
        """As the page submits it, with a qsub that splits ``-v`` at commas as PBS does."""
        env = fake_pbs.install(shell.folder / "pbs", shell.folder / "state")
        path = os.pathsep.join([str(shell.folder / "bin"), env["PATH"]])
        (shell.folder / "bin" / "qsub").unlink()
        env |= {"PATH": path, "NOTES": str(shell.folder), "SHARES": "8"}
        env |= {"JOB": "job.toml --chunks 256,256"}
        task = ["-J", "3-3"] if share else []
        subprocess.run(
            ["qsub", "-W", "block=true", *task, "-v", "JOB,SHARES", str(script)],
            cwd=shell.folder,
            env=os.environ | env,
            check=True,
            timeout=20,
        )
        (told,) = shell.noted("geopatch")
        assert told.startswith(f"run job.toml --chunks 256,256{share}")


@pytest.mark.parametrize(
    "script", [*SLURM.glob("*.sbatch"), *PBS.glob("*.pbs")], ids=lambda p: p.name
)
def test_what_a_script_asks_for_agrees_with_what_it_says(script: Path) -> None:
    text = script.read_text("utf-8")
    if "GEOPATCH_SECONDS:-" in text:
        hours = int(text.split("walltime=")[1].split(":")[0])
        assert f"GEOPATCH_SECONDS:-{hours * 3600 - 600}" in text
    if "MEMORY:-" in text:
        gigabytes = int(text.split(":mem=")[1].split("gb")[0])
        assert f"MEMORY:-{gigabytes * 1024}" in text
    assert ("#SBATCH --signal=B:USR1@120" in text) == (script.suffix == ".sbatch")


@pytest.mark.parametrize("page", ["slurm.md", "pbs.md"])
def test_a_page_installs_what_its_code_imports(page: str) -> None:
    text = (ROOT / "docs" / "deploy" / page).read_text("utf-8")
    pinned = r'pip install -c "\$REPO/constraints.txt" "\$REPO\[(.*)\]"'
    (extras,) = re.findall(pinned, text)
    needed = {"hpc"} | ({"plot"} if "import matplotlib" in text else set())
    assert set(extras.split(",")) == needed


@pytest.mark.slow
def test_the_page_about_pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/deploy/pbs.md, every block of it."""
    pytest.importorskip("dask_jobqueue", reason="batch systems are an extra: hpc")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import blocks

    home, folder, state = tmp_path / "home", tmp_path / "work", tmp_path / "pbs"
    for made in (home, folder):
        made.mkdir()
    env = fake_pbs.install(tmp_path / "bin", state) | {"HOME": str(home), "REPO": str(ROOT)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    blocks.run_page(ROOT / "docs" / "deploy" / "pbs.md", folder, env)
    for name in ("roots.zarr", "by-driver.zarr", "by-array.zarr"):
        assert gp.status(folder / name).complete
    scripts = [(state / str(job) / "script").read_text() for job in fake_pbs.jobs(state)]
    workers = [text for text in scripts if "distributed.cli.dask_worker" in text]
    assert len(workers) == 2
    assert all("#PBS -l select=1:ncpus=1:mem=1280mb" in text for text in workers)
    assert all(fake_pbs.ended(state, job) for job in fake_pbs.jobs(state))
