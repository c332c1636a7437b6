"""Boxes of cells computed again, in one process and through another layout, against what is stored.

The first contract says that a cell does not depend on how the output was cut.  So any box, cut out
anywhere, has to come out of the kernel as it lies on the store::

    super-tiles of the run          a box of its own
    +---------+---------+
    |         |         |           read anew, other rows together, other batches:
    |     +---|-----+   |   <--->   the same bytes, cell by cell
    +-----|---+-----|---+
    |     +---|-----+   |           cut at the records it meets, so that what is not done yet
    +---------+---------+           is not compared
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.several import keyed_of
from geopatch_dask.aggregation.table import arrow
from geopatch_dask.execute.attempt.emit import Emission
from geopatch_dask.execute.attempt.kernel import Kernel
from geopatch_dask.execute.check.stored import Stored, bits
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.patcher import patch_of
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.supertile import Layout, SuperTile
from geopatch_dask.planning.tables import Table
from geopatch_dask.store.records import Record

__all__ = ["Difference", "Recomputer", "random_boxes"]

#: Longest edge of a window: so many halves of a patch, and at least so many cells.
HALVES, LEAST = 3, 33
#: Patches that are run twice to see whether the operator is repeatable.
TRIED = 4


@dataclass(frozen=True)
class Difference:
    """Where stored and recomputed cells (or rows) part.

    Parameters
    ----------
    what : str
        Array or table.
    box : Box or None
        Cells compared, over all axes; None for rows.
    cell : tuple of int
        The first that differs; for rows ``(row,)``, counted within the rows of the box.
    stored, recomputed : str
    cells : int
        How many differ.
    key : str
        Object that holds the cell.
    """

    what: str
    box: Box | None
    cell: tuple[int, ...]
    stored: str
    recomputed: str
    cells: int
    key: str


class Recomputer:
    """Computes boxes of a plan in this process.

    Parameters
    ----------
    plan : PlanBase
    stored : Stored
    context : mapping or None
        What the first pass found.
    """

    def __init__(
        self, plan: PlanBase, stored: Stored, context: Mapping[str, Any] | None = None
    ) -> None:
        self.plan, self.stored, self.context = plan, stored, context
        self.cells = self.rows = 0

    def compare(self, record: Record, box: Box, rows: int) -> list[Difference]:
        """Compute a box inside a record's again; the first difference per array and table.

        Parameters
        ----------
        record : Record
        box : Box over the patch axes
            Of the output, inside the record's.
        rows : int
            Rows that are written together.

        Raises
        ------
        Unreadable
            When what is stored cannot be read.
        GeopatchError
            And whatever the operator raises.
        """
        found: dict[str, Difference] = {}
        tables: dict[str, Any] = {}

        def write(name: str, region: Box, values: npt.NDArray[np.generic]) -> int:
            self.cells += values.size
            difference = self._cells(name, region, values)
            if difference is not None:  # the first is told, the others are counted
                first = found.setdefault(name, replace(difference, cells=0))
                found[name] = replace(first, cells=first.cells + difference.cells)
            return 0

        def emit(name: str, table: Any) -> tuple[int, int]:
            tables[name] = table
            return 0, 0

        tile = SuperTile(0, "window", box)
        Kernel(self._regrouped(rows), write, self.context, emit).run(tile)
        for table in self.plan.tables:
            difference = self._rows(table, record, tile, tables.get(table.name))
            if difference is not None:
                found[table.name] = difference
        return list(found.values())

    def _regrouped(self, rows: int) -> PlanBase:
        """The same plan, cut otherwise: only the layout differs, which decides no value."""
        plan, shape = self.plan, self.plan.layout.shape
        layout = Layout(plan.layout.dims, shape, shape, (min(rows, shape[0]), *shape[1:]))
        other = replace(plan, layout=layout)
        other.__dict__["grid"] = plan.grid  # derived from what is the same, and dear
        return other

    def _cells(self, name: str, box: Box, values: npt.NDArray[np.generic]) -> Difference | None:
        found = self.stored.read(name, box)
        differs = bits(found) != bits(values)
        if not differs.any():
            return None
        first = tuple(int(i) for i in np.unravel_index(int(differs.argmax()), differs.shape))
        cell = tuple(a + i for a, i in zip(box.start, first, strict=True))
        return Difference(
            what=name,
            box=box,
            cell=cell,
            stored=repr(found[first].item()),
            recomputed=repr(values[first].item()),
            cells=int(np.count_nonzero(differs)),
            key=self.stored.key(name, cell),
        )

    def _rows(self, table: Table, record: Record, tile: SuperTile, made: Any) -> Difference | None:
        pa, grid = arrow(), self.plan.grid
        emission = Emission(table, grid, tile)
        if made is None:
            made = emission.sheet.table([])
        part = self.stored.rows(table.name, record)
        self.rows += made.num_rows
        if part is None:
            part = made.slice(0, 0)
        if part.schema.names != made.schema.names or part.schema.types != made.schema.types:
            told, wanted = ", ".join(part.schema.names), ", ".join(made.schema.names)
            return self._row(table, record, (0,), f"columns {told}", f"columns {wanted}", 1)
        if emission.points is None:
            keys = emission.ordinals
        else:
            asked = [point for points in emission.points.values() for point in points]
            lost = [int(row[emission.sheet.key]) for row in emission.rows]
            keys = np.asarray([*asked, *lost], np.int64)
        mine = np.isin(part.column(emission.sheet.key).to_numpy(), keys)
        kept = pa.Table.from_arrays(part.filter(pa.array(mine)).columns, schema=made.schema)
        if kept.num_rows != made.num_rows:
            count = abs(kept.num_rows - made.num_rows)
            texts = (f"{kept.num_rows} rows", f"{made.num_rows} rows")
            return self._row(table, record, (0,), *texts, count)
        return self._first_row(table, record, kept, made)

    def _first_row(self, table: Table, record: Record, kept: Any, made: Any) -> Difference | None:
        if _stream(kept) == _stream(made):
            return None
        wrong = [i for i in range(made.num_rows) if _stream(kept, i) != _stream(made, i)]
        if not wrong:
            return None
        names = made.schema.names
        name = next(n for n in names if _stream(kept, wrong[0], n) != _stream(made, wrong[0], n))
        texts = [f"{name} = {found[name][wrong[0]]}" for found in (kept, made)]
        return self._row(table, record, (wrong[0],), texts[0], texts[1], len(wrong))

    def _row(
        self,
        table: Table,
        record: Record,
        row: tuple[int, ...],
        stored: str,
        recomputed: str,
        count: int,
    ) -> Difference:
        key = f"part-{record.id}.parquet"
        return Difference(table.name, None, row, stored, recomputed, count, key)

    # ---- the operator ----------------------------------------------------------------------

    def repeatable(self, box: Box) -> bool:
        """Whether the operator gives one answer to one question, for patches that touch a box."""
        plan = self.plan
        members = {p.key: p.aggregation for p in plan.products}
        keyed = keyed_of(members | {table.key: table.keyed for table in plan.tables})
        for ordinal in plan.grid.touching(box)[:TRIED].tolist():
            corner = plan.grid.anchors.at(np.asarray([ordinal]))[0]
            anchor = tuple(int(v) for v in corner)
            twice = []
            for _ in range(2):
                patch = patch_of(plan.field, plan.grid, ordinal, anchor)
                [result] = plan.operator.run([patch], plan.scale, self.context, keyed)
                twice.append(_fingerprint(result))
            if twice[0] != twice[1]:
                return False
        return True


def random_boxes(
    plan: PlanBase, boxes: Sequence[Box], n: int, rng: np.random.Generator
) -> Iterator[tuple[Box, int]]:
    """Windows at random, and how many of their rows to write together.

    Every cell of ``boxes`` may be in one.  Edges have odd lengths and lie anywhere, so they are not
    those of chunks or super-tiles.

    Parameters
    ----------
    plan : PlanBase
    boxes : sequence of Box over the patch axes
        What is done.
    n : int
    rng : numpy.random.Generator
    """
    cells = np.array([box.cells for box in boxes], np.float64)
    longest = [max(HALVES * p // 2, LEAST) for p in plan.grid.out_size]
    for chosen in rng.choice(len(boxes), n, p=cells / cells.sum()):
        around, start, shape = boxes[chosen], [], []
        for a, b, most in zip(around.start, around.stop, longest, strict=True):
            size = int(rng.integers(1, most + 1)) | 1
            cell = int(rng.integers(a, b))
            start.append(cell - int(rng.integers(0, size)))
            shape.append(size)
        window = Box.at(start, shape).intersect(plan.grid.box)
        yield window, int(rng.integers(1, window.shape[0] + 1))


def _fingerprint(result: Any) -> Any:
    """What an operator returned, as something that can be compared."""
    if isinstance(result, Mapping):
        return {key: _fingerprint(value) for key, value in result.items()}
    if isinstance(result, np.ndarray) and result.dtype.kind != "O":
        return result.dtype.str, result.shape, result.tobytes()
    if isinstance(result, list | tuple):
        return [_fingerprint(value) for value in result]
    if hasattr(result, "to_dict") and hasattr(result, "columns"):  # a pandas.DataFrame
        return {str(key): _fingerprint(np.asarray(value)) for key, value in result.items()}
    return repr(result)


def _stream(table: Any, row: int | None = None, column: str | None = None) -> bytes:
    """Rows as Arrow's bytes, cut to what they hold."""
    pa = arrow()
    rows = np.arange(table.num_rows) if row is None else np.array([row])
    chosen = table if column is None else table.select([column])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, chosen.schema) as writer:
        writer.write_table(chosen.take(pa.array(rows)).combine_chunks())
    data: bytes = sink.getvalue().to_pybytes()
    return data
