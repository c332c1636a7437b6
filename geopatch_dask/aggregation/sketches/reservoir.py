"""A uniform sample without replacement: the k values whose places hash lowest.

Every place of a field has a number, its key; a hash of (seed, key) is a random priority that
depends on nothing else.  The k valid places of lowest priority are a uniform sample of all valid
places, and the lowest k of a union are among the lowest k of its parts::

    block 1    .03 .11 .26 | .40 ..      k = 3
    block 2    .07 .09 .31 | .35 ..
    merged     .03 .07 .09 |

which is why states are merged exactly, in any order, and weighted rightly by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.sketches.values import (
    EMPTY,
    Array,
    canonical,
    restored,
    rows_of,
    slices,
    whole_number,
)
from geopatch_dask.aggregation.statistic import Statistic, StatisticState
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.anchors import random_bits

__all__ = ["Reservoir"]

_LAST = np.uint64(2**64 - 1)
_ENTRY = ("hashes", "keys", "bits", "kinds")


@dataclass(frozen=True)
class Reservoir(Statistic):
    """A uniform random sample of the valid values, without replacement.

    Parameters
    ----------
    k : int, default 100
        How many values, up to 10 million; all of them where there are fewer.
    seed : int, default 0
        Another seed, another sample.

    Notes
    -----
    *Error*: none beyond that of sampling: each of the n valid places is in the sample with
    probability ``k / n``, and every set of k places is as likely as any other, as far as the hash
    is random.  A mean over the sample has the standard error ``sd sqrt((1 - k/n) / k)``; a share
    s, ``sqrt(s (1 - s) (1 - k/n) / k)``.

    The priority of a place is the same in every band, so that bands that are valid in the same
    places are sampled in the same places, and may be compared value by value.

    *Ties*: the hash is a bijection of the keys, so that two places never tie.  A key that is given
    twice is taken twice, in the order of the values.

    *Missing data*: NaN is never sampled; infinities are values.  Values come back exactly,
    integers beyond 2**53 too.

    *State*: ``25 k + 8`` bytes per band: 2.5 KB with the default.

    *Source*: bottom-k sampling: E. Cohen and H. Kaplan, "Summarizing data using bottom-k sketches",
    PODC 2007.

    Examples
    --------
    >>> sketch = Reservoir(k=3)
    >>> state = sketch.init(bands=1)
    >>> sketch.update(state, np.arange(1000.0)[None], np.arange(1000, dtype=np.uint64))
    >>> sketch.finalize(state)["n"].tolist(), sketch.finalize(state)["size"].tolist()
    ([1000], [3])
    """

    k: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number(self.k, "k of Reservoir", 1, 10_000_000))
        seed = whole_number(self.seed, "the seed", -(2**63), 2**64 - 1)
        object.__setattr__(self, "seed", seed)

    def init(self, bands: int) -> StatisticState:
        """No values: every place is empty, and hashes last."""
        return {
            "hashes": np.full((bands, self.k), _LAST),
            "keys": np.full((bands, self.k), _LAST),
            "bits": np.zeros((bands, self.k), np.uint64),
            "kinds": np.full((bands, self.k), EMPTY, np.uint8),
            "n": np.zeros(bands, np.int64),
        }

    def update(
        self, state: StatisticState, values: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
    ) -> None:
        """Keep the k valid values whose keys hash lowest.

        Raises
        ------
        OptionError
            When there is not one key per value.
        """
        rows = rows_of(values, len(state["n"]))
        places = np.asarray(keys)
        if places.shape != rows.shape[1:] or places.dtype.kind not in "iu":
            raise OptionError(
                f"Reservoir needs one integer key per value: {rows.shape[1]} values, keys of shape "
                f"{places.shape} and dtype {places.dtype}"
            )
        places = places.astype(np.uint64, copy=False)
        for part in slices(rows.shape[1]):
            hashes = random_bits(self.seed, places[part], stream=0)
            for band, row in enumerate(rows):
                self._offer(state, band, row[part], places[part], hashes)

    def _offer(
        self,
        state: StatisticState,
        band: int,
        piece: Array,
        places: npt.NDArray[np.uint64],
        hashes: npt.NDArray[np.uint64],
    ) -> None:
        """Take from one piece of one band what belongs into the sample."""
        valid = None
        if piece.dtype.kind == "f":
            valid = ~np.isnan(piece)
        state["n"][band] += len(piece) if valid is None else np.count_nonzero(valid)
        low = hashes <= state["hashes"][band, -1]  # equal: the same key again
        if valid is not None:
            low &= valid
        chosen = np.flatnonzero(low)
        if len(chosen) > self.k:
            limit = np.partition(hashes[chosen], self.k - 1)[self.k - 1]
            chosen = chosen[hashes[chosen] <= limit]
        if not len(chosen):
            return
        bits, kinds = canonical(piece[chosen])
        if kinds is None:
            kinds = np.zeros(len(bits), np.uint8)
        self._keep(state, band, (hashes[chosen], places[chosen], bits, kinds))

    def _keep(self, state: StatisticState, band: int, offered: tuple[Array, ...]) -> None:
        """The k lowest of what one band holds and of what is offered, in order."""
        columns = [
            np.concatenate([state[name][band], more])
            for name, more in zip(_ENTRY, offered, strict=True)
        ]
        hashes, keys, bits, kinds = columns
        order = np.lexsort((bits, kinds, keys, hashes))[: self.k]  # EMPTY is the largest kind
        for name, column in zip(_ENTRY, columns, strict=True):
            state[name][band] = column[order]

    def merge(self, left: StatisticState, right: StatisticState) -> StatisticState:
        """The k lowest of both."""
        merged = {name: array.copy() for name, array in left.items()}
        for band in range(len(merged["n"])):
            self._keep(merged, band, tuple(right[name][band] for name in _ENTRY))
        merged["n"] += right["n"]
        return merged

    def finalize(self, state: StatisticState) -> dict[str, Array]:
        """The sample.

        Returns
        -------
        dict
            ``values``: shape (bands, k), in the order of the hashes, which is random; float64, or
            an integer dtype where float64 is not exact. ``keys``: uint64, where they lie. ``size``:
            how many places of each band are filled, the others hold NaN (or 0, for integers).
            ``n``: valid values seen.
        """
        return {
            "values": restored(state["bits"], state["kinds"]),
            "keys": state["keys"].copy(),
            "size": np.count_nonzero(state["kinds"] != EMPTY, axis=1),
            "n": state["n"].copy(),
        }
