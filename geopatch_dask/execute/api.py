"""The public way in: plan, run, reconstruct, open, status."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from geopatch_dask.aggregation import Output
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import OptionError, RunIncomplete, TargetError
from geopatch_dask.execute.graph import TaskGraph, compile_graph
from geopatch_dask.execute.prepare import finished, prepare, unfinished
from geopatch_dask.execute.report import Report
from geopatch_dask.execute.runners import Scheduler, machine, resources, run_graph
from geopatch_dask.execute.stage import recorded_context
from geopatch_dask.execute.tile import Outcome
from geopatch_dask.patch.geometry import Cells
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.build import build
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.explain import Explanation, explain
from geopatch_dask.planning.operator import Operator
from geopatch_dask.planning.units import parse_bytes
from geopatch_dask.store.georef import SPATIAL_REF
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.tables import read_table
from geopatch_dask.store.template import is_complete, open_target

__all__ = ["Plan", "UncoveredWarning", "open", "plan", "reconstruct"]

#: Called after every super-tile: outcome, super-tiles finished so far, super-tiles of this run.
Progress = Callable[[Outcome, int, int], None]


class UncoveredWarning(UserWarning):
    """Some cells of a finished target were reached by no patch and hold the fill value."""


class Plan(PlanBase):
    """A plan that can run; made by :func:`geopatch_dask.plan`.

    The same plan gives the same bytes under every scheduler, layout and number of workers, and a
    run that died is continued by running it again.
    """

    def explain(self) -> Explanation:
        """What this plan will do: ``print`` it, or ``.draw("plan.png")``."""
        return explain(self)

    def to_dask(self) -> TaskGraph:
        """The whole plan as one Dask graph, for composing with other graphs.

        Creating the target is its first task, consolidating it the last; computing it twice is
        harmless.
        """
        return compile_graph(self, range(self.n_supertiles), prepared=False)

    def run(
        self,
        client: Scheduler = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
        on_failure: str = "raise",
    ) -> Report:
        """Compute what is not done yet, and finish the target.

        Parameters
        ----------
        client : distributed.Client, "sync", "threads", "processes" or None
            None: a cluster of processes on this machine.  In a script, call it under
            ``if __name__ == "__main__":``, because the processes import the script.
        overwrite : bool
            Start afresh, deleting what the target holds.
        progress : callable ``(outcome, finished, total)``
        on_failure : {"raise", "return"}
            What to do when super-tiles failed: the others are done in any case.

        Returns
        -------
        Report

        Raises
        ------
        PlanMismatch
            When the target holds the result of another plan.
        RunIncomplete
            When super-tiles failed; carries the report.

        Warns
        -----
        UncoveredWarning
            When cells were reached by no patch.
        """
        if on_failure not in ("raise", "return"):
            raise OptionError(f"on_failure {on_failure!r} is neither 'raise' nor 'return'")
        began = time.perf_counter()
        prepare(self, overwrite)
        records, problems = finished(self)
        todo, records = unfinished(self, records)
        report = Report.start(self, records, problems)
        report.skipped = self.n_supertiles - len(todo)

        def on_outcome(outcome: Outcome) -> None:
            report.add(outcome)
            if progress is not None:
                progress(outcome, sum(report.summary.states.values()), len(todo))

        context = self._recorded_context(report)
        run_graph(self, compile_graph(self, todo, True, context), client, on_outcome)
        report.complete = is_complete(self.target)
        report.seconds = time.perf_counter() - began
        Ledger(self.target, self.fingerprint).write_report(report.to_json())
        _judge(report, on_failure)
        return report

    def _recorded_context(self, report: Report) -> dict[str, Any] | None:
        """What an earlier run found in pass 1, if it can be trusted."""
        if self.context is None:
            return None
        context, problem = recorded_context(self)
        if problem:
            report.problems.append(problem)
        return context


def _outside() -> int:
    """How many frames above the caller the code is that uses this package."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("geopatch_dask."):
        level, frame = level + 1, frame.f_back
    return level + 1


def _judge(report: Report, on_failure: str) -> None:
    uncovered = report.totals.get("uncovered", 0)
    if report.complete and uncovered:
        warnings.warn(
            f"{uncovered:,} cells of {report.target} were reached by no patch and hold the fill "
            "value; boundary='shift' covers every cell of a regular stride",
            UncoveredWarning,
            stacklevel=_outside(),
        )
    if report.complete or on_failure == "return":
        return
    failed = [f.id for f in report.failures]
    first = f"; the first: {report.failures[0].error}" if report.failures else ""
    raise RunIncomplete(
        f"{len(failed)} of {report.supertiles} super-tiles failed ({', '.join(failed[:3])}"
        f"{' ...' if len(failed) > 3 else ''}){first}; the others are done: mend the cause and run "
        "the same command again",
        failed,
        report,
    )


def plan(
    field: Any,
    patcher: Patcher,
    operator: Operator | Callable[..., Any] | str,
    target: Any,
    *,
    outer: Any = "auto",
    chunks: Cells | None = None,
    shards: Cells | None = None,
    memory_limit: int | str | None = None,
    slots: int | None = None,
    output: Output | Mapping[str, Output] | None = None,
    context: Statistic | None = None,
    over: Operator | Callable[..., Any] | str = "field",
) -> Plan:
    """Decide how a field will be reconstructed; nothing is written.

    Parameters
    ----------
    field : Field, path, URL, ndarray or DataArray
    patcher : Patcher
    operator : callable, Operator or ``"module:name"``
        Tried on the first, the middle and the last patch, to learn dtype, shape, time and memory.
    target : path, URL, Location or zarr store
        Where the Zarr will be; ``Location(url, storage_options)`` where fsspec needs options.
        Tables (``ByIndex``) go to ``<target>.tables/<name>.parquet``; one table and nothing else
        may also be the target itself, under a name that ends in ``.parquet``.
    outer : "auto", Patcher, tuple, mapping or int
        Super-tiles.  ``"auto"``: the cheapest that memory and slots allow.  Else a Patcher of
        super-tiles (step equal to size), or cells per patch axis.
    chunks, shards : tuple, mapping or int; cells per patch axis
        Zarr's units of compression and storage; chunks of 512 and no shards by default.
    memory_limit : int or str, bytes
        Of one worker slot; this machine's share by default.
    slots : int
        Super-tiles computed at the same time; the cores of this machine by default.
    output : Output, or mapping of str to Output
        Name, dtype, fill value, scale and attributes of the array, where the defaults do not do.
    context : Statistic
        Computed in a first pass; the operator is then called with ``context=``, a dict.
    over : "field", "output", or an operator
        What the first pass sees: each cell of the field once; what the operator returns for each
        patch once (it is called with ``context=None``); or what another operator returns, which
        may be a vector of parameters per patch.

    Returns
    -------
    Plan

    Raises
    ------
    AlignmentError, BoundaryError, FieldError, MemoryPlanError, OperatorError, OptionError
        Each in one line that names the remedy; nothing has been written then.
    """
    here, share = machine()
    decided = build(
        field,
        patcher,
        operator,
        target,
        outer=outer,
        chunks=chunks,
        shards=shards,
        memory_limit=share if memory_limit is None else parse_bytes(memory_limit),
        slots=here if slots is None else slots,
        output=output,
        context=context,
        over=over,
    )
    return Plan(**decided)


def reconstruct(
    field: Any,
    patcher: Patcher,
    operator: Operator | Callable[..., Any] | str,
    target: Any,
    *,
    client: Scheduler = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Plan, run and open, in one call.

    Parameters
    ----------
    field, patcher, operator, target
        As for :func:`plan`.
    client : distributed.Client, "sync", "threads", "processes" or None
        As for :meth:`Plan.run`; its slots and memory are the plan's.
    overwrite, progress
        As for :meth:`Plan.run`.
    **options
        As for :func:`plan`.

    Returns
    -------
    xarray.DataArray, or xarray.Dataset where there are several arrays
        Lazy, with coordinates and CRS.  A pyarrow.Table where there is one table and nothing else.
    """
    slots, memory = resources(client)
    options = {"slots": slots, "memory_limit": memory, **options}
    made = plan(field, patcher, operator, target, **options)
    made.run(client, overwrite=overwrite, progress=progress)
    only_table = len(made.tables) == 1 and not made.arrays
    return read_table(made.target) if only_table else open(made.target)


def open(target: Any, storage_options: Mapping[str, Any] | None = None) -> Any:  # noqa: A001
    """Open a target lazily: the DataArray, or the Dataset where it holds several arrays.

    Raises
    ------
    TargetError
        When there is no target, or it holds tables only.
    """
    place = Location.of(target, storage_options)
    dataset = open_target(place)
    names = [name for name in dataset.data_vars if name != SPATIAL_REF]
    if not names:
        raise TargetError(f"{place.display} holds no arrays, only tables: gp.read_table reads them")
    return dataset[names[0]] if len(names) == 1 else dataset
