"""gp.cluster("kubernetes"): what is sent to the API server, and what is said when it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli_jobs import geopatch
from deploy_schemas import problems
from distributed import Client
from fake_kubernetes import Kubernetes, api_server
from hypothesis import given
from hypothesis import strategies as st

import geopatch_dask as gp
from geopatch_dask.clusters.kubernetes import OPTIONS, make_kubernetes, pods_of
from geopatch_dask.clusters.pods import OVERHEAD, Pods, cluster_spec
from geopatch_dask.clusters.request import Request
from geopatch_dask.demo.scene import make_scene
from geopatch_dask.planning.units import parse_bytes

pytest.importorskip("dask_kubernetes", reason="the kind needs it")


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with api_server(tmp_path) as (known, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield known


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A scheduler and a worker in processes of their own, as in pods; the scheduler's identity."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    host = [
        "--host",
        "127.0.0.1",
        "--dashboard-address",
        "127.0.0.1:0",
        "--scheduler-file",
        str(file),
    ]
    dask = [sys.executable, "-m", "dask"]
    size = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([*dask, "scheduler", "--port", "0", *host], **quiet)]
    started.append(subprocess.Popen([*dask, "worker", *size, *host], **quiet))
    try:
        for _ in range(300):
            if file.exists() and file.stat().st_size:
                break
            time.sleep(0.1)
        yield json.loads(file.read_text("utf-8"))
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


@pytest.fixture
def running(kubernetes: Kubernetes, scheduler: dict[str, Any]) -> Kubernetes:
    """The scheduler that the operator starts."""
    kubernetes.comm = int(scheduler["address"].rsplit(":", 1)[1])
    kubernetes.http = int(scheduler["services"]["dashboard"])
    return kubernetes


# ---- a pure function -----------------------------------------------------------------------

options = st.fixed_dictionaries(
    {"image": st.sampled_from(["a", "registry.example.org/me/geopatch:1"])},
    optional={
        "name": st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True),
        "cpu": st.integers(1, 64),
        "gpus": st.integers(0, 8),
        "spot": st.booleans(),
        "node_selector": st.dictionaries(
            st.sampled_from(["zone", "disk"]), st.just("b"), max_size=2
        ),
        "tolerations": st.lists(st.just({"key": "mine", "operator": "Exists"}), max_size=2),
        "secret": st.just("s3"),
        "config_map": st.just("job"),
        "environment": st.dictionaries(st.sampled_from(["A", "HOME"]), st.just("x"), max_size=2),
        "service_account": st.just("me"),
        "pull_secret": st.just("pull"),
        "scratch": st.sampled_from(["1 GiB", "500 MiB"]),
        "scheduler_memory": st.just("1 GiB"),
        "service": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
        "idle_timeout": st.sampled_from([0, "2 h", 90]),
    },
)


@given(options, st.integers(256 << 20, 1 << 38), st.integers(1, 500))
def test_whatever_is_asked_for_is_valid(given_: dict[str, Any], memory: int, workers: int) -> None:
    body = cluster_spec(Request(workers=workers), pods_of(given_), memory)
    assert problems(body) == []
    assert body["spec"]["worker"]["replicas"] == workers
    [container] = body["spec"]["worker"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]
    slot = container["args"][container["args"].index("--memory-limit") + 1]
    assert parse_bytes(limit + "B") >= parse_bytes(slot) + OVERHEAD - (1 << 20)
    assert abs(parse_bytes(slot) - memory) < 1 << 20
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names))


WRONG = [
    ({"image": "a", "cpu": 0}, "cpu must be a whole number, at least 1"),
    ({"image": "a", "gpus": True}, "gpus must be a whole number"),
    ({"image": "a", "spot": "yes"}, "spot must be true or false"),
    ({"image": "a", "imagee": "b"}, "did you mean 'image'"),
    ({}, "needs an image"),
    ({"image": "a", "name": "My_Cluster"}, "no name of a cluster"),
    ({"image": "a", "service": "Ingress"}, "service must be one of"),
    ({"image": "a", "environment": {"AWS_SECRET_ACCESS_KEY": "x"}}, "looks like a secret"),
    ({"image": "a", "environment": {"A": 1}}, "environment A must be a text"),
    ({"image": "a", "tolerations": {"key": "a"}}, "a list of tables"),
    ({"image": "a", "idle_timeout": "soon"}, "is no time"),
    ({"image": "a", "scratch": "much"}, "much"),
]


@pytest.mark.parametrize(("words", "text"), WRONG)
def test_a_wrong_option_is_named(words: dict[str, Any], text: str) -> None:
    with pytest.raises(gp.OptionError, match=text):
        pods_of(words)


def test_every_option_is_of_pods_and_the_reverse() -> None:
    names = {field.name for field in fields(Pods)} - {"idle"} | {"idle_timeout"}
    assert names == set(OPTIONS) - {"namespace", "start_timeout"}


# ---- against a server ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_is_made_used_and_deleted(running: Kubernetes, scheduler: dict[str, Any]) -> None:
    made = gp.cluster("kubernetes", workers=3, memory="1 GiB", image="mine:1", name="mine")
    with made as mine:
        [body] = running.posted("daskclusters")
        assert problems(body) == []
        assert (
            body["spec"]
            == cluster_spec(
                Request(workers=3), pods_of({"image": "mine:1", "name": "mine"}), 1 << 30
            )["spec"]
        )
        assert mine.submit(sum, [1, 2]).result() == 3
        assert "daskclusters/mine" in running.objects
    assert "daskclusters/mine" not in running.objects
    with Client(scheduler["address"], set_as_default=False) as other:
        assert other.submit(sum, [1, 1]).result() == 2  # the operator ends it, not we


@pytest.mark.cluster
def test_a_cluster_adapts(running: Kubernetes) -> None:
    with gp.cluster("kubernetes", adapt=(1, 9), image="mine:1", name="mine"):
        [body] = running.posted("daskclusters")
        assert body["spec"]["worker"]["replicas"] == 1
        spec = running.objects["daskautoscalers/mine"]["spec"]
        assert spec == {"cluster": "mine", "minimum": 1, "maximum": 9}


@pytest.mark.cluster
def test_a_cluster_that_exists_is_used_and_left(running: Kubernetes) -> None:
    body = cluster_spec(Request(workers=1), pods_of({"image": "a", "name": "mine"}), 1 << 30)
    running.answer("POST", "/apis/kubernetes.dask.org/v1/namespaces/science/daskclusters", body)
    running.said.clear()
    with gp.cluster("kubernetes", name="mine", workers=5) as found:
        assert found.submit(sum, [1, 2]).result() == 3
    assert running.posted("daskclusters") == []
    assert running.objects["daskworkergroups/mine-default"]["spec"]["worker"]["replicas"] == 5
    assert "daskclusters/mine" in running.objects
    with pytest.raises(gp.OptionError, match="exists already and is used as it is: drop image"):
        make_kubernetes(Request(), {"name": "mine", "image": "other"})


def test_a_scheduler_that_does_not_start_says_why(kubernetes: Kubernetes) -> None:
    kubernetes.stick()
    words = {"image": "no/such:1", "name": "mine", "start_timeout": 1.5}
    with pytest.raises(gp.OptionError, match="pod scheduler-pod: ErrImagePull: no such"):
        make_kubernetes(Request(workers=1), words)
    assert "daskclusters/mine" not in kubernetes.objects  # nothing is left behind


@pytest.mark.parametrize("policies", [[], ["geopatch-scheduler"]])
def test_a_namespace_without_a_network_policy_is_told(
    kubernetes: Kubernetes, policies: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Pods are all that a cluster from Python makes: the policy is in deploy/kubernetes/base."""
    kubernetes.policies = policies
    kubernetes.stick()
    with pytest.raises(gp.OptionError, match="cannot be used"):
        make_kubernetes(Request(workers=1), {"image": "a", "start_timeout": 0.5})
    told = "kubectl apply -k deploy/kubernetes/base -n science first"
    assert (told in caplog.text) == (not policies)


def test_without_the_operator_it_is_said(kubernetes: Kubernetes) -> None:
    kubernetes.operator = False
    with pytest.raises(gp.OptionError, match=r"operator is not installed.*helm install"):
        make_kubernetes(Request(), {"image": "a"})


def test_without_permission_it_is_said(kubernetes: Kubernetes) -> None:
    kubernetes.allowed = False
    with pytest.raises(gp.OptionError, match="may not list DaskClusters in namespace 'science'"):
        make_kubernetes(Request(), {"image": "a"})


def test_without_a_server_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api_server(tmp_path) as (_, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(gp.OptionError, match=r"API server cannot be used: .*kubectl cluster-info"):
        make_kubernetes(Request(), {"image": "a"})


def test_without_a_kubeconfig_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(gp.OptionError, match="no kubeconfig"):
        make_kubernetes(Request(), {"image": "a"})


def test_tls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gp.OptionError, match="network policy"):
        make_kubernetes(Request(tls=str(tmp_path)), {"image": "a"})


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_file_asks_for_the_same(running: Kubernetes, tmp_path: Path) -> None:
    make_scene(tmp_path / "scene.tif", 512, 0)
    (tmp_path / "job.toml").write_text(
        """
        field = { path = "scene.tif" }
        patch = { size = 128, step = 96 }
        operator = { function = "geopatch_dask.demo:ndvi" }
        output = { target = "out.zarr", chunks = 256 }
        run = { outer = 256, workers = 2, memory_limit = "1 GiB", quiet = true }
        cluster = { kind = "kubernetes", image = "mine:1", name = "mine", spot = true, gpus = 1 }
        """
    )
    assert geopatch("run", str(tmp_path / "job.toml")) == 0
    [body] = running.posted("daskclusters")
    wanted = pods_of({"image": "mine:1", "name": "mine", "spot": True, "gpus": 1})
    assert body["spec"] == cluster_spec(Request(workers=2), wanted, 1 << 30)["spec"]
    assert "daskclusters/mine" not in running.objects
    assert gp.status(tmp_path / "out.zarr").complete
