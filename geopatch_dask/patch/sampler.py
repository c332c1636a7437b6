"""Where anchors are placed.

A sampler turns (domain, geometry) into a lazy :class:`~geopatch_dask.patch.anchors.Anchors`.  All
are deterministic: the random ones take a seed, and the position of an ordinal depends on nothing
but the seed, the ordinal and the domain.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.anchors import (
    Anchors,
    DisplacedAnchors,
    IntArray,
    LatticeAnchors,
    ListAnchors,
    random_bits,
)
from geopatch_dask.patch.boundary import draw_range, lattice, place
from geopatch_dask.patch.config import Configurable
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.patch.geometry import Cells, Rectangular, cells_of, per_axis
from geopatch_dask.patch.poisson import poisson_disk

__all__ = ["Explicit", "JitteredStride", "PoissonDisk", "Random", "RegularStride", "Sampler"]


class Sampler(Configurable):
    """Base of samplers."""

    @abstractmethod
    def anchors(self, domain: GridDomain, geometry: Rectangular) -> Anchors:
        """The anchors on a domain, in canonical order.

        Raises
        ------
        BoundaryError
            When the patches do not fit under the geometry's boundary mode.
        """


@dataclass(frozen=True)
class RegularStride(Sampler):
    """A lattice.

    Parameters
    ----------
    step : tuple of int, mapping of axis name to int, or int; cells
        Given like the size of the geometry.  Overlap is what size exceeds step by.
    """

    step: Cells

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", cells_of(self.step, "step"))

    def anchors(self, domain: GridDomain, geometry: Rectangular) -> LatticeAnchors:
        """Row-major product of the per-axis lattices (see :mod:`~geopatch_dask.patch.boundary`)."""
        steps = _steps(self.step, domain, geometry)
        return LatticeAnchors(
            [
                lattice(domain.size(dim), p, s, geometry.boundary, dim)
                for dim, p, s in zip(
                    geometry.dims(domain), geometry.shape(domain), steps, strict=True
                )
            ]
        )


@dataclass(frozen=True)
class JitteredStride(Sampler):
    """A lattice whose points are each moved at random.

    Parameters
    ----------
    step : as for :class:`RegularStride`
    jitter : float in [0, 1]
        Largest move, as a share of the step, in either direction.
    seed : int

    Notes
    -----
    Moved points are kept within the domain (whole patches, under ``shift``, ``drop`` and
    ``raise``).  Cells that no patch reaches any more are reported as uncovered.
    """

    step: Cells
    jitter: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", cells_of(self.step, "step"))
        if not 0 <= self.jitter <= 1:
            raise OptionError(f"jitter must lie in [0, 1], got {self.jitter!r}")
        _check_seed(self.seed)

    def anchors(self, domain: GridDomain, geometry: Rectangular) -> DisplacedAnchors:
        """The moved lattice, computed where it is asked for."""
        steps = _steps(self.step, domain, geometry)
        base = RegularStride(self.step).anchors(domain, geometry)
        dims, sizes = geometry.dims(domain), geometry.shape(domain)
        reach = [int(self.jitter * s) for s in steps]
        limits = [
            draw_range(domain.size(dim), p, geometry.boundary, dim) if len(base) else 1
            for dim, p in zip(dims, sizes, strict=True)
        ]
        return DisplacedAnchors(base, reach, partial(_jittered, self.seed, reach, limits))


def _jittered(
    seed: int, reach: Sequence[int], limits: Sequence[int], ordinals: IntArray, base: IntArray
) -> IntArray:
    moved = base.copy()
    for d, (r, m) in enumerate(zip(reach, limits, strict=True)):
        draw = (random_bits(seed, ordinals, d) % np.uint64(2 * r + 1)).astype(np.int64) - r
        moved[:, d] = np.clip(base[:, d] + draw, 0, m - 1)
    return moved


@dataclass(frozen=True)
class Random(Sampler):
    """Independent uniform positions, in the order they are drawn.

    Parameters
    ----------
    n_samples : int
    seed : int
    """

    n_samples: int
    seed: int = 0

    def __post_init__(self) -> None:
        cells_of((self.n_samples,), "n_samples")
        _check_seed(self.seed)

    def anchors(self, domain: GridDomain, geometry: Rectangular) -> ListAnchors:
        """Ordinal ``i`` sits at a hash of ``(seed, i, axis)``, modulo the positions there are."""
        ordinals = np.arange(self.n_samples)
        columns = []
        for d, (dim, p) in enumerate(
            zip(geometry.dims(domain), geometry.shape(domain), strict=True)
        ):
            m = draw_range(domain.size(dim), p, geometry.boundary, dim)
            columns.append((random_bits(self.seed, ordinals, d) % np.uint64(m)).astype(np.int64))
        return ListAnchors(np.stack(columns, axis=-1), len(columns))


@dataclass(frozen=True)
class PoissonDisk(Sampler):
    """Random positions of which no two are closer than a distance, nearly as dense as possible.

    Parameters
    ----------
    min_dist : float, cells
        Smallest Euclidean distance between two anchors; it holds for the integer positions.
    max_tries : int
        Rounds of darts; more fill more gaps.
    seed : int
    """

    min_dist: float
    max_tries: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_dist < math.inf:
            raise OptionError(f"min_dist must be at least 1 cell, got {self.min_dist!r}")
        cells_of((self.max_tries,), "max_tries")
        _check_seed(self.seed)

    def anchors(self, domain: GridDomain, geometry: Rectangular) -> ListAnchors:
        """The accepted darts, row-major; see :mod:`geopatch_dask.patch.poisson`."""
        limits = [
            draw_range(domain.size(dim), p, geometry.boundary, dim)
            for dim, p in zip(geometry.dims(domain), geometry.shape(domain), strict=True)
        ]
        points = poisson_disk(limits, float(self.min_dist), self.max_tries, self.seed)
        return ListAnchors(points, len(limits))


@dataclass(frozen=True)
class Explicit(Sampler):
    """Anchors given one by one.

    Parameters
    ----------
    positions : sequence of tuples of int, cells
        First cell of each patch on the patch axes, in the order of the domain.  Under ``shift``
        they are moved inward; under ``pad``, ``reflect`` and ``shrink`` they may be negative.
    """

    positions: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        try:
            array = np.asarray(self.positions)
        except ValueError:
            array = np.empty(0)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise OptionError("positions must be a list of tuples of whole cells, one per patch")
        object.__setattr__(self, "positions", tuple(tuple(int(v) for v in row) for row in array))

    def anchors(self, domain: GridDomain, geometry: Rectangular) -> ListAnchors:
        """The positions, fitted to the domain by the boundary mode."""
        dims, sizes = geometry.dims(domain), geometry.shape(domain)
        points = np.array(self.positions, np.int64)
        if points.shape[1] != len(dims):
            raise OptionError(
                f"positions have {points.shape[1]} numbers each, the patch axes are "
                f"{', '.join(dims)}"
            )
        keep = np.ones(len(points), bool)
        for d, (dim, p) in enumerate(zip(dims, sizes, strict=True)):
            points[:, d], fits = place(points[:, d], domain.size(dim), p, geometry.boundary, dim)
            keep &= fits
        return ListAnchors(points[keep], len(dims))


def _check_seed(seed: object) -> None:
    """Any whole number will do; a float would be rounded without a word."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise OptionError(f"seed must be a whole number, got {seed!r}")


def _steps(step: Cells, domain: GridDomain, geometry: Rectangular) -> tuple[int, ...]:
    """The step along each patch axis; the step must name exactly the axes the geometry cuts."""
    dims = geometry.dims(domain)
    steps = per_axis(step, domain, "step")
    if tuple(steps) != dims:
        raise OptionError(f"step names axes {', '.join(steps)}, the patch {', '.join(dims)}")
    return tuple(steps.values())
