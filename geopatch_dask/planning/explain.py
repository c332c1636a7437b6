"""A plan in words and numbers, and as a drawing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.holes import holes_of
from geopatch_dask.planning.nodes import Forecast, Nodes, bytes_read, bytes_written, forecast
from geopatch_dask.planning.probe import OutputArray
from geopatch_dask.planning.requests import KINDS, requests_of
from geopatch_dask.planning.tables import Table
from geopatch_dask.planning.units import bytes_text, seconds_text

__all__ = ["MANY_OBJECTS", "Explanation", "explain"]

#: Above this many objects, listing and copying a store becomes a chore, and shards pay off.
MANY_OBJECTS = 100_000


#: What a wall time is made of, in words.
_BOUND = {
    "slots": "the work of slots",
    "bandwidth": "bandwidth",
    "scheduler": "the scheduler: larger super-tiles help",
}


@dataclass(frozen=True)
class Explanation:
    """What a plan will do; ``str()`` of it is the text.

    Attributes
    ----------
    numbers : dict
        Every number in the text, by name; bytes, cells and seconds.  ``requests``: to the target
        by kind, and ``field``: blocks of the field; None where the target is no object store.
        ``uncovered``: what the report of the run will say, None where counting would take long.
        ``nodes``: what was asked about, and :class:`~geopatch_dask.planning.nodes.Forecast`.
    """

    plan: PlanBase
    numbers: dict[str, Any]
    lines: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in self.lines)

    def draw(self, path: str | os.PathLike[str]) -> Path:
        """Draw super-tiles, halos and patches into a PNG; needs the ``plot`` extra."""
        from geopatch_dask.planning.drawing import draw_plan  # matplotlib only when asked for

        return draw_plan(self.plan, path)


def explain(plan: PlanBase, nodes: Nodes | None = None) -> Explanation:
    """Numbers and text about a plan; nothing is read or run.

    Parameters
    ----------
    plan : PlanBase
    nodes : Nodes, optional
        Machines to say of what the plan costs on them.

    Raises
    ------
    MemoryPlanError
        When one slot does not fit a node.
    """
    numbers = _numbers(plan)
    lines = list(_what(plan, numbers))
    holes = holes_of(plan)
    numbers["uncovered"] = None if holes is None else holes.cells
    if holes is not None and holes.cells:
        lines.append(("uncovered", str(holes)))
    lines += _how_much(plan, numbers)
    if nodes is not None:
        found = forecast(plan, nodes, numbers["patches_run"])
        numbers["nodes"] = asdict(nodes) | asdict(found)
        lines += _on_nodes(nodes, found)
    lines += [
        ("rejected", f"{_by(r['tile'])}: R {r['R']:.3f}, {bytes_text(r['memory'])}; {r['reason']}")
        for r in plan.rejected
    ]
    if numbers["objects"] > MANY_OBJECTS and plan.layout.shards is None:
        told = (
            f"{numbers['objects']:,} objects: shards= of a few thousand cells would store fewer; "
            "GDAL before 3.13 (QGIS before 4.2) cannot read shards"
        )
        lines.append(("advice", told))
    return Explanation(plan, numbers, tuple(lines))


def _what(plan: PlanBase, numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is read, run and written, and how it is cut."""
    field, layout, patcher = plan.field, plan.layout, plan.patcher
    yield "field", f"{field.label}  {_axes(field.domain.dims, field.domain.shape)} {field.dtype}"
    yield (
        "patches",
        f"{plan.cost.patches:,} of {_by(plan.grid.size)}, {_step(plan)}, "
        f"window {_axis(patcher.window)}, {_axis(patcher.aggregation)}, "
        f"boundary {patcher.geometry.boundary}",
    )
    took = f"{plan.seconds_per_patch * 1e3:.2f} ms per patch here"
    if not plan.operator.trial:
        took = "not tried, its time is unknown"
    yield "operator", f"{plan.operator.name}  {took}"
    arrays = "; ".join(_array(plan, a) for a in plan.arrays)
    yield "target", "  ".join([plan.target.display, arrays]).strip()
    for name, told in numbers["tables"].items():
        yield "table", _table(name, told)
    stored = "no chunks: tables only"
    if plan.arrays:
        shards = f" in shards {_by(layout.shards)}" if layout.shards else ", unsharded"
        stored = f"chunks {_by(layout.chunks)}{shards}"
    yield "super-tiles", f"{layout.count:,} of {_by(layout.tile)}, {stored}"


def _how_much(plan: PlanBase, numbers: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What it costs."""
    memory = plan.memory
    yield (
        "R",
        f"{numbers['R']:.3f}  {numbers['patches_run']:,} patches run for "
        f"{numbers['patches']:,} needed",
    )
    yield (
        "reads",
        f"{bytes_text(numbers['bytes_read'])}  "
        f"{numbers['read_amplification']:.3f} of the field, uncompressed",
    )
    yield (
        "writes",
        f"{bytes_text(numbers['bytes_written'])} uncompressed in at most "
        f"{numbers['objects']:,} objects, and {plan.layout.count:,} records",
    )
    requests = numbers["requests"]
    if requests is not None:
        by_kind = ", ".join(f"{requests[kind]:,} {kind}" for kind in KINDS)
        read = f"at most {requests['field']:,} GET of the field, if it is in one, too"
        yield "requests", f"{by_kind} of the target, and heartbeats; {read}"
    by_part = sorted(memory.to_json().items(), key=lambda kv: -kv[1])
    parts = ", ".join(f"{k} {bytes_text(v)}" for k, v in by_part if k != "total" and v)
    yield (
        "memory",
        f"{bytes_text(memory.total)} per worker slot, {memory.total / plan.memory_limit:.0%} of "
        f"{bytes_text(plan.memory_limit)}  ({parts})",
    )
    if plan.operator.trial:
        yield "operator time", f"{seconds_text(numbers['operator_seconds'])} on {plan.slots} slots"
    yield "fingerprint", plan.fingerprint[:16]


def _on_nodes(nodes: Nodes, found: Forecast) -> Iterator[tuple[str, str]]:
    """What it costs on given machines."""
    idle = nodes.cores - found.slots_per_node * nodes.slot_cores
    spare = f"; {idle} cores stay idle" if idle else ""
    each = f"{bytes_text(found.slot_memory)} a slot"
    if nodes.job_memory:
        each += f", {bytes_text(int(nodes.job_memory))} beside those of a job"
    why = f"memory allows no more: {each}{spare}"
    if found.limited_by == "workers":
        why = f"{found.slots:,} are asked for, {each}"
    elif found.limited_by == "cores":
        per = "one per core" if nodes.slot_cores == 1 else f"one per {nodes.slot_cores} cores"
        why = f"{per}, {each}"
    yield (
        "nodes",
        f"{nodes.count:,} of {nodes.cores} cores and {bytes_text(int(nodes.memory))}: "
        f"{found.slots_per_node} slot{'' if found.slots_per_node == 1 else 's'} each ({why})",
    )
    shares = ", ".join(f"{k} {seconds_text(v)}" for k, v in found.work.items() if v >= 0.05)
    waves = f"{found.waves:,} waves" if found.waves > 1 else "1 wave"
    if not found.work.get("operator"):
        waves += ", without the operator, whose time is unknown"
    yield (
        "wall time",
        f"{seconds_text(found.seconds)} in {waves}, bound by {_BOUND[found.bound]}  "
        f"(work of slots: {shares})",
    )
    prices = [
        f"{_amount(price)} for {what}"
        for what, price in (("nodes", found.node_price), ("requests", found.request_price))
        if price is not None
    ]
    yield "node-hours", _amount(found.node_hours) + (f"  {', '.join(prices)}" if prices else "")


def _amount(value: float) -> str:
    """Hours or money: two decimals, or two digits of what is less than 1."""
    return f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def _numbers(plan: PlanBase) -> dict[str, Any]:
    cost, layout = plan.cost, plan.layout
    field_cells = math.prod(plan.grid.field_shape)
    entries = {a.name: math.prod(a.leading) for a in plan.arrays}
    tables = {table.name: _told(plan, table) for table in plan.tables}
    run, amplification = cost.patches_run, cost.amplification
    if not plan.arrays and any(told["points"] for told in tables.values()):
        # Patches that speak for no point are not run; those of several tables may be the same.
        run = min(sum(told["patches"] for told in tables.values()), run)
        amplification = 1.0
    return {
        "patches": cost.patches if plan.arrays else run,
        "patches_run": run,
        "R": amplification,
        "tables": tables,
        "supertiles": layout.count,
        "bytes_read": bytes_read(plan),
        "read_amplification": cost.cells_read / field_cells if field_cells else 1.0,
        "bytes_written": bytes_written(plan),
        "objects": layout.objects() * sum(entries.values()) + layout.count * len(tables),
        "memory": plan.memory.to_json(),
        "memory_limit": plan.memory_limit,
        "slots": plan.slots,
        "operator_seconds": plan.seconds_per_patch * run / plan.slots,
        "requests": _requests(plan),
    }


def _requests(plan: PlanBase) -> dict[str, int] | None:
    """Requests to the target by kind, without heartbeats, and ``field``; None: no object store."""
    found = requests_of(plan)
    return None if found is None else {**found.total(), "field": found.field}


def _told(plan: PlanBase, table: Table) -> dict[str, Any]:
    """Columns, patches and rows of a table; rows are None where the operator decides."""
    points = None if table.keyed.points is None else len(table.keyed.points)
    patches = table.patches(plan.grid)
    return {
        "columns": [column.name for column in table.sheet(plan.grid).columns],
        "patches": patches,
        "points": points,
        "points_lost": table.lost(plan.grid) if points else 0,
        "rows": None if table.several else points or patches,
    }


def _table(name: str, told: Mapping[str, Any]) -> str:
    if told["rows"] is None:
        rows = f"any number of rows for each of {told['patches']:,} patches"
    elif told["points"]:
        rows = f"{told['rows']:,} rows, one per point"
    else:
        rows = f"{told['rows']:,} rows, at most one per patch"
    lost = told["points_lost"]
    return f"{name}: {rows}; {', '.join(told['columns'])}" + (
        f"; {lost:,} of {told['points']:,} points lie in no patch: nulls" if lost else ""
    )


def _array(plan: PlanBase, array: OutputArray) -> str:
    axes = _axes(array.dims, array.leading + plan.grid.shape)
    return f"{array.name}: {axes} {array.dtype}, fill {array.fill}"


def _axes(dims: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return " x ".join(f"{dim} {n}" for dim, n in zip(dims, shape, strict=True))


def _by(numbers: Any) -> str:
    return " x ".join(map(str, numbers))


def _axis(axis: Any) -> str:
    return type(axis).__name__.rstrip("_")


def _step(plan: PlanBase) -> str:
    step = getattr(plan.patcher.sampler, "step", None)
    name = _axis(plan.patcher.sampler)
    if step is None:
        return name
    numbers = (
        step.values() if isinstance(step, dict) else step if isinstance(step, tuple) else [step]
    )
    return f"{name} {_by(numbers)}"
