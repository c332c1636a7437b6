"""Two passes: a statistic first, then every operator call with the result at hand.

The context is decided like everything else at plan time (which statistic, over what), computed
once per target, and recorded beside it, so that a resumed run reads it instead of computing it
again.  What is recorded is the *state* of the statistic, byte for byte; what operators get is
always ``finalize`` of that state.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from geopatch_dask.aggregation.passes import FieldPass, OutputPass, Pass, banded
from geopatch_dask.aggregation.statistic import Statistic, StatisticState, merge_tree
from geopatch_dask.errors import OptionError, RecordError
from geopatch_dask.fields.base import Field
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.identity import described
from geopatch_dask.planning.operator import Operator

__all__ = ["CONTEXT_FILE", "Context", "state_from_json", "state_to_json"]

CONTEXT_FILE = "context.json"
SCHEMA = 1


@dataclass(frozen=True)
class Context:
    """What pass 1 does.

    Parameters
    ----------
    statistic : Statistic
    over : {"field", "output"}
    fit : Operator or None
        What runs in a pass over the output; None: the operator of the plan, with context None.
    """

    statistic: Statistic
    over: str = "field"
    fit: Operator | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.statistic, Statistic):
            raise OptionError(
                f"context must be a Statistic such as MeanStd(), got {self.statistic!r}"
            )
        if self.over not in ("field", "output"):
            raise OptionError(f"over {self.over!r} is neither 'field' nor 'output'")
        if self.fit is not None and self.over != "output":
            raise OptionError("fit= runs in a pass over the output; say over='output'")

    @classmethod
    def of(cls, statistic: Statistic, over: Operator | Callable[..., Any] | str) -> Context:
        """A first pass over the field, the output, or what another operator returns."""
        if isinstance(over, str) and ":" not in over:
            return cls(statistic, over)
        return cls(statistic, "output", Operator.of(over))

    def identity(self) -> dict[str, Any]:
        """What decides the statistic, as JSON."""
        return {
            "statistic": described(self.statistic),
            "over": self.over,
            "fit": self.fit and self.fit.identity(),
        }

    def source(self, field: Field, grid: PatchGrid, operator: Operator) -> Pass:
        """The leaves of pass 1."""
        if self.over == "field":
            return FieldPass(field, grid)
        first = self.first(operator)
        return OutputPass(field, grid, partial(first.run, scale=None), first.batch or 1)

    def first(self, operator: Operator) -> Operator:
        """What runs in a pass over the output."""
        return self.fit if self.fit is not None else operator

    def standin(self, field: Field, patcher: Patcher, operator: Operator) -> dict[str, Any]:
        """A context of the right shape from three patches, to try the operator with."""
        n = patcher.n_anchors(field)
        states: list[StatisticState] = []
        for ordinal in sorted({0, n // 2, n - 1}) if n else []:
            patch = patcher.patch_at(field, ordinal)
            result = patch.data
            if self.over == "output":
                result = self.first(operator).run([patch], scale=None)[0]
            values = banded(result, patch)
            state = self.statistic.init(len(values))
            keys = np.arange(values.shape[1], dtype=np.uint64)
            self.statistic.update(state, values, keys)
            states += [state, self.statistic.init(len(values))]  # also of one patch: does it merge?
        return dict(self.statistic.finalize(merge_tree(self.statistic, states))) if states else {}


def state_to_json(state: StatisticState, fingerprint: str) -> bytes:
    """A state as JSON, its arrays byte for byte."""
    arrays = {
        name: {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(),
        }
        for name, array in state.items()
    }
    document = {"schema": SCHEMA, "fingerprint": fingerprint, "state": arrays}
    return json.dumps(document).encode()


def state_from_json(data: bytes, fingerprint: str) -> StatisticState:
    """The inverse of :func:`state_to_json`.

    Raises
    ------
    RecordError
        For a torn or foreign record: it is never trusted.
    """
    try:
        document: Any = json.loads(data)
        if document["schema"] != SCHEMA or document["fingerprint"] != fingerprint:
            raise RecordError(f"{CONTEXT_FILE} is of another version or plan")
        return {name: _array(entry) for name, entry in document["state"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{CONTEXT_FILE} cannot be read ({error}); was it cut short?") from None


def _array(entry: Mapping[str, Any]) -> Any:
    dtype = np.dtype(entry["dtype"])
    if dtype.hasobject:
        raise RecordError(f"{CONTEXT_FILE} holds Python objects, which are never loaded")
    data = base64.b64decode(entry["data"], validate=True)
    return np.frombuffer(data, dtype).reshape(entry["shape"]).copy()
