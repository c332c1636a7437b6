"""Something is killed in the middle of a job on a real object store; then the same command again.

Same bytes as an undisturbed local run, no record without its data, nothing computed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.buckets import Bucket
from integration.killing import (
    TARGET,
    DaskProcesses,
    check_kept,
    check_same,
    check_trusted,
    records,
    start,
    wait_for_records,
)
from integration.s3_job import PAUSE, job

import geopatch_dask as gp

pytestmark = pytest.mark.integration

#: How long a client waits for a scheduler that is gone.
IMPATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3 s"}
SIZE = 300  # cells: 5 x 5 super-tiles of 64, each of some 9 patches


class Killed:
    """A job, its bucket, and the local run that it must equal."""

    def __init__(
        self, bucket: Bucket, cog: Path, folder: Path, shards: Any, expected: Callable[..., Path]
    ) -> None:
        self.bucket, self.folder = bucket, folder
        self.spec = {
            "field": str(cog),
            "target": bucket.url(TARGET),
            "options": bucket.options,
            "shards": shards,
        }
        self.expected = expected(self.spec)
        self.slow = {**bucket.env, PAUSE: "0.02"}
        self.before: dict[str, tuple[str, str, int]] = {}

    def look(self) -> None:
        """What was left is to be trusted, and to be kept."""
        check_trusted(self.bucket, self.expected)
        self.before = records(self.bucket)

    def finish(self, *, command: bool = False) -> None:
        """Again: the same command, or, which is sooner there, the same plan in this process."""
        if command:
            start(self.spec, self.folder, self.bucket.env).finish()
        else:
            job(self.spec).run("threads")
        check_kept(self.before, self.bucket)
        check_same(self.bucket, self.expected)
        check_trusted(self.bucket, self.expected)


@pytest.fixture
def killed(
    s3: Bucket,
    local_cog: Callable[[int], Path],
    tmp_path: Path,
    local_run: Callable[..., Path],
) -> Callable[[Any], Killed]:
    return lambda shards: Killed(s3, local_cog(SIZE), tmp_path, shards, local_run)


@pytest.mark.parametrize("shards", [None, [64, 64]], ids=["unsharded", "sharded"])
def test_the_client_is_killed(shards: Any, killed: Callable[[Any], Killed]) -> None:
    case = killed(shards)
    running = start(case.spec, case.folder, case.slow)
    wait_for_records(case.bucket, 4, running)
    running.kill(later=0.017)
    case.look()
    assert 4 <= len(case.before) < 25
    case.finish(command=True)


def test_the_scheduler_is_killed(killed: Callable[[Any], Killed]) -> None:
    """The client notices it, and says so; another run needs nothing of that cluster."""
    case = killed(None)
    with DaskProcesses(case.folder, case.slow) as dask:
        spec = {**case.spec, "scheduler": dask.address}
        running = start(spec, case.folder, {**case.slow, **IMPATIENT})
        wait_for_records(case.bucket, 4, running)
        dask.kill_scheduler()
        assert running.wait() == 1
        assert "RunIncomplete: the connection to the Dask scheduler is lost" in running.said()
    case.look()
    assert 4 <= len(case.before) < 25
    case.finish()


def test_the_gateway_is_killed_and_comes_back_after_3_seconds(
    killed: Callable[[Any], Killed],
) -> None:
    """The job waits for it, and ends as if nothing had happened."""
    case = killed(None)
    running = start(case.spec, case.folder, case.slow)
    wait_for_records(case.bucket, 4, running)
    before = records(case.bucket)
    case.bucket.ceph.kill_gateway()
    time.sleep(3)
    assert running.process.poll() is None
    case.bucket.ceph.start_gateway()
    running.finish()
    check_kept(before, case.bucket)
    check_same(case.bucket, case.expected)
    check_trusted(case.bucket, case.expected)
    status = gp.status(case.bucket.place(TARGET))
    assert status.complete
    assert status.totals()["retries"] > 0
