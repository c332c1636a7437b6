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

BoolArray = npt.NDArray[np.bool_]
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


def answers(aggregation: gp.Aggregation, s: Stack) -> dict[str, tuple[Array, BoolArray]]:
    """The same for every aggregation: values and where they are, for each array that comes out."""
    with np.errstate(all="ignore"):
        match aggregation:
            case gp.HardVote(k=k):
                given = s.values.astype(np.int64)
                counts = np.stack([(s.valid & (given == c)).sum(axis=0) for c in range(k)])
                return _elected(counts.astype(np.float64), s.valid, s)
            case gp.SoftVote():
                valid = s.valid.all(axis=1)
                scores = np.where(valid[:, None], s.values.astype(np.float64), 0.0)
                return _elected(_added(scores), valid, s)
            case gp.InvVarWeightedMean():
                return _posterior(s)
            case gp.Median() | gp.Quantile() | gp.Mode() | gp.Learned():
                return {"": _by_cell(aggregation, s)}
    return {"": answer(aggregation, s)}


def _added(layers: Array) -> Array:
    """One after another, as a single process would."""
    total = np.zeros(layers.shape[1:])
    for layer in layers:
        total += layer
    return total


def _elected(scores: Array, valid: BoolArray, s: Stack) -> dict[str, tuple[Array, BoolArray]]:
    n = valid.sum(axis=0)
    share = scores.max(axis=0) / np.maximum(_added(scores), np.finfo(np.float64).tiny)
    reached = np.broadcast_to(s.reached.any(axis=0), n.shape)
    return {
        "": (scores.argmax(axis=0), n > 0),
        "share": (share, n > 0),
        "votes": (n, reached),
    }


def _posterior(s: Stack) -> dict[str, tuple[Array, BoolArray]]:
    mu, var = (s.values[:, i].astype(np.float64) for i in range(2))
    valid = s.valid.all(axis=1) & (var > 2.0**-1024) & (var < np.inf)
    weights = np.broadcast_to(s.weights[:, *(None,) * (mu.ndim - s.weights.ndim)], mu.shape)
    precision = np.where(valid, weights / np.where(valid, var, 1.0), 0.0)
    total, sums = _added(precision), _added(np.where(precision > 0, precision * mu, 0.0))
    known = (total > 2.0**-1024) & (total < np.inf) & ~np.isnan(sums)
    return {"mu": (sums / total, known), "var": (1 / total, known)}


def _by_cell(aggregation: gp.Aggregation, s: Stack) -> tuple[Array, BoolArray]:
    """One cell at a time: its valid values in ordinal order, and one number or several."""
    shape = s.valid.shape[1:]
    values, valid = s.values.reshape(len(s.values), -1), s.valid.reshape(len(s.valid), -1)
    some = valid.any(axis=0)
    found = [_of(aggregation, values[valid[:, i], i]) for i in range(len(some)) if some[i]]
    quantiles = aggregation.q if isinstance(aggregation, gp.Quantile) else None
    extra = (len(quantiles),) if isinstance(quantiles, tuple) else ()
    all_ = np.zeros((len(some), *extra), np.asarray(found).dtype if found else np.float64)
    all_[some] = np.reshape(found, (-1, *extra))
    return np.moveaxis(all_, 0, -1).reshape(*extra, *shape), some.reshape(shape)


def _of(aggregation: gp.Aggregation, v: Array) -> Any:
    """What one cell holds, of at least one value."""
    exact = v.astype(np.int64) if v.dtype.kind == "b" else v + v.dtype.type(0)
    ranked = np.sort(exact)
    match aggregation:
        case gp.Median():
            low, high = ranked[(len(v) - 1) // 2], ranked[len(v) // 2]
            return float(low) if low == high else (float(low) + float(high)) / 2
        case gp.Quantile(q=q):
            each = [_quantile(ranked, p) for p in (q if isinstance(q, tuple) else (q,))]
            return each if isinstance(q, tuple) else each[0]
        case gp.Mode():
            kinds, counts = np.unique(ranked, return_counts=True)
            return kinds[counts.argmax()]
    return float(exact[-1]) - float(exact[0])  # Learned(last_minus_first)


def _quantile(ranked: Array, q: float) -> float:
    """Numpy's, but for what lies between a number and an infinity, or very far apart."""
    height = (len(ranked) - 1) * q
    low, high = (float(ranked[min(int(height) + i, len(ranked) - 1)]) for i in (0, 1))
    share = height - int(height)
    if share == 0 or low == high:
        return low
    if np.isfinite(high - low):
        return float(np.quantile(ranked.astype(np.float64), q))
    return low * (1 - share) + high * share


def last_minus_first(layers: Array, n: Array) -> Array:
    """Depends on the order of layers, so it shows whether that order is global."""
    last = np.take_along_axis(layers, np.maximum(n - 1, 0)[None], axis=0)[0]
    with np.errstate(invalid="ignore", over="ignore"):
        return last.astype(np.float64) - layers[0].astype(np.float64)
