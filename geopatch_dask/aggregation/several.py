"""Several outputs of one operator, each with its own aggregation; and the in-RAM reference.

An operator may return one array, a tuple of arrays that belong together (``(mu, var)``), or a dict
with one entry per output.  :func:`entries` turns any of them into one array per aggregation, so
that everything after it works the same whether there is one output or ten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.aggregation.base import Aggregation, Part, State
from geopatch_dask.aggregation.keyed import ByIndex, Gathering, check_keyed_output
from geopatch_dask.aggregation.output import Output, checked_dtype, fill_for
from geopatch_dask.aggregation.strict import unbounded
from geopatch_dask.errors import OperatorError, OptionError
from geopatch_dask.patch.config import Configurable
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch

__all__ = [
    "Several",
    "array_name",
    "collect",
    "entries",
    "map_arrays",
    "members_of",
    "named",
    "outputs_for",
]

Array = npt.NDArray[Any]

BOUNDED = "a plan keeps them for a ring of rows only"
#: What needs a bounded number of accumulators per cell instead, for the warning.
SUBSTITUTES = {
    "Median": f"{BOUNDED}, and ApproxQuantile needs none at all",
    "Quantile": f"{BOUNDED}, and ApproxQuantile needs none at all",
    "Mode": f"{BOUNDED}; HardVote(k) counts classes instead",
}


@dataclass(frozen=True)
class Several(Configurable):
    """One aggregation per key of a dict that the operator returns.

    ``Patcher(aggregation={"height": OverlapAdd(), "class": HardVote(5)})`` makes one of these.

    Parameters
    ----------
    members : mapping of str to Aggregation
    """

    members: Mapping[str, Aggregation]

    def __post_init__(self) -> None:
        if not self.members or not all(
            isinstance(k, str) and k and isinstance(v, Aggregation) for k, v in self.members.items()
        ):
            raise OptionError("aggregation must map names to aggregations, at least one")
        object.__setattr__(self, "members", dict(self.members))

    @property
    def weighted(self) -> bool:
        """Whether all of them weigh; if not, patches are found by their whole extent."""
        return all(member.weighted for member in self.members.values())

    def collect(self, patches: Iterable[Patch], grid: PatchGrid, output: Any = None) -> Any:
        """The in-RAM reference: a dict of arrays."""
        return collect(self.members, patches, grid, output)


def members_of(aggregation: object) -> dict[str, Aggregation]:
    """Aggregations by the operator's key; a single one has the key ``""``.

    Raises
    ------
    OptionError
        For anything else.
    """
    if isinstance(aggregation, Several):
        return dict(aggregation.members)
    if isinstance(aggregation, Aggregation):
        return {"": aggregation}
    raise OptionError(f"{aggregation!r} is not an aggregation")


def outputs_for(members: Mapping[str, Aggregation], output: Any) -> dict[str, Output]:
    """One :class:`Output` per aggregation; those of a dict are named after their key.

    Raises
    ------
    OptionError
        For outputs of keys that have no aggregation.
    """
    given = dict(output) if isinstance(output, Mapping) else {}
    unknown = set(given) - set(members)
    if unknown:
        raise OptionError(
            f"output {min(unknown)!r} has no aggregation; there are {', '.join(map(repr, members))}"
        )
    if isinstance(output, Output):
        if set(members) != {""}:
            raise OptionError("give one Output per key: output={'name': gp.Output(...), ...}")
        return {"": output}
    return {key: given.get(key) or Output(name=key or "data") for key in members}


def named(
    members: Mapping[str, Aggregation], outputs: Mapping[str, Output]
) -> dict[str, Aggregation]:
    """The aggregations, with numbers for the axes that they name.

    Raises
    ------
    OptionError
        For an axis that its output does not name.
    """
    return {key: member.named(outputs[key].dims) for key, member in members.items()}


def array_name(output: Output, part: str) -> str:
    """Name of the stored array of one part: ``data``, ``data_share``."""
    return f"{output.name}_{part}" if part else output.name


def keyed_of(members: Mapping[str, Aggregation]) -> frozenset[str]:
    """The operator's keys whose results are rows and no arrays."""
    return frozenset(key for key, member in members.items() if member.keyed)


def map_arrays(
    function: Callable[[Array], Array], result: Any, keyed: frozenset[str] = frozenset()
) -> Any:
    """Apply a function to the arrays of an operator's result, keeping its structure.

    Parameters
    ----------
    function : callable
    result
        What the operator returned.
    keyed : frozenset of str
        Keys that are left as they are; ``""`` stands for the whole result.
    """
    if "" in keyed:
        return result
    if isinstance(result, Mapping):
        return {
            key: value if key in keyed else map_arrays(function, value)
            for key, value in result.items()
        }
    if isinstance(result, tuple):
        return tuple(map_arrays(function, value) for value in result)
    return function(_plain(result))


def _plain(result: Any) -> Array:
    """An ndarray: what is under a mask is no answer, and must not be blended as if it were.

    Raises
    ------
    OperatorError
        For a masked array of integers.
    """
    if not isinstance(result, np.ma.MaskedArray):
        return np.asarray(result)
    if result.dtype.kind != "f":
        raise OperatorError(
            f"the operator returned a masked array of {result.dtype}, which has no NaN; return "
            "result.filled(value), and say gp.Output(missing=value)"
        )
    filled: Array = result.filled(np.nan)
    return filled


def entries(result: Any, members: Mapping[str, Aggregation]) -> dict[str, Any]:
    """One array per aggregation, from whatever the operator returned; rows as they are.

    Raises
    ------
    OperatorError
        When keys are missing or unknown, naming them.
    """
    if set(members) == {""}:
        return {"": _entry(result, members[""], "the operator")}
    if not isinstance(result, Mapping):
        raise OperatorError(
            f"the operator returned {type(result).__name__}, but the aggregations are named "
            f"{', '.join(members)}: return a dict with these keys"
        )
    different = set(result) ^ set(members)
    if different:
        name = min(different)
        where = "no aggregation" if name in result else "the operator did not return it"
        raise OperatorError(
            f"output {name!r}: {where}; the operator returned {', '.join(result)}, aggregations "
            f"are given for {', '.join(members)}"
        )
    return {key: _entry(result[key], member, f"output {key!r}") for key, member in members.items()}


def _entry(value: Any, member: Aggregation, what: str) -> Any:
    if member.keyed:
        return value
    names = member.inputs
    if isinstance(value, Mapping) and names:
        if set(value) != set(names):
            raise OperatorError(f"{what} has keys {', '.join(value)}, not {', '.join(names)}")
        value = tuple(value[name] for name in names)
    if isinstance(value, Mapping):
        raise OperatorError(
            f"{what} returned a dict with {', '.join(value)}: give one aggregation per key, "
            "aggregation={'name': ...}"
        )
    if isinstance(value, tuple):
        if len(value) != len(names):
            raise OperatorError(
                f"{what} returned {len(value)} arrays; {type(member).__name__} takes "
                f"{len(names) or 'one array'} {names or ''}"
            )
        shapes = {np.shape(v) for v in value}
        if len(shapes) != 1:
            raise OperatorError(f"{what} returned arrays of shapes {sorted(shapes)}; one is needed")
        return np.stack([_plain(v) for v in value])
    return _plain(value)


def collect(
    members: Mapping[str, Aggregation],
    patches: Iterable[Patch],
    grid: PatchGrid,
    output: Any = None,
) -> Any:
    """Aggregate patches over a whole domain, in this process.

    Patches may be fewer than the grid has, or repeated; they are added in the order given.

    Returns
    -------
    ndarray or Rows, or dict of name to one of these where there are several
    """
    outputs = outputs_for(members, output)
    members = named(members, outputs)
    running = {key: _running(member, grid, outputs[key]) for key, member in members.items()}
    for patch in patches:
        for key, values in entries(patch.data, members).items():
            running[key].add(patch, values)
    found: dict[str, Any] = {}
    for key in members:
        found.update(running[key].results())
    return next(iter(found.values())) if len(found) == 1 else found


def _running(member: Aggregation, grid: PatchGrid, output: Output) -> _Running | _Gathering:
    return (
        _Gathering(member, grid, output)
        if isinstance(member, ByIndex)
        else _Running(member, grid, output)
    )


class _Gathering(Gathering):
    """One table of :func:`collect`."""

    def __init__(self, member: ByIndex, grid: PatchGrid, output: Output) -> None:
        check_keyed_output(output)
        super().__init__(member, grid, f"output {output.name!r}")
        self.name = output.name

    def results(self) -> dict[str, Any]:
        return {self.name: self.rows()}


class _Running:
    """One aggregation of :func:`collect`."""

    def __init__(self, member: Aggregation, grid: PatchGrid, output: Output) -> None:
        self.member, self.output = member, output
        self.grid = grid.variant(member.weighted, output.factor)
        if not member.streaming_safe:
            unbounded(type(member).__name__, SUBSTITUTES.get(type(member).__name__, BOUNDED))
        self.state: State | None = None
        self.dtype = np.dtype(np.float64)
        self.seen: set[int] = set()

    def start(self, leading: tuple[int, ...]) -> State:
        part_dtypes(self.member.parts(leading, self.dtype), self.output)  # fails before the work
        return self.member.init(self.grid, self.grid.box, leading, self.dtype, complete=False)

    def add(self, patch: Patch, values: Array) -> None:
        ndim = len(self.grid.dims)
        leading = values.shape[: values.ndim - ndim]
        if self.state is None:
            self.dtype = values.dtype
            self.state = self.start(leading)
        _check(
            patch, values, self.state.leading + self.grid.written(patch.indices).shape, self.dtype
        )
        if patch.ordinal in self.seen:
            self.state.coverage.analytic = False  # its weights were not foreseen
        self.seen.add(patch.ordinal)
        cells = self.grid.footprint(patch.anchor)
        if not cells:
            return
        inside = values[cells.index(self.grid.written(patch.indices).start)]
        weights = self.grid.weights(patch.anchor, cells) if self.grid.weighted else None
        self.member.add(self.state, cells, inside, weights, self.output.missing)

    def results(self) -> dict[str, Any]:
        state = self.state
        if state is None:
            riding = tuple(self.grid.domain.size(dim) for dim in self.grid.riding)
            state = self.start(self.member.unseen(riding))
        parts = self.member.parts(state.leading, self.dtype)
        dtypes = part_dtypes(parts, self.output)
        fills = part_fills(dtypes, self.output)
        found = self.member.settled(state, dtypes, fills)
        return {array_name(self.output, part): array for part, (array, _) in found.items()}


def part_dtypes(parts: Mapping[str, Part], output: Output) -> dict[str, np.dtype[Any]]:
    """Output dtype of every part: the main one (or all that share its dtype) may be asked for.

    Raises
    ------
    OptionError
        For a dtype that cannot tell the classes of a vote apart.
    """
    first = next(iter(parts.values())).dtype
    dtypes = {
        name: checked_dtype(output.dtype if output.dtype and part.dtype == first else part.dtype)
        for name, part in parts.items()
    }
    for name, part in parts.items():
        _check_classes(part, dtypes[name], output)
    return dtypes


def _check_classes(part: Part, dtype: np.dtype[Any], output: Output) -> None:
    """Classes that saturate, or look like a cell without an answer, would be lost in silence."""
    if dtype.kind == "f":
        room = 2 ** (np.finfo(dtype).nmant + 1)
    elif dtype.kind == "b":
        room = 1
    else:
        spare = dtype.kind == "u"  # signed ones have the negative numbers
        room = int(np.iinfo(dtype).max) - spare
    if part.classes - 1 > room:
        raise OptionError(
            f"output {output.name!r}: {dtype} cannot hold {part.classes} classes and a fill value; "
            f"use {part.dtype}, or leave the dtype out"
        )


def part_fills(dtypes: Mapping[str, np.dtype[Any]], output: Output) -> dict[str, float | int]:
    """Fill value of every part: the one asked for where it is the main part's dtype."""
    first = next(iter(dtypes.values()))
    return {
        name: fill_for(dtype, output.fill_value if dtype == first else None)
        for name, dtype in dtypes.items()
    }


def _check(patch: Patch, values: Array, expected: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if values.shape != expected:
        raise OperatorError(
            f"patch {patch.ordinal} at {patch.anchor} has shape {values.shape}, {expected} was "
            "expected: leading axes of the first patch, then the patch axes"
        )
    if values.dtype != dtype:
        raise OperatorError(
            f"patch {patch.ordinal} at {patch.anchor} has dtype {values.dtype}, the first had "
            f"{dtype}; let the operator return one dtype always (array.astype(...))"
        )
