"""What pass 1 of a two-pass job reduces to: four functions over values, not cells.

A statistic sees the values of a field (each cell once) or of an operator's output (each patch
once), block by block, in no particular place of its own: blocks are fixed boxes of cells, their
states are merged over a fixed binary tree, and the result therefore does not depend on the layout.
A statistic whose ``merge`` is commutative and exact (integers, maxima) does not even need the tree.

A state is a dictionary of numpy arrays, so it can be stored without pickling.

Writing your own::

    @dataclass(frozen=True)
    class Share(gp.Statistic):
        \"\"\"Share of valid values above a limit, per band.\"\"\"

        limit: float

        def init(self, bands):
            return {"n": np.zeros(bands, np.int64), "above": np.zeros(bands, np.int64)}

        def update(self, state, values, keys):
            state["n"] += np.count_nonzero(~np.isnan(values), axis=1)
            state["above"] += np.count_nonzero(values > self.limit, axis=1)

        def merge(self, left, right):
            return {name: left[name] + right[name] for name in left}

        def finalize(self, state):
            return {"share": state["above"] / np.maximum(state["n"], 1)}
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import Configurable

__all__ = ["Statistic", "StatisticState", "joined", "merge_tree"]

StatisticState = dict[str, npt.NDArray[Any]]


class Statistic(Configurable):
    """Base of statistics; subclasses are frozen dataclasses."""

    @abstractmethod
    def init(self, bands: int) -> StatisticState:
        """A state that has seen nothing, for values of ``bands`` bands."""

    @abstractmethod
    def update(
        self, state: StatisticState, values: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> None:
        """Add values to a state, in place.

        Parameters
        ----------
        state : dict of ndarray
        values : ndarray, shape (bands, n)
            Native dtype; NaN is missing.
        keys : ndarray of uint64, shape (n,)
            A number for each place, unique in the field: the same wherever the place is computed.
        """

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """Combine two states; may reuse ``left``, and leaves ``right`` as it is.

        What it gives must not depend on how values were split over states, nor on their order
        (beyond the rounding of sums): :func:`geopatch_dask.testing.assert_statistic` tells.

        Raises
        ------
        OptionError
            Unless it is defined.  A statistic without it can only summarise single blocks, see
            :func:`geopatch_dask.per_block`.
        """
        raise OptionError(
            f"{type(self).__name__} does not merge: a first pass combines the states of many "
            "blocks; define merge(self, left, right)"
        )

    @abstractmethod
    def finalize(self, state: StatisticState) -> Mapping[str, Any]:
        """What the state says: numbers or small arrays by name."""


def joined(statistic: Statistic, left: StatisticState, right: StatisticState) -> StatisticState:
    """Merge two states, and check that a state comes out.

    Raises
    ------
    OptionError
        When the statistic does not merge, or returns something else.
    """
    names = set(right)
    found: Any = statistic.merge(left, right)
    named = isinstance(found, dict) and set(found) == names
    if named and all(isinstance(array, np.ndarray) for array in found.values()):
        return dict(found)
    told = f"a dict with {', '.join(map(str, found))}" if isinstance(found, dict) else repr(found)
    raise OptionError(
        f"{type(statistic).__name__}.merge returned {told:.80}; it must return a state, a dict of "
        f"arrays with {', '.join(sorted(names))}"
    )


def merge_tree(statistic: Statistic, states: Sequence[StatisticState]) -> StatisticState:
    """Merge states, one per block and in order, over a balanced binary tree.

    Raises
    ------
    ValueError
        When there is none.
    """
    if not states:
        raise ValueError("no state to merge")
    level = list(states)
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [joined(statistic, *pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]
