"""Calling the operator on a batch of patches, and what to do when it raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from geopatch_dask.errors import GeopatchError
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.patch.patch import Patch
from geopatch_dask.planning.core import PlanBase

__all__ = ["Caller", "repeated"]

#: Under ``on_error="retry"``: calls of one batch, and seconds before the second (doubled after).
TRIES = 3
PAUSE = 0.1
#: Failed patches that a record names.
NAMED = 5

T = TypeVar("T")


class Caller:
    """Runs the operator of a plan for one super-tile.

    Parameters
    ----------
    plan : PlanBase
    context : mapping or None
        What pass 1 found.
    keyed : frozenset of str
        Entries of a result that are rows.
    policy : Policy

    Attributes
    ----------
    failed : int
        Patches that were left out.
    errors : list of str
        Why, for the first few.
    """

    def __init__(
        self,
        plan: PlanBase,
        context: Mapping[str, Any] | None,
        keyed: frozenset[str],
        policy: Policy,
    ) -> None:
        self.plan, self.context, self.keyed, self.policy = plan, context, keyed, policy
        self.failed = 0
        self.errors: list[str] = []

    def run(self, patches: Sequence[Patch]) -> list[Any]:
        """What the operator returns, by patch; None for a patch that failed and is left out."""
        if self.policy.on_error == "fill":
            return self._filled(patches)
        return repeated(lambda: self._call(patches), self.plan.operator.forget, self.policy)

    def _filled(self, patches: Sequence[Patch]) -> list[Any]:
        try:
            return self._call(patches)
        except GeopatchError:
            raise
        except Exception as error:
            if len(patches) > 1:  # one of them is to blame: the others have results
                return [result for patch in patches for result in self._filled([patch])]
            patch = patches[0]
            self.failed += 1
            if len(self.errors) < NAMED:
                text = self.plan.scrub(f"{type(error).__name__}: {error}")[:300]
                self.errors.append(f"patch {patch.ordinal} at {patch.anchor}: {text}")
            return [None]

    def _call(self, patches: Sequence[Patch]) -> list[Any]:
        plan = self.plan
        return _survived(lambda: plan.operator.run(patches, plan.scale, self.context, self.keyed))


def repeated(call: Callable[[], T], forget: Callable[[], None], policy: Policy) -> T:
    """Call an operator on one batch, as often as the policy's ``on_error`` says.

    Parameters
    ----------
    call : callable
    forget : callable
        Has the model built anew; called between two calls.
    policy : Policy
    """
    tries = TRIES if policy.on_error == "retry" else 1
    for k in range(tries):
        try:
            return _survived(call)
        except GeopatchError:  # a broken contract stays broken
            raise
        except Exception:
            if k == tries - 1:
                raise
            forget()
            time.sleep(PAUSE * 2**k)
    raise AssertionError("unreachable")


def _survived(call: Callable[[], T]) -> T:
    """Call an operator; one that wants to end the process has failed, like any other."""
    try:
        return call()
    except SystemExit as error:
        raise RuntimeError(f"the operator called sys.exit({error.code!r})") from error
