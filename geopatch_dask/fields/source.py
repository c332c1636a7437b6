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

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import FieldError, OptionError

__all__ = [
    "ENVIRONMENT",
    "birth",
    "failure",
    "file_set_digest",
    "holds_secret",
    "local_path",
    "normal_uri",
    "plain_options",
    "redact",
    "sha256_slabs",
    "short",
    "shown",
    "stamp",
    "stat_identity",
    "traceable",
]

#: Where a message sends people who put a credential somewhere else.
ENVIRONMENT = "the environment of the workers (AWS_ACCESS_KEY_ID, GDAL_HTTP_USERPWD, ...)"

#: Longest text of another library that a message of ours repeats, characters.
_QUOTED = 240

#: Read at once while hashing, bytes: large enough for full disk speed, small against any worker.
_SLAB = 16 * 2**20

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]+:")
_CONTAINED = re.compile(
    r"(?:/vsi(?:zip|tar|gzip|7z|rar)/|(?:zip|tar|gzip)://|[A-Za-z][A-Za-z0-9_]+:)\"?\{?(/[^!\":]*)"
)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"]*@")
_QUERY = re.compile(r"((?:://|/vsi[a-z0-9_]+)[^\s?'\"]*)\?[^\s'\"]*")
_SECRET_NAME = (
    r"[\w-]*(?:passw(?:or)?d|pwd|secret|token|signature|credential|access_?key|account_?key"
    r"|api_?key|private_?key|authorization|cookie)[\w-]*"
)
_ASSIGNED = re.compile(rf"\b({_SECRET_NAME})=[^\s&'\";,]+", re.IGNORECASE)
_SECRET_OPTION = re.compile(rf"^(?:{_SECRET_NAME}|key|auth|sas)$", re.IGNORECASE)
#: Query parameters that sign a URL: they change from hour to hour and are not for other eyes.
_SIGNING = re.compile(
    rf"^(?:{_SECRET_NAME}|x-(?:amz|goog|oss)-.*|key|sig|s[epvrtk]|spr|sk\w+|sdd|expires|policy"
    r"|key-pair-id|awsaccesskeyid|googleaccessid)$",
    re.IGNORECASE,
)
#: Values of such options that are no secret ("token": "anon" is how gcsfs says "nobody").
_PUBLIC = ("anon", "anonymous", "cloud", "google_default", "")


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


def redact(text: str) -> str:
    """``text`` without user names, passwords, query strings or ``secret=...`` assignments.

    >>> redact("cannot open 'https://me:pw@host/a.tif?sig=1': 403")
    "cannot open 'https://host/a.tif': 403"
    """
    text = _QUERY.sub(r"\1", _USERINFO.sub(r"\1", text))
    return _ASSIGNED.sub(r"\1=***", text)


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


def holds_secret(uri: str) -> bool:
    """Whether a URI carries a user name, a password or a signature.

    >>> holds_secret("https://host/a.tif?sig=1"), holds_secret("https://host/wms?layer=1")
    (True, False)
    """
    signed = any(_SIGNING.match(name) for name, _ in parse_qsl(_query(uri)))
    return bool(_USERINFO.search(uri) or _ASSIGNED.search(uri) or signed)


def _query(uri: str) -> str:
    return uri.partition("?")[2] if "://" in uri or uri.startswith("/vsi") else ""


def plain_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Reader options as a plain dict; refuses credentials at any depth.

    Raises
    ------
    OptionError
        Naming the option that looks like a credential, and where it belongs.
    """
    for name, value in _walk(options or {}):
        if _SECRET_OPTION.match(name) and value is not None and str(value) not in _PUBLIC:
            raise OptionError(f"option {name!r} looks like a credential; put it in {ENVIRONMENT}")
    return dict(options or {})


def _walk(options: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _walk(value)
        else:
            yield str(name), value


def failure(uri: str, what: str, remedy: str, error: BaseException | None = None) -> FieldError:
    """A :class:`FieldError` in one line: the source, what happened, what helps.

    Parameters
    ----------
    uri : str
        Named without its secrets.
    what, remedy : str
    error : exception, optional
        The cause: its innermost text is quoted, without secrets.
    """
    cause = ""
    if error is not None:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        text = " ".join(redact(str(root) or type(root).__name__).split())
        cause = f" ({text if len(text) <= _QUOTED else text[:_QUOTED] + ' ...'})"
    return FieldError(f"{shown(uri)}: {what}{cause}; {remedy}")


def traceable(error: BaseException, uri: str) -> BaseException | None:
    """What to ``raise ... from``: nothing when the URI holds a secret.

    Readers repeat the URI in their texts, and tracebacks end up in logs and reports.
    """
    return None if holds_secret(uri) else error


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


def stat_identity(uri: str) -> dict[str, Any]:
    """URI, size and time (local) or ETag (remote, where the server tells) of one file.

    Parameters that sign a URL are left out; the others are represented by a digest, because they
    may choose the content.
    """
    found: dict[str, Any] = {"uri": redact(uri)}  # an inline VRT identifies itself
    kept = sorted(pair for pair in parse_qsl(_query(uri)) if not _SIGNING.match(pair[0]))
    if kept:
        found["query"] = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
    path = local_path(uri)
    if path is None:
        return found | _remote(uri)
    try:
        size, mtime_ns, _ = _stat(path)
    except OSError as error:
        raise _missing(uri, error) from None
    return found | {"size": size, "mtime_ns": mtime_ns}


def _remote(uri: str) -> dict[str, Any]:
    """Size and ETag by fsspec, under the environment variables that GDAL reads too."""
    target = re.sub(r"^/vsicurl/", "", re.sub(r"^/vsi(s3|gs)/", r"\1://", uri))
    options: dict[str, Any] = {}
    if target.startswith("s3://"):
        options["anon"] = os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1")
        if host := os.environ.get("AWS_S3_ENDPOINT"):
            scheme = "http" if os.environ.get("AWS_HTTPS", "YES").upper() == "NO" else "https"
            options["endpoint_url"] = host if "://" in host else f"{scheme}://{host}"
    # a store that fsspec cannot ask (GDAL may still read it) is identified by its URI alone
    with contextlib.suppress(Exception):
        filesystem, name = fsspec.url_to_fs(target, **options)
        info = {key.lower().replace("-", ""): value for key, value in filesystem.info(name).items()}
        kept = {key: info.get(key) for key in ("size", "etag", "lastmodified")}
        return {key: _text(value) for key, value in kept.items() if value is not None}
    return {}


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
        if name == uri or name.endswith((".ovr", ".aux.xml")):
            continue
        found = stat_identity(name) if local_path(name) is not None else {"uri": redact(name)}
        lines.append(repr(sorted(found.items())))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] if lines else None
