"""A Dask cluster that runs already, found by the address of its scheduler."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distributed import Client, WorkerPlugin

from geopatch_dask.clusters.tls import check_handshake, security
from geopatch_dask.errors import OptionError

__all__ = ["connect", "is_address", "register_folders"]

#: Seconds that a scheduler may take to answer.
TIMEOUT = 15


def is_address(kind: str) -> bool:
    """Whether a kind of cluster is the address of a scheduler that runs already.

    >>> is_address("tcp://host:8786"), is_address("slurm")
    (True, False)
    """
    return "://" in kind


class _SearchPath(WorkerPlugin):
    """Lets workers, also ones that join later, import modules of some folders they can see."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.name = f"geopatch-path-{'-'.join(folders)}"
        self.folders = list(folders)

    def setup(self, worker: Any) -> None:
        del worker
        sys.path.extend(folder for folder in self.folders if folder not in sys.path)


def register_folders(client: Client, folders: Sequence[str]) -> None:
    """Let all workers of a cluster, also later ones, import from folders that they can see."""
    if folders:
        client.register_plugin(_SearchPath(folders))


@contextmanager
def connect(address: str, folders: Sequence[str] = (), tls: str | None = None) -> Iterator[Client]:
    """A client of the scheduler at an address, for the length of a ``with`` block.

    Parameters
    ----------
    address : str
        As in ``tcp://host:8786`` or ``tls://host:8786``.
    folders : sequence of str
        Where workers look for modules after the usual places, where they share the file system.
    tls : path, optional
        Folder of certificates; without it, those that Dask's configuration names.

    Raises
    ------
    OptionError
        When no scheduler answers, or it refuses our certificate.
    """
    client = _client(address, tls)
    with client:
        register_folders(client, folders)
        yield client


def _client(address: str, tls: str | None) -> Client:
    encrypted = address.startswith("tls://")
    if tls is not None and not encrypted:
        raise OptionError(
            f"certificates (tls) were given, but {address} is not encrypted: write "
            f"tls://{address.partition('://')[2]}, if its scheduler was started with them"
        )
    certificates = None if tls is None else security(tls)
    if encrypted:
        check_handshake(address, certificates)
    try:
        return Client(address, timeout=TIMEOUT, set_as_default=False, security=certificates)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address} ({error}); start one (dask scheduler), or "
            "run on this machine (local)"
        ) from error
