"""Processes of this machine: a scheduler in this process, workers beside it, all on loopback.

::

    this process                     children
    +--------------------------+     +----------+
    | plan, driver             |     | worker 0 |  one thread: one super-tile at a time
    | scheduler 127.0.0.1:free |---->+----------+
    | dashboard 127.0.0.1:free |     | worker 1 |  CUDA_VISIBLE_DEVICES=1, if GPUs are shared out
    +--------------------------+     +----------+
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, cast

from distributed import LocalCluster
from distributed.system import MEMORY_LIMIT

from geopatch_dask.clusters.gpus import VARIABLES
from geopatch_dask.clusters.options import dashboard_address
from geopatch_dask.clusters.request import Request
from geopatch_dask.clusters.tls import security
from geopatch_dask.errors import OptionError

__all__ = ["OPTIONS", "machine", "make_local", "sizes", "visible_gpus"]

#: Words of this kind.
OPTIONS: Mapping[str, str] = {
    "dashboard": "port, or host:port (default: a free port of loopback; false: no pages)",
    "gpus": "one process per GPU: how many, or true for all that are visible",
    "local_directory": "folder for what workers put on the disk (default: Dask's)",
}

_LOOPBACK = "127.0.0.1"
#: Seconds in which workers that are started after the scheduler have to be there.
_START = 120


class _Processes(LocalCluster):
    """A local cluster whose workers see one GPU each."""

    gpus: tuple[str, ...] = ()

    def new_worker_spec(self) -> dict[Any, Any]:
        """The next worker, with the GPU that the fewest others have."""
        base: Any = super()
        ((name, spec),) = base.new_worker_spec().items()
        if not self.gpus:
            return {name: spec}
        options = spec["options"]
        name_of = _variable()
        others = (worker["options"].get("env", {}) for worker in self.worker_spec.values())
        taken = Counter(env.get(name_of) for env in others)
        free = min(self.gpus, key=lambda gpu: taken[gpu])
        env = {**options.get("env", {}), name_of: free}
        return {name: {**spec, "options": {**options, "env": env}}}


def machine() -> tuple[int, int]:
    """Worker slots of this machine, and bytes of memory per slot."""
    slots = os.cpu_count() or 1
    return slots, int(MEMORY_LIMIT / slots)


def make_local(request: Request, options: Mapping[str, Any]) -> Any:
    """Start a scheduler and worker processes on this machine.

    Parameters
    ----------
    request : Request
        By default, as many slots as there are cores (or GPUs, where they are asked for), and an
        equal share of this machine's memory for each.
    options : mapping
        See :data:`OPTIONS`.

    Returns
    -------
    distributed.LocalCluster

    Raises
    ------
    OptionError
    """
    gpus = visible_gpus(options.get("gpus"))
    workers, memory = sizes(request, options)
    later = request.adapt is not None or bool(gpus)
    dashboard = dashboard_address(options.get("dashboard", True))
    with ExitStack() as stack:
        with _interrupted_later():
            made: Any = cast("Any", _Processes)(
                n_workers=0 if later else workers,
                threads_per_worker=1,
                processes=True,
                host=_LOOPBACK,
                # Without pages, too, the scheduler serves its health and metrics: on loopback.
                dashboard_address=dashboard or f"{_LOOPBACK}:0",
                scheduler_kwargs={"dashboard": dashboard is not None},
                memory_limit=memory,
                security=None if request.tls is None else security(request.tls),
                local_directory=options.get("local_directory"),
            )
            stack.callback(made.close)
            made.gpus = gpus
            if request.adapt is not None:
                made.adapt(minimum=request.adapt[0], maximum=request.adapt[1])
            elif later:
                made.scale(workers)
                made.wait_for_workers(workers, timeout=_START)
        stack.pop_all()  # no interrupt came
    return made


def sizes(request: Request, options: Mapping[str, Any]) -> tuple[int, int]:
    """Slots, the most there will be, and bytes of memory of each."""
    cores, share = machine()
    gpus = len(visible_gpus(options.get("gpus")))
    most = request.adapt[1] if request.adapt else request.workers or gpus or cores
    memory = request.memory or (share if most == cores else share * cores // most)
    return most, memory


def visible_gpus(asked: int | bool | None) -> tuple[str, ...]:
    """Names of GPUs as ``CUDA_VISIBLE_DEVICES`` (or AMD's variable) has them, as many as asked for.

    Parameters
    ----------
    asked : int, bool or None
        How many; True for all that this process may see.

    Raises
    ------
    OptionError
        When there are not so many.
    """
    if asked is None or asked is False:
        return ()
    if not isinstance(asked, int) or asked < 1:
        raise OptionError(f"gpus must be a whole number from 1, or true; got {asked!r}")
    variable = _variable()
    given = os.environ.get(variable)
    found = _installed() if given is None else [name.strip() for name in given.split(",")]
    found = [name for name in found if name and name != "-1"]
    if not found or (asked is not True and asked > len(found)):
        how = f"{variable}={given!r}" if given is not None else "no driver names more"
        raise OptionError(
            f"{'all' if asked is True else asked} GPUs were asked for, {len(found)} are visible "
            f"({how}); ask for fewer, or leave gpus out"
        )
    return tuple(found if asked is True else found[:asked])


def _variable() -> str:
    """By which variable this machine shares out its GPUs."""
    return next((name for name in VARIABLES if name in os.environ), VARIABLES[0])


def _installed() -> list[str]:
    """GPUs that NVIDIA's driver knows, by number."""
    folder = Path("/proc/driver/nvidia/gpus")
    if folder.is_dir():
        return [str(n) for n in range(len(list(folder.iterdir())))]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    said = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    lines = [line for line in said.stdout.splitlines() if line.startswith("GPU ")]
    return [str(n) for n in range(len(lines))]


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Hold Ctrl-C back, here for a while, in processes started meanwhile for good.

    A terminal sends it to workers too, which would die of it with a traceback each.  Threads and
    processes inherit the mask of the thread that starts them; ours is restored at the end, and an
    interrupt that came meanwhile is raised there.
    """
    resource_tracker.ensure_running()  # whoever starts it, unblocks the signal after it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
