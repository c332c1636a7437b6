"""Combining Gaussian estimates: the product of independent posteriors.

::

    1 / var = sum(w / var_i)          mu = var * sum(w mu_i / var_i)

Two estimates of variance 4 and 1 give weights 1 : 4 and a variance of 0.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import (
    Aggregation,
    Contribution,
    Part,
    State,
    averaged,
    valid_cells,
)
from geopatch_dask.errors import OperatorError

__all__ = ["InvVarWeightedMean"]

Array = npt.NDArray[Any]
Leading = tuple[int, ...]
#: The reciprocal of a float64 is finite above this, and infinite from here down to 0.
TOO_SMALL = 2.0**-1024


def _invertible(values: Array) -> Array:
    """Where values are positive, finite, and have finite reciprocals as float64."""
    return (values > TOO_SMALL) & (values < np.inf)


@dataclass(frozen=True)
class InvVarWeightedMean(Aggregation):
    """Inverse-variance weighted mean of estimates ``(mu, var)``.

    Notes
    -----
    The operator returns a tuple ``(mu, var)`` or a dict with these keys, both of shape
    (*leading, *patch).  The window multiplies the precision.  A NaN, or a variance that is not a
    positive finite number with a finite reciprocal (more than 2**-1024, 5.6e-309), is missing data:
    left out, and counted.  So is a cell whose precisions add up to what has no such reciprocal, or
    whose means are infinite in both directions: there is neither ``mu`` nor ``var`` then.  Arrays:
    ``mu`` and ``var``.
    """

    weighted: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("mu", "var")

    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[Any, ...]]:
        """Two sums per cell, in place of the two inputs: of w mu / var, and of w / var."""
        return {"sums": (np.float64, 0.0)}

    def counted(self, leading: Leading) -> Leading:
        """One estimate is one contribution."""
        if not leading or leading[0] != 2:
            raise OperatorError(
                "InvVarWeightedMean needs an operator that returns (mu, var), or a dict with these "
                f"keys; the result has leading axes {leading}"
            )
        return leading[1:]

    def valid(self, values: Array, missing: float | int | None, leading: Leading) -> Any:
        """Both known, and the variance one that can be divided by."""
        each = valid_cells(values, missing)
        usable = _invertible(values[1])
        if each is None:
            return None if usable.all() else usable
        return usable & each.all(axis=0)

    def update(self, state: State, patch: Contribution) -> None:
        """Add precision-weighted means, and precisions."""
        mu, var = patch.values.astype(np.float64)
        weights = 1.0 if patch.weights is None else patch.weights
        if patch.valid is not None:
            mu, var = np.where(patch.valid, mu, 0.0), np.where(patch.valid, var, 1.0)
        precision = weights / var
        if patch.valid is not None:
            np.copyto(precision, 0.0, where=~patch.valid)
        # What has no precision says nothing, be it infinite; 0 times infinity would be NaN.
        share = np.multiply(precision, mu, out=np.zeros_like(mu), where=precision > 0)
        sums = state["sums"]
        sums[0][patch.where] += share
        sums[1][patch.where] += precision

    def merge(self, left: State, right: State) -> State:
        """Add the sums."""
        left["sums"][...] += right["sums"]
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> dict[str, Array]:
        """Posterior mean and variance."""
        total, precision = state["sums"]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return {"mu": total / precision, "var": 1.0 / precision}

    def answered(self, state: State) -> dict[str, Any]:
        """Cells with at least one usable estimate, and whose sums are one, too."""
        total, precision = state["sums"]
        known = _invertible(precision) & ~np.isnan(total)
        voted = state.coverage.answered()
        if voted is not None:
            known &= voted
        found = None if known.all() else known
        return {"mu": found, "var": found}

    def part_dims(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """Those of one of the inputs."""
        return dims[1:]

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """Mean and variance."""
        part = Part(self.counted(leading), averaged(dtype))
        return {"mu": part, "var": part}
