"""Why a worker died: what its nanny, which outlives it, can see.

To a scheduler a worker that was killed for its memory, one whose batch job was preempted and one
whose node burnt down look the same: a connection that is gone.  They should not be treated the
same, because only the first may be the fault of the super-tile it was computing::

    nanny alive, counter of the memory cgroup went up     the kernel killed it for want of memory
    nanny alive, Dask told "worker-restart-memory"        Dask did, at 95 % of its limit
    nanny alive, neither                                  it crashed, or somebody killed it
    nothing told                                          its nanny is gone as well: the machine, or
                                                          the job, was lost

A batch job with ``--mem``, and a container with a memory limit, are memory cgroups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import NannyPlugin, Status
from tornado.ioloop import PeriodicCallback

__all__ = ["RESTARTED", "TOPIC", "Cgroup", "Death", "DeathWatch", "find_death"]

#: Where events tell of workers that died under a living nanny.
TOPIC = "geopatch-deaths"
#: Dask's own topic: workers that were ended for their memory.
RESTARTED = "worker-restart-memory"
#: Milliseconds between two looks of a nanny at its worker.  A worker that dies sooner after its
#: nanny learnt its address is not recognized: it counts as lost with its machine, and is repeated.
LOOK = 50
#: Looks after which a death is told.
CERTAIN = 4
#: Looks for which the counter of the cgroup is remembered: it may go up before the process is gone.
REMEMBERED = 60


@dataclass(frozen=True)
class Death:
    """How a worker died whose nanny lives.

    Parameters
    ----------
    by_kernel, by_dask : bool
        Killed for want of memory, by whom; neither: for another reason.
    limit : int, bytes
        What all processes of its cgroup may use together; 0 where that is not known.
    """

    by_kernel: bool = False
    by_dask: bool = False
    limit: int = 0


@dataclass(frozen=True)
class Cgroup:
    """The memory cgroup of this process.

    Parameters
    ----------
    folders : tuple of Path
        Its own, then those around it.
    version : {1, 2}
    """

    folders: tuple[Path, ...]
    version: int

    @classmethod
    def mine(
        cls, listed: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
    ) -> Cgroup | None:
        """That of this process; None where there is none, or it cannot be seen."""
        for version, root, path in _entries(listed, mounted):
            # In a container the path may be that of the host, and the mount the cgroup itself.
            for folder in (root / path, root):
                if (folder / _COUNTER[version]).is_file():
                    around = [folder, *folder.parents]
                    inside = around[: around.index(root) + 1]
                    return cls(tuple(inside), version)
        return None

    @property
    def kills(self) -> int:
        """Processes that the kernel has killed in it for want of memory."""
        for line in _read(self.folders[0] / _COUNTER[self.version]).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    @property
    def limit(self) -> int:
        """Bytes that all its processes may use together; 0 for no limit."""
        found = [_read(folder / _LIMIT[self.version]).strip() for folder in self.folders]
        limits = [int(text) for text in found if text.isdecimal() and int(text) < _NO_LIMIT]
        return min(limits, default=0)


_COUNTER = {1: "memory.oom_control", 2: "memory.events"}
_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
#: Version 1 says "no limit" with a number near 2**63.
_NO_LIMIT = 1 << 62


class DeathWatch(NannyPlugin):
    """Has nannies tell how their workers died; registered once per cluster."""

    name = "geopatch-deaths"
    idempotent = True

    def setup(self, nanny: Any) -> None:
        """Begin to look."""
        watch = _Watch(nanny, Cgroup.mine())
        callback = PeriodicCallback(watch.look, LOOK)
        nanny.periodic_callbacks[self.name] = callback
        callback.start()

    def teardown(self, nanny: Any) -> None:
        """Look no more."""
        callback = nanny.periodic_callbacks.pop(self.name, None)
        if callback is not None:
            callback.stop()


class _Watch:
    """What one nanny remembers of its worker; begins with the one it has."""

    def __init__(self, nanny: Any, cgroup: Cgroup | None) -> None:
        self.nanny, self.cgroup = nanny, cgroup
        self.pid: int | None = nanny.pid
        self.address: str | None = nanny.worker_address
        self.dead: dict[str | None, int] = {}  # addresses, and looks until they are told
        self.kills = 0 if cgroup is None else cgroup.kills
        self.recent = 0  # looks for which an increase of the counter still counts

    def look(self) -> None:
        """Compare with the last look; tell of a death some looks after the one that sees it.

        A job that is cancelled loses workers and nanny together, in any order: by then such a
        nanny is closing, or gone.
        """
        self._count()
        if self.nanny.status not in (Status.running, Status.starting):
            self.pid, self.dead = None, {}
            return
        for address in list(self.dead):
            self.dead[address] -= 1
            if self.dead[address] == 0:
                del self.dead[address]
                self._tell(address)
        if self.pid is not None and self.nanny.pid != self.pid:
            self.dead[self.address] = CERTAIN
        self.pid, self.address = self.nanny.pid, self.nanny.worker_address or self.address

    def _count(self) -> None:
        if self.cgroup is not None:
            kills = self.cgroup.kills
            self.recent = REMEMBERED if kills > self.kills else max(self.recent - 1, 0)
            self.kills = kills

    def _tell(self, address: str | None) -> None:
        limit = 0 if self.cgroup is None else self.cgroup.limit
        self.nanny.log_event(
            TOPIC, {"worker": address, "by_kernel": self.recent > 0, "limit": limit}
        )
        self.recent = 0


def find_death(address: str, told: Iterable[Any], restarted: Iterable[Any]) -> Death | None:
    """What is known of the end of a worker.

    Parameters
    ----------
    address : str
    told, restarted : iterable of (time, mapping)
        Events of :data:`TOPIC` and of :data:`RESTARTED`.

    Examples
    --------
    >>> find_death("tcp://a:1", [(0.0, {"worker": "tcp://a:1", "by_kernel": True, "limit": 9})], [])
    Death(by_kernel=True, by_dask=False, limit=9)
    """
    by_dask = any(event["worker"] == address for _, event in restarted)
    for _, event in told:
        if event["worker"] == address:
            return Death(bool(event["by_kernel"]), by_dask, int(event["limit"]))
    return Death(by_dask=True) if by_dask else None


def _entries(listed: Path, mounted: Path) -> Iterable[tuple[int, Path, str]]:
    """Version, mount and path of the cgroups that may count memory; version 1 first."""
    lines = [line.split(":", 2) for line in _read(listed).splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            yield 1, mounted / "memory", path.lstrip("/")
    for _, controllers, path in lines:
        if not controllers:
            yield 2, mounted, path.lstrip("/")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
