"""A statistic per block: one number (or a few) for every cell of a coarse grid.

A statistic sees a whole field and says one thing about it.  Here the patches lie side by side, each
is summarised by itself, and ``Output(scale="1/512")`` makes one cell of each: quantiles, distinct
values or a sample of each block of 512 cells, in one georeferenced array, by one plan::

    field      +------+------+---+       blocks of P cells, none overlaps another;
               |      |      |   |       the last one of an axis may be cut
               +------+------+---+
    output     |  .   |  .   | . |       one cell each

There are two ways to look at what an operator returns.  Its *result* is the reconstruction, each
cell once, whatever overlapped: :func:`per_block` of the finished target.  Its *answers* are what it
says patch by patch, before they are aggregated: :func:`per_patch` with ``operator=``.  Neither
depends on the layout: blocks are fixed, and one block is always summarised in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from geopatch_dask import fields
from geopatch_dask.aggregation import Max, Output
from geopatch_dask.aggregation.passes import banded, places
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import OperatorError, OptionError
from geopatch_dask.fields.base import Field
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.geometry import Rectangular, cells_of
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.patch.sampler import RegularStride
from geopatch_dask.planning.operator import Operator

__all__ = ["per_block", "per_patch"]

#: Edge of a block where the source has no chunks of its own: the default chunk of an output.
DEFAULT_CELLS = 512
#: Edge of a chunk of the coarse grid: 8 blocks of 512 are the 4096 cells of a usual super-tile.
COARSE_CHUNK = 8


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
        inside, keys = _places(patch)
        values = banded(result, patch.indices, inside)
        state = self.statistic.init(len(values))
        self.statistic.update(state, values, keys[: values.shape[1]])
        numbers = _numbers(self.statistic, state, self.name)
        if numbers.shape[:1] == (len(values),):  # one entry per band: laid out as the bands are
            numbers = numbers.reshape(_bands(result, patch) + numbers.shape[1:])
        return numbers.reshape(numbers.shape + (1,) * patch.indices.ndim)


def _numbers(statistic: Statistic, state: Any, name: str) -> Any:
    """One of the numbers of a state, as float64: the dtype must not depend on the values.

    Raises
    ------
    OptionError
        When there is no such number; OperatorError where float64 has not the value.
    """
    found: Mapping[str, Any] = statistic.finalize(state)
    if name not in found:
        raise OptionError(
            f"{type(statistic).__name__} has no {name!r}; it gives {', '.join(found)}"
        )
    exact = np.asarray(found[name])
    numbers = exact.astype(np.float64)
    if exact.dtype.kind in "iuO":
        for given, made in zip(exact.ravel().tolist(), numbers.ravel().tolist(), strict=True):
            if isinstance(given, int) and int(made) != given:
                raise OperatorError(
                    f"{name!r} of {type(statistic).__name__} is {given}, beyond the integers that "
                    "float64 has (2**53), and such a cell is a float64; subtract an offset from "
                    "the values first: per_patch(..., operator=)"
                )
    return numbers


def _bands(result: Any, patch: Patch) -> tuple[int, ...]:
    """The axes that :func:`banded` makes one of: those before the patch, or all of a vector."""
    shape: tuple[int, ...] = np.shape(result)
    ndim = patch.indices.ndim
    return shape[:-ndim] if shape[-ndim:] == patch.indices.shape else shape


def _places(patch: Patch) -> tuple[Box, Any]:
    """The cells of a patch that the field has, and a number for each, unique in the field."""
    if patch.domain is None:
        raise OptionError("a patch without a domain has no places")
    shape = [patch.domain.size(dim) for dim in patch.patch_dims]
    inside = patch.indices.intersect(Box.of_shape(shape))
    return inside, places(inside, shape)


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
        Its result is float64 with one cell per patch, leading axes as the statistic gives them
        (the bands first).  Use ``Output(scale="1/P")`` for patches of P cells that step by P, and
        ``boundary="shrink"`` where the field is no multiple of P; :func:`per_block` does.

    Raises
    ------
    OptionError
        When the statistic has no such number.
    """
    if not isinstance(statistic, Statistic):
        raise OptionError(f"statistic must be a Statistic such as MinMax(), got {statistic!r}")
    _numbers(statistic, statistic.init(1), name)
    inner = None if operator is None else Operator.of(operator)
    return Operator(_Summary(statistic, name, inner), takes="patch")


def per_block(
    source: Any, statistic: Statistic, name: str, cells: int | None = None
) -> dict[str, Any]:
    """A statistic of every block of a field, or of a finished target: arguments of a plan.

    Parameters
    ----------
    source : Field, path, URL, DataArray or ndarray
        The field; to summarise what an operator made, the target of its run.  Each cell counts
        once, in the block it lies in; missing cells count as the statistic counts NaN.
    statistic : Statistic
        A sketch (``ApproxQuantile(0.9)``, ``ApproxCardinality()`` ...) or any other one.
    name : str
        Which of its numbers to keep (``"value"``, ``"count"`` ...); also names the output.
    cells : int, optional
        Edge of a block along the last two axes (the last, where there is one).  By default that of
        the chunks of the source, so that one block is one output chunk; 512 where it has none.

    Returns
    -------
    dict
        ``field``, ``patcher``, ``operator``, ``output`` and ``chunks`` for :func:`plan` and
        :func:`reconstruct`, which need a ``target`` besides.

    Raises
    ------
    OptionError
        When the statistic has no such number, or the chunks are no squares: give ``cells=``.

    Examples
    --------
    >>> import numpy as np, geopatch_dask as gp
    >>> job = gp.per_block(np.arange(36.0).reshape(6, 6), gp.MinMax(), "max", cells=4)
    >>> job["output"].scale, job["patcher"].n_anchors(job["field"])
    ('1/4', 4)
    """
    field = fields.as_field(source)
    ndim = min(len(field.domain.dims), 2)
    edge = _edge(field, ndim) if cells is None else cells
    if isinstance(edge, Sequence | Mapping):
        raise OptionError(
            f"cells {edge!r}: blocks are as long as wide, because one scale holds for all axes of "
            "an output; give one number, the edge of a block"
        )
    cells_of((edge,), "cells")
    return {
        "field": field,
        "patcher": Patcher(
            Rectangular((edge,) * ndim, "shrink"), RegularStride((edge,) * ndim), None, Max()
        ),
        "operator": per_patch(statistic, name),
        "output": Output(name=name, scale=f"1/{edge}"),
        "chunks": COARSE_CHUNK,
    }


def _edge(field: Field, ndim: int) -> int:
    """The edge of a block that is one chunk of the source.

    An axis that lies in one chunk altogether takes any edge that is long enough.
    """
    blocks, lengths = field.blocks[-ndim:], field.domain.shape[-ndim:]
    if blocks[0] == 1 and ndim == 2:
        return DEFAULT_CELLS  # rows: the source is not chunked
    several = {b for b, n in zip(blocks, lengths, strict=True) if b < n}
    longest = max((n for b, n in zip(blocks, lengths, strict=True) if b >= n), default=1)
    if not several:
        return longest
    edge = max(several)
    if len(several) > 1 or edge < longest:
        raise OptionError(
            f"{field.label} has chunks of {blocks} cells, and blocks are as long as wide; give "
            f"cells=, for instance {edge}"
        )
    return edge
