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

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.coverage import BoolArray, Coverage, move_up, row_index
from geopatch_dask.aggregation.output import settle
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.config import Configurable
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.window import FloatArray

__all__ = [
    "LAYERS",
    "Aggregation",
    "Contribution",
    "Part",
    "State",
    "averaged",
    "exact",
    "valid_cells",
]

Array = npt.NDArray[Any]

#: In the extra axes of an accumulator: as many as patches may reach one cell (K).
LAYERS = -1


@dataclass(frozen=True)
class Part:
    """One array that an aggregation produces.

    Parameters
    ----------
    leading : tuple of int
        Shape before the patch axes.
    dtype : numpy.dtype
        By default; the output may ask for another one for the main part.
    classes : int
        Whole numbers from 0 on that the dtype has to tell apart, besides the fill value.
    """

    leading: tuple[int, ...]
    dtype: np.dtype[Any]
    classes: int = 0


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
        Shape of the operator's result before its patch axes.
    coverage : Coverage
        Counts of valid contributions and sums of weights.
    """

    def __init__(
        self,
        arrays: dict[str, Array],
        empty: Mapping[str, Any],
        coverage: Coverage,
        leading: tuple[int, ...],
    ) -> None:
        self._arrays, self._empty = arrays, empty
        self.coverage, self.leading = coverage, leading

    @property
    def box(self) -> Box:
        """The cells this state is about."""
        return self.coverage.box

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

    def lengthen(self, name: str) -> Array:
        """The accumulator with one more empty entry along its first axis."""
        array = self._arrays[name]
        more = np.full((1, *array.shape[1:]), self._empty[name], array.dtype)
        self._arrays[name] = np.concatenate([array, more])
        return self._arrays[name]

    def head(self, rows: int) -> State:
        """The first rows of the first patch axis, as views."""
        at = row_index(self.box.ndim, slice(0, rows))
        arrays = {name: array[at] for name, array in self._arrays.items()}
        return State(arrays, self._empty, self.coverage.head(rows), self.leading)

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
    keyed : bool
        Whether results are rows of a table, one or several per patch, and not arrays of cells.

    inputs : tuple of str
        Names of the arrays that one estimate consists of (``("mu", "var")``): the operator returns
        a tuple of them or a dict, and they arrive stacked along a first axis.  Empty: one array.
    """

    streaming_safe: ClassVar[bool] = True
    weighted: ClassVar[bool] = False
    keyed: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[Any, ...]]:
        """What a cell needs, by name: ``(dtype, value before any patch)``.

        A third entry gives the lengths of extra axes in front; :data:`LAYERS` stands for K.
        ``dtype`` is the operator's.
        """

    @abstractmethod
    def update(self, state: State, patch: Contribution) -> None:
        """Add one patch to ``state[...][patch.where]``."""

    @abstractmethod
    def finalize(self, state: State) -> Array | dict[str, Array]:
        """Values per cell, shape (*leading, *box.shape), or a dict with one such array per part.

        Cells without an answer may hold anything.
        """

    def finalize_for(
        self, state: State, dtypes: Mapping[str, np.dtype[Any]]
    ) -> Array | dict[str, Array]:
        """What is rounded to the output dtypes: :meth:`finalize`, unless they matter before."""
        return self.finalize(state)

    def merge(self, left: State, right: State) -> State:
        """Combine states over the same box; ``left`` holds the earlier ordinals and is changed."""
        raise NotImplementedError(f"{type(self).__name__} does not merge states")

    def result_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Default dtype of the output, given the operator's; a bool has no room for a fill."""
        return np.dtype(np.uint8) if dtype.kind == "b" else dtype

    def parts(self, leading: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Part]:
        """The arrays that come out, by suffix of their name; the main one has none.

        Parameters
        ----------
        leading, dtype
            Of the operator's result.
        """
        return {"": Part(leading, self.result_dtype(dtype))}

    def part_dims(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the leading axes that come out, given those of the operator's result."""
        return dims

    def named(self, dims: tuple[str, ...] | None) -> Aggregation:
        """The same, where options may name the leading axes of the operator's result.

        Parameters
        ----------
        dims : tuple of str or None
            Those of the :class:`~geopatch_dask.aggregation.Output`.

        Raises
        ------
        OptionError
            For an axis that is not among them.
        """
        return self

    def labels(self) -> dict[str, tuple[float, ...]]:
        """Labels of leading axes that the aggregation adds."""
        return {}

    def answered(self, state: State) -> BoolArray | dict[str, BoolArray | None] | None:
        """Cells that have an answer, broadcastable to what comes out; None when all have.

        A dict where the parts differ.
        """
        return state.coverage.answered()

    def counted(self, leading: tuple[int, ...]) -> tuple[int, ...]:
        """The leading axes along which contributions are counted: all, unless some belong together.

        Raises
        ------
        OperatorError
            When the operator's leading axes are not what the aggregation needs.
        """
        return leading

    def unseen(self, riding: tuple[int, ...]) -> tuple[int, ...]:
        """Leading axes to assume of the operator's result where no patch shows any.

        Parameters
        ----------
        riding : tuple of int
            Lengths of the riding axes of the field.
        """
        return (len(self.inputs), *riding) if self.inputs else riding

    def valid(
        self, values: Array, missing: float | int | None, leading: tuple[int, ...]
    ) -> BoolArray | None:
        """Valid cells, shape (*counted, *cells); None when all are."""
        return valid_cells(values, missing)

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
        arrays, empty = {}, {}
        for name, (kind, start, *extra) in self.accumulators(np.dtype(dtype)).items():
            axes = [grid.most_layers if n == LAYERS else n for n in (extra[0] if extra else ())]
            arrays[name] = np.full((*axes, *leading, *box.shape), start, kind)
            empty[name] = start
        coverage = Coverage(grid, box, self.counted(leading), complete)
        return State(arrays, empty, coverage, leading)

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
        valid = self.valid(values, missing, state.leading)
        state.coverage.add(cells, weights, valid)
        contribution = Contribution(values, valid, weights, cells.index(state.box.start))
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN: missing, and counted
            self.update(state, contribution)

    def skip(self, state: State, cells: Box, weights: FloatArray | None) -> None:
        """Count a patch that has no result: all of its cells are missing."""
        state.coverage.add(cells, weights, np.zeros(cells.shape, bool))

    def bytes_per_cell(self, dtype: npt.DTypeLike, layers: int = 1) -> int:
        """Bytes of accumulators per cell and leading entry, counts and weights not included.

        Parameters
        ----------
        dtype
            Of the operator's result.
        layers : int
            K, see :attr:`~geopatch_dask.patch.grid.PatchGrid.most_layers`.
        """
        total = 0
        for kind, _, *extra in self.accumulators(np.dtype(dtype)).values():
            axes = [layers if n == LAYERS else n for n in (extra[0] if extra else ())]
            total += np.dtype(kind).itemsize * math.prod(axes)
        return total

    def finalizing_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes per cell and leading entry that :meth:`finalize` needs beyond what it returns."""
        return 0

    def collect(self, patches: Iterable[Patch], grid: PatchGrid, output: Any = None) -> Any:
        """The in-RAM reference; see :func:`geopatch_dask.aggregation.several.collect`."""
        from geopatch_dask.aggregation.several import collect  # several builds on this module

        return collect({"": self}, patches, grid, output)

    def settled(
        self, state: State, dtypes: Mapping[str, np.dtype[Any]], fills: Mapping[str, float | int]
    ) -> dict[str, tuple[Array, int]]:
        """Finalize a state and round every part to its output dtype.

        Parameters
        ----------
        state : State
        dtypes, fills : mapping
            Of every part.

        Returns
        -------
        dict of part to ``(array, cells that hold the fill value)``
        """
        found, answered = self.finalize_for(state, dtypes), self.answered(state)
        values = found if isinstance(found, dict) else {"": found}
        known = answered if isinstance(answered, dict) else dict.fromkeys(values, answered)
        return {
            part: settle(values[part], known[part], dtypes[part], fills[part]) for part in dtypes
        }


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
