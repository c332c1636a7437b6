"""A cluster that is started when it is known how much there is to do.

A run that finds everything done must not queue batch jobs, and one with three super-tiles left
needs no sixty workers.  So a command says which cluster it wants, and the run starts it::

    geopatch run --cluster slurm        run
        Deferred("slurm", ...)  ------>  12 super-tiles are left
                                         cluster("slurm", workers=min(64, 12)), wait for the first
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from geopatch_dask.clusters.core import cluster
from geopatch_dask.errors import OptionError
from geopatch_dask.planning.units import seconds_text

__all__ = ["Deferred", "wait_for_first"]

#: Seconds between two looks at how many workers there are, and between two notes of that.
LOOK, AGAIN = 0.5, 60.0


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True)
class Deferred:
    """What :func:`~geopatch_dask.clusters.core.cluster` will be asked for.

    Parameters
    ----------
    kind : str
        One that starts something.
    words : mapping
        Keyword arguments, but for ``workers``, which the run knows.  Not shown: they may hold
        secrets.
    tell : callable
        Called with a line of text while workers are waited for.
    """

    kind: str = "local"
    words: Mapping[str, Any] = field(default_factory=dict, repr=False)
    tell: Callable[[str], None] = field(default=_silent, repr=False)

    @contextmanager
    def started(
        self, workers: int, memory: int, check: Callable[[], None] = lambda: None
    ) -> Iterator[Client]:
        """The cluster, for the length of a ``with`` block, once its first worker is there.

        Parameters
        ----------
        workers : int
            The most that have something to do.
        memory : int, bytes
            Of one slot of this machine.  Elsewhere the words say, or what the kind offers.
        check : callable
            Called while workers are waited for; what it raises ends that.

        Raises
        ------
        OptionError
        """
        words = dict(self.words)
        if self.kind == "local":
            words["memory"] = memory
        adapt = words.pop("adapt", None)
        if adapt is not None:
            words["adapt"] = adapt = (min(adapt[0], workers), min(adapt[1], workers))
        else:
            words["workers"] = workers
        with cluster(self.kind, **words) as client:
            if adapt is None:
                wait_for_first(client, workers, self.tell, check)
            elif adapt[0] > 0:
                wait_for_first(client, adapt[0], self.tell, check)
            else:
                self.tell(f"workers are started as they are needed, up to {adapt[1]}")
            yield client


def wait_for_first(
    client: Client,
    wanted: int,
    tell: Callable[[str], None] = _silent,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Wait until a cluster has a worker; the others may come later.

    Parameters
    ----------
    client : distributed.Client
    wanted : int
        How many were asked for.
    tell, check : callable
        As for :class:`Deferred`.

    Returns
    -------
    int
        Workers that are there.
    """
    began = told = time.monotonic()
    found = len(client.nthreads())
    if not found:
        tell(f"waiting for workers: 0 of {wanted}")
    while not found:
        time.sleep(LOOK)
        check()
        if failure := getattr(client.cluster, "failure", None):
            raise OptionError(f"no worker has come: {failure}")
        found = len(client.nthreads())
        now = time.monotonic()
        if not found and now - told > AGAIN:
            told = now
            tell(f"waiting for workers: 0 of {wanted} after {seconds_text(now - began)}")
        if found:
            tell(f"workers: {found} of {wanted}")
    return found
