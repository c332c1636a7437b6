"""Anchors: lazy sequences that can be entered anywhere, and always answer in ordinal order.

A super-tile asks which patches touch its box without walking the domain.  Whatever structure
answers, it must say the same as the walk.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Job, cuts, examples, jobs

import geopatch_dask as gp
from geopatch_dask.patch.anchors import DisplacedAnchors, LatticeAnchors, ListAnchors, random_bits
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.supertile import Layout


@given(jobs(), st.data())
@examples(200)
def test_within_agrees_with_a_walk(job: Job, data: st.DataObject) -> None:
    anchors = job.patcher.anchors(job.field)
    low = [data.draw(st.integers(-15, n + 5)) for n in job.cuttable]
    high = [a + data.draw(st.integers(-1, n + 15)) for a, n in zip(low, job.cuttable, strict=True)]
    walked = [
        i
        for i, anchor in enumerate(anchors)
        if all(a <= v < b for a, v, b in zip(low, anchor, high, strict=True))
    ]
    assert anchors.within(low, high).tolist() == walked
    assert anchors.count_within(low, high) == len(walked)


@given(jobs(), st.data())
@examples(150)
def test_touching_and_owning_agree_with_a_walk(job: Job, data: st.DataObject) -> None:
    """Touched: the footprint meets the box.  Owned: the anchor, clamped, lies in it."""
    grid = job.patcher.grid(job.field.domain)
    start = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, grid.shape, strict=True)]
    box = Box(tuple(start), tuple(stop))
    touched = [i for i, a in enumerate(grid.anchors) if grid.footprint(a).intersect(box)]
    assert grid.touching(box).tolist() == touched
    assert grid.count_touching(box) == len(touched)
    owned = [
        i
        for i, anchor in enumerate(grid.anchors)
        if all(a <= max(v, 0) < b for a, v, b in zip(start, anchor, stop, strict=True))
    ]
    assert grid.owned(box).tolist() == owned
    assert grid.count_owned(box) == len(owned)


@given(jobs(), st.data())
@examples(100)
def test_every_patch_has_one_owner(job: Job, data: st.DataObject) -> None:
    """What exists once per patch is emitted once, whatever the super-tiles."""
    grid = job.patcher.grid(job.field.domain)
    cut = data.draw(cuts(grid.shape))
    layout = Layout(grid.dims, grid.shape, cut.tile, cut.tile)
    owners = np.concatenate([grid.owned(tile.box) for tile in layout])
    assert sorted(owners.tolist()) == list(range(len(grid.anchors)))


@given(jobs())
@examples(100)
def test_ordinals_positions_and_iteration_agree(job: Job) -> None:
    anchors = job.patcher.anchors(job.field)
    walked = list(anchors)
    assert len(walked) == len(anchors) == job.patcher.n_anchors(job.field)
    assert [anchors[i] for i in range(len(anchors))] == walked
    assert [anchors[i - len(anchors)] for i in range(len(anchors))] == walked
    assert anchors.at(np.arange(len(anchors))).tolist() == [list(a) for a in walked]
    assert list(job.patcher.anchors(job.field)) == walked  # once more, the same
    for ordinal in (len(anchors), -len(anchors) - 1):
        with pytest.raises(IndexError, match=r"of \d+ anchors"):
            anchors[ordinal]


@given(jobs())
@examples(100)
def test_patches_meet_the_domain(job: Job) -> None:
    """No patch is wholly outside; under shift, drop and raise none leaves the domain at all."""
    grid = job.patcher.grid(job.field.domain)
    for anchor in grid.anchors:
        assert grid.indices(anchor).intersect(grid.box)
        if grid.geometry.boundary in ("shift", "drop", "raise", "shrink"):
            assert grid.box.contains(grid.indices(anchor))


def test_lattices_are_row_major() -> None:
    anchors = LatticeAnchors([np.array([0, 6, 10]), np.array([0, 4])])
    assert list(anchors) == list(itertools.product([0, 6, 10], [0, 4]))


def test_a_lattice_of_a_billion_anchors_costs_nothing() -> None:
    field = gp.ArrayField(np.lib.stride_tricks.as_strided(np.zeros(1), (40_000, 40_000), (0, 0)))
    patcher = gp.Patcher(gp.Rectangular((2, 2)), gp.RegularStride((1, 1)))
    anchors = patcher.anchors(field)
    assert len(anchors) == 39_999**2
    assert anchors[39_999 * 20_000 + 5] == (20_000, 5)
    assert anchors.within((7, 9), (9, 11)).tolist() == [
        7 * 39_999 + 9,
        7 * 39_999 + 10,
        8 * 39_999 + 9,
        8 * 39_999 + 10,
    ]


PINNED_BITS = ["0x1df166f48434364b", "0x79cbda05b4d09030"]
PINNED_POSITIONS = {
    "random": [(12, 82), (12, 44), (41, 15)],
    "jittered": [(8, 0), (1, 45), (0, 59)],
    "poisson": [(12, 44), (71, 19), (87, 82)],
}


def test_random_positions_stay_what_they_are() -> None:
    """They decide values, so they may never change between versions of anything."""
    assert random_bits(7, [0, 1, 2], 0).tolist() == random_bits(7, [0, 1, 2, 3], 0).tolist()[:3]
    assert [hex(v) for v in random_bits(7, [0, 1], 0).tolist()] == PINNED_BITS
    field = gp.ArrayField(np.zeros((100, 100)))
    size = gp.Rectangular((10, 10))
    found = {
        "random": gp.Random(3, seed=1),
        "jittered": gp.JitteredStride((30, 30), 0.5, seed=1),
        "poisson": gp.PoissonDisk(60, seed=1),
    }
    positions = {k: list(gp.Patcher(size, s).anchors(field))[:3] for k, s in found.items()}
    assert positions == PINNED_POSITIONS


def test_seeds_matter() -> None:
    field = gp.ArrayField(np.zeros((200, 200)))
    size = gp.Rectangular((10, 10))
    for make in (
        lambda seed: gp.Random(20, seed),
        lambda seed: gp.JitteredStride((30, 30), 0.5, seed),
        lambda seed: gp.PoissonDisk(25.0, seed=seed),
    ):
        one, two = (list(gp.Patcher(size, make(seed)).anchors(field)) for seed in (0, 1))
        assert one != two


def test_random_positions_are_uniform() -> None:
    """Mean and variance of 40,000 positions per axis, within five standard errors."""
    n, m = 40_000, 91
    field = gp.ArrayField(np.zeros((100, 100)))
    anchors = gp.Patcher(gp.Rectangular((10, 10)), gp.Random(n, seed=3)).anchors(field)
    positions = anchors.at(np.arange(n))
    variance = (m**2 - 1) / 12
    assert np.abs(positions.mean(axis=0) - (m - 1) / 2).max() < 5 * np.sqrt(variance / n)
    assert np.abs(positions.var(axis=0) / variance - 1).max() < 5 * np.sqrt(0.8 / n)
    assert np.abs(np.corrcoef(positions.T)[0, 1]) < 5 / np.sqrt(n)
    assert np.abs(np.corrcoef(positions[:-1, 0], positions[1:, 0])[0, 1]) < 5 / np.sqrt(n)


@given(st.integers(1, 3), st.floats(1, 9), st.integers(0, 1000), st.integers(1, 30))
@examples(60)
def test_poisson_disks_keep_their_distance(ndim: int, least: float, seed: int, rounds: int) -> None:
    shape = (90, 40, 12)[:ndim] if ndim < 3 else (14, 12, 10)
    field = gp.ArrayField(np.zeros(shape), dims=("a", "b", "c")[:ndim])
    size = gp.Rectangular((2,) * ndim)
    points = np.array(list(gp.Patcher(size, gp.PoissonDisk(least, rounds, seed)).anchors(field)))
    gaps = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
    gaps[np.diag_indices(len(points))] = np.inf
    assert gaps.min(initial=np.inf) >= least
    assert len(points)


def test_poisson_disks_leave_few_gaps() -> None:
    """Nearly every cell is closer than the distance to some point: the set is almost maximal."""
    field = gp.ArrayField(np.zeros((120, 120)))
    sampler = gp.PoissonDisk(8.0, 30, 4)
    points = np.array(list(gp.Patcher(gp.Rectangular((1, 1)), sampler).anchors(field)))
    cells = np.argwhere(np.ones((120, 120)))
    nearest = np.sqrt(((cells[:, None] - points[None]) ** 2).sum(axis=-1).min(axis=1))
    assert (nearest < 8).mean() > 0.99


def test_jitter_stays_within_its_reach() -> None:
    field = gp.ArrayField(np.zeros((300, 300)))
    size = gp.Rectangular((20, 20))
    base = np.array(list(gp.Patcher(size, gp.RegularStride((40, 40))).anchors(field)))
    moved = np.array(list(gp.Patcher(size, gp.JitteredStride((40, 40), 0.25)).anchors(field)))
    assert np.abs(moved - base).max() == 10
    still = list(gp.Patcher(size, gp.JitteredStride((40, 40), 0.0)).anchors(field))
    assert still == [tuple(a) for a in base.tolist()]


def test_explicit_anchors_keep_their_order_and_are_fitted() -> None:
    field = gp.ArrayField(np.zeros((20, 20)))
    places = [(15, 3), (-2, 4), (0, 0), (15, 3)]

    def anchors(boundary: str) -> list[tuple[int, ...]]:
        size = gp.Rectangular((8, 8), boundary)  # type: ignore[arg-type]
        return list(gp.Patcher(size, gp.Explicit(places)).anchors(field))

    assert anchors("shift") == [(12, 3), (0, 4), (0, 0), (12, 3)]
    assert anchors("pad") == anchors("reflect") == anchors("shrink") == places
    assert anchors("drop") == [(0, 0)]
    with pytest.raises(gp.BoundaryError, match=r"anchor 0 at 15 on axis 'y': .* overflows"):
        anchors("raise")
    outside = gp.Patcher(gp.Rectangular((8, 8), "pad"), gp.Explicit([(0, 0), (0, 20)]))
    with pytest.raises(gp.BoundaryError, match=r"anchor 1 at 20 on axis 'x'.*lies outside"):
        outside.anchors(field)
    flat = gp.Patcher(gp.Rectangular((8, 8)), gp.Explicit([(0,)]))
    with pytest.raises(gp.OptionError, match="the patch axes are y, x"):
        flat.anchors(field)


# ---- K: the most patches that reach one cell -----------------------------------------------------


def depths(grid: gp.patch.grid.PatchGrid) -> np.ndarray:  # type: ignore[name-defined, type-arg]
    """How many footprints lie over each cell."""
    over = np.zeros(grid.shape, int)
    for anchor in grid.anchors:
        over[grid.footprint(anchor).slices()] += 1
    return over


@given(jobs(), st.sampled_from([1, 2, 3]))
@examples(60)
def test_no_cell_is_reached_by_more_patches_than_k(job: Job, scale: int) -> None:
    """Exact for lattices and, where there are few of them, for anchors that are written down."""
    grid = job.patcher.grid(job.field.domain)
    grid = grid.variant(grid.weighted, Fraction(scale))
    deepest = max(int(depths(grid).max()), 1)
    assert grid.most_layers >= deepest
    if isinstance(grid.anchors, DisplacedAnchors):
        assert grid.most_layers <= max(len(grid.anchors), 1)
    elif not isinstance(job.patcher.sampler, gp.Explicit):
        assert grid.most_layers == deepest


@pytest.mark.parametrize("bins", [1, 30, 1 << 20])
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 60))
@examples(25)
def test_anchors_in_a_box_are_never_counted_too_few(
    bins: int, seed: int, ndim: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(-9, 30, (n, ndim))
    lengths = rng.integers(1, 12, ndim).tolist()
    anchors = ListAnchors(points, ndim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geopatch_dask.patch.anchors.BINS", bins)
        most = anchors.most_within(lengths)
    ends = itertools.product(*(np.unique(axis) for axis in points.T))
    walked = max(len(anchors.within([e - k + 1 for e, k in zip(end, lengths, strict=True)],
                                    [e + 1 for e in end])) for end in ends)  # fmt: skip
    assert walked <= most <= n
    if bins >= 60**3:
        assert most == walked


@pytest.mark.parametrize(
    ("sampler", "most"),
    [
        (gp.JitteredStride((32, 32), 0.3, 1), 9),
        (gp.Random(4000, 1), 22),
        (gp.PoissonDisk(32.0, 10), 9),
        (gp.Explicit([(0, 0)] * 3 + [(900, 900)]), 3),
    ],
    ids=lambda v: type(v).__name__,
)
def test_k_does_not_grow_with_the_field(sampler: gp.patch.sampler.Sampler, most: int) -> None:  # type: ignore[name-defined]
    """A bound that counted all anchors would plan a gigabyte for the median of a small tile."""
    grid = gp.Patcher(gp.Rectangular((64, 64)), sampler).grid(
        gp.ArrayField(np.broadcast_to(np.float32(1), (2048, 2048))).domain
    )
    assert int(depths(grid).max()) <= grid.most_layers <= most
