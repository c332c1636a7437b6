"""An API server on loopback that knows as much as a DaskCluster needs, and an operator in it.

It keeps what is posted, and answers as if the operator had acted: the cluster is Running, its
scheduler's pod is ready, and its service leads to a scheduler that the test has started.  ``said``
is every request; what is stuck (``pod``) or missing (``operator``, ``allowed``, ``policies``) can
be set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

Spec = dict[str, Any]
_URL = re.compile(r"^/(?:api|apis)/(?P<version>[\w./-]+?)/namespaces/(?P<ns>[\w-]+)/(?P<rest>.+)$")
_STUCK = {
    "phase": "Pending",
    "containerStatuses": [
        {
            "name": "scheduler",
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such"}},
        }
    ],
}
_READY = {
    "phase": "Running",
    "conditions": [
        {"type": "Ready", "status": "True"},
        {"type": "ContainersReady", "status": "True"},
    ],
    "containerStatuses": [{"name": "scheduler", "state": {"running": {}}}],
}


@dataclass
class Kubernetes:
    """What the server knows.

    Parameters
    ----------
    comm, http : int
        Ports of the scheduler, and of its pages.
    """

    comm: int = 0
    http: int = 0
    operator: bool = True
    allowed: bool = True
    policies: list[str] = field(default_factory=lambda: ["geopatch-scheduler"])
    pod: Spec = field(default_factory=lambda: _READY)
    objects: dict[str, Spec] = field(default_factory=dict)
    said: list[tuple[str, str, Any]] = field(default_factory=list)

    def posted(self, plural: str) -> list[Spec]:
        """Bodies that were to be created."""
        return [b for method, url, b in self.said if method == "POST" and url.endswith(plural)]

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        """Status and body."""
        self.said.append((method, url, body))
        found = _URL.match(urlsplit(url).path)
        if found is None:
            version = {"gitVersion": "v1.34.0", "major": "1", "minor": "34"}
            return (200, version) if url.rstrip("/") == "/version" else (404, _status(404))
        plural, _, name = found["rest"].partition("/")
        if found["version"].startswith("kubernetes.dask.org"):
            if not self.operator:
                return 404, _status(404)
            if not self.allowed:
                return 403, _status(403)
            return self._object(method, plural, name, body)
        if plural == "networkpolicies":
            items = [{"metadata": {"name": name}} for name in self.policies]
            return 200, {"kind": "List", "apiVersion": "v1", "items": items}
        fields = parse_qs(urlsplit(url).query).get("fieldSelector", [""])[0]
        made = self._service() if plural == "services" else self._pod(fields)
        if name:
            return (200, made) if made else (404, _status(404))
        return 200, {"kind": "List", "apiVersion": "v1", "items": [made] if made else []}

    def _object(self, method: str, plural: str, name: str, body: Any) -> tuple[int, Any]:
        key = f"{plural}/{name}"
        if method == "POST":
            key += body["metadata"]["name"]
            if key in self.objects:
                return 409, _status(409)
            self.objects[key] = body | {"status": {"phase": "Running"}}
            if plural == "daskclusters":
                worker = {"spec": {"worker": dict(body["spec"]["worker"])}}
                group = f"{body['metadata']['name']}-default"
                self.objects[f"daskworkergroups/{group}"] = {"metadata": {"name": group}, **worker}
            return 201, self.objects[key]
        if not name:
            items = [o for k, o in self.objects.items() if k.startswith(f"{plural}/")]
            return 200, {"kind": "List", "apiVersion": "v1", "items": items}
        key = f"{plural}/{name.removesuffix('/scale')}"
        if key not in self.objects:
            return 404, _status(404)
        if method == "DELETE":
            return 200, self.objects.pop(key)
        if method == "PATCH":
            self.objects[key]["spec"] = self.objects[key]["spec"] | body["spec"]
        return 200, self.objects[key]

    def _service(self) -> Spec | None:
        clusters = [o for k, o in self.objects.items() if k.startswith("daskclusters/")]
        if not clusters:
            return None
        name = clusters[0]["metadata"]["name"]
        ports = [
            {"name": "tcp-comm", "port": self.comm},
            {"name": "http-dashboard", "port": self.http},
        ]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"{name}-scheduler", "namespace": "science"},
            "spec": clusters[0]["spec"]["scheduler"]["service"]
            | {"type": "LoadBalancer", "ports": ports},
            "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}},
        }

    def _pod(self, fields: str) -> Spec | None:
        if not any(key.startswith("daskclusters/") for key in self.objects):
            return None
        if "Running" in fields and self.pod["phase"] != "Running":
            return None
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "scheduler-pod", "namespace": "science"},
            "spec": {"containers": [{"name": "scheduler"}]},
            "status": self.pod,
        }

    def stick(self) -> None:
        """From now on, images cannot be pulled."""
        self.pod = _STUCK


def _status(code: int) -> Spec:
    told = {403: "forbidden by RBAC", 404: "not found", 409: "already exists"}[code]
    return {"kind": "Status", "status": "Failure", "message": told, "code": code}


@contextmanager
def api_server(folder: Path) -> Iterator[tuple[Kubernetes, Path]]:
    """A server, and a kubeconfig that leads to it."""
    known = Kubernetes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, told = known.answer(self.command, self.path, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *args: object) -> None:
            del args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        config = folder / "kubeconfig"
        address = f"http://127.0.0.1:{server.server_address[1]}"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "here", "cluster": {"server": address}}],
                    "users": [{"name": "me", "user": {"token": "not-a-secret"}}],
                    "contexts": [
                        {
                            "name": "here",
                            "context": {"cluster": "here", "user": "me", "namespace": "science"},
                        }
                    ],
                    "current-context": "here",
                }
            )
        )
        yield known, config
        server.shutdown()
