"""Ending a worker that hangs: never the process of the user, nor one that nobody starts again."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import geopatch_dask as gp
from geopatch_dask.execute.attempt import watchdog


@dataclass
class Worker:
    """As far as the watchdog looks at one."""

    address: str


@pytest.mark.parametrize(
    ("address", "ends"), [("tcp://10.0.0.1:1000", True), ("inproc://10.0.0.1/1/4", False)]
)
def test_the_process_of_a_scheduler_is_not_ended(
    address: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    exits: list[int] = []
    over = threading.Event()

    def end(status: int) -> None:
        exits.append(status)
        over.set()

    monkeypatch.setattr(watchdog, "get_worker", lambda: Worker(address))
    monkeypatch.setattr(watchdog, "LAST_WORDS", 0.01)
    monkeypatch.setattr(os, "_exit", end)
    with watchdog.ended_after(0.01, lambda worker, where: told.append(where)):
        assert over.wait(5 if ends else 0.3) == ends
    assert exits == [1] * ends
    assert "over.wait" in told[0]


@pytest.mark.cluster
def test_a_time_limit_needs_workers_that_are_started_again(tmp_path: Path) -> None:
    patcher = gp.Patcher(gp.Rectangular(4), gp.RegularStride(4))
    field = gp.ArrayField(np.zeros((16, 16)))
    operator: Any = gp.Operator(lambda x: x, version="1")
    plan = gp.plan(field, patcher, operator, tmp_path / "out.zarr", outer=8, chunks=8)
    limited = gp.Policy(timeout="1 min")
    with Client(processes=False, dashboard_address=None, set_as_default=False) as client:
        for call in (plan.run, plan.submit):
            with pytest.raises(gp.OptionError, match="1 of 1 workers have no nanny to start"):
                call(client, policy=limited)
        assert not list(tmp_path.iterdir())
        assert plan.run(client).complete
