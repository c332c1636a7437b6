"""Credentials stay on the machine that uses them.

Locations and fields travel: into graphs, ``plan.json``, records, logs, reports, tracebacks.  So
they must never hold a secret, only the *name* of one::

    {"key": "env:S3_KEY", "secret": "env:S3_SECRET"}      what travels
                 |
                 v  resolved()                            on the worker, when a client is built
    {"key": "AKIA...",    "secret": "wJalr..."}           what the client gets, and nobody else

A literal value under a name that looks like a secret's is refused before it can travel.  What other
libraries write into their errors is cleaned on its way through: :func:`scrub` marks what it takes
out, :func:`redact` leaves a URL that still names its object::

    https://me:pw@host/a.tif?X-Amz-Signature=0a1b     what opens it
    https://***@host/a.tif?***                        scrub, in messages
    https://host/a.tif                                redact, in labels and identities
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus

from geopatch_dask.errors import OptionError

__all__ = [
    "ENVIRONMENT",
    "checked",
    "holds_secret",
    "looks_secret",
    "plain_options",
    "query_of",
    "redact",
    "refuse_in_url",
    "resolved",
    "scrub",
    "signs",
    "tells",
]

#: Where a message sends people who put a credential somewhere else.
ENVIRONMENT = "the environment of the workers (AWS_ACCESS_KEY_ID, GDAL_HTTP_USERPWD, ...)"

#: Marks a value as the name of an environment variable.
ENV = "env:"

_WORDS = frozenset(
    {"auth", "authorization", "bearer", "cookie", "credential", "credentials", "key"}
    | {"passcode", "passphrase", "password", "passwd", "pwd", "sas", "sig", "signature", "secret"}
    | {"token"}
)
_PARTS = (
    *("accesskey", "accountkey", "apikey", "connectionstring", "credential", "passw", "privatekey"),
    *("pwd", "secret"),
)
#: These name a way to log in (gcsfs), they are not a token.
_METHODS = frozenset({"anon", "anonymous", "browser", "cache", "cloud", "google_default"})
#: Variables that the clients read by themselves; their values are taken out of messages as well.
_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GDAL_HTTP_USERPWD"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_CLIENT_SECRET", "GOOGLE_OAUTH_ACCESS_TOKEN"),
)
#: Shorter values are too likely to be a word of the message.
_TELLING = 6
#: Links of a chain of errors that are looked at.
_LINKS = 16
#: To these servers nobody logs in by a name alone: what stands before the @ is a token.
_WEB = ("http", "https")

_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^/@\s]+@")
_QUERY = re.compile(r"(?P<url>[A-Za-z][\w+.-]*://[^\s?'\"]*)\?[^\s'\")>]+")
#: The same for everything that GDAL opens: an @ in a password, ``/vsicurl?``.
_ANY_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s'\"]*@")
_ANY_QUERY = re.compile(r"((?:://|/vsi[a-z0-9_]+)[^\s?'\"]*)\?[^\s'\"]*")
_NAME = (
    r"[\w-]*(?:passw(?:or)?d|pwd|secret|token|signature|credential|access_?key|account_?key"
    r"|api_?key|private_?key|authorization|cookie)[\w-]*"
)
_ASSIGNED = re.compile(rf"\b({_NAME})=[^\s&'\";,]+", re.IGNORECASE)
#: Query parameters that sign a URL: they change from hour to hour and are not for other eyes.
_SIGNING = re.compile(
    rf"^(?:{_NAME}|x-(?:amz|goog|oss)-.*|key|sig|s[epvrtk]|spr|sk\w+|sdd|expires|policy"
    r"|key-pair-id|awsaccesskeyid|googleaccessid)$",
    re.IGNORECASE,
)


def looks_secret(name: str) -> bool:
    """Whether an option of this name usually holds a credential.

    Names of files (``key_filename``) hold a path, not a credential.

    Examples
    --------
    >>> [looks_secret(n) for n in ("key", "aws_session_token", "connectionString", "endpoint_url")]
    [True, True, True, False]
    """
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().replace("-", "_").split("_")
    if words[-1] in ("file", "filename", "path"):
        return False
    squashed = "".join(words)
    if words[-1] == "pass":  # pass_through is another word
        return True
    return not _WORDS.isdisjoint(words) or any(part in squashed for part in _PARTS)


def checked(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A JSON copy of storage options that is safe to send and to write down.

    Raises
    ------
    OptionError
        When a credential is given literally, or a value is not plain JSON.
    """
    if not options:
        return None
    for path, value in _leaves(options):
        name = next((part for part in path if looks_secret(part)), "")
        if name and not _harmless(value):
            variable = re.sub(r"\W", "_", path[-1]).upper()
            raise OptionError(
                f"storage_options {'.'.join(path)!r} holds a credential, and a location is written "
                "into graphs and plan.json: set it in the environment and pass 'env:NAME', "
                f"for instance {{{path[-1]!r}: 'env:{variable}'}}"
            )
        if isinstance(value, str):
            refuse_in_url(value)
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError):
        bad = sorted(".".join(path) for path, value in _leaves(options) if not _plain(value))
        raise OptionError(
            f"storage_options {', '.join(bad) or 'keys'}: only text, numbers, booleans, lists and "
            "mappings can travel to a worker"
        ) from None
    return copy


def resolved(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options with every ``"env:NAME"`` replaced by the variable's value, on this machine.

    Raises
    ------
    OptionError
        When a variable is not set here.
    """

    def visit(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(ENV):
            return _variable(value)
        if isinstance(value, Mapping):
            return {k: visit(v) for k, v in value.items()}
        return [visit(v) for v in value] if isinstance(value, list) else value

    return {k: visit(v) for k, v in (options or {}).items()}


def scrub(text: str, options: Mapping[str, Any] | None = None) -> str:
    """``text`` without credentials, for messages.

    What goes: user names and queries of URLs, the values that ``options`` name, and those of the
    variables that clients read by themselves; also where a secret is percent-encoded, as in a URL.
    Text is to be scrubbed before it is cut, or the first half of a secret is left.

    Examples
    --------
    >>> scrub("GET https://me:pw@host/a.zarr?sig=abc failed")
    'GET https://***@host/a.zarr?*** failed'
    """
    for path, value in _leaves(options or {}):
        if isinstance(value, str) and value.startswith(ENV) and any(map(looks_secret, path)):
            secret = os.environ.get(value.removeprefix(ENV), "")
            text = _without(text, secret)
    for name in _VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _TELLING:
            text = _without(text, secret)
    return _QUERY.sub(r"\g<url>?***", _USERINFO.sub(r"\g<scheme>***@", text))


def _without(text: str, secret: str) -> str:
    """``text`` without a secret, as it is and as URLs spell it; the longest spelling first."""
    spelled = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    spelled |= {re.sub("%..", lambda code: code[0].lower(), word) for word in spelled}
    for word in sorted(spelled, key=len, reverse=True):
        if word:
            text = text.replace(word, "***")
    return text


def tells(error: BaseException, options: Mapping[str, Any] | None = None) -> bool:
    """Whether an error, or one that it came from, says a secret: then it must not be chained.

    What goes by :func:`scrub`, of all texts that a traceback would print.
    """
    seen: list[str] = []
    link: BaseException | None = error
    while link is not None and len(seen) < _LINKS:
        seen += [str(link), *getattr(link, "__notes__", ())]
        link = link.__cause__ or link.__context__
    return any(scrub(text, options) != text for text in seen)


def redact(text: str) -> str:
    """``text`` without user names, passwords, query strings or ``secret=...`` assignments.

    >>> redact("cannot open 'https://me:pw@host/a.tif?sig=1': 403")
    "cannot open 'https://host/a.tif': 403"
    """
    text = _ANY_QUERY.sub(r"\1", _ANY_USERINFO.sub(r"\1", text))
    return _ASSIGNED.sub(r"\1=***", text)


def holds_secret(uri: str) -> bool:
    """Whether a URI carries a user name, a password or a signature.

    >>> holds_secret("https://host/a.tif?sig=1"), holds_secret("https://host/wms?layer=1")
    (True, False)
    """
    signed = any(signs(name) for name, _ in parse_qsl(query_of(uri)))
    return bool(_ANY_USERINFO.search(uri) or _ASSIGNED.search(uri) or signed)


def signs(parameter: str) -> bool:
    """Whether a query parameter of this name signs the URL, and says nothing of its content."""
    return _SIGNING.match(parameter) is not None


def query_of(uri: str) -> str:
    """The query of a URL or of a GDAL path; "" for names of files, which may hold a ``?``."""
    return uri.partition("?")[2] if "://" in uri or uri.startswith("/vsi") else ""


def plain_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a reader as a plain dict; refuses literal credentials at any depth.

    Raises
    ------
    OptionError
        Naming the option that looks like a credential, and where it belongs.
    """
    for path, value in _leaves(options or {}):
        if any(map(looks_secret, path)) and not _harmless(value):
            raise OptionError(
                f"option {'.'.join(path)!r} looks like a credential; put it in {ENVIRONMENT}"
            )
    return dict(options or {})


def refuse_in_url(url: str) -> None:
    """Refuse a URL that carries a password or a signature.

    Raises
    ------
    OptionError
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return
    authority, _, query = rest.partition("?")
    user, at, _ = authority.partition("/")[0].rpartition("@")
    named = [pair.partition("=")[0] for pair in query.split("&")]
    if (at and (":" in user or scheme in _WEB)) or any(map(looks_secret, named)):
        raise OptionError(
            f"the {scheme}:// URL carries a credential, and a location is written into graphs and "
            "plan.json: take it out of the URL, set it in the environment and pass "
            "storage_options with 'env:NAME'"
        )


def _variable(reference: str) -> str:
    name = reference.removeprefix(ENV)
    value = os.environ.get(name)
    if value is None:
        raise OptionError(
            f"storage_options name the environment variable {name!r}, which is not set in this "
            "process: set it where the workers run"
        )
    return value


def _harmless(value: Any) -> bool:
    """Values that cannot be a credential whatever the option is called."""
    if isinstance(value, str):
        return not value or value.startswith(ENV) or value in _METHODS
    return value is None or isinstance(value, bool)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar in nested options, with the names that lead to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value
