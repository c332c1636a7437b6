"""A place to write to, as configuration: local path, fsspec URL, or open zarr store.

A :class:`Location` is small, immutable and picklable.  It holds no client, no handle and no
credential; those are built on first use in each process (:mod:`geopatch_dask.store.clients`) from
the environment of that process (:mod:`geopatch_dask.credentials`).

Every operation is repeated while it fails for a passing reason (:mod:`geopatch_dask.retries`).
What remains is a :class:`~geopatch_dask.errors.TargetError` whose ``kind`` tells apart:

* *absent* is not an error: :meth:`Location.read` returns None, :meth:`Location.delete` is content;
* *forbidden*: the place answered, and said no;
* *unreachable*: the place did not answer, so nothing is known about the object.

To someone who may not list a bucket, S3 says "forbidden" of an object that does not exist.  A
location with ``lists=False`` knows that this is so, and takes a forbidden object for an absent one;
:func:`~geopatch_dask.store.preflight.preflight` finds out.

::

    out.zarr                  location
    out.zarr/data             location.child("data")
    out.zarr.geopatch         location.sibling(".geopatch")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import Store
from zarr.storage import LocalStore

from geopatch_dask import credentials
from geopatch_dask.errors import GeopatchError, OptionError, TargetError
from geopatch_dask.retries import call
from geopatch_dask.store.backends import (
    Backend,
    FsspecBackend,
    LocalBackend,
    ObstoreBackend,
    StoreBackend,
    in_memory,
)
from geopatch_dask.store.clients import CLIENTS, choose
from geopatch_dask.store.explain import raise_target_error
from geopatch_dask.store.retry import RetryStore

__all__ = ["Location", "raise_target_error"]

#: Spelled once here: inside the class, ``list`` is a method.
Names = list[str]
T = TypeVar("T")

_LOCAL = ("file://", "local://")
_OPEN = "store://"
#: In these URLs what stands before the @ is the container, not a user.
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")


@dataclass(frozen=True, repr=False)
class Location:
    """Where a store is, or will be.

    Parameters
    ----------
    url : str
        A local path (``~`` is expanded, made absolute) or any fsspec URL.
    storage_options : mapping or None
        As fsspec takes them; obstore is told the same.  Credentials only as ``"env:NAME"``: the
        name of an environment variable that is read in the process that uses the location.
    client : "auto", "fsspec" or "obstore"
        What speaks to a bucket; the stored bytes are the same.  Auto takes obstore where it can.
    store : zarr.abc.store.Store or None
        An open store; use :meth:`of`.
    lists : bool
        Whether the credentials may list.  If not, what is forbidden to read counts as absent.

    Raises
    ------
    OptionError
        For a credential given literally (in the options or in the URL), a chained URL, options
        that are not plain JSON, or a client that there is not.

    Examples
    --------
    >>> Location("s3://bucket/out.zarr", {"secret": "env:S3_SECRET"}).sibling(".geopatch").url
    's3://bucket/out.zarr.geopatch'
    """

    url: str
    storage_options: Mapping[str, Any] | None = field(default=None, hash=False)
    store: Store | None = field(default=None, hash=False)
    client: str = "auto"
    lists: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _normal(self.url, is_open=self.store is not None))
        object.__setattr__(self, "storage_options", credentials.checked(self.storage_options))
        if self.client not in CLIENTS:
            raise OptionError(f"client {self.client!r}: use one of {', '.join(CLIENTS)}")

    @classmethod
    def of(cls, target: object, storage_options: Mapping[str, Any] | None = None) -> Location:
        """A location from whatever names one: a path, a URL, a location, an open zarr store.

        An open store is the target as a whole; its records live in it under the key prefix
        ``.geopatch/``, which belongs to no array.  A store on a local directory becomes its path.

        Raises
        ------
        OptionError
        """
        if isinstance(target, Location):
            if storage_options is None:
                return target
            return replace(target, storage_options=storage_options)
        if isinstance(target, LocalStore) and not target.read_only:
            return cls(str(target.root))
        if isinstance(target, Store):
            if storage_options is not None:
                raise OptionError("storage_options do not apply to an open store: drop them")
            return cls(f"{_OPEN}{type(target).__name__}", None, target)
        if isinstance(target, str | os.PathLike):
            return cls(os.fspath(target), storage_options)
        raise OptionError(
            f"a {type(target).__name__} is no target: pass a path, a URL or an open zarr store"
        )

    # -- names ---------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""
        return "://" not in self.url

    @property
    def is_shared(self) -> bool:
        """Whether another process that is given this location sees the same objects.

        False for ``memory://`` URLs and stores in memory: only threads can work on those.
        """
        if self.store is not None:
            return not in_memory(self.store)
        return not self.url.startswith("memory://")

    @property
    def display(self) -> str:
        """The URL for people: no user name, no query."""
        if self.is_local:
            return self.url
        scheme, _, rest = self.url.partition("?")[0].partition("://")
        authority, slash, path = rest.partition("/")
        if scheme not in _CONTAINERS:
            authority = authority.rpartition("@")[2]
        return f"{scheme}://{authority}{slash}{path}"

    @property
    def path(self) -> str:
        """Where this location is inside :meth:`zarr_store`: "", but for parts of an open store."""
        if self.store is None:
            return ""
        return self.url.removeprefix(_OPEN).partition("/")[2]

    @property
    def client_name(self) -> str:
        """What moves the bytes, in this process: "local", "zarr", "fsspec" or "obstore".

        Raises
        ------
        OptionError
            When the client that was asked for cannot.
        """
        if self.store is not None:
            return "zarr"
        return "local" if self.is_local else choose(self.url, self.storage_options, self.client)

    def child(self, name: str) -> Location:
        """The location of ``name`` inside this one."""
        _checked_name(name)
        base, mark, query = self.url.partition("?") if not self.is_local else (self.url, "", "")
        return replace(self, url=f"{base.rstrip('/')}/{name}{mark}{query}")

    def sibling(self, suffix: str) -> Location:
        """The location beside this one whose last part has ``suffix`` appended.

        Raises
        ------
        OptionError
            For a whole bucket or the root directory: there is nothing beside it.
        """
        if self.store is not None and not self.path:
            return self.child(suffix)
        base, mark, query = self.url.partition("?") if not self.is_local else (self.url, "", "")
        if not self.has_name:
            raise OptionError(
                f"{self.display} is a whole bucket or file system: add a name, as in "
                f"{self.display.rstrip('/')}/out.zarr"
            )
        return replace(self, url=f"{base}{suffix}{mark}{query}")

    @property
    def has_name(self) -> bool:
        """Whether the location is inside something: not a whole bucket, not the root directory."""
        if self.is_local:
            return Path(self.url).name != ""
        rest = self.url.partition("?")[0].partition("://")[2]
        if self.url.startswith(("memory://", _OPEN)):  # these have no bucket
            return bool(rest)
        return bool(rest.partition("/")[2])

    # -- objects -------------------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """The object ``name``, or None when there is none.

        Raises
        ------
        TargetError
            When that cannot be known: the place is forbidden or unreachable.
        """
        _checked_name(name)
        with self._unveiled():
            return self._do("read", name, lambda place: place.read(name))
        return None

    def write(self, name: str, data: bytes) -> None:
        """Create or replace the object ``name`` atomically.

        Raises
        ------
        TargetError
        """
        _checked_name(name)
        self._do("write", name, lambda place: place.write(name, data))

    def delete(self, name: str) -> None:
        """Remove the object ``name``; absent is fine.

        Raises
        ------
        TargetError
        """
        _checked_name(name)
        self._do("delete", name, lambda place: place.delete(name))

    def exists(self, name: str) -> bool:
        """Whether there is an object ``name``.

        Raises
        ------
        TargetError
        """
        _checked_name(name)
        with self._unveiled():
            return self._do("look for", name, lambda place: place.exists(name))
        return False

    def list(self, prefix: str = "") -> Names:
        """Sorted names, relative to this location, of what is directly inside folder ``prefix``.

        Objects and folders alike; temporary files of interrupted writes are left out.  An absent
        folder is empty.

        Raises
        ------
        TargetError
        """
        return sorted(self.digests(prefix))

    def digests(self, prefix: str = "") -> dict[str, str | None]:
        """As :meth:`list`, in any order; with each name the MD5 of the object, in hex, if known.

        Buckets tell it with the listing, of objects that were written in one piece and not
        encrypted with a key of the user's.  Elsewhere it may be another digest of the same length.

        Raises
        ------
        TargetError
        """
        folder = prefix.strip("/")
        if folder:
            _checked_name(folder)
        found = self._do("list", folder, lambda place: place.children(folder))
        return {f"{folder}/{name}" if folder else name: told for name, told in found.items()}

    def clear(self, keep: str = "") -> None:
        """Delete everything inside this location, except the object ``keep`` directly in it.

        Raises
        ------
        TargetError
        """
        if not self.has_name:
            raise TargetError(f"{self.display} is a whole bucket or file system: never emptied")
        self._do("empty", "", lambda place: place.clear(keep))

    def zarr_store(self, read_only: bool = False) -> Store:
        """A zarr store here, built in this process; its operations are repeated like those here.

        For a part of an open store (:meth:`child` of one) this is the whole store, and
        :attr:`path` says where in it.  A store at a URL can be sent to other processes: it travels
        as this location does, and is built there.

        Raises
        ------
        TargetError
        """
        made = self._do("open", "", lambda place: place.zarr_store(read_only))
        if isinstance(made, RetryStore) and self.store is None:
            made.origin = partial(self.zarr_store, read_only=read_only)
        return made

    # -- travelling ----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; holds no credential.  An open store is only described by it."""
        names = ("url", "storage_options", "client", "lists")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Location:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        OptionError
            When it described an open store, which must be passed again.
        """
        given = {name: data[name] for name in ("client", "lists") if name in data}
        return cls(data["url"], data.get("storage_options"), **given)

    def scrub(self, text: str) -> str:
        """``text`` without credentials, for messages that another library wrote."""
        return credentials.scrub(text, self.storage_options)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.store is not None and in_memory(self.store):
            raise TargetError(
                "a store in memory cannot be sent to another process, which would write into a "
                'copy: use "sync" or "threads", or a path or URL as the target'
            )
        return Location, (self.url, self.storage_options, self.store, self.client, self.lists)

    def __repr__(self) -> str:
        options = f", {self.storage_options}" if self.storage_options else ""
        client = f", client={self.client!r}" if self.client != "auto" else ""
        return f"Location({self.display!r}{options}{client})"

    @property
    def _backend(self) -> Backend:
        if self.store is not None:
            return StoreBackend(self.store, self.path)
        if self.is_local:
            return LocalBackend(self.url)
        options = None if self.storage_options is None else dict(self.storage_options)
        speaks = choose(self.url, options, self.client)
        return (ObstoreBackend if speaks == "obstore" else FsspecBackend)(self.url, options)

    @contextmanager
    def _unveiled(self) -> Iterator[None]:
        """Passes over "forbidden" where that may mean "absent"."""
        try:
            yield
        except TargetError as error:
            if self.lists or error.kind != "forbidden":
                raise

    def _do(self, action: str, name: str, operation: Callable[[Backend], T]) -> T:
        """The result of an operation, repeated where that helps; its failure explained."""
        try:
            backend = self._backend
            return call(lambda: operation(backend))
        except GeopatchError:
            raise
        except Exception as error:
            where = self.display if not name else f"{self.display.rstrip('/')}/{name}"
            raise_target_error(action, where, error, self.storage_options)


def _normal(url: str, *, is_open: bool) -> str:
    if is_open:
        return url.rstrip("/")
    url = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(url, str) or not url.strip():
        raise OptionError(f"a target needs a path or a URL, got {url!r}")
    if url.startswith(_OPEN):
        raise OptionError(f"{url!r} describes a store that was open: pass the store itself again")
    for scheme in _LOCAL:
        if url.startswith(scheme):
            url = url.removeprefix(scheme)
            break
    if "::" in url.partition("?")[0] and "://" in url:
        raise OptionError(f"chained URLs cannot be written to: {credentials.scrub(url)}")
    if "://" not in url:
        # Not Path.resolve: a link may lead elsewhere on another machine.
        return os.path.abspath(Path(url).expanduser())  # noqa: PTH100
    credentials.refuse_in_url(url)
    base, mark, query = url.partition("?")
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{rest.rstrip('/')}{mark}{query}"


def _checked_name(name: str) -> str:
    if not name or name.startswith("/") or not set(name.split("/")).isdisjoint({"", ".", ".."}):
        raise OptionError(f"{name!r} is no name inside a location")
    return name
