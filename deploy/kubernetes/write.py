"""Write the manifests that describe pods, from the function that describes them to Python.

``python deploy/kubernetes/write.py [job.toml] [--shares 8]`` writes five files::

    overlays/interactive/dask-cluster.yaml   what gp.cluster("kubernetes") asks the operator for
    overlays/job/dask-job.yaml               the same cluster, and a runner: geopatch run job.toml
    overlays/shares/job.yaml                 no operator: pods that do a share each
    overlays/finish/job.yaml                 no operator: one pod that does what is left
    components/identity/kustomization.yaml   all of these, where no secret has keys of a bucket

So a pod is described once, in ``geopatch_dask/clusters/pods.py``; slots and memory are those of
``[run]`` in the job file, ``base/job.toml`` unless another is named.  Everything else here is
written by hand.  A test compares the files with this.

It needs an environment with ``geopatch_dask``, which brings PyYAML.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import geopatch_dask as gp
from geopatch_dask.clusters.pods import (
    OVERHEAD,
    Pods,
    cluster_spec,
    container_spec,
    pod_spec,
    resources_of,
)
from geopatch_dask.clusters.request import Request
from geopatch_dask.planning.units import parse_bytes

HERE = Path(__file__).parent
#: Pods that share the work, where there is no operator.
SHARES = 8
PODS = Pods(
    name="geopatch",
    image=f"geopatch-dask:{gp.__version__}",
    secret="geopatch-s3",
    config_map="geopatch-job",
    service_account="geopatch",
)
HEAD = "# Written by deploy/kubernetes/write.py from geopatch_dask/clusters/pods.py: change that.\n"
#: Seconds in which the first worker must come, once the scheduler answers.
WAIT = 1800
RUN = ["geopatch", "run", "/job/job.toml", "--cluster"]
#: Where the runner serves the numbers of the whole run; of a pod's network, which a policy closes.
METRICS = 9464

Spec = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What the manifests take from a job: slots, bytes of one, and pods that do a share each."""

    slots: int
    memory: int
    shares: int = SHARES

    @classmethod
    def of(cls, file: Path, shares: int = SHARES) -> Size:
        """That of a job file."""
        run = tomllib.loads(file.read_text("utf-8")).get("run", {})
        for name in ("workers", "memory_limit"):
            if name not in run:
                raise SystemExit(f"{file}: it must have [run] {name}, which sizes the pods")
        return cls(int(run["workers"]), parse_bytes(run["memory_limit"]), shares)


def dask_cluster(size: Size) -> Spec:
    """The cluster that is there until somebody deletes it, or nobody used it for an hour."""
    return cluster_spec(Request(workers=size.slots), PODS, size.memory)


def dask_job(size: Size) -> Spec:
    """A cluster, and a runner beside it; the operator deletes the cluster when the runner ends.

    The runner tries the operator on three patches, so it gets the memory of a worker.  It is not
    started again by itself: bad input would keep the cluster for ever.
    """
    cluster = dask_cluster(size)
    cluster["spec"].pop("idleTimeout")  # of a DaskJob, the operator does not look at it
    args = [*RUN, "$(DASK_SCHEDULER_ADDRESS)", "--metrics", f"0.0.0.0:{METRICS}"]
    runner = _container("runner", args, 1, size.memory + OVERHEAD)
    runner["ports"] = [{"name": "http-metrics", "containerPort": METRICS, "protocol": "TCP"}]
    waiting = (
        "from distributed import Client; "
        f"Client(timeout='30 minutes').wait_for_workers(1, timeout={WAIT})"
    )
    wait = _container("wait", ["python", "-c", waiting], 1, size.memory + OVERHEAD)
    wait["env"].append(
        {
            "name": "DASK_SCHEDULER_ADDRESS",  # the operator tells it to containers, not to these
            "value": f"tcp://{PODS.name}-scheduler:8786",
        }
    )
    pod = {"restartPolicy": "Never", "initContainers": [wait], **pod_spec(PODS, runner)}
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskJob",
        "metadata": cluster["metadata"],
        "spec": {"job": {"spec": pod}, "cluster": {"spec": cluster["spec"]}},
    }


def shares(size: Size) -> Spec:
    """Pods that know nothing of each other; the index of each is its share."""
    args = [*RUN, "local", "--share", f"$(JOB_COMPLETION_INDEX)/{size.shares}"]
    job = _job("geopatch-shares", args, size)
    job["spec"] |= {
        "completionMode": "Indexed",
        "completions": size.shares,
        "parallelism": size.shares,
        "backoffLimitPerIndex": 3,
        "maxFailedIndexes": size.shares,
    }
    return job


def finish(size: Size) -> Spec:
    """What is left after the shares: nothing, as a rule."""
    job = _job("geopatch-finish", [*RUN, "local"], size)
    job["spec"]["backoffLimit"] = 3
    return job


def _job(name: str, args: list[str], size: Size) -> Spec:
    """A job whose pod is a machine of its own, with a local cluster in it.

    The driver is in it, too, and tries the operator: it gets as much as a slot.
    """
    memory = (size.slots + 1) * size.memory + 2 * OVERHEAD
    pod = pod_spec(PODS, _container("run", args, size.slots, memory))
    rules = [
        # taken away with its node: no fault of the pod, and no attempt
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # bad input stays bad
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "ttlSecondsAfterFinished": 86400,
            "podFailurePolicy": {"rules": rules},
            "template": {"spec": {"restartPolicy": "Never", **pod}},
        },
    }


def identity(size: Size) -> Spec:
    """A component: keys of the bucket may be missing, for rights that a cloud gives to accounts.

    Its patches count variables, which is why they are written here.
    """
    patches = [
        _optional_keys("DaskCluster", dask_cluster(size)["spec"]),
        _optional_keys("DaskJob", dask_job(size)["spec"]),
        _optional_keys("Job", finish(size)["spec"]),
    ]
    api = "kustomize.config.k8s.io/v1alpha1"
    return {"apiVersion": api, "kind": "Component", "patches": patches}


def _optional_keys(kind: str, spec: Spec) -> Spec:
    """A patch of everything of a kind, after which no key of a secret must be there."""
    steps = [
        {"op": "add", "path": f"{path}/optional", "value": True}
        for path, reference in _references(spec, "/spec")
        if not reference.get("optional")
    ]
    return {"target": {"kind": kind}, "patch": yaml.dump(steps, sort_keys=False)}


def _references(part: Any, path: str) -> Iterator[tuple[str, Spec]]:
    """Keys of secrets that are named somewhere, and where."""
    inner = part.items() if isinstance(part, dict) else enumerate(part)
    for name, value in inner:
        if name == "secretKeyRef":
            yield f"{path}/{name}", value
        elif isinstance(value, dict | list):
            yield from _references(value, f"{path}/{name}")


def _container(name: str, args: list[str], cpu: int, memory: int) -> Spec:
    return container_spec(PODS, name, resources_of(cpu, memory)) | {"args": args}


FILES = {
    "overlays/interactive/dask-cluster.yaml": dask_cluster,
    "overlays/job/dask-job.yaml": dask_job,
    "overlays/shares/job.yaml": shares,
    "overlays/finish/job.yaml": finish,
    "components/identity/kustomization.yaml": identity,
}


class _Plain(yaml.SafeDumper):
    """Writes equal parts out again: anchors are hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """A text, as a block if it has lines."""
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _lines)


def texts(size: Size) -> dict[str, str]:
    """All files by their names."""
    return {
        name: HEAD + yaml.dump(make(size), Dumper=_Plain, sort_keys=False, width=120)
        for name, make in FILES.items()
    }


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description="Write the manifests that describe pods.")
    parser.add_argument("job", nargs="?", type=Path, default=HERE / "base" / "job.toml")
    parser.add_argument("--shares", type=int, default=SHARES, help="pods of overlay shares")
    given = parser.parse_args()
    for name, text in texts(Size.of(given.job, given.shares)).items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
