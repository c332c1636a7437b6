"""Credentials stay on the machine that uses them.

A location travels: into graphs, ``plan.json``, records, logs, reports, tracebacks.  So it must
never hold a secret, only the *name* of one::

    {"key": "env:S3_KEY", "secret": "env:S3_SECRET"}      what travels
                 |
                 v  resolved()                            on the worker, when a client is built
    {"key": "AKIA...",    "secret": "wJalr..."}           what the client gets, and nobody else

A literal value under a name that looks like a secret's is refused before it can travel, and
:func:`scrub` removes resolved values from text that a storage library wrote into its errors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from geopatch_dask.errors import OptionError

__all__ = ["checked", "looks_secret", "refuse_in_url", "resolved", "scrub"]

#: Marks a value as the name of an environment variable.
ENV = "env:"

_WORDS = frozenset(
    {"auth", "authorization", "cookie", "credential", "credentials", "key", "passphrase"}
    | {"password", "passwd", "pwd", "sas", "sig", "signature", "secret", "token"}
)
_PARTS = ("accesskey", "accountkey", "apikey", "connectionstring", "credential", "passw", "secret")
#: These name a way to log in (gcsfs), they are not a token.
_METHODS = frozenset({"anon", "browser", "cache", "cloud", "google_default"})
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^/@\s]+@")
_QUERY = re.compile(r"(?P<url>[A-Za-z][\w+.-]*://[^\s?'\"]*)\?[^\s'\")>]+")


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
    """``text`` without credentials: URL user names and queries, and the values ``options`` name.

    Examples
    --------
    >>> scrub("GET https://me:pw@host/a.zarr?sig=abc failed")
    'GET https://***@host/a.zarr?*** failed'
    """
    for path, value in _leaves(options or {}):
        if isinstance(value, str) and value.startswith(ENV) and any(map(looks_secret, path)):
            secret = os.environ.get(value.removeprefix(ENV), "")
            if secret:
                text = text.replace(secret, "***")
    return _QUERY.sub(r"\g<url>?***", _USERINFO.sub(r"\g<scheme>***@", text))


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
    if (at and ":" in user) or any(map(looks_secret, named)):
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
