"""The task graph of a plan: raw Dask tasks with deterministic keys.

::

    plan-<fp>                 the plan, once; every tile depends on this one key
       |
    context-<fp>              what pass 1 found, where there is one (execute/attempt/stage.py)
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
from dataclasses import replace
from typing import Any

from dask import threaded
from dask.base import DaskMethodsMixin
from dask.task_spec import DataNode, List, Task, TaskRef

from geopatch_dask.execute.attempt.first_pass import Care
from geopatch_dask.execute.attempt.stage import (
    CARE,
    join_states,
    leaf_runs,
    run_leaves,
    settle_context,
)
from geopatch_dask.execute.attempt.tile import finish_tile
from geopatch_dask.execute.target.prepare import complete, forget_other_layouts, prepare, token
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.report.outcome import Summary

__all__ = [
    "FAN_IN",
    "NamedTask",
    "TaskGraph",
    "compile_graph",
    "head_graph",
    "leaf_tasks",
    "tree_tasks",
]

#: Outcomes or summaries merged by one task.
FAN_IN = 32


class NamedTask(Task):
    """A task whose key says what it computes.

    Dask hashes what a task consists of wherever a graph is sent, a sixth of the time of a process
    that sends very many small ones; this one names itself.
    """

    __slots__ = ()

    def __dask_tokenize__(self) -> str:
        return str(self.key)


def _finish(plan: PlanBase, summary: Summary) -> Summary:
    done = summary.done == plan.n_supertiles
    if done:
        complete(plan)
    return replace(summary, complete=done)


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


def compile_graph(plan: PlanBase) -> TaskGraph:
    """Compile a whole plan: from making the target to declaring it complete."""
    short = token(plan)
    plan_key, result = f"plan-{short}", f"finish-{short}"
    tasks: dict[Any, Any] = {
        f"spec-{short}": DataNode(f"spec-{short}", plan),
        plan_key: Task(plan_key, _prepared, TaskRef(f"spec-{short}")),
    }
    known = _context_tasks(plan, plan_key, short, None, tasks) if plan.context else []
    tiles: list[Any] = []
    for i in range(plan.n_supertiles):
        key = (f"tile-{short}", i)
        tasks[key] = Task(key, finish_tile, TaskRef(plan_key), i, *known)
        tiles.append(key)
    level, width = 0, tiles
    while len(width) > 1 or level == 0:
        merged: list[Any] = []
        for j in range(max(-(-len(width) // FAN_IN), 1)):
            parts = [TaskRef(k) for k in width[j * FAN_IN : (j + 1) * FAN_IN]]
            node = (f"merge-{short}", level, j)
            tasks[node] = Task(node, Summary.sum, List(*parts))
            merged.append(node)
        level, width = level + 1, merged
    tasks[result] = Task(result, _finish, TaskRef(plan_key), TaskRef(width[0]))
    return TaskGraph(tasks, tiles, result)


def head_graph(
    plan: PlanBase, short: str, context: Mapping[str, Any] | None, care: Care = CARE
) -> tuple[dict[Any, Any], list[str]]:
    """What every attempt at a super-tile depends on: the plan, and pass 1 where there is one.

    Parameters
    ----------
    plan : PlanBase
        Whose target is prepared.
    short : str
        From :func:`~geopatch_dask.execute.target.prepare.token`.
    context : mapping or None
        What an earlier run found in pass 1; None: it is computed.
    care : Care
        How.

    Returns
    -------
    (tasks, keys)
        ``keys``: that of the plan, and that of the context where there is one.
    """
    plan_key = f"plan-{short}"
    tasks: dict[Any, Any] = {plan_key: DataNode(plan_key, plan)}
    if plan.context is None:
        return tasks, [plan_key]
    _context_tasks(plan, plan_key, short, context, tasks, care)
    return tasks, [plan_key, f"context-{short}"]


def _context_tasks(
    plan: PlanBase,
    plan_key: str,
    short: str,
    context: Mapping[str, Any] | None,
    tasks: dict[Any, Any],
    care: Care = CARE,
) -> list[TaskRef]:
    """Add pass 1, or its recorded result, to the tasks; what a tile task takes of it."""
    key = f"context-{short}"
    if context is not None:
        tasks[key] = DataNode(key, context)
        return [TaskRef(key)]
    level: list[TaskRef] = []
    for i, run in enumerate(leaf_runs(plan)):
        node: Any = (f"stat-{short}", i)
        tasks |= leaf_tasks(plan_key, node, run, care)
        level.append(TaskRef(node))
    tree, key = tree_tasks(plan_key, short, level, care)
    tasks |= tree
    return [TaskRef(key)]


def leaf_tasks(plan_key: str, key: Any, run: tuple[int, int], care: Care) -> dict[Any, Any]:
    """The task that computes a run of leaves."""
    return {key: Task(key, run_leaves, TaskRef(plan_key), *run, care)}


def tree_tasks(
    plan_key: str, short: str, level: list[TaskRef], care: Care
) -> tuple[dict[Any, Any], str]:
    """Tasks that merge the states of all runs of leaves, and the key of what comes out."""
    tasks: dict[Any, Any] = {}
    depth = 0
    while len(level) > 1:
        joined: list[TaskRef] = []
        for j in range(0, len(level) - 1, 2):
            node = (f"join-{short}", depth, j // 2)
            pair = level[j : j + 2]
            tasks[node] = Task(node, join_states, TaskRef(plan_key), *pair, care)
            joined.append(TaskRef(node))
        level, depth = joined + level[len(joined) * 2 :], depth + 1
    key = f"context-{short}"
    tasks[key] = Task(key, settle_context, TaskRef(plan_key), level[0], care)
    return tasks, key


def _prepared(plan: PlanBase) -> PlanBase:
    prepare(plan)
    forget_other_layouts(plan)
    return plan
