"""The Slurm that ``tests/services/slurm.sh`` starts: asking it, and doing harm to it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Slurm", "eventually"]

HERE = Path(__file__).parent

#: States of a job that has not ended.
ALIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}


def eventually(what: str, found: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to be true; fails with ``what`` when it does not become so."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


@dataclass(frozen=True)
class Slurm:
    """A controller and two nodes, n1 and n2, of four cores and 4000 MB each.

    Parameters
    ----------
    conf : Path
    memory : bool
        Whether jobs are kept below their memory by the kernel.
    """

    conf: Path
    memory: bool

    @classmethod
    def running(cls) -> Slurm:
        """The one that is up; an error with the command that starts it where there is none."""
        temporary = os.environ.get("TMPDIR", "/tmp")
        base = os.environ.get("GEOPATCH_SERVICES", f"{temporary}/geopatch-services")
        file = Path(f"{base}-slurm") / "slurm.env"
        if not file.is_file():
            raise RuntimeError(f"there is no Slurm ({file}): bash {HERE / 'slurm.sh'} up")
        told = dict(line.split("=", 1) for line in file.read_text().splitlines())
        return cls(Path(told["conf"]), told["memory"] == "yes")

    @property
    def env(self) -> dict[str, str]:
        """What finds it."""
        return {"SLURM_CONF": str(self.conf)}

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run one of its commands."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def jobs(self, name: str = "") -> list[str]:
        """Ids of jobs that have not ended, by name."""
        lines = self("squeue", "--noheader", "--format=%A %j").splitlines()
        found = [line.split() for line in lines]
        return [job for job, called in found if not name or called == name]

    def running_jobs(self, name: str = "") -> list[str]:
        """Those of them that run."""
        lines = self("squeue", "--noheader", "--states=RUNNING", "--format=%A %j").splitlines()
        return [line.split()[0] for line in lines if not name or line.split()[1] == name]

    def told(self, job: str, word: str) -> str:
        """One word of what Slurm knows of a job, also for minutes after its end."""
        text = self("scontrol", "--oneliner", "show", "job", job)
        found = re.search(rf"(?:^| ){word}=(\S+)", text)
        assert found is not None, text
        return found[1]

    def state(self, job: str) -> str:
        return self.told(job, "JobState")

    def ended(self, job: str) -> bool:
        return self.state(job) not in ALIVE

    def cancel_all(self) -> None:
        """No job, and both nodes up, whatever a test did."""
        for job in self.jobs():
            self("scancel", job, check=False)
        eventually("all jobs end", lambda: not self.jobs())
        for node in ("n1", "n2"):
            state = self("sinfo", "--noheader", "--nodes", node, "--format=%T")
            if state not in ("idle", "mixed", "allocated", "completing"):
                self.start_node(node)

    def kill_node(self, node: str) -> None:
        """As if its power failed: everything on it is gone at once, and Slurm is told."""
        for process in psutil.process_iter(["name", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            ours = process.info["name"] == "slurmd" and f"-N {node}" in line
            step = process.info["name"] == "slurmstepd" and self._on(process, node)
            if ours or step or self._on(process, node):
                process.kill()
        self("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def start_node(self, node: str) -> None:
        """Bring it back."""
        subprocess.run(["bash", str(HERE / "slurm.sh"), "node", node], check=True, timeout=90)

    def _on(self, process: psutil.Process, node: str) -> bool:
        """Whether a process belongs to a job on a node."""
        try:
            environment = process.environ()
        except psutil.Error:
            return False
        if environment.get("SLURM_CONF") != str(self.conf):
            return False
        return node in (environment.get("SLURMD_NODENAME"), environment.get("SLURM_NODENAME"))
