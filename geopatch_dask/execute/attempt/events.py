"""How attempts end, as it is told: to the driver, the first pass, the log and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geopatch_dask.failures import is_for_memory, is_transient

__all__ = ["Done", "Event", "Failed", "Lost", "kind_of"]


@dataclass(frozen=True, slots=True)
class Done:
    """An attempt finished its super-tile; ``seconds`` of work."""

    ordinal: int
    attempt: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt failed; ``error`` has ``type``, ``message``, ``traceback`` and ``kind``."""

    ordinal: int
    attempt: int
    error: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker of an attempt died, or was ended because of a time-out; ``error`` as in Failed.

    ``machine``: what it ran on is lost with it.
    """

    ordinal: int
    attempt: int
    error: Mapping[str, str]
    timed_out: bool = False
    machine: bool = False


Event = Done | Failed | Lost


def kind_of(error: BaseException) -> str:
    """What a failure says about trying again: "memory", "transient" or "permanent"."""
    if is_for_memory(error):
        return "memory"
    return "transient" if is_transient(error) else "permanent"
