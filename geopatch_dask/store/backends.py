"""Small objects on a local path, in a bucket, on any fsspec URL, or inside an open zarr store.

Four classes with one shape.  They move bytes and raise whatever the library underneath raises;
:class:`~geopatch_dask.store.location.Location` repeats what is worth repeating, names the failure
and adds the remedy.

Writing is all or nothing everywhere:

* local: a temporary file in the same directory, flushed to the disk, then renamed over the name;
* object stores: one PUT, which is atomic by contract;
* zarr stores: :meth:`zarr.abc.store.Store.set`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore

from geopatch_dask.failures import failure_kind
from geopatch_dask.store import clients
from geopatch_dask.store.clients import forget_clients
from geopatch_dask.store.retry import innermost, patient

__all__ = [
    "Backend",
    "FsspecBackend",
    "LocalBackend",
    "ObstoreBackend",
    "StoreBackend",
    "forget_clients",
    "fsync",
    "in_memory",
]

#: How temporary files end, ours and those of zarr's LocalStore; a killed writer leaves them.
PARTIAL = ".partial"
#: How often a file is written whose folder vanishes meanwhile: runs that start in the same moment
#: remove what an earlier one left beside the target.
_ROUNDS = 10
_MD5 = re.compile("[0-9a-f]{32}")

#: Names in a folder; with each its MD5 in hex, if known.
Listing = dict[str, str | None]


class Backend(Protocol):
    """What a location needs of a place; names are relative, with ``/`` between the parts."""

    def read(self, name: str) -> bytes | None:
        """The object, or None when there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace the object; a reader sees the old bytes or the new ones."""

    def delete(self, name: str) -> None:
        """Remove the object; absent is fine."""

    def exists(self, name: str) -> bool:
        """Whether there is an object (not a folder) of this name."""

    def children(self, prefix: str) -> Listing:
        """Last parts of the names directly inside a folder, objects and folders alike.

        With each, the MD5 of the object in hex, if it comes with the listing.
        """

    def clear(self, keep: str) -> None:
        """Remove everything here but the object ``keep``."""

    def zarr_store(self, read_only: bool) -> Store:
        """The place as a zarr store."""


class LocalBackend:
    """A directory.

    Parameters
    ----------
    path : str
        Absolute; it need not exist.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def root(self) -> Path:
        return Path(self.path)

    def read(self, name: str) -> bytes | None:
        try:  # not by Path: a run that continues reads 100,000 of these
            with open(f"{self.path}/{name}", "rb") as file:  # noqa: PTH123
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        for left in reversed(range(_ROUNDS)):
            try:
                return self._write(path, data)
            # somebody has just removed the folder, or emptied it; mkdir may take both for the other
            except (FileNotFoundError, FileExistsError):
                if not left:
                    raise

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        fsync(path.parent)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def children(self, prefix: str) -> Listing:
        try:
            found = os.listdir(self.root / prefix)  # noqa: PTH208
        except FileNotFoundError:
            return {}
        return dict.fromkeys(name for name in found if not name.endswith(PARTIAL))

    def clear(self, keep: str) -> None:
        try:
            found = list(self.root.iterdir())
        except FileNotFoundError:
            return
        for path in found:
            if path.is_dir() and not path.is_symlink():
                while path.exists():  # others may be at it, too
                    with contextlib.suppress(FileNotFoundError):
                        shutil.rmtree(path)
            elif path.name != keep:
                path.unlink(missing_ok=True)

    def zarr_store(self, read_only: bool) -> Store:
        return LocalStore(self.root, read_only=read_only)


class _AtUrl:
    """A folder at a URL.

    Parameters
    ----------
    url : str
    options : mapping or None
        Storage options in which credentials are still ``"env:NAME"``.
    """

    def __init__(self, url: str, options: dict[str, Any] | None) -> None:
        self.url = url
        self.options = json.dumps(options or {}, sort_keys=True)


class FsspecBackend(_AtUrl):
    """A folder of an fsspec filesystem."""

    def read(self, name: str) -> bytes | None:
        fs, root = self._client()
        try:
            data: bytes = fs.cat_file(_join(root, name))
        except FileNotFoundError as error:
            if _no_bucket(error):
                raise
            return None
        return data

    def write(self, name: str, data: bytes) -> None:
        fs, root = self._client()
        fs.pipe_file(_join(root, name), data)

    def delete(self, name: str) -> None:
        fs, root = self._client()
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(_join(root, name))

    def exists(self, name: str) -> bool:
        fs, root = self._client()
        # fsspec remembers listings, and another process may have written since.
        fs.invalidate_cache(_join(root, name))
        try:
            return bool(fs.info(_join(root, name))["type"] == "file")
        except FileNotFoundError as error:
            if _no_bucket(error):
                raise
            return False

    def children(self, prefix: str) -> Listing:
        fs, root = self._client()
        folder = _join(root, prefix)
        fs.invalidate_cache(folder)
        try:
            listed = fs.ls(folder, detail=True)
        except FileNotFoundError as error:
            if _no_bucket(error):
                raise
            return {}
        found = {str(item["name"]).strip("/"): _md5(item.get("ETag")) for item in listed}
        # A folder marker, or a file in place of the folder, is listed under the folder's own name.
        found.pop(folder.strip("/"), None)
        return {path.rpartition("/")[2]: told for path, told in found.items()}

    def clear(self, keep: str) -> None:
        fs, root = self._client()
        fs.invalidate_cache(root)
        try:
            found = fs.find(root)
        except FileNotFoundError:
            return
        kept = _join(root, keep).strip("/")
        doomed = [path for path in found if str(path).strip("/") != kept]
        if any(mark in root for mark in "*?["):  # rm would take the name for a pattern
            for path in doomed:
                fs.rm_file(path)
        elif doomed:
            fs.rm(doomed)

    def zarr_store(self, read_only: bool) -> Store:
        root = self._client()[1]
        fs = clients.filesystem(self.url, self.options, asynchronous=True)
        return patient(FsspecStore(fs, read_only=read_only, path=root))

    def _client(self) -> tuple[Any, str]:
        fs = clients.filesystem(self.url, self.options, asynchronous=False)
        return fs, str(fs._strip_protocol(self.url))


class ObstoreBackend(_AtUrl):
    """A folder of an S3 bucket, through obstore."""

    def read(self, name: str) -> bytes | None:
        import obstore

        try:
            return bytes(obstore.get(self._bucket, self._key(name)).bytes())
        except FileNotFoundError as error:
            if _no_bucket(error):
                raise
            return None

    def write(self, name: str, data: bytes) -> None:
        import obstore

        obstore.put(self._bucket, self._key(name), data)

    def delete(self, name: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):
            obstore.delete(self._bucket, self._key(name))

    def exists(self, name: str) -> bool:
        import obstore

        try:
            obstore.head(self._bucket, self._key(name))
        except FileNotFoundError:  # an answer to HEAD has no text: it cannot tell of the bucket
            return False
        return True

    def children(self, prefix: str) -> Listing:
        import obstore

        folder = self._key(prefix)
        listed = obstore.list_with_delimiter(self._bucket, folder or None)
        found: Listing = {path.strip("/"): None for path in listed["common_prefixes"]}
        found |= {item["path"].strip("/"): _md5(item["e_tag"]) for item in listed["objects"]}
        found.pop(folder, None)  # a folder marker is listed under the folder's own name
        return {path.rpartition("/")[2]: told for path, told in found.items()}

    def clear(self, keep: str) -> None:
        import obstore

        kept = self._key(keep) if keep else ""
        bucket = clients.bucket(self.url, self.options, many=True)
        for batch in obstore.list(bucket, f"{self._key('')}/"):
            doomed = [item["path"] for item in batch if item["path"] != kept]
            if doomed:
                obstore.delete(bucket, doomed)

    def zarr_store(self, read_only: bool) -> Store:
        prefixed = clients.bucket(self.url, self.options, clients.root(self.url))
        return patient(ObjectStore(prefixed, read_only=read_only))

    @property
    def _bucket(self) -> Any:
        return clients.bucket(self.url, self.options)

    def _key(self, name: str) -> str:
        return _join(clients.root(self.url), name)


class StoreBackend:
    """A folder of an open zarr store.

    Parameters
    ----------
    store : zarr.abc.store.Store
    prefix : str
        Key prefix without slashes at its ends; "" for the whole store.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.prefix = prefix

    def read(self, name: str) -> bytes | None:
        found = sync(self.store.get(_join(self.prefix, name), default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def write(self, name: str, data: bytes) -> None:
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        sync(self.store.set(_join(self.prefix, name), buffer))

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError, KeyError):
            sync(self.store.delete(_join(self.prefix, name)))

    def exists(self, name: str) -> bool:
        return bool(sync(self.store.exists(_join(self.prefix, name))))

    def children(self, prefix: str) -> Listing:
        folder = _join(self.prefix, prefix)
        names = sync(_gathered(self.store.list_dir(folder)))
        return dict.fromkeys(name.rstrip("/").rsplit("/", 1)[-1] for name in names)

    def clear(self, keep: str) -> None:
        sync(_delete_all(self.store, self.prefix, _join(self.prefix, keep)))

    def zarr_store(self, read_only: bool) -> Store:
        if read_only and not self.store.read_only:
            return patient(self.store.with_read_only(True))
        return patient(self.store)


def in_memory(store: Store) -> bool:
    """Whether a store lives in this process only."""
    return isinstance(innermost(store), MemoryStore)


def fsync(path: Path) -> None:
    """Make a file, or the names in a directory, survive a power cut where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)


def _join(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name}" if prefix and name else prefix or name


def _md5(etag: Any) -> str | None:
    """What an ETag says of the object: its MD5, unless it was written in parts, or encrypted."""
    text = str(etag or "").strip('"')
    return text if _MD5.fullmatch(text) else None


def _no_bucket(error: Exception) -> bool:
    """Whether "not found" is about the bucket: that is a mistake, not an absent object."""
    return failure_kind(error) == "mistake"


async def _gathered(names: AsyncIterator[str]) -> list[str]:
    return [name async for name in names]


async def _delete_all(store: Store, prefix: str, keep: str) -> None:
    keys = await _gathered(store.list_prefix(f"{prefix}/" if prefix else ""))
    doomed = [key for key in keys if key != keep]
    for start in range(0, len(doomed), 256):
        await asyncio.gather(*(store.delete(key) for key in doomed[start : start + 256]))
