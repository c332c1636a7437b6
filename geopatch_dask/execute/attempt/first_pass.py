"""What pass 1 does about failures: as much as is done for a super-tile, and then it is over.

::

    a leaf --- raises, for a passing reason ---> after a pause, again     Policy.attempts in all
      |   +--- is short of memory -------------> alone, then failed
      |   +--- raises otherwise ---------------> the first pass has failed
      |   +--- takes longer than the timeout --> its worker is ended; once more, then failed
      |   +--- its worker dies ----------------> elsewhere, then alone, then failed
      v
    the next leaf, after a look whether the run is to stop

Every super-tile depends on what pass 1 finds, so there is nothing to go on with when it has failed,
and no patch is left out of a statistic: one that silently lacks some would change every cell.  Only
the leaf that failed is computed again, from an empty state, so trying again changes no bit.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from geopatch_dask.aggregation.passes import FieldPass, OutputPass, Pass
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.errors import OptionError, RunIncomplete
from geopatch_dask.execute.attempt.case import Case, Verdict
from geopatch_dask.execute.attempt.events import Failed, kind_of
from geopatch_dask.execute.attempt.operate import repeated
from geopatch_dask.execute.attempt.policy import DEFAULT, Policy, backoff
from geopatch_dask.execute.attempt.room import Room
from geopatch_dask.execute.attempt.watchdog import ended_after, tell_of_leaf
from geopatch_dask.fields.handles import forget_handles
from geopatch_dask.patch.patch import Patch
from geopatch_dask.planning.context import Context
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.supertile import box_id
from geopatch_dask.store.backends import forget_clients

__all__ = ["Care", "CarefulPass", "FirstPassFailed", "context_of", "leaves_text"]

#: Most characters of an error in a message, and lines of its traceback that are kept.
LENGTH, LINES = 2000, 40
#: Seconds between two looks whether the run is to stop, in a pause.
LOOK = 0.1

#: Where the leaves of this process are computed.
_ROOM = Room()

T = TypeVar("T")


class FirstPassFailed(RunIncomplete):
    """The first pass of a plan failed; nothing can be computed without it.

    Attributes
    ----------
    traceback : str
        Of the error that was its cause.  Where that happened in this process, it is chained.
    kind : str
        What that says about trying again, as of a super-tile that failed.
    """

    traceback: str = ""
    kind: str = "permanent"

    @classmethod
    def at(cls, plan: PlanBase, where: str, error: str, traceback: str = "") -> Self:
        """With the place where it failed: ``"at patch 3 at (0, 30)"``; the error in a line."""
        why = " ".join(plan.scrub(error).split())
        made = cls(
            f"the first pass failed {where}: {why[:LENGTH]}; no super-tile can be computed without "
            "it: mend the cause and run the same command again"
        )
        made.traceback = plan.scrub(traceback)
        return made

    @classmethod
    def of(cls, plan: PlanBase, where: str, error: BaseException, attempts: int = 1) -> Self:
        """Because of an exception, the last of some attempts."""
        often = f"{attempts} times, the last time " if attempts > 1 else ""
        lines = "".join(traceback.format_exception(error)).splitlines()[-LINES:]
        text = f"{type(error).__name__}: {error}"
        made = cls.at(plan, often + where, text, "\n".join(lines))
        made.kind = kind_of(error)
        return made

    def bare(self) -> FirstPassFailed:
        """The same without its cause, whose class another process may not be able to load."""
        made = FirstPassFailed(str(self))
        made.traceback, made.kind = self.traceback, self.kind
        return made


@dataclass(frozen=True)
class Care:
    """How the tasks of a first pass are run.  What is sent to other processes has no ``check``.

    Parameters
    ----------
    policy : Policy
    check : callable, optional
        Called before every leaf, and in pauses; what it raises ends the pass.
    far : bool
        Whether errors have to find their way to another process.
    """

    policy: Policy = DEFAULT
    check: Callable[[], None] | None = None
    far: bool = False

    def look(self) -> None:
        """See whether the run is to stop."""
        if self.check is not None:
            self.check()

    def take(
        self,
        plan: PlanBase,
        call: Callable[[], T],
        where: Callable[[], str],
        number: int = 0,
        room: Room | None = None,
    ) -> T:
        """Call something, again while it fails for a passing reason.

        Parameters
        ----------
        plan : PlanBase
        call : callable
        where : callable
            Says where it failed.
        number : int
            Those of different numbers do not return together.
        room : Room, optional
            Where it is called; once more, alone, when it was short of memory.

        Raises
        ------
        FirstPassFailed
        """
        if not self.far:
            return self._taken(plan, call, where, number, room)
        try:
            return self._taken(plan, call, where, number, room)
        except FirstPassFailed as error:
            failure = error.bare()
        raise failure  # here, so that it has no context, either

    def _taken(
        self,
        plan: PlanBase,
        call: Callable[[], T],
        where: Callable[[], str],
        number: int,
        room: Room | None,
    ) -> T:
        case = Case()
        while True:
            case.attempts += 1
            self.look()
            try:
                with nullcontext() if room is None else room.entered(case.alone, self.look):
                    return call()
            except RunIncomplete:  # it has been judged, or the run is to stop
                raise
            except Exception as error:  # anything that an operator, a field or a store may raise
                failed = Failed(number, case.attempts, {"kind": kind_of(error)})
                verdict = case.take(failed, self.policy)
                alone = verdict is Verdict.ALONE
                if verdict is Verdict.OVER or (alone and room is None):
                    raise FirstPassFailed.of(plan, where(), error, case.attempts) from error
            case.alone = case.alone or alone
            if verdict is Verdict.PAUSE:
                self._pause(backoff(number, case.failures))
            _forget(plan)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.look()
            time.sleep(min(left, LOOK))


class CarefulPass(Pass):
    """The leaves of a plan's first pass, each with as many attempts as the policy says.

    Parameters
    ----------
    plan : PlanBase
    care : Care
    """

    def __init__(self, plan: PlanBase, care: Care) -> None:
        self.plan, self.care = plan, care
        self.source = context_of(plan).source(plan.field, plan.grid, plan.operator)
        self._blamed: Sequence[Patch] = ()
        if isinstance(self.source, OutputPass):
            self.source.run = self._noted(self.source.run)

    @property
    def leaves(self) -> int:
        """How many there are."""
        return self.source.leaves

    @property
    def leaf_bytes(self) -> int:
        """Bytes that a leaf may need beyond an idle worker."""
        return self.source.leaf_bytes

    def state(self, statistic: Statistic, leaf: int) -> StatisticState:
        """The state of one leaf.

        Raises
        ------
        FirstPassFailed
        """

        def call() -> StatisticState:
            self._blamed = ()
            with self._limited(leaf):
                return self.source.state(statistic, leaf)

        # From another process it is who sent the leaf that knows what else runs.
        room = None if self.care.far else _ROOM
        return self.care.take(self.plan, call, lambda: self._where(leaf), leaf, room)

    def _limited(self, leaf: int) -> AbstractContextManager[None]:
        """The time limit of an attempt at a super-tile, which is about as much work."""
        seconds = self.care.policy.seconds
        if seconds is None:
            return nullcontext()
        name = leaves_text(self.source, leaf, leaf + 1)
        return ended_after(seconds, tell_of_leaf(self.plan, leaf, name, seconds))

    def _noted(
        self, run: Callable[[Sequence[Patch]], Sequence[Any]]
    ) -> Callable[[Sequence[Patch]], Sequence[Any]]:
        """The operator of a pass over the output, which notes the patches it fails on."""
        operator = context_of(self.plan).first(self.plan.operator)

        def noted(patches: Sequence[Patch]) -> Sequence[Any]:
            try:
                return repeated(lambda: run(patches), operator.forget, self.care.policy)
            except Exception:
                self._blamed = list(patches)
                raise

        return noted

    def _where(self, leaf: int) -> str:
        if not self._blamed:
            return f"at {leaves_text(self.source, leaf, leaf + 1)}"
        first, last = self._blamed[0], self._blamed[-1]
        name = f"patch {first.ordinal} at {first.anchor}"
        if last is not first:
            name = f"one of patches {first.ordinal} to {last.ordinal}"
        return f"at {name}, in operator {context_of(self.plan).first(self.plan.operator).name}"


def context_of(plan: PlanBase) -> Context:
    """The first pass of a plan.

    Raises
    ------
    OptionError
        When it has none.
    """
    if plan.context is None:
        raise OptionError("the plan has no first pass")
    return plan.context


def leaves_text(source: Pass, first: int, last: int) -> str:
    """What leaves ``first .. last-1`` see, in words."""
    if first == last:
        return "no patch"
    if isinstance(source, OutputPass):
        return f"patches {source.ordinals(first)[0]} to {source.ordinals(last - 1)[-1]}"
    if isinstance(source, FieldPass):
        names = [box_id(source.grid.dims, source.box(leaf)) for leaf in (first, last - 1)]
        return f"blocks {names[0]} to {names[1]}" if last - first > 1 else f"block {names[0]}"
    return f"leaves {first} to {last - 1}"


def _forget(plan: PlanBase) -> None:
    """New clients, handles and models: one of them may be why the last attempt failed."""
    forget_clients()
    forget_handles()
    context_of(plan).first(plan.operator).forget()
