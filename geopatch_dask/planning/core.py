"""The plan: everything that will happen, decided before it does.

A plan is small (a few kB of JSON), pure, and enough: a worker that has the plan and one integer
can compute and write a super-tile.  :class:`PlanBase` has all of it that needs no Dask;
:class:`geopatch_dask.execute.api.Plan` adds running.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as attribute
from fractions import Fraction
from functools import cached_property
from typing import Any, Self, cast

import numpy as np

from geopatch_dask import credentials, fields
from geopatch_dask.aggregation import Aggregation
from geopatch_dask.aggregation.several import members_of
from geopatch_dask.aggregation.statistic import Statistic
from geopatch_dask.errors import GeopatchError, OptionError, RecordError
from geopatch_dask.fields.base import Field
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.config import Configurable, object_name, to_json
from geopatch_dask.patch.domain import Affine6, Coordinate, GridDomain, RasterDomain
from geopatch_dask.patch.grid import UNIT, PatchGrid
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.context import Context
from geopatch_dask.planning.cost import Cost, cost_of
from geopatch_dask.planning.identity import code_identity, described, digest
from geopatch_dask.planning.memory import MemoryPlan
from geopatch_dask.planning.operator import Operator
from geopatch_dask.planning.probe import OutputArray, Product
from geopatch_dask.planning.supertile import Layout, SuperTile
from geopatch_dask.planning.tables import Table
from geopatch_dask.store.location import Location

__all__ = ["SCHEMA", "PlanBase", "fingerprint_parts"]

#: Version of ``plan.json``; another one is refused.
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class PlanBase:
    """What :func:`geopatch_dask.plan` decided.

    Parameters
    ----------
    field : Field
    patcher : Patcher
    operator : Operator
    target : Location
    layout : Layout
        Super-tiles, chunks and shards over the patch axes.
    products : tuple of Product
        The operator's results and the arrays that are written.
    tables : tuple of Table
        Results of the operator that are rows, and their columns.
    memory : MemoryPlan
        Peak bytes of one worker slot.
    parts : dict
        The fingerprint, part by part.
    memory_limit : int, bytes
        What one worker slot has.
    slots : int
        Super-tiles computed at the same time.
    seconds_per_patch : float
        Measured at plan time.
    scale : Fraction
        Output cells per field cell.
    context : Context or None
        The first pass, where there is one.
    rejected : tuple of dict
        Layouts that were considered and lost, with the reason.
    """

    field: Field
    patcher: Patcher
    operator: Operator
    target: Location
    layout: Layout
    products: tuple[Product, ...]
    memory: MemoryPlan
    parts: Mapping[str, Any]
    memory_limit: int
    slots: int
    seconds_per_patch: float = 0.0
    scale: Fraction = UNIT
    context: Context | None = None
    tables: tuple[Table, ...] = ()
    rejected: tuple[Mapping[str, Any], ...] = attribute(default=())

    def __getstate__(self) -> dict[str, Any]:
        """Configuration only: what was derived is derived again on the other side."""
        derived = {"grid", "cost", "fingerprint", "output_domain"}
        return {key: value for key, value in self.__dict__.items() if key not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    # ---- derived ---------------------------------------------------------------------------

    @cached_property
    def grid(self) -> PatchGrid:
        """The patches, as far as they are common to all products and tables."""
        weighted = all(product.aggregation.weighted for product in self.products)
        # Whoever owns an anchor emits rows, though the window may be zero there.
        grid = self.patcher.grid(self.field.domain)
        grid = grid.variant(weighted and not self.tables, self.scale)
        return grid if self.products else grid.owning()

    @property
    def arrays(self) -> tuple[OutputArray, ...]:
        """All arrays of the target, the main one first."""
        return tuple(array for product in self.products for array in product.arrays)

    @cached_property
    def cost(self) -> Cost:
        """Patches run, cells read."""
        return cost_of(self.grid, self.layout)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the values; the layout is not part of it."""
        return digest(self.parts)

    @property
    def n_supertiles(self) -> int:
        """Number of tasks."""
        return self.layout.count

    def supertile(self, i: int) -> SuperTile:
        """Super-tile ``i``: a pure function of the number."""
        return self.layout.supertile(i)

    def scrub(self, text: str) -> str:
        """``text`` without the credentials of the target and the field, for what others will read.

        Everything that a library or an operator wrote passes through here before it is kept or
        cut: errors, tracebacks, lines of a log.
        """
        named = {"target": self.target.storage_options or {}, "field": self.field.secrets}
        return credentials.scrub(text, named)

    @cached_property
    def output_domain(self) -> GridDomain:
        """The grid of the target: leading axes of the arrays, then the patch axes."""
        return output_domain(self.field.domain, self.products, self.grid)

    # ---- JSON ------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as JSON text, without secrets, data or code.

        What cannot be written (an in-memory field, a lambda) is null there; give it again to
        :meth:`from_json`.
        """
        products = [asdict(product) | {"aggregation": None} for product in self.products]
        document = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "field": _or_none(lambda: {"kind": self.field.kind, **self.field.get_config()}),
            "patcher": _or_none(self.patcher.get_config),
            "operator": _or_none(lambda: _operator_config(self.operator)),
            "target": self.target.to_json(),
            "layout": asdict(self.layout),
            "products": to_json(products),
            "tables": [table.to_json() for table in self.tables],
            "scale": str(self.scale),
            "context": self.context and _or_none(lambda: _context_config(self.context)),
            "memory": asdict(self.memory),
            "memory_limit": self.memory_limit,
            "slots": self.slots,
            "seconds_per_patch": self.seconds_per_patch,
            "rejected": [dict(r) for r in self.rejected],
        }
        return json.dumps(document, indent=1, allow_nan=False)

    @classmethod
    def from_json(
        cls,
        text: str | bytes,
        *,
        field: Field | None = None,
        patcher: Patcher | None = None,
        operator: Operator | None = None,
    ) -> Self:
        """The plan that :meth:`to_json` described.

        Parameters
        ----------
        text : str or bytes
        field, patcher, operator : optional
            In place of those that JSON could not hold.

        Raises
        ------
        RecordError
            For text that is no plan, or one of another schema version.
        OptionError
            When a part is missing that JSON could not hold.
        """
        data = read_plan(text)
        given: dict[str, Any] = {"field": field, "patcher": patcher, "operator": operator}
        for name, value in given.items():
            if value is None and data[name] is None:
                raise OptionError(
                    f"the stored plan has no {name} (it was in memory only); pass {name}= again"
                )
        patcher = patcher or Patcher.from_config(data["patcher"])
        members = members_of(patcher.aggregation)
        return cls(
            field=field or fields.field_from_config(data["field"]),
            patcher=patcher,
            operator=operator or Operator(**data["operator"]),
            target=Location.from_json(data["target"]),
            layout=Layout(**{k: _tuples(v) for k, v in data["layout"].items()}),
            products=tuple(_product(stored, members) for stored in data["products"]),
            scale=Fraction(data["scale"]),
            context=_context(data),
            tables=tuple(Table.from_json(stored, members) for stored in data.get("tables", ())),
            memory=MemoryPlan(**data["memory"]),
            parts=data["parts"],
            memory_limit=data["memory_limit"],
            slots=data["slots"],
            seconds_per_patch=data["seconds_per_patch"],
            rejected=tuple(data["rejected"]),
        )


def read_plan(text: str | bytes) -> dict[str, Any]:
    """Parse ``plan.json``; :class:`RecordError` for anything that is not one of ours."""
    try:
        data = json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise RecordError(f"plan.json is not JSON ({error}); was it cut short?") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        version = data.get("schema") if isinstance(data, dict) else None
        raise RecordError(f"plan.json has schema {version!r}; this version reads {SCHEMA}")
    return data


def fingerprint_parts(
    field: Field,
    patcher: Patcher,
    operator: Operator,
    products: Sequence[Product],
    grid: PatchGrid,
    context: Context | None = None,
    tables: Sequence[Table] = (),
) -> dict[str, Any]:
    """What decides the values, part by part, as JSON."""
    window = patcher.window if any(p.aggregation.weighted for p in products) else None
    parts = {
        "field": field.identity(),
        "domain": {"dims": list(field.domain.dims), "shape": list(field.domain.shape)},
        "geometry": described(patcher.geometry),
        "sampler": described(patcher.sampler),
        "window": window and described(window),
        "aggregation": described(cast(Configurable, patcher.aggregation)),
        "operator": operator.identity(),
        "output": {
            "scale": str(grid.scale),
            **{array.name: _array_parts(p, array) for p in products for array in p.arrays},
        },
    }
    if context is not None:
        parts["context"] = context.identity()
    if tables:
        parts["tables"] = {t.name: [column.to_json() for column in t.columns] for t in tables}
    if window is not None and not window.separable:
        parts["weights"] = code_identity(window.weights(grid.out_size))
    return json.loads(json.dumps(to_json(parts)))  # type: ignore[no-any-return]  # a mapping still


def _array_parts(product: Product, array: OutputArray) -> dict[str, Any]:
    return {
        "dtype": array.dtype,
        "result_dtype": product.result_dtype,
        "fill": array.fill,
        "missing": product.missing,
        "dims": array.dims,
        "leading": array.leading,
    }


def _product(stored: Mapping[str, Any], members: Mapping[str, Aggregation]) -> Product:
    """A product from its JSON; aggregations are not in it, they are the patcher's."""
    arrays = tuple(
        OutputArray(**{k: _tuples(v) for k, v in a.items()} | {"fill": _number(a["fill"])})
        for a in stored["arrays"]
    )
    return Product(
        key=stored["key"],
        aggregation=members[stored["key"]],
        leading=_tuples(stored["leading"]),
        result_dtype=stored["result_dtype"],
        missing=_number(stored["missing"]),
        arrays=arrays,
    )


def output_domain(domain: GridDomain, products: Sequence[Product], grid: PatchGrid) -> GridDomain:
    """The grid of the target: all leading axes of its arrays, then the patch axes.

    Raises
    ------
    OptionError
        When two arrays use one axis name for different lengths.
    """
    lengths: dict[str, int] = {}
    coords: dict[str, Coordinate] = {}
    for product in products:
        for dim, values in product.aggregation.labels().items():
            coords[dim] = Coordinate(np.asarray(values))
        for array in product.arrays:
            for dim, n in zip(array.dims, array.leading, strict=False):
                if lengths.setdefault(dim, n) != n:
                    raise OptionError(
                        f"axis {dim!r} has {lengths[dim]} entries in one output and {n} in "
                        f"{array.name!r}: name them apart, gp.Output(dims=...)"
                    )
    for dim, n in lengths.items():
        known = domain.coords.get(dim)
        if known is not None and len(known.values) == n and dim in grid.riding:
            coords[dim] = known
    dims, shape = (*lengths, *grid.dims), (*lengths.values(), *grid.shape)
    raster = isinstance(domain, RasterDomain) and dims[-2:] == domain.dims[-2:]
    for dim in grid.dims:
        labels = _scaled_labels(domain, dim, grid)
        if labels is not None and not (raster and dim not in domain.coords):
            coords[dim] = labels
    if isinstance(domain, RasterDomain) and raster:
        transform = domain.transform and _scaled_transform(domain.transform, grid)
        return RasterDomain(dims, shape, coords, domain.crs, transform)
    return GridDomain(dims, shape, coords, domain.crs)


def _scaled_labels(domain: GridDomain, dim: str, grid: PatchGrid) -> Coordinate | None:
    """Labels of a patch axis at the scale of the output: centres of its cells."""
    known = domain.coords.get(dim)
    n = domain.size(dim)
    labels = domain.labels(dim, 0, n)
    if labels is None:
        return None
    attrs = known.attrs if known is not None else {}
    if grid.scale == 1:
        return known if known is not None else Coordinate(labels)
    if labels.dtype.kind not in "iuf" or n < 2:
        return None  # names and dates have no halves
    centres = (np.arange(grid.shape[grid.dims.index(dim)]) + 0.5) / float(grid.scale) - 0.5
    wide = domain.labels(dim, -1, n + 1)
    values = labels if wide is None else wide
    return Coordinate(np.interp(centres, np.arange(-1, n + 1), values.astype(np.float64)), attrs)


def _scaled_transform(transform: Affine6, grid: PatchGrid) -> Affine6:
    a, b, c, d, e, f = transform
    s = float(grid.scale)
    y, x = (s if dim in grid.dims else 1.0 for dim in grid.domain.dims[-2:])
    return (a / x, b / y, c, d / x, e / y, f)


def _operator_config(operator: Operator) -> dict[str, Any]:
    config = {name: getattr(operator, name) for name in operator.__dataclass_fields__}
    if not isinstance(operator.function, str):
        name = object_name(operator.function)
        if name.startswith("__main__:"):
            raise OptionError("a function of __main__ cannot be imported elsewhere")
        config["function"] = name
    return to_json(config)  # type: ignore[no-any-return]  # a mapping stays a mapping


def _context_config(context: Context | None) -> dict[str, Any] | None:
    if context is None:
        return None
    fit = context.fit and _operator_config(context.fit)
    return {
        "statistic": to_json(context.statistic),
        "over": context.over,
        "fit": fit,
        "missing": to_json(context.missing),
        "shape": list(context.shape),
    }


def _context(data: Mapping[str, Any]) -> Context | None:
    """The first pass of a stored plan; its fingerprint says whether there was one."""
    stored = data["context"]
    if stored is None:
        if "context" in data["parts"]:
            raise OptionError("the first pass of the stored plan was in memory only; plan again")
        return None
    fit, missing = stored["fit"], stored.get("missing")
    return Context(
        Statistic.from_config(stored["statistic"]),
        stored["over"],
        fit and Operator(**fit),
        _number(missing),
        tuple(stored.get("shape", (0, 0))),
    )


def _or_none(call: Any) -> Any:
    try:
        return call()
    except GeopatchError:
        return None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def done_boxes(records: Mapping[str, Any]) -> list[Box]:
    """Boxes of finished records."""
    return [Box.from_json(r.box) if not isinstance(r.box, Box) else r.box for r in records.values()]
