"""Does an operator, or an aggregation, keep the first contract?  Helpers for tests, ours and yours.

The contract: the bytes of the output do not depend on how it was cut.  For an operator of your own,
or an aggregation you wrote, one call checks it::

    def test_my_operator_keeps_the_contract():
        assert_layout_invariant(field, patcher, my_operator)

It computes the output in RAM (``patcher.merge``), then with one super-tile in one thread, then cut
in ways that tell, under several schedulers, and compares bytes::

    tile smaller than a patch     tall bands      wide bands      odd chunks      shards
    +--+--+--+                    +--+--+--+      +--------+      +---+---+-+     +----+----+
    +--+--+--+                    |  |  |  |      +--------+      +---+---+-+     | :  | :  |
    +--+--+--+                    +--+--+--+      +--------+      +---+---+-+     +----+----+

What typically fails it: an operator that remembers earlier calls or draws random numbers; an
aggregation whose answer for one cell looks at other cells.  Use small fields: the work is repeated
for every layout and scheduler.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from geopatch_dask import fields
from geopatch_dask.aggregation import Output
from geopatch_dask.aggregation.keyed import Rows
from geopatch_dask.aggregation.passes import reduce_leaves
from geopatch_dask.aggregation.several import keyed_of, members_of, named, outputs_for, part_dtypes
from geopatch_dask.aggregation.splits import Seen, assert_merges
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import OptionError, VerificationError
from geopatch_dask.execute import api
from geopatch_dask.execute.api import Plan, UncoveredWarning
from geopatch_dask.execute.attempt.stage import recorded_context
from geopatch_dask.execute.runs.runners import Scheduler
from geopatch_dask.patch.grid import UNIT, PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.context import Context
from geopatch_dask.planning.operator import Operator
from geopatch_dask.store.location import Location
from geopatch_dask.testing.same import assert_same_bytes, assert_same_table

__all__ = [
    "Cut",
    "assert_layout_invariant",
    "assert_statistic",
    "merged",
    "read_back",
    "telling_cuts",
]

Array = npt.NDArray[Any]
AnyOperator = Operator | Callable[..., Any] | str

#: No test field is so large that memory decides anything.
_ENOUGH = "1 TiB"


@dataclass(frozen=True)
class Cut:
    """One way to cut an output.

    Parameters
    ----------
    tile : tuple of int, cells per patch axis
        The super-tile: whole shards, or whole chunks where there are no shards.
    chunks : tuple of int, cells per patch axis
    shards : tuple of int or None, cells per patch axis
        Whole chunks.
    """

    tile: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None

    def options(self) -> dict[str, Any]:
        """As arguments of :func:`geopatch_dask.plan`."""
        return {"outer": self.tile, "chunks": self.chunks, "shards": self.shards}


def telling_cuts(shape: Sequence[int], size: Sequence[int]) -> list[Cut]:
    """Cuts that bring mistakes to light.

    Parameters
    ----------
    shape, size : sequence of int, cells per patch axis
        Of the domain and of a patch.

    Returns
    -------
    list of Cut
        Super-tiles smaller than a patch, bands along each axis, chunks that divide nothing, shards,
        and super-tiles that leave a single cell at the end of every axis.

    Examples
    --------
    >>> [cut.tile for cut in telling_cuts((100, 80), (16, 16))]
    [(8, 8), (100, 23), (32, 80), (51, 41), (28, 28), (33, 79)]
    """
    small = tuple(max(p // 2, 1) for p in size)
    odd = tuple(max(n // 2 + 1, 1) for n in shape)
    prime = tuple(max(p + p // 2 - 1, 1) for p in size)
    tall = tuple(n if d == 0 else c for d, (n, c) in enumerate(zip(shape, prime, strict=True)))
    wide = tuple(2 * p if d == 0 else n for d, (n, p) in enumerate(zip(shape, size, strict=True)))
    chunk = tuple(max((p - 2) // 2, 1) for p in size)
    shard = tuple(2 * c for c in chunk)
    lone = tuple(_leaving_one(n, 2 * p) for n, p in zip(shape, size, strict=True))
    return [
        Cut(small, small),
        Cut(tall, prime),
        Cut(wide, tuple(size)),
        Cut(odd, odd),
        Cut(tuple(2 * s for s in shard), chunk, shard),
        Cut(lone, lone),
    ]


def _leaving_one(n: int, least: int) -> int:
    """The shortest tile of at least so many cells, if there is any, of which one cell is left."""
    divisors = [d for d in range(2, n) if (n - 1) % d == 0]
    return next((d for d in divisors if d >= least), divisors[-1] if divisors else 1)


def merged(
    field: Any,
    patcher: Patcher,
    operator: AnyOperator,
    output: Output | Mapping[str, Output] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Any:
    """The output in RAM: every patch, in ordinal order, through :meth:`Patcher.merge`.

    Parameters
    ----------
    field, patcher, operator, output
        As for :func:`geopatch_dask.plan`.
    context : mapping, optional
        What a first pass found, for an operator that takes it.

    Returns
    -------
    ndarray, shape (*leading, *patch axes); for ``ByIndex`` a pyarrow.Table
        A dict of these, by name, where there are several.
    """
    source, run = fields.as_field(field), Operator.of(operator)
    members = members_of(patcher.aggregation)
    keyed, outputs = keyed_of(members), outputs_for(members, output)
    members = named(members, outputs)
    if context is not None:
        run = replace(run, context=True)
    if not patcher.n_anchors(source):
        # Nothing says what the operator returns: a plan takes it for the dtype of the field.
        riding = tuple(source.domain.size(dim) for dim in patcher.grid(source.domain).riding)
        for key, member in members.items():
            if key not in keyed:
                parts = member.parts(member.unseen(riding), source.dtype)
                main = str(next(iter(part_dtypes(parts, outputs[key]).values())))
                outputs[key] = replace(outputs[key], dtype=main)
    scale = _scale(patcher, output)

    def patches() -> Iterator[Patch]:
        for patch in patcher.split(source):
            yield patch.with_data(run.run([patch], scale, context, keyed)[0])

    found = patcher.merge(patches(), source.domain, outputs.get("", outputs))
    if isinstance(found, dict) and not isinstance(found, Rows):
        return {name: _plain(value) for name, value in found.items()}
    return _plain(found)


def _plain(value: Any) -> Any:
    return value.table() if isinstance(value, Rows) else np.asarray(value)


def read_back(target: Any, name: str = "data") -> Array:
    """All cells of one array of a target, read through zarr and nothing else.

    Parameters
    ----------
    target : path, URL, Location or zarr store
    name : str
    """
    place = Location.of(target)
    group = zarr.open_group(place.zarr_store(read_only=True), path=place.path or None, mode="r")
    return np.asarray(group[name][...])  # type: ignore[index]  # an array, not a group


def assert_layout_invariant(
    field: Any,
    patcher: Patcher,
    operator: AnyOperator,
    *,
    output: Output | Mapping[str, Output] | None = None,
    context: Statistic | None = None,
    over: AnyOperator = "field",
    cuts: Sequence[Cut] | None = None,
    schedulers: Sequence[str] = ("sync", "threads"),
    client: Any = None,
    folder: str | Path | None = None,
) -> Any:
    """Raise unless every way to cut and to run a job gives the bytes of one tile in one thread.

    Parameters
    ----------
    field, patcher, operator, output
        As for :func:`geopatch_dask.plan`; the patcher holds the aggregation to be tested.
    context, over
        As for :func:`geopatch_dask.plan`.  The statistic is tested by itself first, see
        :func:`assert_statistic`; then what it found must be the same in every run, too.
    cuts : sequence of Cut, optional
        :func:`telling_cuts` by default.
    schedulers : sequence of {"sync", "threads", "processes"}
        They take turns, so that every cut is run once and every scheduler is used.
    client : distributed.Client, optional
        Takes part in the turns, too.
    folder : path, optional
        Where the outputs go; a temporary folder, removed at the end, by default.  The workers of
        ``client`` must be able to write there.

    Returns
    -------
    ndarray, shape (*leading, *patch axes); for ``ByIndex`` a pyarrow.Table
        The output.  A dict of these, by name, where there are several.

    Raises
    ------
    VerificationError
        Naming the cut, the scheduler, the output and the first cell that differs.
    GeopatchError
        What planning and running may raise.

    Examples
    --------
    >>> import numpy as np, geopatch_dask as gp
    >>> patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), gp.Hann())
    >>> assert_layout_invariant(np.ones((20, 20)), patcher, np.sqrt).shape
    (20, 20)
    """
    source = fields.as_field(field)
    known: dict[str, Any] | None = None
    if context is not None:
        known = _first_pass(source, patcher, operator, context, over)
    expected = merged(source, patcher, operator, output, known)
    ways: list[Scheduler] = [*schedulers, *([client] if client is not None else [])]
    with tempfile.TemporaryDirectory(prefix="geopatch-", dir=folder) as place:

        def check(cut: Cut, way: Scheduler, name: str, what: str) -> None:
            plan = api.plan(
                *(source, patcher, operator, Path(place) / f"{name}.zarr"),
                **cut.options(),
                output=output,
                context=context,
                over=over,
                memory_limit=_ENOUGH,
                slots=2,
            )
            _assert_same(_computed(plan, way), expected, what)
            if known is not None:
                first = _arrays(recorded_context(plan)[0] or {})
                _assert_same(first, _arrays(known), f"the first pass of {what}")

        grid = _output_grid(source, patcher, output)
        whole = Cut(grid.shape, grid.shape)
        check(whole, "sync", "whole", "one super-tile, against patcher.merge,")
        chosen = telling_cuts(grid.shape, grid.out_size) if cuts is None else list(cuts)
        for i in range(max(len(chosen), len(ways))):
            cut, way = chosen[i % len(chosen)], ways[i % len(ways)]
            check(cut, way, f"cut-{i}", f"{cut} under {_name(way)}")
    return expected


def assert_statistic(
    field: Any,
    patcher: Patcher,
    statistic: Statistic,
    over: AnyOperator = "field",
    *,
    rtol: float = 1e-9,
) -> dict[str, Any]:
    """Raise unless a statistic says the same however values are split and states are merged.

    Two runs cannot tell: their blocks and their tree are fixed, so they agree even where a merge is
    wrong.  This compares merged states with one state that has seen everything.

    Parameters
    ----------
    field, patcher : Field, Patcher
        A small field: all its values are held at once.
    statistic : Statistic
    over : "field", or an operator
        As for :func:`geopatch_dask.plan`.
    rtol : float
        What rounding may change, as a share of the largest magnitude in each array.

    Returns
    -------
    dict of str to number or ndarray
        What the statistic says; ``patcher.reduce`` gives the same.

    Raises
    ------
    VerificationError
        Naming the split, the number and the first entry that differs.
    OptionError
        When it does not merge at all.

    Examples
    --------
    >>> import numpy as np, geopatch_dask as gp
    >>> patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((6, 6)))
    >>> assert_statistic(np.eye(20), patcher, gp.MinMax())["max"].tolist()
    [1.0]
    """
    source, first = fields.as_field(field), Context.of(statistic, over)
    if first.over == "output" and first.fit is None:
        raise OptionError("a statistic by itself has no operator: give over= one instead")
    leaves = first.source(source, patcher.grid(source.domain), first.fit or Operator(np.positive))
    seen = Seen()
    found = seen.finalize(reduce_leaves(leaves, seen, 0, leaves.leaves))
    assert_merges(statistic, found["values"], found["keys"], rtol)
    return dict(statistic.finalize(reduce_leaves(leaves, statistic, 0, leaves.leaves)))


def _first_pass(
    field: fields.Field,
    patcher: Patcher,
    operator: AnyOperator,
    statistic: Statistic,
    over: AnyOperator,
) -> dict[str, Any]:
    """What a plan's first pass finds, once the statistic is known to merge."""
    if over == "output":
        over = replace(Operator.of(operator), context=True)
    return assert_statistic(field, patcher, statistic, over)


def _output_grid(field: fields.Field, patcher: Patcher, output: Any) -> PatchGrid:
    """The patches, in cells of the output."""
    grid = patcher.grid(field.domain)
    return grid.variant(grid.weighted, _scale(patcher, output))


def _scale(patcher: Patcher, output: Any) -> Fraction:
    members = members_of(patcher.aggregation)
    outputs = outputs_for(members, output)
    return next((outputs[key].factor for key in members if not members[key].keyed), UNIT)


def _computed(plan: Plan, way: Scheduler) -> dict[str, Any]:
    """Run a plan; all that it wrote, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncoveredWarning)  # holes are the patcher's business
        plan.run(way)
    arrays = {array.name: read_back(plan.target, array.name) for array in plan.arrays}
    return arrays | {table.name: api.read_table(plan.target, table.name) for table in plan.tables}


def _assert_same(found: dict[str, Any], expected: Any, what: str) -> None:
    """Raise unless all outputs have the same bytes."""
    if not isinstance(expected, dict):
        expected = dict.fromkeys(found, expected)
    if set(found) != set(expected):
        raise VerificationError(f"{what} wrote {sorted(found)}, expected {sorted(expected)}")
    for name, value in expected.items():
        same = assert_same_bytes if isinstance(value, np.ndarray) else assert_same_table
        same(found[name], value, what if len(found) == 1 else f"{name!r} of {what}")


def _arrays(found: Mapping[str, Any]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in found.items()}


def _name(way: Scheduler) -> str:
    return way if isinstance(way, str) else type(way).__name__
