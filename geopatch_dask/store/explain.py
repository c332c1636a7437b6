"""The failure of a storage library, said in one line: what, where, why, and what to do.

::

    cannot write s3://b/out.zarr/zarr.json: forbidden: check credentials and permissions
                                            (PermissionError: Access Denied)
    action       where                      verdict, by kind       the library's own words
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from geopatch_dask import credentials
from geopatch_dask.errors import TargetError
from geopatch_dask.failures import judged

__all__ = ["raise_target_error"]


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
    kind, transient = judged(error)
    detail = credentials.scrub(f"{type(error).__name__}: {_said(error)}", options)
    line = " ".join(detail.split()).rstrip(": ")[:400]
    tried = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    cause = None if credentials.tells(error, options) else error
    raise TargetError(
        f"cannot {action} {where}: {_verdict(kind, error)} ({line}{tried})",
        kind=kind,
        transient=transient,
    ) from cause


#: What each kind of failure asks of the user.
_VERDICTS = {
    "forbidden": "forbidden: check credentials and permissions",
    "unreachable": "unreachable: check the address and the network",
    "busy": "the server is busy: try again later, or with fewer workers",
    "full": "there is no room left: free some, or raise the quota",
}


def _verdict(kind: str, error: BaseException) -> str:
    """What a failure says about the object and about what to do."""
    if kind in _VERDICTS:
        return _VERDICTS[kind]
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return "a file and a folder are in each other's place: choose another name"
    if isinstance(error, ImportError):
        return "the package for this kind of URL is not installed"
    if "NoSuchBucket" in _texts(error):
        return "there is no such bucket: create it first"
    return "failed"


def _said(error: BaseException) -> str:
    """The most telling words of a library."""
    if isinstance(getattr(error.__cause__, "response", None), dict):
        return str(error.__cause__)  # botocore's, with the code; s3fs keeps the server's text only
    text = str(error).partition("Debug source:")[0]  # obstore adds a page for its own developers
    return re.sub(r"<\?xml.*?<Code>(\w+)</Code>.*", r"\1", text, flags=re.DOTALL)


def _texts(error: BaseException) -> str:
    """The messages of a chain of exceptions, as a traceback would print them."""
    seen: list[str] = []
    link: BaseException | None = error
    while link is not None and len(seen) < 16:
        seen.append(str(link))
        link = link.__cause__ or link.__context__
    return "\n".join(seen)
