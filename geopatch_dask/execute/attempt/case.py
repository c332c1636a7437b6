"""What a failure means: one judge for super-tiles, for what a first pass is made of, and its tree.

::

    failed ---- permanent ----------------------------------------------> over
           +--- transient ------ attempts left? -- yes --> pause   no --> over
           +--- memory --------------------------- first: alone, alone --> over
    worker died, once --------------------------------------------------> again
    worker died, twice, or for want of memory ----- first: alone, alone --> over
    machine lost ----------------- more than losses? no --> again  yes --> over
    timed out -------------------- more than once?   no --> again  yes --> over

*Alone*: when nothing else runs, so that work that eats a worker takes no other with it, and work
that was only in bad company is acquitted.

A worker that *dies* under a nanny that lives may have died of its work.  Where nanny and worker are
gone together, the *machine* was lost, or the batch job: preempted, cancelled, out of walltime.  No
work does that, so it is not held against any, up to the policy's ``losses``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from geopatch_dask.execute.attempt.events import Failed, Lost
from geopatch_dask.execute.attempt.policy import Policy

__all__ = ["Case", "Verdict"]

#: Deaths of a worker in company, and time-outs, that are forgiven.
FORGIVEN = 1


class Verdict(Enum):
    """What is to become of a piece of work whose attempt failed."""

    AGAIN = auto()
    PAUSE = auto()
    ALONE = auto()
    OVER = auto()


@dataclass(slots=True)
class Case:
    """What is held against one piece of work.

    Parameters
    ----------
    attempts : int
        That were started.
    failures, deaths, machines, timeouts : int
        How they ended: for a passing reason, with their worker, with its machine, too late.
    alone : bool
        Whether it is only started when nothing else runs; set by who follows that verdict.
    error : mapping or None
        Of the last attempt that failed.
    """

    attempts: int = 0
    failures: int = 0
    deaths: int = 0
    machines: int = 0
    timeouts: int = 0
    alone: bool = False
    error: Mapping[str, str] | None = None

    def take(self, event: Failed | Lost, policy: Policy) -> Verdict:
        """Add how an attempt ended, and judge.

        Examples
        --------
        >>> from geopatch_dask.execute.attempt.policy import DEFAULT
        >>> case, lost = Case(), Lost(0, 1, {"kind": "lost"})
        >>> [case.take(lost, DEFAULT).name for _ in range(2)]
        ['AGAIN', 'ALONE']
        """
        self.error = event.error
        if isinstance(event, Failed):
            return self._failed(event.error.get("kind"), policy)
        if event.timed_out:
            self.timeouts += 1
            return Verdict.AGAIN if self.timeouts <= FORGIVEN else Verdict.OVER
        if event.machine:
            self.machines += 1
            return Verdict.AGAIN if self.machines <= policy.losses else Verdict.OVER
        self.deaths += 1
        if self.deaths > FORGIVEN or event.error.get("kind") == "memory":
            return self._suspected()
        return Verdict.OVER if self.alone else Verdict.AGAIN

    def _failed(self, kind: str | None, policy: Policy) -> Verdict:
        if kind == "transient":
            self.failures += 1
            return Verdict.PAUSE if self.failures < policy.attempts else Verdict.OVER
        return self._suspected() if kind == "memory" else Verdict.OVER

    def _suspected(self) -> Verdict:
        return Verdict.OVER if self.alone else Verdict.ALONE
