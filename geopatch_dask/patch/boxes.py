"""Boxes of cells: half-open, integer, any number of axes.

Everything that is read, written, owned or touched is a :class:`Box`, so that "start, stop" is
spelled once.  Coordinates are cell indices of a domain's axes; a box may start below zero or end
beyond the domain (a padded patch does) until it is clipped.

::

    start (2, 1)
      +-----------+          shape = stop - start = (3, 6)
      | . . . . . . |        cells = 18
      | . . . . . . |
      +-----------+ stop (5, 7), not included
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import lt
from typing import Any

__all__ = ["Box", "box_id", "hull"]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of cells, ``start[d] <= index < stop[d]`` on every axis.

    Parameters
    ----------
    start, stop : tuple of int, cells

    Examples
    --------
    >>> Box((0, 0), (4, 6)).intersect(Box((2, 3), (9, 9)))
    Box(start=(2, 3), stop=(4, 6))
    >>> Box((2, 3), (4, 6)).slices(origin=(2, 0))
    (slice(0, 2, None), slice(3, 6, None))
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """The box that covers an array of this shape.

        >>> Box.of_shape((2, 3))
        Box(start=(0, 0), stop=(2, 3))
        """
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @classmethod
    def at(cls, start: Sequence[int], shape: Sequence[int]) -> Box:
        """The box of ``shape`` cells whose first cell is ``start``."""
        return cls(
            tuple(int(a) for a in start),
            tuple(int(a) + int(n) for a, n in zip(start, shape, strict=True)),
        )

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis (never negative)."""
        return tuple(max(b - a, 0) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def __bool__(self) -> bool:
        """Whether the box holds at least one cell."""
        return all(map(lt, self.start, self.stop))

    def slices(self, origin: Sequence[int] | None = None) -> tuple[slice, ...]:
        """Index an array whose first cell is ``origin`` (default: cell 0 of every axis)."""
        base = origin if origin is not None else (0,) * self.ndim
        return tuple(
            slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, base, strict=True)
        )

    def index(self, origin: Sequence[int] | None = None) -> tuple[Any, ...]:
        """Like :meth:`slices`, for an array with any leading axes before those of the box."""
        return (..., *self.slices(origin))

    def intersect(self, other: Box) -> Box:
        """The cells in both boxes; empty (``bool(...) is False``) when there are none."""
        start = tuple(map(max, self.start, other.start))
        return Box(start, tuple(map(max, start, map(min, self.stop, other.stop))))

    def contains(self, other: Box) -> bool:
        """Whether every cell of ``other`` is a cell of this box."""
        return not other or (
            all(a <= b for a, b in zip(self.start, other.start, strict=True))
            and all(a >= b for a, b in zip(self.stop, other.stop, strict=True))
        )

    def shift(self, offset: Sequence[int]) -> Box:
        """The same box moved by ``offset`` cells."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def replace(self, axis: int, start: int, stop: int) -> Box:
        """The same box with other limits on one axis."""
        a, b = list(self.start), list(self.stop)
        a[axis], b[axis] = start, stop
        return Box(tuple(a), tuple(b))

    def prepend(self, shape: Sequence[int]) -> Box:
        """This box behind whole leading axes of the given shape."""
        return Box((0,) * len(shape) + self.start, tuple(shape) + self.stop)

    def to_json(self) -> list[list[int]]:
        """``[start, stop]`` as lists."""
        return [list(self.start), list(self.stop)]

    @classmethod
    def from_json(cls, data: Sequence[Sequence[int]]) -> Box:
        """The inverse of :meth:`to_json`."""
        start, stop = data
        return cls(tuple(int(v) for v in start), tuple(int(v) for v in stop))


def box_id(dims: Sequence[str], box: Box) -> str:
    """The name of a box of cells.

    >>> box_id(("y", "x"), Box((0, 512), (512, 1024)))
    'y0-512_x512-1024'
    """
    return "_".join(f"{dim}{a}-{b}" for dim, a, b in zip(dims, box.start, box.stop, strict=True))


def hull(boxes: Iterable[Box]) -> Box:
    """The smallest box that contains all the given ones.

    Raises
    ------
    TypeError
        When there is no box at all.

    Examples
    --------
    >>> hull([Box((0, 0), (2, 2)), Box((1, 5), (3, 6))])
    Box(start=(0, 0), stop=(3, 6))
    """
    return reduce(
        lambda p, q: Box(tuple(map(min, p.start, q.start)), tuple(map(max, p.stop, q.stop))),
        boxes,
    )
