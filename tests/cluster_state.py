"""What a cluster leaves behind in this process: child processes, and Dask's settings."""

from __future__ import annotations

from typing import Any

import dask
import psutil

#: Settings that are ours while a cluster is open.
NAMES = ("distributed.scheduler.allowed-failures", "distributed.deploy.lost-worker-timeout")


def told() -> list[Any]:
    """What Dask's configuration says of them, and of the environment of workers."""
    return [dask.config.get(name) for name in (*NAMES, "distributed.nanny.pre-spawn-environ")]


def children() -> set[int]:
    """Processes that this one has started, and those have."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def tracker() -> set[int]:
    """Processes of Python's own that stay: they clean up after us at the very end."""
    found = set()
    for process in psutil.Process().children():
        if "resource_tracker" in " ".join(process.cmdline()):
            found.add(process.pid)
    return found
