"""Small objects on a local path, on any fsspec URL, or inside an open zarr store.

Three classes with one shape.  They move bytes and raise whatever the library underneath raises;
:class:`~geopatch_dask.store.location.Location` names the failure and adds the remedy.  Clients
are built on first use in each process and kept there, so that none ever travels.

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
import shutil
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import fsspec.core
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from geopatch_dask.store import secrets

__all__ = [
    "Backend",
    "FsspecBackend",
    "LocalBackend",
    "StoreBackend",
    "forget_clients",
    "fsync",
    "in_memory",
]

#: How temporary files end, ours and those of zarr's LocalStore; a killed writer leaves them.
PARTIAL = ".partial"


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

    def children(self, prefix: str) -> list[str]:
        """Last parts of the names directly inside a folder, objects and folders alike."""

    def clear(self, keep: str) -> None:
        """Remove everything here but the object ``keep``."""

    def zarr_store(self, read_only: bool) -> Store:
        """The place as a zarr store."""


class LocalBackend:
    """A directory.

    Parameters
    ----------
    root : Path
        Absolute; it need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
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

    def children(self, prefix: str) -> list[str]:
        try:
            found = list((self.root / prefix).iterdir())
        except FileNotFoundError:
            return []
        return [path.name for path in found if not path.name.endswith(PARTIAL)]

    def clear(self, keep: str) -> None:
        try:
            found = list(self.root.iterdir())
        except FileNotFoundError:
            return
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != keep:
                path.unlink()

    def zarr_store(self, read_only: bool) -> Store:
        return LocalStore(self.root, read_only=read_only)


class FsspecBackend:
    """A folder of an fsspec filesystem.

    Parameters
    ----------
    url : str
    options : mapping or None
        Storage options in which credentials are still ``"env:NAME"``.
    """

    def __init__(self, url: str, options: dict[str, Any] | None) -> None:
        self.url = url
        self.options = json.dumps(options or {}, sort_keys=True)

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

    def children(self, prefix: str) -> list[str]:
        fs, root = self._client()
        folder = _join(root, prefix)
        fs.invalidate_cache(folder)
        try:
            listed = fs.ls(folder, detail=False)
        except FileNotFoundError as error:
            if _no_bucket(error):
                raise
            return []
        names = {str(path).rstrip("/").rsplit("/", 1)[-1]: str(path).rstrip("/") for path in listed}
        # A folder marker, or a file in place of the folder, is listed under the folder's own name.
        return [name for name, path in names.items() if path.strip("/") != folder.strip("/")]

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
        fs = _filesystem(_authority(self.url), self.options, asynchronous=True)
        return FsspecStore(fs, read_only=read_only, path=root)

    def _client(self) -> tuple[Any, str]:
        fs = _filesystem(_authority(self.url), self.options, asynchronous=False)
        return fs, str(fs._strip_protocol(self.url))


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

    def children(self, prefix: str) -> list[str]:
        folder = _join(self.prefix, prefix)
        names = sync(_gathered(self.store.list_dir(folder)))
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in names})

    def clear(self, keep: str) -> None:
        sync(_delete_all(self.store, self.prefix, _join(self.prefix, keep)))

    def zarr_store(self, read_only: bool) -> Store:
        if read_only and not self.store.read_only:
            return self.store.with_read_only(True)
        return self.store


def forget_clients() -> None:
    """Drop the clients of this process, so that the next use builds new ones.

    For a retry after the network or the credentials changed.
    """
    with _lock:
        for fs in _clients.values():
            type(fs).clear_instance_cache()
        _clients.clear()


def in_memory(store: Store) -> bool:
    """Whether a store lives in this process only."""
    inner = store
    while isinstance(inner, WrapperStore):
        inner = inner._store
    return isinstance(inner, MemoryStore)


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


# One client per process and service, however many locations there are on it.
_clients: dict[tuple[int, str, str, bool], Any] = {}
_lock = threading.Lock()


def _filesystem(authority: str, options: str, *, asynchronous: bool) -> Any:
    # The process id is part of the key: a client must not be used on the other side of a fork.
    key = (os.getpid(), authority, options, asynchronous)
    with _lock:
        if key not in _clients:
            resolved = secrets.resolved(json.loads(options))
            if asynchronous:
                _clients[key] = FsspecStore.from_url(authority, storage_options=resolved).fs
            else:
                _clients[key] = fsspec.core.url_to_fs(authority, **resolved)[0]
        return _clients[key]


def _authority(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _join(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name}" if prefix and name else prefix or name


def _no_bucket(error: BaseException) -> bool:
    """Whether "not found" is about the bucket: that is a mistake, not an absent object."""
    response = getattr(error.__cause__ or error, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchBucket"


async def _gathered(names: AsyncIterator[str]) -> list[str]:
    return [name async for name in names]


async def _delete_all(store: Store, prefix: str, keep: str) -> None:
    keys = await _gathered(store.list_prefix(f"{prefix}/" if prefix else ""))
    doomed = [key for key in keys if key != keep]
    for start in range(0, len(doomed), 256):
        await asyncio.gather(*(store.delete(key) for key in doomed[start : start + 256]))
