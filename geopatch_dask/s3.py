"""One way to say where an S3 bucket is and who asks, told to three clients.

People write ``storage_options`` as s3fs takes them, or set the variables of the AWS tools.  GDAL
and obstore want the same facts under other names::

    storage_options             variable                GDAL                  obstore
    key, secret, token          AWS_ACCESS_KEY_ID, ...  the variables' names  access_key_id, ...
    anon                                                AWS_NO_SIGN_REQUEST   skip_signature
    endpoint_url                AWS_ENDPOINT_URL        AWS_S3_ENDPOINT,      endpoint,
                                                        AWS_HTTPS             allow_http
    client_kwargs.region_name   AWS_REGION              AWS_REGION            region
    config_kwargs.s3                                    AWS_VIRTUAL_HOSTING   virtual_hosted_
      .addressing_style                                                       style_request

Nothing here talks to anyone.  :func:`access` reads options in which credentials are already values,
so what it returns stays in the process that uses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

__all__ = ["CONNECT", "GDAL_PLACE", "READ", "WHOLE", "S3Access", "access", "for_s3fs"]

#: Seconds until a connection must stand.  Both clients wait as long by themselves.
CONNECT = 5.0
#: Seconds without an answer after which a request has failed.  Both clients also count the time in
#: which a request's own body is sent: a write unit must fit through (200 MB at 3.3 MB/s).
READ = 60.0
#: Seconds that one request may take in all; only obstore has such a limit (30 s unless told).
WHOLE = 600.0
#: Attempts that a client makes by itself.  To repeat is our business, because ours are counted
#: (:mod:`geopatch_dask.retries`), and botocore's pauses are longer.
_INNER = 1

#: GDAL's options that say where the server is; they belong together.
GDAL_PLACE = ("AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_VIRTUAL_HOSTING")

#: What s3fs is told about speed and caches says nothing about where the bucket is.
_TUNING = frozenset(
    {"asynchronous", "batch_size", "cache_regions", "default_block_size", "default_cache_type"}
    | {"default_fill_cache", "fixed_upload_size", "listings_expiry_time", "max_concurrency"}
    | {"max_pool_connections", "retries", "skip_instance_cache", "use_listings_cache"}
)
#: Further options of obstore, which pass as they are.
_NATIVE = frozenset(
    {"request_payer", "checksum_algorithm", "conditional_put", "disable_tagging"}
    | {"disable_bulk_delete", "imdsv1_fallback", "s3_express", "server_side_encryption"}
    | {"sse_kms_key_id", "sse_bucket_key_enabled", "unsigned_payload"}
    | {"client_options", "retry_config"}
)
#: Every name that some client has for a fact, and ours.
_FACTS = {
    **{name: name for name in ("key", "secret", "token", "anon", "region", "use_ssl")},
    **{name: name for name in ("endpoint_url", "addressing_style", "requester_pays")},
    **{name: name for name in ("connect_timeout", "read_timeout")},
    **dict.fromkeys(("username", "access_key_id", "aws_access_key_id"), "key"),
    **dict.fromkeys(("password", "secret_access_key", "aws_secret_access_key"), "secret"),
    **dict.fromkeys(("session_token", "aws_session_token"), "token"),
    **dict.fromkeys(("skip_signature", "aws_skip_signature"), "anon"),
    **dict.fromkeys(("endpoint", "aws_endpoint", "aws_endpoint_url"), "endpoint_url"),
    **dict.fromkeys(("region_name", "default_region", "aws_region"), "region"),
    "virtual_hosted_style_request": "virtual",
}


@dataclass(frozen=True, repr=False)
class S3Access:
    """Where a bucket is and who asks.

    Parameters
    ----------
    key, secret, token : str or None
    anon : bool
        Requests are not signed.
    endpoint : str or None
        URL of the server; None for Amazon's.
    region : str or None
    virtual : bool
        Whether the bucket stands in the name of the host instead of in the path.
    payer : bool
        Whether who asks pays.
    connect, read : float, seconds
    native : mapping
        Further options of obstore, under its names.
    unknown : tuple of str
        Options that only s3fs understands.
    """

    key: str | None = None
    secret: str | None = None
    token: str | None = None
    anon: bool = False
    endpoint: str | None = None
    region: str | None = None
    virtual: bool = False
    payer: bool = False
    connect: float = CONNECT
    read: float = READ
    native: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether credentials and place are all told here.

        If not, the credentials may be in a profile, which only botocore reads, and the bucket in a
        region into which only botocore follows it.
        """
        signed = self.anon or bool(self.key and self.secret)
        return signed and bool(self.endpoint or self.region)

    def for_obstore(self, *, many: bool = False) -> dict[str, Any]:
        """Keyword arguments of :class:`obstore.store.S3Store`, but for the bucket.

        Parameters
        ----------
        many : bool
            Whether objects are deleted a thousand at a time.  Such a request needs other rights
            than one that deletes one object, and not every server knows it.
        """
        who = {"access_key_id": self.key, "secret_access_key": self.secret, "token": self.token}
        signed = self.key and self.secret
        config = {
            # Given whole: it would complete a key with the session token of the environment.
            "credential_provider": (lambda: {**who, "expires_at": None}) if signed else None,
            "skip_signature": self.anon or None,
            "endpoint": self.endpoint,
            "region": self.region,
            "virtual_hosted_style_request": self.virtual,
            "request_payer": self.payer or None,
            "disable_bulk_delete": not many,
        }
        client = {
            "allow_http": (self.endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=self.connect),
            "read_timeout": timedelta(seconds=self.read),
            "timeout": timedelta(seconds=max(WHOLE, self.read)),
        }
        own = dict(self.native)
        return {
            **{name: value for name, value in config.items() if value is not None},
            "client_options": {**client, **own.pop("client_options", {})},
            "retry_config": {"max_retries": _INNER - 1, **own.pop("retry_config", {})},
            **own,
        }

    def for_gdal(self) -> dict[str, str]:
        """Configuration options of GDAL's ``/vsis3/``; only what is known."""
        options = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_SESSION_TOKEN": self.token,
            "AWS_NO_SIGN_REQUEST": "YES" if self.anon else None,
            "AWS_REGION": self.region,
            "AWS_REQUEST_PAYER": "requester" if self.payer else None,
        }
        if self.endpoint:
            scheme, _, host = self.endpoint.rstrip("/").rpartition("://")
            place = (host, "NO" if scheme == "http" else "YES", str(self.virtual).upper())
            options.update(zip(GDAL_PLACE, place, strict=True))
        known = {name: value for name, value in options.items() if value}
        if self.key and not self.token:  # or that of the environment would complete the key
            known["AWS_SESSION_TOKEN"] = ""
        return known


def access(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> S3Access:
    """What storage options and the environment say; options win.

    Parameters
    ----------
    options : mapping
        Of s3fs, or obstore's own; credentials are values here, not names of variables.
    environ : mapping
        Variables of this process.

    Examples
    --------
    >>> found = access({"key": "k", "secret": "s", "endpoint_url": "http://host:9000"}, {})
    >>> found.for_gdal()["AWS_S3_ENDPOINT"], found.for_gdal()["AWS_HTTPS"], found.unknown
    ('host:9000', 'NO', ())
    """
    said: dict[str, Any] = {}
    native: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in _leaves(options):
        if name in _FACTS:
            said[_FACTS[name]] = value
        elif name in _NATIVE:
            native[name] = value
        elif name not in _TUNING:
            unknown.append(name)
    if said.get("addressing_style") == "virtual":
        said["virtual"] = True
    # A key, its secret and its token come from one place, never half from each.
    who = said if "key" in said or "secret" in said else _from_environment(environ)
    anon = bool(said.get("anon"))
    return S3Access(
        **{name: None if anon else who.get(name) or None for name in ("key", "secret", "token")},
        anon=anon,
        endpoint=_endpoint(said, environ),
        region=said.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
        virtual=bool(said.get("virtual")),
        payer=bool(said.get("requester_pays")),
        connect=float(said.get("connect_timeout", CONNECT)),
        read=float(said.get("read_timeout", READ)),
        native=native,
        unknown=tuple(unknown),
    )


def for_s3fs(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Options of s3fs with our timeouts, without its caches; what is given wins.

    Parameters
    ----------
    options : mapping
        Of s3fs; credentials are values here.
    environ : mapping
    """
    config = {
        "connect_timeout": CONNECT,
        "read_timeout": READ,
        "retries": {"mode": "standard", "total_max_attempts": _INNER},
        **options.get("config_kwargs", {}),
    }
    client = dict(options.get("client_kwargs", {}))
    # botocore reads the other variable, the newer tools of AWS read this one.
    if environ.get("AWS_REGION") and not environ.get("AWS_DEFAULT_REGION"):
        client.setdefault("region_name", environ["AWS_REGION"])
    return {
        "use_listings_cache": False,  # another process may have written since
        "max_concurrency": 1,  # otherwise it asks for the size before it asks for the bytes
        **options,
        "config_kwargs": config,
        **({"client_kwargs": client} if client else {}),
    }


def _leaves(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options that say something, those of botocore's two dictionaries among them."""
    for name, value in options.items():
        if name in ("client_kwargs", "config_kwargs", "s3") and isinstance(value, Mapping):
            yield from _leaves(value)
        elif value is not None:
            yield name, value


def _endpoint(said: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    found = said.get("endpoint_url") or next((environ[n] for n in names if environ.get(n)), None)
    if found and "://" not in found:
        found = f"{'https' if said.get('use_ssl', True) else 'http'}://{found}"
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, str | None]:
    names = {"key": "ACCESS_KEY_ID", "secret": "SECRET_ACCESS_KEY", "token": "SESSION_TOKEN"}
    return {ours: environ.get(f"AWS_{theirs}") for ours, theirs in names.items()}
