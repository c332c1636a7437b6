r"""Pass 1: what a statistic sees, in pieces that do not depend on the layout.

Over the *field*, each cell is seen once: the patch axes are cut into fixed blocks.  Over the
*output*, each patch is seen once: patches are taken in fixed groups of consecutive ordinals.  A
piece is a *leaf*; the states of all leaves are merged over a binary tree that depends only on their
number.  A task computes an aligned run of ``2^g`` leaves and merges inside it, which is the bottom
of the same tree::

    level 2            *                  however many leaves a task takes,
                   /       \              the pairs that meet are the same
    level 1      *           *
               /   \       /   \
    leaves    0     1     2     3

so the statistic has the same bits whatever the number of tasks, workers or super-tiles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import valid_cells
from geopatch_dask.aggregation.statistic import Statistic, StatisticState, joined
from geopatch_dask.errors import OperatorError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Readable, patch_of, read_cells

__all__ = ["FieldPass", "OutputPass", "Pass", "banded", "pass_bytes", "reduce_leaves", "runs_of"]

Array = npt.NDArray[Any]

#: Longest edge of a block of cells, and most bytes it may hold as float64.
BLOCK_EDGE = 1024
BLOCK_BYTES = 32 << 20
#: Arrays as large as a block, as float64, that reading and updating hold at once.
LEAF_COPIES = 5
#: Consecutive patches that make one leaf.
PATCHES_PER_LEAF = 64
#: Tasks per worker slot; their states stay with the workers until the pass is over.
TASKS_PER_SLOT = 8
#: A state while it is recorded, in its own size: itself, and four times 4/3 of it as text.
RECORDING = 7


class Pass(ABC):
    """The leaves of a first pass.

    Attributes
    ----------
    bands : int
        Of every value; 0 as long as nobody knows.
    """

    bands: int = 0

    @property
    @abstractmethod
    def leaves(self) -> int:
        """How many there are."""

    @abstractmethod
    def state(self, statistic: Statistic, leaf: int) -> StatisticState:
        """The state of one leaf."""

    @property
    @abstractmethod
    def leaf_bytes(self) -> int:
        """Bytes that a leaf may need beyond an idle worker."""


class FieldPass(Pass):
    """Every cell of a field, once.

    Parameters
    ----------
    field : Field
    grid : PatchGrid
        For its patch axes; riding axes are bands.
    """

    def __init__(self, field: Readable, grid: PatchGrid) -> None:
        self.field, self.grid = field, grid
        self.bands = math.prod(field.domain.size(dim) for dim in grid.riding)
        edge = BLOCK_EDGE
        ndim = min(len(grid.dims), 2)
        while edge > 1 and 8 * self.bands * edge**ndim > BLOCK_BYTES:
            edge //= 2
        self.block = (1,) * (len(grid.dims) - ndim) + (edge,) * ndim
        self.counts = tuple(-(-n // b) for n, b in zip(grid.field_shape, self.block, strict=True))

    @property
    def leaves(self) -> int:
        """Number of blocks."""
        return math.prod(self.counts)

    def box(self, leaf: int) -> Box:
        """The cells of a block."""
        index = np.unravel_index(leaf, self.counts)
        start = tuple(int(k) * b for k, b in zip(index, self.block, strict=True))
        return Box.at(start, self.block).intersect(self.grid.field_box)

    def state(self, statistic: Statistic, leaf: int) -> StatisticState:
        """Read a block, and update an empty state with it."""
        box = self.box(leaf)
        values = read_cells(self.field, self.grid, box).reshape(self.bands, -1)
        state = statistic.init(self.bands)
        statistic.update(state, np.ascontiguousarray(values), places(box, self.grid.field_shape))
        return state

    @property
    def leaf_bytes(self) -> int:
        """Bytes that a leaf may need: its values, float64 copies of them, and their places."""
        cells = math.prod(min(b, n) for b, n in zip(self.block, self.grid.field_shape, strict=True))
        return cells * (8 * self.bands * LEAF_COPIES + 16)


def places(box: Box, shape: Sequence[int]) -> npt.NDArray[np.uint64]:
    """The row-major number, in a domain of ``shape``, of every cell of a box: (cells,)."""
    numbers = np.zeros((1,) * box.ndim, np.uint64)
    for d, (a, b) in enumerate(zip(box.start, box.stop, strict=True)):
        steps = np.arange(a, b, dtype=np.uint64) * np.uint64(math.prod(shape[d + 1 :]))
        numbers = numbers + steps.reshape((-1,) + (1,) * (box.ndim - d - 1))
    return numbers.ravel()


class OutputPass(Pass):
    """Every result of an operator, once per patch.

    Parameters
    ----------
    field : Field
    grid : PatchGrid
    run : callable ``patches -> results``
        The operator, without a context.  Results are arrays of shape (*leading, *patch), at the
        scale of the grid, seen as ``prod(leading)`` bands, or vectors of parameters, one number
        per band.  Of an array, what lies beyond the output is not seen: nobody writes it.
    batch : int
        Patches per call.
    missing : float, int or None
        The operator's own word for "no answer".
    shape : (int, int)
        Bands of a result, and values per band; 0 where they are not known.
    """

    def __init__(
        self,
        field: Readable,
        grid: PatchGrid,
        run: Callable[[Sequence[Patch]], Sequence[Any]],
        batch: int = 1,
        missing: float | int | None = None,
        shape: tuple[int, int] = (0, 0),
    ) -> None:
        self.field, self.grid, self.run, self.batch = field, grid, run, batch
        self.missing, self.shape = missing, shape
        self.bands = shape[0]

    @property
    def leaf_bytes(self) -> int:
        """A batch of patches, their results, and float64 copies of one result."""
        riding = math.prod(self.field.domain.size(dim) for dim in self.grid.riding)
        most = max(math.prod(self.grid.size) * riding, math.prod(self.shape))
        return 8 * most * (2 * self.batch + LEAF_COPIES)

    @property
    def leaves(self) -> int:
        """Number of groups of patches."""
        return -(-len(self.grid.anchors) // PATCHES_PER_LEAF)

    def ordinals(self, leaf: int) -> range:
        """The patches of a group."""
        first = leaf * PATCHES_PER_LEAF
        return range(first, min(first + PATCHES_PER_LEAF, len(self.grid.anchors)))

    def state(self, statistic: Statistic, leaf: int) -> StatisticState:
        """Run a group of patches, and update an empty state with their results, in order."""
        state: StatisticState | None = None
        pending: list[Patch] = []
        for ordinal in self.ordinals(leaf):
            patch = patch_of(self.field, self.grid, ordinal, self.grid.anchors[ordinal])
            if pending and patch.indices.shape != pending[0].indices.shape:
                state = self._update(statistic, state, pending)
            pending.append(patch)
            if len(pending) == self.batch:
                state = self._update(statistic, state, pending)
        state = self._update(statistic, state, pending)
        if state is None:
            raise OperatorError("a group without patches")
        return state

    def _update(
        self, statistic: Statistic, state: StatisticState | None, pending: list[Patch]
    ) -> StatisticState | None:
        results = self.run(pending) if pending else []
        cells = math.prod(self.grid.out_size)
        for patch, result in zip(pending, results, strict=True):
            written = self.grid.written(patch.indices)
            values = banded(result, written, written.intersect(self.grid.box), self.missing)
            self.bands = self.bands or len(values)
            if len(values) != self.bands:
                raise OperatorError(
                    f"pass 1 got {len(values)} bands for patch {patch.ordinal} at {patch.anchor} "
                    f"and {self.bands} before; let the operator return as many for every patch"
                )
            if state is None:
                state = statistic.init(len(values))
            keys = np.uint64(patch.ordinal * cells) + np.arange(values.shape[1], dtype=np.uint64)
            statistic.update(state, values, keys)
        pending.clear()
        return state


def banded(result: Any, covers: Box, seen: Box, missing: float | int | None = None) -> Array:
    """An operator's result as values of a statistic.

    Parameters
    ----------
    result
        An array whose last axes are the cells of ``covers``, or a vector of parameters.
    covers, seen : Box
        The cells of an array, and those of them that count.
    missing : float, int or None
        A value that stands for NaN, too.  Integers are promoted then, as those of a field are,
        whether they have it or not.

    Returns
    -------
    ndarray, shape (bands, n), C-contiguous

    Raises
    ------
    OperatorError
        When it is neither an array over the patch nor a vector, or holds no real numbers.
    """
    if isinstance(result, dict | tuple):
        raise OperatorError(
            "a statistic over the output needs one array or vector per patch, not a "
            f"{type(result).__name__}; give over= an operator that returns what to summarise"
        )
    values = np.asarray(result)
    if values.dtype.kind not in "iufb":
        raise OperatorError(f"pass 1 got dtype {values.dtype}; return real numbers")
    if values.ndim >= covers.ndim and values.shape[values.ndim - covers.ndim :] == covers.shape:
        bands = math.prod(values.shape[: values.ndim - covers.ndim])
        values = values[seen.index(covers.start)].reshape(bands, seen.cells)
    elif values.ndim <= 1:
        values = values.reshape(-1, 1)
    else:
        raise OperatorError(
            f"pass 1 got shape {values.shape}, {covers.shape} was expected of that patch; return "
            "an array over the patch (at the scale of the output), or a vector of parameters"
        )
    if missing is not None:
        valid = valid_cells(values, missing)
        values = values.astype(np.result_type(values.dtype, np.float32))
        if valid is not None:
            values[~valid] = np.nan
    return np.ascontiguousarray(values)


def runs_of(leaves: int, slots: int) -> list[tuple[int, int]]:
    """Ranges of leaves, one per task: aligned powers of two, so that the tree stays the same.

    Where there is no leaf, one empty range: its state has seen nothing.

    Examples
    --------
    >>> runs_of(20, slots=1)
    [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
    """
    run = 1
    while leaves / run > TASKS_PER_SLOT * slots:
        run *= 2
    return [(first, min(first + run, leaves)) for first in range(0, max(leaves, 1), run)]


def pass_bytes(source: Pass, statistic: Statistic, slots: int) -> int:
    """Bytes that a worker slot holds in a first pass, beyond an idle worker.

    A leaf; the states of the tasks that are done; and either those of half-finished subtrees of
    one more (a merge makes a new one), or what recording the last one takes.
    """
    state = sum(array.nbytes for array in statistic.init(source.bands or 1).values())
    runs = runs_of(source.leaves, slots)
    done = -(-len(runs) // slots)
    subtrees = max(last - first for first, last in runs).bit_length() + 2
    return source.leaf_bytes + state * (done + max(subtrees, RECORDING))


def reduce_leaves(source: Pass, statistic: Statistic, first: int, last: int) -> StatisticState:
    """The merged state of leaves ``first .. last-1``; an aligned power of two, or all.

    Bounded memory: like a binary counter, finished subtrees of equal size merge at once.
    """
    stack: list[tuple[int, StatisticState]] = []
    for leaf in range(first, last):
        size, state = 1, source.state(statistic, leaf)
        while stack and stack[-1][0] == size:
            state = joined(statistic, stack.pop()[1], state)
            size *= 2
        stack.append((size, state))
    if not stack:
        return statistic.init(source.bands or 1)
    # What is left over has strictly falling sizes; the tree joins it from the right.
    state = stack.pop()[1]
    while stack:
        state = joined(statistic, stack.pop()[1], state)
    return state
