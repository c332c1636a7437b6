"""What runs a plan: names, clients, clusters; what they offer, and what is started for a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import dask
from distributed import Client
from distributed.deploy.cluster import Cluster as DaskCluster
from distributed.system import MEMORY_LIMIT

from geopatch_dask.clusters.core import Cluster
from geopatch_dask.clusters.deferred import Deferred
from geopatch_dask.clusters.local import machine
from geopatch_dask.errors import OptionError
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.attempt.stage import leaf_runs
from geopatch_dask.execute.attempt.versions import compare_versions
from geopatch_dask.execute.driving.driver import ALL_AT_ONCE
from geopatch_dask.execute.driving.workers import InThread, OnCluster, Threads, Workers
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.nodes import Rates

__all__ = [
    "AnyScheduler",
    "Scheduler",
    "check_scheduler",
    "local_client",
    "machine",
    "opened",
    "resources",
    "workers_of",
]

#: What a run works with: ``None`` (a local cluster of processes), a name, a client, or a cluster
#: that is started if there is something to do.
Scheduler = Client | Deferred | str | None
#: What users may give: also a cluster, ours or Dask's own.
AnyScheduler = Scheduler | Cluster | DaskCluster

_log = logging.getLogger(__name__)

_LOCAL = ("sync", "threads", "processes")

#: Seconds of super-tiles that a worker is given ahead where there are very many, and the most of
#: them.  Dask's own two cost a message for each; with 25 they go many to a message, and a scheduler
#: keeps up with half as many again (``benchmarks/bench_driver.py``).  But all that a worker was
#: given is blamed for its death, and runs alone after it was killed for its memory.
AHEAD_SECONDS, MOST_AHEAD = 0.5, 25
#: What Dask gives a worker of one thread anyway.
FEW_AHEAD = 2


@contextmanager
def opened(scheduler: AnyScheduler) -> Iterator[Scheduler]:
    """What users may give, as what a run works with.

    A cluster lends its client.  Dask's own cluster object gets one for the length of the block.

    Raises
    ------
    OptionError
        For a cluster that is closed, or one that belongs to an event loop (``asynchronous=True``).
    """
    if isinstance(scheduler, Cluster):
        if scheduler.closed:
            raise OptionError(f"{scheduler!r}: ask for another one with gp.cluster")
        scheduler = scheduler.client
    if getattr(scheduler, "asynchronous", False):
        raise OptionError(
            f"a {type(scheduler).__name__} with asynchronous=True cannot run a plan, which waits: "
            "make it without, also in a notebook"
        )
    if not isinstance(scheduler, DaskCluster):
        yield scheduler
        return
    with Client(scheduler, set_as_default=False) as client:
        yield client


def resources(scheduler: AnyScheduler) -> tuple[int, int]:
    """Slots of a scheduler, and bytes of memory per slot (the smallest, on a cluster).

    Of a cluster that was asked for by :func:`geopatch_dask.cluster`, what was asked for counts:
    its workers may not be there yet.

    Raises
    ------
    OptionError
        For an unknown scheduler.
    """
    if isinstance(scheduler, Cluster):
        there = bool(scheduler.client.nthreads())
        slots, memory = (not there and scheduler.expected) or resources(scheduler.client)
        return scheduler.slots or slots, scheduler.memory or memory
    if isinstance(scheduler, DaskCluster):
        with opened(scheduler) as client:
            return resources(client)
    if isinstance(scheduler, Client):
        workers = scheduler.scheduler_info(n_workers=-1)["workers"].values()
        if workers:
            threads = sum(w["nthreads"] for w in workers)
            limits = [(w["memory_limit"] or MEMORY_LIMIT) // w["nthreads"] for w in workers]
            return threads, int(min(limits))
        return machine()
    if scheduler == "sync":
        return 1, int(MEMORY_LIMIT)
    if scheduler is None or isinstance(scheduler, Deferred) or scheduler in _LOCAL:
        return machine()
    raise OptionError(
        f"{scheduler!r} is no scheduler: pass None, 'sync', 'threads', 'processes', a "
        "distributed.Client or a cluster (gp.cluster)"
    )


@contextmanager
def workers_of(
    plan: PlanBase,
    scheduler: Scheduler,
    tasks: int,
    policy: Policy,
    context: Mapping[str, Any] | None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Workers]:
    """What runs the attempts of a plan under a scheduler.

    Parameters
    ----------
    plan : PlanBase
    scheduler : distributed.Client, Deferred, "sync", "threads", "processes" or None
    tasks : int
        Super-tiles to compute; without any, no cluster is started.
    policy : Policy
    context : mapping or None
        What an earlier run found in pass 1.
    check : callable
        Called while workers of a new cluster, or the first pass, are waited for; what it raises
        ends that.

    Raises
    ------
    OptionError
        For an unknown scheduler, one whose processes cannot reach the target, or a time limit
        where there is no process that could be ended.
    """
    check_scheduler(plan, scheduler, policy)
    if not tasks or scheduler == "sync":
        yield InThread(plan, policy, context if tasks else {}, check)
    elif scheduler == "threads":
        yield Threads(plan, policy, context, check)
    elif isinstance(scheduler, Client):
        _announce(scheduler)
        yield OnCluster(plan, policy, scheduler, context, check=check)
    else:
        how = scheduler if isinstance(scheduler, Deferred) else Deferred()
        if plan.context is not None and context is None:
            tasks = max(tasks, len(leaf_runs(plan)))
        with local_client(plan, tasks, how, check) as client:
            if how.words.get("dashboard", how.kind in ("local", "kubernetes")) is not False:
                _announce(client)
            if how.kind != "local":  # this machine is like itself
                for line in compare_versions(client):
                    _log.warning("%s", line)
            yield OnCluster(plan, policy, client, context, check=check)


def _announce(client: Client) -> None:
    """Say where the dashboard is, if there is one: it needs bokeh."""
    if client.dashboard_link and find_spec("bokeh") is not None:
        _log.info("the Dask dashboard is at %s", client.dashboard_link)


def check_scheduler(plan: PlanBase, scheduler: Scheduler, policy: Policy) -> None:
    """Refuse a scheduler that cannot do what is asked of it.

    Raises
    ------
    OptionError
    """
    resources(scheduler)
    if isinstance(scheduler, str) and scheduler in ("sync", "threads"):
        if policy.timeout is not None:
            raise OptionError(
                f"a thread that hangs cannot be ended, so a timeout needs processes, not "
                f"{scheduler!r}: run with None, or on a cluster"
            )
    elif not plan.target.is_shared:
        raise OptionError(
            f"{plan.target.display} lives in the memory of this process; run with 'threads' or "
            "'sync', or write to a path or URL"
        )
    if policy.timeout is not None and isinstance(scheduler, Client):
        _check_nannies(scheduler)


def _check_nannies(client: Client) -> None:
    """Refuse workers that nobody would start again after a time-out.

    Raises
    ------
    OptionError
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    bare = [worker for worker in workers if not worker["nanny"]]
    if bare:
        raise OptionError(
            f"a timeout ends the process of a worker that hangs, and {len(bare)} of "
            f"{len(workers)} workers have no nanny to start it again (processes=False, "
            "--no-nanny): start workers with nannies, or leave the timeout out"
        )


@contextmanager
def local_client(
    plan: PlanBase,
    tasks: int,
    how: Deferred | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Client]:
    """A cluster for one run: by default, single-threaded processes of this machine, on loopback.

    Parameters
    ----------
    plan : PlanBase
        For its slots, and the memory of one.
    tasks : int
        Super-tiles to compute, or runs of leaves if they are more: there are no more workers than
        that.
    how : Deferred, optional
    check : callable
        As for :func:`workers_of`.
    """
    workers = max(min(plan.slots, tasks), 1)
    with (
        dask.config.set(_ahead(plan, tasks)),
        (how or Deferred()).started(workers, plan.memory_limit, check) as client,
    ):
        try:
            yield client
        except KeyboardInterrupt:
            # What a worker says when it is stopped in the middle is no news to who stopped it.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            raise


def _ahead(plan: PlanBase, tasks: int) -> dict[str, float]:
    """What a scheduler is configured with that gives workers short super-tiles many at a time.

    Nothing where they are few, or it is not known that they are short.
    """
    if tasks <= ALL_AT_ONCE or not plan.seconds_per_patch:
        return {}
    patches = plan.cost.patches_run / plan.n_supertiles
    seconds = Rates().supertile + plan.seconds_per_patch * patches
    number = min(AHEAD_SECONDS / seconds, MOST_AHEAD)
    return {"distributed.scheduler.worker-saturation": number} if number > FEW_AHEAD else {}
