"""The task graph of a plan: raw Dask tasks with deterministic keys.

::

    plan-<fp>                 the plan, once; every tile depends on this one key
       |
    context-<fp>              what pass 1 found, where there is one (execute/stage.py)
       |
    (tile-<fp>, i)            computes, writes and records super-tile i; returns an Outcome
       |
    (merge-<fp>, level, j)    sums of outcomes, FAN_IN at a time
       |
    finish-<fp>               consolidates the target if nothing is missing; returns a Summary

A tile task carries one integer and returns less than a kilobyte, has no resources or restrictions
(those would switch Dask's queue off), and no array passes through the scheduler.  Keys depend on
fingerprint, layout and target, so a graph that is submitted twice attaches to the tasks that run
already, and never to those of another target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask import threaded
from dask.base import DaskMethodsMixin
from dask.task_spec import DataNode, List, Task, TaskRef

from geopatch_dask.execute.prepare import complete, forget_other_layouts, prepare
from geopatch_dask.execute.stage import join_states, leaf_runs, run_leaves, settle_context
from geopatch_dask.execute.tile import Outcome, layout_digest, run_tile
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.identity import digest

__all__ = ["FAN_IN", "Summary", "TaskGraph", "compile_graph"]

#: Outcomes or summaries merged by one task.
FAN_IN = 32


@dataclass(frozen=True)
class Summary:
    """Sums over outcomes; small, mergeable in any order.

    Parameters
    ----------
    states : dict of state to count
    numbers : dict
        Sums of patches, cells and bytes; the maximum of ``peak_rss``.
    seconds : dict of phase to seconds
    failed : tuple of str
        Identifiers, the first hundred.
    complete : bool
        Whether every super-tile of the plan is done and the target says so.
    """

    states: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    complete: bool = False

    @classmethod
    def of(cls, outcome: Outcome) -> Summary:
        """The summary of one outcome."""
        return cls(
            {outcome.state: 1},
            dict(outcome.numbers),
            dict(outcome.seconds),
            (outcome.id,) if outcome.state == "failed" else (),
        )

    def __add__(self, other: Summary) -> Summary:
        """Sum of two."""
        numbers = _added(self.numbers, other.numbers)
        peaks = [s.numbers.get("peak_rss", 0) for s in (self, other)]
        return Summary(
            _added(self.states, other.states),
            {**numbers, "peak_rss": max(peaks)} if numbers else {},
            _added(self.seconds, other.seconds),
            (self.failed + other.failed)[:100],
        )

    @property
    def done(self) -> int:
        """Super-tiles that are done, empty ones included."""
        return self.states.get("done", 0) + self.states.get("empty", 0)


def _added(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    return {key: left.get(key, 0) + right.get(key, 0) for key in {**left, **right}}


def _merge(items: Sequence[Outcome | Summary]) -> Summary:
    total = Summary()
    for item in items:
        total = total + (Summary.of(item) if isinstance(item, Outcome) else item)
    return total


def _finish(plan: PlanBase, summary: Summary, before: int) -> Summary:
    done = before + summary.done == plan.n_supertiles
    if done:
        complete(plan)
    return Summary(summary.states, summary.numbers, summary.seconds, summary.failed, done)


class TaskGraph(DaskMethodsMixin, Mapping[Any, Any]):
    """A compiled plan: a mapping of keys to tasks that Dask can compute or compose.

    ``graph.compute()`` or ``dask.compute(graph)`` runs it and gives a :class:`Summary`.

    Attributes
    ----------
    tiles : list of tuple
        Keys of the tile tasks, in order of ordinals.
    result : str
        Key of the finishing task.
    context : str or None
        Key of what pass 1 finds.
    """

    __dask_scheduler__ = staticmethod(threaded.get)

    def __init__(self, tasks: dict[Any, Any], tiles: list[Any], result: str) -> None:
        self._tasks, self.tiles, self.result = tasks, tiles, result
        found = [key for key in tasks if isinstance(key, str) and key.startswith("context-")]
        self.context: str | None = found[0] if found else None

    def __getitem__(self, key: Any) -> Any:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __dask_graph__(self) -> dict[Any, Any]:
        return self._tasks

    def __dask_keys__(self) -> list[str]:
        return [self.result]

    @staticmethod
    def __dask_optimize__(dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Nothing to optimise; fusing tiles would only hide them."""
        del keys, kwargs
        return dsk

    def __dask_postcompute__(self) -> tuple[Any, tuple[()]]:
        return _first, ()

    def __dask_postpersist__(self) -> tuple[Any, tuple[Any, ...]]:
        return _rebuilt, (self.tiles, self.result)

    def __dask_tokenize__(self) -> str:
        return self.result


def _first(results: Sequence[Any]) -> Any:
    return results[0]


def _rebuilt(tasks: dict[Any, Any], tiles: list[Any], result: str, rename: Any = None) -> TaskGraph:
    del rename
    return TaskGraph(dict(tasks), tiles, result)


def compile_graph(
    plan: PlanBase,
    todo: Sequence[int],
    prepared: bool,
    context: Mapping[str, Any] | None = None,
) -> TaskGraph:
    """Compile a plan.

    Parameters
    ----------
    plan : PlanBase
    todo : sequence of int
        Ordinals of the super-tiles to compute; the others are taken as done.
    prepared : bool
        Whether the target exists already; else the first task creates it.
    context : mapping or None
        What an earlier run found in pass 1; None: it is computed, where the plan has one.
    """
    short = _token(plan)
    plan_key, result = f"plan-{short}", f"finish-{short}"
    tasks: dict[Any, Any] = {}
    if prepared:
        tasks[plan_key] = DataNode(plan_key, plan)
    else:
        tasks[f"spec-{short}"] = DataNode(f"spec-{short}", plan)
        tasks[plan_key] = Task(plan_key, _prepared, TaskRef(f"spec-{short}"))
    known = _context_tasks(plan, plan_key, short, context, tasks) if plan.context and todo else []
    tiles: list[Any] = []
    for i in todo:
        key = (f"tile-{short}", i)
        tasks[key] = Task(key, run_tile, TaskRef(plan_key), i, *known)
        tiles.append(key)
    level, width = 0, tiles
    while len(width) > 1 or level == 0:
        merged: list[Any] = []
        for j in range(max(-(-len(width) // FAN_IN), 1)):
            parts = [TaskRef(k) for k in width[j * FAN_IN : (j + 1) * FAN_IN]]
            node = (f"merge-{short}", level, j)
            tasks[node] = Task(node, _merge, List(*parts))
            merged.append(node)
        level, width = level + 1, merged
    before = plan.n_supertiles - len(todo)
    tasks[result] = Task(result, _finish, TaskRef(plan_key), TaskRef(width[0]), before)
    return TaskGraph(tasks, tiles, result)


def _context_tasks(
    plan: PlanBase,
    plan_key: str,
    short: str,
    context: Mapping[str, Any] | None,
    tasks: dict[Any, Any],
) -> list[TaskRef]:
    """Add pass 1, or its recorded result, to the tasks; what a tile task takes of it."""
    key = f"context-{short}"
    if context is not None:
        tasks[key] = DataNode(key, context)
        return [TaskRef(key)]
    level: list[Any] = []
    for i, (first, last) in enumerate(leaf_runs(plan)):
        node: Any = (f"stat-{short}", i)
        tasks[node] = Task(node, run_leaves, TaskRef(plan_key), first, last)
        level.append(node)
    depth = 0
    while len(level) > 1:
        joined = []
        for j in range(0, len(level) - 1, 2):
            node = (f"join-{short}", depth, j // 2)
            pair = (TaskRef(level[j]), TaskRef(level[j + 1]))
            tasks[node] = Task(node, join_states, TaskRef(plan_key), *pair)
            joined.append(node)
        level, depth = joined + level[len(joined) * 2 :], depth + 1
    tasks[key] = Task(key, settle_context, TaskRef(plan_key), TaskRef(level[0]))
    return [TaskRef(key)]


def _token(plan: PlanBase) -> str:
    """Names one piece of work: values, layout, and where they go (stores by identity)."""
    opened = id(plan.target.store) if plan.target.store is not None else None
    return digest([plan.fingerprint, layout_digest(plan), plan.target.to_json(), opened])[:16]


def _prepared(plan: PlanBase) -> PlanBase:
    prepare(plan)
    forget_other_layouts(plan)
    return plan
