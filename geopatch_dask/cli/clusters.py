"""Where a job runs: ``[cluster]`` and ``--cluster``, as what :meth:`Plan.run` takes.

::

    threads, sync              a name: this process
    tcp://, tls://             a client, now: its workers are asked for slots and memory
    local, slurm, pbs, ...     Deferred: planned without it, started if something is left to do
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from geopatch_dask.cli.console import note
from geopatch_dask.cli.job import Job
from geopatch_dask.clusters.address import connect, is_address
from geopatch_dask.clusters.core import KINDS, offered, on_nodes, words_of
from geopatch_dask.clusters.deferred import Deferred
from geopatch_dask.clusters.options import known_words, nearest
from geopatch_dask.errors import OptionError
from geopatch_dask.execute.runs.runners import Scheduler, resources
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.nodes import Nodes, least_slot

__all__ = ["kind_of", "on_nodes_of", "planning_on", "scheduler_of", "slots_and_memory"]

#: Kinds without processes of their own.
_HERE = ("threads", "sync")
#: Words that every kind of cluster takes.
_COMMON = ("adapt", "tls")


def kind_of(job: Job) -> str:
    """``local``, another way to run here, a batch system, or an address; its words are checked.

    Raises
    ------
    OptionError
    """
    kind, words = job.cluster
    kind = "local" if kind == "processes" else kind
    known = (*KINDS, *_HERE)
    if kind not in known and not is_address(kind):
        raise OptionError(
            f"[cluster] kind {kind!r} is unknown; did you mean {nearest(kind, known)!r}? There are "
            f"{', '.join(known)}, and addresses as in tcp://host:8786"
        )
    if kind in _HERE or is_address(kind):
        useless = [word for word in words if kind in _HERE or word != "tls"]
        if useless:
            raise OptionError(
                f"[cluster] {useless[0]} does nothing with kind {kind!r}, which starts no worker; "
                "drop it"
            )
        return kind
    own = {word: value for word, value in words.items() if word not in _COMMON}
    known_words(kind, own, words_of(kind))
    if "adapt" in words and job.get("run", "workers") is not None:
        raise OptionError("give [run] workers, or [cluster] adapt, not both: drop one of them")
    return kind


@contextmanager
def scheduler_of(job: Job) -> Iterator[Scheduler]:
    """What runs the plan of a job; an address is connected for the length of the block."""
    kind = kind_of(job)
    words = dict(job.cluster[1])
    if is_address(kind):
        with connect(kind, job.folders, words.get("tls")) as client:
            yield client
    elif kind in _HERE:
        yield kind
    else:
        if kind != "local":
            words["folders"] = job.folders
            if job.memory_limit is not None:
                words["memory"] = job.memory_limit
        quiet = bool(job.get("run", "quiet", False))
        yield Deferred(kind, words, *(() if quiet else (note,)))


@contextmanager
def planning_on(job: Job) -> Iterator[Scheduler]:
    """As :func:`scheduler_of`; a cluster is asked only for what the job does not say."""
    told = job.get("run", "workers") is not None and job.memory_limit is not None
    if told and is_address(kind_of(job)):
        yield None
        return
    with scheduler_of(job) as scheduler:
        yield scheduler


def slots_and_memory(job: Job, scheduler: Scheduler) -> tuple[int, int]:
    """Slots, and bytes of memory of one; nothing is started to learn them."""
    workers, memory = job.get("run", "workers"), job.memory_limit
    if isinstance(scheduler, Deferred):
        words: dict[str, Any] = dict(job.cluster[1])
        words.pop("tls", None)
        return offered(scheduler.kind, workers=workers, memory=memory, **words)
    slots, share = resources(scheduler)
    if workers is None or scheduler == "sync":
        return slots, memory or share
    if scheduler == "threads":
        share = share * slots // workers
    return workers, memory or share


def on_nodes_of(job: Job, nodes: Nodes, plan: PlanBase) -> Nodes:
    """Nodes, and what the cluster of a job asks them for; what ``--nodes`` says of it counts.

    Where nobody says what a slot gets, a run takes what its node has: what the plan needs at least.
    """
    kind, words = kind_of(job), dict(job.cluster[1])
    words.pop("tls", None)
    workers, memory = job.get("run", "workers"), job.memory_limit
    if kind in KINDS and kind != "local":
        found = on_nodes(nodes, kind, workers=workers, memory=memory, **words)
    else:
        slot = least_slot(plan.memory.total) if memory is None else memory
        found = replace(nodes, slot_memory=slot, workers=workers)
    told = {f.name: v for f in fields(Nodes) if (v := getattr(nodes, f.name)) != f.default}
    return replace(found, **told)
