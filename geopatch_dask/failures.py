"""What a failure of a store or a source means: one table for every client.

The libraries underneath say the same thing in many ways.  Here is what each of them was seen to
raise (botocore and s3fs, aiohttp, obstore, GDAL through rasterio, the operating system), sorted
into seven kinds::

    absent        there is no such object                            permanent
    forbidden     the place answered, and said no                    permanent
    mistake       no such bucket, a bad name, a package missing      permanent
    full          no room left, or over a quota                      permanent
    busy          the place asks to come back later                  transient
    unreachable   no answer, or only part of one                     transient
    failed        anything else                                      permanent, but for EIO and kin

A failure is *transient* when the same request may well succeed a little later, so that it is worth
repeating.  What is not in the table is not transient: an operator's own ``ValueError`` will be the
same in ten seconds.

Errors come in chains, and the outermost link often says less than the cause (s3fs makes an
``OSError(EIO)`` of any code it does not know).  So the whole chain is asked for an answer of the
server first, then for a class or a text that is known, then for an ``errno``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from geopatch_dask.errors import AlignmentError, OptionError, PlanMismatch, StorageError

__all__ = ["KINDS", "failure_kind", "is_for_memory", "is_transient", "judged"]

#: Every kind there is.
KINDS = ("absent", "forbidden", "unreachable", "busy", "full", "mistake", "failed")
_TRANSIENT = frozenset({"busy", "unreachable"})
#: Links of a chain that are looked at; longer ones repeat themselves.
_LINKS = 16

#: Codes of the S3 protocol.  Those not listed are judged by their HTTP status.
_CODES = {
    **dict.fromkeys(("NoSuchKey", "NotFound", "NoSuchUpload"), "absent"),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem"), "forbidden"),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"), "forbidden"),
    **dict.fromkeys(("InvalidToken", "TokenRefreshRequired", "RequestExpired"), "forbidden"),
    **dict.fromkeys(("RequestTimeTooSkewed", "InvalidSecurity", "Unauthorized"), "forbidden"),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName", "PermanentRedirect"), "mistake"),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraint"), "mistake"),
    **dict.fromkeys(("EntityTooLarge", "KeyTooLongError", "MethodNotAllowed"), "mistake"),
    **dict.fromkeys(("QuotaExceeded", "InsufficientStorage", "NoSpaceLeft"), "full"),
    **dict.fromkeys(("SlowDown", "ServiceUnavailable", "InternalError", "Busy"), "busy"),
    **dict.fromkeys(("InternalServerError", "InternalFailure", "OperationAborted"), "busy"),
    **dict.fromkeys(("Throttling", "ThrottlingException", "RequestThrottled"), "busy"),
    **dict.fromkeys(("RequestLimitExceeded", "TooManyRequests", "ServerBusy"), "busy"),
    **dict.fromkeys(("BandwidthLimitExceeded", "ConditionalRequestConflict"), "busy"),
    **dict.fromkeys(("RequestTimeout", "RequestTimeoutException"), "unreachable"),
    # The body arrived damaged or cut, and the server noticed.
    **dict.fromkeys(("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"), "unreachable"),
}

#: Answers of HTTP.  Of the others, 5xx are busy and the rest are mistakes.
_STATUS = {
    **dict.fromkeys((401, 403, 407), "forbidden"),
    **dict.fromkeys((404, 410), "absent"),
    **dict.fromkeys((409, 425, 429), "busy"),
    **dict.fromkeys((501, 505), "mistake"),
    408: "unreachable",
    507: "full",
}

#: Names of classes, also of base classes, so that no client has to be imported to be known.
_CLASSES = {
    **dict.fromkeys(("FileNotFoundError", "CPLE_AWSObjectNotFoundError"), "absent"),
    **dict.fromkeys(
        ("PermissionError", "NoCredentialsError", "PartialCredentialsError"), "forbidden"
    ),
    **dict.fromkeys(("CredentialRetrievalError", "TokenRetrievalError"), "forbidden"),
    **dict.fromkeys(("PermissionDeniedError", "UnauthenticatedError"), "forbidden"),
    **dict.fromkeys(("CPLE_AWSAccessDeniedError", "CPLE_AWSInvalidCredentialsError"), "forbidden"),
    **dict.fromkeys(("CPLE_AWSSignatureDoesNotMatchError",), "forbidden"),
    **dict.fromkeys(("CPLE_AWSBucketNotFoundError", "NotADirectoryError"), "mistake"),
    **dict.fromkeys(("IsADirectoryError", "FileExistsError", "ImportError"), "mistake"),
    **dict.fromkeys(("InvalidPathError", "UnknownConfigurationKeyError"), "mistake"),
    **dict.fromkeys(("NotSupportedError", "ParamValidationError", "InvalidRegionError"), "mistake"),
    # GDAL tells these codes apart by their text only, which is the server's own.
    "CPLE_AWSError": "busy",
    **dict.fromkeys(("TimeoutError", "ConnectionError", "gaierror"), "unreachable"),
    # botocore
    **dict.fromkeys(("EndpointConnectionError", "ConnectionClosedError"), "unreachable"),
    **dict.fromkeys(("ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError"), "unreachable"),
    **dict.fromkeys(("ResponseStreamingError", "IncompleteReadError"), "unreachable"),
    # aiohttp, http.client, urllib3, requests
    **dict.fromkeys(
        ("ClientPayloadError", "ClientConnectionError", "ClientOSError"), "unreachable"
    ),
    **dict.fromkeys(("ServerDisconnectedError", "ContentLengthError"), "unreachable"),
    **dict.fromkeys(("IncompleteRead", "ProtocolError", "ChunkedEncodingError"), "unreachable"),
    # Azure
    **dict.fromkeys(("ServiceRequestError", "ServiceResponseError"), "unreachable"),
}

#: What libraries only say in words; the first that matches counts.
_TEXTS = (
    (re.compile(r"redirect without LOCATION|builder error|URL scheme is not allowed"), "mistake"),
    (
        re.compile(r"error sending request|response body error|error decoding response"),
        "unreachable",
    ),
    (re.compile(r"No such file or directory|does not exist in the file system"), "absent"),
    (re.compile(r"CURL error: |Operation timed out|Connection timed out"), "unreachable"),
)
_CODE_TEXT = re.compile(r"<Code>(\w+)</Code>")
_STATUS_TEXT = re.compile(r"(?:status code|HTTP (?:response|error) code)(?: on \S+)?:? ?(\d{3})\b")
#: Classes whose text is a server's or a client's, not a user's.
_QUOTING = ("BaseError", "RasterioIOError", "CPLE_BaseError", "FileNotFoundError")

_ERRNO = {
    errno.ENOENT: "absent",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "forbidden"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EINVAL, errno.ENOSYS, errno.EISDIR), "mistake"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ELOOP), "mistake"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "full"),
    **dict.fromkeys((errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOLCK), "busy"),
    **dict.fromkeys((errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED), "unreachable"),
    **dict.fromkeys((errno.ECONNABORTED, errno.EPIPE, errno.ENOTCONN), "unreachable"),
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN), "unreachable"),
}
#: A disk or a network file system that stumbled: not known why, but often gone the next time.
_STUMBLED = frozenset({errno.EIO, errno.ESTALE, getattr(errno, "EREMOTEIO", errno.EIO)})


def failure_kind(error: BaseException) -> str:
    """What a failure says about the place: one of :data:`KINDS`.

    Examples
    --------
    >>> failure_kind(PermissionError("no")), failure_kind(TimeoutError()), failure_kind(KeyError(1))
    ('forbidden', 'unreachable', 'failed')
    """
    return judged(error)[0]


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later.

    Works on any exception; False for those it does not know, for running out of memory, and for
    being interrupted.

    Examples
    --------
    >>> [is_transient(e) for e in (ConnectionResetError(), ValueError(), MemoryError())]
    [True, False, False]
    """
    return judged(error)[1]


def is_for_memory(error: BaseException) -> bool:
    """Whether a failure is for want of memory, or came from one that was.

    Examples
    --------
    >>> is_for_memory(MemoryError()), is_for_memory(ValueError())
    (True, False)
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_for_memory, error.exceptions))
    return any(isinstance(link, MemoryError) for link in _links(error))


def judged(error: BaseException) -> tuple[str, bool]:
    """Kind and transience of a failure."""
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    if isinstance(error, MemoryError) or not isinstance(error, Exception):
        return "failed", False
    links = list(_links(error))
    for link in links:
        if isinstance(link, StorageError):
            return link.kind, link.transient
        if isinstance(link, OptionError | AlignmentError | PlanMismatch):
            return "mistake", False
    for ask in (_answer, _known, _system):
        for link in links:
            kind = ask(link)
            if kind:
                return kind, kind in _TRANSIENT
    stumbled = any(isinstance(link, OSError) and link.errno in _STUMBLED for link in links)
    return "failed", stumbled


def _of_group(group: BaseExceptionGroup[BaseException]) -> tuple[str, bool]:
    """Transient when all of it is; the kind is that of the first that is not."""
    verdicts = [judged(inner) for inner in group.exceptions] or [("failed", False)]
    return next((v for v in verdicts if not v[1]), verdicts[0])


def _links(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, as a traceback shows them."""
    link: BaseException | None = error
    for _ in range(_LINKS):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _answer(link: BaseException) -> str | None:
    """The kind by what a server answered: a code of S3, or a status of HTTP."""
    response = getattr(link, "response", None)
    if isinstance(response, dict):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _CODES.get(code) or _by_status(code) or _by_status(status)
    if _quotes(link):
        text = str(link).partition("Debug source:")[0]
        found = _CODE_TEXT.search(text)
        if found and found[1] in _CODES:
            return _CODES[found[1]]
        status = _STATUS_TEXT.search(text)
        return _by_status(status[1]) if status else None
    # aiohttp, Azure, Google; a status below 400 is none of a failure, nor is 400 of a client that
    # could not read the answer
    names = ("status", "status_code", "code")  # the first that there is: aiohttp warns of the last
    return _by_status(next((getattr(link, name) for name in names if hasattr(link, name)), None))


def _by_status(value: object) -> str | None:
    text = str(value) if isinstance(value, int | str) else ""
    number = int(text) if re.fullmatch(r"[1-5]\d\d", text) else 0
    if number in _STATUS:
        return _STATUS[number]
    if 500 <= number < 600:
        return "busy"
    return "mistake" if 400 < number < 500 or number in (301, 307) else None


def _known(link: BaseException) -> str | None:
    """The kind by the name of a class, or by what the text of a storage library says."""
    for base in type(link).__mro__:
        if base.__name__ in _CLASSES:
            return _CLASSES[base.__name__]
    if _quotes(link):
        text = str(link)
        return next((kind for pattern, kind in _TEXTS if pattern.search(text)), None)
    return None


def _quotes(link: BaseException) -> bool:
    return any(base.__name__ in _QUOTING for base in type(link).__mro__)


def _system(link: BaseException) -> str | None:
    """The kind by the number that the operating system gave."""
    return _ERRNO.get(link.errno or 0) if isinstance(link, OSError) else None
