"""A Dask cluster that runs already, found by the address of its scheduler."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distributed import Client, WorkerPlugin

from geopatch_dask.errors import OptionError

__all__ = ["connect"]

#: Seconds that a scheduler may take to answer.
TIMEOUT = 15


class _SearchPath(WorkerPlugin):
    """Lets workers, also ones that join later, import modules of some folders they can see."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.name = f"geopatch-path-{'-'.join(folders)}"
        self.folders = list(folders)

    def setup(self, worker: Any) -> None:
        del worker
        sys.path.extend(folder for folder in self.folders if folder not in sys.path)


@contextmanager
def connect(address: str, folders: Sequence[str] = ()) -> Iterator[Client]:
    """A client of the scheduler at an address, for the length of a ``with`` block.

    Parameters
    ----------
    address : str
        As in ``tcp://host:8786``.
    folders : sequence of str
        Where workers look for modules after the usual places, where they share the file system.

    Raises
    ------
    OptionError
        When no scheduler answers.
    """
    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address} ({error}); start one (dask scheduler), or "
            "run on this machine (local)"
        ) from error
    with client:
        if folders:
            client.register_plugin(_SearchPath(folders))
        yield client
