"""The shape of a patch: which axes it cuts, how many cells along each, and the edge rule.

A geometry says nothing about where patches sit (the sampler does) nor how they blend (window and
aggregation).  Axes of the domain that a geometry does not name *ride along*: a 2-D rectangle on a
``(time, level, lat, lon)`` cube gives patches of shape ``(time, level, h, w)``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boundary import Boundary, check_boundary
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.config import Configurable
from geopatch_dask.patch.domain import GridDomain

__all__ = ["Cells", "Geometry", "Rectangular", "cells_of", "per_axis"]

#: Cells per axis: one number per trailing axis, or a mapping from axis name to number.
Cells = int | Sequence[int] | Mapping[str, int]


class Geometry(Configurable):
    """Base of patch geometries."""

    def neighborhood(self, domain: GridDomain, anchor: Sequence[int]) -> Box:
        """The cells (over the patch axes) that the patch at ``anchor`` reads, before edge rules.

        Raises
        ------
        OptionError
            For a domain this geometry makes no sense on.
        """
        raise OptionError(f"{type(self).__name__} has no neighbourhood on {type(domain).__name__}")


@dataclass(frozen=True)
class Rectangular(Geometry):
    """A box of cells on a raster or a grid.

    Parameters
    ----------
    size : tuple of int, or mapping of axis name to int, or int; cells
        A tuple names the *last* axes of the domain (``(256, 256)`` is y and x of a raster); a
        mapping names any subset of them; an int is a square on the last two.
    boundary : {"shift", "reflect", "pad", "shrink", "drop", "raise"}
        The edge rule, see :mod:`geopatch_dask.patch.boundary`.
    pad_value : float
        What ``boundary="pad"`` fills with; cast to the dtype of the field.

    Raises
    ------
    OptionError
        For a size below one cell, or an unknown boundary.

    Examples
    --------
    >>> g = Rectangular((2, 3))
    >>> g.neighborhood(GridDomain(("t", "y", "x"), (5, 8, 9)), (4, 6))
    Box(start=(4, 6), stop=(6, 9))
    """

    size: Cells
    boundary: Boundary = "shift"
    pad_value: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", cells_of(self.size, "size"))
        object.__setattr__(self, "pad_value", float(self.pad_value))
        check_boundary(self.boundary)

    def dims(self, domain: GridDomain) -> tuple[str, ...]:
        """Names of the axes that are cut, in the order of the domain."""
        return tuple(per_axis(self.size, domain, "size"))

    def shape(self, domain: GridDomain) -> tuple[int, ...]:
        """Cells of a full patch along :meth:`dims`."""
        return tuple(per_axis(self.size, domain, "size").values())

    def neighborhood(self, domain: GridDomain, anchor: Sequence[int]) -> Box:
        """The full box of ``size`` cells that starts at ``anchor``; it may leave the domain."""
        return Box.at(anchor, self.shape(domain))


def cells_of(value: Cells, what: str) -> int | tuple[int, ...] | dict[str, int]:
    """Validate numbers of cells: whole and at least one.

    Raises
    ------
    OptionError
        Naming ``what`` and the offending value (0, -3, NaN, 1.5, True ...).
    """
    if isinstance(value, Mapping):
        if not value:
            raise OptionError(f"{what} names no axis")
        return {str(dim): _positive(n, what) for dim, n in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not len(value):
            raise OptionError(f"{what} is empty; give one number of cells per axis")
        return tuple(_positive(n, what) for n in value)
    return _positive(value, what)


def _positive(value: object, what: str) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # that is what is being asked
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise OptionError(f"{what} must be whole cells, at least 1; got {value!r}")
    return number


def per_axis(value: Cells, domain: GridDomain, what: str) -> dict[str, int]:
    """Spread cells over named axes, in the order of the domain.

    >>> per_axis((4, 5), GridDomain(("t", "y", "x"), (9, 9, 9)), "size")
    {'y': 4, 'x': 5}
    """
    if isinstance(value, Mapping):
        unknown = [dim for dim in value if dim not in domain.dims]
        if unknown:
            raise OptionError(
                f"{what} names axis {unknown[0]!r}; the field has {', '.join(domain.dims)}"
            )
        return {dim: value[dim] for dim in domain.dims if dim in value}
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    if len(numbers) > len(domain.dims):
        raise OptionError(
            f"{what} {numbers} has {len(numbers)} numbers, the field {len(domain.dims)} axes "
            f"({', '.join(domain.dims)})"
        )
    return dict(zip(domain.dims[-len(numbers) :], numbers, strict=True))
