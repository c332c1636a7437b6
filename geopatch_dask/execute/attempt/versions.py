"""What decides bytes besides the plan: versions and threads, compared over a cluster.

The same plan gives the same bytes when the same code runs it.  Another numpy may round a sum
otherwise, another GDAL may resample otherwise, another Dask may not even understand the graph::

    client ----- scheduler          python, geopatch_dask, dask, distributed:  must agree
       +---- workers                 the rest, and threads of BLAS:             told

Every process describes itself in plain values (:func:`about`), because the one that reads them
may have another version of this package.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import dask
from distributed import Client

from geopatch_dask.errors import OptionError

__all__ = [
    "THREADS",
    "Answers",
    "about",
    "ask",
    "compare_versions",
    "differences",
    "recorded_versions",
    "versions",
]

#: Distributions whose versions are compared; GDAL comes with rasterio.
PACKAGES = ("geopatch_dask", "numpy", "zarr", "numcodecs", "rasterio", "xarray")
#: Those that have to agree, or processes may not understand each other.
HARD = ("geopatch_dask", "dask", "distributed")
#: Environment variables that set how many threads numpy's libraries use.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: What stands for a package that is not there.
ABSENT = "none"


def versions() -> dict[str, str]:
    """Versions of what decides bytes in this process, by name; ``"none"`` where it is missing.

    >>> sorted(versions())[:4]
    ['dask', 'distributed', 'gdal', 'geopatch_dask']
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {name: _version(name) for name in (*PACKAGES, "dask", "distributed")}
    return found | {"gdal": _gdal()}


@cache
def recorded_versions() -> Mapping[str, str]:
    """The same, found once: it goes into every record."""
    return versions()


def _version(name: str) -> str:
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if isinstance(loaded, str):
        return loaded
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def _gdal() -> str:
    try:
        import rasterio
    except ImportError:  # a broken installation of GDAL shows here, too
        return ABSENT
    return str(rasterio.__gdal_version__)


def about() -> dict[str, Any]:
    """This process, in plain values."""
    return {
        "versions": versions(),
        "threads": {name: os.environ.get(name) for name in THREADS},
        "cores": _cores(),
        "host": socket.gethostname(),
    }


def about_worker(dask_worker: Any) -> dict[str, Any]:
    """As :func:`about`, with the threads and limits of the worker that Dask hands over."""
    memory = dask_worker.memory_manager
    return about() | {
        "nthreads": int(dask_worker.state.nthreads),
        "memory_limit": int(memory.memory_limit or 0),
        "nanny": dask_worker.nanny is not None,
        "pause": float(memory.memory_pause_fraction or 0),
        "terminate": float(dask.config.get("distributed.worker.memory.terminate") or 0),
    }


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Answers:
    """What the processes of a cluster say about themselves.

    Parameters
    ----------
    client, scheduler : mapping
        What :func:`about` says; of the scheduler it may be the exception that it answered with.
    workers : mapping of address to mapping, or to the exception that came instead
    """

    client: Mapping[str, Any]
    scheduler: Mapping[str, Any] | Exception
    workers: Mapping[str, Mapping[str, Any] | Exception]

    @property
    def answers(self) -> dict[str, Mapping[str, Any]]:
        """Workers that answered."""
        return {k: v for k, v in self.workers.items() if isinstance(v, Mapping)}


def ask(client: Client) -> Answers:
    """Ask the scheduler and every worker, at once; with no workers there is nobody to ask."""
    try:
        scheduler: Mapping[str, Any] | Exception = client.run_on_scheduler(about)
    except Exception as error:  # whatever an import may raise there
        scheduler = error
    return Answers(about(), scheduler, client.run(about_worker, on_error="return"))


def compare_versions(client: Client) -> list[str]:
    """What differs between this process, the scheduler and the workers, one line per difference.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    list of str
        Differences that a run puts up with; its bytes may be others than those of another cluster.

    Raises
    ------
    OptionError
        When geopatch_dask, dask, distributed or the minor version of Python differ, or are missing
        somewhere.
    """
    found = ask(client)
    # Who dies in this very moment has no versions; losing workers is the driver's business.
    there = {k: v for k, v in found.workers.items() if not isinstance(v, OSError)}
    hard, soft = differences(replace(found, workers=there))
    if hard:
        more = f" (and {len(hard) - 1} more)" if len(hard) > 1 else ""
        raise OptionError(
            f"{hard[0]}{more}: install the same versions everywhere; `geopatch doctor --cluster "
            "ADDRESS` lists them"
        )
    return soft


def differences(found: Answers) -> tuple[list[str], list[str]]:
    """Lines about what must agree and does not, and about the rest."""
    hard = _silent(found)
    soft: list[str] = []
    ours, answers = found.client["versions"], found.answers
    for name in ours:
        theirs = Counter(str(worker["versions"].get(name)) for worker in answers.values())
        for value, count in sorted(theirs.items()):
            if value != ours[name]:
                who = f"{count} of {_counted(len(found.workers), 'worker')}"
                verb = "has" if count == 1 else "have"
                line = f"{who} {verb} {name} {value}, the client {ours[name]}"
                (hard if _is_hard(name, value, ours[name]) else soft).append(line)
    if isinstance(found.scheduler, Mapping):
        theirs_of = found.scheduler["versions"]
        for name in ("python", *HARD):
            if theirs_of.get(name) != ours[name]:
                line = f"the scheduler has {name} {theirs_of.get(name)}, the client {ours[name]}"
                must = _is_hard(name, str(theirs_of.get(name)), ours[name])
                (hard if must else soft).append(line)
    return hard, soft + _threads(answers)


def _silent(found: Answers) -> list[str]:
    """Processes that could not even say what they are: the package is missing, or another one."""
    lines = []
    if isinstance(found.scheduler, Exception):
        lines.append(f"the scheduler cannot run geopatch_dask ({_named(found.scheduler)})")
    failed = Counter(_named(v) for v in found.workers.values() if isinstance(v, Exception))
    for text, count in failed.items():
        total = _counted(len(found.workers), "worker")
        lines.append(f"{count} of {total} cannot run geopatch_dask ({text})")
    return lines


def _is_hard(name: str, theirs: str, ours: str) -> bool:
    if name == "python":
        return theirs.split(".")[:2] != ours.split(".")[:2]
    return name in HARD


def _threads(workers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Workers among themselves: with other threads, BLAS may add in another order."""
    lines = []
    for name in THREADS:
        found = Counter(worker["threads"].get(name) for worker in workers.values())
        if len(found) > 1:
            told = [
                f"{'unset' if value is None else value} on {_counted(count, 'worker')}"
                for value, count in found.most_common()
            ]
            lines.append(f"{name} differs: {', '.join(told)}")
    return lines


def _named(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
