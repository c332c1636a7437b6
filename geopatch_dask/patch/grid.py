"""The patches of one domain: what each reads, what each writes, and how much they count.

:class:`PatchGrid` binds geometry, sampler and window to a domain.  The in-RAM path
(:class:`~geopatch_dask.patch.patcher.Patcher`) and the distributed kernel both go through it, so
there is one arithmetic of anchors, footprints and weights.  Everything here is over the *patch*
axes; riding axes are always taken whole.

::

    anchor a, size P, window support [lo, hi)          domain 0 .. N
    indices    [a, a + P)                              what is read (may leave the domain)
    source     the cells of the domain that reading needs (mirrored ones included)
    footprint  [a + lo, a + hi) cut at the domain      what is written
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from geopatch_dask.patch.anchors import Anchors, IntArray, LatticeAnchors
from geopatch_dask.patch.boundary import reflected
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.patch.geometry import Rectangular
from geopatch_dask.patch.sampler import Sampler
from geopatch_dask.patch.window import Boxcar, FloatArray, Window

__all__ = ["PatchGrid"]


class PatchGrid:
    """Geometry, sampler and window, bound to a domain.

    Parameters
    ----------
    domain : GridDomain
    geometry : Rectangular
    sampler : Sampler
    window : Window or None
        None: the aggregation does not weigh, every cell of a patch counts the same.

    Attributes
    ----------
    dims, riding : tuple of str
        Patch axes and the other ones, each in the order of the domain.
    shape : tuple of int, cells
        The domain along the patch axes.
    size : tuple of int, cells
        A full patch.
    """

    def __init__(
        self,
        domain: GridDomain,
        geometry: Rectangular,
        sampler: Sampler,
        window: Window | None = None,
    ) -> None:
        self.domain, self.geometry, self.sampler = domain, geometry, sampler
        self.weighted = window is not None
        self.window: Window = window if window is not None else Boxcar()
        self.dims = geometry.dims(domain)
        self.riding = tuple(dim for dim in domain.dims if dim not in self.dims)
        self.shape = tuple(domain.size(dim) for dim in self.dims)
        self.size = geometry.shape(domain)
        self.support = self.window.support(self.size)

    @cached_property
    def anchors(self) -> Anchors:
        """All anchors, lazily."""
        return self.sampler.anchors(self.domain, self.geometry)

    @property
    def box(self) -> Box:
        """All cells along the patch axes."""
        return Box.of_shape(self.shape)

    # ---- one patch ------------------------------------------------------------------------

    def indices(self, anchor: Sequence[int]) -> Box:
        """The cells the patch shows its operator; cut at the domain under ``shrink`` only."""
        full = Box.at(anchor, self.size)
        return full.intersect(self.box) if self.geometry.boundary == "shrink" else full

    def footprint(self, anchor: Sequence[int]) -> Box:
        """The output cells the patch writes."""
        return Box(
            tuple(
                min(max(a + lo, 0), n)
                for a, (lo, _), n in zip(anchor, self.support, self.shape, strict=True)
            ),
            tuple(
                min(max(a + hi, 0), n)
                for a, (_, hi), n in zip(anchor, self.support, self.shape, strict=True)
            ),
        )

    def source(self, anchor: Sequence[int]) -> Box:
        """The cells of the domain from which the patch is made."""
        return self.source_of(self.indices(anchor))

    def source_of(self, indices: Box) -> Box:
        """The cells of the domain from which a box of indices is made, edges mirrored or not."""
        if self.box.contains(indices) or self.geometry.boundary != "reflect":
            return indices.intersect(self.box)
        starts, stops = [], []
        for a, b, n in zip(indices.start, indices.stop, self.shape, strict=True):
            cells = reflected(a, b, n)
            starts.append(int(cells.min()))
            stops.append(int(cells.max()) + 1)
        return Box(tuple(starts), tuple(stops))

    def extract(
        self, block: npt.NDArray[np.generic], origin: Sequence[int], anchor: Sequence[int]
    ) -> npt.NDArray[np.generic]:
        """Cut a patch out of a block that was read, filling or mirroring beyond the edge.

        Parameters
        ----------
        block : ndarray, shape (*riding, *patch axes)
            Cells of the domain that contain :meth:`source`; its first one is ``origin``.
        origin, anchor : sequence of int, cells

        Returns
        -------
        ndarray, shape (*riding, *patch)
            A view where the patch lies inside, else a copy; not necessarily contiguous.
        """
        indices = self.indices(anchor)
        inside = indices.intersect(self.box)
        if inside == indices:
            inner: npt.NDArray[np.generic] = block[indices.index(origin)]
            return inner
        if self.geometry.boundary == "reflect":
            out = block
            for d, (a, b) in enumerate(zip(indices.start, indices.stop, strict=True)):
                cells = reflected(a, b, self.shape[d]) - origin[d]
                out = np.take(out, cells, axis=out.ndim - indices.ndim + d)
            return out
        lead = block.shape[: block.ndim - indices.ndim]
        padded = np.full(lead + indices.shape, self.geometry.pad_value).astype(block.dtype)
        padded[inside.index(indices.start)] = block[inside.index(origin)]
        return padded

    def weights(self, anchor: Sequence[int], cells: Box) -> FloatArray:
        """Window weights of a patch on some cells of its footprint: float64, ``cells.shape``."""
        return self.window.weights(self.size)[cells.slices(anchor)]

    # ---- many patches ---------------------------------------------------------------------

    def _limits(self, box: Box) -> tuple[list[int], list[int]]:
        low = [k - hi + 1 for k, (_, hi) in zip(box.start, self.support, strict=True)]
        high = [k - lo for k, (lo, _) in zip(box.stop, self.support, strict=True)]
        return low, high

    def touching(self, box: Box) -> IntArray:
        """Ordinals, ascending, of the patches whose footprint meets a box."""
        return self.anchors.within(*self._limits(box))

    def count_touching(self, box: Box) -> int:
        """How many patches touch a box."""
        return self.anchors.count_within(*self._limits(box))

    def _owner_limits(self, box: Box) -> tuple[list[int], list[int]]:
        # An anchor before cell 0 (pad, reflect) belongs to whoever owns cell 0.
        far = 1 << 62
        low = [k if k > 0 else -far for k in box.start]
        high = [k if k < n else far for k, n in zip(box.stop, self.shape, strict=True)]
        return low, high

    def owned(self, box: Box) -> IntArray:
        """Ordinals, ascending, of the patches whose anchor lies in a box (clamped)."""
        return self.anchors.within(*self._owner_limits(box))

    def count_owned(self, box: Box) -> int:
        """How many patches a box owns."""
        return self.anchors.count_within(*self._owner_limits(box))

    # ---- sums over all patches ------------------------------------------------------------

    @cached_property
    def analytic(self) -> bool:
        """Whether counts and weight sums are outer products of 1-D sums."""
        return isinstance(self.anchors, LatticeAnchors) and self.window.separable

    @cached_property
    def most_layers(self) -> int:
        """K: no cell is reached by more patches than this."""
        if not isinstance(self.anchors, LatticeAnchors):
            return max(len(self.anchors), 1)
        most = 1
        for positions, (lo, hi) in zip(self.anchors.axes, self.support, strict=True):
            earliest = np.searchsorted(positions, positions - (hi - lo) + 1)
            most *= int((np.arange(len(positions)) - earliest + 1).max(initial=1))
        return most

    def axis_sums(self, axis: int, start: int, stop: int) -> tuple[IntArray, FloatArray]:
        """Per cell of one axis: how many lattice anchors reach it, and the sum of their profile.

        The sum runs over ascending anchors, one cell at a time, so it does not depend on which
        cells are asked for together.

        Returns
        -------
        counts : ndarray of int64, shape (stop - start,)
        sums : ndarray of float64, shape (stop - start,)
        """
        if not isinstance(self.anchors, LatticeAnchors):
            raise TypeError("sums along an axis exist only for a lattice of anchors")
        lo, hi = self.support[axis]
        profile = self.window.profile(self.size[axis])
        positions = self.anchors.axes[axis]
        first, last = np.searchsorted(positions, [start - hi + 1, stop - lo])
        counts = np.zeros(stop - start, np.int64)
        sums = np.zeros(stop - start)
        for a in positions[first:last].tolist():
            p, q = max(a + lo, start), min(a + hi, stop)
            counts[p - start : q - start] += 1
            sums[p - start : q - start] += profile[p - a : q - a]
        return counts, sums
