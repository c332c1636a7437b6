"""Judging Kubernetes manifests as an API server would, without one.

The operator's kinds are held against the schemas that come with dask-kubernetes, all others against
Kubernetes' own (PyPI ``kubernetes-validate``); both strictly: a misspelt key is an error, and not
ignored.  What a server checks beyond shapes, :func:`contradictions` does.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.parent for path in DEPLOY.glob("kubernetes/overlays/*/kustomization.yaml"))
#: Schemas of Kubernetes that manifests are held against: the oldest with per-index limits, and a
#: recent one.
VERSIONS = ("1.29", "1.34")

Spec = dict[str, Any]


# ---- rendering -----------------------------------------------------------------------------


@cache
def renderer() -> tuple[str, ...] | None:
    """A command that renders a kustomization and knows components; None where there is none."""
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    if kustomize:
        return (kustomize, "build")
    if kubectl:
        told = subprocess.run(
            [kubectl, "version", "--client", "-o", "yaml"], capture_output=True, text=True
        )
        version = (yaml.safe_load(told.stdout) or {}).get("kustomizeVersion", "v0")
        if int(version.lstrip("v").split(".")[0]) >= 4:
            return (kubectl, "kustomize")
    return None


def need_renderer() -> tuple[str, ...]:
    found = renderer()
    if found is None:
        pytest.skip("neither kustomize nor kubectl >= 1.21: see tests/services/deploy.sh")
    return found


@cache
def _rendered(folder: Path) -> str:
    done = subprocess.run([*need_renderer(), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(folder: Path) -> list[Spec]:
    """What a kustomization makes, as fresh objects."""
    return [document for document in yaml.safe_load_all(_rendered(folder)) if document]


def one(documents: list[Spec], kind: str) -> Spec:
    [found] = [document for document in documents if document["kind"] == kind]
    return found


# ---- shapes --------------------------------------------------------------------------------


def problems(document: Spec, version: str = VERSIONS[-1]) -> list[str]:
    """What is wrong with the shape of a manifest: where, and why."""
    if document["apiVersion"].startswith("kubernetes.dask.org/"):
        validator = _operators().get(document["kind"])
    else:
        validator = _core(document["kind"], document["apiVersion"], version)
    if validator is None:
        return [f"there is no kind {document['kind']} in {document['apiVersion']}"]
    errors = validator.iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@cache
def _operators() -> dict[str, Any]:
    """A validator for each kind of the operator."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the files are large
    package = pytest.importorskip("dask_kubernetes", reason="its package ships the schemas")
    folder = Path(package.__file__).parent / "operator/deployment/helm/dask-kubernetes-operator"
    found = {}
    for path in sorted(folder.glob("crds/*.yaml")):
        for document in yaml.load_all(path.read_text("utf-8"), loader):
            [version] = document["spec"]["versions"]
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
            schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
            schema["required"] = [*schema.get("required", []), "spec", "metadata"]
            kind = document["spec"]["names"]["kind"]
            found[kind] = jsonschema.Draft4Validator(schema)
    return found


def _strict(schema: Any) -> Any:
    """The schema, in which objects hold nothing but what it names, as a server prunes them."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    found = {key: _strict(value) for key, value in schema.items()}
    if (
        found.get("type") == "object"
        and "properties" in found
        and "additionalProperties" not in found
        and not found.get("x-kubernetes-preserve-unknown-fields")
    ):
        found["additionalProperties"] = False
    if found.pop("nullable", None) and "type" in found:
        found["type"] = [found["type"], "null"]
    return found


@cache
def _core(kind: str, api: str, version: str) -> Any:
    """A strict validator for a kind of Kubernetes itself; None for one that it does not have."""
    utils = pytest.importorskip("kubernetes_validate.utils", reason="it ships the schemas")
    found = [v for v in utils.all_versions() if utils.major_minor(v) == version][-1]
    folder = f"kubernetes-json-schema/v{found}-local-strict"
    group = "-".join(part.split(".")[0] for part in api.split("/"))  # rbac.authorization.k8s.io/v1
    try:
        schema = utils.schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    except FileNotFoundError:
        return None
    return jsonschema.Draft202012Validator(schema, registry=_definitions(folder, version))


@cache
def _definitions(folder: str, version: str) -> Registry[Any]:
    utils = pytest.importorskip("kubernetes_validate.utils", reason="it ships the schemas")
    shared = utils.schema_contents(f"{folder}/_definitions.json", version)
    return Resource.from_contents(shared) @ Registry()


# ---- beyond shapes -------------------------------------------------------------------------


def pod_specs(document: Spec) -> Iterator[tuple[str, Spec]]:
    """Pods that a manifest leads to, and what each is for."""
    spec = document.get("spec", {})
    if document["kind"] == "DaskJob":
        yield "runner", spec["job"]["spec"]
        spec = spec["cluster"]["spec"]
    if document["kind"] in ("DaskJob", "DaskCluster"):
        yield "scheduler", spec["scheduler"]["spec"]
        yield "worker", spec["worker"]["spec"]
    elif document["kind"] == "Job":
        yield "share", spec["template"]["spec"]


def containers(pod: Spec) -> list[Spec]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def contradictions(documents: list[Spec]) -> list[str]:
    """What a server would refuse, or a pod would wait for in vain, though its shape is right."""
    names = {(d["kind"], d["metadata"]["name"]) for d in documents}
    found = []
    for document in documents:
        for role, pod in pod_specs(document):
            found += [f"{role}: {text}" for text in _in_pod(pod, names)]
        if document["kind"] in ("DaskJob", "DaskCluster"):
            found += _in_service(document)
    return found


def _in_pod(pod: Spec, names: set[tuple[str, str]]) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    if len(volumes) != len(pod.get("volumes", ())):
        yield "two volumes of one name"
    for volume in pod.get("volumes", ()):
        config = volume.get("configMap", {}).get("name")
        if config and ("ConfigMap", config) not in names:
            yield f"there is no ConfigMap {config}"
    account = pod.get("serviceAccountName")
    if account and ("ServiceAccount", account) not in names:
        yield f"there is no ServiceAccount {account}"
    for container in containers(pod):
        yield from _in_container(container, volumes)


def _in_container(container: Spec, volumes: set[str]) -> Iterator[str]:
    ports = [port["name"] for port in container.get("ports", ())]
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"{container['name']} mounts {mount['name']}, which is no volume"
    variables = [variable["name"] for variable in container.get("env", ())]
    if len(set(variables)) != len(variables):
        yield f"{container['name']} has a variable twice"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if port is not None and port not in ports:
            yield f"{container['name']}: {probe} looks at {port}, which is no port"
    resources = container.get("resources", {})
    for kind, amount in resources.get("requests", {}).items():
        if kind in ("memory", "cpu") and number(amount) > number(resources["limits"][kind]):
            yield f"{container['name']} requests more {kind} than its limit"


def _in_service(document: Spec) -> Iterator[str]:
    spec = document["spec"]
    spec = spec["cluster"]["spec"] if document["kind"] == "DaskJob" else spec
    scheduler = spec["scheduler"]
    ports = {p["name"] for p in scheduler["spec"]["containers"][0]["ports"]}
    for port in scheduler["service"]["ports"]:
        if port["targetPort"] not in ports:
            yield f"the service leads to {port['targetPort']}, which is no port"
    chosen = scheduler["service"]["selector"].get("dask.org/cluster-name")
    if chosen != document["metadata"]["name"]:
        yield f"the service is for the cluster {chosen}"


def number(amount: str | int) -> float:
    """Cores, or bytes."""
    text = str(amount)
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
