"""The patches of one domain: what each reads, what each writes, and how much they count.

:class:`PatchGrid` binds geometry, sampler and window to a domain.  The in-RAM path
(:class:`~geopatch_dask.patch.patcher.Patcher`) and the distributed kernel both go through it, so
there is one arithmetic of anchors, footprints and weights.  Everything here is over the *patch*
axes; riding axes are always taken whole.

::

    anchor a, size P, window support [lo, hi)          domain 0 .. N, output 0 .. s N
    indices    [a, a + P)                              what is read (may leave the domain)
    source     the cells of the domain that reading needs (mirrored ones included)
    written    [s a, s (a + P))                        where the operator's result lies
    footprint  [s a + lo, s a + hi) cut at the output  what is written of it

What is read is counted in cells of the field, what is written in cells of the output; their ratio,
the *scale* s, is 1 but for operators that refine or coarsen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.anchors import Anchors, IntArray, LatticeAnchors, ListAnchors
from geopatch_dask.patch.boundary import reflected
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.patch.geometry import Rectangular
from geopatch_dask.patch.sampler import Sampler
from geopatch_dask.patch.window import Boxcar, FloatArray, Window

__all__ = ["UNIT", "PatchGrid"]

#: The scale of an operator that keeps the grid of the field.
UNIT = Fraction(1)


class PatchGrid:
    """Geometry, sampler and window, bound to a domain.

    Parameters
    ----------
    domain : GridDomain
    geometry : Rectangular
    sampler : Sampler
    window : Window or None
    weighted : bool or None
        Whether the window matters; if not, every cell of a patch counts the same.  None: where
        there is a window.
    scale : Fraction
        Output cells per field cell along every patch axis.

    Attributes
    ----------
    dims, riding : tuple of str
        Patch axes and the other ones, each in the order of the domain.
    shape : tuple of int, output cells
    field_shape : tuple of int, cells of the field
        Along the patch axes.
    size : tuple of int, cells of the field
        A full patch.
    support : tuple of (start, stop), output cells
        Where the window is not zero, within a full patch.
    per_patch : bool
        Whether results exist once per patch and not per cell, see :meth:`owning`.

    Raises
    ------
    OptionError
        When the patch or an anchor times the scale is no whole number of cells.  The field may be:
        its last output cells then reach beyond it.
    """

    def __init__(
        self,
        domain: GridDomain,
        geometry: Rectangular,
        sampler: Sampler,
        window: Window | None = None,
        weighted: bool | None = None,
        scale: Fraction = UNIT,
    ) -> None:
        self.domain, self.geometry, self.sampler = domain, geometry, sampler
        self.taper, self.scale = window, scale
        self.weighted = window is not None if weighted is None else weighted
        self.window: Window = window if window is not None and self.weighted else Boxcar()
        self.dims = geometry.dims(domain)
        self.riding = tuple(dim for dim in domain.dims if dim not in self.dims)
        self.field_shape = tuple(domain.size(dim) for dim in self.dims)
        self.size = geometry.shape(domain)
        num, den = scale.as_integer_ratio()
        for p, dim in zip(self.size, self.dims, strict=True):
            if p * num % den:
                raise OptionError(
                    f"scale {scale}: a patch has {p} cells along {dim!r}, which makes no whole "
                    f"number of output cells; use a multiple of {den}"
                )
        self.out_size = tuple(p * num // den for p in self.size)
        self.shape = tuple(-(-n * num // den) for n in self.field_shape)
        self.support = self.window.support(self.out_size)
        self.per_patch = False

    def variant(self, weighted: bool, scale: Fraction = UNIT) -> PatchGrid:
        """The same patches, weighed or not, at another scale."""
        if weighted == self.weighted and scale == self.scale:
            return self
        other = PatchGrid(self.domain, self.geometry, self.sampler, self.taper, weighted, scale)
        other.__dict__["anchors"] = other.checked(self.anchors)
        return other

    def owning(self) -> PatchGrid:
        """The same patches for results that exist once per patch: a box needs those it owns."""
        other = copy.copy(self)
        other.per_patch = True
        return other

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """Cells of a full patch by which a box that needs it is told: they meet."""
        return ((0, 1),) * len(self.dims) if self.per_patch else self.support

    @cached_property
    def anchors(self) -> Anchors:
        """All anchors, lazily."""
        return self.checked(self.sampler.anchors(self.domain, self.geometry))

    def checked(self, anchors: Anchors) -> Anchors:
        """Anchors that fall on whole output cells, or :class:`OptionError`."""
        den = self.scale.denominator
        if den == 1:
            return anchors
        axes = anchors.axes if isinstance(anchors, LatticeAnchors) else ()
        points = anchors.points.T if isinstance(anchors, ListAnchors) else axes
        if not len(points) or any((axis % den).any() for axis in points):
            raise OptionError(
                f"scale {self.scale}: every patch must start at a multiple of {den} cells; choose "
                f"steps that are, and boundary='shrink' or 'pad' (shift moves the last patch)"
            )
        return anchors

    @property
    def box(self) -> Box:
        """All output cells along the patch axes."""
        return Box.of_shape(self.shape)

    @property
    def field_box(self) -> Box:
        """All cells of the field along the patch axes."""
        return Box.of_shape(self.field_shape)

    # ---- one patch ------------------------------------------------------------------------

    def indices(self, anchor: Sequence[int]) -> Box:
        """The cells the patch shows its operator; cut at the domain under ``shrink`` only."""
        full = Box.at(anchor, self.size)
        return full.intersect(self.field_box) if self.geometry.boundary == "shrink" else full

    def written(self, indices: Box) -> Box:
        """The output cells that a result for ``indices`` covers; may leave the output."""
        num, den = self.scale.as_integer_ratio()
        return Box(
            tuple(a * num // den for a in indices.start),
            tuple(-(-b * num // den) for b in indices.stop),
        )

    def footprint(self, anchor: Sequence[int]) -> Box:
        """The output cells the patch writes."""
        num, den = self.scale.as_integer_ratio()
        limits = [
            (min(max(a * num // den + lo, 0), n), min(max(a * num // den + hi, 0), n))
            for a, (lo, hi), n in zip(anchor, self.support, self.shape, strict=True)
        ]
        return Box(tuple(a for a, _ in limits), tuple(b for _, b in limits))

    def source(self, anchor: Sequence[int]) -> Box:
        """The cells of the domain from which the patch is made."""
        return self.source_of(self.indices(anchor))

    def source_of(self, indices: Box) -> Box:
        """The cells of the domain from which a box of indices is made, edges mirrored or not."""
        if self.field_box.contains(indices) or self.geometry.boundary != "reflect":
            return indices.intersect(self.field_box)
        starts, stops = [], []
        for a, b, n in zip(indices.start, indices.stop, self.field_shape, strict=True):
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
        inside = indices.intersect(self.field_box)
        if inside == indices:
            inner: npt.NDArray[np.generic] = block[indices.index(origin)]
            return inner
        if self.geometry.boundary == "reflect":
            out = block
            for d, (a, b) in enumerate(zip(indices.start, indices.stop, strict=True)):
                cells = reflected(a, b, self.field_shape[d]) - origin[d]
                out = np.take(out, cells, axis=out.ndim - indices.ndim + d)
            return out
        lead = block.shape[: block.ndim - indices.ndim]
        padded = np.full(lead + indices.shape, self._padding(block.dtype), block.dtype)
        padded[inside.index(indices.start)] = block[inside.index(origin)]
        return padded

    def _padding(self, dtype: np.dtype[Any]) -> float | int:
        """What to fill with, if the dtype can hold it."""
        value = self.geometry.pad_value
        if dtype.kind not in "iu":
            return value
        info = np.iinfo(dtype)
        if not (value.is_integer() and int(info.min) <= int(value) <= int(info.max)):
            raise OptionError(
                f"pad_value {value:g} does not fit in the field's {dtype}; give one between "
                f"{info.min} and {info.max}, or a float field"
            )
        return int(value)

    def weights(self, anchor: Sequence[int], cells: Box) -> FloatArray:
        """Window weights of a patch on some cells of its footprint: float64, ``cells.shape``."""
        num, den = self.scale.as_integer_ratio()
        origin = [a * num // den for a in anchor]
        return self.window.weights(self.out_size)[cells.slices(origin)]

    # ---- many patches ---------------------------------------------------------------------

    def _limits(self, box: Box) -> tuple[list[int], list[int]]:
        # s a + hi > start  and  s a + lo < stop, for whole a
        num, den = self.scale.as_integer_ratio()
        pairs = zip(box.start, box.stop, self.support, strict=True)
        limits = [((a - hi) * den // num + 1, -((lo - b) * den // num)) for a, b, (lo, hi) in pairs]
        return [low for low, _ in limits], [high for _, high in limits]

    def touching(self, box: Box) -> IntArray:
        """Ordinals, ascending, of the patches that a box needs: whose footprint meets it."""
        if self.per_patch:
            return self.owned(box)
        return self.anchors.within(*self._limits(box))

    def count_touching(self, box: Box) -> int:
        """How many patches touch a box."""
        if self.per_patch:
            return self.count_owned(box)
        return self.anchors.count_within(*self._limits(box))

    def _owner_limits(self, box: Box) -> tuple[list[int], list[int]]:
        # An anchor before cell 0 (pad, reflect) belongs to whoever owns cell 0.
        far = 1 << 62
        num, den = self.scale.as_integer_ratio()
        low = [-(-k * den // num) if k > 0 else -far for k in box.start]
        high = [
            -(-k * den // num) if k < n else far for k, n in zip(box.stop, self.shape, strict=True)
        ]
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
        """K: no cell is reached by more patches than this.

        Exact for a lattice; else a bound that depends on the anchors around a cell, not on their
        number in all (see :meth:`~geopatch_dask.patch.anchors.Anchors.most_within`).
        """
        num, den = self.scale.as_integer_ratio()
        # The patches that reach one cell have anchors less than a support apart.
        return max(
            self.anchors.most_within([(hi - lo - 1) * den // num + 1 for lo, hi in self.support]), 1
        )

    def positions(self, axis: int) -> IntArray:
        """Where the results of lattice anchors begin along one axis, output cells, ascending.

        Raises
        ------
        TypeError
            When the anchors are no lattice.
        """
        if not isinstance(self.anchors, LatticeAnchors):
            raise TypeError("positions along an axis exist only for a lattice of anchors")
        num, den = self.scale.as_integer_ratio()
        return self.anchors.axes[axis] * num // den

    def axis_sums(self, axis: int, start: int, stop: int) -> tuple[IntArray, FloatArray]:
        """Per cell of one axis: how many lattice anchors reach it, and the sum of their profile.

        The sum runs over ascending anchors, one cell at a time, so it does not depend on which
        cells are asked for together.

        Returns
        -------
        counts : ndarray of int64, shape (stop - start,)
        sums : ndarray of float64, shape (stop - start,)
        """
        positions = self.positions(axis)
        lo, hi = self.support[axis]
        profile = self.window.profile(self.out_size[axis])
        first, last = np.searchsorted(positions, [start - hi + 1, stop - lo])
        counts = np.zeros(stop - start, np.int64)
        sums = np.zeros(stop - start)
        for a in positions[first:last].tolist():
            p, q = max(a + lo, start), min(a + hi, stop)
            counts[p - start : q - start] += 1
            sums[p - start : q - start] += profile[p - a : q - a]
        return counts, sums
