"""How much a run puts up with before it gives a super-tile up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geopatch_dask.errors import OptionError
from geopatch_dask.planning.units import parse_seconds

__all__ = ["DEFAULT", "LOGS", "Policy", "backoff"]

#: Seconds before the second attempt at a super-tile; doubled for each further one.
BACKOFF = 1.0

#: Forms of a log line; see :mod:`geopatch_dask.execute.attempt.logs`.
LOGS = ("text", "json")


@dataclass(frozen=True)
class Policy:
    """What to do about failures.  Decides no value of a run without failures.

    Parameters
    ----------
    attempts : int
        Of a super-tile, or a block of a first pass, whose failure may pass: a store that does not
        answer, a full queue.  What will fail again (an operator that raises, a permission) is given
        up at once.
    on_error : {"raise", "fill", "retry"}
        What to do with a patch whose operator raises.  ``"raise"``: its super-tile fails.
        ``"fill"``: the patch counts as missing data, is counted and named, and the run is not
        "ok".  ``"retry"``: twice more, with the model built anew, then as ``"raise"``.  No patch is
        left out of a first pass: there, ``"fill"`` means the same as ``"raise"``, and the run ends.
    timeout : float (seconds) or str ("90 s", "10 min", "2 h"), optional
        Of one attempt at a super-tile, or at a block of a first pass.  The worker process that
        hangs is ended, so it needs workers that are processes with a nanny: the default, or a
        cluster.
    backups : bool
        Whether idle workers compute a straggler of the last wave a second time; the first to finish
        wins, and both write the same bytes.
    window : int, optional
        Super-tiles that the scheduler knows at the same time.  By default all of them up to
        10 000, else 2000 or 8 per slot, so that its memory does not grow with the field.
    losses : int
        How often a super-tile may lose its worker because the machine or the batch job under it was
        lost (preempted, cancelled, out of walltime): not its fault, but not for ever either.
    log : {"text", "json"}, optional
        A line per attempt at a super-tile, through the logger ``geopatch_dask.tiles`` of the
        process that computes it.  By default what Dask's configuration says there
        (``geopatch.log``), or the logger: nothing, if neither says anything.

    Raises
    ------
    OptionError
    """

    attempts: int = 4
    on_error: Literal["raise", "fill", "retry"] = "raise"
    timeout: float | str | None = None
    backups: bool = True
    window: int | None = None
    losses: int = 10
    log: Literal["text", "json"] | None = None

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise OptionError(f"attempts {self.attempts!r}: at least 1 is needed")
        if self.on_error not in ("raise", "fill", "retry"):
            raise OptionError(f"on_error {self.on_error!r} is none of 'raise', 'fill', 'retry'")
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise OptionError(f"window {self.window!r}: at least 1 super-tile is needed")
        if type(self.losses) is not int or self.losses < 0:
            raise OptionError(f"losses {self.losses!r}: give a whole number, at least 0")
        if self.log is not None and self.log not in LOGS:
            raise OptionError(f"log {self.log!r} is neither 'text' nor 'json'")
        if self.timeout is not None:
            object.__setattr__(self, "timeout", parse_seconds(self.timeout))

    @property
    def seconds(self) -> float | None:
        """The time limit of an attempt, if there is one."""
        return None if self.timeout is None else float(self.timeout)


#: What a run does when it is not told otherwise.
DEFAULT = Policy()


def backoff(ordinal: int, attempt: int) -> float:
    """Seconds before the next attempt; super-tiles that failed together do not return together.

    Examples
    --------
    >>> backoff(7, 1) == backoff(7, 1), backoff(7, 3) > 2 * backoff(7, 1)
    (True, True)
    """
    spread = (ordinal * 2654435761 % 2**32) / 2**32  # Knuth's multiplicative hash
    return BACKOFF * 2.0 ** (attempt - 1) * (0.75 + spread / 2)
