"""The one shape of every aggregation: init, update, merge, finalize.

An aggregation is a table row: which accumulators a cell needs, how a patch changes them, how two
sets of accumulators combine, and what comes out.  Everything else (which patches, in which order,
missing data, coverage, dtypes, rounding, moving windows of rows) is done here and in the kernel,
once for all of them.

Writing your own takes this much::

    @dataclass(frozen=True)
    class GeometricMean(gp.Aggregation):
        \"\"\"exp of the mean of logarithms.\"\"\"

        def accumulators(self, dtype):
            return {"logs": (np.float64, 0.0)}

        def update(self, state, patch):
            state["logs"][patch.where] += np.log(patch.filled(1.0))

        def finalize(self, state):
            return np.exp(state["logs"] / np.maximum(state.coverage.counts(), 1))

        def result_dtype(self, dtype):
            return averaged(dtype)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.coverage import BoolArray, Coverage, move_up, row_index
from geopatch_dask.aggregation.output import Output, checked_dtype, fill_for, settle
from geopatch_dask.errors import OperatorError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.config import Configurable
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.window import FloatArray

__all__ = ["Aggregation", "Contribution", "State", "averaged", "exact", "valid_cells"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one patch gives to a state: some cells of it.

    Parameters
    ----------
    values : ndarray, shape (*leading, *cells)
        As the operator returned them.
    valid : ndarray of bool, same shape, or None
        False where the value is missing; None when none is.
    weights : ndarray of float64, shape (*cells), or None
    where : tuple
        Index of these cells in the arrays of the state.
    """

    values: Array
    valid: BoolArray | None
    weights: FloatArray | None
    where: tuple[Any, ...]

    def filled(self, neutral: float | int) -> Array:
        """The values as accumulators hold them (float64 or int64), ``neutral`` where missing."""
        values = self.values.astype(exact(self.values.dtype))
        if self.valid is not None:
            np.copyto(values, neutral, where=~self.valid)
        return values


class State(Mapping[str, Array]):
    """Accumulators over a box of cells; ``state[name]`` has shape (*leading, *box.shape).

    Attributes
    ----------
    box : Box over the patch axes
    leading : tuple of int
    coverage : Coverage
        Counts of valid contributions and sums of weights.
    """

    def __init__(
        self,
        arrays: dict[str, Array],
        empty: Mapping[str, Any],
        coverage: Coverage,
    ) -> None:
        self._arrays, self._empty, self.coverage = arrays, empty, coverage

    @property
    def box(self) -> Box:
        """The cells this state is about."""
        return self.coverage.box

    @property
    def leading(self) -> tuple[int, ...]:
        """Shape of the axes before the patch axes."""
        return self.coverage.leading

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays that exist now."""
        held = [*self._arrays.values(), self.coverage.n, self.coverage.weight]
        return sum(array.nbytes for array in held if array is not None)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def head(self, rows: int) -> State:
        """The first rows of the first patch axis, as views."""
        at = row_index(self.box.ndim, slice(0, rows))
        arrays = {name: array[at] for name, array in self._arrays.items()}
        return State(arrays, self._empty, self.coverage.head(rows))

    def advance(self, rows: int) -> None:
        """Forget the first rows; as many empty ones appear at the end."""
        for name, array in self._arrays.items():
            move_up(array, rows, self.box.ndim, self._empty[name])
        self.coverage.advance(rows)


class Aggregation(Configurable):
    """Base of aggregations; subclasses are frozen dataclasses.

    Attributes
    ----------
    streaming_safe : bool
        Whether a plain ``merge`` keeps a bounded number of accumulators per cell.
    weighted : bool
        Whether the window's weights matter; if not, every cell of a patch counts the same.
    """

    streaming_safe: ClassVar[bool] = True
    weighted: ClassVar[bool] = False

    @abstractmethod
    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[npt.DTypeLike, Any]]:
        """Per accumulator, its dtype and value before any patch; ``dtype`` is the operator's."""

    @abstractmethod
    def update(self, state: State, patch: Contribution) -> None:
        """Add one patch to ``state[...][patch.where]``."""

    @abstractmethod
    def finalize(self, state: State) -> Array:
        """Values per cell, shape (*leading, *box.shape); cells without an answer hold anything."""

    def merge(self, left: State, right: State) -> State:
        """Combine states over the same box; ``left`` holds the earlier ordinals and is changed."""
        raise NotImplementedError(f"{type(self).__name__} does not merge states")

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Default dtype of the output, given the operator's."""
        return dtype

    def answered(self, state: State) -> BoolArray | None:
        """Cells that have an answer, broadcastable to the state's arrays; None when all have."""
        return state.coverage.answered()

    # ---- the same for all ------------------------------------------------------------------

    def init(
        self,
        grid: PatchGrid,
        box: Box,
        leading: tuple[int, ...] = (),
        dtype: npt.DTypeLike = np.float64,
        complete: bool = True,
    ) -> State:
        """Accumulators before any patch.

        Parameters
        ----------
        grid : PatchGrid
        box : Box over the patch axes
        leading : tuple of int
            Shape of the operator's result before its patch axes.
        dtype
            Of the operator's result.
        complete : bool
            See :class:`~geopatch_dask.aggregation.coverage.Coverage`.
        """
        table = self.accumulators(np.dtype(dtype))
        arrays = {
            name: np.full(leading + box.shape, start, kind) for name, (kind, start) in table.items()
        }
        empty = {name: start for name, (_, start) in table.items()}
        return State(arrays, empty, Coverage(grid, box, leading, complete))

    def add(
        self,
        state: State,
        cells: Box,
        values: Array,
        weights: FloatArray | None,
        missing: float | int | None = None,
    ) -> None:
        """Add one patch: count its valid cells, then :meth:`update`.

        Parameters
        ----------
        cells : Box inside ``state.box``
        values : ndarray, shape (*leading, *cells.shape)
        weights : ndarray of float64, shape ``cells.shape``, or None
        missing : number or None
            A value that means "no answer", besides NaN.
        """
        valid = valid_cells(values, missing)
        state.coverage.add(cells, weights, valid)
        self.update(state, Contribution(values, valid, weights, cells.index(state.box.start)))

    def bytes_per_cell(self, dtype: npt.DTypeLike) -> int:
        """Bytes of accumulators per cell and leading entry, counts and weights not included."""
        return sum(
            np.dtype(kind).itemsize for kind, _ in self.accumulators(np.dtype(dtype)).values()
        )

    def collect(
        self, patches: Iterable[Patch], grid: PatchGrid, output: Output | None = None
    ) -> Array:
        """The in-RAM reference: all patches of an iterable, over the whole domain.

        Patches may be fewer than the grid has, or repeated; they are added in the order given.
        """
        wanted = output or Output()
        state: State | None = None
        seen: set[int] = set()
        first: Array = np.empty(0)
        for patch in patches:
            if state is None:
                first = patch.data
                leading = first.shape[: first.ndim - len(grid.dims)]
                state = self.init(grid, grid.box, leading, first.dtype, complete=False)
            _check(patch, state, first.dtype)
            if patch.ordinal in seen:
                state.coverage.analytic = False  # its weights were not foreseen
            seen.add(patch.ordinal)
            cells = patch.footprint
            values = patch.data[cells.index(patch.indices.start)]
            weights = grid.weights(patch.anchor, cells) if self.weighted else None
            if cells:
                self.add(state, cells, values, weights, wanted.missing)
        if state is None:
            leading = tuple(grid.domain.size(dim) for dim in grid.riding)
            state = self.init(grid, grid.box, leading, np.float64, complete=False)
            first = np.empty(0)
        dtype = checked_dtype(wanted.dtype or self.result_dtype(first.dtype))
        values, answered = self.finalize(state), self.answered(state)
        return settle(values, answered, dtype, fill_for(dtype, wanted.fill_value))[0]


def _check(patch: Patch, state: State, dtype: np.dtype[Any]) -> None:
    expected = state.leading + patch.indices.shape
    if patch.data.shape != expected:
        raise OperatorError(
            f"patch {patch.ordinal} at {patch.anchor} has shape {patch.data.shape}, "
            f"{expected} was expected: leading axes of the first patch, then {patch.indices.shape}"
        )
    if patch.data.dtype != dtype:
        raise OperatorError(
            f"patch {patch.ordinal} at {patch.anchor} has dtype {patch.data.dtype}, the first had "
            f"{dtype}; let the operator return one dtype always (array.astype(...))"
        )


def valid_cells(values: Array, missing: float | int | None) -> BoolArray | None:
    """Where values are neither NaN nor ``missing``; None when all are valid."""
    valid: BoolArray | None = None
    # min() is NaN as soon as one value is, and needs no temporary array.
    if values.dtype.kind == "f" and values.size and np.isnan(values.min()):
        valid = ~np.isnan(values)
    if missing is not None and missing == missing:
        hit = values == missing
        if hit.any():
            valid = ~hit if valid is None else valid & ~hit
    return valid


def exact(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The accumulator type that holds every value of a dtype: float64, int64 or uint64."""
    if dtype.kind == "f":
        return np.dtype(np.float64)
    return np.dtype(np.uint64 if dtype == np.uint64 else np.int64)


def averaged(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of an average: floats keep theirs, integers become the float that holds them.

    >>> averaged(np.dtype("uint8")), averaged(np.dtype("float32")), averaged(np.dtype("int32"))
    (dtype('float32'), dtype('float32'), dtype('float64'))
    """
    if dtype.kind == "f":
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
