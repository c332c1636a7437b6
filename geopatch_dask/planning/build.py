"""From what a user says to a plan: defaults, checks, choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import FunctionType
from typing import Any

import numpy as np

from geopatch_dask import fields
from geopatch_dask.aggregation import Aggregation, ByIndex, Output
from geopatch_dask.aggregation.coverage import count_dtype
from geopatch_dask.aggregation.keyed import check_keyed_output
from geopatch_dask.aggregation.several import Several, keyed_of, members_of, named, outputs_for
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import AlignmentError, OptionError
from geopatch_dask.fields.base import Field
from geopatch_dask.fields.raster import RasterField
from geopatch_dask.fields.xarray import XarrayField
from geopatch_dask.patch.geometry import Cells, Rectangular, cells_of, per_axis
from geopatch_dask.patch.grid import UNIT, PatchGrid
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.patch.sampler import RegularStride
from geopatch_dask.planning.choose import Candidate, check_memory, choose
from geopatch_dask.planning.context import Context, missing_of
from geopatch_dask.planning.core import fingerprint_parts, output_domain
from geopatch_dask.planning.cost import cost_of
from geopatch_dask.planning.memory import MemoryModel, MemoryPlan, Shapes, memory_of
from geopatch_dask.planning.operator import Operator
from geopatch_dask.planning.probe import (
    Probe,
    Product,
    built,
    declared,
    probe,
    product_of,
)
from geopatch_dask.planning.supertile import Layout, write_units
from geopatch_dask.planning.sweep import sweep_of
from geopatch_dask.planning.tables import Table, memory_of_rows, table_of
from geopatch_dask.store.location import Location
from geopatch_dask.store.target import holds_one_table

__all__ = ["MemoryOf", "build"]


@dataclass(frozen=True)
class MemoryOf:
    """The memory of a layout, everything else being decided."""

    grid: PatchGrid
    field: Field
    products: tuple[Product, ...]
    found: Probe
    batch: int
    model: MemoryModel
    first_pass: int = 0
    context: int = 0
    declared: int = 0
    tables: tuple[Table, ...] = ()

    def __call__(self, layout: Layout) -> MemoryPlan:
        """Evaluate :func:`~geopatch_dask.planning.memory.memory_of` for the largest super-tile."""
        grid, domain = self.grid, self.field.domain
        cost = cost_of(grid, layout)
        tile = [min(t, n) for t, n in zip(layout.tile, layout.shape, strict=True)]
        sweep = sweep_of(
            grid,
            tile[0],
            cost.widest_read[0],
            math.prod(cost.most_touched[1:]),
            layout.unit[0],
            self.field.blocks[domain.axis(grid.dims[0])],
            self.batch,
        )
        patch, patch_out = math.prod(grid.size), math.prod(grid.out_size)
        cell_in = self.field.dtype.itemsize * math.prod(domain.size(d) for d in grid.riding)
        result = sum(
            math.prod(p.leading) * np.dtype(p.result_dtype).itemsize for p in self.products
        )
        known = self.batch * (patch * cell_in + patch_out * result)
        return memory_of(
            Shapes(
                rows_in=sweep.rows_in,
                width_in=math.prod(cost.widest_read[1:]),
                band=sweep.band,
                rows_state=sweep.rows_state,
                width=math.prod(tile[1:]),
                flush=sweep.flush,
                patch=patch,
                patch_out=patch_out,
                batch=self.batch,
                cell_in=cell_in,
                result=result,
                entries=sum(math.prod(p.leading) for p in self.products),
                state=sum(self._state(p) for p in self.products),
                flushed=max((self._flushed(p) for p in self.products), default=0),
                may_miss=self.field.may_miss,
                reader=self._reader(),
                operator=max(max(self.found.workspace - known, 0) + self.found.kept, self.declared),
                first_pass=self.first_pass,
                context=self.context,
                rows=memory_of_rows(self.tables, math.prod(cost.most_touched)),
            ),
            self.model,
        )

    def _reader(self) -> int:
        """Bytes that reading the field keeps: GDAL's blocks, or xarray itself."""
        if isinstance(self.field, XarrayField):
            return self.model.xarray
        return fields.GDAL_CACHE if isinstance(self.field, RasterField) else 0

    def _state(self, product: Product) -> int:
        """Bytes of accumulators and counts per output cell."""
        grid = self.grid.variant(product.aggregation.weighted, self.grid.scale)
        held = product.aggregation.bytes_per_cell(product.result_dtype, grid.most_layers)
        held *= math.prod(product.leading)
        if self.field.may_miss or not grid.analytic:
            counting = count_dtype(grid).itemsize + (8 if grid.weighted else 0)
            held += counting * math.prod(product.aggregation.counted(product.leading))
        return held

    def _flushed(self, product: Product) -> int:
        """Bytes per output cell while a product is divided, rounded and encoded."""
        model = self.model
        held = product.aggregation.finalizing_bytes(np.dtype(product.result_dtype))
        total = held * math.prod(product.leading)
        for array in product.arrays:
            each = 8 * model.rounding + np.dtype(array.dtype).itemsize * model.encoding
            total += math.ceil(each * math.prod(array.leading))
        return total


def build(
    field: Any,
    patcher: Patcher,
    operator: Operator | Callable[..., Any] | str,
    target: Any,
    *,
    outer: Any = "auto",
    chunks: Cells | None = None,
    shards: Cells | None = None,
    memory_limit: int,
    slots: int,
    output: Output | Mapping[str, Output] | None = None,
    context: Statistic | None = None,
    over: Operator | Callable[..., Any] | str = "field",
) -> dict[str, Any]:
    """The fields of a plan; see :func:`geopatch_dask.plan` for the arguments."""
    cells_of((slots,), "slots")
    source = fields.as_field(field)
    if not isinstance(patcher, Patcher):
        raise OptionError(f"patcher must be a Patcher, got {patcher!r}")
    location = Location.of(target)
    members = members_of(patcher.aggregation)
    outputs = outputs_for(members, output)
    members = named(members, outputs)
    patcher = replace(patcher, aggregation=members.get("") or Several(members))
    run, first = _passes(operator, context, over, outputs)
    grid = _grid(source, patcher, members, outputs)
    kept, cut = _units(chunks, shards, outer, source, grid)
    found, first, known = _found(source, patcher, run, first, outputs, grid)
    products, tables = _results(source, members, outputs, found, grid)
    _check_names(products, tables, location)
    model = MemoryModel()
    memory = MemoryOf(
        *(grid, source, products, found, run.batch or 1, model),
        first_pass=first.bytes(source, grid, run, slots) if first is not None else 0,
        context=sum(getattr(value, "nbytes", 8) for value in known.values()),
        declared=int(run.memory),
        tables=tables,
    )
    base = Layout(grid.dims, grid.shape, cut or kept, kept, cut)
    layout, rejected = _layout(outer, base, source, grid, memory, memory_limit, slots, model)
    output_domain(source.domain, products, grid)
    return dict(  # noqa: C408  # reads as the call it becomes
        field=source,
        patcher=patcher,
        operator=run,
        target=location,
        layout=layout,
        products=products,
        memory=memory(layout),
        parts=fingerprint_parts(source, patcher, run, products, grid, first, tables),
        memory_limit=memory_limit,
        slots=slots,
        seconds_per_patch=found.seconds,
        scale=grid.scale,
        context=first,
        tables=tables,
        rejected=tuple(c.to_json() for c in rejected),
    )


def _passes(
    operator: Operator | Callable[..., Any] | str,
    statistic: Statistic | None,
    over: Operator | Callable[..., Any] | str,
    outputs: Mapping[str, Output],
) -> tuple[Operator, Context | None]:
    """The operator, ready to be sent, and the first pass where there is one."""
    run = Operator.of(operator)
    first = None
    if statistic is not None:
        run = replace(run, context=True)
        first = Context.of(statistic, over, missing_of(outputs.get("")))
    elif not isinstance(over, str) or over != "field":
        raise OptionError("over= belongs to a first pass: give context= a statistic")
    run.check_picklable()
    if not isinstance(run.function, str | FunctionType):
        run = run.copied()  # what an object builds while it runs here is not the user's to keep
    return run, first


def _found(
    field: Field,
    patcher: Patcher,
    run: Operator,
    first: Context | None,
    outputs: Mapping[str, Output],
    grid: PatchGrid,
) -> tuple[Probe, Context | None, dict[str, Any]]:
    """What the operator does, tried or declared; the first pass, and what it may give."""
    fit = first.fit if first is not None else None
    if fit is not None and not fit.trial:
        raise OptionError(
            f"over= operator {fit.name} has trial=False, but a first pass is planned by trying "
            "what it sees; plan where it can run, or let over= be an operator that runs here"
        )
    known: dict[str, Any] = {}
    tried = [operator for operator in (run, fit) if operator is not None and operator.trial]
    members = members_of(patcher.aggregation)
    found = None if run.trial else declared(run, members, outputs, field)
    with built(tried) as kept:
        if first is not None:
            if found is not None and fit is None and first.over == "output":
                bands = math.prod(found.entries.get("", ((), ""))[0])
                first = replace(first, shape=(bands, math.prod(grid.out_size)))
            known, first = first.standin(field, patcher, grid, run)
        if found is None:
            found = probe(field, patcher, run, grid.scale, known if first is not None else None)
    return replace(found, kept=kept), first, known


def _grid(
    field: Field,
    patcher: Patcher,
    members: Mapping[str, Aggregation],
    outputs: Mapping[str, Output],
) -> PatchGrid:
    """The patches, as far as they are common to all outputs; those of tables have no say."""
    keyed = keyed_of(members)
    for key in keyed:
        check_keyed_output(outputs[key])
    scale = _one_scale({key: output for key, output in outputs.items() if key not in keyed})
    grid = patcher.grid(field.domain)
    grid = grid.variant(all(m.weighted for m in members.values()), scale)
    return grid.owning() if len(keyed) == len(members) else grid


def _results(
    field: Field,
    members: Mapping[str, Aggregation],
    outputs: Mapping[str, Output],
    found: Probe,
    grid: PatchGrid,
) -> tuple[tuple[Product, ...], tuple[Table, ...]]:
    """What the operator returns, completed by what it returned when it was tried."""
    products: list[Product] = []
    tables: list[Table] = []
    for key, member in members.items():
        if isinstance(member, ByIndex):
            tables.append(table_of(key, outputs[key].name, member, found, grid))
        else:
            products.append(product_of(key, found, outputs[key], member, field, grid))
    return tuple(products), tuple(tables)


def _one_scale(outputs: Mapping[str, Output]) -> Fraction:
    """The scale of all outputs; they share one grid."""
    scales = {output.name: output.factor for output in outputs.values()}
    if len(set(scales.values())) > 1:
        told = ", ".join(f"{name}: {scale}" for name, scale in scales.items())
        raise OptionError(f"outputs of one run share one grid, but have scales {told}; run twice")
    return next(iter(scales.values()), UNIT)


def _check_names(
    products: tuple[Product, ...], tables: tuple[Table, ...], location: Location
) -> None:
    names = [array.name for product in products for array in product.arrays]
    if holds_one_table(location) and (names or len(tables) > 1):
        raise OptionError(
            f"{location.display} ends in .parquet, which is for one table and nothing else; name "
            "it .zarr: tables are written beside it"
        )
    names += [table.name for table in tables]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise OptionError(f"two outputs are named {min(twice)!r}; give each gp.Output(name=...)")
    axes = {dim for product in products for array in product.arrays for dim in array.dims}
    taken = sorted((axes | {"spatial_ref"}).intersection(names))
    if taken:
        raise OptionError(f"output {taken[0]!r} has the name of an axis; use gp.Output(name=...)")


def _layout(
    outer: Any,
    base: Layout,
    field: Field,
    grid: PatchGrid,
    memory: MemoryOf,
    limit: int,
    slots: int,
    model: MemoryModel,
) -> tuple[Layout, list[Candidate]]:
    if isinstance(outer, str):
        if outer != "auto":
            raise OptionError(f"outer {outer!r} is neither 'auto', a Patcher, nor cells per axis")
        return choose(grid, base, memory, int(limit * model.share), slots)
    tile = _outer_cells(outer, field, grid)
    # A super-tile beyond the domain is the whole axis, in whole write units.
    whole = [-(-n // u) * u for n, u in zip(base.shape, base.unit, strict=True)]
    layout = replace(base, tile=tuple(min(t, w) for t, w in zip(tile, whole, strict=True)))
    check_memory(layout, memory, limit, model)
    return layout, []


def _units(
    chunks: Cells | None, shards: Cells | None, outer: Any, field: Field, grid: PatchGrid
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunks and shards, completed and checked."""
    if grid.per_patch and chunks is None and not isinstance(outer, str):
        chunks = _outer_cells(outer, field, grid)  # a table has no chunks to align with
    return write_units(
        grid.shape,
        _over_axes(chunks, field, grid, "chunks"),
        _over_axes(shards, field, grid, "shards"),
    )


def _outer_cells(outer: Any, field: Field, grid: PatchGrid) -> tuple[int, ...]:
    """Cells of a super-tile from a Patcher of super-tiles, or from plain numbers."""
    if not isinstance(outer, Patcher):
        found = _over_axes(cells_of(outer, "outer"), field, grid, "outer")
        return tuple(found or ())
    geometry, sampler = outer.geometry, outer.sampler
    if not isinstance(geometry, Rectangular) or not isinstance(sampler, RegularStride):
        raise OptionError("an outer patcher needs a Rectangular geometry and a RegularStride")
    size = _over_axes(geometry.size, field, grid, "outer size")
    step = _over_axes(sampler.step, field, grid, "outer step")
    if size != step:
        raise AlignmentError(
            f"super-tiles own their cells: the outer patcher must step by its size, got size "
            f"{size} and step {step}; overlap belongs to the inner patcher"
        )
    return tuple(size or ())


def _over_axes(
    cells: Cells | None, field: Field, grid: PatchGrid, what: str
) -> tuple[int, ...] | None:
    """Cells along every patch axis, from a tuple, mapping or int."""
    if cells is None:
        return None
    checked = cells_of(cells, what)
    if isinstance(checked, int):
        return (checked,) * len(grid.dims)
    if isinstance(checked, Sequence) and len(checked) != len(grid.dims):
        raise OptionError(
            f"{what} {tuple(checked)} must give one number per patch axis ({', '.join(grid.dims)})"
        )
    if isinstance(checked, Sequence):
        return tuple(checked)
    named = per_axis(checked, field.domain, what)
    if set(named) != set(grid.dims):
        raise OptionError(f"{what} must name the patch axes {', '.join(grid.dims)}")
    return tuple(named[dim] for dim in grid.dims)
