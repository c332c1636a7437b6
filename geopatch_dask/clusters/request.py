"""What is asked of a cluster, in words that mean the same on every kind of cluster."""

from __future__ import annotations

from dataclasses import dataclass

from geopatch_dask.errors import OptionError

__all__ = ["Request"]


@dataclass(frozen=True)
class Request:
    """Workers, their memory, and what they need to know.

    A *slot* is a worker process with one thread: what runs one super-tile at a time.  The plan's
    memory model speaks of one slot, so that is the unit in which clusters are asked for.

    Parameters
    ----------
    workers : int or None
        Slots.  None: what the kind offers (all cores of this machine; 2 elsewhere).
    memory : int or None, bytes
        Of one slot.  None: what the kind offers.
    adapt : (int, int) or None
        Fewest and most slots of a cluster that grows and shrinks with the work; instead of
        ``workers``.
    folders : tuple of str
        Where workers look for modules after the usual places, if they share the file system.
    tls : str or None
        Folder with ``ca.pem``, ``cert.pem`` and ``key.pem``: all connections are encrypted, and
        whoever has no certificate of that authority is refused.

    Raises
    ------
    OptionError
        For numbers that make no sense.
    """

    workers: int | None = None
    memory: int | None = None
    adapt: tuple[int, int] | None = None
    folders: tuple[str, ...] = ()
    tls: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers must be at least 1; got {self.workers}")
        if self.memory is not None and self.memory < 1:
            raise OptionError(f"memory must be positive; got {self.memory} bytes")
        if self.adapt is not None:
            if self.workers is not None:
                raise OptionError("give workers, or adapt=(fewest, most), not both")
            fewest, most = self.adapt
            if not 0 <= fewest <= most or most < 1:
                raise OptionError(
                    f"adapt must be (fewest, most) with 0 <= fewest <= most; got {self.adapt}"
                )
