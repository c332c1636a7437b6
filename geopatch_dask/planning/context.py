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
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from geopatch_dask.aggregation import Output
from geopatch_dask.aggregation.passes import (
    FieldPass,
    OutputPass,
    Pass,
    banded,
    pass_bytes,
    reduce_leaves,
)
from geopatch_dask.aggregation.several import keyed_of, members_of
from geopatch_dask.aggregation.statistic import Statistic, StatisticState, joined, merge_tree
from geopatch_dask.errors import OptionError, RecordError
from geopatch_dask.fields.base import Field
from geopatch_dask.patch.grid import UNIT, PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.identity import described
from geopatch_dask.planning.operator import Operator

__all__ = [
    "CONTEXT_FILE",
    "Context",
    "in_two_passes",
    "missing_of",
    "reduced",
    "state_from_json",
    "state_to_json",
]

AnyOperator = Operator | Callable[..., Any] | str

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
    missing : float, int or None
        By which the operator of the plan says "no answer", see :class:`~geopatch_dask.Output`.
    shape : (int, int)
        Bands of what the statistic sees of a patch, and values per band, as far as they are known.
    """

    statistic: Statistic
    over: str = "field"
    fit: Operator | None = None
    missing: float | int | None = None
    shape: tuple[int, int] = (0, 0)

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
    def of(
        cls, statistic: Statistic, over: AnyOperator, missing: float | int | None = None
    ) -> Context:
        """A first pass over the field, the output, or what another operator returns."""
        if isinstance(over, str) and ":" not in over:
            return cls(statistic, over, None, missing if over == "output" else None)
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
        first, cells = self.first(operator), self._cells(grid)
        call = partial(first.run, scale=None)
        return OutputPass(field, cells, call, first.batch or 1, self.missing, self.shape)

    def bytes(self, field: Field, grid: PatchGrid, operator: Operator, slots: int) -> int:
        """What a worker slot holds in pass 1, beyond an idle worker and the operator."""
        return pass_bytes(self.source(field, grid, operator), self.statistic, slots)

    def _cells(self, grid: PatchGrid) -> PatchGrid:
        """The patches, at the scale of what is seen: another operator keeps that of the field."""
        return grid if self.fit is None else grid.variant(grid.weighted)

    def first(self, operator: Operator) -> Operator:
        """What runs in a pass over the output."""
        return self.fit if self.fit is not None else operator

    def standin(
        self, field: Field, patcher: Patcher, grid: PatchGrid, operator: Operator
    ) -> tuple[dict[str, Any], Context]:
        """A context from three patches, to try the operator with; and what they look like.

        Where the operator is not to be tried, one of the same shape that has seen nothing.
        """
        n = len(grid.anchors)
        states: list[StatisticState] = []
        shape = self.shape
        tried = self.over == "field" or self.first(operator).trial
        for ordinal in sorted({0, n // 2, n - 1}) if n and tried else []:
            patch = patcher.patch_at(field, ordinal)
            values = self._seen(patch, grid, operator)
            state = self.statistic.init(len(values))
            keys = np.arange(values.shape[1], dtype=np.uint64)
            self.statistic.update(state, values, keys)
            states += [state, self.statistic.init(len(values))]  # also of one patch: does it merge?
            shape = (len(values), max(shape[1], values.shape[1]))
        if not tried:
            states = [self.statistic.init(shape[0]) for _ in range(2)]
        known = self.statistic.finalize(merge_tree(self.statistic, states)) if states else {}
        return dict(known), replace(self, shape=shape if self.over == "output" else (0, 0))

    def _seen(self, patch: Patch, grid: PatchGrid, operator: Operator) -> Any:
        """The values of one patch."""
        if self.over == "field":
            return banded(patch.data, patch.indices, patch.indices)
        cells = self._cells(grid)
        written = cells.written(patch.indices)
        result = self.first(operator).run([patch], scale=None)[0]
        return banded(result, written, written.intersect(cells.box), self.missing)


def missing_of(output: Any) -> float | int | None:
    """By which value an operator that returns one array says "no answer"."""
    return output.missing if isinstance(output, Output) else None


def _scale_of(output: Any) -> Fraction:
    """Cells of the output per cell of the field; outputs of one run share it."""
    given = output if isinstance(output, Mapping) else {"": output or Output()}
    return next((one.factor for one in given.values()), UNIT)


def reduced(
    patcher: Patcher,
    field: Any,
    statistic: Statistic,
    over: AnyOperator = "field",
    operator: AnyOperator | None = None,
    output: Any = None,
) -> dict[str, Any]:
    """A first pass in this process; see :meth:`geopatch_dask.Patcher.reduce`.

    Raises
    ------
    OptionError
        When ``over`` is unknown, or needs an operator; when the statistic does not merge.
    """
    first = Context.of(statistic, over, missing_of(output))
    if first.over == "output" and first.fit is None and operator is None:
        raise OptionError('over="output" reduces what an operator returns: give one')
    grid = patcher.grid(field.domain)
    grid = grid.variant(grid.weighted, _scale_of(output))
    source = first.source(field, grid, Operator.of(np.positive if operator is None else operator))
    state = reduce_leaves(source, statistic, 0, source.leaves)
    if source.leaves < 2:  # nothing was merged: a plan would refuse what cannot be
        joined(statistic, {name: array.copy() for name, array in state.items()}, state)
    return dict(statistic.finalize(state))


def in_two_passes(
    patcher: Patcher,
    field: Any,
    operator: AnyOperator,
    statistic: Statistic,
    over: AnyOperator = "field",
    output: Any = None,
) -> Any:
    """Both passes in this process; see :meth:`geopatch_dask.Patcher.two_pass`."""
    run = replace(Operator.of(operator), context=True)
    context = reduced(patcher, field, statistic, over, run, output)
    keyed = keyed_of(members_of(patcher.aggregation))
    scale = _scale_of(output)
    patches = (
        patch.with_data(run.run([patch], scale, context, keyed)[0])
        for patch in patcher.split(field)
    )
    return patcher.merge(patches, field.domain, output)


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
