"""What the command says, and where: results on stdout, everything else on stderr.

What the package says is put into the words of the command line here, see
:mod:`geopatch_dask.cli.words`.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geopatch_dask.cli.words import in_words

__all__ = [
    "BAD_INPUT",
    "INCOMPLETE",
    "INTERRUPTED",
    "OK",
    "TERMINATED",
    "Stopped",
    "Terminated",
    "note",
    "one_line",
    "out",
    "terminable",
]

#: Exit codes; the last two as a shell has them for SIGINT and SIGTERM.
OK, INCOMPLETE, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

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


class Terminated(KeyboardInterrupt):
    """SIGTERM came: a batch system ends the job, or somebody the process.

    Handled as Ctrl-C is, so that clusters are closed and what was done is told.
    """


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM raises :class:`Terminated`; any further one changes nothing.

    Only where nobody else handles the signal, and in the main thread, where Python can.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def out(text: object = "") -> None:
    """A result, on stdout: text as it is (it may be JSON), an object of the package in words."""
    told = text if isinstance(text, str) else in_words(str(text))
    sys.stdout.write(f"{told}\n")
    sys.stdout.flush()


def note(text: str, label: str = "") -> None:
    """One line on stderr, after the name of the program, in the words of the command line."""
    middle = f"{label}: " if label else ""
    told = in_words(" ".join(text.split()))
    sys.stderr.write(f"geopatch: {middle}{one_line(told)}\n")
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


class _Notes(logging.Handler):
    """Tells what the package logs as a line of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage(), "" if record.levelno < logging.WARNING else "warning")


@contextmanager
def told_logs(quiet: bool) -> Iterator[None]:
    """Within it, what the package logs for people is on stderr; warnings only, if ``quiet``."""
    logger, handler = logging.getLogger("geopatch_dask"), _Notes()
    before = logger.level
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
