"""What a plan costs on a cluster: slots that fit, hours, money.

::

    node: 32 cores, 128 GiB        a job: 1 slot of 6 GiB, and 256 MiB beside it
    +---+---+---+---+- - -+
    | s | s | s | s |     |  20    memory runs out first: 12 cores stay idle
    +---+---+---+---+- - -+

    wall = startup + max(waves * mean super-tile,  bytes / bandwidth,  super-tiles * scheduling)

A slot runs one super-tile at a time.  It is given what the cluster asks for, its memory limit, not
what the plan needs of that; and what encloses slots (a batch job, a pod) takes something beside
them.  Super-tiles come in waves, ``ceil(n / slots)``; the last one leaves slots idle.  Seconds of a
super-tile are those of the operator, measured at plan time on the
machine that plans, and those of everything around it, from :class:`Rates`.  What is not known is
not guessed: no time in a queue, no bandwidth and no price unless they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from geopatch_dask.errors import MemoryPlanError, OptionError
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.memory import MemoryModel
from geopatch_dask.planning.requests import Requests, requests_of
from geopatch_dask.planning.units import bytes_text, parse_bytes

__all__ = [
    "Forecast",
    "Nodes",
    "Rates",
    "bytes_read",
    "bytes_written",
    "forecast",
    "least_slot",
    "parse_nodes",
]

#: Kinds of requests that providers charge as writes, and as reads; deleting is free.
WRITES, READS = ("PUT", "LIST"), ("GET", "HEAD")


@dataclass(frozen=True)
class Nodes:
    """Machines of one kind, to say what a plan costs on them.

    Parameters
    ----------
    count : int
    cores : int
        Of one node.  Of a node with GPUs: processes, one per GPU.
    memory : int or str, bytes
        Of one node, as far as workers may use it.
    price : float, optional
        Of a node for an hour, in any currency.
    bandwidth : int or str, bytes per second, optional
        Between one node and the stores.
    speed : float
        Of one core, with all of them busy, relative to the machine that made the plan.
    put_price, get_price : float, optional
        Of 1000 requests that write or list, and of 1000 others; deleting is free.
    slot_memory : int or str, bytes, optional
        What a slot is given; the memory limit of the plan by default.
    slot_cores : int
        Cores of a slot.
    job_slots : int
        Slots that are placed together: those of a batch job, or of a pod.
    job_memory : int or str, bytes
        What such a job asks for beside its slots.
    workers : int, optional
        Slots that are asked for, of all nodes together; what fits by default.

    Raises
    ------
    OptionError
        For numbers that are not positive.

    Examples
    --------
    >>> Nodes(4, cores=32, memory="256 GiB", price=1.2).memory
    274877906944
    """

    count: int
    cores: int
    memory: int | str
    price: float | None = None
    bandwidth: int | str | None = None
    speed: float = 1.0
    put_price: float | None = None
    get_price: float | None = None
    slot_memory: int | str | None = None
    slot_cores: int = 1
    job_slots: int = 1
    job_memory: int | str = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "bandwidth", "slot_memory", "job_memory"):
            given = getattr(self, name)
            if given is not None and given != 0:
                object.__setattr__(self, name, parse_bytes(given))
        for name in ("count", "cores", "slot_cores", "job_slots", "workers"):
            given = getattr(self, name)
            if given is None and name == "workers":
                continue
            if type(given) is not int or given < 1:
                raise OptionError(f"nodes: {name} must be at least 1, got {given!r}")
        for name in ("price", "put_price", "get_price"):
            given = getattr(self, name)
            if given is not None and not 0 <= given < math.inf:
                raise OptionError(f"nodes: {name} must not be negative, got {given!r}")
        if not 0 < self.speed < math.inf:
            raise OptionError(f"nodes: speed must be positive, got {self.speed!r}")


@dataclass(frozen=True)
class Rates:
    """Seconds of everything but the operator.

    Measured on two cores of a server of 2024 by ``benchmarks/bench_cost.py``, which says how far
    the sum is from what a run takes; the fastest of some rounds, on a float32 raster.

    Parameters
    ----------
    startup : float, seconds
        Until workers take tasks, once there are machines.
    supertile : float, seconds
        Of a slot, per super-tile: opening the array, the record, the task.
    task : float, seconds
        Of the scheduler, per super-tile.
    read : float, seconds per byte
        Decoding the field, uncompressed bytes.
    aggregate : float, seconds per cell
        Adding one number of one patch to the accumulators.
    write : float, seconds per byte
        Dividing, rounding and encoding.
    flush : float, seconds
        Per object on a disk, which is forced to keep it.
    request : float, seconds
        Until an object store answers: the first byte of S3 takes 10 to 30 ms within a region.
    parallel : int
        Objects that zarr writes at a time, by default.
    """

    startup: float = 3.0
    supertile: float = 0.02
    task: float = 0.002
    read: float = 7e-9
    aggregate: float = 6e-9
    write: float = 8e-9
    flush: float = 0.001
    request: float = 0.02
    parallel: int = 10


@dataclass(frozen=True)
class Forecast:
    """What a plan takes on some nodes.

    Parameters
    ----------
    slots_per_node, slots : int
        That fit a node; that there are.
    slot_memory : int, bytes
        Of one slot.
    limited_by : {"cores", "memory", "workers"}
        What keeps nodes from having more slots.
    waves : int
        Super-tiles that one slot computes, the last of which not all slots have.
    seconds : float
        Wall time.
    work : dict of what to seconds
        Of all slots together: ``operator``, ``around`` it, ``store``.
    bound : {"slots", "bandwidth", "scheduler"}
        What the wall time is made of.
    node_hours : float
    requests : dict of kind to count, or None
        To the target, heartbeats included, where it is an object store.
    node_price, request_price : float or None
        In the currency of the prices; None where they were not given.
    """

    slots_per_node: int
    slots: int
    slot_memory: int
    limited_by: str
    waves: int
    seconds: float
    work: dict[str, float] = field(default_factory=dict)
    bound: str = "slots"
    node_hours: float = 0.0
    requests: dict[str, int] | None = None
    node_price: float | None = None
    request_price: float | None = None


def forecast(
    plan: PlanBase, nodes: Nodes, patches_run: int, rates: Rates | None = None
) -> Forecast:
    """What a plan takes on some nodes, from nothing to the finished target.

    Parameters
    ----------
    plan : PlanBase
    nodes : Nodes
    patches_run : int
        Repeats included.
    rates : Rates, optional

    Raises
    ------
    MemoryPlanError
        When one slot does not fit a node, or the plan not a slot.
    """
    rates = rates or Rates()
    slot = int(plan.memory_limit if nodes.slot_memory is None else nodes.slot_memory)
    if slot < (needed := least_slot(plan.memory.total)):
        raise MemoryPlanError(
            f"a slot of {bytes_text(slot)} is too small for this plan, which needs "
            f"{bytes_text(needed)}: plan with memory_limit={bytes_text(slot)!r}"
        )
    fit, limited_by = slots_that_fit(slot, nodes)
    slots = fit * nodes.count
    if nodes.workers is not None and nodes.workers < slots:
        slots, limited_by = nodes.workers, "workers"
    used = math.ceil(slots / fit)
    asked = requests_of(plan)
    work = _work(plan, nodes, rates, patches_run, asked)
    tiles = plan.n_supertiles
    waves = math.ceil(tiles / slots)
    moved = _bytes_moved(plan)
    limits = {
        "slots": waves * sum(work.values()) / tiles,
        "bandwidth": moved / (int(nodes.bandwidth) * used) if nodes.bandwidth else 0.0,
        "scheduler": rates.task * tiles,
    }
    bound = max(limits, key=limits.__getitem__)
    seconds = rates.startup + limits[bound]
    hours = used * seconds / 3600
    requests = None if asked is None else asked.total(seconds)
    return Forecast(
        slots_per_node=fit,
        slots=slots,
        slot_memory=slot,
        limited_by=limited_by,
        waves=waves,
        seconds=seconds,
        work=work,
        bound=bound,
        node_hours=hours,
        requests=requests,
        node_price=None if nodes.price is None else hours * nodes.price,
        request_price=request_price(requests, nodes),
    )


def least_slot(planned: int) -> int:
    """Bytes that a slot must be given, so that a plan is within its share of them.

    Parameters
    ----------
    planned : int, bytes
        Peak of a slot.

    Examples
    --------
    >>> least_slot(7 << 30) >> 30
    10
    """
    return math.ceil(planned / MemoryModel().share)


def slots_that_fit(slot: int, nodes: Nodes) -> tuple[int, str]:
    """Slots of a node, and what there is too little of for more.

    Parameters
    ----------
    slot : int, bytes
        Of one slot.
    nodes : Nodes

    Raises
    ------
    MemoryPlanError
        When not one job fits.

    Examples
    --------
    >>> slots_that_fit(10 << 30, Nodes(1, cores=32, memory="256 GiB"))
    (25, 'memory')
    >>> slots_that_fit(2 << 30, Nodes(1, cores=32, memory="256 GiB"))
    (32, 'cores')
    >>> slots_that_fit(4 << 30, Nodes(1, 32, "16 GiB", job_slots=2, job_memory="256 MiB"))
    (2, 'memory')
    """
    job = nodes.job_slots * slot + int(nodes.job_memory)
    cores = nodes.job_slots * nodes.slot_cores
    by_memory, by_cores = int(nodes.memory) // job, nodes.cores // cores
    if not by_memory:
        what = "a slot" if job == slot else f"a job of {_slots(nodes.job_slots)}"
        raise MemoryPlanError(
            f"{what} needs {bytes_text(job)}, a node has {bytes_text(int(nodes.memory))}: take "
            f"larger nodes, or plan with a smaller memory_limit than {bytes_text(slot)}"
        )
    if not by_cores:
        raise OptionError(
            f"a job of {_slots(nodes.job_slots)} needs {cores} cores, a node has {nodes.cores}: "
            "take larger nodes, or fewer cores of a slot or slots of a job"
        )
    fit = min(by_memory, by_cores)
    return fit * nodes.job_slots, "memory" if by_memory < by_cores else "cores"


def _slots(n: int) -> str:
    return f"{n} slot{'' if n == 1 else 's'}"


def request_price(requests: dict[str, int] | None, nodes: Nodes) -> float | None:
    """What requests cost; None where there are none, or no price.

    Examples
    --------
    >>> nodes = Nodes(1, 1, "1 GiB", put_price=0.005, get_price=0.0004)
    >>> request_price({"PUT": 1_000_000, "GET": 10_000, "LIST": 0, "HEAD": 0, "DELETE": 9}, nodes)
    5.004
    """
    if requests is None or (nodes.put_price is None and nodes.get_price is None):
        return None
    writes, reads = (sum(requests[kind] for kind in kinds) for kinds in (WRITES, READS))
    return (writes * (nodes.put_price or 0.0) + reads * (nodes.get_price or 0.0)) / 1000


def parse_nodes(text: str) -> Nodes:
    """Nodes as the command line takes them.

    Raises
    ------
    OptionError

    Examples
    --------
    >>> parse_nodes("4,cores=32,memory=256GiB,price=1.2")
    Nodes(count=4, cores=32, memory=274877906944, price=1.2, bandwidth=None, speed=1.0, \
put_price=None, get_price=None, slot_memory=None, slot_cores=1, job_slots=1, job_memory=0, \
workers=None)
    """
    names = [item.name for item in fields(Nodes)]
    first, *others = (part.strip() for part in text.split(","))
    first = first.removeprefix("count=").strip()
    if "=" in first:
        raise OptionError(
            f"--nodes {text!r}: the number of nodes comes first, as in --nodes "
            "4,cores=16,memory=64GiB"
        )
    given: dict[str, str] = {"count": first}
    for part in others:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in names:
            raise OptionError(
                f"--nodes: {part!r} is none of {', '.join(f'{n}=' for n in names[1:])}: write "
                "4,cores=32,memory=256GiB"
            )
        given[name] = value
    lacking = [name for name in ("cores", "memory") if name not in given]
    if lacking:
        raise OptionError(f"--nodes {text!r} says no {lacking[0]}: write 4,cores=32,memory=256GiB")
    kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(
        ("count", "cores", "slot_cores", "job_slots", "workers"), int
    )
    kinds |= dict.fromkeys(("memory", "bandwidth", "slot_memory", "job_memory"), str)
    try:
        return Nodes(**{name: kinds.get(name, float)(v) for name, v in given.items()})
    except ValueError as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"--nodes {text!r}: {error}; write 4,cores=32,memory=256GiB") from None


def _work(
    plan: PlanBase, nodes: Nodes, rates: Rates, patches_run: int, asked: Requests | None
) -> dict[str, float]:
    """Seconds of slots, all together."""
    entries = sum(math.prod(p.leading) for p in plan.products)
    added = patches_run * math.prod(plan.grid.out_size) * entries
    read, written = bytes_read(plan), bytes_written(plan)
    around = rates.read * read + rates.aggregate * added + rates.write * written
    tiles = plan.n_supertiles
    objects = plan.layout.objects() * sum(math.prod(a.leading) for a in plan.arrays)
    if asked is None:
        store = rates.flush * objects
    else:
        one_by_one = sum(asked.supertile.values()) - objects
        store = rates.request * (one_by_one + objects / rates.parallel)
    return {
        "operator": plan.seconds_per_patch * patches_run / nodes.speed,
        "around": around / nodes.speed + rates.supertile * tiles,
        "store": store,
    }


def bytes_read(plan: PlanBase) -> int:
    """Bytes of the field that super-tiles read, uncompressed, repeats included."""
    lead = math.prod(plan.field.domain.size(dim) for dim in plan.grid.riding)
    return plan.cost.cells_read * lead * plan.field.dtype.itemsize


def bytes_written(plan: PlanBase) -> int:
    """Bytes of the arrays, uncompressed."""
    cells = math.prod(plan.grid.shape)
    return cells * sum(math.prod(a.leading) * np.dtype(a.dtype).itemsize for a in plan.arrays)


def _bytes_moved(plan: PlanBase) -> int:
    """Uncompressed: what compression saves is not known before."""
    return bytes_read(plan) + bytes_written(plan)
