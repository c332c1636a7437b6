"""Batch jobs that are looked after: replaced when they are gone, given up when they never begin.

The batch system is a stub, or one that only speaks PBS and starts jobs on this machine; the real
Slurm is in tests/integration/test_slurm.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_pbs
import pytest

import geopatch_dask as gp

batch = pytest.importorskip("geopatch_dask.clusters.batch", reason="an extra: hpc")
pytestmark = pytest.mark.cluster

#: Commands of each kind; a batch system that accepts jobs and forgets them at once.
FORGETFUL = {
    "slurm": {
        "sbatch": "echo Submitted batch job 7",
        "squeue": "true",
        "scontrol": 'echo "JobId=$4 JobState=FAILED Reason=NonZeroExitCode"',
        "scancel": "true",
    },
    "pbs": {
        "qsub": "echo 7.host",
        "qselect": "true",
        "qstat": "echo '    Exit_status = 127'",
        "qdel": "true",
    },
}
SUBMIT = {"slurm": "sbatch", "pbs": "qsub"}


def eventually(true: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "LOOK", 0.1)


@pytest.fixture(params=["slurm", "pbs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, **other: str) -> None:
    """Stubs of a batch system, and nothing else by that name."""
    place = folder / "bin"
    place.mkdir()
    for name, text in {**FORGETFUL[kind], **other}.items():
        (place / name).write_text(
            f'#!/bin/bash\necho "$(basename "$0") $*" >>"{folder}/said"\n{text}\n'
        )
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(place), os.environ["PATH"]]))


def test_a_job_that_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = {SUBMIT[kind]: "echo 'error: Invalid account' >&2; exit 1"}
    commands(tmp_path, monkeypatch, kind, **refuse)
    with pytest.raises(
        gp.OptionError, match=f"{SUBMIT[kind]} refuses a job: error: Invalid account"
    ):
        gp.cluster(kind, workers=1, interface="lo")


def test_jobs_that_end_before_they_are_workers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, monkeypatch, kind)
    with gp.cluster(kind, workers=2, interface="lo") as client:
        eventually(lambda: client.cluster.failure)
        failure = client.cluster.failure
        time.sleep(0.5)
        plan = gp.plan(
            gp.ArrayField([[1.0, 2.0], [3.0, 4.0]]),
            gp.Patcher(gp.Rectangular(1), gp.RegularStride(1)),
            abs,
            tmp_path / "out.zarr",
            memory_limit="1GiB",
        )
        with pytest.raises(gp.RunIncomplete, match="the cluster has failed: 3 batch jobs in a row"):
            plan.run(client)
    how = {"slurm": "FAILED", "pbs": "Exit_status = 127"}[kind]
    assert failure.startswith(
        f"3 batch jobs in a row ended before they were workers; the last one, 7: {how}; "
        "see what they wrote in geopatch-logs"
    )
    said = (tmp_path / "said").read_text().splitlines()
    # Two at first, and each time one or both were gone as many again, up to the third that died.
    assert 3 <= sum(line.startswith(SUBMIT[kind]) for line in said) <= 4


@pytest.mark.slow
def test_adapting_does_not_try_for_ever_either(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, monkeypatch, kind)
    with gp.cluster(kind, adapt=(0, 2), interface="lo") as client:
        future = client.submit(abs, -1)  # work, without which there would be no job
        eventually(lambda: client.cluster.failure)
        count = len((tmp_path / "said").read_text().splitlines())
        time.sleep(1.5)  # adapting would look again
        assert len((tmp_path / "said").read_text().splitlines()) == count
        future.cancel()


def test_a_batch_system_that_does_not_answer_is_believed_to_have_the_jobs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = {"slurm": "squeue", "pbs": "qselect"}[kind]
    commands(tmp_path, monkeypatch, kind, **{listing: "exit 1"})
    with gp.cluster(kind, workers=2, interface="lo") as client:
        asked = lambda: (tmp_path / "said").read_text().count(listing)  # noqa: E731
        eventually(lambda: asked() >= 5)
        assert client.cluster.failure is None
    said = (tmp_path / "said").read_text().splitlines()
    assert sum(line.startswith(SUBMIT[kind]) for line in said) == 2


@pytest.mark.slow
def test_a_job_that_is_gone_is_replaced_by_one_of_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real workers: two in a job, which come and go while the queue is being asked."""
    answer = batch._answer

    async def slow(*command: str) -> str | None:
        await asyncio.sleep(2.0)
        return await answer(*command)

    monkeypatch.setattr(batch, "_answer", slow)
    state = tmp_path / "pbs"
    for name, value in fake_pbs.install(tmp_path / "bin", state).items():
        monkeypatch.setenv(name, value)

    def names() -> set[str]:
        return {w["name"] for w in client.scheduler_info(n_workers=-1)["workers"].values()}

    python = f"{sys.executable} -B"
    options = {"processes": 2, "memory": "300MiB", "interface": "lo", "python": python}
    with gp.cluster("pbs", workers=2, directives="-V", **options) as client:
        eventually(lambda: names() == {"geopatch-0-0", "geopatch-0-1"})
        fake_pbs.qdel(state, ["1"])
        eventually(lambda: not names())
        time.sleep(3.0)
        assert fake_pbs.jobs(state) == [1]  # nothing to do: nobody is called
        future = client.submit(os.getpid)
        eventually(lambda: names() == {"geopatch-1-0", "geopatch-1-1"})
        assert future.result(timeout=30) > 0
        events = client.get_events(batch.TOPIC)
        assert [(e["name"], e["job"]) for _, e in events] == [("geopatch-0", "1")]
    eventually(lambda: all(fake_pbs.ended(state, job) for job in fake_pbs.jobs(state)))
    assert fake_pbs.jobs(state) == [1, 2]
