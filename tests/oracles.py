"""Plain numpy on stacked patches: the second opinion on every aggregation and every count.

Nothing here knows of super-tiles, accumulators, analytic weights or rows that move.  All patches
are laid over one another, one layer each, NaN-free thanks to an explicit mask, and each answer is
one numpy expression along the first axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import geopatch_dask as gp

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stack:
    """Patches as layers, in ordinal order.

    values : (k, *leading, *cells)     as the operator returned them, 0 outside a patch
    valid  : (k, *leading, *cells)     reached, and neither NaN nor the operator's "no answer"
    weights: (k, *cells)               of the window; 0 outside a patch
    reached: (k, *cells)               the patch writes here: inside its footprint, weight not 0
    """

    values: Array
    valid: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float64]
    reached: npt.NDArray[np.bool_]

    @property
    def leading(self) -> tuple[int, ...]:
        return self.values.shape[1 : self.values.ndim - self.reached.ndim + 1]

    @property
    def uncovered(self) -> int:
        """Cells of the output, leading entries counted, that no patch reaches."""
        return int((~self.reached.any(axis=0)).sum()) * int(np.prod(self.leading))


def stack(field: gp.Field, patcher: gp.Patcher, operator: gp.Operator, missing: Any) -> Stack:
    """Run everything and keep everything."""
    grid = patcher.grid(field.domain)
    weigh = patcher.aggregation.weighted
    layers = []
    for patch in patcher.split(field):
        result = operator.run([patch])[0]
        lead = result.shape[: result.ndim - len(grid.dims)]
        values = np.zeros(lead + grid.shape, result.dtype)
        weights = np.zeros(grid.shape)
        reached = np.zeros(grid.shape, bool)
        for cell in np.ndindex(*patch.indices.shape):
            at = tuple(a + i for a, i in zip(patch.indices.start, cell, strict=True))
            inside = all(0 <= i < n for i, n in zip(at, grid.shape, strict=True))
            # the window belongs to the whole patch, also where its end was cut off
            whole = tuple(i - a for i, a in zip(at, patch.anchor, strict=True))
            weight = patcher.window.weights(grid.size)[whole] if weigh else 1.0
            if inside and weight > 0:
                values[(..., *at)] = result[(..., *cell)]
                weights[at], reached[at] = weight, True
        valid = np.broadcast_to(reached, values.shape).copy()
        if values.dtype.kind == "f":
            valid &= ~np.isnan(values)
        if missing is not None:
            valid &= values != missing
        layers.append((values, valid, weights, reached))
    columns = [np.stack(column) for column in zip(*layers, strict=True)]
    return Stack(*columns)


def answer(aggregation: gp.Aggregation, s: Stack) -> tuple[Array, npt.NDArray[np.bool_]]:
    """What an aggregation makes of a stack, in float64 or exact integers, and where."""
    n = s.valid.sum(axis=0)
    some = n > 0
    lead = (slice(None), *(None,) * len(s.leading))
    weights = np.where(s.valid, s.weights[lead], 0.0)
    exact = s.values.dtype.kind != "f"
    values = s.values.astype(np.int64 if exact else np.float64)
    zeroed = np.where(s.valid, values, 0)
    with np.errstate(all="ignore"):
        total = zeroed.sum(axis=0)
        weighted = np.where(weights > 0, zeroed * weights, 0.0).sum(axis=0)
        info = np.iinfo(np.int64) if exact else np.finfo(np.float64)
        low, high = (info.min, info.max) if exact else (-np.inf, np.inf)
        largest = np.where(s.valid, values, low).max(axis=0)
        smallest = np.where(s.valid, values, high).min(axis=0)
        match type(aggregation).__name__.rstrip("_"):
            case "Sum":
                return total, some
            case "Mean":
                return total / np.maximum(n, 1), some
            case "WeightedSum":
                return weighted, some
            case "OverlapAdd":
                return weighted / weights.sum(axis=0), some
            case "Max":
                return largest, some
            case "Min":
                return smallest, some
            case "Range":
                return largest - smallest, some
            case "Any":
                return (s.valid & (s.values != 0)).any(axis=0).astype(np.int64), some
            case "All":
                return (~s.valid | (s.values != 0)).all(axis=0).astype(np.int64), some
            case "Count":
                touched = np.broadcast_to(s.reached.any(axis=0), n.shape)
                return n, touched
            case "Variance":
                mean = total / np.maximum(n, 1)
                squares = np.where(s.valid, (values - mean) ** 2, 0.0).sum(axis=0)
                return squares / np.maximum(n - 1, 1), n >= 2
    raise NotImplementedError(aggregation)
