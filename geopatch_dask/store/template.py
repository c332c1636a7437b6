"""The empty result: everything but the data, made once, before anything runs.

A template costs the same for a megabyte and for a petabyte: metadata, 1-D labels and the CRS::

    out.zarr/zarr.json                 group: georeference, geopatch:template, later :complete
             data/zarr.json            shape, chunks, shards, fill value; no chunks
             y/ x/ time/ ...           labels, stored
             spatial_ref/              CRS

It is built in memory first, then copied, the group's document first.  That order is what makes a
crash harmless at every step: the group says whose it is (``geopatch:template``, a digest of
everything that defines the template) and is finished only when it says so
(``geopatch:complete``, written in one atomic replacement by
:func:`~geopatch_dask.store.target.finish`).  Whoever finds the same digest, after a crash or in a
race, adds what is missing and goes on.

Replacing a target goes through a tombstone, so that a crash in the middle leaves neither a result
that looks finished nor records of data that is gone::

    zarr.json := "geopatch:deleting"  ->  delete records  ->  delete data  ->  new template
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from geopatch_dask.errors import AlignmentError, OptionError, TargetError
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.store import georef, labels
from geopatch_dask.store.location import Location
from geopatch_dask.store.preflight import PROBE
from geopatch_dask.store.regions import write_unit
from geopatch_dask.store.target import (
    COMPLETE,
    DELETING,
    MEMBERS,
    ROOT,
    STATE,
    TABLE_NAMES,
    TABLES,
    drop_orphans,
    holds_one_table,
    read_root,
    refuse_leftovers,
    root_name,
)

__all__ = ["LABEL_CHUNK", "ArraySpec", "create"]

#: Version of what this module writes.
SCHEMA = 1
#: Before the names of our own attributes.
_OWN = "geopatch:"
#: Labels are read whole; this only bounds the size of one object (8 MB of float64).
LABEL_CHUNK = 1 << 20


@dataclass(frozen=True)
class ArraySpec:
    """One array of the result.

    Parameters
    ----------
    name : str
        Also its variable name in xarray.
    dtype : str
        A number or bool, as numpy spells it (``"float32"``).
    dims : tuple of str
        Axis names, slowest first; axes of the domain.
    shape, chunks : tuple of int, cells
    shards : tuple of int, cells, or None
        Whole chunks on every axis.
    fill_value : float, int, "NaN", "Infinity", "-Infinity" or None
        What cells hold that nobody wrote.  xarray shows it as missing; None means 0, not missing.
    attrs : mapping
        JSON attributes; win over generated ones of the same name.

    Raises
    ------
    AlignmentError
        When chunks do not divide shards, or the numbers of axes differ.
    OptionError
        When name, dtype or fill value make no sense.
    """

    name: str
    dtype: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    fill_value: float | int | str | None = "NaN"
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or set("/\\") & set(self.name) or self.name.startswith((".", "__")):
            raise OptionError(f"{self.name!r} cannot name an array: use letters, digits and _")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            raise OptionError(f"array {self.name!r}: {self.dtype!r} is no dtype") from None
        if dtype.kind not in "biufc":
            raise OptionError(f"array {self.name!r}: results are numbers or bools, not {dtype}")
        for what in ("dims", "shape", "chunks", "shards"):
            value = getattr(self, what)
            if value is not None and len(value) != len(self.shape):
                raise AlignmentError(
                    f"array {self.name!r}: {what} {value} do not fit shape {self.shape}"
                )
        write_unit(self.chunks, self.shards)
        if isinstance(self.fill_value, float) and not np.isfinite(self.fill_value):
            named = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(self.fill_value)]
            object.__setattr__(self, "fill_value", named)
        _ = self.fill

    @cached_property
    def fill(self) -> np.generic:
        """The fill value, in the dtype of the array."""
        dtype = np.dtype(self.dtype)
        try:
            value = 0 if self.fill_value is None else self.fill_value
            number = value if isinstance(value, int) else float(value)
            scalar: np.generic = dtype.type(number)
            exact = dtype.kind in "fc" or bool(scalar == number)
        except (TypeError, ValueError, OverflowError):
            exact = False
        if not exact:
            raise OptionError(
                f"array {self.name!r}: fill value {self.fill_value!r} does not fit {dtype}"
            )
        return scalar

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        data: dict[str, Any] = labels.jsonable(asdict(self))
        return data


def create(
    location: Location | object,
    arrays: Sequence[ArraySpec],
    domain: GridDomain,
    attrs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> bool:
    """Make the target, or find that it is there already.

    Call it before anything reads the records beside the target: records whose target is gone are
    removed here, since the data they speak of is gone too.

    Parameters
    ----------
    location : Location, or what :meth:`Location.of` takes
    arrays : sequence of ArraySpec
    domain : GridDomain
        The *output* grid; has every axis that an array uses.
    attrs : mapping, optional
        JSON attributes of the group.
    overwrite : bool
        Delete a Zarr store that is there, and its records, first.

    Returns
    -------
    bool
        True when the target was made; False when the identical one was found (what was missing of
        it after a crash has been added) and its data and records stand.

    Raises
    ------
    TargetError
        When something else is there, or the place is forbidden or unreachable.
    OptionError
        When arrays and domain disagree.
    """
    place = Location.of(location)
    documents = _documents(place, arrays, domain, dict(attrs or {}))
    made, root = _make_room(place, documents, overwrite), root_name(place)
    if made:
        _add_parents(place)
        place.write(root, documents[root])
    for name, data in documents.items():
        if name != root and (made or not place.exists(name)):
            place.write(name, data)
    return made


def _make_room(place: Location, documents: Mapping[str, bytes], overwrite: bool) -> bool:
    """Whether a new target is to be made; what must go first is gone then."""
    root = read_root(place)
    if root is None and not place.lists:
        refuse_leftovers(place, json.loads(documents[root_name(place)])["attributes"])
        return True
    # Looked at first: what comes beside a vacant place from now on is of a client that was faster.
    left = _beside(place) if root is None else []
    if root is None and _is_vacant(place, overwrite, {n.partition("/")[0] for n in documents}):
        for folder in left:
            folder.clear()
        return True
    theirs = (root or read_root(place) or {}).get("attributes", {})
    if theirs.get(DELETING) or overwrite:
        if not place.lists:
            raise TargetError(
                f"{place.display} exists, and these credentials may not list what there is to "
                "delete: choose another target, or allow listing",
                kind="forbidden",
            )
        _erase(place)
        return True
    ours = json.loads(documents[root_name(place)])["attributes"]
    if theirs.get(f"{_OWN}template") != ours[f"{_OWN}template"]:
        raise TargetError(
            f"{place.display} exists and is another result "
            f"({_difference(place, theirs, documents)}): pass overwrite=True to replace it, or "
            "choose another target"
        )
    return False


def _documents(
    place: Location, arrays: Sequence[ArraySpec], domain: GridDomain, attrs: dict[str, Any]
) -> dict[str, bytes]:
    """Every object of the template, keyed by name; one is the group's document."""
    _check(arrays, domain, attrs)
    store = MemoryStore()
    coordinates = georef.coordinates(domain)
    own = {
        f"{_OWN}schema": SCHEMA,
        f"{_OWN}template": _digest(arrays, domain, attrs, list(coordinates)),
    }
    if holds_one_table(place):
        if arrays:
            raise OptionError(f"{place.display}: a name that ends in .parquet is for one table")
        return {root_name(place): json.dumps({"attributes": {**attrs, **own}}).encode()}
    group = {**georef.group_attrs(domain), **attrs, **own}
    if not place.lists:  # the last act has to find them by name
        crs_name = [georef.SPATIAL_REF] if georef.spatial_ref_attrs(domain) is not None else []
        group[MEMBERS] = [*(spec.name for spec in arrays), *coordinates, *crs_name]
    zarr.create_group(store, zarr_format=3, attributes=group)
    for spec in arrays:
        _add_array(store, spec, domain)
    for dim, label in coordinates.items():
        values, label_attrs = labels.encoded(dim, label)
        _add_values(store, dim, (dim,), values, label_attrs)
    crs = georef.spatial_ref_attrs(domain)
    if crs is not None:
        _add_values(store, georef.SPATIAL_REF, (), np.zeros((), "int64"), crs)
    return {key: buffer.to_bytes() for key, buffer in sorted(store._store_dict.items())}


def _add_array(store: MemoryStore, spec: ArraySpec, domain: GridDomain) -> None:
    generated = georef.array_attrs(domain, spec.dims)
    if spec.fill_value not in (None, "NaN") and spec.fill.dtype.kind != "b":
        generated["_FillValue"] = labels.encoded_fill(spec.fill)
    attrs = {**generated, **labels.jsonable(spec.attrs)}
    if "coordinates" in generated and "coordinates" in spec.attrs:
        attrs["coordinates"] = f"{spec.attrs['coordinates']} {generated['coordinates']}"
    zarr.create_array(
        store,
        name=spec.name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=ZstdCodec(),
        fill_value=spec.fill,
        attributes=attrs,
        dimension_names=spec.dims,
        zarr_format=3,
    )


def _add_values(
    store: MemoryStore, name: str, dims: tuple[str, ...], values: Any, attrs: dict[str, Any]
) -> None:
    """An array with its data, all of it, also where it equals the fill value."""
    array: Any = zarr.create_array(
        store,
        name=name,
        shape=values.shape,
        dtype=str if values.dtype.kind == "O" else values.dtype,
        chunks=tuple(min(n, LABEL_CHUNK) for n in values.shape),
        compressors=ZstdCodec(),
        attributes=attrs,
        dimension_names=dims,
        zarr_format=3,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def _check(arrays: Sequence[ArraySpec], domain: GridDomain, attrs: dict[str, Any]) -> None:
    names = [spec.name for spec in arrays]
    if not (names or attrs.get(TABLE_NAMES)) or len(set(names)) != len(names):
        raise OptionError(f"a target needs arrays of distinct names, got {names}")
    taken = {*domain.dims, georef.SPATIAL_REF}.intersection(names)
    if taken:
        raise OptionError(f"array names {sorted(taken)} are those of axes or of the CRS: rename")
    for spec in arrays:
        for dim, n in zip(spec.dims, spec.shape, strict=True):
            if domain.size(dim) != n:
                raise OptionError(
                    f"array {spec.name!r} has {n} cells along {dim!r}, its domain has "
                    f"{domain.size(dim)}"
                )
    try:
        json.dumps(attrs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(f"attributes of the target must be plain JSON: {error}") from None
    own = [name for name in (COMPLETE, DELETING) if name in attrs]
    if own:
        raise OptionError(f"attribute {own[0]!r} is set by finish, not given")


def _digest(
    arrays: Sequence[ArraySpec], domain: GridDomain, attrs: dict[str, Any], labelled: list[str]
) -> str:
    """Hex SHA-256 of what defines a template, whatever version of zarr writes it."""
    transform = georef.transform_of(domain)
    text = json.dumps(
        {
            "schema": SCHEMA,
            "arrays": [spec.to_json() for spec in arrays],
            "dims": domain.dims,
            "shape": domain.shape,
            "crs": domain.crs,
            "transform": transform and [float(v) for v in transform],
            "labelled": labelled,
            "labels": {dim: labels.digest(label) for dim, label in domain.coords.items()},
            "attrs": attrs,
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _is_vacant(place: Location, overwrite: bool, arrays: set[str]) -> bool:
    """Whether a target of some arrays can be made where no group document was found.

    False when one has appeared since: another client was faster.
    """
    inside = [name for name in place.list() if name not in (STATE, TABLES)]
    if not inside or root_name(place) in inside:
        return not inside
    if drop_orphans(place, inside, arrays):
        return True
    if {".zgroup", ".zarray", ".zmetadata"}.isdisjoint(inside):
        raise TargetError(
            f"{place.display} is not empty and not a Zarr store (it has {inside[0]!r}), and is "
            "never deleted: choose another target"
        )
    if not overwrite:
        raise TargetError(
            f"{place.display} exists (Zarr version 2): pass overwrite=True to replace it, or "
            "choose another target"
        )
    _erase(place)
    return True


def _add_parents(place: Location) -> None:
    """Inside an open store, every folder above a group has to be a group."""
    if place.store is None:
        return
    whole, parts = Location.of(place.store), place.path.split("/")
    for depth in range(len(parts)) if place.path else ():
        name = "/".join([*parts[:depth], ROOT])
        if not whole.exists(name):
            whole.write(name, json.dumps({"zarr_format": 3, "node_type": "group"}).encode())


def _erase(place: Location) -> None:
    """Delete the records, then the data, leaving the tombstone."""
    tombstone = {"zarr_format": 3, "node_type": "group", "attributes": {DELETING: True}}
    place.write(root_name(place), json.dumps(tombstone).encode())
    for folder in _beside(place):
        folder.clear()
    place.clear(keep=root_name(place))


def _beside(place: Location) -> list[Location]:
    """Folders beside a target that hold anything but a trial: the records, then the tables."""
    folders = [place.sibling(STATE)]
    if not holds_one_table(place):
        folders.append(place.sibling(TABLES))
    return [f for f in folders if any(not name.startswith(PROBE) for name in f.list())]


def _difference(
    place: Location, attributes: Mapping[str, Any], documents: Mapping[str, bytes]
) -> str:
    """Why the existing target is not the wanted one, in a few words."""
    found = []
    if f"{_OWN}template" not in attributes:
        return "not written by geopatch_dask"
    for name, data in documents.items():
        if not name.endswith(f"/{ROOT}"):
            continue
        array = name.removesuffix(f"/{ROOT}")
        raw = place.read(name)
        if raw is None:
            found.append(f"no array {array!r}")
            continue
        theirs, ours = json.loads(raw), json.loads(data)
        keys = ("shape", "data_type", "chunk_grid", "codecs", "fill_value", "dimension_names")
        found += [f"{key} of {array!r}" for key in keys if theirs.get(key) != ours.get(key)]
    ours = json.loads(documents[root_name(place)])["attributes"]
    own = (f"{_OWN}template", f"{_OWN}schema")
    found += [k for k in ours if k not in own and attributes.get(k) != ours[k]]
    return "differs in " + ", ".join(found[:6]) if found else "differs in the labels of its axes"
