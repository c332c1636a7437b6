"""What a failure means: the table, against what each client really raises."""

from __future__ import annotations

import asyncio
import errno
import itertools
import pickle
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import obstore
import pytest
import s3fs
from fault_server import FAULTS, Server
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import S3Store

from geopatch_dask import failures, s3
from geopatch_dask.errors import (
    FieldError,
    OperatorError,
    OptionError,
    SuperTileFailed,
    TargetError,
)
from geopatch_dask.failures import KINDS, failure_kind, is_transient
from geopatch_dask.store.location import raise_target_error

#: What S3 answers, and what that is called.
ANSWERS = {
    "reset": "unreachable",
    "closed": "unreachable",
    "cut": "unreachable",
    "short": "unreachable",
    "SlowDown": "busy",
    "ServiceUnavailable": "busy",
    "empty 503": "busy",
    "InternalError": "busy",
    "TooManyRequests": "busy",
    "Bad Gateway": "busy",
    "Gateway Timeout": "busy",
    "RequestTimeout": "unreachable",
    "AccessDenied": "forbidden",
    "InvalidAccessKeyId": "forbidden",
    "SignatureDoesNotMatch": "forbidden",
    "ExpiredToken": "forbidden",
    "RequestTimeTooSkewed": "forbidden",
    "Unauthorized": "forbidden",
    "NoSuchBucket": "mistake",
    "NoSuchKey": "absent",
    "QuotaExceeded": "full",
    "InsufficientStorage": "full",
}


def by_s3fs(port: int, timeout: float = 5.0) -> Any:
    """A function that gets one object, without any repetition."""
    config = {
        "connect_timeout": 2,
        "read_timeout": timeout,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }
    given = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{port}"}
    fs = s3fs.S3FileSystem(
        **s3.for_s3fs({**given, "config_kwargs": config}, {}), skip_instance_cache=True
    )
    fs.retries = 1
    return lambda: fs.cat_file("bucket/object")


def by_obstore(port: int, timeout: float = 5.0) -> Any:
    given = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{port}"}
    found = s3.access({**given, "read_timeout": timeout, "retry_config": {"max_retries": 0}}, {})
    store = S3Store("bucket", **found.for_obstore())
    return lambda: bytes(obstore.get(store, "object").bytes())


CLIENTS = {"s3fs": by_s3fs, "obstore": by_obstore}


@pytest.fixture(scope="module", params=CLIENTS)
def answered(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What a client raises when the server answers like this."""
    with Server(b"x" * 10_000, "closed") as server:
        get = CLIENTS[request.param](server.port)

        def ask(fault: str) -> BaseException:
            server.fault = fault
            return raised(get)

        yield ask


def raised(function: Any, *args: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        function(*args)
    return caught.value


class TestRealAnswers:
    def test_every_fault_has_a_verdict(self):
        assert set(ANSWERS) == set(FAULTS)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_get(self, answered, fault):
        found = answered(fault)
        assert (failure_kind(found), is_transient(found)) == (
            ANSWERS[fault],
            ANSWERS[fault] in ("busy", "unreachable"),
        )

    @pytest.mark.parametrize("client", CLIENTS)
    def test_nobody_there(self, client):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        assert failure_kind(raised(CLIENTS[client](port))) == "unreachable"

    @pytest.mark.parametrize("client", CLIENTS)
    def test_a_server_that_says_nothing(self, client):
        with socket.create_server(("127.0.0.1", 0)) as server:
            found = raised(CLIENTS[client](server.getsockname()[1], 0.5))
        assert (failure_kind(found), is_transient(found)) == ("unreachable", True)


class Gdal(Exception):
    """Looks like what rasterio makes of an error of GDAL, number and all."""

    def __init__(self, text: str, number: int = 11) -> None:
        super().__init__(text)
        self.errno = number


def gdal(name: str, text: str) -> BaseException:
    base = type("CPLE_BaseError", (Gdal,), {})
    outer = type("RasterioIOError", (OSError,), {})(text)
    outer.__cause__ = type(name, (base,), {})(text)
    return outer


class TestTable:
    @pytest.mark.parametrize(
        ("error", "kind", "transient"),
        [
            (gdal("CPLE_HttpResponseError", "HTTP response code: 503"), "busy", True),
            (gdal("CPLE_HttpResponseError", "HTTP response code: 404"), "absent", False),
            (
                gdal("CPLE_HttpResponseError", "CURL error: Empty reply from server"),
                "unreachable",
                True,
            ),
            (gdal("CPLE_AWSError", "Please reduce your request rate."), "busy", True),
            (gdal("CPLE_AWSAccessDeniedError", "Access Denied"), "forbidden", False),
            (gdal("CPLE_OpenFailedError", "/a.tif: No such file or directory"), "absent", False),
            (gdal("CPLE_OpenFailedError", "not recognized as being in a ..."), "failed", False),
            (OSError(errno.EIO, "Input/output error"), "failed", True),
            (OSError(errno.ESTALE, "Stale file handle"), "failed", True),
            (OSError(errno.ETIMEDOUT, "timed out"), "unreachable", True),
            (OSError(errno.EAGAIN, "again"), "busy", True),
            (OSError(errno.ENOSPC, "full"), "full", False),
            (OSError(errno.EDQUOT, "quota"), "full", False),
            (OSError(errno.EROFS, "read-only"), "forbidden", False),
            (OSError(errno.EACCES, "denied"), "forbidden", False),
            (OSError(errno.ENOENT, "none"), "absent", False),
            (OSError("no number"), "failed", False),
            (ImportError("Install s3fs"), "mistake", False),
            (MemoryError(), "failed", False),
            (KeyboardInterrupt(), "failed", False),
            (asyncio.CancelledError(), "failed", False),
            (ValueError("mine"), "failed", False),
            (OptionError("bad"), "mistake", False),
            (TargetError("gone"), "mistake", False),
        ],
    )
    def test_verdicts(self, error, kind, transient):
        assert (failure_kind(error), is_transient(error)) == (kind, transient)

    def test_the_cause_counts(self):
        outer = RuntimeError("a chunk could not be read")
        outer.__cause__ = ConnectionResetError()
        assert is_transient(outer)
        operator = OperatorError("the operator raised")
        operator.__cause__ = TimeoutError()
        assert is_transient(operator)
        assert not is_transient(SuperTileFailed("for good"))

    def test_what_was_being_handled_counts_unless_it_was_hidden(self):
        def fail(hide: bool) -> None:
            try:
                raise ConnectionResetError
            except ConnectionResetError:
                if hide:
                    raise RuntimeError("x") from None
                raise RuntimeError("x")  # noqa: B904

        assert is_transient(raised(fail, False))
        assert not is_transient(raised(fail, True))

    def test_the_code_of_the_server_beats_the_number_of_the_wrapper(self):
        class ClientError(Exception):
            response = {"Error": {"Code": "QuotaExceeded"}}  # noqa: RUF012

        outer = OSError(errno.EIO, "an error occurred (QuotaExceeded)")
        outer.__cause__ = ClientError()
        assert (failure_kind(outer), is_transient(outer)) == ("full", False)

    def test_a_group_is_transient_when_all_of_it_is(self):
        passing, lasting = TimeoutError(), PermissionError()
        assert is_transient(ExceptionGroup("reads", [passing, ConnectionResetError()]))
        assert not is_transient(ExceptionGroup("reads", [passing, lasting]))
        assert failure_kind(ExceptionGroup("reads", [passing, lasting])) == "forbidden"

    @given(st.sampled_from([KeyError, OSError, TimeoutError, ValueError]), st.integers(1, 40))
    def test_chains_of_any_length_and_circles(self, kind, length):
        links = [kind(str(i)) for i in range(length)]
        for a, b in itertools.pairwise(links):
            a.__cause__ = b
        links[-1].__cause__ = links[0]
        assert failure_kind(links[0]) in KINDS
        assert is_transient(links[0]) == (kind is TimeoutError)

    @given(st.integers() | st.text() | st.none() | st.binary())
    def test_odd_attributes_do_no_harm(self, value):
        error = RuntimeError("mine")
        for name in ("status", "status_code", "code", "response"):
            setattr(error, name, value)
        assert failure_kind(error) in KINDS

    def test_every_kind_in_the_table_is_one(self):
        tables = (failures._CODES, failures._STATUS, failures._CLASSES, failures._ERRNO)
        assert {kind for table in tables for kind in table.values()} <= set(KINDS)


class TestErrors:
    @pytest.mark.parametrize("error", [TargetError, FieldError])
    def test_the_verdict_travels(self, error):
        made = error("away", kind="unreachable", transient=True)
        found = pickle.loads(pickle.dumps(made))
        assert (found.kind, found.transient, str(found)) == ("unreachable", True, "away")
        assert is_transient(found)
        assert failure_kind(found) == "unreachable"
        assert isinstance(found, OSError)

    def test_a_target_error_says_it(self):
        with pytest.raises(TargetError, match="unreachable: check the address") as caught:
            raise_target_error("write", "s3://b/x", ConnectionResetError("gone"))
        assert (caught.value.kind, caught.value.transient) == ("unreachable", True)

    def test_the_code_of_the_server_is_told_in_one_line(self, answered):
        with pytest.raises(TargetError, match=r"forbidden: .*AccessDenied\b") as caught:
            raise_target_error("read", "s3://b/x", answered("AccessDenied"))
        assert not {"\n", "<"} & set(str(caught.value))


def test_threads_may_ask_at_once():
    answers: list[bool] = []

    def ask() -> None:
        answers.append(is_transient(ConnectionResetError()))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8


def test_of_several_names_for_a_status_only_the_first_is_asked(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """aiohttp has two, and warns of one; a status 400 is that of an answer it could not read."""
    aiohttp = pytest.importorskip("aiohttp")
    request = SimpleNamespace(real_url="http://h/")
    for status, kind in ((400, None), (503, "busy")):
        error = aiohttp.ClientResponseError(request, (), status=status, message="?")
        assert failures._answer(error) == kind
    assert not recwarn.list
