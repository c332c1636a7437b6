"""Words that a kind of cluster understands, and what they mean on every kind.

Each kind has a table of its own words (``OPTIONS``: word and one line of help).  The same words are
keyword arguments of :func:`geopatch_dask.cluster` and keys of ``[cluster]`` in a job file, so the
error for a wrong one is made here, once.
"""

from __future__ import annotations

import difflib
import re
import signal
import threading
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from geopatch_dask.errors import OptionError
from geopatch_dask.planning.units import parse_seconds

__all__ = ["dashboard_address", "known_words", "nearest", "optional", "seconds_of", "whole_number"]

_LOOPBACK = "127.0.0.1"


def known_words(kind: str, options: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Refuse a word that a kind of cluster does not know.

    Parameters
    ----------
    kind : str
    options : mapping
        What was given.
    known : mapping of word to help

    Raises
    ------
    OptionError
        Naming the nearest word.
    """
    for word in options:
        if word not in known:
            hint = f"; did you mean {nearest(word, known)!r}? It takes" if known else "; it takes"
            told = ", ".join([*known, "workers", "memory", "adapt", "tls", "folders"])
            raise OptionError(f"a cluster of kind {kind!r} has no option {word!r}{hint} {told}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like this one.

    >>> nearest("wall_time", ["queue", "walltime"])
    'walltime'
    """
    plain = {name.lower(): name for name in known}
    return plain[difflib.get_close_matches(word.lower(), plain, n=1, cutoff=0.0)[0]]


def whole_number(word: str, value: object, least: int = 1) -> int:
    """What was given for a word that counts something.

    Raises
    ------
    OptionError
    """
    if type(value) is not int or value < least:  # True is an int, and no number of anything
        raise OptionError(f"{word} must be a whole number, at least {least}; got {value!r}")
    return value


def seconds_of(word: str, value: float | str) -> float:
    """Seconds that were given for a word, as a number or with a unit; 0 is allowed.

    Raises
    ------
    OptionError

    Examples
    --------
    >>> seconds_of("margin", "5 min"), seconds_of("idle_timeout", 0)
    (300.0, 0.0)
    """
    try:
        return parse_seconds(value, zero=True)
    except OptionError as error:
        raise OptionError(f"{word}: {error}") from None


def optional(module: str, kind: str, extra: str) -> Any:
    """An optional package, imported; who handles signals in this process, stays who does.

    (dask-jobqueue 0.9 has Ctrl-C end the interpreter as soon as it is imported.)

    Parameters
    ----------
    module : str
        As in ``import module``.
    kind : str
        Of the cluster that needs it.
    extra : str
        Of this package, that installs it.

    Raises
    ------
    OptionError
        When it is absent; the line names the extra.
    """
    here = threading.current_thread() is threading.main_thread()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(
            f"a cluster of kind {kind!r} needs {module} ({error}): "
            f"pip install 'geopatch_dask[{extra}]'"
        ) from None
    except ValueError as error:  # its signal handler, from a thread
        raise OptionError(
            f"{module} can only be imported in the main thread ({error}): import it there first"
        ) from None
    finally:
        if here and interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)


def dashboard_address(given: str | int | bool, word: str = "dashboard") -> str | None:
    """Where the dashboard listens: on loopback, unless a host is named.

    Parameters
    ----------
    given : str, int or bool
        A port, ``":port"``, ``"host:port"``; True or 0 for any free port, False for none.
    word : str
        For which it was given.

    Returns
    -------
    str or None
        ``"host:port"``, or None for no dashboard.

    Raises
    ------
    OptionError

    Examples
    --------
    >>> dashboard_address(8787), dashboard_address(":0"), dashboard_address("0.0.0.0:8787")
    ('127.0.0.1:8787', '127.0.0.1:0', '0.0.0.0:8787')
    """
    if isinstance(given, bool):
        return f"{_LOOPBACK}:0" if given else None
    found = re.fullmatch(r"(?:(\[[0-9a-fA-F:]+\]|[^:\s]*):)?(\d{1,5})", str(given))
    if found is None or int(found[2]) > 65535:
        raise OptionError(f"{word} {given!r} is no port, :port or host:port: say 8787, for one")
    return f"{found[1] or _LOOPBACK}:{found[2]}"
