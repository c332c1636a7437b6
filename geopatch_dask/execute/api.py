"""The public way in: plan, run, reconstruct, open, status."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distributed import Client

from geopatch_dask.aggregation import Output
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import OptionError, TargetError
from geopatch_dask.execute.attempt.policy import DEFAULT, Policy
from geopatch_dask.execute.driving.graph import TaskGraph, compile_graph
from geopatch_dask.execute.runs.job import Job, submit
from geopatch_dask.execute.runs.judge import UncoveredWarning, check_on_failure, judge
from geopatch_dask.execute.runs.run import Progress, Share, execute
from geopatch_dask.execute.runs.runners import AnyScheduler, machine, opened, resources
from geopatch_dask.patch.geometry import Cells
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.build import build
from geopatch_dask.planning.core import PlanBase, read_plan
from geopatch_dask.planning.explain import Explanation, explain
from geopatch_dask.planning.nodes import Nodes
from geopatch_dask.planning.operator import Operator
from geopatch_dask.planning.units import parse_bytes
from geopatch_dask.report.report import Report
from geopatch_dask.report.survey import layout_of
from geopatch_dask.store.georef import SPATIAL_REF
from geopatch_dask.store.location import Location
from geopatch_dask.store.preflight import preflight
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.tables import read_rows
from geopatch_dask.store.target import open_target, owner, read_root

__all__ = ["Plan", "UncoveredWarning", "open", "plan", "read_table", "reconstruct"]


class Plan(PlanBase):
    """A plan that can run; made by :func:`geopatch_dask.plan`.

    The same plan gives the same bytes under every scheduler, layout and number of workers, and a
    run that died is continued by running it again.
    """

    def explain(self, nodes: Nodes | None = None) -> Explanation:
        """What this plan will do: ``print`` it, or ``.draw("plan.png")``.

        Parameters
        ----------
        nodes : Nodes, optional
            Machines to say of what the plan costs on them: slots, wall time, node-hours.

        Raises
        ------
        MemoryPlanError
            When one slot does not fit a node.
        """
        return explain(self, nodes)

    def to_dask(self) -> TaskGraph:
        """The whole plan as one Dask graph, for composing with other graphs.

        Creating the target is its first task, consolidating it the last; computing it twice is
        harmless.
        """
        return compile_graph(self)

    def run(
        self,
        client: AnyScheduler = None,
        *,
        policy: Policy = DEFAULT,
        share: Share = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        on_failure: str = "raise",
    ) -> Report:
        """Compute what is not done yet, and finish the target.

        Parameters
        ----------
        client : distributed.Client, Cluster, "sync", "threads", "processes" or None
            A client, or a cluster: of :func:`geopatch_dask.cluster`, or one of Dask's own objects.
            None and ``"processes"``: a cluster of processes on this machine.  In a script, call it
            under ``if __name__ == "__main__":``, because the processes import the script.
        policy : Policy
            Attempts, time limits, what to do with a patch that fails.
        share : ``"i/n"`` or (i, n), optional
            Only every n-th super-tile from the i-th on (from 0).  Runs of all shares, anywhere and
            in any order, need no scheduler in common; the last to end finishes the target.
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
            When super-tiles failed, or the run was cancelled; carries the report.

        Warns
        -----
        UncoveredWarning
            When cells were reached by no patch, or patches failed and were left out.
        """
        check_on_failure(on_failure)
        options: dict[str, Any] = {"share": share, "overwrite": overwrite, "progress": progress}
        with opened(client) as scheduler:
            report = execute(self, scheduler, policy, **options)
        judge(report, on_failure, share is not None)
        return report

    def submit(
        self, client: AnyScheduler, *, policy: Policy = DEFAULT, overwrite: bool = False
    ) -> Job:
        """Hand the plan to a cluster, which finishes it whether this process lives or not.

        Parameters
        ----------
        client : distributed.Client or Cluster
            Of a cluster that outlives this process.
        policy, overwrite
            As for :meth:`run`.

        Returns
        -------
        Job
            :func:`geopatch_dask.attach` makes the same one, in any process.

        Raises
        ------
        PlanMismatch
            When the target holds the result of another plan.
        RunIncomplete
            When the cluster cannot load the plan, or the driver fails in its first seconds.
        GeopatchError
            Of another kind, when a worker may not write the target, for instance.
        """
        with opened(client) as scheduler:
            if not isinstance(scheduler, Client):
                raise OptionError(
                    f"a plan is submitted to a cluster that outlives this process, not to "
                    f"{scheduler!r}: pass a distributed.Client, or gp.cluster('tcp://host:8786')"
                )
            return submit(self, scheduler, policy, overwrite)


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
    """Decide how a field will be reconstructed; nothing is written but a probe of the target.

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
    TargetError
        When the target cannot be written, read or deleted.
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
    if not decided["target"].is_local:  # on a disk, making the target is trial enough
        # Where listing is forbidden, the location knows it from here on.
        decided["target"] = preflight(decided["target"]).location
    return Plan(**decided)


def reconstruct(
    field: Any,
    patcher: Patcher,
    operator: Operator | Callable[..., Any] | str,
    target: Any,
    *,
    client: AnyScheduler = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Plan, run and open, in one call.

    Parameters
    ----------
    field, patcher, operator, target
        As for :func:`plan`.
    client : distributed.Client, Cluster, "sync", "threads", "processes" or None
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


# It is gp.open to users; this module opens no file itself.
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


def read_table(
    target: Any, name: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Any:
    """A table of a target, sorted by ordinal: the same bytes whatever the layout.

    Parameters
    ----------
    target : path, URL, Location or zarr store
    name : str, optional
        Which table, where there are several.
    storage_options : mapping
        For the target.

    Returns
    -------
    pyarrow.Table
        ``.to_pandas()`` makes a DataFrame.  Tables of query points are sorted by point.  It is
        read whole; of a finished target, any reader of Parquet datasets reads the same rows part
        by part.

    Raises
    ------
    TargetError
        When there is no target, or it has no such table.
    RecordError
        When a part is missing or damaged; the same plan, run again, mends what is missing.
    GeopatchError
        When pyarrow is not installed.

    Warns
    -----
    IncompleteWarning
        When the target is not finished: rows may be missing.
    """
    place = Location.of(target, storage_options)
    return read_rows(place, name, _planned(place))


def _planned(place: Location) -> Iterator[str]:
    """Ids of the super-tiles of the plan beside a target, read only where somebody asks."""
    fingerprint = owner(read_root(place))
    text = Ledger(place, fingerprint).read_plan() if fingerprint else None
    if text is not None:
        yield from (tile.id for tile in layout_of(read_plan(text)))
