"""A real Prometheus scrapes a live cluster: it counts what the report counts, and every panel of
the dashboard has something to show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_prometheus as prometheus

import geopatch_dask as gp
from geopatch_dask.execute.attempt.metrics import SHORT
from geopatch_dask.execute.runs.runners import local_client

pytestmark = pytest.mark.integration

pytest.importorskip("prometheus_client", reason="the metrics extra")
if not prometheus.installed():
    pytest.skip("no Prometheus: apt-get install prometheus", allow_module_level=True)


def planned(folder: Path) -> gp.Plan:
    values = np.random.default_rng(8).standard_normal((200, 200)).astype("float32")
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    where: dict[str, Any] = {"outer": 20, "chunks": 10, "slots": 2, "memory_limit": "1 GiB"}
    return gp.plan(gp.ArrayField(values), patcher, prometheus.slowly, folder / "out.zarr", **where)


def value(server: prometheus.Prometheus, expression: str) -> float:
    (found,) = server.query(expression)
    return float(found["value"][1])


def test_prometheus_counts_what_the_report_counts(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with local_client(plan, 100) as client, prometheus.running(tmp_path) as server:
        prometheus.write_targets(tmp_path, client)
        until = time.monotonic() + 30
        while len(server.up()) < 3:
            assert time.monotonic() < until, server.query("up")
            time.sleep(0.2)
        report = plan.run(client, policy=gp.Policy(backups=False))
        seen = time.time()
        time.sleep(2.5)  # two scrapes
        # This process serves, too, what earlier tests have counted in it: of other plans.
        ours = f'plan="{plan.fingerprint[:SHORT]}"'
        for name, labels, expected in (
            ("supertiles_total", ',state="done"', report.summary.done),
            ("patches_total", "", report.summary.numbers["patches"]),
            ("read_bytes_total", "", report.summary.numbers["bytes_read"]),
            ("written_bytes_total", "", report.summary.numbers["bytes_written"]),
            ("run_supertiles_total", "", report.supertiles),
            ("run_supertiles_left", "", 0),
        ):
            assert value(server, f"sum(geopatch_{name}{{{ours}{labels}}})") == expected, name
        for phase, seconds in report.summary.seconds.items():
            asked = f'sum(geopatch_phase_seconds_total{{{ours},phase="{phase}"}})'
            told = value(server, asked)
            assert told == pytest.approx(seconds, rel=1e-6)
        for panel in prometheus.panels():
            for expression in prometheus.expressions(panel):
                found = server.series(expression, seen - 20, seen + 2)
                assert found, (panel["title"], expression)
                numbers = [float(v) for s in found for _, v in s["values"]]
                assert any(n == n for n in numbers), (panel["title"], expression)
        busy = server.series("sum(geopatch_supertiles_in_progress)", seen - 20, seen + 2)
        assert max(float(v) for _, v in busy[0]["values"]) == 2
