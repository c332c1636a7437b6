"""How Dask has to be set where we start its processes.

Two kinds of processes, two ways to tell them::

    in this process    scheduler of local, slurm, pbs;      held(kind): dask.config, while it lives
                       nannies of local
    somewhere else     workers of slurm, pbs;               environment(): DASK_... variables of the
                       scheduler and workers of kubernetes  job script or the pod

Dask looks some settings up when it starts a scheduler or a nanny (also one that adapting starts
later), others each time a worker is lost.  They are therefore held as long as the cluster is
open, and given back when the last one closes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

import dask

__all__ = ["environment", "held"]

_SPAWN = "distributed.nanny.pre-spawn-environ"
#: Allocation in worker processes, bytes.  Dask's MALLOC_TRIM_THRESHOLD_ of 64 kB also freezes the
#: size from which glibc maps memory at 128 kB, so that every temporary of an operator is mapped,
#: zeroed and unmapped again: 7.2 ms of CPU instead of 1.1 for elementwise work on 256 x 256 cells.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": 32 << 20, "MALLOC_MMAP_THRESHOLD_": 4 << 20}
#: What workers log: memory, which decides runs, but not how a connection or a cancelled task ended
#: (failures of a super-tile come back as outcomes).
_LOGGING = {
    "DASK_LOGGING": "{'distributed.worker': 'critical', 'distributed.worker.memory': 'warning'}"
}

#: What the death of a worker means to a super-tile, the driver decides: Dask must not run a task
#: once more by itself.
_SCHEDULER = {"distributed.scheduler.allowed-failures": 0}
#: Messages that either end of a connection remembers, for those who debug Dask.  They come in
#: lists of some twenty where super-tiles are short, and Dask's 1000 lists are 25 MB.
_LOGS = {"distributed.admin.low-level-log-length": 100}
#: Workers of this machine cannot be cut off; and a worker that is slow to come back on a busy
#: machine is waited for (by default, 15 s later it is dropped).
_HERE = {
    "distributed.scheduler.worker-ttl": None,
    "distributed.deploy.lost-worker-timeout": "10 minutes",
}
#: The nanny of a worker that was killed for its memory starts it again in the same batch job.  On
#: a busy shared file system that takes longer than the 15 s after which Dask would cancel the job.
_BATCH = {"distributed.deploy.lost-worker-timeout": "60 s"}

#: Settings of open clusters, the latest last, and what was there before the first.
_open: list[tuple[object, Mapping[str, Any]]] = []
_before: dict[str, Any] = {}
_lock = Lock()


def environment() -> dict[str, str]:
    """Variables for schedulers and workers that others start: a job script, a pod.

    Returns
    -------
    dict of str to str
        Secrets are none of it.  What the environment there already says should win.

    Examples
    --------
    >>> environment()["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"]
    '0'
    """
    return {
        _variable(name): str(value)
        for name, value in {**_SCHEDULER, _SPAWN: _MALLOC | _LOGGING}.items()
    }


@contextmanager
def held(kind: str) -> Iterator[None]:
    """Within it, Dask is set for a cluster of this kind whose scheduler runs in this process.

    :func:`geopatch_dask.cluster` enters it before it calls the maker of a kind, and leaves it when
    the cluster is closed.  Clusters may be opened and closed in any order: the settings are those
    of the latest that is still open, and the user's own once none is.

    Parameters
    ----------
    kind : str
        As for :func:`geopatch_dask.cluster`.
    """
    mine = object()
    with _lock:
        _open.append((mine, _settings(kind)))
        _apply()
    try:
        yield
    finally:
        with _lock:
            _open[:] = [entry for entry in _open if entry[0] is not mine]
            _apply()


def _settings(kind: str) -> dict[str, Any]:
    if kind == "local":
        return {
            **_SCHEDULER,
            **_LOGS,
            **_HERE,
            _SPAWN: dask.config.get(_SPAWN) | _MALLOC | _LOGGING,
        }
    if kind in ("slurm", "pbs"):
        return {**_SCHEDULER, **_LOGS, **_BATCH}
    return {}


def _apply() -> None:
    """Bring Dask's configuration to what the open clusters need."""
    wanted = dict(_open[-1][1]) if _open else {}
    for name in wanted:
        _before.setdefault(name, dask.config.get(name))
    dask.config.set({**_before, **wanted})
    if not _open:
        _before.clear()


def _variable(name: str) -> str:
    """The environment variable from which Dask reads a setting."""
    return f"DASK_{name.replace('.', '__').replace('-', '_').upper()}"
