"""The command ``geopatch``: demo, plan, run, submit, status, retry, verify, doctor.

An error is one line on stderr that says what to do, and an exit code: 0 done, 1 incomplete, 2 bad
input (nothing has been written), 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).  Never a
traceback, unless ``--traceback`` asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from geopatch_dask.cli.console import (
    BAD_INPUT,
    INCOMPLETE,
    INTERRUPTED,
    OK,
    TERMINATED,
    Stopped,
    Terminated,
    note,
    short_warnings,
    show_traceback,
    terminable,
)
from geopatch_dask.cli.parser import build_parser
from geopatch_dask.errors import GeopatchError, RunIncomplete
from geopatch_dask.execute.api import UncoveredWarning

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the name of the program; those of this process by default.

    Returns
    -------
    int
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with terminable(), short_warnings(UncoveredWarning):
            args = build_parser().parse_args(words)
            args.words = words
            code: int = args.call(args)
            return code
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else OK
    except BrokenPipeError:  # `geopatch plan job.toml | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    except Terminated:
        note("run the same command again", "terminated")
        return TERMINATED
    except KeyboardInterrupt:
        note("run the same command again", "interrupted")
        return INTERRUPTED
    except Exception as error:
        if "--traceback" in words:
            show_traceback(error)
        return _told(error)


def _told(error: Exception) -> int:
    """One line for an error, and its exit code."""
    if isinstance(error, Stopped):
        note(str(error), error.label)
        return error.code
    if isinstance(error, GeopatchError):
        note(str(error), "error")
        return INCOMPLETE if isinstance(error, RunIncomplete) else BAD_INPUT
    note(f"unexpected {type(error).__name__}: {error}; --traceback shows where", "error")
    return INCOMPLETE
