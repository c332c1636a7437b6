"""Workers are killed at random moments, each in turn, and by what they compute; on a real store.

One cluster serves all of these tests: its nannies start a new worker for every one that dies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from integration.buckets import Bucket, environment
from integration.killing import (
    TARGET,
    DaskProcesses,
    check_kept,
    check_same,
    check_trusted,
    records,
)
from integration.s3_job import PAUSE, job
from services.ceph import Ceph

pytestmark = pytest.mark.integration

SIZE = 200  # cells: 4 x 4 super-tiles of 64, each of some 9 patches
WORKERS = 2
#: A worker is killed when so many super-tiles are done at most, of 16, and up to so many seconds
#: later: about what one takes, so that the others are still to be computed, on any machine.
LATEST, LATER = 10, 0.2

Found = dict[str, tuple[str, str, int]]
LocalRun = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def dask(store: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    env = {**environment(store, store.endpoint), PAUSE: "0.02"}
    with DaskProcesses(tmp_path_factory.mktemp("dask"), env, WORKERS) as processes:
        yield processes


@pytest.fixture(scope="module")
def cluster(dask: DaskProcesses) -> Iterator[Client]:
    with Client(dask.address, timeout=60) as client:
        yield client


class Case:
    """A job on a cluster whose workers are killed while it runs."""

    def __init__(
        self, s3: Bucket, field: Path, dask: DaskProcesses, cluster: Client, local_run: LocalRun
    ) -> None:
        self.s3, self.dask, self.cluster, self.local_run = s3, dask, cluster, local_run
        self.spec: dict[str, Any] = {"field": str(field), "target": s3.url(TARGET)}
        self.spec["options"] = s3.options

    def run(self, kill: Callable[[], list[Found]], tiles: int = 16) -> list[Found]:
        """Run the job while ``kill`` is at work; what had a record when it killed is kept."""
        self.cluster.wait_for_workers(WORKERS, timeout=60)
        plan = job(self.spec)
        with ThreadPoolExecutor(1) as pool:
            killing = pool.submit(kill)
            report = plan.run(self.cluster)
            kept = killing.result(60)
        for found in kept:
            check_kept(found, self.s3)
        assert report.complete
        assert report.summary.done == tiles
        expected = self.local_run(self.spec)
        check_same(self.s3, expected)
        check_trusted(self.s3, expected)
        assert len(records(self.s3)) == tiles
        return kept

    def wait(self, count: int) -> None:
        """Until so many super-tiles are done."""
        deadline = time.monotonic() + 60
        while len(records(self.s3)) < count:
            assert time.monotonic() < deadline, f"no {count} records"
            time.sleep(0.02)


@pytest.fixture
def case(
    s3: Bucket,
    local_cog: Callable[[int], Path],
    dask: DaskProcesses,
    cluster: Client,
    local_run: LocalRun,
) -> Case:
    return Case(s3, local_cog(SIZE), dask, cluster, local_run)


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_is_killed_at_a_random_moment(seed: int, case: Case) -> None:
    dice = random.Random(seed)
    victim, count, later = dice.randrange(WORKERS), dice.randint(0, LATEST), dice.uniform(0, LATER)
    case.spec["shards"] = dice.choice([None, [64, 64]])
    old = case.dask.worker_pid(victim)

    def kill() -> list[Found]:
        case.wait(count)
        time.sleep(later)
        case.dask.kill_worker(victim)
        return [records(case.s3)]

    kept = case.run(kill)
    assert count <= len(kept[0]) < 16, "killed when all was done"
    assert case.dask.worker_pid(victim) != old


def test_every_worker_is_killed_in_turn(case: Case) -> None:
    """Each at another time, while the others go on, in one run."""
    case.spec["outer"] = [32, 32]

    def kill() -> list[Found]:
        kept = []
        for victim in range(WORKERS):
            case.cluster.wait_for_workers(WORKERS, timeout=60)
            case.wait(len(records(case.s3)) + 2)
            case.dask.kill_worker(victim)
            kept.append(records(case.s3))
        return kept

    kept = case.run(kill, 49)
    assert [2 <= len(found) < 49 for found in kept] == [True] * WORKERS


def test_all_workers_are_killed_at_once(case: Case) -> None:
    """The plan itself is lost with them, and is sent again."""

    def kill() -> list[Found]:
        case.wait(4)
        for victim in range(WORKERS):
            case.dask.kill_worker(victim)
        return [records(case.s3)]

    kept = case.run(kill)
    assert 4 <= len(kept[0]) < 16
