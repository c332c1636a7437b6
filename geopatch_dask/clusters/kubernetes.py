"""Clusters of pods: what the Dask operator makes of a ``DaskCluster``, asked for from Python.

::

    this process                    API server            operator            namespace
    cluster_spec() --- DaskCluster ---> stored --- sees it ---> creates ---> scheduler pod, service
         |                                                                   worker pods
         '------ waits, bounded by start_timeout; then tcp, or a port forward ------^

The name of a cluster that exists already (from ``deploy/kubernetes/overlays/interactive``, say)
connects to that one; it is left as it is when the client closes.  One that was made is deleted.

Everything goes through ``dask_kubernetes.operator.KubeCluster``.  What is added: the pods are ours
(:mod:`geopatch_dask.clusters.pods`), what is missing is said before anything is created, and
starting ends after a while with the reason that the pods give.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask

from geopatch_dask.clusters.options import known_words, optional, seconds_of, whole_number
from geopatch_dask.clusters.pods import OVERHEAD, Pods, cluster_spec
from geopatch_dask.clusters.request import Request
from geopatch_dask.credentials import looks_secret
from geopatch_dask.errors import OptionError
from geopatch_dask.planning.units import parse_bytes, seconds_text

__all__ = ["OPTIONS", "OVERHEAD", "make_kubernetes", "pods_of"]

#: Words of this kind, beside those of every kind.
OPTIONS: Mapping[str, str] = {
    "namespace": "where the pods are; that of the kubeconfig by default",
    "name": "of the cluster; one that exists is used, and left running",
    "image": "of scheduler and workers: the versions of this process, and the operator's modules",
    "cpu": "cores of a worker; 1 by default",
    "gpus": "GPUs of a worker; none by default",
    "spot": "true: workers go to nodes that may be taken away, the scheduler does not",
    "node_selector": "labels of the nodes of workers, a table",
    "tolerations": "taints that workers put up with, a list of tables",
    "secret": "name of a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "config_map": "name of a ConfigMap with modules; /job in every pod",
    "environment": "further variables of the pods, a table; no secrets",
    "service_account": "of the pods; they get no token of it",
    "pull_secret": "name of the Secret with which the image is pulled",
    "scratch": "disk of a pod for what it spills, '4 GiB' by default",
    "scheduler_memory": "of the scheduler, '2 GiB' by default",
    "service": "type of the scheduler's service: ClusterIP (default), NodePort, LoadBalancer",
    "idle_timeout": "without work, until the operator deletes it all; '1 h' by default, 0: never",
    "start_timeout": "until the scheduler must run; '10 min' by default",
}

#: Bytes of a slot where nothing is said.
MEMORY = 4 << 30
#: Seconds in which an API server must answer.
ANSWER = 15.0
_INSTALL = (
    "helm install --repo https://helm.dask.org --create-namespace -n dask-operator "
    "--generate-name dask-kubernetes-operator"
)
_POLICY = "kubectl apply -k deploy/kubernetes/base"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")
#: What does not describe pods, and so may be said of a cluster that exists.
_ANY_CLUSTER = ("namespace", "name", "start_timeout")
#: What Dask's own configuration says where it was left alone.
_UNSET_IMAGE = "ghcr.io/dask/dask:latest"

_log = logging.getLogger(__name__)


def make_kubernetes(request: Request, options: dict[str, Any]) -> Any:
    """A cluster in the current context of the kubeconfig, or around this pod.

    Parameters
    ----------
    request : Request
    options : dict
        Words of :data:`OPTIONS`.

    Returns
    -------
    dask_kubernetes.operator.KubeCluster
        Its scheduler runs; workers may still be coming.

    Raises
    ------
    OptionError
        For a wrong option, an absent package, no API server, no operator, no permission, or a
        scheduler that does not start in time: with the reason its pod gives.
    """
    known_words("kubernetes", options, OPTIONS)
    if request.tls is not None:
        raise OptionError(
            "tls is not for kind 'kubernetes': the Dask operator connects its pods by tcp; keep "
            f"others out by a network policy ({_POLICY}), or run scheduler and workers yourself "
            "and give their address, tls://host:8786"
        )
    operator = optional(
        "dask_kubernetes.operator.kubecluster.kubecluster", "kubernetes", "kubernetes"
    )
    limit = seconds_of("start_timeout", options.get("start_timeout", "10 min"))
    namespace, exists = _asked(_look(options.get("namespace"), options.get("name")))
    where = {"namespace": namespace, "quiet": True}
    if exists:
        _only_to_connect(options)
        where |= {"name": options["name"], "shutdown_on_close": False}
    else:
        body = cluster_spec(request, pods_of(options), request.memory or MEMORY)
        _asked(_warn_if_open(namespace))
        where |= {"custom_cluster_spec": body, "shutdown_on_close": True}
        where |= {"create_mode": operator.CreateMode.CREATE_ONLY}
    made = _bounded(operator.KubeCluster, limit)(**where)
    try:
        _sized(made, request, exists)
    except BaseException:
        made.close()
        raise
    return made


def pods_of(options: Mapping[str, Any]) -> Pods:
    """What the options say of the pods; pure, but for a name where none is given.

    Parameters
    ----------
    options : mapping
        Words of :data:`OPTIONS`; those that describe no pod are passed over.

    Raises
    ------
    OptionError
        For a value that makes no sense, no image, or a secret given literally.
    """
    known_words("kubernetes", options, OPTIONS)
    image = options.get("image") or _configured("image", _UNSET_IMAGE)
    if not image:
        raise OptionError(
            "a cluster of kind 'kubernetes' needs an image with geopatch_dask and the modules of "
            "the operator: build one from deploy/docker/Dockerfile and give image='...'"
        )
    given: dict[str, Any] = {"name": f"geopatch-{uuid.uuid4().hex[:8]}", "image": image}
    for word in ("name", "secret", "config_map", "service_account", "pull_secret", "service"):
        if options.get(word) is not None:
            given[word] = _checked(word, options[word], str, "a text")
    for word in ("cpu", "gpus"):
        if word in options:
            given[word] = whole_number(word, options[word], least=1 if word == "cpu" else 0)
    if "spot" in options:
        given["spot"] = _checked("spot", options["spot"], bool, "true or false")
    for word in ("scratch", "scheduler_memory"):
        if word in options:
            given[word] = parse_bytes(options[word])
    if "idle_timeout" in options:
        given["idle"] = round(seconds_of("idle_timeout", options["idle_timeout"]))
    if not _NAME.fullmatch(given["name"]):
        raise OptionError(
            f"name {given['name']!r} is no name of a cluster: at most 50 of a-z, 0-9 and -, from a "
            "letter on"
        )
    given["node_selector"] = _texts("node_selector", options.get("node_selector", {}))
    given["environment"] = _variables(options.get("environment", {}))
    tolerations = _checked("tolerations", options.get("tolerations", []), list, "a list of tables")
    given["tolerations"] = [
        _checked("tolerations", entry, Mapping, "a list of tables") for entry in tolerations
    ]
    services = ("ClusterIP", "NodePort", "LoadBalancer")
    if given.get("service", services[0]) not in services:
        raise OptionError(f"service must be one of {', '.join(services)}; got {given['service']!r}")
    return Pods(**given)


# ---- starting ------------------------------------------------------------------------------


def _bounded(base: Any, limit: float) -> Any:
    """KubeCluster, whose start ends after ``limit`` seconds, and leaves nothing behind.

    By itself it waits for ever for a scheduler whose image cannot be pulled.
    """

    class Bounded(base):  # type: ignore[misc]  # its base comes with an optional package
        shutdown_on_close: bool

        async def _start(self) -> None:
            try:
                await asyncio.wait_for(super()._start(), limit)
            except Exception as error:
                slow = isinstance(error, TimeoutError)
                why = await _reason(self.namespace, self.name) if slow else ""
                await self._give_up()
                raise _told(error, f"the cluster {self.name!r}", why or _late(limit)) from error

        async def _give_up(self) -> None:
            """Delete what was created; the process's end need not try again."""
            mine = bool(self.shutdown_on_close)
            self.shutdown_on_close = False
            if mine:
                await _request(self.namespace, f"daskclusters/{self.name}", method="DELETE")

    Bounded.__name__ = base.__name__
    return Bounded


def _late(limit: float) -> str:
    return f"it did not start within {seconds_text(limit)}, and its pods give no reason"


def _sized(made: Any, request: Request, exists: bool) -> None:
    """Tell the operator how many workers there shall be, where the body did not."""
    if request.adapt is not None:
        made.adapt(minimum=request.adapt[0], maximum=request.adapt[1])
    elif exists and request.workers is not None:
        made.scale(request.workers)


def _only_to_connect(options: Mapping[str, Any]) -> None:
    fixed = [word for word in options if word not in _ANY_CLUSTER]
    if fixed:
        raise OptionError(
            f"the cluster {options['name']!r} exists already and is used as it is: drop "
            f"{', '.join(fixed)}, or give another name"
        )


# ---- asking the API server -----------------------------------------------------------------


def _asked(question: Coroutine[Any, Any, Any]) -> Any:
    """The answer to a question, also where this thread runs an event loop (a notebook)."""

    async def bounded() -> Any:
        return await asyncio.wait_for(question, ANSWER)

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, bounded()).result()
        except OptionError:
            raise
        except Exception as error:
            slow = f"no answer within {seconds_text(ANSWER)}"
            raise _told(error, "the Kubernetes API server", slow) from error


async def _look(namespace: str | None, name: str | None) -> tuple[str, bool]:
    """The namespace, and whether there is a cluster of this name."""
    found = namespace or _configured("namespace", None) or (await _api()).namespace
    status, _ = await _request(found, "daskclusters")
    if status == 404:
        raise OptionError(f"the Dask operator is not installed in this Kubernetes: {_INSTALL}")
    if status in (401, 403):
        raise OptionError(
            f"this account may not list DaskClusters in namespace {found!r}: ask for a role; "
            f"kubectl auth can-i create daskclusters -n {found} tells whether you have it"
        )
    if name is None:
        return found, False
    return found, (await _request(found, f"daskclusters/{name}"))[0] == 200


async def _warn_if_open(namespace: str) -> None:
    """Say that nothing keeps others from the scheduler; only if that is sure."""
    place = {"base": "/apis", "version": "networking.k8s.io/v1"}
    status, found = await _request(namespace, "networkpolicies", **place)
    if status == 200 and not found.get("items"):
        _log.warning(
            "there is no network policy in namespace %r: whoever reaches the scheduler's pod can "
            "run anything in the workers; %s -n %s first, which has one for these pods",
            *(namespace, _POLICY, namespace),
        )


async def _reason(namespace: str, name: str) -> str:
    """Why pods of a cluster do not run, as they say it; empty where they say nothing."""
    query = {"labelSelector": f"dask.org/cluster-name={name}"}
    status, found = await _request(namespace, "pods", base="/api", version="v1", params=query)
    if status != 200:
        return ""
    pods = found.get("items", ())
    if not pods:
        return "the operator has made no pod of it: look at the operator's log"
    told = [f"pod {pod['metadata']['name']}: {why}" for pod in pods for why in _complaints(pod)]
    return "; ".join(told[:3])


async def _request(namespace: str, url: str, **options: Any) -> tuple[int, Any]:
    """Status and body of a request; about the operator's kinds unless told otherwise."""
    place = {"base": "/apis", "version": "kubernetes.dask.org/v1", **options}
    api = await _api()
    async with api.call_api(
        namespace=namespace, url=url, raise_for_status=False, **place
    ) as response:
        if response.status_code >= 500:
            response.raise_for_status()
        return response.status_code, response.json() if response.content else {}


async def _api() -> Any:
    return await optional("kr8s", "kubernetes", "kubernetes").asyncio.api()


def _complaints(pod: Mapping[str, Any]) -> list[str]:
    status = pod.get("status", {})
    waits = [c.get("state", {}).get("waiting") for c in status.get("containerStatuses", ())]
    told = [(w.get("reason"), w.get("message")) for w in waits if w]
    told += [
        (condition.get("reason"), condition.get("message"))
        for condition in status.get("conditions", ())
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False"
    ]
    return [": ".join(text for text in pair if text) for pair in told if any(pair)]


def _told(error: Exception, what: str, late: str) -> OptionError:
    """One line about whatever went wrong on the way to the API server, or there."""
    if isinstance(error, OptionError):
        return error
    if isinstance(error, TimeoutError):
        return OptionError(f"{what} cannot be used: {late}")
    text = " ".join(str(error).split()) or type(error).__name__
    if "valid credentials" in text:
        text = "no kubeconfig, and no service account of a pod: set KUBECONFIG, or kubectl config"
    elif "connection attempts failed" in text:
        text += ": is the address in the kubeconfig right (kubectl cluster-info)?"
    return OptionError(f"{what} cannot be used: {text}")


# ---- values --------------------------------------------------------------------------------


def _configured(name: str, unset: Any) -> Any:
    """What the user told Dask's own configuration, if anything."""
    value = dask.config.get(f"kubernetes.{name}", None)
    return None if value == unset else value


def _checked(word: str, value: Any, kind: Any, text: str) -> Any:
    if not isinstance(value, kind):
        raise OptionError(f"{word} must be {text}; got {value!r}")
    return value


def _texts(word: str, value: Any) -> dict[str, str]:
    table = _checked(word, value, Mapping, "a table of texts")
    return {str(k): _checked(f"{word} {k}", v, str, "a text") for k, v in table.items()}


def _variables(value: Any) -> dict[str, str]:
    """Variables that may be written into an object that many can read."""
    configured = _configured("env", {}) or {}
    table = dict(configured) if isinstance(configured, Mapping) else {}
    table |= _texts("environment", value)
    for name in table:
        if looks_secret(name):
            raise OptionError(
                f"environment {name} looks like a secret, and a DaskCluster can be read by many: "
                "put it into a Secret, and name that with secret='...'"
            )
    return {str(k): str(v) for k, v in table.items()}
