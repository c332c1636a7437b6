"""Starting the servers that tests talk to, and options that lead there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Names of variables, as locations carry them; :func:`credentials` sets them.
KEY, SECRET = "GP_TEST_KEY", "GP_TEST_SECRET"
#: Long enough to be found anywhere.
VALUES = {KEY: "AKIAGEOPATCHTESTKEY0", SECRET: "wJalrXUtnFEMI-K7MDENG-geopatch-test"}


@contextmanager
def process(script: str, *args: object) -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, str(HERE / script), *map(str, args)]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.communicate()


def options(port: int, **more: Any) -> dict[str, Any]:
    """Storage options for a server on loopback."""
    return {
        "key": f"env:{KEY}",
        "secret": f"env:{SECRET}",
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
        **more,
    }
