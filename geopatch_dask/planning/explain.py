"""A plan in words and numbers, and as a drawing."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geopatch_dask.planning.core import PlanBase
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
    cost, layout, memory = plan.cost, plan.layout, plan.memory
    numbers = _numbers(plan)
    by_part = sorted(memory.to_json().items(), key=lambda kv: -kv[1])
    parts = ", ".join(f"{k} {bytes_text(v)}" for k, v in by_part if k != "total" and v)
    share = memory.total / plan.memory_limit
    lines = [
        (
            "field",
            f"{plan.field.label}  {_axes(plan.field.domain.dims, plan.field.domain.shape)} "
            f"{plan.field.dtype}",
        ),
        (
            "patches",
            f"{cost.patches:,} of {' x '.join(map(str, plan.grid.size))}, "
            f"{_step(plan)}, window {_axis(plan.patcher.window)}, "
            f"{_axis(plan.patcher.aggregation)}, boundary {plan.patcher.geometry.boundary}",
        ),
        ("operator", f"{plan.operator.name}  {plan.seconds_per_patch * 1e3:.2f} ms per patch here"),
        (
            "target",
            f"{plan.target.display}  "
            + "; ".join(
                f"{a.name}: {_axes(a.dims, a.leading + plan.grid.shape)} {a.dtype}, fill {a.fill}"
                for a in plan.arrays
            ),
        ),
        (
            "super-tiles",
            f"{layout.count:,} of {' x '.join(map(str, layout.tile))}, "
            f"chunks {_by(layout.chunks)}"
            + (f" in shards {_by(layout.shards)}" if layout.shards else ", unsharded"),
        ),
        (
            "R",
            f"{cost.amplification:.3f}  {cost.patches_run:,} patches run for "
            f"{cost.patches:,} needed",
        ),
        (
            "reads",
            f"{bytes_text(numbers['bytes_read'])}  "
            f"{numbers['read_amplification']:.3f} of the field, uncompressed",
        ),
        (
            "writes",
            f"{bytes_text(numbers['bytes_written'])} uncompressed in at most "
            f"{numbers['objects']:,} objects, and {layout.count:,} records",
        ),
        (
            "memory",
            f"{bytes_text(memory.total)} per worker slot, {share:.0%} of "
            f"{bytes_text(plan.memory_limit)}  ({parts})",
        ),
        ("operator time", f"{seconds_text(numbers['operator_seconds'])} on {plan.slots} slots"),
        ("fingerprint", plan.fingerprint[:16]),
    ]
    lines += [
        ("rejected", f"{_by(r['tile'])}: R {r['R']:.3f}, {bytes_text(r['memory'])}; {r['reason']}")
        for r in plan.rejected
    ]
    if numbers["objects"] > MANY_OBJECTS and layout.shards is None:
        lines.append(
            (
                "advice",
                f"{numbers['objects']:,} objects: shards= of a few thousand cells would "
                "store fewer; GDAL before 3.13 (QGIS before 4.2) cannot read shards",
            )
        )
    return Explanation(plan, numbers, tuple(lines))


def _numbers(plan: PlanBase) -> dict[str, Any]:
    cost, layout = plan.cost, plan.layout
    cells, field_cells = math.prod(plan.grid.shape), math.prod(plan.grid.field_shape)
    lead_in = math.prod(plan.field.domain.size(dim) for dim in plan.grid.riding)
    entries = {a.name: math.prod(a.leading) for a in plan.arrays}
    return {
        "patches": cost.patches,
        "patches_run": cost.patches_run,
        "R": cost.amplification,
        "supertiles": layout.count,
        "bytes_read": cost.cells_read * lead_in * plan.field.dtype.itemsize,
        "read_amplification": cost.cells_read / field_cells if field_cells else 1.0,
        "bytes_written": cells
        * sum(entries[a.name] * np.dtype(a.dtype).itemsize for a in plan.arrays),
        "objects": layout.objects() * sum(entries.values()),
        "memory": plan.memory.to_json(),
        "memory_limit": plan.memory_limit,
        "slots": plan.slots,
        "operator_seconds": plan.seconds_per_patch * cost.patches_run / plan.slots,
    }


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
