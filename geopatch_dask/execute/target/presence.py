"""Whether the target that a run writes is still there.

Whoever deletes or replaces a target while a run works on it takes the ground from under it: what
workers write goes to a place that nobody can open, or into another result.  Nothing that a worker
does by itself would tell, short of a look at the group's document per super-tile.  So the driver
looks, for all of them::

    every few heartbeats  ------------+
    a write fails for good  ----------+--->  the group's document, then the plan beside it
    the target is not complete  ------+
    at the end

and ends the run at once: to go on would be work for nothing.  A store that does not answer, or does
not let this process look, is no sign of anything.
"""

from __future__ import annotations

from geopatch_dask.errors import RunIncomplete, TargetError
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import DELETING, owner, read_root

__all__ = ["TargetGone", "absence", "check_present"]


class TargetGone(RunIncomplete):
    """The target of a run was deleted, or replaced, while the run worked on it."""


def check_present(plan: PlanBase) -> None:
    """Make sure that the target is still the one of a plan.

    Raises
    ------
    TargetGone
        When it, or what lies beside it, is not.
    """
    found = absence(plan)
    if found is not None:
        raise TargetGone(found)


def absence(plan: PlanBase) -> str | None:
    """What happened to the target of a plan, and what to do; None while it is there.

    Parameters
    ----------
    plan : PlanBase
        One that is being run: its target was made, and its plan recorded.
    """
    where = plan.target.display
    try:
        root = read_root(plan.target)
        if root is None:
            return (
                f"{where} was deleted while this run worked on it, and what was done of it is "
                "gone: run the same command again, which starts anew"
            )
        attributes = root.get("attributes", {})
        if attributes.get(DELETING) or owner(root) != plan.fingerprint:
            return (
                f"{where} was replaced by another run while this one worked on it: choose another "
                "target for one of them; what this run wrote last may lie in the other's result, "
                "so start that one anew (--overwrite), too"
            )
        ledger = Ledger(plan.target, plan.fingerprint)
        if not ledger.folder.exists("plan.json"):
            return (
                f"the records beside {where} were deleted while a run worked on it: run the same "
                "command again; it computes what has no record any more"
            )
    except TargetError:
        pass
    return None
