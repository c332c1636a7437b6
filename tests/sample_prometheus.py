"""A real Prometheus on loopback that scrapes Dask's processes, for tests and pictures."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "geopatch.json"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"


def slowly(x: Any) -> Any:
    """An operator that takes as long as a real one."""
    time.sleep(0.005)
    return x * 2


def installed() -> bool:
    return shutil.which("prometheus") is not None


def targets(client: Client) -> list[str]:
    """Where the processes of a cluster serve their numbers."""
    info = client.scheduler_info(n_workers=-1)
    found = [f"127.0.0.1:{info['services']['dashboard']}"]
    return found + [f"127.0.0.1:{w['services']['dashboard']}" for w in info["workers"].values()]


def write_targets(folder: Path, client: Client) -> None:
    text = json.dumps([{"targets": targets(client)}])
    (folder / "targets.tmp").write_text(text)
    (folder / "targets.tmp").rename(folder / "targets.json")


class Prometheus:
    """Asks a Prometheus by HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: Any) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The value of an expression now: ``{"metric": labels, "value": [time, text]}``."""
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def series(self, expression: str, start: float, stop: float, step: float = 1.0) -> Any:
        """The course of an expression."""
        times = {"start": start, "end": stop, "step": step}
        return self.get("/api/v1/query_range", query=expression, **times)["result"]

    def up(self) -> list[str]:
        """Addresses that answer."""
        return [s["metric"]["instance"] for s in self.query("up") if s["value"][1] == "1"]


@contextmanager
def running(folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the configuration that this project ships, asking every second.

    Scrapes what ``targets.json`` in ``folder`` names.
    """
    config = CONFIG.read_text().replace("10s", "1s")
    (folder / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = (folder / "prometheus.log").open("w")
    with log, subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process:
        try:
            found = Prometheus(port)
            until = time.monotonic() + 30
            while True:
                try:
                    found.query("up")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError((folder / "prometheus.log").read_text()) from None
                    time.sleep(0.1)
            yield found
        finally:
            process.kill()


def panels() -> list[dict[str, Any]]:
    """Panels of the dashboard."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions(panel: dict[str, Any], interval: str = "5s", time_range: str = "1m") -> list[str]:
    """Its queries, with Grafana's variables filled in for all plans."""
    filled = [target["expr"] for target in panel["targets"]]
    for name, value in (
        ("$__rate_interval", interval),
        ("$__range", time_range),
        ("$plan", ".*"),
    ):
        filled = [text.replace(name, value) for text in filled]
    return filled
