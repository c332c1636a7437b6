"""Stores that xarray opens: which engine, what is missing when none does, what identifies them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopatch_dask.credentials import redact
from geopatch_dask.errors import FieldError, OptionError
from geopatch_dask.fields.remote import filesystem, fsspec_options
from geopatch_dask.fields.source import failure, local_path, traceable
from geopatch_dask.retries import call

if TYPE_CHECKING:  # xarray brings pandas: half a second and 50 MB that rasters do without
    import xarray as xr

__all__ = ["is_zarr", "open_store", "zarr_identity"]

#: First bytes of formats that need a package which may not be there.
_MAGIC = {b"CDF": "netCDF-3", b"\x89HDF": "netCDF-4 (HDF5)", b"GRIB": "GRIB"}

#: Metadata documents of a Zarr array, formats 3 and 2.
_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs")


def is_zarr(uri: str, engine: str | None = None) -> bool:
    """Whether a URI names a Zarr store: by ``engine``, a ``.zarr`` part, or what lies in it."""
    if engine is not None:
        return engine == "zarr"
    path = local_path(uri)
    if path is not None and not path.is_dir():
        return False if path.exists() else path.suffix == ".zarr"
    if any(part.endswith(".zarr") for part in redact(uri).split("/")):
        return True
    return path is not None and any((path / name).exists() for name in ("zarr.json", ".zgroup"))


def open_store(uri: str, engine: str | None, **options: Any) -> xr.Dataset:
    """Open a store lazily, without Dask arrays.

    Parameters
    ----------
    uri : str
    engine : str or None
        None guesses.
    **options
        Of :func:`xarray.open_dataset`.

    Raises
    ------
    FieldError
        When it cannot be opened, or the package that could is not installed.
    """
    import xarray as xr

    options = {"chunks": None, "cache": False, **options}
    named = options.get("storage_options")
    try:
        if options.get("storage_options") or uri.startswith("s3://"):
            options["storage_options"] = fsspec_options(uri, options.get("storage_options"))
        if is_zarr(uri, engine):
            return _open_zarr(uri, options)
        return xr.open_dataset(uri, engine=engine, **options)
    except (MemoryError, OptionError):
        raise
    except Exception as error:  # every engine has its own
        raise _cannot_open(uri, engine, error, named) from traceable(error, uri, named)


def _open_zarr(uri: str, options: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    if "consolidated" in options:
        return xr.open_dataset(uri, engine="zarr", **options)
    try:
        return xr.open_dataset(uri, engine="zarr", consolidated=True, **options)
    except Exception:  # zarr versions differ in what they raise; the second try tells the reason
        return xr.open_dataset(uri, engine="zarr", consolidated=False, **options)


def _cannot_open(uri: str, engine: str | None, error: Exception, named: Any) -> FieldError:
    path = local_path(uri)
    kind = _magic(path)
    if isinstance(error, ImportError) or (kind and "backend" in str(error)):
        package = "cfgrib" if kind == "GRIB" else "'geopatch_dask[netcdf]'"
        what = f"is {kind}, and no installed package reads that" if kind else "needs a package"
        return failure(uri, what, f"pip install {package}", error, named)
    if path is not None and path.is_dir() and not is_zarr(uri, engine):
        return failure(uri, "is a directory, and no Zarr store", "give a file or a store")
    return failure(
        uri,
        "cannot be opened by xarray",
        "check the path, that the file is complete, and engine= and group=",
        error,
        named,
    )


def _magic(path: Path | None) -> str | None:
    """The format that the first bytes of a local file announce."""
    if path is None or not path.is_file():
        return None
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(4)
        return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    return None


def zarr_identity(uri: str, inside: str, storage_options: Any = None) -> dict[str, Any]:
    """What identifies one array of a Zarr store without reading it.

    The digest of its own metadata documents (not the group's, which consolidation rewrites) and,
    of a local store, number, bytes and newest time of its chunk files.  Chunks of a remote store
    are not listed: a change of values under the same metadata goes unseen there.

    Parameters
    ----------
    uri : str
    inside : str
        Path of the array in the store.
    storage_options : mapping, optional
        Of fsspec; credentials are names in it.
    """
    path = local_path(uri)
    if path is not None:
        return {"uri": uri, **_zarr_files(path / inside)}

    def digest() -> str:
        found = hashlib.sha256()
        fs, root = filesystem(uri, storage_options)
        for name in _DOCUMENTS:
            with contextlib.suppress(FileNotFoundError):
                found.update(fs.cat_file(f"{root.rstrip('/')}/{inside}/{name}"))
        return found.hexdigest()

    try:
        return {"uri": redact(uri), "metadata": call(digest)}
    except OptionError:
        raise
    except Exception as error:  # every filesystem has its own
        what, remedy = "its metadata cannot be read", "check access, or retry"
        made = failure(uri, what, remedy, error, storage_options)
        raise made from traceable(error, uri, storage_options)


def _zarr_files(path: Path) -> dict[str, Any]:
    """Digest of an array's metadata; number, bytes and newest time of its other files."""
    documents: list[Path] = []
    count, size, newest = 0, 0, 0
    stack = [path]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    stack.append(Path(entry.path))
                elif entry.name in _DOCUMENTS:
                    documents.append(Path(entry.path))
                else:
                    found = entry.stat()
                    count, size = count + 1, size + found.st_size
                    newest = max(newest, found.st_mtime_ns)
    digest = hashlib.sha256()
    for document in sorted(documents):
        digest.update(document.read_bytes())
    return {"metadata": digest.hexdigest(), "files": count, "size": size, "mtime_ns": newest}
