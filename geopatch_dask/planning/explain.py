"""A plan in words and numbers, and as a drawing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.probe import OutputArray
from geopatch_dask.planning.tables import Table
from geopatch_dask.planning.units import bytes_text, seconds_text

__all__ = ["MANY_OBJECTS", "Explanation", "explain"]

#: Above this many objects, listing and copying a store becomes a chore, and shards pay off.
MANY_OBJECTS = 100_000


@dataclass(frozen=True)
class Explanation:
    """What a plan will do; ``str()`` of it is the text.

    Attributes
    ----------
    numbers : dict
        Every number in the text, by name; bytes, cells and seconds.
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


def explain(plan: PlanBase) -> Explanation:
    """Numbers and text about a plan; nothing is read or run."""
    numbers = _numbers(plan)
    lines = [*_what(plan, numbers), *_how_much(plan, numbers)]
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
    yield "operator", f"{plan.operator.name}  {plan.seconds_per_patch * 1e3:.2f} ms per patch here"
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
    by_part = sorted(memory.to_json().items(), key=lambda kv: -kv[1])
    parts = ", ".join(f"{k} {bytes_text(v)}" for k, v in by_part if k != "total" and v)
    yield (
        "memory",
        f"{bytes_text(memory.total)} per worker slot, {memory.total / plan.memory_limit:.0%} of "
        f"{bytes_text(plan.memory_limit)}  ({parts})",
    )
    yield "operator time", f"{seconds_text(numbers['operator_seconds'])} on {plan.slots} slots"
    yield "fingerprint", plan.fingerprint[:16]


def _numbers(plan: PlanBase) -> dict[str, Any]:
    cost, layout = plan.cost, plan.layout
    cells, field_cells = math.prod(plan.grid.shape), math.prod(plan.grid.field_shape)
    lead_in = math.prod(plan.field.domain.size(dim) for dim in plan.grid.riding)
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
        "bytes_read": cost.cells_read * lead_in * plan.field.dtype.itemsize,
        "read_amplification": cost.cells_read / field_cells if field_cells else 1.0,
        "bytes_written": cells
        * sum(entries[a.name] * np.dtype(a.dtype).itemsize for a in plan.arrays),
        "objects": layout.objects() * sum(entries.values()) + layout.count * len(tables),
        "memory": plan.memory.to_json(),
        "memory_limit": plan.memory_limit,
        "slots": plan.slots,
        "operator_seconds": plan.seconds_per_patch * run / plan.slots,
    }


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
