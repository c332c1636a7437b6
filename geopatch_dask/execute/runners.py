"""Where the graph runs: this thread, threads, processes, or a Dask cluster.

Every runner takes the same graph and calls back once per finished super-tile, in any order.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any

import dask
from dask import multiprocessing as dask_processes
from dask import threaded as dask_threads
from dask.callbacks import Callback
from dask.local import get_sync
from distributed import Client, LocalCluster, as_completed
from distributed.system import MEMORY_LIMIT

from geopatch_dask.errors import OptionError
from geopatch_dask.execute.graph import TaskGraph
from geopatch_dask.execute.tile import Outcome
from geopatch_dask.planning.core import PlanBase

__all__ = ["Scheduler", "machine", "resources", "run_graph"]

#: ``None`` (a local cluster of processes), a name, or a client.
Scheduler = Client | str | None

OnOutcome = Callable[[Outcome], None]

_LOCAL = ("sync", "threads", "processes")

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


def machine() -> tuple[int, int]:
    """Worker slots of this machine, and bytes of memory per slot."""
    slots = os.cpu_count() or 1
    return slots, int(MEMORY_LIMIT / slots)


def resources(scheduler: Scheduler) -> tuple[int, int]:
    """Slots of a scheduler, and bytes of memory per slot (the smallest, on a cluster).

    Raises
    ------
    OptionError
        For an unknown scheduler.
    """
    if isinstance(scheduler, Client):
        workers = scheduler.scheduler_info(n_workers=-1)["workers"].values()
        if workers:
            threads = sum(w["nthreads"] for w in workers)
            limits = [(w["memory_limit"] or MEMORY_LIMIT) // w["nthreads"] for w in workers]
            return threads, int(min(limits))
        return machine()
    if scheduler == "sync":
        return 1, int(MEMORY_LIMIT)
    if scheduler is None or scheduler in _LOCAL:
        return machine()
    raise OptionError(
        f"{scheduler!r} is no scheduler: pass None, 'sync', 'threads', 'processes' or a "
        "distributed.Client"
    )


def run_graph(
    plan: PlanBase, graph: TaskGraph, scheduler: Scheduler, on_outcome: OnOutcome
) -> None:
    """Run a compiled plan and call ``on_outcome`` as super-tiles finish.

    Raises
    ------
    OptionError
        For an unknown scheduler, or one whose processes cannot reach the target.
    """
    _check_reachable(plan, scheduler)
    if not graph.tiles:  # only the finishing task: not worth a cluster
        _run_local(plan, graph, "sync", on_outcome)
    elif isinstance(scheduler, Client):
        _run_client(graph, scheduler, on_outcome)
    elif scheduler is None:
        with local_client(plan, len(graph.tiles)) as client:
            _run_client(graph, client, on_outcome)
    else:
        _run_local(plan, graph, scheduler, on_outcome)


def _check_reachable(plan: PlanBase, scheduler: Scheduler) -> None:
    resources(scheduler)
    if scheduler not in ("sync", "threads") and not plan.target.is_shared:
        raise OptionError(
            f"{plan.target.display} lives in the memory of this process; run with 'threads' or "
            "'sync', or write to a path or URL"
        )


@contextmanager
def local_client(plan: PlanBase, tasks: int) -> Iterator[Client]:
    """A cluster of single-threaded processes on this machine, on loopback, for one run."""
    environment = dask.config.get(_SPAWN) | _MALLOC | _LOGGING
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None, _SPAWN: environment}),
        ExitStack() as stack,
    ):
        with _interrupted_later():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=max(min(plan.slots, tasks), 1),
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=plan.memory_limit,
                )
            )
        client = stack.enter_context(Client(cluster))
        try:
            yield client
        except KeyboardInterrupt:
            # What a worker says when it is stopped in the middle is no news to who stopped it.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            raise


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


def _run_client(graph: TaskGraph, client: Client, on_outcome: OnOutcome) -> None:
    first = [graph.context] if graph.context else []
    keys = [*first, *graph.tiles, graph.result]
    futures = client.get(dict(graph), keys, sync=False)
    names = {future.key: key for future, key in zip(futures, keys, strict=True)}
    try:
        for future in as_completed(futures, loop=client.loop):
            key = names[future.key]
            if key == graph.context:
                if future.status == "error":
                    future.result()  # pass 1 failed: nothing else can run
            elif future.status == "error" and key != graph.result:
                on_outcome(_lost(key, future.exception()))
            elif key != graph.result:
                on_outcome(future.result())
            elif future.status == "error" and all(f.status != "error" for f in futures[:-1]):
                future.result()
    finally:  # after Ctrl-C, what nobody wants any more is not started
        for future in futures:
            future.release()


def _lost(key: Any, error: BaseException | None) -> Outcome:
    """The outcome of a task whose worker died, or that Dask could not run."""
    return Outcome(
        ordinal=key[1],
        id=f"super-tile {key[1]}",
        state="failed",
        numbers={},
        seconds={},
        error=f"{type(error).__name__}: {error}"[:500],
    )


def _run_local(plan: PlanBase, graph: TaskGraph, scheduler: str, on_outcome: OnOutcome) -> None:
    tiles = set(graph.tiles)

    def finished(key: Hashable, value: Any, dsk: object, state: object, worker: object) -> None:
        del dsk, state, worker
        if key in tiles:
            on_outcome(value)

    get, options = {
        "sync": (get_sync, {}),
        "threads": (dask_threads.get, {"num_workers": plan.slots}),
        "processes": (
            dask_processes.get,  # in its default chunks of 6 tasks, workers would wait for others
            {"num_workers": plan.slots, "optimize_graph": False, "chunksize": 1},
        ),
    }[scheduler]
    with Callback(posttask=finished):
        get(dict(graph), graph.result, **options)
