"""Clients of object stores: which one speaks to a place, built once per process.

Two libraries can speak S3.  obstore (Rust) does more requests per second with less work in Python;
s3fs knows every way to find credentials.  Both store the same bytes under the same names, so any
process may use either.  Everything that is not S3 goes through fsspec.

Clients never travel, and never cross a fork: the cache is keyed by process, and obstore, whose
threads do not survive one, is not used in the child of a process that has used it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import fsspec.core
from zarr.storage import FsspecStore

from geopatch_dask import credentials, s3
from geopatch_dask.errors import OptionError

__all__ = ["CLIENTS", "authority", "bucket", "choose", "filesystem", "forget_clients", "root"]

#: What may be asked for.
CLIENTS = ("auto", "fsspec", "obstore")
_S3 = ("s3", "s3a")
#: How S3 says when an object was written.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")

T = TypeVar("T")

_kept: dict[Hashable, Any] = {}
_lock = threading.Lock()
#: The process that first used obstore, among this one and those it was forked from.
_first: list[int] = []


def choose(url: str, options: Mapping[str, Any] | None, wanted: str) -> str:
    """The client for a URL: ``"fsspec"`` or ``"obstore"``.

    ``"auto"`` takes obstore where it is installed, all options can be told to it, and options or
    environment say both who asks and where; otherwise fsspec.

    Parameters
    ----------
    url : str
    options : mapping or None
        Storage options in which credentials are still ``"env:NAME"``.
    wanted : str
        One of :data:`CLIENTS`.

    Raises
    ------
    OptionError
        When obstore is asked for and cannot do it; names the reason.
    """
    if wanted == "fsspec" or (wanted == "auto" and not _speaks(url)):
        return "fsspec"
    text = json.dumps(options or {}, sort_keys=True)
    return _once(("choice", authority(url), text, wanted), lambda: _choice(url, options, wanted))


def _choice(url: str, options: Mapping[str, Any] | None, wanted: str) -> str:
    if wanted == "auto" and not (_installed() and not _forked()):
        return "fsspec"
    found = s3.access(credentials.resolved(options))
    if wanted == "auto":
        return "obstore" if found.certain and not found.unknown else "fsspec"
    problem = ""
    if not _speaks(url):
        problem = f"speaks s3:// here, not {url.partition('://')[0]}://"
    elif not _installed():
        problem = "is not installed: pip install 'geopatch_dask[obstore]'"
    elif found.unknown:
        problem = f"has no such option: {', '.join(found.unknown)}"
    elif _forked():
        problem = "cannot be used in a process forked from one that used it: start it afresh"
    if problem:
        raise OptionError(f"client='obstore' {problem}; or use client='fsspec'")
    return "obstore"


def filesystem(url: str, options: str, *, asynchronous: bool) -> Any:
    """The fsspec filesystem of a URL.

    Parameters
    ----------
    url : str
    options : str
        Storage options as JSON; credentials are names in it.
    asynchronous : bool
        For zarr's event loop, instead of for plain calls.
    """

    def build() -> Any:
        resolved = credentials.resolved(json.loads(options))
        s3fs = url.partition("://")[0] in _S3
        if s3fs:
            resolved = s3.for_s3fs(resolved)
        if asynchronous:
            fs = FsspecStore.from_url(authority(url), storage_options=resolved).fs
        else:
            fs = fsspec.core.url_to_fs(authority(url), **resolved)[0]
        if s3fs:
            fs.retries = 1  # on top of botocore's; the others are ours, and counted
            fs.session = _session(fs.kwargs)
        return fs

    return _once(("fsspec", authority(url), options, asynchronous), build)


def _session(options: Mapping[str, Any]) -> Any:
    """The session that s3fs would make, but one that lists a third faster.

    A listing has a date for every name, and botocore tries formats until one fits.
    """
    from aiobotocore.session import AioSession
    from botocore.utils import parse_timestamp

    def moment(value: Any) -> datetime:
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            return datetime.fromisoformat(value)
        found: datetime = parse_timestamp(value)
        return found

    session = AioSession(**options)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=moment)
    return session


def bucket(url: str, options: str, prefix: str = "", *, many: bool = False) -> Any:
    """The :class:`obstore.store.S3Store` of a URL's bucket.

    Parameters
    ----------
    url : str
    options : str
        Storage options as JSON; credentials are names in it.
    prefix : str
        Names are relative to it.
    many : bool
        For deleting many objects, a thousand at a time.
    """

    def build() -> Any:
        from obstore.store import S3Store

        _first.append(os.getpid())
        found = s3.access(credentials.resolved(json.loads(options)))
        name = authority(url).partition("://")[2]
        return S3Store(name, prefix=prefix or None, **found.for_obstore(many=many))

    return _once(("obstore", authority(url), options, prefix, many), build)


def forget_clients() -> None:
    """Drop the clients of this process, so that the next use builds new ones.

    For a retry after the network or the credentials changed.
    """
    with _lock:
        for found in _kept.values():
            if isinstance(found, fsspec.AbstractFileSystem):
                type(found).clear_instance_cache()
        _kept.clear()


def authority(url: str) -> str:
    """Scheme and bucket (or host) of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def root(url: str) -> str:
    """What stands behind the bucket, without slashes at its ends."""
    return url.partition("://")[2].partition("/")[2].strip("/")


def _once(key: Hashable, build: Callable[[], T]) -> T:
    # One client per process and service, however many locations there are on it.  The process id
    # is part of the key: a client must not be used on the other side of a fork.
    mine = (os.getpid(), key)
    with _lock:
        if mine not in _kept:
            _kept[mine] = build()
        found: T = _kept[mine]
        return found


def _speaks(url: str) -> bool:
    """Whether obstore can name this place: no query, no empty part."""
    scheme, _, rest = url.partition("://")
    return scheme in _S3 and "?" not in rest and "//" not in rest


@cache
def _installed() -> bool:
    return find_spec("obstore") is not None


def _forked() -> bool:
    return bool(_first) and _first[0] != os.getpid()
