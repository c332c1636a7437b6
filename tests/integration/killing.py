"""Jobs that are killed, and what must be true of what they leave.

::

    job = start(spec, folder, env)       a process of its own, with its cluster
    wait_for_records(bucket, 5, job)     it is in the middle
    job.kill()                           SIGKILL, workers included
    ...
    check_trusted(bucket, reference)     no record without its data
    run it again; check_same(...)        the bytes of an undisturbed run, here
    check_kept(before, bucket)           nothing with a record was computed again

The reference is the same job, run on a local disk with threads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import zarr
from integration.buckets import Bucket
from integration.s3_job import job
from services.netns import Network

__all__ = [
    "TARGET",
    "DaskProcesses",
    "JobProcess",
    "check_kept",
    "check_same",
    "check_trusted",
    "records",
    "reference",
    "start",
    "wait_for_records",
]

HERE = Path(__file__).parent

#: Where in the bucket a job writes.
TARGET = "out.zarr"

#: Longest wait for anything, seconds.
_PATIENCE = 120.0


@dataclass
class JobProcess:
    """A job in a process of its own.

    Parameters
    ----------
    process : subprocess.Popen
    log : Path
        What it writes.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, timeout: float = _PATIENCE) -> int:
        """Its exit status; fails when it does not end."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the job did not end in {timeout} s:\n{self.said()}") from None

    def finish(self, timeout: float = _PATIENCE) -> None:
        """Wait for it to end well."""
        assert self.wait(timeout) == 0, self.said()

    def workers(self) -> list[int]:
        """Processes below it that are Dask workers."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]

    def kill(self, later: float = 0.0) -> None:
        """SIGKILL after some seconds; returns when its workers, which notice it, are gone too."""
        time.sleep(later)
        if self.process.poll() is not None:
            return
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, f"{alive} outlive the client that started them"

    def said(self) -> str:
        return self.log.read_text()[-6000:]


def start(
    spec: Mapping[str, Any],
    folder: Path,
    env: Mapping[str, str],
    network: tuple[Network, int] | None = None,
) -> JobProcess:
    """Start ``s3_job.py``.

    Parameters
    ----------
    spec : mapping
        As for :func:`integration.s3_job.job`, and ``scheduler``.
    folder : Path
        For its files.
    env : mapping of str
        Added to the environment of this process.
    network : tuple of Network and int
        A host to run it on.
    """
    number = len(list(folder.glob("job-*.json")))
    written = folder / f"job-{number}.json"
    written.write_text(json.dumps(dict(spec)))
    log = folder / f"job-{number}.log"
    command = [sys.executable, str(HERE / "s3_job.py"), str(written)]
    return JobProcess(_started(command, log, env, network), log)


def _started(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    network: tuple[Network, int] | None,
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        options: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT}
        options["cwd"] = log.parent  # what is imported is decided by sys.path alone
        path = os.pathsep.join(filter(None, sys.path))
        environment = {"PYTHONPATH": path, **env}
        if network is not None:
            return network[0].popen(network[1], command, environment, **options)
        return subprocess.Popen(command, env={**os.environ, **environment}, **options)


@dataclass
class DaskProcesses:
    """A scheduler and workers, each a process that can be killed by itself; a context manager.

    Parameters
    ----------
    folder : Path
        For their files.
    env : mapping of str
        Added to the environment of this process.
    workers : int
        Single-threaded, each under a nanny that starts it again when it dies.
    network : Network or None
        The scheduler runs on host 0, worker i on host ``1 + i % 2``.
    """

    folder: Path
    env: Mapping[str, str]
    workers: int = 2
    network: Network | None = None
    scheduler: subprocess.Popen[bytes] | None = None
    nannies: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> DaskProcesses:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in (*self.nannies, self.scheduler):
            if process is not None:
                _end(process)
        self.nannies.clear()
        self.scheduler = None

    @property
    def address(self) -> str:
        """Of the scheduler."""
        found: str = json.loads(self._file.read_text())["address"]
        return found

    def worker_pid(self, number: int) -> int:
        """The process in which tasks of a worker run; another one after each death.

        Waits for it, and for its interpreter to be up, if the last one has just died.
        """
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            nanny = psutil.Process(self.nannies[number].pid)
            for child in nanny.children(recursive=True):
                if "spawn_main" in " ".join(child.cmdline()):
                    return child.pid
            time.sleep(0.05)
        raise AssertionError(f"worker {number} did not come back")

    def kill_worker(self, number: int) -> None:
        """SIGKILL; its nanny starts another."""
        pid = self.worker_pid(number)
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)

    def kill_scheduler(self) -> None:
        """SIGKILL; nobody starts another."""
        assert self.scheduler is not None
        _end(self.scheduler)

    @property
    def _file(self) -> Path:
        return self.folder / "scheduler.json"

    def _start(self) -> None:
        self._file.unlink(missing_ok=True)
        hosts = ["127.0.0.1"] * 3 if self.network is None else self.network.addresses
        options = ["--port", "0", "--no-dashboard", "--scheduler-file", str(self._file)]
        self.scheduler = self._process(0, "scheduler", ["--host", hosts[0], *options])
        deadline = time.monotonic() + _PATIENCE
        while not self._is_written():
            assert self.scheduler.poll() is None, (self.folder / "dask.log").read_text()
            assert time.monotonic() < deadline, "no scheduler"
            time.sleep(0.02)
        options = ["--nworkers", "1", "--nthreads", "1", "--memory-limit", "1GiB", "--no-dashboard"]
        options += ["--local-directory", str(self.folder / "scratch")]
        for i in range(self.workers):
            at = 1 + i % 2
            arguments = [self.address, "--host", hosts[at], *options]
            self.nannies.append(self._process(at, "worker", arguments))

    def _is_written(self) -> bool:
        """Whether the scheduler has said where it is, all of it."""
        try:
            return bool(self.address)
        except (FileNotFoundError, json.JSONDecodeError):
            return False

    def _process(self, host: int, kind: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_" + kind, *arguments]
        network = None if self.network is None else (self.network, host)
        return _started(command, self.folder / "dask.log", self.env, network)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all below it."""
    if process.poll() is not None:
        return
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in below:
        if child.is_running():
            child.kill()
    psutil.wait_procs(below, timeout=30)


def records(bucket: Bucket) -> dict[str, tuple[str, str, int]]:
    """ETag, time and size of every record, by the name of its super-tile."""
    found = bucket.objects(f"{TARGET}.geopatch/")
    return {Path(key).stem: entry for key, entry in found.items() if "/tiles/" in key}


def wait_for_records(bucket: Bucket, count: int, running: JobProcess) -> None:
    """Until so many super-tiles are done, while the job is still running."""
    deadline = time.monotonic() + _PATIENCE
    while len(records(bucket)) < count:
        assert running.process.poll() is None, f"the job ended too early:\n{running.said()}"
        assert time.monotonic() < deadline, f"no {count} records:\n{running.said()}"
        time.sleep(0.01)


def reference(spec: Mapping[str, Any], folder: Path) -> Path:
    """The same job, undisturbed, on the local disk: where it wrote."""
    path = folder / "reference.zarr"
    job({**spec, "target": str(path), "options": None}).run("threads")
    return path


def check_same(bucket: Bucket, expected: Path, but: str = "") -> None:
    """Every object of the target is, byte for byte, the file that the reference has there.

    ``but`` names one that must be there, and may differ.
    """
    found = _digests(bucket, f"{TARGET}/")
    files = {
        path.relative_to(expected).as_posix(): _md5(path.read_bytes())
        for path in expected.rglob("*")
        if path.is_file()
    }
    assert sorted(found) == sorted(files)
    differing = [name for name in files if found[name] != files[name] and name != but]
    assert not differing, f"{len(differing)} of {len(files)} objects differ: {differing[:5]}"


def check_trusted(bucket: Bucket, expected: Path) -> None:
    """What a record vouches for is there: all objects of its box, with the right bytes."""
    array: Any = zarr.open_group(expected, mode="r")["data"]
    unit = array.shards or array.chunks
    found = _digests(bucket, f"{TARGET}/")
    for key in bucket.objects(f"{TARGET}.geopatch/"):
        if "/tiles/" not in key:
            continue
        record = json.loads(bucket.read(key))
        start_, stop = record["box"]
        spans = [range(a // n, -(-b // n)) for a, b, n in zip(start_, stop, unit, strict=True)]
        for at in itertools.product(*spans):
            name = "/".join(["data/c", *map(str, at)])
            path = expected / name
            assert path.exists() == (name in found), (
                f"{record['id']} is recorded, {name} is not as it should be"
            )
            if path.exists():
                assert found[name] == _md5(path.read_bytes()), f"{record['id']}: {name} differs"


def check_kept(before: Mapping[str, tuple[str, str, int]], bucket: Bucket) -> None:
    """Records that were there are there, untouched: nothing was computed twice."""
    after = records(bucket)
    assert {name: after.get(name) for name in before} == dict(before)


def _digests(bucket: Bucket, prefix: str) -> dict[str, str]:
    """MD5 of every object, which is its ETag unless it came in parts."""
    return {
        key.removeprefix(prefix): _md5(bucket.read(key)) if "-" in etag else etag
        for key, (etag, _, _) in bucket.objects(prefix).items()
    }


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
