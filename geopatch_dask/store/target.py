"""The life of a target after its template: opened by workers, finished once, read by people.

Workers open arrays ``r+`` by their own metadata, never by consolidated metadata, which may be
stale.  Consolidation is the last act: :func:`finish` replaces the group's document, in one atomic
write, by one that holds the metadata of everything *and* says ``geopatch:complete``.  A reader
therefore sees an unfinished target or a finished one, never something between.

A target that ends in ``.parquet`` is one table and no Zarr store (:mod:`.tables`); a document of
another name, which readers of Parquet pass over, stands for the group's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import zarr

from geopatch_dask.errors import TargetError
from geopatch_dask.store.location import Location, raise_target_error

if TYPE_CHECKING:  # xarray brings pandas: half a second and 50 MB that rasters do without
    import xarray as xr

__all__ = [
    "COMPLETE",
    "DELETING",
    "FINGERPRINT",
    "MEMBERS",
    "ROOT",
    "STATE",
    "TABLES",
    "TABLE_NAMES",
    "IncompleteWarning",
    "drop_orphans",
    "existing_root",
    "finish",
    "holds_one_table",
    "is_complete",
    "open_array",
    "open_target",
    "owner",
    "read_root",
    "refuse_leftovers",
    "reopen",
    "root_name",
]

#: The group's document, and what stands for it where the target is a table.
ROOT = "zarr.json"
_TABLE_ROOT = "_geopatch.json"
#: Suffix of the folder beside a target that holds its records.
STATE = ".geopatch"
#: Suffix of the folder beside a target that holds its tables.
TABLES = ".tables"
#: Attributes of a target: whose result it is, and names of its tables.
FINGERPRINT = "geopatch:fingerprint"
TABLE_NAMES = "geopatch:tables"
#: Attribute of a target whose maker could not list: the names of its arrays.
MEMBERS = "geopatch:members"
#: Attribute of a target whose last act is done.
COMPLETE = "geopatch:complete"
#: Attribute of the tombstone that stands while an old target is being deleted.
DELETING = "geopatch:deleting"


class IncompleteWarning(UserWarning):
    """A target was opened that is not finished: what is missing in it shows as the fill value."""


def holds_one_table(place: Location) -> bool:
    """Whether a target is one table, and no Zarr store: told by how its name ends."""
    return place.url.partition("?")[0].endswith(".parquet")


def root_name(place: Location) -> str:
    """Name of the document that says what a target is."""
    return _TABLE_ROOT if holds_one_table(place) else ROOT


def read_root(location: Location | object) -> dict[str, Any] | None:
    """The group's document, or None when there is none.  A torn one reads as an empty document.

    Raises
    ------
    TargetError
        When the place is forbidden or unreachable.
    """
    place = Location.of(location)
    raw = place.read(root_name(place))
    if raw is None:
        return None
    try:
        document = json.loads(raw)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def owner(root: Mapping[str, Any] | None) -> str | None:
    """The fingerprint of the plan whose result a target is, by its document; None of no plan."""
    found = (root or {}).get("attributes", {}).get(FINGERPRINT)
    return found if isinstance(found, str) else None


def is_complete(location: Location | object) -> bool:
    """Whether the target says that it is finished.

    Raises
    ------
    TargetError
        When the place is forbidden or unreachable; an absent target is not complete.
    """
    return (read_root(location) or {}).get("attributes", {}).get(COMPLETE) is True


def open_array(location: Location | object, name: str) -> zarr.Array[Any]:
    """An array of the target, for reading and for :func:`~.regions.write_region`.

    Raises
    ------
    TargetError
        When the target or the array is missing.
    """
    place = Location.of(location)
    if not place.exists(f"{name}/{ROOT}"):  # zarr would make the directory of a missing store
        raise TargetError(
            f"no array {name!r} in {place.display}: the target has to be created before it is "
            "written, and must not be deleted while it is"
        )
    try:
        return zarr.open_array(
            place.zarr_store(), path=f"{place.path}/{name}".strip("/"), mode="r+", zarr_format=3
        )
    except Exception as error:
        raise_target_error("open", f"{place.display}/{name}", error, place.storage_options)


def finish(location: Location | object) -> None:
    """Consolidate the metadata and declare the target complete, in one atomic write.

    To be called once everything is done; calling it again does no harm.

    Parameters
    ----------
    location : Location, or what :meth:`Location.of` takes

    Raises
    ------
    TargetError
        When there is no target.
    """
    place = Location.of(location)
    root = existing_root(place)
    root["attributes"] = {**root.get("attributes", {}), COMPLETE: True}
    root.pop("consolidated_metadata", None)
    if not holds_one_table(place) and getattr(
        place.zarr_store(), "supports_consolidated_metadata", True
    ):
        root["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": _members(place, "", root["attributes"].get(MEMBERS)),
        }
    _write_root(place, root)


def reopen(location: Location | object) -> None:
    """Take back :func:`finish`, before cells of a finished target are computed again.

    Raises
    ------
    TargetError
        When there is no target.
    """
    place = Location.of(location)
    root = existing_root(place)
    root.get("attributes", {}).pop(COMPLETE, None)
    root.pop("consolidated_metadata", None)
    _write_root(place, root)


def open_target(location: Location | object, chunks: Any = "auto") -> xr.Dataset:
    """The target as an xarray Dataset, lazily, with the CRS as a coordinate.

    Parameters
    ----------
    location : Location, or what :meth:`Location.of` takes
    chunks : "auto", None, or mapping
        As in :func:`xarray.open_zarr`: Dask arrays of the stored chunks, or plain lazy arrays for
        None.  What lives in the memory of this process is never a Dask array.

    Warns
    -----
    IncompleteWarning
        When the target is not finished.

    Raises
    ------
    TargetError
        When there is no target.
    """
    import xarray as xr

    place = Location.of(location)
    root = existing_root(place)
    if holds_one_table(place):
        raise TargetError(f"{place.display} is a table: gp.read_table reads it")
    complete = root.get("attributes", {}).get(COMPLETE) is True
    try:
        dataset: xr.Dataset = xr.open_zarr(
            place.zarr_store(read_only=True),
            group=place.path or None,
            # Dask tasks may run in processes that do not see the memory of this one.
            chunks=chunks if place.is_shared else None,
            zarr_format=3,
            consolidated="consolidated_metadata" in root and not place.path,
        )
    except Exception as error:
        raise_target_error("open", place.display, error, place.storage_options)
    if not complete:
        warnings.warn(
            f"{place.display} is not complete: cells not computed yet hold the fill value",
            IncompleteWarning,
            stacklevel=2,
        )
    return dataset


def existing_root(place: Location) -> dict[str, Any]:
    """The group's document of a target that has to be there.

    Raises
    ------
    TargetError
        When there is none, it is torn, or it is being replaced.
    """
    root = read_root(place)
    if root is None:
        what = "table" if holds_one_table(place) else "Zarr store"
        raise TargetError(f"there is no {what} at {place.display}: check the path, or run a plan")
    if not root:
        raise TargetError(
            f"{root_name(place)} of {place.display} is torn: run the plan with overwrite=True"
        )
    if root.get("attributes", {}).get(DELETING):
        raise TargetError(
            f"{place.display} was being replaced when that run was interrupted: run it again"
        )
    return root


def refuse_leftovers(place: Location, attributes: Mapping[str, Any]) -> None:
    """Refuse to start where records may be left of a target that is gone, and cannot be listed.

    Parameters
    ----------
    place : Location
        That may not list.
    attributes : mapping
        Of the target that is to be made.

    Raises
    ------
    TargetError
    """
    plan = f"{str(attributes.get(FINGERPRINT, ''))[:8]}/plan.json"
    if FINGERPRINT in attributes and place.sibling(STATE).exists(plan):
        raise TargetError(
            f"{place.display} is gone but {place.sibling(STATE).display} is not, and these "
            "credentials may not list what is in it: delete it, or choose another target",
            kind="forbidden",
        )


def drop_orphans(place: Location, inside: Collection[str], arrays: Collection[str]) -> bool:
    """Delete chunks that nobody can read: those of arrays whose documents are gone.

    A target that is deleted while a run works on it comes back as that: what workers wrote last.

    Parameters
    ----------
    place : Location
        Of a target without its document.
    inside : collection of str
        Names there.
    arrays : collection of str
        Of the target that is to be made.

    Returns
    -------
    bool
        False when there is anything else, and nothing has been deleted.

    Raises
    ------
    TargetError
    """
    if not inside or any(
        name not in arrays or set(place.list(name)) - {f"{name}/c"} for name in inside
    ):
        return False
    for name in inside:
        place.child(name).clear()
    return True


def _write_root(place: Location, root: Mapping[str, Any]) -> None:
    place.write(root_name(place), json.dumps(root, indent=2).encode())


def _members(place: Location, prefix: str, names: list[str] | None = None) -> dict[str, Any]:
    """Documents of the arrays and groups below ``prefix``, keyed by path; listed unless named.

    Read object by object instead of asked of zarr: it would warn about the records that live
    inside an open store, and write without our attribute.
    """
    found: dict[str, Any] = {}
    for name in place.list(prefix) if names is None else names:
        raw = place.read(f"{name}/{ROOT}") if name != ROOT else None
        if raw is None:
            continue
        found[name] = json.loads(raw)
        if found[name].get("node_type") == "group":
            found.update(_members(place, name))
    return found
