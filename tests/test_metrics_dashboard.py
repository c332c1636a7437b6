"""The dashboard and the configuration that are shipped: what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_prometheus as prometheus
import yaml
from distributed import Client
from fault_operators import Misbehaves

import geopatch_dask as gp
from geopatch_dask.execute.attempt import policy as policies
from geopatch_dask.execute.runs.runners import local_client

pytest.importorskip("prometheus_client", reason="the metrics extra")

BAD = 1e6


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A cluster on which a run has just ended, in which a super-tile failed once."""
    folder = tmp_path_factory.mktemp("ran")
    plan = planned(folder)
    (folder / "flag").write_text("once-network")
    pause, policies.BACKOFF = policies.BACKOFF, 0.01
    try:
        with local_client(plan, 2) as client:
            plan.run(client, policy=gp.Policy(backups=False))
            yield client
    finally:
        policies.BACKOFF = pause


def planned(folder: Path) -> gp.Plan:
    values = np.random.default_rng(8).standard_normal((60, 60)).astype("float32")
    values[30, 50] = BAD
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    operator = gp.Operator(Misbehaves(BAD, folder / "flag"), version=str(folder))
    where: dict[str, Any] = {"outer": 20, "chunks": 10, "slots": 2, "memory_limit": "1 GiB"}
    return gp.plan(gp.ArrayField(values), patcher, operator, folder / "out.zarr", **where)


def names(text: str) -> set[str]:
    """Names of metrics in a query."""
    return set(re.findall(r"\b(?:geopatch|dask)_\w+", text))


@pytest.mark.cluster
def test_every_metric_of_the_dashboard_is_served(ran: Client) -> None:
    from test_metrics import fetched

    served = ""
    for address in prometheus.targets(ran):
        served += fetched(f"http://{address}/metrics")
    there = set(re.findall(r"^(\w+?)(?:\{| )", served, re.MULTILINE))
    for panel in prometheus.panels():
        for expression in prometheus.expressions(panel):
            assert names(expression), expression
            assert names(expression) <= there, (panel["title"], names(expression) - there)
    shown = {
        name for p in prometheus.panels() for e in prometheus.expressions(p) for name in names(e)
    }
    ours = {name for name in there if name.startswith("geopatch_") and "_created" not in name}
    unseen = {"geopatch_first_pass_leaves_total", "geopatch_run_supertiles_total"}
    unseen |= {"geopatch_supertile_seconds_sum", "geopatch_supertile_seconds_count"}
    assert ours - unseen == shown - {n for n in shown if n.startswith("dask_")}


def test_the_dashboard_can_be_imported() -> None:
    found = json.loads(prometheus.DASHBOARD.read_text())
    assert found["schemaVersion"] >= 36
    assert re.fullmatch(r"[\w-]{1,40}", found["uid"])
    assert "id" not in found  # or importing would replace another one
    variables = {v["name"]: v for v in found["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    panels = found["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        for item in (panel, *panel["targets"]):
            assert item["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for t in panel["targets"])))
        assert used <= {"plan", "__rate_interval", "__range"}
    for one, other in combinations([p["gridPos"] for p in panels], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


@pytest.mark.deploy
@pytest.mark.parametrize("name", ["prometheus.yml", "kubernetes.yml"])
def test_configurations_are_what_prometheus_takes(name: str, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: apt-get install prometheus")
    text = (prometheus.CONFIG.parent / name).read_text()
    # Debian's build knows no Kubernetes; everything but where targets come from is looked at.
    text = text.replace("kubernetes_sd_configs", "file_sd_configs")
    text = text.replace("- role: pod", "- files: [none.json]")
    (tmp_path / name).write_text(text)
    command = ["promtool", "check", "config", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / name).write_text(text.replace("scrape_interval", "scrape_intervall"))
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode != 0


def test_the_pod_monitor_asks_the_same_pods() -> None:
    monitor = yaml.safe_load((prometheus.CONFIG.parent / "podmonitor.yaml").read_text())
    config = yaml.safe_load((prometheus.CONFIG.parent / "kubernetes.yml").read_text())
    keep, port, *_ = config["scrape_configs"][0]["relabel_configs"]
    (chosen,) = monitor["spec"]["selector"]["matchExpressions"]
    assert chosen["values"] == keep["regex"].split("|")
    label = chosen["key"].replace(".", "_").replace("/", "_")
    assert keep["source_labels"] == [f"__meta_kubernetes_pod_label_{label}"]
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    assert [end["port"] for end in endpoints] == port["regex"].split("|")
    # Both say which cluster by the same label.
    [named] = [r for r in config["scrape_configs"][0]["relabel_configs"] if "cluster" in str(r)]
    told = {"sourceLabels": named["source_labels"], "targetLabel": named["target_label"]}
    assert all(end["relabelings"] == [told] for end in endpoints)
