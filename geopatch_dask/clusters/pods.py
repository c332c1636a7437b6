"""What the Dask operator is told about a cluster: options in, a ``DaskCluster`` out, no calls.

::

    DaskCluster                                     the operator makes of it
    +-------------------------------------------+
    | scheduler   one pod, one service          |   Deployment + Service   :8786 comm  :8787 http
    | worker      a pod for every slot          |   Deployment per worker  :8789 :8790 comm
    |             dask worker --nthreads 1      |                          :8788 http
    +-------------------------------------------+

The memory of a worker pod::

    limits.memory  =  memory of a slot   +   OVERHEAD
                      --memory-limit         the nanny, Python's own, what the kernel
                      the plan's model       keeps for pipes and sockets

Dask ends a worker at 95 % of ``--memory-limit`` and starts it again in the same pod, and the run
tells which super-tile it was.  Were the two numbers equal, the kernel would kill the pod first.

The manifests in ``deploy/kubernetes`` are what this function makes; a test compares them.  Pods run
as a user without rights on a read-only file system: what they write is in two empty folders,
``/tmp`` and ``/scratch``.  No secret is part of it, only names of secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from geopatch_dask.clusters.request import Request
from geopatch_dask.clusters.settings import environment

__all__ = [
    "OVERHEAD",
    "SPOT",
    "USER",
    "Pods",
    "cluster_spec",
    "container_spec",
    "pod_spec",
    "quantity",
    "resources_of",
]

#: Bytes of a worker pod beyond its slot.  The nanny and a helper take 97 MB resident (measured
#: with distributed 2026.8); the rest is for what the kernel counts to the pod (pipes,
#: sockets, small files) and for growth between two looks of Dask's.
OVERHEAD = 512 << 20
#: User and group of the image; no such user need exist on a node.
USER = 10001
#: Ports of a worker pod.  Fixed, so that a network policy can name them.
HTTP, COMM, NANNY = 8788, 8789, 8790
#: Where a ConfigMap with the operator's modules is mounted.
JOB_FOLDER = "/job"

Spec = dict[str, Any]

#: Variables of a bucket, by their keys in a secret; the last three may be missing.
_BUCKET = (
    ("AWS_ACCESS_KEY_ID", False),
    ("AWS_SECRET_ACCESS_KEY", False),
    ("AWS_SESSION_TOKEN", True),
    ("AWS_ENDPOINT_URL", True),
    ("AWS_REGION", True),
)
#: How providers mark nodes that may be taken away: label, and its value there.
SPOT = (
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Pods:
    """What the pods of a cluster are like; see :data:`geopatch_dask.clusters.kubernetes.OPTIONS`.

    Parameters
    ----------
    name, image : str
    cpu : int
        Cores of a worker.
    gpus : int
        Of a worker.
    spot : bool
        Workers prefer nodes that may be taken away; the scheduler avoids them.
    node_selector : mapping of str to str
        Of workers.
    tolerations : sequence of mapping
        Of workers, beside those that ``gpus`` and ``spot`` need.
    secret, config_map, service_account, pull_secret : str or None
        Names of objects in the namespace.
    environment : mapping of str to str
    scratch, scheduler_memory : int, bytes
    service : str
        Type of the scheduler's service.
    idle : int, seconds
        Without work, until the operator deletes the cluster; 0 for never.
    """

    name: str
    image: str
    cpu: int = 1
    gpus: int = 0
    spot: bool = False
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    secret: str | None = None
    config_map: str | None = None
    service_account: str | None = None
    pull_secret: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    scratch: int = 4 << 30
    scheduler_memory: int = 2 << 30
    service: str = "ClusterIP"
    idle: int = 3600


def cluster_spec(request: Request, pods: Pods, memory: int) -> Spec:
    """The ``DaskCluster`` for a request.

    Parameters
    ----------
    request : Request
    pods : Pods
    memory : int, bytes
        Of one slot.

    Returns
    -------
    dict
        A body for the API server.

    Examples
    --------
    >>> body = cluster_spec(Request(workers=4), Pods("mine", "image:1"), 3 << 30)
    >>> body["spec"]["worker"]["replicas"]
    4
    >>> body["spec"]["worker"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    '3584Mi'
    """
    replicas = request.adapt[0] if request.adapt else request.workers
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": pods.name, "labels": {"app.kubernetes.io/part-of": "geopatch"}},
        "spec": {
            "idleTimeout": pods.idle,
            "scheduler": {"spec": _scheduler(pods), "service": _service(pods)},
            "worker": {
                "replicas": 2 if replicas is None else replicas,
                "spec": _worker(pods, memory),
            },
        },
    }


# ---- pods ----------------------------------------------------------------------------------


def _scheduler(pods: Pods) -> Spec:
    container = container_spec(pods, "scheduler", resources_of(1, pods.scheduler_memory))
    container["args"] = ["dask", "scheduler", "--host", "0.0.0.0", "--port", "8786"]
    container["args"] += ["--dashboard-address", ":8787"]
    container["ports"] = [_port("tcp-comm", 8786), _port("http-dashboard", 8787)]
    container["readinessProbe"] = _probe(period=5, timeout=5, failures=3)
    container["livenessProbe"] = _probe(period=20, timeout=10, failures=15)
    spec = pod_spec(pods, container)
    if pods.spot:
        terms = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT]
        spec["affinity"] = _affinity(
            "requiredDuringSchedulingIgnoredDuringExecution",
            {"nodeSelectorTerms": [{"matchExpressions": terms}]},
        )
    return spec


def _worker(pods: Pods, memory: int) -> Spec:
    """A pod with one slot.

    Its liveness probe waits ten minutes: an operator that holds Python's lock keeps the worker
    from answering, and is at work.  What hangs for good, a timeout of the run ends.
    """
    limits = resources_of(pods.cpu, memory + OVERHEAD)
    container = container_spec(pods, "worker", limits)
    if pods.gpus:
        for kind in limits.values():
            kind[_GPU] = str(pods.gpus)
    container["args"] = [
        *("dask", "worker", "--name", "$(DASK_WORKER_NAME)"),
        *("--nworkers", "1", "--nthreads", "1", "--memory-limit", f"{memory >> 20}MiB"),
        *("--worker-port", str(COMM), "--nanny-port", str(NANNY)),
        *("--dashboard-address", f":{HTTP}"),
        *("--local-directory", "/scratch", "--death-timeout", "300"),
    ]
    container["ports"] = [
        _port("http-dashboard", HTTP),
        _port("tcp-worker", COMM),
        _port("tcp-nanny", NANNY),
    ]
    container["livenessProbe"] = _probe(period=30, timeout=10, failures=20)
    return pod_spec(pods, container) | _placement(pods)


def _placement(pods: Pods) -> Spec:
    """Which nodes workers go to."""
    tolerations = [dict(given) for given in pods.tolerations]
    found: Spec = {}
    if pods.gpus:
        tolerations.append({"key": _GPU, "operator": "Exists", "effect": "NoSchedule"})
    if pods.spot:
        tolerations += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in SPOT
        ]
        found["affinity"] = _affinity(
            "preferredDuringSchedulingIgnoredDuringExecution",
            [
                {
                    "weight": 100,
                    "preference": {
                        "matchExpressions": [{"key": key, "operator": "In", "values": [value]}]
                    },
                }
                for key, value in SPOT
            ],
        )
    found["tolerations"] = tolerations
    if pods.node_selector:
        found["nodeSelector"] = dict(pods.node_selector)
    return found


def pod_spec(pods: Pods, container: Spec) -> Spec:
    """A pod without rights, around one container."""
    spec: Spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 60,
        "tolerations": [],
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": quantity(pods.scratch)}},
        ],
    }
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    if pods.pull_secret:
        spec["imagePullSecrets"] = [{"name": pods.pull_secret}]
    if pods.config_map:
        spec["volumes"].append({"name": "job", "configMap": {"name": pods.config_map}})
    return spec


def container_spec(pods: Pods, name: str, resources: Spec) -> Spec:
    """A container without rights, on a read-only file system; what it runs is still to be said."""
    mounts: list[Spec] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "scratch", "mountPath": "/scratch"},
    ]
    if pods.config_map:
        mounts.append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
    return {
        "name": name,
        "image": pods.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(pods),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": mounts,
    }


def _environment(pods: Pods) -> list[Spec]:
    """Variables of a container; what the user gives wins over what we set."""
    plain = {"HOME": "/tmp", "DASK_TEMPORARY_DIRECTORY": "/scratch"}
    plain |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if pods.config_map:
        plain["PYTHONPATH"] = JOB_FOLDER
    plain |= environment() | dict(pods.environment)
    found: list[Spec] = [{"name": name, "value": value} for name, value in plain.items()]
    for name, optional in _BUCKET if pods.secret else ():
        if name not in pods.environment:
            reference: Spec = {"name": pods.secret, "key": name}
            if optional:
                reference["optional"] = True
            found.append({"name": name, "valueFrom": {"secretKeyRef": reference}})
    return found


def _service(pods: Pods) -> Spec:
    ports = (("tcp-comm", 8786), ("http-dashboard", 8787))
    return {
        "type": pods.service,
        "selector": {
            "dask.org/cluster-name": pods.name,
            "dask.org/component": "scheduler",
        },
        "ports": [
            {"name": name, "protocol": "TCP", "port": port, "targetPort": name}
            for name, port in ports
        ],
    }


# ---- small parts ---------------------------------------------------------------------------


def quantity(n: int) -> str:
    """Bytes as Kubernetes writes them, rounded down to whole MiB.

    >>> quantity(3 << 30), quantity(3 * 2**30 + (512 << 20))
    ('3Gi', '3584Mi')
    """
    return f"{n >> 30}Gi" if n % (1 << 30) == 0 else f"{n >> 20}Mi"


def resources_of(cpu: int, memory: int) -> Spec:
    """Requests and limits, equal: the pod gets what the plan counts on, and no more."""
    return {kind: {"cpu": str(cpu), "memory": quantity(memory)} for kind in ("requests", "limits")}


def _port(name: str, number: int) -> Spec:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _probe(period: int, timeout: int, failures: int) -> Spec:
    return {
        "httpGet": {"port": "http-dashboard", "path": "/health"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _affinity(when: str, what: Any) -> Spec:
    return {"nodeAffinity": {when: what}}
