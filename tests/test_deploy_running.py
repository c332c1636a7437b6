"""The manifests' own commands, run as a node would run them: to a finished reconstruction.

Commands, variables, users, volumes and the read-only root are those of the rendered manifests; what
the operator adds is added by the operator's own functions.  The object store is moto, and scene,
bucket and job file are those that ``deploy/kubernetes/base`` names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_pods import STORE, Node, Running, Spec, node, until
from deploy_schemas import DEPLOY, one, render

OVERLAYS = DEPLOY / "kubernetes" / "overlays"
SPACE = "science"
#: Bands, rows, columns: 9 chunks, so that there is something to share out.
SHAPE = (2, 1400, 1200)
BUCKET = {
    "AWS_ACCESS_KEY_ID": "AKIAGEOPATCHTESTKEY0",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anybody",
    "AWS_REGION": "us-east-1",
}
_MOTO = """
import boto3, sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(sys.argv[1], 9000, verbose=False)
server.start()
s3 = boto3.client("s3", endpoint_url=f"http://{sys.argv[1]}:9000")
s3.create_bucket(Bucket="my-bucket")
s3.upload_file(sys.argv[2], "my-bucket", "scene.tif")
print("up", flush=True)
threading.Event().wait()
"""
#: What the target holds, compared with a run of the same job on this machine, byte for byte.
_COMPARE = """
import json, sys
import zarr
import geopatch_dask as gp
from geopatch_dask.cli.job import load_job
job = load_job(sys.argv[1], {("output", "target"): sys.argv[2]})
with job.importable():
    gp.plan(**job.plan_arguments(), memory_limit=job.memory_limit).run("sync")
mine = zarr.open_group(sys.argv[2], mode="r")["data"][...]
status = gp.status("s3://my-bucket/ndvi.zarr")
theirs = zarr.open_group("s3://my-bucket/ndvi.zarr", mode="r")["data"][...]
told = {"complete": status.complete, "same": mine.tobytes() == theirs.tobytes()}
print(json.dumps(told | {"cells": int(theirs.size)}))
"""
#: Whether there is a mark of a run, or a record.
_MARKS = """
import fsspec
found = fsspec.filesystem("s3").find("my-bucket/ndvi.zarr.geopatch")
print(any("/runs/" in name or "/tiles/" in name for name in found))
"""
#: moto writes a line for every request.
_PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}

pytestmark = pytest.mark.integration


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Node]:
    """A node, and a bucket with a scene in it."""
    pytest.importorskip("moto.server", reason="it is the object store")
    with node(tmp_path) as made:
        env = {**BUCKET, "PATH": "/usr/bin:/bin", "AWS_DEFAULT_REGION": "us-east-1"}
        command = [sys.executable, "-c", _MOTO, STORE, str(scene(tmp_path))]
        store = subprocess.Popen(made.inside(command), env=env, text=True, **_PIPES)
        assert store.stdout is not None
        try:
            assert store.stdout.readline() == "up\n"
            made.secrets["geopatch-s3"] = BUCKET | {"AWS_ENDPOINT_URL": f"http://{STORE}:9000"}
            yield made
        finally:
            store.kill()
            store.communicate()


def scene(folder: Path) -> Path:
    import rasterio

    path = folder / "scene.tif"
    values = np.random.default_rng(5).integers(1, 4000, SHAPE, dtype="uint16")
    profile = {"driver": "GTiff", "count": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2]}
    with rasterio.open(
        path,
        "w",
        dtype="uint16",
        tiled=True,
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 4e5, 0, -10, 5e6),
        **profile,
    ) as file:
        file.write(values)
    return path


def configured(machine: Node, name: str) -> list[Spec]:
    """An overlay, and its ConfigMap on the node."""
    documents = render(OVERLAYS / name)
    config = one(documents, "ConfigMap")
    machine.configs[config["metadata"]["name"]] = config["data"]
    return documents


def compared(machine: Node, folder: Path, documents: list[Spec]) -> dict[str, Any]:
    """The target against a run on this machine."""
    place = folder / "compared"
    place.mkdir()
    for name, text in one(documents, "ConfigMap")["data"].items():
        (place / name).write_text(text)
    env = {**machine.secrets["geopatch-s3"], "PATH": "/usr/bin:/bin", "HOME": str(place)}
    command = [sys.executable, "-c", _COMPARE, str(place / "job.toml"), str(place / "out.zarr")]
    done = subprocess.run(
        machine.inside(command), env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def healthy(machine: Node, pod: Running, container: Spec, probe: str) -> bool:
    """What the kubelet would learn from a probe."""
    asked = container[probe]["httpGet"]
    [port] = [p["containerPort"] for p in container["ports"] if p["name"] == asked["port"]]
    url = f"http://{pod.address}:{port}{asked['path']}"
    code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).status)"
    done = subprocess.run(
        machine.inside([sys.executable, "-c", code]), capture_output=True, text=True
    )
    return done.stdout == "200\n"


# ---- with the operator ---------------------------------------------------------------------


def cluster_pods(machine: Node, job: Spec) -> list[Running]:
    """Scheduler and workers of a DaskJob, as the operator makes them; the probes answer."""
    operator = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    name, labels = job["metadata"]["name"], job["metadata"]["labels"]
    spec = job["spec"]["cluster"]["spec"]
    made = operator.build_scheduler_deployment_spec(name, spec["scheduler"]["spec"], {}, labels)
    pod = made["spec"]["template"]["spec"]
    address = machine.next_address()
    for host in (f"{name}-scheduler", f"{name}-scheduler.{SPACE}.svc.cluster.local"):
        machine.hosts[host] = address
    [container] = pod["containers"]
    pods = [machine.start(pod, container)]
    until(lambda: alive(pods[0]) and healthy(machine, pods[0], container, "readinessProbe"))
    for i in range(spec["worker"]["replicas"]):
        made = operator.build_worker_deployment_spec(
            f"{name}-default", SPACE, name, f"{i:010x}", spec["worker"]["spec"], {}, labels
        )
        pod = made["spec"]["template"]["spec"]
        pods.append(machine.start(pod, pod["containers"][0]))
    [container] = spec["worker"]["spec"]["containers"]
    for worker in pods[1:]:
        until(lambda w=worker: alive(w) and healthy(machine, w, container, "livenessProbe"))
    return pods


def alive(pod: Running) -> bool:
    assert pod.process.poll() is None, pod.log
    return True


def runner_pod(job: Spec) -> Spec:
    """The runner's pod, with what the operator adds to it."""
    operator = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    name = job["metadata"]["name"]
    made = operator.build_job_pod_spec(name, name, SPACE, job["spec"]["job"]["spec"], {}, {})
    found: Spec = made["spec"]
    return found


def test_a_dask_job_finishes(machine: Node, tmp_path: Path) -> None:
    documents = configured(machine, "job")
    job = one(documents, "DaskJob")
    pods = cluster_pods(machine, job)
    pod = runner_pod(job)
    for container in [*pod["initContainers"], *pod["containers"]]:
        running = machine.start(pod, container)
        assert running.wait() == 0, running.log + pods[1].log
    assert running.env["DASK_SCHEDULER_ADDRESS"].startswith("tcp://geopatch-scheduler.science.svc")
    found = compared(machine, tmp_path, documents)
    assert found["complete"]
    assert found["same"]
    assert found["cells"] == SHAPE[1] * SHAPE[2]
    for worker in pods[1:]:  # none of them wrote where it may not, or died of it
        assert alive(worker)
        assert "Read-only" not in worker.log


def test_the_runner_waits_for_a_scheduler_that_is_late(machine: Node) -> None:
    job = one(configured(machine, "job"), "DaskJob")
    pod = runner_pod(job)
    machine.hosts["geopatch-scheduler"] = "10.77.0.3"  # the pod after the next
    waiting = machine.start(pod, pod["initContainers"][0])
    time.sleep(5)
    assert waiting.process.poll() is None
    cluster = job["spec"]["cluster"]["spec"]
    assert machine.next_address() == "10.77.0.3"
    machine.start(cluster["scheduler"]["spec"], cluster["scheduler"]["spec"]["containers"][0])
    worker = cluster["worker"]["spec"]
    machine.start(
        worker,
        worker["containers"][0],
        DASK_SCHEDULER_ADDRESS="tcp://geopatch-scheduler:8786",
        DASK_WORKER_NAME="w",
    )
    assert waiting.wait(60) == 0, waiting.log


def test_a_pod_can_write_to_its_volumes_only(machine: Node) -> None:
    job = one(configured(machine, "job"), "DaskJob")
    pod = runner_pod(job)
    container = dict(pod["containers"][0])
    script = (
        "for p in / /etc /usr /job /opt; do touch $p/x 2>/dev/null && echo wrote $p; done; "
        "for p in /tmp /scratch; do touch $p/x && echo may $p; done; id -u; "
        "grep CapEff /proc/self/status; ls /job"
    )
    running = machine.start(pod, container | {"args": ["sh", "-c", script]})
    running.wait()
    words = running.log.split()
    assert "wrote" not in words
    assert words[:5] == ["may", "/tmp", "may", "/scratch", "10001"], running.log
    assert words[6] == "0" * 16
    assert words[7:] == ["job.toml", "model.py"]


def test_without_its_secret_a_pod_does_not_start(machine: Node) -> None:
    job = one(configured(machine, "job"), "DaskJob")
    machine.secrets["geopatch-s3"] = {"AWS_ACCESS_KEY_ID": "only"}
    pod = runner_pod(job)
    with pytest.raises(KeyError, match="AWS_SECRET_ACCESS_KEY"):
        machine.start(pod, pod["containers"][0])


# ---- without -------------------------------------------------------------------------------


#: Pods of shares that run at the same time: each has four workers, on whatever cores are here.
AT_ONCE = 4


def works_on_it(machine: Node) -> bool:
    """Whether a run has said beside the target that it is there, or has done something."""
    env = {**machine.secrets["geopatch-s3"], "PATH": "/usr/bin:/bin", "HOME": str(machine.work)}
    command = [sys.executable, "-c", _MARKS]
    done = subprocess.run(machine.inside(command), env=env, capture_output=True, text=True)
    return done.stdout.strip() == "True"


def test_shares_finish_a_target(machine: Node, tmp_path: Path) -> None:
    documents = configured(machine, "shares")
    job = one(documents, "Job")["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    indices = range(job["completions"])
    # As the Job does it: several at a time, whose pods know nothing of each other.
    for first in range(0, len(indices), AT_ONCE):
        running = {
            index: machine.start(pod, container, JOB_COMPLETION_INDEX=str(index))
            for index in indices[first : first + AT_ONCE]
        }
        if first == 0:  # the node of one goes away while it works; the Job starts the index again
            until(lambda: works_on_it(machine), 120)
            running[1].kill()
            running[1] = machine.start(pod, container, JOB_COMPLETION_INDEX="1")
        for index, share in running.items():
            assert share.wait() == 0, share.log
            assert f"{index}/{len(indices)}" in share.process.args[-1]  # type: ignore[index]
    finish = one(configured(machine, "finish"), "Job")["spec"]["template"]["spec"]
    running = machine.start(finish, finish["containers"][0])
    assert running.wait() == 0, running.log
    found = compared(machine, tmp_path, documents)
    assert found["complete"]
    assert found["same"]
