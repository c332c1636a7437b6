"""What a source looks like from outside: its URI, its stamp, and what may be said about it.

Nothing here opens data.  A URI is either a *local* path (made absolute, so that it means the same
in a worker's directory) or whatever GDAL and fsspec take: ``s3://``, ``/vsizip/``, ``NETCDF:...``.

::

    https://me:pw@host/a.tif?X-Amz-Signature=0a1b     what opens the file
    https://host/a.tif                                what labels, errors and identities say

Credentials belong in the environment of the process that reads; a URI that carries some still
opens, but is refused as configuration, because configuration is written beside the target.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from geopatch_dask.credentials import holds_secret, query_of, redact, scrub, signs, tells
from geopatch_dask.errors import FieldError, OptionError
from geopatch_dask.failures import is_transient, judged
from geopatch_dask.fields.remote import filesystem, vsi_name
from geopatch_dask.retries import call

__all__ = [
    "birth",
    "failure",
    "file_set_digest",
    "is_remote",
    "local_path",
    "normal_uri",
    "sha256_slabs",
    "short",
    "shown",
    "stamp",
    "stat_identity",
    "traceable",
]

#: Longest text of another library that a message of ours repeats, characters.
_QUOTED = 240

#: Read at once while hashing, bytes: large enough for full disk speed, small against any worker.
_SLAB = 16 * 2**20

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]+:")
_CONTAINED = re.compile(
    r"(?:/vsi(?:zip|tar|gzip|7z|rar)/|(?:zip|tar|gzip)://|[A-Za-z][A-Za-z0-9_]+:)\"?\{?(/[^!\":]*)"
)


def normal_uri(path: Any) -> str:
    """The text that opens a source anywhere on this machine.

    Parameters
    ----------
    path : str or path-like

    Raises
    ------
    OptionError
        When it is neither, or empty.

    Examples
    --------
    >>> normal_uri("s3://bucket/scene.tif"), normal_uri("/data/../data/a.tif")
    ('s3://bucket/scene.tif', '/data/a.tif')
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip():
        kind = "an empty one" if isinstance(path, str) else type(path).__name__
        raise OptionError(f"a path or URL is needed, not {kind}")
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return os.path.abspath(text) if _is_local(text) else text  # noqa: PTH100 - resolve() would follow links


def _is_local(text: str) -> bool:
    if text.startswith(("/vsi", "<")) or "://" in text:
        return False
    # "NETCDF:a.nc:u" is a GDAL connection string, "odd:name.tif" may be a file
    return _SCHEME.match(text) is None or Path(text).exists()


def local_path(uri: str) -> Path | None:
    """The file or directory on this machine that holds ``uri``; None for remote sources.

    The container, for a part of a local one (``/vsizip//data/a.zip/b.tif``, ``NETCDF:"/a.nc":u``).
    """
    if _is_local(uri):
        return Path(uri)
    inner = _CONTAINED.match(uri)
    if inner is None or "://" in inner[1] or inner[1].startswith("/vsi"):
        return None
    found = Path(inner[1])
    return next((p for p in (found, *found.parents) if p.is_file()), None)


def is_remote(uri: str) -> bool:
    """Whether a source is behind a network.

    >>> [is_remote(u) for u in ("s3://b/a.tif", "/vsicurl/http://h/a.tif", "/data/a.tif")]
    [True, True, False]
    """
    return ("://" in uri or uri.startswith("/vsi")) and local_path(uri) is None


def shown(uri: str) -> str:
    """A URI as messages name it."""
    return "inline VRT" if uri.startswith("<") else redact(uri)


def short(uri: str) -> str:
    """The last part of a URI, for labels.

    >>> short("https://me:pw@host/x/a.tif?sig=1")
    'a.tif'
    """
    text = shown(uri)
    return PurePosixPath(text.rstrip("/")).name or text


def failure(
    uri: str,
    what: str,
    remedy: str,
    error: BaseException | None = None,
    options: Mapping[str, Any] | None = None,
) -> FieldError:
    """A :class:`FieldError` in one line: the source, what happened, what helps.

    Parameters
    ----------
    uri : str
        Named without its secrets.
    what, remedy : str
    error : exception, optional
        The cause: its innermost text is quoted, without secrets.
    options : mapping, optional
        Storage options, whose credentials are secrets.
    """
    cause = ""
    if error is not None:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        text = " ".join(redact(scrub(str(root), options) or type(root).__name__).split())
        cause = f" ({text if len(text) <= _QUOTED else text[:_QUOTED] + ' ...'})"
    kind, transient = ("mistake", False) if error is None else judged(error)
    tried = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return FieldError(
        f"{shown(uri)}: {what}{cause}{tried}; {remedy}", kind=kind, transient=transient
    )


def traceable(
    error: BaseException, uri: str, options: Mapping[str, Any] | None = None
) -> BaseException | None:
    """What to ``raise ... from``: nothing when the URI holds a secret, or the error tells one.

    Readers repeat the URI in their texts, servers the key that they refuse, and tracebacks end up
    in logs and reports.
    """
    return None if holds_secret(uri) or tells(error, options) else error


def birth(uri: str) -> int:
    """What tells the handles of one field from those of a later field on the same remote source.

    A remote source has no :func:`stamp`.  A handle kept from before it was replaced would look for
    chunks under names that are gone, which Zarr reads as fill values; so a field only shares
    handles with its own copies.  Nanoseconds; 0 for local sources.
    """
    return time.time_ns() if local_path(uri) is None else 0


def stamp(uri: str) -> tuple[Any, ...]:
    """What changes when a local source is replaced or rewritten; () for remote ones.

    Raises
    ------
    FieldError
        When a local source does not exist or may not be looked at.
    """
    path = local_path(uri)
    if path is None:
        return ()
    try:
        if not path.is_dir():
            return _stat(path)
        return tuple(_stat(doc) for name in _ZARR_DOCUMENTS if (doc := path / name).exists())
    except OSError as error:
        raise _missing(uri, error) from None


#: Metadata of a Zarr group or array, formats 3 and 2.
_ZARR_DOCUMENTS = ("zarr.json", ".zmetadata", ".zgroup", ".zarray", ".zattrs")


def _stat(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return (found.st_size, found.st_mtime_ns, found.st_ino)


def _missing(uri: str, error: OSError) -> FieldError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return failure(uri, "no such file", "check the path, and that every worker sees it")
    return failure(uri, "cannot be looked at", "check its permissions", error)


def stat_identity(uri: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """URI, size and time (local) or ETag (remote, where the server tells) of one file.

    Parameters that sign a URL are left out; the others are represented by a digest, because they
    may choose the content.

    Parameters
    ----------
    uri : str
    options : mapping, optional
        Storage options for fsspec.

    Raises
    ------
    FieldError
        When a local source is not there, or a remote one cannot be asked right now.
    """
    found: dict[str, Any] = {"uri": redact(uri)}  # an inline VRT identifies itself
    kept = sorted(pair for pair in parse_qsl(query_of(uri)) if not signs(pair[0]))
    if kept:
        found["query"] = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
    path = local_path(uri)
    if path is None:
        return found | _remote(uri, options)
    try:
        size, mtime_ns, _ = _stat(path)
    except OSError as error:
        raise _missing(uri, error) from None
    return found | {"size": size, "mtime_ns": mtime_ns}


def _remote(uri: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Size and ETag by fsspec, under the environment variables that GDAL reads too.

    Raises
    ------
    FieldError
        When the server is away: without its answer, the same source would look like another one.
    """

    def ask() -> dict[str, Any]:
        fs, name = filesystem(uri, options)
        found: dict[str, Any] = fs.info(name)
        return found

    try:
        answer = call(ask)
    except Exception as error:
        if is_transient(error):
            raise failure(uri, "cannot be asked for its size", "retry", error, options) from None
        return {}  # GDAL may still read it; it is identified by its URI alone
    info = {key.lower().replace("-", ""): value for key, value in answer.items()}
    kept = {key: info.get(key) for key in ("size", "etag", "lastmodified")}
    return {key: _text(value) for key, value in kept.items() if value is not None}


def _text(value: Any) -> Any:
    return value if isinstance(value, int) else str(value)


def sha256_slabs(
    read: Callable[[int, int], npt.NDArray[Any]], rows: int, row_bytes: int, step: int = 1
) -> str:
    """SHA-256 of an array's bytes in C order, read ``_SLAB`` bytes at a time.

    Parameters
    ----------
    read : callable of (start, stop) -> ndarray
        Slabs along the first axis.
    rows, row_bytes : int
        Length of the first axis; bytes of one index of it.
    step : int
        Slabs are multiples of it (the storage block), so that nothing is decoded twice.
    """
    digest = hashlib.sha256()
    size = max(_SLAB // max(row_bytes, 1) // step, 1) * step
    for start in range(0, rows, size):
        slab = np.ascontiguousarray(read(start, min(start + size, rows)))
        digest.update(slab.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_set_digest(uri: str, files: Iterable[str]) -> str | None:
    """A digest of names, sizes and times of the files beside ``uri`` that decide its values.

    A VRT is as good as its sources, a raster as its external mask.  Overviews and GDAL's
    ``.aux.xml`` (statistics, written by looking at a file) are left out.  None without any.
    """
    lines = []
    for name in sorted(files):
        if name in (uri, vsi_name(uri)) or name.endswith((".ovr", ".aux.xml")):
            continue
        found = stat_identity(name) if local_path(name) is not None else {"uri": redact(name)}
        lines.append(repr(sorted(found.items())))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] if lines else None
