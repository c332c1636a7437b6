"""What Prometheus scrapes from live processes is what the report says."""

from __future__ import annotations

import logging
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from fault_operators import Misbehaves
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.execute.attempt import metrics
from geopatch_dask.execute.attempt import policy as policies
from geopatch_dask.execute.runs.runners import local_client
from geopatch_dask.testing.faults import Broken, FaultStore

pytest.importorskip("prometheus_client", reason="the metrics extra")

BAD = 1e6
SIDE, TILE = 60, 20
Values = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The cluster that a run makes for itself."""
    with local_client(planned(tmp_path_factory.mktemp("workers")), 2) as client:
        yield client


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BACKOFF", 0.01)


def planned(folder: Path, target: Any = None, **options: Any) -> gp.Plan:
    values = np.random.default_rng(len(str(folder))).standard_normal((SIDE, SIDE))
    values[30, 50] = BAD
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    # The operator's identity has the folder in it: each test has metrics of its own.
    operator = gp.Operator(
        Misbehaves(BAD, folder / "flag", str(folder / "calls.txt")), version=str(folder)
    )
    where = {"outer": (TILE, TILE), "chunks": (10, 10), "slots": 2, "memory_limit": "1 GiB"}
    field = gp.ArrayField(values.astype("float32"))
    return gp.plan(
        *(field, patcher, operator, folder / "out.zarr" if target is None else target),
        **where | options,
    )


def parsed(text: str, plan: gp.Plan) -> Values:
    """Samples of one plan: by name and by its other label."""
    from prometheus_client.parser import text_string_to_metric_families

    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("plan") == plan.fingerprint[:8]:
                other = [v for k, v in sample.labels.items() if k != "plan"]
                found[sample.name, other[0] if other else ""] = sample.value
    return found


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def texts(client: Client) -> list[str]:
    """What every live worker serves."""
    found = []
    for address, worker in client.scheduler_info(n_workers=-1)["workers"].items():
        host = address.partition("://")[2].rpartition(":")[0]
        with suppress(OSError):  # it is being replaced
            found.append(fetched(f"http://{host}:{worker['services']['dashboard']}/metrics"))
    return found


def scraped(client: Client, plan: gp.Plan) -> Values:
    """Sums over all live workers."""
    total: Values = {}
    for text in texts(client):
        for key, value in parsed(text, plan).items():
            total[key] = total.get(key, 0.0) + value
    return total


def here(plan: gp.Plan) -> Values:
    """What this process would serve."""
    from prometheus_client import generate_latest

    return parsed(generate_latest().decode(), plan)


def check_equal(found: Values, report: gp.Report) -> None:
    """The counters against the report of the only run."""
    for state in ("done", "empty", "failed"):
        expected = report.summary.states.get(state, 0)
        assert found["geopatch_supertiles_total", state] == expected, state
    numbers = report.summary.numbers
    for name, metric in (
        ("patches", "geopatch_patches_total"),
        ("failed_patches", "geopatch_failed_patches_total"),
        ("bytes_read", "geopatch_read_bytes_total"),
        ("bytes_written", "geopatch_written_bytes_total"),
        ("uncovered", "geopatch_uncovered_cells_total"),
    ):
        assert found[metric, ""] == numbers[name], name
    assert found.get(("geopatch_store_retries_total", "done"), 0) == numbers["retries"]
    phases = {k[1]: v for k, v in found.items() if k[0] == "geopatch_phase_seconds_total"}
    assert phases.keys() == report.summary.seconds.keys()
    for phase, seconds in report.summary.seconds.items():
        assert phases[phase] == pytest.approx(seconds, rel=1e-9), phase
    total = found["geopatch_supertile_seconds_sum", ""]
    assert total == pytest.approx(sum(report.summary.seconds.values()), rel=1e-9)
    assert found["geopatch_supertile_seconds_count", ""] == report.summary.done
    assert found["geopatch_supertiles_in_progress", ""] == 0


def check_run(found: Values, report: gp.Report) -> None:
    """The driver's counters against the report."""
    for state in ("done", "empty", "failed"):
        expected = report.summary.states.get(state, 0)
        assert found["geopatch_run_supertiles_total", state] == expected, state
    assert found["geopatch_run_supertiles_left", ""] == 0


@pytest.mark.cluster
def test_workers_serve_what_the_report_says(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    report = plan.run(workers, policy=gp.Policy(backups=False))
    found = scraped(workers, plan)
    assert report.summary.states == {"done": 9}
    assert report.summary.numbers["patches"] > 9 * 16 - 1
    check_equal(found, report)
    assert found["geopatch_supertile_retries_total", ""] == 0
    # A gauge is one per process: the sum is so many times as large.
    share = found["geopatch_planned_memory_bytes", ""] / plan.memory.total
    assert share in (1, 2)
    assert found["geopatch_memory_limit_bytes", ""] == share * plan.memory_limit
    # The driver is in this process, and so is the scheduler of the cluster that it made.
    page = fetched(workers.dashboard_link.replace("/status", "/metrics"))
    check_run(parsed(page, plan), report)
    assert "dask_scheduler_workers" in page


@pytest.mark.cluster
def test_failures_and_further_attempts_are_counted(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    (tmp_path / "flag").write_text("once-network")
    report = plan.run(workers, policy=gp.Policy(backups=False))
    found = scraped(workers, plan)
    check_equal(found, report)
    assert found["geopatch_attempts_total", "failed"] == 1
    assert found["geopatch_supertile_retries_total", ""] == 1
    assert found["geopatch_attempts_total", "done"] == 9
    assert here(plan)["geopatch_run_trouble_total", "failed"] == 1


@pytest.mark.cluster
def test_a_super_tile_that_is_given_up_is_failed(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    (tmp_path / "flag").write_text("raise")
    report = plan.run(workers, policy=gp.Policy(backups=False), on_failure="return")
    found = scraped(workers, plan)
    assert report.summary.states == {"done": 8, "failed": 1}
    check_equal(found, report)
    assert found["geopatch_attempts_total", "given_up"] == 1
    check_run(here(plan), report)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_worker_that_dies_takes_its_counters_with_it(workers: Client, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    (tmp_path / "flag").write_text("once-kill")
    report = plan.run(workers, policy=gp.Policy(backups=False))
    assert report.summary.states == {"done": 9}
    check_run(here(plan), report)  # the driver's do not
    assert here(plan)["geopatch_run_trouble_total", "lost"] >= 1
    found = scraped(workers, plan)
    assert found["geopatch_supertile_retries_total", ""] >= 1
    assert found["geopatch_attempts_total", "done"] < 9 + 1
    assert found["geopatch_patches_total", ""] <= report.summary.numbers["patches"]


def test_requests_that_were_repeated(tmp_path: Path) -> None:
    failed: set[str] = set()

    def once(count: int, operation: str, key: str) -> None:
        if "/tiles/" in key and operation == "get" and key not in failed:
            failed.add(key)
            raise Broken(f"{operation} {key}, operation {count}")

    plan = planned(tmp_path, FaultStore(MemoryStore(), once))
    report = plan.run("sync")
    assert report.summary.numbers["retries"] == len(failed) == 9
    check_equal(here(plan), report)


@pytest.mark.slow
def test_what_somebody_else_has_done_is_not_counted_again(tmp_path: Path) -> None:
    from geopatch_dask.execute.attempt.tile import run_tile

    plan = planned(tmp_path)
    report = plan.run("sync")
    before = here(plan)
    outcome = run_tile(plan, 4, attempt=2)
    after = here(plan)
    assert outcome.state == "done"
    assert after["geopatch_attempts_total", "found"] == 1
    assert after["geopatch_supertile_retries_total", ""] == 1
    for key in before:
        if key[0] in ("geopatch_patches_total", "geopatch_supertiles_total"):
            assert after[key] == before[key]
    check_equal(after, report)


def test_leaves_of_a_first_pass_are_counted(tmp_path: Path) -> None:
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    operator = gp.Operator(scaled, context=True, version=str(tmp_path))
    field = gp.ArrayField(np.ones((SIDE, SIDE), "float32"))
    plan = gp.plan(field, patcher, operator, MemoryStore(), context=gp.MeanStd(), outer=60)
    plan.run("sync")
    assert plan.context is not None
    leaves = plan.context.source(plan.field, plan.grid, plan.operator).leaves
    assert here(plan)["geopatch_first_pass_leaves_total", ""] == leaves


def scaled(x: Any, context: Any) -> Any:
    return x if context is None else x / context["mean"]


def test_an_endpoint_of_a_driver(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with metrics.serve("0") as port:
        report = plan.run("sync")
        check_run(parsed(fetched(f"http://127.0.0.1:{port}/metrics"), plan), report)
        with pytest.raises(gp.OptionError, match=f"cannot be served at 127.0.0.1:{port}"):
            metrics.serve(f"127.0.0.1:{port}").__enter__()
    with pytest.raises(OSError, match="refused"):
        fetched(f"http://127.0.0.1:{port}/metrics")


@pytest.mark.parametrize("address", ["", "somewhere", "host:99999", "host:-1"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(gp.OptionError, match="is not host:port"):
        metrics.serve(address).__enter__()


def test_without_prometheus_client_nothing_is_counted_and_nothing_fails(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["prometheus_client"] = None
import importlib.util, importlib.machinery
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "prometheus_client" else found(name, *a)
import numpy as np, geopatch_dask as gp
from geopatch_dask.execute.attempt import metrics
patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
report = gp.plan(gp.ArrayField(np.ones((40, 40), "f4")), patcher, np.sqrt, sys.argv[1]).run("sync")
assert report.ok, report
try:
    metrics.serve("0").__enter__()
except gp.OptionError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'geopatch_dask[metrics]'" in done.stdout


def test_the_command_line_serves_and_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import rasterio

    from geopatch_dask.cli import main
    from geopatch_dask.execute.attempt import logs

    shape = {"driver": "GTiff", "height": 40, "width": 40, "count": 1, "dtype": "float32"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(tmp_path / "s.tif", "w", **shape, **place) as file:
        file.write(np.ones((1, 40, 40), "f4"))
    command = ["run", "--field", str(tmp_path / "s.tif"), "--size", "10", "--step", "5"]
    command += ["--operator", "numpy:sqrt", "--target", str(tmp_path / "o.zarr")]
    command += ["--outer", "20", "--chunks", "20", "--cluster", "sync"]
    try:
        assert main([*command, "--log-tiles", "json", "--metrics", "0"]) == 0
    finally:  # a process of its own would end here
        logger = logging.getLogger(logs.LOGGER)
        logger.removeHandler(logs._own)
        logger.setLevel(logging.NOTSET)
        logger.propagate, logs._own.sets_level = True, False
    told = capsys.readouterr().err
    assert told.count('"state": "done"') == 4
    assert "geopatch: numbers for Prometheus are at port " in told
    assert main([*command, "--metrics", "nowhere"]) == 2
    assert "metrics address 'nowhere' is not host:port" in capsys.readouterr().err
