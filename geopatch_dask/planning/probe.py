"""Run the operator on a few patches before anything is planned, and believe what it does.

Output dtype, leading axes, working memory and seconds per patch are measured, not asked for.  An
operator that breaks its contract (shape, dtype, pickling) is caught here, before a target exists.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from fractions import Fraction
from typing import Any

import numpy as np

from geopatch_dask.aggregation import Aggregation, Output
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

__all__ = ["OutputArray", "Probe", "Product", "TriedRows", "probe", "product_of"]


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
        Per patch, from the fastest call.
    workspace : int, bytes
        Peak of what numpy allocated during one call, inputs and result included.
    rows : dict of key to list of TriedRows
        Of results that are rows of a table.
    """

    entries: dict[str, tuple[tuple[int, ...], str]]
    seconds: float
    workspace: int
    rows: dict[str, list[TriedRows]] = dataclass_field(default_factory=dict)


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
    return Probe(found, seconds, max(workspace, int(operator.memory)), rows)


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
    if wanted.fill_value is None and main.kind in "iu" and main == field.dtype:
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
