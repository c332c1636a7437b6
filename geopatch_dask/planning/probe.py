"""Run the operator on a few patches before anything is planned, and believe what it does.

Output dtype, leading axes, memory and seconds per patch are measured, not asked for.  An operator
that breaks its contract (shape, dtype, pickling) is caught here, before a target exists.  One that
cannot run here is believed instead, by what it declares, and caught on the workers.
"""

from __future__ import annotations

import ctypes
import mmap
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from geopatch_dask.aggregation import Aggregation, ByIndex, Output
from geopatch_dask.aggregation.rows import Row, rows_of
from geopatch_dask.aggregation.several import (
    array_name,
    entries,
    keyed_of,
    members_of,
    part_dtypes,
    part_fills,
)
from geopatch_dask.errors import GeopatchError, OperatorError, OptionError
from geopatch_dask.fields.base import Field
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.patch.grid import UNIT, PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.operator import Operator

__all__ = [
    "OutputArray",
    "Probe",
    "Product",
    "TriedRows",
    "built",
    "declared",
    "probe",
    "product_of",
]


#: Bytes of a model that the process that plans does not keep for a run of its own.
LARGE_MODEL = 16 << 20

#: What factories were measured to keep, by the key of their operators.
_kept: dict[str, int] = {}


@dataclass(frozen=True)
class OutputArray:
    """One array of the target.

    Parameters
    ----------
    name : str
    part : str
        Which part of the aggregation it holds; ``""`` is the main one.
    dims : tuple of str
        Leading axes, then patch axes.
    leading : tuple of int
        Lengths of the leading axes.
    dtype : str
    fill : float or int
    attrs : dict
    """

    name: str
    part: str
    dims: tuple[str, ...]
    leading: tuple[int, ...]
    dtype: str
    fill: float | int
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Product:
    """One result of the operator, how it is aggregated, and the arrays that come out.

    Parameters
    ----------
    key : str
        In the dict that the operator returns; ``""`` where it returns one array.
    aggregation : Aggregation
    leading : tuple of int
        Shape of the operator's result before its patch axes.
    result_dtype : str
        Of the operator's result.
    missing : float, int or None
        The operator's own word for "no answer".
    arrays : tuple of OutputArray
    """

    key: str
    aggregation: Aggregation
    leading: tuple[int, ...]
    result_dtype: str
    missing: float | int | None
    arrays: tuple[OutputArray, ...]


@dataclass(frozen=True)
class TriedRows:
    """The rows of one patch, and whether their number is free."""

    ordinal: int
    anchor: tuple[int, ...]
    rows: tuple[Row, ...]
    several: bool

    def where(self, what: str) -> str:
        """Names the patch in messages."""
        return f"{what}, patch {self.ordinal} at {self.anchor}"


@dataclass(frozen=True)
class Probe:
    """What the operator did on the patches it was tried on.

    Parameters
    ----------
    entries : dict of key to ``(leading axes, dtype)``
        Of results that are arrays.
    seconds : float
        Per patch, from the fastest call; 0 where it was not tried.
    workspace : int, bytes
        Peak of what numpy allocated during one call, inputs and result included.
    rows : dict of key to list of TriedRows
        Of results that are rows of a table.
    kept : int, bytes
        What building it took, and keeps: a model.
    """

    entries: dict[str, tuple[tuple[int, ...], str]]
    seconds: float
    workspace: int
    rows: dict[str, list[TriedRows]] = dataclass_field(default_factory=dict)
    kept: int = 0


def probe(
    field: Field,
    patcher: Patcher,
    operator: Operator,
    scale: Fraction = UNIT,
    context: Mapping[str, Any] | None = None,
) -> Probe:
    """Try the operator on the first, the middle and the last patch.

    Raises
    ------
    OperatorError
        When it fails, returns another shape or dtype than before, or breaks its contract.
    """
    grid = patcher.grid(field.domain)
    members = members_of(patcher.aggregation)
    keyed = keyed_of(members)
    n = len(grid.anchors)
    if n == 0:
        lead = tuple(field.domain.size(dim) for dim in grid.riding)
        cellwise = {key: member for key, member in members.items() if key not in keyed}
        assumed = {key: (m.unseen(lead), str(field.dtype)) for key, m in cellwise.items()}
        return Probe(assumed, 0.0, 0)
    operator = operator.copied()  # a model that is loaded lazily must not travel with the plan
    rows: dict[str, list[TriedRows]] = {key: [] for key in keyed}
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    seconds, workspace = float("inf"), 0
    for ordinal in sorted({0, n // 2, n - 1}):
        patch = patcher.patch_at(field, ordinal)
        result, took, peak = _try(operator, patch, scale, context, keyed)
        for key, values in entries(result, members).items():
            if key in keyed:
                tried = rows_of(values, f"patch {ordinal} at {patch.anchor}")
                rows[key].append(TriedRows(ordinal, patch.anchor, tuple(tried[0]), tried[1]))
                continue
            kind = (values.shape[: values.ndim - patch.indices.ndim], str(values.dtype))
            if found.setdefault(key, kind) != kind:
                raise OperatorError(
                    f"operator {operator.name} returned leading axes {kind[0]} and dtype {kind[1]} "
                    f"for patch {ordinal}, {found[key][0]} and {found[key][1]} before; let it "
                    "return one shape and dtype always (array.astype(...))"
                )
        seconds, workspace = min(seconds, took), max(workspace, peak)
    return Probe(found, seconds, workspace, rows)


def declared(
    operator: Operator,
    members: Mapping[str, Aggregation],
    outputs: Mapping[str, Output],
    field: Field,
) -> Probe:
    """What an operator that is not to be tried says of itself.

    Raises
    ------
    OptionError
        Naming all that it does not say.
    """
    lacking = [] if operator.memory else ["Operator(memory=...), all that it takes"]
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for key, member in members.items():
        whose = f" of {key!r}" if key else ""
        if isinstance(member, ByIndex):
            lacking += [] if member.columns is not None else [f"ByIndex(schema=...){whose}"]
            continue
        if outputs[key].returns is None:
            lacking.append(f"Output(returns='float32' or '(5,)float32'){whose}, the result's dtype")
        leading, dtype = outputs[key].declared
        if operator.missing == "mask" and field.dtype.kind == "f":
            dtype = np.result_type(dtype, np.float32)
        stacked = (len(member.inputs),) if member.inputs else ()
        found[key] = ((*stacked, *leading), str(dtype))
    if lacking:
        raise OptionError(
            f"operator {operator.name} is not tried (trial=False); say what a trial would have "
            f"found: {'; '.join(lacking)}"
        )
    return Probe(found, 0.0, 0)


@contextmanager
def built(operators: Iterable[Operator]) -> Iterator[int]:
    """Build what factories make, for a while; gives the bytes that they keep, whole MiB.

    Measured once per process, by how much its resident set grows, which has the allocations of
    native runtimes, too; 0 where the system does not tell.  In the end, a large one that was built
    here is dropped: this process need not compute anything.
    """
    factories = {operator.key: operator for operator in operators if operator.factory}
    found = {key for key, operator in factories.items() if operator.built}
    try:
        for key, operator in factories.items():
            if key not in _kept:
                operator.forget()
                _trim()
                before = _resident()
                operator.load()
                _trim()
                _kept[key] = max(_resident() - before, 0) >> 20 << 20
        yield sum(_kept[key] for key in factories)
    finally:
        for key, operator in factories.items():
            if key not in found and _kept.get(key, LARGE_MODEL) >= LARGE_MODEL:
                operator.forget()


def _resident() -> int:
    """Bytes of this process in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _trim() -> None:
    """Give freed memory back, where the C library can: it would hide what is allocated next."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _try(
    operator: Operator,
    patch: Patch,
    scale: Fraction,
    context: Mapping[str, Any] | None,
    keyed: frozenset[str],
) -> tuple[Any, float, int]:
    operator.load()
    batch = [patch] * (operator.batch or 1)
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    began = time.perf_counter()
    try:
        result = operator.run(batch, scale, context, keyed)[0]
        peak = tracemalloc.get_traced_memory()[1] - before
    except GeopatchError:
        raise
    except Exception as error:
        raise OperatorError(
            f"operator {operator.name} failed on patch {patch.ordinal} at {patch.anchor} with "
            f"shape {patch.data.shape}: {type(error).__name__}: {error}"
        ) from error
    finally:
        if not tracing:
            tracemalloc.stop()
    return result, (time.perf_counter() - began) / len(batch), peak


def product_of(
    key: str, found: Probe, wanted: Output, aggregation: Aggregation, field: Field, grid: PatchGrid
) -> Product:
    """Complete an :class:`Output` with what the probe found.

    Raises
    ------
    OptionError
        When names and lengths of the leading axes disagree.
    """
    leading, name = found.entries[key]
    result = np.dtype(name)
    parts = aggregation.parts(leading, result)
    dtypes = part_dtypes(parts, wanted)
    main = next(iter(dtypes.values()))
    # The field's nodata goes on meaning "no data", but not where whole numbers are classes.
    inherits = main.kind in "iu" and main == field.dtype and not next(iter(parts.values())).classes
    if wanted.fill_value is None and inherits:
        wanted = replace(wanted, fill_value=field.nodata)
    fills = part_fills(dtypes, wanted)
    dims = aggregation.part_dims(_leading_dims(leading, wanted, aggregation, field.domain, grid))
    return Product(
        key=key,
        aggregation=aggregation,
        leading=leading,
        result_dtype=str(result),
        missing=wanted.missing,
        arrays=tuple(
            OutputArray(
                name=array_name(wanted, part),
                part=part,
                dims=dims + grid.dims,
                leading=parts[part].leading,
                dtype=str(dtypes[part]),
                fill=fills[part],
                attrs=dict(wanted.attrs),
            )
            for part in parts
        ),
    )


def _leading_dims(
    lengths: tuple[int, ...],
    wanted: Output,
    aggregation: Aggregation,
    domain: GridDomain,
    grid: PatchGrid,
) -> tuple[str, ...]:
    """Names of the leading axes of the operator's result."""
    if wanted.dims is not None:
        # One estimate may consist of several stacked arrays; users do not name that axis.
        named = (("input",) if aggregation.inputs else ()) + wanted.dims
        if len(named) != len(lengths):
            raise OptionError(
                f"output dims {wanted.dims} name {len(wanted.dims)} leading axes, the operator "
                f"returns {len(lengths)} ({lengths})"
            )
        if set(wanted.dims) & set(grid.dims):
            raise OptionError(f"output dims {wanted.dims} repeat a patch axis of {grid.dims}")
        return named
    riding = tuple(domain.size(dim) for dim in grid.riding)
    if aggregation.inputs:
        return ("input", *_named(lengths[1:], riding, grid))
    return _named(lengths, riding, grid)


def _named(lengths: tuple[int, ...], riding: tuple[int, ...], grid: PatchGrid) -> tuple[str, ...]:
    if riding == lengths:
        return grid.riding
    if len(lengths) == 1:
        return ("band",) if "band" not in grid.dims else ("channel",)
    return tuple(f"axis_{d}" for d in range(len(lengths)))
