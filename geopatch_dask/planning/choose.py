"""Which super-tile: the largest that memory and parallelism allow.

Small super-tiles run border patches again and again (R); large ones need memory and leave workers
idle at the end.  A candidate is judged by the work it causes per worker slot::

    score = R * (1 + h) * idle * (1 + TASK_CELLS / cells) * (1 + loss)

where h is the share of cells read twice, ``idle`` is how much longer the slots take than if they
shared the cells evenly (whole super-tiles come in waves; cut ones at the edges fill the gaps), the
next factor is what starting a task costs, and ``loss`` what a slow or lost super-tile
costs when there are fewer than WAVES per slot.  Candidates that need more memory than a worker may
use do not compete.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from geopatch_dask.errors import MemoryPlanError
from geopatch_dask.patch.anchors import LatticeAnchors
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.planning.cost import axis_cost, cost_of
from geopatch_dask.planning.memory import MemoryModel, MemoryPlan
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.planning.units import bytes_text

__all__ = ["Candidate", "check_memory", "choose", "smallest"]

#: A task (scheduling, opening, recording) costs as much as this many cells of cheap work; about
#: 20 ms at 20 Mcell/s on one core.
TASK_CELLS = 400_000
#: Tasks per slot below which a worker that dies, or a slow tile, costs much of the run.
WAVES = 4
#: Scores this close are a tie, and the layout that needs less memory wins.
TIE = 0.01
#: What every wave short of that adds to the score: a layout with one wave must be 6 % cheaper.
LOSS = 0.02


@dataclass(frozen=True)
class Candidate:
    """A super-tile that was considered."""

    tile: tuple[int, ...]
    supertiles: int
    amplification: float
    memory: int
    score: float
    reason: str = ""

    def to_json(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "tile": list(self.tile),
            "supertiles": self.supertiles,
            "R": round(self.amplification, 4),
            "memory": self.memory,
            "reason": self.reason,
        }


def _steps(n: int, unit: int) -> list[int]:
    """Multiples of the write unit, about a factor of 1.4 apart, up to the whole axis."""
    whole = -(-n // unit)
    found = {whole}
    k = 1.0
    while k < whole:
        found.add(math.floor(k))
        k *= math.sqrt(2)
    return [unit * m for m in sorted(found)]


def _candidates(
    grid: PatchGrid, base: Layout, memory: Callable[[Layout], MemoryPlan], slots: int
) -> Iterator[tuple[Layout, Candidate]]:
    axes = [_steps(n, u) for n, u in zip(base.shape, base.unit, strict=True)]
    factors: list[dict[int, tuple[float, float]]] = []
    if isinstance(grid.anchors, LatticeAnchors):
        for d, sizes in enumerate(axes):
            costs = {t: axis_cost(grid, d, t) for t in sizes}
            factors.append(
                {
                    t: (c.touched / max(c.anchors, 1), c.read / base.shape[d])
                    for t, c in costs.items()
                }
            )
    for tile in itertools.product(*axes):
        layout = Layout(base.dims, base.shape, tile, base.chunks, base.shards)
        if factors:
            r = math.prod(f[t][0] for f, t in zip(factors, tile, strict=True))
            reads = math.prod(f[t][1] for f, t in zip(factors, tile, strict=True))
        else:
            cost = cost_of(grid, layout)
            r, reads = cost.amplification, cost.cells_read / math.prod(base.shape)
        n = layout.count
        sizes = [min(t, s) for t, s in zip(tile, base.shape, strict=True)]
        cells = math.prod(sizes)
        full = math.prod(s // t for s, t in zip(base.shape, sizes, strict=True))
        idle = max(math.ceil(full / slots) * slots * cells / math.prod(base.shape), 1.0)
        loss = LOSS * max(WAVES - n / slots, 0.0)
        again = max(r, 1.0) * (1 + max(reads - 1, 0.0))
        score = again * idle * (1 + TASK_CELLS / cells) * (1 + loss)
        yield layout, Candidate(tile, n, r, memory(layout).total, score)


def choose(
    grid: PatchGrid,
    base: Layout,
    memory: Callable[[Layout], MemoryPlan],
    usable: int,
    slots: int,
) -> tuple[Layout, list[Candidate]]:
    """The best layout, and the ones it beat.

    Parameters
    ----------
    grid : PatchGrid
    base : Layout
        Any layout with the chunks and shards to use.
    memory : callable ``Layout -> MemoryPlan``
    usable : int, bytes
        What a plan may use of a worker slot.
    slots : int

    Raises
    ------
    MemoryPlanError
        When not even one write unit fits.
    """
    considered = list(_candidates(grid, base, memory, slots))
    fitting = [(lay, c) for lay, c in considered if c.memory <= usable]
    if not fitting:
        least = min((c for _, c in considered), key=lambda c: c.memory)
        raise MemoryPlanError(_too_large(least.tile, least.memory, usable, memory, base))
    cheapest = min(c.score for _, c in fitting)
    rivals = [pair for pair in fitting if pair[1].score <= cheapest * (1 + TIE)]
    layout, best = min(rivals, key=lambda pair: (pair[1].memory, pair[1].score))
    return layout, _losers(best, [c for _, c in considered], usable)


def _losers(best: Candidate, considered: Sequence[Candidate], usable: int) -> list[Candidate]:
    """A few telling alternatives: the best that does not fit, is smaller, or is larger."""
    kinds: dict[str, Candidate] = {}
    for c in sorted(considered, key=lambda c: c.score):
        if c.tile == best.tile:
            continue
        if c.memory > usable:
            kind = "memory"
            why = f"needs {bytes_text(c.memory)}, a worker may use {bytes_text(usable)}"
        else:
            kind = "larger" if c.supertiles < best.supertiles else "smaller"
            more = 100 * (c.score / best.score - 1)
            why = f"{abs(more):.1f} % {'more' if more >= 0 else 'less'} work, waiting included"
            if more < 0:
                why += f", not worth {bytes_text(c.memory - best.memory)} more"
        if kind not in kinds:
            kinds[kind] = Candidate(c.tile, c.supertiles, c.amplification, c.memory, c.score, why)
    return list(kinds.values())


def smallest(base: Layout) -> Layout:
    """The layout whose super-tiles are single write units."""
    return Layout(base.dims, base.shape, base.unit, base.chunks, base.shards)


def check_memory(
    layout: Layout, memory: Callable[[Layout], MemoryPlan], limit: int, model: MemoryModel
) -> MemoryPlan:
    """The memory of a layout the caller asked for.

    Raises
    ------
    MemoryPlanError
        When it exceeds the share of the limit that a plan may use.
    """
    usable = int(limit * model.share)
    plan = memory(layout)
    if plan.total > usable:
        raise MemoryPlanError(_too_large(layout.tile, plan.total, usable, memory, layout))
    return plan


def _too_large(
    tile: Sequence[int],
    needed: int,
    usable: int,
    memory: Callable[[Layout], MemoryPlan],
    base: Layout,
) -> str:
    parts = memory(Layout(base.dims, base.shape, tuple(tile), base.chunks, base.shards))
    biggest = sorted(parts.to_json().items(), key=lambda kv: -kv[1])[1:4]
    share = MemoryModel().share
    return (
        f"a super-tile of {' x '.join(map(str, tile))} cells needs {bytes_text(needed)} "
        f"({', '.join(f'{name} {bytes_text(n)}' for name, n in biggest)}) but a worker may use "
        f"{bytes_text(usable)}, {share:.0%} of its limit: give it "
        f"memory_limit={bytes_text(needed / share)!r}, or use smaller chunks, shards or batches"
    )
