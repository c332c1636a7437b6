"""Pass 1 as tasks: runs of leaves, a binary tree over them, one context for everybody.

::

    (stat-<fp>, i)           the merged state of leaves  i 2^g .. (i+1) 2^g - 1
       |
    (join-<fp>, level, j)    two states into one
       |
    context-<fp>             recorded beside the target, then finalized; every tile depends on it
"""

from __future__ import annotations

from typing import Any

from geopatch_dask.aggregation.passes import reduce_leaves
from geopatch_dask.aggregation.statistic import StatisticState
from geopatch_dask.errors import OptionError, RecordError
from geopatch_dask.planning.context import (
    CONTEXT_FILE,
    Context,
    state_from_json,
    state_to_json,
)
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.store.records import Ledger

__all__ = ["join_states", "leaf_runs", "recorded_context", "run_leaves", "settle_context"]

#: Tasks of pass 1 per worker slot.
TASKS_PER_SLOT = 8


def _context(plan: PlanBase) -> Context:
    if plan.context is None:
        raise OptionError("the plan has no first pass")
    return plan.context


def leaf_runs(plan: PlanBase) -> list[tuple[int, int]]:
    """Ranges of leaves, one per task: aligned powers of two, so that the tree stays the same."""
    leaves = _context(plan).source(plan.field, plan.grid, plan.operator).leaves
    run = 1
    while leaves / run > TASKS_PER_SLOT * plan.slots:
        run *= 2
    return [(first, min(first + run, leaves)) for first in range(0, leaves, run)]


def run_leaves(plan: PlanBase, first: int, last: int) -> StatisticState:
    """The state of some leaves; the function behind every task of pass 1."""
    context = _context(plan)
    source = context.source(plan.field, plan.grid, plan.operator)
    return reduce_leaves(source, context.statistic, first, last)


def join_states(plan: PlanBase, left: StatisticState, right: StatisticState) -> StatisticState:
    """Merge two states, the one of the earlier leaves first."""
    # A task must not change its inputs: Dask may run it again.
    kept = {name: array.copy() for name, array in left.items()}
    return _context(plan).statistic.merge(kept, right)


def settle_context(plan: PlanBase, state: StatisticState) -> dict[str, Any]:
    """Record the state, then say what operators get."""
    ledger = Ledger(plan.target, plan.fingerprint)
    ledger.folder.write(CONTEXT_FILE, state_to_json(state, plan.fingerprint))
    return dict(_context(plan).statistic.finalize(state))


def recorded_context(plan: PlanBase) -> tuple[dict[str, Any] | None, str]:
    """What an earlier run recorded, and what is wrong with the record, if anything."""
    data = Ledger(plan.target, plan.fingerprint).folder.read(CONTEXT_FILE)
    if data is None:
        return None, ""
    try:
        state = state_from_json(data, plan.fingerprint)
    except RecordError as error:
        return None, str(error)
    return dict(_context(plan).statistic.finalize(state)), ""
