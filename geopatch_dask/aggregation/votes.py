"""Votes: every patch has one per cell, and the majority wins; ties go to the lowest class.

Both kinds give three arrays: the winning class, its share of the votes, and how many valid votes
the cell got.  Votes are counted in integers, probabilities summed in float64 in ordinal order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import Aggregation, Contribution, Part, State, valid_cells
from geopatch_dask.aggregation.coverage import BoolArray
from geopatch_dask.errors import OperatorError, OptionError
from geopatch_dask.patch.geometry import cells_of

__all__ = ["HardVote", "SoftVote"]

Array = npt.NDArray[Any]
Leading = tuple[int, ...]
#: Bytes per cell that :func:`_results` needs beyond what it returns: a sum, and one comparison.
FINALIZING = 9
#: Labels beyond it are mistakes, and no reason for more classes: a state counts each class.
MOST_CLASSES = 1 << 16


def _parts(leading: Leading, k: int) -> dict[str, Part]:
    return {
        "": Part(leading, np.min_scalar_type(k), classes=k),
        "share": Part(leading, np.dtype(np.float32)),
        "votes": Part(leading, np.dtype(np.int32)),
    }


def _results(score: Array, votes: Array) -> dict[str, Array]:
    """Winner, share and count from scores with the class axis first.

    Class by class, in this order: no copy of the scores is made, however many classes there are,
    and the sum over classes does not depend on the shape of what is summed together.
    """
    best, total = score[0].astype(np.float64), score[0].astype(np.float64)
    winner = np.zeros(best.shape, np.int64)
    for label in range(1, len(score)):
        better = score[label] > best  # the first of equals stays
        np.copyto(winner, label, where=better)
        np.copyto(best, score[label], where=better)
        total += score[label]
    with np.errstate(invalid="ignore"):  # infinity over infinity is NaN: no share
        np.divide(best, np.maximum(total, np.finfo(np.float64).tiny, out=total), out=best)
    return {"": winner, "share": best, "votes": np.broadcast_to(votes, winner.shape)}


@dataclass(frozen=True)
class HardVote(Aggregation):
    """Majority of class labels.

    Parameters
    ----------
    k : int
        Number of classes; labels are 0 .. k-1, whole numbers.

    Notes
    -----
    The operator returns labels, shape (*leading, *patch), integer, or float with NaN for "no
    vote".  Arrays: the winner (fill: the largest value of its type), ``share`` of the valid votes
    (float32), ``votes`` (int32, 0 where patches reach the cell but none votes).
    """

    k: int

    def __post_init__(self) -> None:
        cells_of((self.k,), "k")

    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[Any, ...]]:
        """One count per class."""
        return {"votes": (np.int32, 0, (self.k,))}

    def update(self, state: State, patch: Contribution) -> None:
        """Count the labels."""
        labels = patch.filled(0)
        low, high = labels.min(initial=0), labels.max(initial=0)
        if low < 0 or high >= self.k:
            raise OperatorError(self._told(low, high))
        whole = labels.astype(np.int64, copy=False)
        if labels.dtype.kind == "f" and (whole != labels).any():
            raise OperatorError("HardVote got labels that are no whole numbers; use SoftVote")
        for label in np.flatnonzero(np.bincount(whole.reshape(-1))).tolist():
            hit = whole == label
            state["votes"][label][patch.where] += hit if patch.valid is None else hit & patch.valid

    def _told(self, low: Any, high: Any) -> str:
        """What is wrong with labels from ``low`` to ``high``, and what helps."""
        wrong = low if low < 0 else high
        more = ""
        if self.k <= high < MOST_CLASSES:  # not for infinity, and what no network has
            more = f"give HardVote at least {int(high) + 1} classes, or "
        return (
            f"HardVote({self.k}) got class {wrong:g}; labels are 0 .. {self.k - 1}: {more}"
            "mark 'no vote' with NaN or missing="
        )

    def finalizing_bytes(self, dtype: np.dtype[Any]) -> int:
        """A sum and a comparison per cell, however many classes."""
        return FINALIZING

    def merge(self, left: State, right: State) -> State:
        """Add the counts."""
        left["votes"][...] += right["votes"]
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> dict[str, Array]:
        """Winner, share, votes."""
        votes = state["votes"]
        return _results(votes, state.coverage.counts())

    def answered(self, state: State) -> dict[str, BoolArray | None]:
        """Votes are an answer wherever a patch reaches; winner and share need one vote."""
        voted = state.coverage.answered()
        return {"": voted, "share": voted, "votes": state.coverage.reached()}

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """Winner, share and votes."""
        return _parts(leading, self.k)


@dataclass(frozen=True)
class SoftVote(Aggregation):
    """Class of the largest summed probability.

    Parameters
    ----------
    k : int
        Number of classes.
    axis : int or str
        Which of the axes before the patch axes holds the classes, counted from the front of the
        operator's result for one patch (``0``), or from the last leading axis (``-1``); or its name
        in ``gp.Output(dims=...)``.  Patch axes come last in every result: an operator that has the
        classes behind them returns ``numpy.moveaxis(result, -1, 0)``.

    Notes
    -----
    The operator returns probabilities (or any non-negative scores), shape (*leading, *patch) with
    ``leading[axis] == k``.  A cell where any class is NaN has no vote.  Arrays as for
    :class:`HardVote`; ``share`` is the winner's share of the summed scores.
    """

    k: int
    axis: int | str = 0

    def __post_init__(self) -> None:
        cells_of((self.k,), "k")
        if isinstance(self.axis, bool) or not isinstance(self.axis, int | str):
            raise OptionError(f"axis must be a whole number, or a name, got {self.axis!r}")

    def named(self, dims: tuple[str, ...] | None) -> SoftVote:
        """The number of an axis that was named."""
        if isinstance(self.axis, int):
            return self
        if self.axis not in (dims or ()):
            there = f"only {', '.join(dims)}" if dims else "none at all"
            raise OptionError(
                f"SoftVote({self.k}): the output has no axis named {self.axis!r}, {there}; name "
                "all axes of the operator's result before the patch: gp.Output(dims=...)"
            )
        return replace(self, axis=(dims or ()).index(self.axis))

    def _from_front(self, n: int) -> int:
        """The class axis among ``n`` leading ones."""
        if isinstance(self.axis, str):
            raise OptionError(f"SoftVote axis {self.axis!r} has no number yet; call named() first")
        return self.axis + n if self.axis < 0 else self.axis

    def _position(self, leading: Leading) -> int:
        position = self._from_front(len(leading))
        if not 0 <= position < len(leading) or leading[position] != self.k:
            raise OperatorError(
                f"SoftVote({self.k}, axis={self.axis}) needs {self.k} classes there, but the "
                f"operator's axes before the patch are {leading}; name the one that holds them"
            )
        return position

    def accumulators(self, dtype: np.dtype[Any]) -> dict[str, tuple[Any, ...]]:
        """One sum per class: the class axis is one of the leading axes."""
        return {"score": (np.float64, 0.0)}

    def unseen(self, riding: Leading) -> Leading:
        """The classes, and the riding axes of the field."""
        position = self._from_front(len(riding) + 1)
        position = min(max(position, 0), len(riding))
        return (*riding[:position], self.k, *riding[position:])

    def counted(self, leading: Leading) -> Leading:
        """Votes are counted per cell, not per class."""
        position = self._position(leading)
        return leading[:position] + leading[position + 1 :]

    def valid(self, values: Array, missing: float | int | None, leading: Leading) -> Any:
        """A vote needs all classes."""
        each = valid_cells(values, missing)
        return None if each is None else each.all(axis=self._position(leading))

    def update(self, state: State, patch: Contribution) -> None:
        """Add the probabilities of valid votes."""
        values = patch.values.astype(np.float64)
        if (values < 0).any():
            raise OperatorError("SoftVote got negative scores; apply softmax first")
        if patch.valid is not None:
            gone = np.expand_dims(~patch.valid, self._position(state.leading))
            np.copyto(values, 0.0, where=gone)
        state["score"][patch.where] += values

    def finalizing_bytes(self, dtype: np.dtype[Any]) -> int:
        """As for hard votes, where each class is a leading entry."""
        return -(-FINALIZING // self.k)

    def merge(self, left: State, right: State) -> State:
        """Add the sums."""
        left["score"][...] += right["score"]
        left.coverage.absorb(right.coverage)
        return left

    def finalize(self, state: State) -> dict[str, Array]:
        """Winner, share, votes."""
        score = np.moveaxis(state["score"], self._position(state.leading), 0)
        return _results(score, state.coverage.counts())

    def answered(self, state: State) -> dict[str, BoolArray | None]:
        """Votes are an answer wherever a patch reaches; winner and share need one vote."""
        voted = state.coverage.answered()
        return {"": voted, "share": voted, "votes": state.coverage.reached()}

    def part_dims(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """All but the class axis."""
        position = self._from_front(len(dims))
        return dims[:position] + dims[position + 1 :]

    def parts(self, leading: Leading, dtype: np.dtype[Any]) -> dict[str, Part]:
        """Winner, share and votes, without the class axis."""
        return _parts(self.counted(leading), self.k)
