"""Random jobs for property tests: a field, a patcher, an operator, and ways to cut the output.

Everything is small (a few hundred cells, at most a few hundred patches), because what breaks the
contract is a coincidence of edges, not size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import sample_operators as ops
from conftest import EXAMPLES
from hypothesis import settings
from hypothesis import strategies as st
from oracles import last_minus_first

import geopatch_dask as gp
from geopatch_dask.testing import Cut

BOUNDARIES = ("shift", "reflect", "pad", "shrink", "drop", "raise")
AXES = ("t", "z", "y", "x")
OPERATORS = (
    *("identity", "mixing", "mixing", "batch", "in_place", "stacked", "flattened"),
    *("classed", "placed", "placed_patch", "mask", "mask_batch"),
)
DTYPES = ("f4", "f8", "u1", "i2", "i8", "f4", "f8", "u1", "i2", "i8", "f2", "u2", "i4", "u8", "?")


def examples(default: int) -> settings:
    """Settings for a property test: this many examples, or what the environment asks for."""
    return settings(max_examples=EXAMPLES or default)


# ---- windows that top-level functions can be named after ---------------------------------------


def pyramid(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Not separable: the smallest distance to an edge."""
    steps = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in shape]
    grids = np.meshgrid(*steps, indexing="ij")
    return np.minimum.reduce(grids).astype(np.float64)


def holey(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Zero in the first row, and in a chequered pattern of holes."""
    index = np.indices(shape).sum(axis=0)
    weights = np.where(index % 3 == 1, 0.0, 1.0 + index)
    if shape[0] > 2:
        weights[0] = 0.0
    return weights


WINDOWS: tuple[gp.patch.window.Window, ...] = (  # type: ignore[name-defined]
    gp.Boxcar(),
    gp.Hann(),
    gp.Tukey(0.7),
    gp.Gaussian(0.4),
    gp.Custom(pyramid),
    gp.Custom(holey),
)
AGGREGATIONS = (
    gp.OverlapAdd(),
    gp.Mean(),
    gp.Sum(),
    gp.WeightedSum(),
    gp.Max(),
    gp.Min(),
    gp.Range(),
    gp.Variance(),
    gp.Any(),
    gp.All(),
    gp.Count(),
)
#: The others: they take classes, scores or estimates, or keep all values of a cell.
ESTIMATES = (
    gp.HardVote(4),
    gp.SoftVote(3),
    gp.InvVarWeightedMean(),
    gp.Median(),
    gp.Quantile(0.3),
    gp.Quantile((0.0, 0.5, 0.8, 1.0)),
    gp.Mode(),
    gp.Learned(last_minus_first),
)


@dataclass(frozen=True)
class Job:
    """What decides the values of a run."""

    values: npt.NDArray[Any]
    dims: tuple[str, ...]
    nodata: int | None
    patcher: gp.Patcher
    operator: gp.Operator
    output: gp.Output

    @property
    def field(self) -> gp.ArrayField:
        return gp.ArrayField(self.values, dims=self.dims, nodata=self.nodata)

    @property
    def cuttable(self) -> tuple[int, ...]:
        """Lengths of the patch axes."""
        return self.patcher.grid(self.field.domain).shape

    def __repr__(self) -> str:
        return (
            f"Job({self.values.dtype} {dict(zip(self.dims, self.values.shape, strict=True))}, "
            f"nodata={self.nodata}, {self.patcher}, {self.operator}, {self.output})"
        )


# ---- where patches sit ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """One patch axis: its name, cells, patch size, step."""

    dim: str
    n: int
    size: int
    step: int


@st.composite
def axes(draw: st.DrawFn, boundary: str, ndim: int) -> list[Axis]:
    """Patch axes of a domain on which a boundary mode works."""
    longest = {1: 60, 2: 20, 3: 8}[ndim]
    found = []
    for dim in AXES[-ndim:]:
        n = draw(st.integers(1, longest))
        fits = boundary in ("shift", "raise")
        size = draw(st.integers(1, min(n if fits else n + 3, 12)))
        step = draw(st.integers(max(size // 4, 1), size + 3))
        if boundary == "raise":  # the lattice has to end at the edge
            step = draw(st.sampled_from(divisors(n - size) or [step]))
        while (n // step) ** ndim > 400:
            step += 1
        if boundary == "raise" and n > size and (n - size) % step:
            step = n - size
        found.append(Axis(dim, n, size, step))
    return found


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def samplers(draw: st.DrawFn, boundary: str, cut: Sequence[Axis], named: bool) -> Any:
    """Any sampler that works there."""
    step: Any = {a.dim: a.step for a in cut} if named else tuple(a.step for a in cut)
    seed = draw(st.integers(0, 5))
    free = boundary in ("pad", "reflect", "shrink")
    rooms = [a.n if free else a.n - a.size + 1 for a in cut]
    kinds = ["regular", "regular", "jittered"]
    if min(rooms) > 0:
        kinds += ["random", "poisson", "explicit"]
    kind = draw(st.sampled_from(kinds))
    if kind == "regular":
        return gp.RegularStride(step)
    if kind == "jittered":
        return gp.JitteredStride(step, draw(st.sampled_from([0.0, 0.3, 1.0])), seed)
    if kind == "random":
        return gp.Random(draw(st.integers(1, 25)), seed)
    if kind == "poisson":
        least = max(math.ceil((math.prod(rooms) / 60) ** (1 / len(cut))), 1)
        return gp.PoissonDisk(draw(st.floats(least, least + 4)), 5, seed)
    ranges = [
        # Under modes that fill, mirror, cut or move, an anchor may lie before the domain.
        st.integers(1 - a.size, a.n - 1)
        if free or boundary == "shift"
        else st.integers(0, a.n - a.size)
        for a in cut
    ]
    return gp.Explicit(draw(st.lists(st.tuples(*ranges), min_size=1, max_size=15)))


# ---- what is in the field ------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...], patch_dims: tuple[int, ...]) -> Any:
    """Values, and the nodata value that marks missing ones."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1.0, 40.0]))
    values = rng.standard_normal(shape) * scale
    if dtype.kind in "iu":
        values = np.clip(np.rint(values + (100 if dtype.kind == "u" else 0)), 0, 200)
    values = (values > 0) if dtype.kind == "b" else values.astype(dtype)
    if dtype.itemsize == 8 and dtype.kind in "iu" and draw(st.booleans()):
        values[rng.random(shape) < 0.1] = 2**53 + 1  # the first integer that float64 lacks
    how = draw(st.sampled_from(["none", "none", "some", "block", "band", "all"]))
    missing = np.zeros(shape, bool)
    if how == "some":
        missing = rng.random(shape) < draw(st.sampled_from([0.05, 0.5]))
    elif how == "block":  # whole patches are missing, in every band
        where = tuple(
            slice(int(rng.integers(0, n)), None) if d in patch_dims else slice(None)
            for d, n in enumerate(shape)
        )
        missing[where] = True
    elif how == "band":  # one entry of the first axis, whatever that is
        missing[0] = True
    elif how == "all":
        missing[...] = True
    if dtype.kind == "f":
        values[missing] = np.nan
        if draw(st.booleans()):
            odd = rng.random(shape) < 0.05
            values[odd & ~missing] = rng.choice([np.inf, -np.inf, -0.0, np.finfo(dtype).max])
        return values, None
    if dtype.kind == "b" or (how == "none" and draw(st.booleans())):
        return values, None
    values[missing] = 7
    return values, 7


@st.composite
def operators(draw: st.DrawFn, ndim: int) -> tuple[gp.Operator, gp.Output]:
    """An operator, and how its result is stored."""
    kind = draw(st.sampled_from(OPERATORS))
    output = gp.Output(fill_value=draw(st.sampled_from([None, None, 42])))
    batch = draw(st.sampled_from([1, 3, 4]))
    plain: dict[str, Callable[..., Any]] = {
        "identity": ops.identity,
        "mixing": ops.mixing,
        "in_place": ops.in_place,
        "stacked": ops.stacked,
    }
    if kind in plain:
        return gp.Operator(plain[kind]), output
    if kind == "batch":
        return gp.Operator(ops.mixing_batch, batch=batch), output
    if kind == "mask":
        return gp.Operator(ops.mixing, missing="mask", fill=-1.0), output
    if kind == "mask_batch":
        return gp.Operator(ops.mixing_batch, missing="mask", batch=batch), output
    if kind == "flattened":
        return gp.Operator(ops.flattened, options={"ndim": ndim}), output
    if kind == "classed":
        return gp.Operator(ops.classed), gp.Output(missing=255)
    function = ops.placed if kind == "placed" else ops.placed_patch
    return gp.Operator(function, takes="patch"), output


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """A whole job that has to run without an error."""
    boundary = draw(st.sampled_from(BOUNDARIES))
    ndim = draw(st.sampled_from([1, 2, 2, 2, 3]))
    cut = draw(axes(boundary, ndim))
    riding = draw(st.sampled_from([0, 0, 1, 2]))
    dims, shape = [a.dim for a in cut], [a.n for a in cut]
    named = riding > 0 and draw(st.booleans())
    for i in range(riding):  # riding axes come first, or anywhere where axes are named
        at = draw(st.integers(0, len(dims))) if named else 0
        dims.insert(at, f"r{i}")
        shape.insert(at, draw(st.integers(1, 3)))
    places = tuple(d for d, dim in enumerate(dims) if not dim.startswith("r"))
    values, nodata = draw(arrays(tuple(shape), places))
    size: Any = {a.dim: a.size for a in cut} if named else tuple(a.size for a in cut)
    operator, output = draw(operators(ndim))
    windows = list(WINDOWS)
    if min(a.size for a in cut) >= 3:
        windows.append(gp.Hann("symmetric"))  # its end points are zero: nothing left of two cells
    return Job(
        values=values,
        dims=tuple(dims),
        nodata=nodata,
        patcher=gp.Patcher(
            gp.Rectangular(size, boundary, draw(st.sampled_from([0.0, 5.0]))),
            draw(samplers(boundary, cut, named)),
            draw(st.sampled_from(windows)),
            draw(st.sampled_from(AGGREGATIONS)),
        ),
        operator=operator,
        output=output,
    )


def estimating(job: Job, aggregation: gp.Aggregation) -> Job:
    """The same job for one of :data:`ESTIMATES`, whose results its operator is made to return."""
    p, kind = job.patcher, type(aggregation).__name__
    operator = job.operator
    if kind in ("HardVote", "SoftVote", "InvVarWeightedMean"):
        suited = partial(ops.suited, operator=operator, kind=kind)
        operator = gp.Operator(suited, takes="patch", version="suited")
    patcher = gp.Patcher(p.geometry, p.sampler, p.window, aggregation)
    return replace(job, patcher=patcher, operator=operator)


# ---- how the output is cut -----------------------------------------------------------------------


@st.composite
def cuts(draw: st.DrawFn, shape: tuple[int, ...], storage: Cut | None = None) -> Cut:
    """Super-tiles, chunks and shards; with ``storage``, its chunks and shards, other tiles."""
    tile, chunks, shards = [], [], []
    sharded = draw(st.booleans()) if storage is None else storage.shards is not None
    for d, n in enumerate(shape):
        least = max(n // 6, 1)
        chunk = draw(st.integers(least, n + 2)) if storage is None else storage.chunks[d]
        factor = draw(st.integers(1, 3)) if sharded and storage is None else 1
        shard = chunk * factor if storage is None or not storage.shards else storage.shards[d]
        chunks.append(chunk)
        shards.append(shard)
        # what is longer than the axis is cut down to it
        unit = min(shard, -(-n // min(chunk, n)) * min(chunk, n)) if sharded else min(chunk, n)
        tile.append(unit * draw(st.integers(1, max(-(-n // unit), 1))))
    return Cut(tuple(tile), tuple(chunks), tuple(shards) if sharded else None)
