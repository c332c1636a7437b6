"""Run the operator on a few patches before anything is planned, and believe what it does.

Output dtype, leading axes, working memory and seconds per patch are measured, not asked for.  An
operator that breaks its contract (shape, dtype, pickling) is caught here, before a target exists.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geopatch_dask.aggregation import Aggregation, Output
from geopatch_dask.aggregation.output import checked_dtype, fill_for
from geopatch_dask.errors import GeopatchError, OperatorError, OptionError
from geopatch_dask.fields.base import Field
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.operator import Operator

__all__ = ["Probe", "Product", "probe", "product_of"]


@dataclass(frozen=True)
class Product:
    """One array of the target, and how it comes about.

    Parameters
    ----------
    name : str
    aggregation : Aggregation
    dims : tuple of str
        Leading axes, then patch axes.
    leading : tuple of int
        Lengths of the leading axes.
    result_dtype, dtype : str
        Of the operator's result, and of the stored array.
    fill : float or int
    missing : float, int or None
        The operator's own word for "no answer".
    attrs : dict
    """

    name: str
    aggregation: Aggregation
    dims: tuple[str, ...]
    leading: tuple[int, ...]
    result_dtype: str
    dtype: str
    fill: float | int
    missing: float | int | None
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """What the operator did on the patches it was tried on.

    Parameters
    ----------
    leading : tuple of int
    dtype : str
    seconds : float
        Per patch, from the fastest call.
    workspace : int, bytes
        Peak of what numpy allocated during one call, inputs and result included.
    """

    leading: tuple[int, ...]
    dtype: str
    seconds: float
    workspace: int


def probe(field: Field, patcher: Patcher, operator: Operator) -> Probe:
    """Try the operator on the first, the middle and the last patch.

    Raises
    ------
    OperatorError
        When it fails, returns another shape or dtype than before, or breaks its contract.
    """
    grid = patcher.grid(field.domain)
    n = len(grid.anchors)
    if n == 0:
        lead = tuple(field.domain.size(dim) for dim in grid.riding)
        return Probe(lead, str(field.dtype), 0.0, 0)
    found: tuple[tuple[int, ...], str] | None = None
    seconds, workspace = float("inf"), 0
    for ordinal in sorted({0, n // 2, n - 1}):
        patch = patcher.patch_at(field, ordinal)
        result, took, peak = _try(operator, patch)
        shape = (result.shape[: result.ndim - patch.indices.ndim], str(result.dtype))
        if found is not None and shape != found:
            raise OperatorError(
                f"operator {operator.name} returned leading axes {shape[0]} and dtype {shape[1]} "
                f"for patch {ordinal}, {found[0]} and {found[1]} before; let it return one shape "
                "and dtype always (array.astype(...))"
            )
        found = shape
        seconds, workspace = min(seconds, took), max(workspace, peak)
    if found is None:
        raise OperatorError("no patch to try the operator on")
    return Probe(found[0], found[1], seconds, max(workspace, operator.memory))


def _try(operator: Operator, patch: Patch) -> tuple[Any, float, int]:
    operator.load()
    batch = [patch] * (operator.batch or 1)
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    began = time.perf_counter()
    try:
        result = operator.run(batch)[0]
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
    found: Probe, wanted: Output, aggregation: Aggregation, field: Field, grid: PatchGrid
) -> Product:
    """Complete an :class:`Output` with what the probe found.

    Raises
    ------
    OptionError
        When names and lengths of the leading axes disagree.
    """
    result = np.dtype(found.dtype)
    dtype = checked_dtype(wanted.dtype or aggregation.result_dtype(result))
    fill = wanted.fill_value
    if fill is None and dtype.kind in "iu" and dtype == field.dtype and field.nodata is not None:
        fill = field.nodata
    leading = _leading_dims(found.leading, wanted, field.domain, grid)
    return Product(
        name=wanted.name,
        aggregation=aggregation,
        dims=leading + grid.dims,
        leading=found.leading,
        result_dtype=str(result),
        dtype=str(dtype),
        fill=fill_for(dtype, fill),
        missing=wanted.missing,
        attrs=dict(wanted.attrs),
    )


def _leading_dims(
    lengths: Sequence[int], wanted: Output, domain: GridDomain, grid: PatchGrid
) -> tuple[str, ...]:
    if wanted.dims is not None:
        if len(wanted.dims) != len(lengths):
            raise OptionError(
                f"output dims {wanted.dims} name {len(wanted.dims)} leading axes, the operator "
                f"returns {len(lengths)} ({tuple(lengths)})"
            )
        if set(wanted.dims) & set(grid.dims):
            raise OptionError(f"output dims {wanted.dims} repeat a patch axis of {grid.dims}")
        return wanted.dims
    if tuple(domain.size(dim) for dim in grid.riding) == tuple(lengths):
        return grid.riding
    if len(lengths) == 1:
        return ("band",) if "band" not in grid.dims else ("channel",)
    return tuple(f"axis_{d}" for d in range(len(lengths)))
