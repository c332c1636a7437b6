"""A statistic per patch: one number (or a few) for every cell of a coarse grid.

With patches that do not overlap, ``Output(scale="1/512")`` and a statistic as the operator, the
output is the coarse grid of chunks itself: quantiles, distinct values or a sample of each block of
512 cells, in one georeferenced array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from geopatch_dask.aggregation.passes import banded
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.patch import Patch
from geopatch_dask.planning.operator import Operator

__all__ = ["per_patch"]


@dataclass(frozen=True)
class _Summary:
    """The callable of :func:`per_patch`; picklable."""

    statistic: Statistic
    name: str
    operator: Operator | None

    def __call__(self, patch: Patch) -> Any:
        result = patch.data
        if self.operator is not None:
            result = self.operator.run([patch], scale=None)[0]
        values = banded(result, patch)
        state = self.statistic.init(len(values))
        self.statistic.update(state, values, _places(patch)[: values.shape[1]])
        found: Mapping[str, Any] = self.statistic.finalize(state)
        if self.name not in found:
            raise OptionError(
                f"{type(self.statistic).__name__} has no {self.name!r}; it gives {', '.join(found)}"
            )
        numbers = np.asarray(found[self.name])
        return numbers.reshape(numbers.shape + (1,) * patch.indices.ndim)


def _places(patch: Patch) -> Any:
    """A number for every cell of a patch, unique in the field."""
    if patch.domain is None:
        raise OptionError("a patch without a domain has no places")
    shape = [patch.domain.size(dim) for dim in patch.patch_dims]
    limits = zip(patch.indices.start, patch.indices.stop, shape, strict=True)
    axes = [np.arange(a, b) % n for a, b, n in limits]
    index = np.ravel_multi_index(tuple(np.meshgrid(*axes, indexing="ij")), shape)
    return index.ravel().astype(np.uint64)


def per_patch(
    statistic: Statistic,
    name: str,
    operator: Operator | Callable[..., Any] | str | None = None,
) -> Operator:
    """An operator that summarises each patch.

    Parameters
    ----------
    statistic : Statistic
    name : str
        Which of its numbers to keep (``"value"``, ``"std"`` ...).
    operator : callable, Operator or ``"module:name"``
        Summarise what this makes of the patch instead of the field itself.

    Returns
    -------
    Operator
        Its result has one cell per patch: use ``Output(scale="1/P")`` for patches of P cells that
        step by P, and ``boundary="shrink"`` where the field is no multiple of P.
    """
    inner = None if operator is None else Operator.of(operator)
    return Operator(_Summary(statistic, name, inner), takes="patch")
