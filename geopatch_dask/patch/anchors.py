"""Where patches sit: lazy sequences of anchors that can be entered anywhere.

An anchor is the first cell of a patch on every patch axis; its *ordinal* is its index in the
sampler's canonical order.  A super-tile needs, without walking the whole domain, the ordinals whose
anchors fall into a box; that is :meth:`Anchors.within`, and it always answers in ascending order,
so that patches are added to a cell in one global order whatever the layout.

Random positions come from a counter-based generator: the position of ordinal ``i`` is a hash of
``(seed, i, axis)``, so nobody has to replay the draws before it.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "Anchors",
    "DisplacedAnchors",
    "IntArray",
    "LatticeAnchors",
    "ListAnchors",
    "random_bits",
]

IntArray = npt.NDArray[np.int64]

#: Bins in which written-down anchors are counted at least; a count takes a few milliseconds.
BINS = 1 << 20


class Anchors(ABC):
    """A sequence of anchors, each a tuple of ints over the patch axes."""

    #: Whether ordinals are row-major on a product grid: then rows behind a patch are final.
    sweepable: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of anchors."""

    @property
    @abstractmethod
    def ndim(self) -> int:
        """Number of patch axes."""

    @abstractmethod
    def at(self, ordinals: npt.ArrayLike) -> IntArray:
        """Anchors of some ordinals: int64, shape (k, ndim)."""

    @abstractmethod
    def within(self, low: Sequence[int], high: Sequence[int]) -> IntArray:
        """Ordinals, ascending, of anchors with ``low[d] <= a[d] < high[d]`` on every axis."""

    def count_within(self, low: Sequence[int], high: Sequence[int]) -> int:
        """``len(self.within(low, high))``, cheaper where the structure allows."""
        return len(self.within(low, high))

    @abstractmethod
    def most_within(self, lengths: Sequence[int]) -> int:
        """A number that no box of these lengths, wherever it lies, holds more anchors than.

        Parameters
        ----------
        lengths : sequence of int >= 1, cells
        """

    def __getitem__(self, ordinal: int) -> tuple[int, ...]:
        """The anchor of one ordinal; negative ordinals count from the end."""
        n = len(self)
        if not -n <= ordinal < n:
            raise IndexError(f"ordinal {ordinal} of {n} anchors")
        return tuple(int(v) for v in self.at([ordinal % n])[0])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Anchors in ordinal order, a few thousand at a time in memory."""
        n, step = len(self), 4096
        for first in range(0, n, step):
            for row in self.at(np.arange(first, min(first + step, n))):
                yield tuple(int(v) for v in row)


class LatticeAnchors(Anchors):
    """The product of ascending positions on each axis, row-major.

    Examples
    --------
    >>> a = LatticeAnchors([np.array([0, 6, 10]), np.array([0, 4])])
    >>> len(a), a[3], a.within((6, 0), (11, 4)).tolist()
    (6, (6, 4), [2, 4])
    """

    sweepable = True

    def __init__(self, axes: Sequence[IntArray]) -> None:
        self.axes = tuple(np.asarray(axis, np.int64) for axis in axes)
        self.shape = tuple(len(axis) for axis in self.axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.axes)

    def at(self, ordinals: npt.ArrayLike) -> IntArray:
        index = np.unravel_index(np.asarray(ordinals, np.int64), self.shape)
        columns = [axis[i] for axis, i in zip(self.axes, index, strict=True)]
        return np.stack(columns, axis=-1) if columns else np.empty((0, 0), np.int64)

    def ranges(self, low: Sequence[int], high: Sequence[int]) -> list[tuple[int, int]]:
        """Per axis, the half-open range of positions with ``low <= a < high``."""
        return [
            (int(np.searchsorted(axis, lo)), int(np.searchsorted(axis, hi)))
            for axis, lo, hi in zip(self.axes, low, high, strict=True)
        ]

    def within(self, low: Sequence[int], high: Sequence[int]) -> IntArray:
        ordinals = np.zeros((1,) * self.ndim, np.int64)
        for d, (a, b) in enumerate(self.ranges(low, high)):
            stride = math.prod(self.shape[d + 1 :])
            steps = np.arange(a, max(a, b), dtype=np.int64) * stride
            ordinals = ordinals + steps.reshape((-1,) + (1,) * (self.ndim - d - 1))
        return ordinals.ravel()

    def count_within(self, low: Sequence[int], high: Sequence[int]) -> int:
        return math.prod(max(b - a, 0) for a, b in self.ranges(low, high))

    def most_within(self, lengths: Sequence[int]) -> int:
        """Exact: the product of what an interval of each axis holds at most."""
        most = 1
        for axis, length in zip(self.axes, lengths, strict=True):
            first = np.searchsorted(axis, axis - length + 1)
            most *= int((np.arange(len(axis)) - first + 1).max(initial=0))
        return most


class ListAnchors(Anchors):
    """Anchors written down one by one, found again by a sort along the first axis."""

    def __init__(self, points: npt.ArrayLike, ndim: int) -> None:
        self.points = np.asarray(points, np.int64).reshape(-1, ndim)
        self._order = np.argsort(self.points[:, 0], kind="stable")
        self._first = self.points[self._order, 0]
        self._most: dict[tuple[int, ...], int] = {}

    def __len__(self) -> int:
        return len(self.points)

    @property
    def ndim(self) -> int:
        return int(self.points.shape[1])

    def at(self, ordinals: npt.ArrayLike) -> IntArray:
        return self.points[np.asarray(ordinals, np.int64)]

    def within(self, low: Sequence[int], high: Sequence[int]) -> IntArray:
        a, b = np.searchsorted(self._first, [low[0], high[0]])
        return _inside(np.sort(self._order[a:b]), self.points, low, high)

    def most_within(self, lengths: Sequence[int]) -> int:
        """Exact for up to a thousand anchors in a plane; then within a few per cent."""
        key = tuple(lengths)
        if key not in self._most:
            self._most[key] = _most_of(self.points, key)
        return self._most[key]


class DisplacedAnchors(Anchors):
    """A lattice, each point moved by at most ``reach`` cells; positions are computed where asked.

    Parameters
    ----------
    base : LatticeAnchors
    reach : sequence of int, cells
        No point lies further than this from its lattice point, on each axis.
    move : callable ``(ordinals, base positions) -> positions``
        Pure and vectorised: int64 (k,), (k, ndim) -> (k, ndim).
    """

    def __init__(
        self,
        base: LatticeAnchors,
        reach: Sequence[int],
        move: Callable[[IntArray, IntArray], IntArray],
    ) -> None:
        self.base, self.reach, self.move = base, tuple(reach), move

    def __len__(self) -> int:
        return len(self.base)

    @property
    def ndim(self) -> int:
        return self.base.ndim

    def at(self, ordinals: npt.ArrayLike) -> IntArray:
        index = np.asarray(ordinals, np.int64)
        return self.move(index, self.base.at(index))

    def within(self, low: Sequence[int], high: Sequence[int]) -> IntArray:
        wide_low = [a - r for a, r in zip(low, self.reach, strict=True)]
        wide_high = [b + r for b, r in zip(high, self.reach, strict=True)]
        ordinals = self.base.within(wide_low, wide_high)
        positions = self.at(ordinals)
        inside = ((positions >= low) & (positions < high)).all(axis=1)
        return ordinals[inside]

    def most_within(self, lengths: Sequence[int]) -> int:
        """What a box that is wider by the reach, on all sides, holds of the lattice."""
        return self.base.most_within([n + 2 * r for n, r in zip(lengths, self.reach, strict=True)])


def _most_of(points: IntArray, lengths: Sequence[int]) -> int:
    """How many points a box of these lengths holds at most, or a little more.

    A box that holds many may be moved until the last of them, on each axis, lies in its last cell.
    So it is enough to look at boxes whose last cell is some point's, on each axis: every point adds
    one to all of those that hold it, as a difference that is summed up in the end::

        points   a  b   c          box of 3 that ends at    a  b  c
                 |  |   |          point a is in            1  1  .
                 0  1   4          point b is in            .  1  .
                                   point c is in            .  .  1     at most: 2

    Where that makes too many boxes, neighbouring ends share a bin, and a point counts for the whole
    bin: never too few.
    """
    if not len(points):
        return 0
    low, bins = points.min(axis=0), max(BINS, 8 * len(points))
    for coarse in (2**k for k in itertools.count()):
        # The same share of the length on all axes: what is counted too much is least then.
        wide = np.array([-(-n * coarse // max(lengths)) for n in lengths])
        ends = [np.unique(axis) for axis in ((points - low) // wide).T]
        if math.prod(map(len, ends)) <= bins:
            break
    last = (points - low + np.array(lengths) - 1) // wide
    first = [np.searchsorted(e, a) for e, a in zip(ends, ((points - low) // wide).T, strict=True)]
    stop = [np.searchsorted(e, b, side="right") for e, b in zip(ends, last.T, strict=True)]
    shape = tuple(len(e) + 1 for e in ends)
    count = np.zeros(math.prod(shape), np.int64)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index = [stop[d] if at else first[d] for d, at in enumerate(corner)]
        found = np.bincount(np.ravel_multi_index(index, shape), minlength=count.size)
        count += found if sum(corner) % 2 == 0 else -found
    held = count.reshape(shape)
    for axis in range(len(shape)):
        held = held.cumsum(axis=axis)
    return int(held.max())


def _inside(
    ordinals: IntArray, points: IntArray, low: Sequence[int], high: Sequence[int]
) -> IntArray:
    found = points[ordinals]
    return ordinals[((found >= low) & (found < high)).all(axis=1)]


def random_bits(seed: int, counter: npt.ArrayLike, stream: int) -> npt.NDArray[np.uint64]:
    """64 random bits per counter, the same for ever: splitmix64 of (seed, stream, counter).

    Parameters
    ----------
    seed, stream : int
        Any integers; different pairs give unrelated sequences.
    counter : array of int

    Returns
    -------
    ndarray of uint64, the shape of ``counter``

    Notes
    -----
    The finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators"
    (OOPSLA 2014), applied twice so that neighbouring counters decorrelate.

    >>> random_bits(7, [0, 1], 0).tolist() == random_bits(7, [0, 1, 2], 0).tolist()[:2]
    True
    """
    golden = 0x9E3779B97F4A7C15
    key = np.uint64(((seed * 2 + 1) * golden + (stream + 1) * 0xD1B54A32D192ED03) % 2**64)
    with np.errstate(over="ignore"):
        state = np.asarray(counter).astype(np.uint64) * np.uint64(golden) + _mixed(np.asarray(key))
        return _mixed(_mixed(state))


def _mixed(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)
