"""What the command says, and where: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BAD_INPUT", "INCOMPLETE", "INTERRUPTED", "OK", "Stopped", "note", "one_line", "out"]

#: Exit codes.
OK, INCOMPLETE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

#: Longest message; what a library wrote may be pages.
LONGEST = 1200


class Stopped(Exception):
    """Ends the command with an exit code and one line on stderr.

    Parameters
    ----------
    text : str
    code : int
    label : str
        What comes before the text: ``geopatch: <label>: <text>``.
    """

    def __init__(self, text: str, code: int, label: str = "error") -> None:
        super().__init__(text)
        self.code = code
        self.label = label


def out(text: object = "") -> None:
    """A result, on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str, label: str = "") -> None:
    """One line on stderr, after the name of the program."""
    middle = f"{label}: " if label else ""
    sys.stderr.write(f"geopatch: {middle}{one_line(text)}\n")
    sys.stderr.flush()


def one_line(text: object) -> str:
    r"""Text without line breaks, not too long.

    >>> one_line("a shape\n  mismatch")
    'a shape mismatch'
    """
    words = " ".join(str(text).split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def show_traceback(error: BaseException) -> None:
    """The traceback, for ``--traceback``."""
    sys.stderr.write("".join(traceback.format_exception(error)))


@contextmanager
def short_warnings(*ignored: type[Warning]) -> Iterator[None]:
    """Within it, a warning is one line on stderr: no path of a module, no line of its source.

    Parameters
    ----------
    *ignored : Warning classes
        Those that the command tells in its own words.
    """

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        del category, where, more
        note(str(message), "warning")

    with warnings.catch_warnings():
        for category in ignored:
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield
