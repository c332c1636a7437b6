"""The four axes together: split a field into patches, merge patches into a field.

This is the in-RAM path, and the reference that every distributed run must equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.anchors import Anchors
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.config import Configurable, from_config, load_object
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.patch.geometry import Rectangular
from geopatch_dask.patch.grid import PatchGrid
from geopatch_dask.patch.patch import Patch
from geopatch_dask.patch.sampler import Sampler
from geopatch_dask.patch.window import Boxcar, Window

__all__ = ["Merger", "Patcher", "Readable", "patch_of", "read_cells"]


class Readable(Protocol):
    """What the patcher needs of a field; see :class:`geopatch_dask.fields.base.Field`."""

    @property
    def domain(self) -> GridDomain:
        """Axes, labels, georeference."""
        ...

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Cells of a box over all axes."""
        ...


class Merger(Protocol):
    """What the patcher needs of an aggregation; see :mod:`geopatch_dask.aggregation`."""

    @property
    def weighted(self) -> bool:
        """Whether window weights matter."""
        ...

    def collect(self, patches: Iterable[Patch], grid: PatchGrid, output: Any) -> Any:
        """Aggregate patches over the whole of a grid."""
        ...

    def get_config(self) -> dict[str, Any]:
        """Plain JSON."""
        ...


@dataclass(frozen=True)
class Patcher:
    """Geometry, sampler, window and aggregation.

    Parameters
    ----------
    geometry : Rectangular
        Shape of a patch, and the edge rule.
    sampler : Sampler
        Where patches sit.
    window : Window
        How much each cell of a patch counts, for aggregations that weigh.
    aggregation : Aggregation, or mapping of str to Aggregation
        How overlapping patches become one value per cell; a mapping for an operator that returns
        a dict.

    Examples
    --------
    >>> import numpy as np, geopatch_dask as gp
    >>> patcher = gp.Patcher(
    ...     gp.Rectangular((4, 4)), gp.RegularStride((2, 2)), gp.Hann(), gp.OverlapAdd()
    ... )
    >>> field = gp.ArrayField(np.arange(36.0).reshape(6, 6))
    >>> patches = (p.with_data(p.data * 2) for p in patcher.split(field))
    >>> bool(np.allclose(patcher.merge(patches, field.domain), 2 * np.arange(36.0).reshape(6, 6)))
    True
    """

    geometry: Rectangular
    sampler: Sampler
    window: Window
    aggregation: Merger

    def __init__(
        self,
        geometry: Rectangular,
        sampler: Sampler,
        window: Window | None = None,
        aggregation: Merger | Mapping[str, Merger] | None = None,
    ) -> None:
        given = aggregation.values() if isinstance(aggregation, Mapping) else [aggregation]
        for each in given:
            _refuse_statistic(each)
        # By name: aggregations live one floor up.
        if aggregation is None:
            aggregation = cast(Merger, from_config({"class": "OverlapAdd"}))
        elif isinstance(aggregation, Mapping):
            aggregation = cast(Merger, from_config({"class": "Several", "members": aggregation}))
        for name, value, kind in (
            ("geometry", geometry, Rectangular),
            ("sampler", sampler, Sampler),
            ("window", window or Boxcar(), Window),
            ("aggregation", aggregation, Configurable),
        ):
            if not isinstance(value, kind):
                raise OptionError(f"{name} must be a {kind.__name__}, got {value!r}")
            if name == "aggregation" and not hasattr(value, "weighted"):
                raise OptionError(f"aggregation must be an Aggregation, got {value!r}")
            object.__setattr__(self, name, value)

    # ---- places ---------------------------------------------------------------------------

    def grid(self, domain: GridDomain) -> PatchGrid:
        """This patcher bound to a domain."""
        return PatchGrid(
            domain, self.geometry, self.sampler, self.window, self.aggregation.weighted
        )

    def anchors(self, field: Readable) -> Anchors:
        """Anchors on a field: a lazy sequence of tuples of ints, in ordinal order."""
        return self.grid(field.domain).anchors

    def n_anchors(self, field: Readable) -> int:
        """How many patches a field is split into; nothing is read."""
        return len(self.anchors(field))

    # ---- numbers --------------------------------------------------------------------------

    def split(self, field: Readable) -> Iterator[Patch]:
        """Patches in ordinal order, each read when it is asked for."""
        grid = self.grid(field.domain)
        for ordinal, anchor in enumerate(grid.anchors):
            yield patch_of(field, grid, ordinal, anchor)

    def patch_at(self, field: Readable, where: int | Sequence[int]) -> Patch:
        """One patch, by ordinal or by anchor; equal to the one :meth:`split` gives.

        Raises
        ------
        OptionError
            When no patch has that anchor.
        IndexError
            When there is no such ordinal.
        """
        grid = self.grid(field.domain)
        if isinstance(where, int | np.integer):
            ordinal = int(where) % max(len(grid.anchors), 1)
            return patch_of(field, grid, ordinal, grid.anchors[int(where)])
        anchor = tuple(int(v) for v in where)
        if len(anchor) != len(grid.dims):
            raise OptionError(f"no anchor at {anchor}: the patch axes are {', '.join(grid.dims)}")
        found = grid.anchors.within(anchor, [a + 1 for a in anchor])
        if not len(found):
            raise OptionError(f"no patch has its anchor at {anchor}; see patcher.anchors(field)")
        return patch_of(field, grid, int(found[0]), anchor)

    def merge(
        self, patches: Iterable[Patch], domain: GridDomain | Readable, output: Any = None
    ) -> Any:
        """Aggregate patches in this process: the reference for every distributed run.

        Parameters
        ----------
        patches : iterable of Patch
            Consumed one at a time and added in the order given; :meth:`split` gives ordinal order.
        domain : GridDomain, or the field itself
        output : Output, mapping of str to Output, or None
            Dtype and fill value; by default what a plan would infer from the first patch.

        Returns
        -------
        ndarray, shape (*leading, *patch axes of the domain)
            Cells without any valid contribution hold the fill value (NaN for floats).  For
            ``ByIndex`` a dict of rows by anchor, in ordinal order, whose ``.table()`` is a
            pyarrow.Table.  A dict of these, named as in a target, where there are several.
        """
        where = domain if isinstance(domain, GridDomain) else domain.domain
        return self.aggregation.collect(patches, self.grid(where), output)

    def reduce(
        self,
        field: Readable,
        statistic: Any,
        over: Callable[..., Any] | Any = "field",
        operator: Callable[..., Any] | Any = None,
        output: Any = None,
    ) -> dict[str, Any]:
        """A statistic in this process: the same numbers as the first pass of a plan.

        Parameters
        ----------
        field : Field
        statistic : Statistic
        over : "field", "output", or an operator
            Each cell of the field once; what ``operator`` makes of each patch, once; or what
            another operator makes of it.
        operator : callable ``array -> array``, Operator or ``"module:name"``
            For ``over="output"``; called as a plan calls it.
        output
            As for :meth:`merge`, for ``over="output"``: at which scale, and what is missing.

        Returns
        -------
        dict of str to number or ndarray

        Raises
        ------
        OptionError
            When ``over`` is unknown, or the statistic does not merge, as for a plan.
        """
        # By name, as for aggregations: operators live some floors up.
        reduced = load_object("geopatch_dask.planning.context:reduced")
        return cast(dict[str, Any], reduced(self, field, statistic, over, operator, output))

    def two_pass(
        self,
        field: Readable,
        operator: Callable[..., Any] | Any,
        statistic: Any,
        over: Callable[..., Any] | Any = "field",
        output: Any = None,
    ) -> Any:
        """Reduce, then split, operate and merge with the result, in this process.

        Parameters
        ----------
        field, statistic
            As for :meth:`reduce`.
        operator : callable ``(array, context=...) -> array``, Operator or ``"module:name"``
            ``context`` is what :meth:`reduce` returned; None in a first pass over its own output.
        over : "field", "output", or an operator
            What the first pass sees: the field, what ``operator`` makes of it with
            ``context=None``, or what another operator makes of it.
        output
            As for :meth:`merge`.
        """
        run = load_object("geopatch_dask.planning.context:in_two_passes")
        return run(self, field, operator, statistic, over, output)

    # ---- configuration --------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The four axes as plain JSON."""
        return {
            "geometry": self.geometry.get_config(),
            "sampler": self.sampler.get_config(),
            "window": self.window.get_config(),
            "aggregation": self.aggregation.get_config(),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Patcher:
        """The patcher that :meth:`get_config` described.

        Raises
        ------
        OptionError
            For unknown axes, classes or options.
        """
        kinds: dict[str, type[Configurable]] = {
            "geometry": Rectangular,
            "sampler": Sampler,
            "window": Window,
            "aggregation": Configurable,
        }
        unknown = set(config) - set(kinds)
        if unknown:
            raise OptionError(f"a patcher has no {min(unknown)!r}; it has {', '.join(kinds)}")
        axes: dict[str, Any] = {
            name: kinds[name].from_config(value) for name, value in config.items()
        }
        missing = {"geometry", "sampler"} - set(axes)
        if missing:
            raise OptionError(f"a patcher needs a {min(missing)}")
        return cls(**axes)


def _refuse_statistic(value: object) -> None:
    """Told by what it has, because statistics live one floor up, too."""
    answers = isinstance(value, Configurable) and hasattr(value, "finalize")
    if answers and not hasattr(value, "weighted"):
        raise OptionError(
            f"{type(value).__name__} is a statistic, which has one answer for many cells, and no "
            "aggregation of the patches over one: a first pass takes it (context=), and so do "
            "patcher.reduce, and per_block for one answer per block"
        )


def patch_of(field: Readable, grid: PatchGrid, ordinal: int, anchor: tuple[int, ...]) -> Patch:
    """Read one patch."""
    source = grid.source(anchor)
    data = grid.extract(read_cells(field, grid, source), source.start, anchor)
    footprint = grid.footprint(anchor)
    return Patch(
        data=np.array(data, order="C"),
        anchor=anchor,
        ordinal=ordinal,
        indices=grid.indices(anchor),
        footprint=footprint,
        weights=grid.weights(anchor, footprint) if grid.weighted else None,
        dims=grid.riding + grid.dims,
        domain=field.domain,
    )


def read_cells(field: Readable, grid: PatchGrid, cells: Box) -> npt.NDArray[Any]:
    """Read a box of the patch axes and all of the riding axes, riding axes first.

    Returns
    -------
    ndarray, shape (*riding, *cells.shape)
    """
    dims = field.domain.dims
    limits = dict(zip(grid.dims, zip(cells.start, cells.stop, strict=True), strict=True))
    pairs = [limits.get(dim, (0, field.domain.size(dim))) for dim in dims]
    block = field.read(Box(tuple(a for a, _ in pairs), tuple(b for _, b in pairs)))
    order = [dims.index(dim) for dim in grid.riding + grid.dims]
    return block.transpose(order) if order != sorted(order) else block
