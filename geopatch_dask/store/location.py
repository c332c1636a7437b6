"""A place to write to, as configuration: local path, fsspec URL, or open zarr store.

A :class:`Location` is small, immutable and picklable.  It holds no client, no handle and no
credential; those are built on first use in each process (:mod:`geopatch_dask.store.backends`) from
the environment of that process (:mod:`geopatch_dask.store.secrets`).

Every failure is a :class:`~geopatch_dask.errors.TargetError` that tells three things apart:

* *absent* is not an error: :meth:`Location.read` returns None, :meth:`Location.delete` is content;
* *forbidden*: the place answered, and said no;
* *unreachable*: the place did not answer, so nothing is known about the object.

::

    out.zarr                  location
    out.zarr/data             location.child("data")
    out.zarr.geopatch         location.sibling(".geopatch")
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from zarr.abc.store import Store
from zarr.storage import LocalStore

from geopatch_dask.errors import GeopatchError, OptionError, TargetError
from geopatch_dask.store import secrets
from geopatch_dask.store.backends import (
    Backend,
    FsspecBackend,
    LocalBackend,
    StoreBackend,
    in_memory,
)

__all__ = ["Location", "raise_target_error"]

#: Spelled once here: inside the class, ``list`` is a method.
Names = list[str]

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
        For fsspec.  Credentials only as ``"env:NAME"``: the name of an environment variable that
        is read in the process that uses the location.
    store : zarr.abc.store.Store or None
        An open store; use :meth:`of`.

    Raises
    ------
    OptionError
        For a credential given literally (in the options or in the URL), a chained URL, or options
        that are not plain JSON.

    Examples
    --------
    >>> Location("s3://bucket/out.zarr", {"secret": "env:S3_SECRET"}).sibling(".geopatch").url
    's3://bucket/out.zarr.geopatch'
    """

    url: str
    storage_options: Mapping[str, Any] | None = field(default=None, hash=False)
    store: Store | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _normal(self.url, is_open=self.store is not None))
        object.__setattr__(self, "storage_options", secrets.checked(self.storage_options))

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
        with self._explain("read", name):
            return self._backend.read(_checked_name(name))

    def write(self, name: str, data: bytes) -> None:
        """Create or replace the object ``name`` atomically.

        Raises
        ------
        TargetError
        """
        with self._explain("write", name):
            self._backend.write(_checked_name(name), data)

    def delete(self, name: str) -> None:
        """Remove the object ``name``; absent is fine.

        Raises
        ------
        TargetError
        """
        with self._explain("delete", name):
            self._backend.delete(_checked_name(name))

    def exists(self, name: str) -> bool:
        """Whether there is an object ``name``.

        Raises
        ------
        TargetError
        """
        with self._explain("look for", name):
            return self._backend.exists(_checked_name(name))

    def list(self, prefix: str = "") -> Names:
        """Sorted names, relative to this location, of what is directly inside folder ``prefix``.

        Objects and folders alike; temporary files of interrupted writes are left out.  An absent
        folder is empty.

        Raises
        ------
        TargetError
        """
        folder = prefix.strip("/")
        with self._explain("list", folder):
            names = self._backend.children(_checked_name(folder) if folder else "")
        return sorted(f"{folder}/{name}" if folder else name for name in names)

    def clear(self, keep: str = "") -> None:
        """Delete everything inside this location, except the object ``keep`` directly in it.

        Raises
        ------
        TargetError
        """
        if not self.has_name:
            raise TargetError(f"{self.display} is a whole bucket or file system: never emptied")
        with self._explain("empty", ""):
            self._backend.clear(keep)

    def zarr_store(self, read_only: bool = False) -> Store:
        """A zarr store here, built in this process.

        For a part of an open store (:meth:`child` of one) this is the whole store, and
        :attr:`path` says where in it.

        Raises
        ------
        TargetError
        """
        with self._explain("open", ""):
            return self._backend.zarr_store(read_only)

    # -- travelling ----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; holds no credential.  An open store is only described by it."""
        return {"url": self.url, "storage_options": self.storage_options}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Location:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        OptionError
            When it described an open store, which must be passed again.
        """
        return cls(data["url"], data.get("storage_options"))

    def scrub(self, text: str) -> str:
        """``text`` without credentials, for messages that another library wrote."""
        return secrets.scrub(text, self.storage_options)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.store is not None and in_memory(self.store):
            raise TargetError(
                "a store in memory cannot be sent to another process, which would write into a "
                'copy: use "sync" or "threads", or a path or URL as the target'
            )
        return Location, (self.url, self.storage_options, self.store)

    def __repr__(self) -> str:
        options = f", {self.storage_options}" if self.storage_options else ""
        return f"Location({self.display!r}{options})"

    @property
    def _backend(self) -> Backend:
        if self.store is not None:
            return StoreBackend(self.store, self.path)
        if self.is_local:
            return LocalBackend(Path(self.url))
        options = None if self.storage_options is None else dict(self.storage_options)
        return FsspecBackend(self.url, options)

    @contextmanager
    def _explain(self, action: str, name: str) -> Iterator[None]:
        where = self.display if not name else f"{self.display.rstrip('/')}/{name}"
        try:
            yield
        except GeopatchError:
            raise
        except Exception as error:
            raise_target_error(action, where, error, self.storage_options)


def raise_target_error(
    action: str, where: str, error: Exception, options: Mapping[str, Any] | None = None
) -> NoReturn:
    """Turn the failure of a storage library into a TargetError that says what it means.

    The library's own error is the cause, unless its text holds a credential.

    Parameters
    ----------
    action : str
        A verb, as in "cannot {action} {where}".
    where : str
        For people; no credentials.
    error : Exception
        What the library raised.
    options : mapping or None
        Storage options whose resolved credentials must not appear in the message.

    Raises
    ------
    TargetError
        Always.
    """
    detail = secrets.scrub(f"{type(error).__name__}: {error}", options)
    line = " ".join(detail.split()).rstrip(": ")[:400]
    chain = _texts(error)
    cause = error if secrets.scrub(chain, options) == chain else None
    raise TargetError(f"cannot {action} {where}: {_verdict(error)} ({line})") from cause


def _verdict(error: BaseException) -> str:
    """What a failure says about the object and about what to do."""
    response = getattr(error.__cause__ or error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    name = type(error).__name__
    if code == "NoSuchBucket":
        return "there is no such bucket: create it first"
    if isinstance(error, PermissionError) or "Credential" in name or code in ("403", "401"):
        return "forbidden: check credentials and permissions"
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return "a file and a folder are in each other's place: choose another name"
    if isinstance(error, TimeoutError | ConnectionError) or any(
        word in name for word in ("Timeout", "Connect", "Endpoint", "Gaierror", "DNS")
    ):
        return "unreachable: check the address and the network"
    if isinstance(error, ImportError):
        return "the package for this kind of URL is not installed"
    return "failed"


def _texts(error: BaseException) -> str:
    """The messages of a chain of exceptions, as a traceback would print them."""
    seen: list[str] = []
    link: BaseException | None = error
    while link is not None and len(seen) < 16:
        seen.append(str(link))
        link = link.__cause__ or link.__context__
    return "\n".join(seen)


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
        raise OptionError(f"chained URLs cannot be written to: {secrets.scrub(url)}")
    if "://" not in url:
        # Not Path.resolve: a link may lead elsewhere on another machine.
        return os.path.abspath(Path(url).expanduser())  # noqa: PTH100
    secrets.refuse_in_url(url)
    base, mark, query = url.partition("?")
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{rest.rstrip('/')}{mark}{query}"


def _checked_name(name: str) -> str:
    if not name or name.startswith("/") or not set(name.split("/")).isdisjoint({"", ".", ".."}):
        raise OptionError(f"{name!r} is no name inside a location")
    return name
