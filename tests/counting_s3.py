"""A process that speaks S3 on loopback, as s3_server.py does, and counts what it is asked.

python counting_s3.py BUCKET ...       prints its port once the buckets are there

``GET /_requests`` answers how often it was asked, by kind, since it was last asked that, and with
which names: ``{"GET": ["tiles/a.json", ...], ...}``.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Asked = dict[str, list[str]]


def kind_of(method: str, key: str, query: dict[str, list[str]]) -> str:
    """The kind of a request, as providers count and charge them."""
    if method == "GET" and not key:
        return "LIST"
    if method == "POST":
        return "DELETE" if "delete" in query else "PUT"
    return method


class Counting:
    """Passes requests on to moto and remembers them."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.asked: Asked = {}
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].lstrip("/")
        if path == "_requests":
            with self.lock:
                body, self.asked = json.dumps(self.asked).encode(), {}
            start("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        _, _, key = path.partition("/")
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        kind = kind_of(environ["REQUEST_METHOD"], key, query)
        with self.lock:
            self.asked.setdefault(kind, []).append(key or query.get("prefix", [""])[0])
        answer: Iterable[bytes] = self.moto(environ, start)
        return answer


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    counting = Counting()
    server = make_server("127.0.0.1", 0, counting, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    for bucket in sys.argv[1:]:
        s3.create_bucket(Bucket=bucket)
    counting.asked = {}
    print(server.port, flush=True)
    sys.stdin.read()
    server.shutdown()
