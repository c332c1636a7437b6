"""Pass 1 as tasks: runs of leaves, a binary tree over them, one context for everybody.

::

    (stat-<fp>, i)           the merged state of leaves  i 2^g .. (i+1) 2^g - 1
       |
    (join-<fp>, level, j)    two states into one
       |
    context-<fp>             recorded beside the target, then finalized; every tile depends on it

What each of them does about failures is :mod:`geopatch_dask.execute.attempt.first_pass`.
"""

from __future__ import annotations

from typing import Any

from geopatch_dask.aggregation.passes import reduce_leaves, runs_of
from geopatch_dask.aggregation.statistic import StatisticState, joined
from geopatch_dask.errors import RecordError
from geopatch_dask.execute.attempt.first_pass import Care, CarefulPass, context_of
from geopatch_dask.execute.attempt.metrics import count_leaves
from geopatch_dask.planning.context import CONTEXT_FILE, state_from_json, state_to_json
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.store.records import Ledger

__all__ = [
    "CARE",
    "JOINING",
    "SETTLING",
    "join_states",
    "leaf_runs",
    "recorded_context",
    "run_leaves",
    "settle_context",
]

#: Where it failed, if at no leaf.
JOINING = "when two states of its statistic were merged"
SETTLING = "when what it found was recorded"

#: Of a pass that is not told otherwise.
CARE = Care()


def leaf_runs(plan: PlanBase) -> list[tuple[int, int]]:
    """Ranges of leaves, one per task, see :func:`~geopatch_dask.aggregation.passes.runs_of`."""
    source = context_of(plan).source(plan.field, plan.grid, plan.operator)
    return runs_of(source.leaves, plan.slots)


def run_leaves(plan: PlanBase, first: int, last: int, care: Care = CARE) -> StatisticState:
    """The state of some leaves; the function behind every task of pass 1.

    Raises
    ------
    FirstPassFailed
    """

    def call() -> StatisticState:
        source = CarefulPass(plan, care)
        return reduce_leaves(source, context_of(plan).statistic, first, last)

    state = care.take(plan, call, lambda: JOINING)
    count_leaves(plan, last - first)
    return state


def join_states(
    plan: PlanBase, left: StatisticState, right: StatisticState, care: Care = CARE
) -> StatisticState:
    """Merge two states, the one of the earlier leaves first.

    Raises
    ------
    FirstPassFailed
    """

    def call() -> StatisticState:
        # A task must not change its inputs: Dask may run it again.
        kept = {name: array.copy() for name, array in left.items()}
        return joined(context_of(plan).statistic, kept, right)

    return care.take(plan, call, lambda: JOINING)


def settle_context(plan: PlanBase, state: StatisticState, care: Care = CARE) -> dict[str, Any]:
    """Record the state, then say what operators get.

    Raises
    ------
    FirstPassFailed
    """

    def call() -> dict[str, Any]:
        ledger = Ledger(plan.target, plan.fingerprint)
        ledger.folder.write(CONTEXT_FILE, state_to_json(state, plan.fingerprint))
        return dict(context_of(plan).statistic.finalize(state))

    return care.take(plan, call, lambda: SETTLING)


def recorded_context(plan: PlanBase) -> tuple[dict[str, Any] | None, str]:
    """What an earlier run recorded, and what is wrong with the record, if anything."""
    data = Ledger(plan.target, plan.fingerprint).folder.read(CONTEXT_FILE)
    if data is None:
        return None, ""
    try:
        state = state_from_json(data, plan.fingerprint)
    except RecordError as error:
        return None, str(error)
    return dict(context_of(plan).statistic.finalize(state)), ""
