"""Super-tiles as small arrays: what state each is in, and how long it took.

A map of a run must cost the same for a hundred super-tiles and for a hundred thousand.  So records
are first painted onto the grid of super-tiles, and that is then coarsened to at most 256 x 256
cells.  A cell keeps the *worst* state within it, because one failure in ten thousand is what one
looks for, and the *mean* of the seconds.

Records of another layout are painted where their cells are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import GeopatchError, RecordError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.store.records import Record

__all__ = ["COLOURS", "MOST", "STATES", "Mosaic", "Survey", "busy", "layout_of", "survey"]

#: States from best to worst; the position is the code in an array.  ``gaps`` is done, but for
#: patches that failed and were left out, or cells that no patch reached.
STATES = ("empty", "done", "gaps", "pending", "failed")
_EMPTY, _DONE, _GAPS, _PENDING, _FAILED = range(len(STATES))
#: One colour per state; told apart by the colour-blind, too (Okabe and Ito, 2008).
COLOURS = {
    "empty": "#BBBBBB",
    "done": "#009E73",
    "gaps": "#E69F00",
    "pending": "#F5F5F5",
    "failed": "#D55E00",
}
#: Most cells of a map along an axis.
MOST = 256
#: More seconds than this are a mistake of whoever wrote the record.
_LONGEST = 1e9


@dataclass(frozen=True)
class Mosaic:
    """A picture of super-tiles over the last two patch axes.

    Parameters
    ----------
    states : int8 array, shape (rows, columns)
        Codes of :data:`STATES`; the worst of the super-tiles that a cell stands for.
    seconds : float64 array, shape (rows, columns)
        Mean over those; NaN where nothing was finished.
    block : tuple of int
        Super-tiles per cell, along both axes.
    cells : tuple of int
        Cells of the output per cell of the picture.
    shape : tuple of int
        Cells of the output.
    dims : tuple of str
        Names of the two axes; "" for the first one of a strip.
    stacked : int
        Super-tiles along the axes that are not shown, 1 where there are none.
    """

    states: npt.NDArray[np.int8]
    seconds: npt.NDArray[np.float64]
    block: tuple[int, int]
    cells: tuple[int, int]
    shape: tuple[int, int]
    dims: tuple[str, str]
    stacked: int


@dataclass(frozen=True)
class Survey:
    """States and seconds over the whole grid of super-tiles.

    Parameters
    ----------
    layout : Layout
    states : int8 array, shape ``layout.counts``
        Codes of :data:`STATES`.
    seconds : float64 array, shape ``layout.counts``
        Worker time; NaN where nothing was finished.
    """

    layout: Layout
    states: npt.NDArray[np.int8]
    seconds: npt.NDArray[np.float64]

    @property
    def counts(self) -> dict[str, int]:
        """Super-tiles by state."""
        found = np.bincount(self.states.ravel(), minlength=len(STATES))
        return dict(zip(STATES, found.tolist(), strict=True))

    def mosaic(self, most: int = MOST) -> Mosaic:
        """A picture of at most ``most`` x ``most`` cells."""
        layout, leading = self.layout, tuple(range(self.states.ndim - 2))
        if self.states.ndim == 1:
            states, seconds = self.states[None], self.seconds[None]
            tile, shape, dims = (1, layout.tile[0]), (1, layout.shape[0]), ("", layout.dims[0])
        else:
            states, seconds = self.states.max(axis=leading), _mean(self.seconds, leading)
            tile, shape, dims = (_two(v) for v in (layout.tile, layout.shape, layout.dims))
        block = (-(-states.shape[0] // most), -(-states.shape[1] // most))
        known = np.isfinite(seconds)
        total = _blocks(np.add, np.where(known, seconds, 0.0), block)
        count = _blocks(np.add, known.astype(np.float64), block)
        return Mosaic(
            states=_blocks(np.maximum, states, block),
            seconds=_ratio(total, count),
            block=block,
            cells=(tile[0] * block[0], tile[1] * block[1]),
            shape=shape,
            dims=dims,
            stacked=self.states.size // states.size,
        )


def layout_of(plan: Mapping[str, Any]) -> Layout:
    """The super-tiles of the JSON of a plan.

    Raises
    ------
    RecordError
        When it does not say how the output is cut.
    """
    try:
        stored = plan["layout"]
        return Layout(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    except (GeopatchError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(
            f"plan.json does not say how the output is cut ({type(error).__name__}: {error})"
        ) from None


def survey(layout: Layout, records: Sequence[Record]) -> Survey:
    """Paint records onto the grid of super-tiles.

    Parameters
    ----------
    layout : Layout
    records : sequence of Record
        Of this layout or another; done, empty and failed.
    """
    inside = [r for r in records if _fits(r.box, layout)]
    states = np.full(layout.counts, _EMPTY, np.int8)
    failed = np.zeros(layout.counts, bool)
    known, seconds = np.zeros(layout.counts, bool), np.zeros(layout.counts)
    for record, where in zip(inside, _places(layout, layout.tile, inside), strict=True):
        if record.state == "failed":
            failed[where] = True
            continue
        part = states[where]
        np.maximum(part, _code(record), out=part)
        # What took several super-tiles of this layout is shared out evenly.
        seconds[where] += busy(record) / part.size
        known[where] = True
    # A failure counts only where nobody has finished the cells since.
    still = np.where(failed, _FAILED, _PENDING)
    states = np.where(_covered(layout, inside), states, still).astype(np.int8)
    return Survey(layout, states, np.where(known, seconds, np.nan))


def busy(record: Record) -> float:
    """Seconds of all phases of a super-tile; a number that can be drawn, whatever was recorded."""
    try:
        return min(float(sum(record.seconds.values())), _LONGEST)
    except OverflowError:  # whole numbers may have any length in JSON
        return _LONGEST


def _code(record: Record) -> int:
    if record.failed_patches or record.uncovered:
        return _GAPS
    return _EMPTY if record.state == "empty" else _DONE


def _covered(layout: Layout, records: Sequence[Record]) -> npt.NDArray[np.bool_]:
    """Super-tiles wholly covered by finished boxes: the opposite of :meth:`Layout.unfinished`.

    All at once, because there may be a hundred thousand.
    """
    done = [record for record in records if record.state != "failed"]
    units = np.zeros([-(-n // u) for n, u in zip(layout.shape, layout.unit, strict=True)], bool)
    for where in _places(layout, layout.unit, done, whole=True):
        units[where] = True
    for axis, (tile, unit, count) in enumerate(
        zip(layout.tile, layout.unit, layout.counts, strict=True)
    ):
        units = np.logical_and.reduceat(units, np.arange(count) * (tile // unit), axis=axis)
    return units


def _places(
    layout: Layout, size: tuple[int, ...], records: Sequence[Record], whole: bool = False
) -> Iterator[tuple[slice, ...]]:
    """Which tiles of a size share cells with each record, or lie wholly in it."""
    if not records:
        return
    step, shape = np.array(size), np.array(layout.shape)
    start = np.array([r.box.start for r in records])
    stop = np.array([r.box.stop for r in records])
    first = -(-start // step) if whole else start // step
    last = np.where((stop == shape) | (not whole), -(-stop // step), stop // step)
    for a, b in zip(first.tolist(), last.tolist(), strict=True):
        yield tuple(map(slice, a, b))


def _fits(box: Box, layout: Layout) -> bool:
    return len(box.start) == len(layout.shape) and all(
        0 <= a < b <= n for a, b, n in zip(box.start, box.stop, layout.shape, strict=True)
    )


def _two(values: tuple[Any, ...]) -> tuple[Any, Any]:
    return values[-2], values[-1]


def _mean(values: npt.NDArray[np.float64], axes: tuple[int, ...]) -> npt.NDArray[np.float64]:
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=axes), known.sum(axis=axes))


def _ratio(total: Any, count: Any) -> npt.NDArray[np.float64]:
    """NaN where nothing was counted."""
    found = np.full(np.shape(count), np.nan)
    np.divide(total, count, out=found, where=count > 0)
    return found


def _blocks(join: np.ufunc, values: npt.NDArray[Any], block: tuple[int, int]) -> npt.NDArray[Any]:
    """Every ``block`` of values as one; the last ones may be smaller."""
    for axis, step in enumerate(block):
        values = join.reduceat(values, np.arange(0, values.shape[axis], step), axis=axis)
    return values
