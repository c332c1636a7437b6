"""What a client of a Dask cluster is asked, while its scheduler may be away.

A connection breaks and is made again, or it does not come back: then what is done is kept, and the
run ends with that.  Nothing here knows what the tasks are.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable
from typing import Any

from distributed import Client, Future
from distributed.comm.core import CommClosedError

from geopatch_dask.errors import RunIncomplete

__all__ = ["FORGOTTEN", "check_connected", "fetched", "value_or_error", "wait_for"]

#: What a future holds whose task the scheduler has forgotten: the connection broke, and was made
#: again without it, or something that the task depends on is gone.  The task is not to blame.
FORGOTTEN = (asyncio.CancelledError, concurrent.futures.CancelledError, CommClosedError)

#: Seconds before a fetch over a connection that broke is made again.  The client has its own idea
#: of when a scheduler is gone; these only bridge the time until it has noticed.
PAUSES = (0.1, 1.0, 3.0)


def fetched(client: Client, futures: list[Future[Any]]) -> list[Any]:
    """What futures hold, without those that were lost meanwhile.

    Raises
    ------
    RunIncomplete
        When the connection breaks again and again, or for good.
    """
    for pause in (*PAUSES, None):
        try:
            return list(client.gather(futures, errors="skip")) if futures else []
        except CommClosedError as error:
            if pause is None:
                raise _lost() from error
            time.sleep(pause)
            while client.status == "connecting":  # as long as the client itself tries to
                time.sleep(0.05)
            check_connected(client, error)
    raise AssertionError("unreachable")


def value_or_error(future: Future[Any]) -> Any:
    """What a future holds: a value, or an error as a value."""
    try:
        return future.result()
    except BaseException as error:  # CancelledError is not an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return error


def check_connected(client: Client, error: Any = None) -> None:
    """See whether there is a cluster to wait for.

    Raises
    ------
    RunIncomplete
        When the client has given its scheduler up, or its cluster says that it has failed.
    """
    if failure := getattr(client.cluster, "failure", None):
        raise RunIncomplete(f"the cluster has failed: {failure}") from error
    if client.status not in ("running", "connecting"):
        raise _lost() from error


def _lost() -> RunIncomplete:
    return RunIncomplete(
        "the connection to the Dask scheduler is lost; what is done is kept: start a cluster, and "
        "run the same command again"
    )


def wait_for(client: Client, future: Future[Any], look: Callable[[], None]) -> None:
    """Wait for a future, however it ends, without fetching what it holds.

    Parameters
    ----------
    client : distributed.Client
    future : distributed.Future
    look : callable
        Called all the while; what it raises ends the waiting.
    """
    while not future.done():
        look()
        check_connected(client)
        time.sleep(0.01)
