"""Sources behind a network: how GDAL and fsspec are told where they are and who asks.

Storage options name credentials (``"env:NAME"``); they become values here, in the process that
reads, for as long as GDAL is at work::

    with gdal(uri, options):            options and variables, as configuration of this thread
        dataset = rasterio.open(uri)    ... and never in os.environ

GDAL is also told to repeat requests by itself, to notice servers that fall silent, and not to keep
parts of a file across openings: an answer that was cut short would stay in its cache.  What a user
has configured wins over all of this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec
import rasterio
from rasterio.env import get_gdal_config
from rasterio.session import Session

from geopatch_dask import credentials, s3
from geopatch_dask.errors import OptionError

__all__ = ["READERS", "filesystem", "fsspec_options", "gdal", "reader_options", "vsi_name"]

#: What may open a raster.
READERS = ("gdal", "fsspec")
_S3 = re.compile(r"(?:\w+\+)?s3a?://|.*/vsis3/")

#: How GDAL speaks HTTP unless configured otherwise; https://gdal.org/user/virtual_file_systems.html.
#: It repeats what 429 and 5xx answer; what else may pass is repeated by the field.
_HTTP = {
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # seconds; it doubles
    "GDAL_HTTP_CONNECTTIMEOUT": f"{s3.CONNECT:g}",
    "GDAL_HTTP_LOW_SPEED_TIME": f"{s3.READ:g}",  # seconds below the next one
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",  # bytes per second
}
#: Blocks of a file that fsspec reads: a COG is read here and there, not from front to back.
_BLOCKS = {"default_cache_type": "blockcache", "default_block_size": 2**20}


def reader_options(
    uri: str, reader: str, options: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Storage options that ``reader`` can use for this source, safe to send.

    Raises
    ------
    OptionError
        For a literal credential, or options that the reader has no use for.
    """
    if reader not in READERS:
        raise OptionError(f"reader={reader!r}: use one of {', '.join(READERS)}")
    found = credentials.checked(options)
    if reader == "fsspec" and "://" not in uri:
        raise OptionError(f"reader='fsspec' opens URLs, {credentials.redact(uri)} is none")
    if reader == "gdal" and found:
        if not _S3.match(uri):
            raise OptionError(
                "reader='gdal' takes storage_options for s3:// only; use reader='fsspec', or "
                f"put them in {credentials.ENVIRONMENT}"
            )
        unknown = [*s3.access(found, {}).unknown, *s3.access(found, {}).native]
        if unknown:
            raise OptionError(f"reader='gdal' has no option {unknown[0]!r}: use reader='fsspec'")
    return found


@contextmanager
def gdal(uri: str, options: Mapping[str, Any] | None) -> Iterator[None]:
    """Configuration under which GDAL opens and reads a source behind a network.

    Parameters
    ----------
    uri : str
    options : mapping or None
        Storage options, as :func:`reader_options` gave them.

    Raises
    ------
    OptionError
        When they name an environment variable that is not set here.
    """
    who: dict[str, str] = {}
    if _S3.match(uri):
        who = s3.access(credentials.resolved(options)).for_gdal()
        if not options:  # GDAL reads most variables by itself, and may have been told otherwise
            placed = get_gdal_config("AWS_S3_ENDPOINT") is not None
            who = {
                name: value
                for name, value in who.items()
                if get_gdal_config(name) is None and not (placed and name in s3.GDAL_PLACE)
            }
    http = {name: value for name, value in _HTTP.items() if get_gdal_config(name) is None}
    with rasterio.Env(session=_Told(who), CPL_VSIL_CURL_NON_CACHED=vsi_name(uri), **http):
        yield


class _Told(Session):  # type: ignore[misc]  # rasterio has no types
    """Credentials that are known already; rasterio's own classes would ask boto3 for them."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = dict(options)

    @classmethod
    def hascreds(cls, config: Mapping[str, Any]) -> bool:
        return True

    def get_credential_options(self) -> dict[str, str]:
        return self._options


def filesystem(
    uri: str, options: Mapping[str, Any] | None, *, windows: bool = False
) -> tuple[Any, str]:
    """The fsspec filesystem of a source, and the name of the source in it.

    Parameters
    ----------
    uri : str
        A URL, or a ``/vsis3/``, ``/vsigs/`` or ``/vsicurl/`` path.
    options : mapping or None
        Storage options; credentials are names in it.
    windows : bool
        Whether the source will be read here and there.
    """
    target = re.sub(r"^/vsicurl/", "", re.sub(r"^/vsi(s3|gs)/", r"\1://", uri))
    more = _BLOCKS if windows and _S3.match(target) else {}
    fs, name = fsspec.url_to_fs(target, **{**more, **fsspec_options(target, options)})
    return fs, name


def fsspec_options(url: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What fsspec is told about a URL: credentials are values in it.

    Raises
    ------
    OptionError
        When the options name an environment variable that is not set here.
    """
    found = credentials.resolved(options)
    if not _S3.match(url):
        return found
    # Told twice, here and in client_kwargs, s3fs takes the endpoint for a mistake.
    said = s3.access(found, {})
    known = {"endpoint_url": said.endpoint, "anon": said.anon or said.key}
    more = {name: value for name, value in _as_gdal(os.environ).items() if not known[name]}
    return s3.for_s3fs({**more, **found})


def _as_gdal(environ: Mapping[str, str]) -> dict[str, Any]:
    """Options of s3fs from the variables of GDAL, so that one environment does for both."""
    options: dict[str, Any] = {}
    if environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
        options["anon"] = True
    if host := environ.get("AWS_S3_ENDPOINT"):
        scheme = "http" if environ.get("AWS_HTTPS", "YES").upper() == "NO" else "https"
        options["endpoint_url"] = host if "://" in host else f"{scheme}://{host}"
    return options


def vsi_name(uri: str) -> str:
    """How GDAL names a source behind a network; of others, a name that matches nothing."""
    scheme, _, rest = uri.partition("://")
    if uri.startswith("/vsi"):
        return uri
    names = {"s3": "/vsis3/", "s3a": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
    return f"{names[scheme]}{rest}" if scheme in names else f"/vsicurl/{uri}"
