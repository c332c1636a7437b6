"""A connection to the scheduler that breaks while what ended is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from distributed.comm.core import CommClosedError

import geopatch_dask as gp
from geopatch_dask.errors import RunIncomplete
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.driving import connection as module
from geopatch_dask.execute.driving.drive import drive
from geopatch_dask.execute.driving.workers import OnCluster
from geopatch_dask.report.outcome import Outcome

pytestmark = pytest.mark.cluster


def nothing(plan: Any, ordinal: int, context: Any, policy: Any, attempt: int) -> Outcome:
    """A super-tile that is done at once."""
    del context, policy
    return Outcome(ordinal, plan.supertile(ordinal).id, "done", attempt=attempt)


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        Client(processes=False, threads_per_worker=2, dashboard_address="127.0.0.1:0") as found,
    ):
        yield found


@pytest.fixture
def plan(tmp_path: Path) -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular(4), gp.RegularStride(4), gp.Boxcar(), gp.Max())
    field = gp.ArrayField(np.zeros((16, 16), "uint8"))
    return gp.plan(field, patcher, np.positive, tmp_path / "out.zarr", outer=4, chunks=4)


def broken(client: Client, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Has the first fetches of a client fail; what is returned counts them."""
    failed: list[int] = []
    gather = client.gather

    def fetch(futures: Any, **options: Any) -> Any:
        if len(failed) < times:
            failed.append(len(futures))
            raise CommClosedError("in: <TCP (closed) ConnectionPool.gather>: Stream is closed")
        return gather(futures, **options)

    monkeypatch.setattr(client, "gather", fetch)
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    return failed


def test_a_fetch_that_fails_is_made_again(
    client: Client, plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = broken(client, monkeypatch, 2)
    seen: list[Outcome] = []
    workers = OnCluster(plan, Policy(), client, run=nothing)
    drive(range(plan.n_supertiles), workers, Policy(), seen.append)
    assert sorted(o.ordinal for o in seen) == list(range(16))
    assert {o.state for o in seen} == {"done"}
    assert len(failed) == 2


def test_a_scheduler_that_does_not_come_back_ends_the_run(
    client: Client, plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(client, monkeypatch, 10_000)
    with pytest.raises(RunIncomplete, match="connection to the Dask scheduler is lost"):
        drive(
            range(16),
            OnCluster(plan, Policy(), client, run=nothing),
            Policy(),
            lambda outcome: None,
        )
