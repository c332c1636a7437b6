"""One super-tile: read, run, add, write, record.  The same code under every scheduler.

::

    for each row of anchors, in ordinal order:
        read the band it needs            (once per band)
        cut its patches, run the operator (in batches of one fixed shape)
        add the results to the ring       (in ordinal order)
        write the rows that are final     (whole write units, once)
    hand over the rows of tables      (of the patches it owns)
    record

Every patch whose footprint touches the super-tile is run, so its cells get exactly the additions
that a single process would give them, in the same order: the bytes cannot depend on the layout.
"""

from __future__ import annotations

import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import Aggregation, State
from geopatch_dask.aggregation.several import entries, keyed_of
from geopatch_dask.errors import OperatorError
from geopatch_dask.execute.attempt.bands import Bands
from geopatch_dask.execute.attempt.emit import Emission, wanted
from geopatch_dask.execute.attempt.operate import Caller
from geopatch_dask.execute.attempt.policy import DEFAULT, Policy
from geopatch_dask.patch.boxes import Box, hull
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.probe import Product
from geopatch_dask.planning.supertile import SuperTile
from geopatch_dask.planning.sweep import sweep_of

__all__ = ["Counts", "Emit", "Kernel", "Write"]

#: Takes the name of an array, a box over all its axes and the values; returns bytes written.
Write = Callable[[str, Box, "npt.NDArray[np.generic]"], int]
#: Takes the name of a table and its rows as a pyarrow.Table; returns bytes written and their CRC.
Emit = Callable[[str, Any], tuple[int, int]]


@dataclass
class Counts:
    """What a super-tile did: cells of arrays, rows by table, bytes, seconds by phase."""

    patches: int = 0
    failed_patches: int = 0
    patch_errors: tuple[str, ...] = ()
    hollow_patches: int = 0
    cells: int = 0
    fill: int = 0
    uncovered: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    checksum: int = 0
    tables: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Kernel:
    """Computes super-tiles of one plan.

    Parameters
    ----------
    plan : PlanBase
    write : callable ``(name, box, values) -> bytes``
        Called once per array and row of write units, top to bottom, with whole write units.
    context : mapping or None
        What pass 1 found.
    emit : callable ``(name, table) -> (bytes, CRC)``, or None
        Called once per table that has rows, after all writes; for plans with tables.
    policy : Policy
        What to do with a patch whose operator raises.
    """

    def __init__(
        self,
        plan: PlanBase,
        write: Write,
        context: Mapping[str, Any] | None = None,
        emit: Emit | None = None,
        policy: Policy = DEFAULT,
    ) -> None:
        self.plan, self.write, self.emit = plan, write, emit
        self.grid = plan.grid
        self.members: dict[str, Aggregation] = {p.key: p.aggregation for p in plan.products}
        self.members |= {table.key: table.keyed for table in plan.tables}
        self.caller = Caller(plan, context, keyed_of(self.members), policy)
        self.outputs = [_Output(product, plan.grid) for product in plan.products]

    def run(self, tile: SuperTile) -> Counts:
        """Compute and write one super-tile.

        Raises
        ------
        FieldError, TargetError, OperatorError
            And whatever the operator raises.
        """
        counts = Counts()
        emissions = [Emission(table, self.grid, tile) for table in self.plan.tables]
        ordinals = self.grid.touching(tile.box) if self.outputs else wanted(emissions)
        anchors = self.grid.anchors.at(ordinals)
        rows = _Rows(self, tile, anchors)
        top = tile.box.start[0]
        ring = tile.box.replace(0, top, top + rows.sweep.rows_state)
        state = [output.init(ring) for output in self.outputs]
        results = _Results(state, emissions)
        pending: list[Patch] = []
        for first, last, start, stop in rows.groups:
            if rows.sweep.swept:
                self._flush(state, tile, rows.front(first, pending), counts)
            with self._phase(counts, "read"):
                block = rows.bands.need(start, stop)
            for k in range(first, last):
                pending.append(self._cut(block, rows.bands.origin, ordinals[k], anchors[k]))
                if not self._compatible(pending):
                    late = pending.pop()
                    self._run_batch(pending, results, tile, counts)
                    pending.append(late)
                if len(pending) == (self.plan.operator.batch or 1):
                    self._run_batch(pending, results, tile, counts)
        self._run_batch(pending, results, tile, counts)
        self._flush(state, tile, tile.box.stop[0], counts)
        self._emit(emissions, counts)
        counts.bytes_read = rows.bands.bytes_read
        counts.failed_patches, counts.patch_errors = self.caller.failed, tuple(self.caller.errors)
        return counts

    # ---- patches ---------------------------------------------------------------------------

    def _cut(
        self,
        block: npt.NDArray[np.generic],
        origin: tuple[int, ...],
        ordinal: np.int64,
        corner: npt.NDArray[np.int64],
    ) -> Patch:
        anchor = tuple(int(v) for v in corner)
        return Patch(
            # A copy, always: the block slides on before a batch is full; operators may scribble.
            data=np.array(self.grid.extract(block, origin, anchor), order="C"),
            anchor=anchor,
            ordinal=int(ordinal),
            indices=self.grid.indices(anchor),
            footprint=self.grid.footprint(anchor),
            dims=self.grid.riding + self.grid.dims,
            domain=self.plan.field.domain,
        )

    @staticmethod
    def _compatible(pending: list[Patch]) -> bool:
        """Whether the newest patch has the shape of the others (``shrink`` cuts some)."""
        return pending[-1].indices.shape == pending[0].indices.shape

    def _run_batch(
        self, pending: list[Patch], results: _Results, tile: SuperTile, counts: Counts
    ) -> None:
        if not pending:
            return
        with self._phase(counts, "operate"):
            returned = self.caller.run(pending)
        with self._phase(counts, "aggregate"):
            for patch, result in zip(pending, returned, strict=True):
                if result is None:
                    self._skip(results, tile, patch)
                    continue
                named = entries(result, self.members)
                for output, held in zip(self.outputs, results.state, strict=True):
                    self._add(output, held, tile, patch, named[output.product.key])
                for emission in results.emissions:
                    emission.add(patch, named[emission.table.key])
                counts.hollow_patches += self._is_hollow(patch, named)
        counts.patches += len(pending)
        pending.clear()

    def _is_hollow(self, patch: Patch, named: Mapping[str, Any]) -> bool:
        """Whether a patch has data, and everything that the operator made of it is missing."""
        if not all(output.is_missing(named[output.product.key]) for output in self.outputs):
            return False
        if not all(_is_nan(named[table.key]) for table in self.plan.tables):
            return False
        return patch.data.dtype.kind != "f" or not np.isnan(patch.data).all()

    def _skip(self, results: _Results, tile: SuperTile, patch: Patch) -> None:
        """A patch without a result is missing data, and counted."""
        for output, held in zip(self.outputs, results.state, strict=True):
            cells = output.grid.footprint(patch.anchor).intersect(tile.box)
            if cells:
                weighted = output.grid.weighted
                weights = output.grid.weights(patch.anchor, cells) if weighted else None
                output.product.aggregation.skip(held, cells, weights)

    def _add(
        self,
        output: _Output,
        state: State,
        tile: SuperTile,
        patch: Patch,
        result: npt.NDArray[np.generic],
    ) -> None:
        product, grid = output.product, output.grid
        leading = result.shape[: result.ndim - grid.box.ndim]
        if leading != product.leading or str(result.dtype) != product.result_dtype:
            raise OperatorError(
                f"operator {self.plan.operator.name} returned leading axes {leading} and dtype "
                f"{result.dtype} for patch {patch.ordinal} at {patch.anchor}, the plan "
                f"was made for {product.leading} and {product.result_dtype}; let it "
                "return one shape and dtype always (array.astype(...))"
            )
        cells = grid.footprint(patch.anchor).intersect(tile.box)
        if not cells:
            return
        values = result[cells.index(grid.written(patch.indices).start)]
        weights = grid.weights(patch.anchor, cells) if grid.weighted else None
        product.aggregation.add(state, cells, values, weights, product.missing)

    # ---- rows ------------------------------------------------------------------------------

    def _flush(self, state: list[State], tile: SuperTile, front: int, counts: Counts) -> None:
        """Write the rows before ``front``, in whole write units (and the last, cut one)."""
        unit, stop = self.plan.layout.unit[0], tile.box.stop[0]
        while state and (start := state[0].box.start[0]) < stop:
            rows = min(unit, stop - start)
            if start + rows > front:
                return
            for output, held in zip(self.outputs, state, strict=True):
                self._write_rows(output, held.head(rows), counts)
                held.advance(rows)

    def _write_rows(self, output: _Output, state: State, counts: Counts) -> None:
        with self._phase(counts, "finalize"):
            settled = output.settled(state)
            uncovered = _uncovered(state)
        for array in output.product.arrays:
            values, filled = settled.pop(array.part)
            with self._phase(counts, "finalize"):
                counts.uncovered += uncovered * math.prod(array.leading)
                counts.fill += filled
                counts.cells += values.size
                counts.checksum = zlib.crc32(values.data, counts.checksum)
            with self._phase(counts, "write"):
                box = state.box.prepend(array.leading)
                counts.bytes_written += self.write(array.name, box, values)

    def _emit(self, emissions: list[Emission], counts: Counts) -> None:
        """Hand over the rows of every table that has some here."""
        for emission in emissions:
            if not emission.rows or self.emit is None:
                continue
            with self._phase(counts, "write"):
                written, crc = self.emit(emission.table.name, emission.finished())
            counts.tables[emission.table.name] = len(emission.rows)
            counts.bytes_written += written
            counts.checksum = zlib.crc32(crc.to_bytes(4, "little"), counts.checksum)

    @staticmethod
    @contextmanager
    def _phase(counts: Counts, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            counts.seconds[name] += time.perf_counter() - began


@dataclass(frozen=True)
class _Results:
    """Where the results of patches go: accumulators by product, and rows by table."""

    state: list[State]
    emissions: list[Emission]


class _Rows:
    """The anchors of a super-tile, grouped into rows that share a read.

    ``groups`` holds ``(first, last, start, stop)``: positions among the touched anchors, and the
    source rows they need from ``start`` (kept for all later groups too) to ``stop``.
    """

    def __init__(self, kernel: Kernel, tile: SuperTile, anchors: npt.NDArray[np.int64]) -> None:
        plan, grid = kernel.plan, kernel.grid
        self.grid, self.anchors, self.tile = grid, anchors, tile
        source = self._source()
        edges = self._edges()
        self.sweep = sweep_of(
            grid,
            tile.box.shape[0],
            source.shape[0],
            max((b - a for a, b in edges), default=1),
            plan.layout.unit[0],
            plan.field.blocks[plan.field.domain.axis(grid.dims[0])],
            plan.operator.batch or 1,
        )
        self.bands = Bands(plan.field, grid, source, self.sweep.band, self.sweep.rows_in)
        self.groups = self._groups(edges, source)

    def _source(self) -> Box:
        """Everything the touched patches read; empty when there are none."""
        if not len(self.anchors):
            return Box(self.tile.box.start, self.tile.box.start)
        low, high = self.anchors.min(axis=0), self.anchors.max(axis=0)
        if self.grid.geometry.boundary != "reflect":
            return hull([self.grid.source(low.tolist()), self.grid.source(high.tolist())])
        return hull(self.grid.source(a) for a in self.anchors.tolist())

    def _edges(self) -> list[tuple[int, int]]:
        """Ranges of touched anchors that share their first coordinate, or one range for all."""
        n = len(self.anchors)
        if not self.grid.anchors.sweepable:
            return [(0, n)] if n else []
        cuts = (np.flatnonzero(np.diff(self.anchors[:, 0])) + 1).tolist() if n else []
        return list(zip([0, *cuts], [*cuts, n], strict=True)) if n else []

    def _groups(self, edges: list[tuple[int, int]], source: Box) -> list[tuple[int, int, int, int]]:
        if not self.sweep.swept:
            return [(a, b, source.start[0], source.stop[0]) for a, b in edges]
        needs = [self.grid.source(self.anchors[a].tolist()) for a, _ in edges]
        starts = np.array([box.start[0] for box in needs], np.int64)
        keep = np.minimum.accumulate(starts[::-1])[::-1].tolist()
        return [(a, b, k, box.stop[0]) for (a, b), k, box in zip(edges, keep, needs, strict=True)]

    def front(self, first: int, pending: list[Patch]) -> int:
        """The first row that a patch still to be added may change."""
        oldest = pending[0].footprint.start[0] if pending else None
        coming = self.grid.footprint(self.anchors[first].tolist()).start[0]
        return coming if oldest is None else min(oldest, coming)


class _Output:
    """One product in the kernel: its grid, and the dtypes and fill values of its arrays."""

    def __init__(self, product: Product, grid: PatchGrid) -> None:
        self.product = product
        self.grid = grid.variant(product.aggregation.weighted, grid.scale)
        self.dtypes = {array.part: np.dtype(array.dtype) for array in product.arrays}
        self.fills = {array.part: array.fill for array in product.arrays}

    def init(self, box: Box) -> State:
        """Accumulators of a ring of rows."""
        product = self.product
        return product.aggregation.init(self.grid, box, product.leading, product.result_dtype)

    def is_missing(self, result: npt.NDArray[np.generic]) -> bool:
        """Whether the aggregation takes no cell of a result for an answer.

        Nearly always, the first cell settles it.
        """
        first: tuple[Any, ...] = (..., *(slice(0, 1),) * self.grid.box.ndim)
        return self._has_none(result[first]) and self._has_none(result)

    def _has_none(self, values: npt.NDArray[np.generic]) -> bool:
        product = self.product
        valid = product.aggregation.valid(values, product.missing, product.leading)
        return valid is not None and not valid.any()

    def settled(self, state: State) -> dict[str, tuple[npt.NDArray[np.generic], int]]:
        """Finished rows, rounded, by part."""
        return self.product.aggregation.settled(state, self.dtypes, self.fills)


def _uncovered(state: State) -> int:
    """Cells over the patch axes that no patch reaches."""
    reached = state.coverage.reached()
    if reached is None:
        return 0
    return int(reached.size - np.count_nonzero(reached))


def _is_nan(result: Any) -> bool:
    """Whether a result that becomes rows is an array of nothing but NaN."""
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f" or not result.size:
        return False
    return bool(np.isnan(result).all())
