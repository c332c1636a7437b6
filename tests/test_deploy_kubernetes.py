"""Manifests of deploy/kubernetes: valid, consistent, without rights, the same pods as Python's."""

from __future__ import annotations

import copy
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_schemas import (
    DEPLOY,
    OVERLAYS,
    VERSIONS,
    Spec,
    containers,
    contradictions,
    number,
    one,
    pod_specs,
    problems,
    render,
)

from geopatch_dask.clusters.pods import OVERHEAD, Pods, cluster_spec
from geopatch_dask.clusters.request import Request
from geopatch_dask.planning.units import parse_bytes

pytestmark = pytest.mark.deploy

KUBERNETES = DEPLOY / "kubernetes"
JOB = tomllib.loads((KUBERNETES / "base" / "job.toml").read_text("utf-8"))
SLOTS = JOB["run"]["workers"]
MEMORY = parse_bytes(JOB["run"]["memory_limit"])
every_overlay = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)


def overlay(name: str) -> list[Spec]:
    return render(KUBERNETES / "overlays" / name)


# ---- valid ---------------------------------------------------------------------------------


def test_there_is_an_overlay_for_each_way_to_run() -> None:
    names = {folder.name for folder in OVERLAYS}
    assert names == {"interactive", "job", "autoscale", "shares", "finish", "spot", "gpu"}


@every_overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_an_overlay_is_valid(folder: Path, version: str) -> None:
    documents = render(folder)
    assert [(d["kind"], text) for d in documents for text in problems(d, version)] == []
    assert contradictions(documents) == []


#: Your own files, as the page has them: a component that goes on top of any overlay.
MINE = {
    "apiVersion": "kustomize.config.k8s.io/v1alpha1",
    "kind": "Component",
    "namespace": "science",
    "images": [{"name": "geopatch-dask", "newName": "registry.example.org/me/geopatch-dask"}],
    "configMapGenerator": [
        {"name": "geopatch-job", "behavior": "merge", "files": ["job.toml", "model.py"]}
    ],
}


def rendered_with_mine(
    place: Path, resource: str, components: tuple[str, ...] = (), **more: Any
) -> list[Spec]:
    """An overlay, components, and a component of one's own behind them."""
    (place / "mine").mkdir()
    (place / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(MINE))
    for name in ("job.toml", "model.py"):
        (place / "mine" / name).write_text(f"# {name} of mine\n")
    run = place / "run"
    run.mkdir()
    top = {
        "resources": [relative(KUBERNETES / "overlays" / resource, run)],
        "components": [
            *(relative(KUBERNETES / "components" / name, run) for name in components),
            "../mine",
        ],
        **more,
    }
    (run / "kustomization.yaml").write_text(yaml.safe_dump(top))
    return render(run)


def test_components_go_together(tmp_path: Path) -> None:
    renamed = MINE["images"][0]["newName"]  # type: ignore[index]
    documents = rendered_with_mine(
        tmp_path,
        "job",
        ("autoscale", "spot", "gpu", "prometheus", "identity"),
        images=[{"name": renamed, "newTag": "0.1.0-gpu"}],
    )
    assert not any(problems(d) for d in documents)
    assert contradictions(documents) == []
    assert one(documents, "ConfigMap")["data"]["job.toml"] == "# job.toml of mine\n"
    job = one(documents, "DaskJob")
    worker = job["spec"]["cluster"]["spec"]["worker"]["spec"]
    assert {t["key"] for t in worker["tolerations"]} > {
        "nvidia.com/gpu",
        "cloud.google.com/gke-spot",
    }
    images = {c["image"] for _, pod in pod_specs(job) for c in containers(pod)}
    assert images == {f"{renamed}:0.1.0-gpu"}
    assert {d["metadata"]["namespace"] for d in documents} == {"science"}


@pytest.mark.parametrize("name", ["interactive", "shares", "finish"])
def test_every_overlay_takes_files_of_ones_own(name: str, tmp_path: Path) -> None:
    documents = rendered_with_mine(tmp_path, name)
    assert [problem for d in documents for problem in problems(d)] == []
    assert contradictions(documents) == []
    assert {d["metadata"]["namespace"] for d in documents} == {"science"}
    assert one(documents, "ConfigMap")["data"]["model.py"] == "# model.py of mine\n"
    images = {c["image"] for d in documents for _, pod in pod_specs(d) for c in containers(pod)}
    assert images == {"registry.example.org/me/geopatch-dask:0.1.0"}


def test_the_gpu_component_leaves_the_image_to_others() -> None:
    component = KUBERNETES / "components" / "gpu" / "kustomization.yaml"
    assert "images" not in yaml.safe_load(component.read_text("utf-8"))
    job = one(overlay("gpu"), "DaskJob")
    images = {c["image"] for _, pod in pod_specs(job) for c in containers(pod)}
    assert images == {"geopatch-dask:0.1.0-gpu"}


@pytest.mark.parametrize("name", ["interactive", "job", "shares", "finish"])
def test_with_an_identity_no_key_is_needed(name: str, tmp_path: Path) -> None:
    for document in rendered_with_mine(tmp_path, name, ("identity",)):
        assert problems(document) == []
        for _, pod in pod_specs(document):
            for container in containers(pod):
                told = [v for v in container["env"] if v["name"].startswith("AWS_")]
                assert len(told) == 5
                assert all(v["valueFrom"]["secretKeyRef"]["optional"] is True for v in told)


def test_prometheus_reaches_metrics_and_nothing_else(tmp_path: Path) -> None:
    documents = rendered_with_mine(tmp_path, "job", ("prometheus",))
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    [runner] = one(documents, "DaskJob")["spec"]["job"]["spec"]["containers"]
    [metrics] = runner["ports"]
    assert dict(pairwise(runner["args"]))["--metrics"] == f"0.0.0.0:{metrics['containerPort']}"
    chosen = policies["geopatch-runner"]["podSelector"]["matchLabels"]
    assert chosen["dask.org/component"] == "job-runner"
    for name, port in (("scheduler", 8787), ("worker", 8788), ("runner", metrics["containerPort"])):
        [rule] = [r for r in policies[f"geopatch-{name}"]["ingress"] if peer in r["from"]]
        assert rule == {"from": [peer], "ports": [{"protocol": "TCP", "port": port}]}


def relative(path: Path, start: Path) -> str:
    return os.path.relpath(path, start)


def first(spec: Spec) -> Spec:
    """The worker's container of a DaskJob."""
    found: Spec = spec["spec"]["cluster"]["spec"]["worker"]["spec"]["containers"][0]
    return found


#: What goes wrong by hand: a name, and what is done to the DaskJob.
WRONG: dict[str, Callable[[Spec], Any]] = {
    "the port of a probe is a number": lambda s: first(s)["livenessProbe"]["httpGet"].update(
        port=8788
    ),
    "a count is a text": lambda s: s["spec"]["cluster"]["spec"]["worker"].update(replicas="4"),
    "a key is misspelt": lambda s: first(s).update(comand=["dask"]),
    "a key is at the wrong level": lambda s: s["spec"].update(replicas=4),
    "args are one text": lambda s: first(s).update(args="dask worker"),
    "a variable is a number": lambda s: first(s)["env"].append({"name": "A", "value": 1}),
    "a container has no name": lambda s: first(s).pop("name"),
    "there is no job": lambda s: s["spec"].pop("job"),
    "there is no scheduler": lambda s: s["spec"]["cluster"]["spec"].pop("scheduler"),
    "a container port is a text": lambda s: first(s)["ports"][0].update(containerPort="8788"),
    "runAsUser is a text": lambda s: s["spec"]["job"]["spec"]["securityContext"].update(
        runAsUser="me"
    ),
    "a kind is unknown": lambda s: s.update(kind="DaskJobs"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_job_of_the_operator_is_rejected(wrong: str) -> None:
    job = one(overlay("job"), "DaskJob")
    assert problems(job) == []
    WRONG[wrong](job)
    assert problems(job), wrong


WRONG_CORE: dict[str, Callable[[dict[str, Spec]], Any]] = {
    "a key is misspelt": lambda d: d["Job"]["spec"].update(completion=8),
    "a count is a text": lambda d: d["Job"]["spec"].update(completions="8"),
    "there is no template": lambda d: d["Job"]["spec"].pop("template"),
    "a container has no name": lambda d: job_pod(d)["containers"][0].pop("name"),
    "a policy's port is a list": lambda d: d["NetworkPolicy"]["spec"]["ingress"][0].update(
        ports=8786
    ),
    "a policy has no selector": lambda d: d["NetworkPolicy"]["spec"].update(podSelectors={}),
    "a budget is a list": lambda d: d["PodDisruptionBudget"]["spec"].update(minAvailable=[1]),
    "an API that is gone": lambda d: d["PodDisruptionBudget"].update(apiVersion="policy/v1beta1"),
}


def job_pod(documents: dict[str, Spec]) -> Spec:
    found: Spec = documents["Job"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("wrong", WRONG_CORE)
def test_a_wrong_manifest_is_rejected(wrong: str) -> None:
    documents = overlay("shares")
    assert not any(problems(d) for d in documents)
    WRONG_CORE[wrong]({d["kind"]: d for d in documents})
    assert any(problems(d) for d in documents), wrong


CONTRADICTED: dict[str, Callable[[Spec], Any]] = {
    "which is no port": lambda s: first(s)["livenessProbe"]["httpGet"].update(port="http"),
    "which is no volume": lambda s: first(s)["volumeMounts"][0].update(name="temp"),
    "more memory than": lambda s: first(s)["resources"]["limits"].update(memory="1Gi"),
    "a variable twice": lambda s: first(s)["env"].append({"name": "HOME", "value": "/"}),
    "no ConfigMap": lambda s: s["spec"]["job"]["spec"]["volumes"][2]["configMap"].update(name="j"),
    "no ServiceAccount": lambda s: s["spec"]["job"]["spec"].update(serviceAccountName="default"),
    "for the cluster": lambda s: s["metadata"].update(name="other"),
}


@pytest.mark.parametrize("text", CONTRADICTED)
def test_what_no_schema_sees_is_seen(text: str) -> None:
    documents = overlay("job")
    job = one(documents, "DaskJob")
    assert contradictions(documents) == []
    CONTRADICTED[text](job)
    assert any(text in told for told in contradictions(documents))


# ---- without rights ------------------------------------------------------------------------


@every_overlay
def test_pods_have_no_rights(folder: Path) -> None:
    for document in render(folder):
        for role, pod in pod_specs(document):
            assert pod["automountServiceAccountToken"] is False, role
            around = pod["securityContext"]
            assert around["runAsNonRoot"] is True
            assert around["runAsUser"] == around["runAsGroup"] == 10001
            assert around["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in containers(pod):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                }
                mounts = {
                    m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]
                }
                assert mounts == {"/tmp": False, "/scratch": False, "/job": True}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@every_overlay
def test_secrets_are_named_not_told(folder: Path) -> None:
    documents = render(folder)
    assert "Secret" not in {d["kind"] for d in documents}
    for document in documents:
        for _, pod in pod_specs(document):
            for container in containers(pod):
                told = {v["name"]: v for v in container["env"] if v["name"].startswith("AWS_")}
                assert set(told) >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
                for variable in told.values():
                    assert "value" not in variable
                    assert variable["valueFrom"]["secretKeyRef"]["name"] == "geopatch-s3"


def test_the_example_of_a_secret_has_what_pods_ask_for() -> None:
    secret = yaml.safe_load((KUBERNETES / "examples" / "secret.yaml").read_text("utf-8"))
    assert problems(secret) == []
    job = one(overlay("job"), "DaskJob")
    wanted = {
        v["valueFrom"]["secretKeyRef"]["key"]
        for _, pod in pod_specs(job)
        for container in containers(pod)
        for v in container["env"]
        if "valueFrom" in v and not v["valueFrom"]["secretKeyRef"].get("optional")
    }
    assert wanted <= set(secret["stringData"])
    assert secret["metadata"]["name"] == "geopatch-s3"


@every_overlay
def test_only_its_own_pods_reach_the_scheduler(folder: Path) -> None:
    documents = render(folder)
    policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}
    mine = {"matchLabels": {"app.kubernetes.io/part-of": "geopatch"}}
    assert policies["geopatch"]["podSelector"] == mine
    assert policies["geopatch"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["geopatch"]
    for name in ("geopatch-scheduler", "geopatch-worker"):
        for rule in policies[name]["ingress"]:
            assert all("ipBlock" not in peer for peer in rule["from"])
    for document in documents:
        for role, pod in pod_specs(document):
            labels = labels_of(document, role)
            assert labels["app.kubernetes.io/part-of"] == "geopatch"
            open_ports = [p["containerPort"] for c in pod["containers"] for p in c.get("ports", ())]
            if role == "runner":  # whose numbers are for component prometheus, and for nobody else
                assert "geopatch-runner" not in policies
                continue
            allowed = policies.get(f"geopatch-{role}", {}).get("ingress", [])
            assert all(reaches(port, allowed) for port in open_ports), role


def labels_of(document: Spec, role: str) -> Spec:
    """Labels that pods get: of the template, or what the operator hands down from its object."""
    if role == "share":
        found: Spec = document["spec"]["template"]["metadata"]["labels"]
        return found
    assert document["kind"] in ("DaskCluster", "DaskJob")
    return {**document["metadata"]["labels"], "dask.org/component": role}


def reaches(port: int, rules: list[Spec]) -> bool:
    ports = [entry for rule in rules for entry in rule["ports"]]
    return any(p["port"] <= port <= p.get("endPort", p["port"]) for p in ports)


def test_budgets_are_for_scheduler_and_runner() -> None:
    budgets = [d["spec"] for d in overlay("job") if d["kind"] == "PodDisruptionBudget"]
    chosen = {
        b["selector"]["matchLabels"]["dask.org/component"]: b["minAvailable"] for b in budgets
    }
    assert chosen == {"scheduler": 1, "job-runner": 1}


# ---- numbers -------------------------------------------------------------------------------


def test_a_worker_pod_holds_the_slot_of_the_job_file() -> None:
    for name in ("job", "autoscale", "spot", "gpu"):
        container = first(one(overlay(name), "DaskJob"))
        args = container["args"]
        told = dict(pairwise(args))
        assert parse_bytes(told["--memory-limit"]) == MEMORY
        assert (told["--nthreads"], told["--nworkers"]) == ("1", "1")
        for kind in ("requests", "limits"):
            assert number(container["resources"][kind]["memory"]) >= MEMORY + OVERHEAD
        assert container["resources"]["requests"] == container["resources"]["limits"]
    cluster = one(overlay("interactive"), "DaskCluster")
    assert cluster["spec"]["worker"]["replicas"] == SLOTS


@pytest.mark.parametrize("name", ["shares", "finish"])
def test_the_pod_of_a_share_holds_its_local_cluster(name: str) -> None:
    job = one(overlay(name), "Job")
    [container] = job["spec"]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    # One slot more: the driver tries the operator, and has its model in memory then.
    assert number(limits["memory"]) >= (SLOTS + 1) * MEMORY + OVERHEAD
    assert number(limits["cpu"]) >= SLOTS


def test_shares_are_as_many_as_pods() -> None:
    spec = one(overlay("shares"), "Job")["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--share", f"$(JOB_COMPLETION_INDEX)/{spec['completions']}"]
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    [bad] = [r for r in spec["podFailurePolicy"]["rules"] if r["action"] == "FailJob"]
    assert bad["onExitCodes"]["values"] == [2]  # geopatch: bad input


def test_the_runner_is_a_geopatch_run() -> None:
    job = one(overlay("job"), "DaskJob")
    [runner] = job["spec"]["job"]["spec"]["containers"]
    assert runner["args"] == [
        *("geopatch", "run", "/job/job.toml", "--cluster", "$(DASK_SCHEDULER_ADDRESS)"),
        *("--metrics", "0.0.0.0:9464"),
    ]
    assert job["spec"]["job"]["spec"]["restartPolicy"] == "Never"


def test_the_runner_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    [wait] = one(overlay("job"), "DaskJob")["spec"]["job"]["spec"]["initContainers"]
    assert wait["args"][:2] == ["python", "-c"]
    told: dict[str, Any] = {}

    class Client:
        def __init__(self, **options: Any) -> None:
            told.update(connection=options["timeout"])

        def wait_for_workers(self, n: int, timeout: float | None = None) -> None:
            told.update(workers=n, timeout=timeout)

    monkeypatch.setattr("distributed.Client", Client)
    exec(wait["args"][2], {})
    assert told == {"connection": "30 minutes", "workers": 1, "timeout": 1800}


# ---- the same pods as Python's -------------------------------------------------------------


def test_the_manifests_are_what_the_script_writes() -> None:
    space = runpy.run_path(str(KUBERNETES / "write.py"))
    texts = space["texts"](space["Size"].of(KUBERNETES / "base" / "job.toml"))
    assert len(texts) == 5
    for name, text in texts.items():
        assert text == (KUBERNETES / name).read_text("utf-8"), "python deploy/kubernetes/write.py"


def test_the_script_takes_the_size_of_another_job(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (tmp_path / "job.toml").write_text('[run]\nworkers = 2\nmemory_limit = "6 GiB"\n')
    script = [sys.executable, str(tmp_path / "kubernetes" / "write.py")]
    subprocess.run([*script, str(tmp_path / "job.toml"), "--shares", "20"], check=True)
    overlays = tmp_path / "kubernetes" / "overlays"
    job = yaml.safe_load((overlays / "job" / "dask-job.yaml").read_text("utf-8"))
    assert first(job)["resources"]["limits"]["memory"] == "6656Mi"
    assert job["spec"]["cluster"]["spec"]["worker"]["replicas"] == 2
    spec = yaml.safe_load((overlays / "shares" / "job.yaml").read_text("utf-8"))["spec"]
    assert spec["completions"] == spec["parallelism"] == spec["maxFailedIndexes"] == 20
    [container] = spec["template"]["spec"]["containers"]
    assert container["args"][-1] == "$(JOB_COMPLETION_INDEX)/20"


@pytest.mark.parametrize(
    ("text", "told"),
    [("[run]\nworkers = 2\n", "memory_limit"), ('[run]\nmemory_limit = "1 GiB"\n', "workers")],
)
def test_the_script_needs_both_numbers(text: str, told: str, tmp_path: Path) -> None:
    space = runpy.run_path(str(KUBERNETES / "write.py"))
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(SystemExit, match=rf"job\.toml.*\[run\] {told}"):
        space["Size"].of(tmp_path / "job.toml")


def test_the_rendered_cluster_is_the_one_python_asks_for() -> None:
    documents = overlay("interactive")
    rendered = one(documents, "DaskCluster")
    pods = replace(python_pods(), config_map=one(documents, "ConfigMap")["metadata"]["name"])
    assert rendered["spec"] == cluster_spec(Request(workers=SLOTS), pods, MEMORY)["spec"]
    assert rendered["metadata"]["labels"] == {"app.kubernetes.io/part-of": "geopatch"}


@pytest.mark.parametrize(("name", "option"), [("gpu", {"gpus": 1}), ("spot", {"spot": True})])
def test_a_component_says_what_the_option_says(name: str, option: dict[str, Any]) -> None:
    documents = overlay(name)
    rendered = one(documents, "DaskJob")["spec"]["cluster"]["spec"]
    pods = replace(python_pods(), config_map=one(documents, "ConfigMap")["metadata"]["name"])
    image = "geopatch-dask:0.1.0-gpu" if name == "gpu" else pods.image
    pods = replace(pods, image=image, **option)
    wanted = copy.deepcopy(cluster_spec(Request(workers=SLOTS), pods, MEMORY)["spec"])
    wanted.pop("idleTimeout")
    assert rendered == wanted


def python_pods() -> Pods:
    space = runpy.run_path(str(KUBERNETES / "write.py"))
    found: Pods = space["PODS"]
    return found


# ---- the Helm chart ------------------------------------------------------------------------

#: Keys of the chart "dask" (2025.11.0) that can be set; others it would pass over in silence.
CHART = {
    "scheduler": "name enabled image replicas serviceType loadBalancerIP servicePort "
    "serviceAnnotations env extraArgs resources tolerations affinity nodeSelector securityContext "
    "serviceAccountName metrics livenessProbe readinessProbe",
    "worker": "name image replicas strategy custom_scheduler_url default_resources env extraArgs "
    "resources mounts annotations tolerations affinity nodeSelector securityContext "
    "serviceAccountName port portDashboard threads_per_worker metrics livenessProbe readinessProbe",
    "jupyter": "enabled",
}


def test_helm_values_make_the_same_pods() -> None:
    values = yaml.safe_load((KUBERNETES / "helm-values.yaml").read_text("utf-8"))
    for part, known in CHART.items():
        assert set(values[part]) <= set(known.split()), part
    ours = python_pods()
    spec = cluster_spec(Request(workers=SLOTS), ours, MEMORY)["spec"]
    for part in ("scheduler", "worker"):
        [container] = spec[part]["spec"]["containers"]
        given = values[part]
        assert f"{given['image']['repository']}:{given['image']['tag']}" == container["image"]
        assert given["resources"] == container["resources"]
        assert given["securityContext"] == spec[part]["spec"]["securityContext"]
        probe = {**container["livenessProbe"], "httpGet": given["livenessProbe"]["httpGet"]}
        assert given["livenessProbe"] == probe
    assert values["worker"]["replicas"] == spec["worker"]["replicas"]
    chart = ["--nthreads", str(values["worker"]["threads_per_worker"])]
    chart += ["--worker-port", values["worker"]["port"], *values["worker"]["extraArgs"]]
    chart += ["--dashboard-address", f":{values['worker']['portDashboard']}"]
    [container] = spec["worker"]["spec"]["containers"]
    wanted = container["args"][2:]  # behind: dask worker
    at = wanted.index("--name")
    del wanted[at : at + 2]  # the operator's own
    assert dict(zip(chart[::2], chart[1::2], strict=True)) == dict(
        zip(wanted[::2], wanted[1::2], strict=True)
    )


def test_helm_workers_find_the_modules_of_the_job() -> None:
    values = yaml.safe_load((KUBERNETES / "helm-values.yaml").read_text("utf-8"))["worker"]
    [container] = cluster_spec(Request(workers=SLOTS), python_pods(), MEMORY)["spec"]["worker"][
        "spec"
    ]["containers"]
    assert values["mounts"]["volumeMounts"] == container["volumeMounts"]
    volumes = {v["name"]: v for v in values["mounts"]["volumes"]}
    assert volumes["job"] == {"name": "job", "configMap": {"name": "geopatch-job"}}
    assert {"name": "PYTHONPATH", "value": "/job"} in values["env"]
