"""What happens when an aggregation is used in a way that needs unbounded memory."""

from __future__ import annotations

import os
import warnings

from geopatch_dask.errors import OptionError

__all__ = ["get_strict", "set_strict", "unbounded"]

_state = {"strict": os.environ.get("GEOPATCH_STRICT", "").lower() in ("1", "true", "yes", "on")}
_warned: set[str] = set()


def set_strict(strict: bool) -> None:
    """Make uses that need unbounded memory errors instead of warnings.

    Starts from the environment variable ``GEOPATCH_STRICT`` (1, true, yes, on).

    Parameters
    ----------
    strict : bool
    """
    _state["strict"] = bool(strict)


def get_strict() -> bool:
    """Whether :func:`set_strict` is on."""
    return _state["strict"]


def unbounded(name: str, remedy: str) -> None:
    """Warn, once per aggregation, that a plain merge keeps every patch in memory.

    Raises
    ------
    OptionError
        Under ``set_strict(True)``.
    """
    text = (
        f"{name} has streaming_safe = False: this merge keeps every layer of every cell in RAM; "
        f"{remedy}"
    )
    if _state["strict"]:
        raise OptionError(text)
    if name not in _warned:
        _warned.add(name)
        warnings.warn(text, RuntimeWarning, stacklevel=4)
