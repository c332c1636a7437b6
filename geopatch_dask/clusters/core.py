"""One way to ask for a cluster, whatever starts it.

::

    gp.cluster("local")          processes of this machine       scheduler here, on loopback
    gp.cluster("slurm", ...)     batch jobs that are workers     scheduler here, on the network
    gp.cluster("kubernetes")     pods of the Dask operator       scheduler in a pod
    gp.cluster("tcp://host:1")   what somebody else started      there

    with gp.cluster("slurm", workers=8, memory="8GiB", walltime="01:00:00") as client:
        plan.run(client)                    # client: distributed.Client, as from anywhere else

A kind is a module with a maker, which returns Dask's own cluster object, and a table of words that
it takes.  Here they are found by name; the client is made, and both are closed together.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any

from distributed import Client

from geopatch_dask.clusters.address import connect, is_address, register_folders
from geopatch_dask.clusters.options import known_words, nearest, whole_number
from geopatch_dask.clusters.request import Request
from geopatch_dask.clusters.settings import held
from geopatch_dask.errors import OptionError
from geopatch_dask.planning.nodes import Nodes
from geopatch_dask.planning.units import bytes_text, parse_bytes

__all__ = ["KINDS", "Cluster", "all_words", "cluster", "offered", "on_nodes", "words_of"]

#: Kinds that start something: the module of each, and its maker.
_MAKERS = {
    "local": ("local", "make_local"),
    "slurm": ("jobqueue", "make_jobqueue"),
    "pbs": ("jobqueue", "make_jobqueue"),
    "kubernetes": ("kubernetes", "make_kubernetes"),
}
#: Kinds that start something.
KINDS = tuple(_MAKERS)
#: Slots of a batch system or Kubernetes where nobody says how many.
FEW = 2


class Cluster:
    """A cluster that was asked for, and a client of it; made by :func:`geopatch_dask.cluster`.

    A context manager that yields the client.  Without ``with``, call :meth:`close`.

    Attributes
    ----------
    kind : str
        As asked for.
    client : distributed.Client
    dask : object or None
        Dask's own cluster object, for what this package does not wrap (``scale``, ``get_logs``,
        ``job_script``); None at an address.
    slots : int or None
        That were asked for, or the most that adapting may start; None: what there is.
    memory : int or None, bytes
        Of one slot, as asked for.
    expected : (int, int) or None
        Slots and bytes that this kind of cluster will have, where no worker is there yet to tell.
    """

    def __init__(
        self,
        kind: str,
        client: Client,
        dask: Any,
        stack: ExitStack,
        request: Request,
        expected: tuple[int, int] | None = None,
    ) -> None:
        self.kind = kind
        self.expected = expected
        self.slots = request.adapt[1] if request.adapt else request.workers
        self.memory = request.memory
        self.client = client
        self.dask = dask
        self._close = weakref.finalize(self, _collected, stack)
        self._close.atexit = False  # Dask closes its clusters then, in an order it knows
        self._stack = stack

    def __enter__(self) -> Client:
        return self.client

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._close.alive

    def __repr__(self) -> str:
        if self.closed:
            return f"<Cluster {self.kind}: closed>"
        try:
            workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        except (OSError, AttributeError):  # AttributeError: the client has given it up
            return f"<Cluster {self.kind}: its scheduler does not answer>"
        limits = [w["memory_limit"] for w in workers if w["memory_limit"]]
        each = f" of {bytes_text(min(limits))}" if limits else ""
        n = len(workers)
        told = f"{n} worker{'' if n == 1 else 's'}{each}"
        scheduler: Any = self.client.scheduler
        return f"<Cluster {self.kind}: {told}, {scheduler.address}>"

    def close(self) -> None:
        """End what was started, and the connection; a cluster found at an address goes on.

        A second call does nothing.
        """
        if self._close.detach() is not None:
            self._stack.close()


def cluster(
    kind: str = "local",
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    adapt: tuple[int, int] | None = None,
    tls: str | None = None,
    folders: Iterable[str] = (),
    **options: Any,
) -> Cluster:
    """A Dask cluster by name.

    Parameters
    ----------
    kind : str
        ``"local"``, ``"slurm"``, ``"pbs"``, ``"kubernetes"``, or the address of a scheduler that
        runs already, ``"tcp://host:8786"`` or ``"tls://host:8786"``.
    workers : int
        Slots: worker processes with one thread each.
    memory : int or str, bytes
        Of one slot.
    adapt : (int, int)
        Fewest and most slots of a cluster that grows and shrinks with the work; instead of
        ``workers``.
    tls : path
        Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``: all connections are encrypted, and
        who has no certificate of that authority is refused.
    folders : iterable of str
        Where workers look for modules, where they share the file system.
    **options
        Words of the kind; an unknown one is an error that names the nearest.

    Returns
    -------
    Cluster
        Enter it to get its ``distributed.Client``.

    Raises
    ------
    OptionError
        For an unknown kind or option, an optional package that is absent, certificates that cannot
        be read, or a scheduler that does not answer.
    """
    where = tuple(str(folder) for folder in folders)
    if is_address(kind):
        _only_for_new(kind, workers=workers, memory=memory, adapt=adapt, **options)
        stack = ExitStack()
        return Cluster(kind, stack.enter_context(connect(kind, where, tls)), None, stack, Request())
    request = _request(workers, memory, adapt, where, tls)
    maker, known = _kind(kind)
    known_words(kind, options, known)
    with ExitStack() as stack:
        stack.enter_context(held(kind))
        made = maker(request, dict(options))
        stack.callback(made.close)
        client = stack.enter_context(Client(made, set_as_default=False))
        if where and kind != "local":  # whose processes have the search path of this one
            register_folders(client, where)
        expected = None
        if kind != "local":  # whose workers are there
            expected = offered(kind, workers=workers, memory=memory, adapt=adapt, **options)
        return Cluster(kind, client, made, stack.pop_all(), request, expected)


def words_of(kind: str) -> Mapping[str, str]:
    """Words that a kind takes beside those of every kind, with a line of help each.

    Raises
    ------
    OptionError
        For an unknown kind.
    """
    return {} if is_address(kind) else _kind(kind)[1]


def all_words() -> dict[str, str]:
    """Words of all kinds, with a line of help each (of the first kind that has the word)."""
    found: dict[str, str] = {}
    for kind in KINDS:
        for word, text in words_of(kind).items():
            found.setdefault(word, f"{text}; {kind}")
    return found


def offered(
    kind: str,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    adapt: tuple[int, int] | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Slots, and bytes of memory of one, of the cluster that these words would start.

    Nothing is started: a plan for a batch system can be made, and looked at, without a job.

    Parameters
    ----------
    kind, workers, memory, adapt, **options
        As for :func:`cluster`; no address.

    Raises
    ------
    OptionError
    """
    return _offered(kind, _request(workers, memory, adapt), options)[:2]


def on_nodes(
    nodes: Nodes,
    kind: str,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    adapt: tuple[int, int] | None = None,
    **options: Any,
) -> Nodes:
    """Nodes, and what the cluster that these words would start asks them for.

    Parameters
    ----------
    nodes : Nodes
    kind, workers, memory, adapt, **options
        As for :func:`offered`.

    Raises
    ------
    OptionError
    """
    slots, slot, job = _offered(kind, _request(workers, memory, adapt), options)
    return replace(nodes, workers=slots, slot_memory=slot, **job)


def _offered(
    kind: str, request: Request, options: Mapping[str, Any]
) -> tuple[int, int, dict[str, int]]:
    """Slots, bytes of one, and what a job or pod of them takes in the words of Nodes."""
    known_words(kind, options, _kind(kind)[1])
    module = import_module(f"geopatch_dask.clusters.{_MAKERS[kind][0]}")
    if kind == "local":
        return *module.sizes(request, options), {}
    slots = request.adapt[1] if request.adapt else request.workers or FEW
    if kind == "kubernetes":
        cores = whole_number("cpu", options.get("cpu", 1))
        job = {"slot_cores": cores, "job_memory": module.OVERHEAD}
        return slots, request.memory or module.MEMORY, job
    wanted = module.job_options(kind, request, options)
    processes = wanted["processes"]
    cores = whole_number("cores", options.get("cores") or 1)
    job = {"slot_cores": cores, "job_slots": processes, "job_memory": module.OVERHEAD}
    return slots, wanted["memory"] // processes, job


# ---- parts ---------------------------------------------------------------------------------


def _kind(kind: str) -> tuple[Callable[[Request, dict[str, Any]], Any], Mapping[str, str]]:
    """The maker of a kind, and the words it takes."""
    if kind not in _MAKERS:
        raise OptionError(
            f"{kind!r} is no kind of cluster; did you mean {nearest(kind, KINDS)!r}? There are "
            f"{', '.join(KINDS)}, and addresses as in tcp://host:8786"
        )
    name, maker = _MAKERS[kind]
    module = import_module(f"geopatch_dask.clusters.{name}")
    made = getattr(module, maker)
    return (partial(made, kind) if name == "jobqueue" else made), module.OPTIONS


def _request(
    workers: int | None,
    memory: int | str | None,
    adapt: Any,
    folders: tuple[str, ...] = (),
    tls: str | None = None,
) -> Request:
    try:
        bounds = None if adapt is None else (int(adapt[0]), int(adapt[1]))
        if bounds is not None and list(bounds) != list(adapt):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        raise OptionError(
            f"adapt must be two whole numbers, the fewest and the most workers; got {adapt!r}"
        ) from None
    return Request(
        workers,
        None if memory is None else parse_bytes(memory),
        bounds,
        folders,
        None if tls is None else str(tls),
    )


def _only_for_new(kind: str, **given: Any) -> None:
    for word, value in given.items():
        if value is not None:
            raise OptionError(
                f"{word} is for a cluster that is started; the one at {kind} runs already and is "
                "used as it is"
            )


def _collected(stack: ExitStack) -> None:
    """Close a cluster that nobody can reach any more; not here, where the collector runs."""
    threading.Thread(target=stack.close, name="geopatch-close", daemon=True).start()
