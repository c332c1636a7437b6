"""How many bytes a worker holds while it computes one super-tile: a formula, checked before a run.

::

    M = reserved                           Python, numpy, GDAL, zarr, dask: an idle worker
      + reader                             GDAL's block cache, or xarray and pandas
      + input      b_in W_r (P + u)        rows of the field being swept
      + band       g_r b_in W_r u          a band of u rows arriving
      + state      b_acc W (P_w + lag + q) ring of accumulators; lag: rows a batch stays behind
      + batch      B (b_in + g_o b_out) P^d    patches, results, temporaries
      + operator                           a model and what a call takes (measured, or declared)
      + flush      (g_f 8 + g_w b_out) W q     rows being divided, rounded, encoded
      + rows                               rows of tables, until the super-tile ends
      + context                            what a first pass found

or, where it is more, reserved + reader + operator + first pass: its leaves and states, which are
gone before the first super-tile.

W is the width of the super-tile, W_r of what it reads, q the write unit, P the patch, per leading
entry; "rows" are along the first patch axis.  Without a sweep (irregular anchors) the ring and the
input are as tall as the super-tile.  Nothing in it grows with the size of the field.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

__all__ = ["MemoryModel", "MemoryPlan", "Shapes", "memory_of"]


@dataclass(frozen=True)
class MemoryModel:
    """Constants of the memory model.

    Parameters
    ----------
    reserved : int, bytes
        Resident set of a worker that has imported everything and opened a field and a store,
        measured with ``benchmarks/bench_memory.py``.
    xarray : int, bytes
        What importing xarray and pandas adds, where the field is read through them.
    share : float
        How much of a worker's limit a plan may use; Dask starts to spill at 0.7.
    reading : float
        Copies of a band while it is read: the array, and mask and promoted copy where cells may
        be missing (``g_r`` is 1 without).
    rounding : float
        Float64 temporaries per flushed cell: the weights, then the quotient in their place.
    encoding : float
        Copies of flushed output: the array, and zarr's chunk, compressed and uncompressed.
    temporaries : float
        Float64 copies of one patch result while it is added.
    """

    reserved: int = 160 << 20
    xarray: int = 60 << 20
    share: float = 0.7
    reading: float = 2.0
    rounding: float = 1.0
    encoding: float = 2.5
    temporaries: float = 2.0


@dataclass(frozen=True)
class Shapes:
    """What the formula needs to know about one super-tile; cells unless said otherwise.

    Parameters
    ----------
    rows_in, width_in : int
        Height of the input buffer, and product of the other axes that are read.
    band : int
        Rows read at once.
    rows_state, width : int
        Height of the accumulators, and product of the super-tile's other axes.
    flush : int
        Rows written at once.
    patch, patch_out : int
        Cells of a patch, and of its result.
    batch : int
        Patches held at once.
    cell_in, result : int, bytes
        Per cell: of the field with its riding axes, of all that the operator returns.
    entries : int
        Numbers per cell that the operator returns.
    state, flushed : int, bytes
        Per cell: accumulators and counts; what is held while rows are divided, rounded, encoded.
    may_miss : bool
        Whether cells may be missing.
    reader, operator : int, bytes
    first_pass : int, bytes
        What a slot holds in a first pass, beyond the operator's own.
    rows : int, bytes
        Of the tables of one super-tile.
    context : int, bytes
        Of what a first pass found.
    """

    rows_in: int
    width_in: int
    band: int
    rows_state: int
    width: int
    flush: int
    patch: int
    patch_out: int
    batch: int
    cell_in: int
    result: int
    entries: int
    state: int
    flushed: int
    may_miss: bool
    reader: int
    operator: int
    first_pass: int
    rows: int = 0
    context: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """Peak bytes of one worker, by purpose."""

    reserved: int
    reader: int
    input: int
    band: int
    state: int
    batch: int
    operator: int
    flush: int
    first_pass: int = 0
    rows: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """Bytes in all; a first pass is over before the second begins."""
        second = self.input + self.band + self.state + self.batch + self.flush
        second += self.rows + self.context
        return self.reserved + self.reader + self.operator + max(second, self.first_pass)

    def to_json(self) -> dict[str, int]:
        """Bytes by purpose, and ``total``."""
        return {**asdict(self), "total": self.total}


def memory_of(shapes: Shapes, model: MemoryModel) -> MemoryPlan:
    """Evaluate the formula of this module."""
    s = shapes
    reading = model.reading if s.may_miss else 1.0
    result = s.result + 8 * model.temporaries * s.entries
    return MemoryPlan(
        reserved=model.reserved,
        reader=s.reader,
        input=s.cell_in * s.width_in * s.rows_in,
        band=math.ceil(s.cell_in * s.width_in * s.band * reading),
        state=s.state * s.width * s.rows_state,
        batch=math.ceil(s.batch * (s.patch * s.cell_in + s.patch_out * result)),
        operator=s.operator,
        flush=s.width * s.flush * s.flushed,
        first_pass=s.first_pass,
        rows=s.rows,
        context=s.context,
    )
