"""The services do what they say: without that, tests that pass on them prove nothing."""

from __future__ import annotations

import dataclasses
import http.client
import http.server
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ResponseStreamingError,
)
from integration.buckets import Bucket
from services.ceph import Ceph
from services.fault_proxy import Faults
from services.netns import Network
from services.proxied import FaultProxy

pytestmark = pytest.mark.integration


def through(bucket: Bucket) -> Any:
    """A client without retries that takes the way of the bucket, and so meets its faults."""
    port = int(bucket.endpoint.rpartition(":")[2])
    return dataclasses.replace(bucket.ceph, port=port).admin


def refused(call: Callable[[], object]) -> tuple[str, int] | None:
    """The code and the status of a request that fails; None for one that does not."""
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    return None


# ---- the gateway ---------------------------------------------------------------------------------


def test_a_wrong_secret_is_refused(s3: Bucket) -> None:
    s3.write("a", b"x")
    assert s3.read("a") == b"x"
    wrong = s3.ceph.client(s3.ceph.owner[0], "wrong")
    assert refused(lambda: wrong.get_object(Bucket=s3.name, Key="a")) == (
        "SignatureDoesNotMatch",
        403,
    )
    unknown = s3.ceph.client("nobody", "wrong")
    assert refused(lambda: unknown.get_object(Bucket=s3.name, Key="a"))[0] == "InvalidAccessKeyId"


def test_absent_objects_and_buckets_are_told_apart(s3: Bucket) -> None:
    admin = s3.ceph.admin
    assert refused(lambda: admin.get_object(Bucket=s3.name, Key="no")) == ("NoSuchKey", 404)
    assert refused(lambda: admin.get_object(Bucket="no-such-one", Key="a")) == ("NoSuchBucket", 404)


def test_if_none_match_has_one_winner(s3: Bucket) -> None:
    def put(i: int) -> bool:
        once = {"Bucket": s3.name, "Key": "once", "Body": str(i).encode(), "IfNoneMatch": "*"}
        found = refused(lambda: s3.ceph.admin.put_object(**once))
        assert found in (None, ("PreconditionFailed", 412))
        return found is None

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(16)))
    assert won.count(True) == 1
    assert s3.read("once") == str(won.index(True)).encode()


def test_a_guest_may_do_what_was_granted(s3: Bucket) -> None:
    s3.write("a", b"x")
    guest = s3.ceph.client(*s3.ceph.guest)
    assert refused(lambda: guest.get_object(Bucket=s3.name, Key="a")) == ("AccessDenied", 403)

    s3.ceph.grant(s3.name, "GetObject", "PutObject", "DeleteObject")
    guest.put_object(Bucket=s3.name, Key="b", Body=b"y")
    assert guest.get_object(Bucket=s3.name, Key="b")["Body"].read() == b"y"
    assert refused(lambda: guest.list_objects_v2(Bucket=s3.name)) == ("AccessDenied", 403)
    # without permission to list, nobody is told that an object is absent: as on AWS
    assert refused(lambda: guest.get_object(Bucket=s3.name, Key="no")) == ("AccessDenied", 403)

    s3.ceph.grant(s3.name, "GetObject", "ListBucket")
    assert refused(lambda: guest.get_object(Bucket=s3.name, Key="no")) == ("NoSuchKey", 404)
    assert refused(lambda: guest.put_object(Bucket=s3.name, Key="c", Body=b"")) == (
        "AccessDenied",
        403,
    )


def test_the_gateway_dies_and_comes_back_with_what_was_stored(s3: Bucket) -> None:
    s3.write("a", b"x" * 1000)
    before = s3.objects()
    pid = s3.ceph.gateway_pid()
    s3.ceph.kill_gateway()
    assert s3.ceph.gateway_pid() is None
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        s3.read("a")
    s3.ceph.start_gateway()
    assert s3.ceph.gateway_pid() not in (None, pid)
    assert s3.objects() == before
    assert s3.read("a") == b"x" * 1000


def test_a_paused_gateway_answers_late(s3: Bucket) -> None:
    """Connections are accepted, and then nothing comes: only a timeout of the client helps."""
    s3.write("a", b"x")
    s3.ceph.pause_gateway()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(s3.read, "a")
        impatient = http.client.HTTPConnection("127.0.0.1", s3.ceph.port, timeout=0.5)
        impatient.request("GET", "/")
        with pytest.raises(TimeoutError):
            impatient.getresponse()
        impatient.close()
        assert not late.done()
        s3.ceph.resume_gateway()
        assert late.result(20) == b"x"


# ---- the proxy -----------------------------------------------------------------------------------


def test_the_proxy_changes_nothing_by_itself(proxied_s3: Bucket) -> None:
    client = through(proxied_s3)
    bodies = {f"k{n}": bytes(range(256)) * (n // 256) + b"z" * (n % 256) for n in (0, 1, 5 << 20)}
    for key, body in bodies.items():
        client.put_object(Bucket=proxied_s3.name, Key=key, Body=body)
    for key, body in bodies.items():
        assert client.get_object(Bucket=proxied_s3.name, Key=key)["Body"].read() == body
        assert client.head_object(Bucket=proxied_s3.name, Key=key)["ContentLength"] == len(body)
        part = client.get_object(Bucket=proxied_s3.name, Key=key, Range="bytes=0-9") if body else 0
        assert not part or part["Body"].read() == body[:10]
    assert {key: entry[2] for key, entry in proxied_s3.objects().items()} == {
        key: len(body) for key, body in bodies.items()
    }
    client.delete_object(Bucket=proxied_s3.name, Key="k0")
    assert sorted(proxied_s3.objects()) == ["k1", f"k{5 << 20}"]
    assert proxied_s3.proxy is not None
    assert proxied_s3.proxy.requests() == 3 + 3 * 2 + 2 + 1
    assert set(proxied_s3.proxy.injected().values()) == {0}


class Echo(http.server.BaseHTTPRequestHandler):
    """Sends a body back in chunks; a request without one gets an answer without a length."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (body[:5], body[5:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\nX-Trailer: 1\r\n\r\n")

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"until the end")
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def test_chunks_and_bodies_without_a_length_pass() -> None:
    """S3 clients may send the one, gateways answer with both."""
    data = bytes(range(256)) * 3000
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with FaultProxy(server.server_port) as proxy:
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            for _ in range(2):  # the connection stays in step
                parts = iter([data[:7], data[7:1000], data[1000:]])
                headers = {"Transfer-Encoding": "chunked"}
                connection.request("PUT", "/a/b", body=parts, headers=headers, encode_chunked=True)
                assert connection.getresponse().read() == data
            connection.request("GET", "/a/b")
            assert connection.getresponse().read() == b"until the end"
            connection.close()
            proxy.set(reset_after=1.0)
            connection.request(
                "PUT", "/a/b", body=iter([data]), headers=headers, encode_chunked=True
            )
            with pytest.raises(ConnectionResetError):
                connection.getresponse()
            connection.close()
        server.shutdown()


def test_503_comes_as_often_as_asked_and_is_never_applied(proxied_s3: Bucket) -> None:
    client, proxy = through(proxied_s3), proxied_s3.proxy
    assert proxy is not None
    proxy.set(p503=0.2, seed=1)

    def put(i: int) -> bool:
        key = f"k{i:03}"
        found = refused(
            lambda: client.put_object(Bucket=proxied_s3.name, Key=key, Body=b"x" * 1000)
        )
        assert found in (None, ("SlowDown", 503))
        return found is None

    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(put, range(400)))
    count = stored.count(False)
    assert 50 <= count <= 110  # 80, and more than three standard deviations
    assert proxy.injected_by_method()["p503"] == {"PUT": count}
    assert sorted(proxied_s3.objects()) == [f"k{i:03}" for i in range(400) if stored[i]]


def test_a_reset_before_applies_nothing_and_one_after_everything(proxied_s3: Bucket) -> None:
    client, proxy = through(proxied_s3), proxied_s3.proxy
    assert proxy is not None
    for fault, expected in (("reset_before", []), ("reset_after", ["reset_after"])):
        proxy.set(**{"reset_before": 0.0, "reset_after": 0.0, fault: 1.0})
        with pytest.raises(ConnectionClosedError):
            client.put_object(Bucket=proxied_s3.name, Key=fault, Body=b"x" * 3_000_000)
        assert sorted(proxied_s3.objects()) == expected
    with pytest.raises(ConnectionClosedError):
        client.delete_object(Bucket=proxied_s3.name, Key="reset_after")
    assert proxied_s3.objects() == {}
    assert proxy.injected_by_method()["reset_after"] == {"PUT": 1, "DELETE": 1}


@pytest.mark.parametrize("size", [2, 10_000, 6_000_001])
def test_a_truncated_read_ends_half_way(proxied_s3: Bucket, size: int) -> None:
    client, proxy = through(proxied_s3), proxied_s3.proxy
    assert proxy is not None
    proxied_s3.write("a", b"x" * size)
    proxy.set(truncate=1.0)
    answer = client.get_object(Bucket=proxied_s3.name, Key="a")
    assert answer["ContentLength"] == size
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        answer["Body"].read()
    assert client.head_object(Bucket=proxied_s3.name, Key="a")["ContentLength"] == size
    proxy.set(truncate=0.0)
    assert client.get_object(Bucket=proxied_s3.name, Key="a")["Body"].read() == b"x" * size
    assert proxy.injected_by_method()["truncate"] == {"GET": 1}


def test_latency_and_a_match(proxied_s3: Bucket) -> None:
    client, proxy = through(proxied_s3), proxied_s3.proxy
    assert proxy is not None
    proxied_s3.write("slow", b"x")
    proxied_s3.write("fast", b"x")
    proxy.set(latency=0.2, match=r"^GET .*/slow")

    def seconds(key: str) -> float:
        begin = time.monotonic()
        for _ in range(6):
            client.get_object(Bucket=proxied_s3.name, Key=key)["Body"].read()
        return time.monotonic() - begin

    assert seconds("fast") < 0.5 < seconds("slow") < 4


def test_a_proxy_refuses_a_fault_it_does_not_know(ceph: Ceph) -> None:
    with FaultProxy(ceph.port) as proxy, pytest.raises(ValueError, match="p504"):
        proxy.set(p504=1.0)


def test_faults_depend_on_the_request_and_not_on_the_order() -> None:
    """The same in any order, and another draw for another seed, bucket name aside."""
    faults = Faults(p503=0.3, truncate=0.3, latency=0.01, seed=4)
    asked = [("GET", f"/one/k{i}?versionId=1", n) for i in range(50) for n in range(3)]
    first = [faults.draw(*request) for request in asked]
    assert [faults.draw(*request) for request in reversed(asked)] == first[::-1]
    other = [(method, target.replace("/one/", "/two/"), n) for method, target, n in asked]
    assert [faults.draw(*request) for request in other] == first
    assert [dataclasses.replace(faults, seed=5).draw(*request) for request in asked] != first
    assert {kind for kind, _ in first} == {"", "p503", "truncate"}


def test_the_proxy_outlives_a_gateway_that_is_killed(proxied_s3: Bucket) -> None:
    client = through(proxied_s3)
    client.put_object(Bucket=proxied_s3.name, Key="a", Body=b"x")
    proxied_s3.ceph.kill_gateway()
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        client.get_object(Bucket=proxied_s3.name, Key="a")
    proxied_s3.ceph.start_gateway()
    assert client.get_object(Bucket=proxied_s3.name, Key="a")["Body"].read() == b"x"


# ---- the hosts -----------------------------------------------------------------------------------


def test_a_cut_cable_cuts_and_mends(namespaces: Network, ceph: Ceph) -> None:
    with FaultProxy(
        ceph.port, host=namespaces.addresses[0], namespace=namespaces.names[0]
    ) as proxy:

        def reach(host: int) -> int:
            ask = ["curl", "-s", "-o", "/dev/null", "-m", "2", proxy.endpoint]
            return namespaces.run(host, ask)[0]

        assert [reach(1), reach(2)] == [0, 0]
        with namespaces.severed(1):
            assert reach(1) == 28  # curl: timed out; nobody said no
            assert reach(2) == 0
        assert [reach(1), reach(2)] == [0, 0]
        # hosts share nothing of the machine's network: neither its loopback nor its addresses
        assert namespaces.run(1, ["curl", "-s", "-m", "2", ceph.endpoint])[0] == 7


def test_a_connection_survives_a_short_cut(namespaces: Network) -> None:
    """What was under way is sent again by TCP: a cut is a delay, until somebody gives up."""
    listen = (
        "import socket; s = socket.create_server(('', 7000)); c, _ = s.accept(); print(c.recv(9))"
    )
    send = (
        "import socket, sys; c = socket.create_connection(('10.99.0.11', 7000), 20);"
        "print('ready', flush=True); sys.stdin.readline(); c.sendall(b'late'); c.close()"
    )
    server = namespaces.popen(1, ["python3", "-c", listen], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while "7000" not in namespaces.run(1, ["ss", "-ltn"])[1]:
        assert time.monotonic() < deadline
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    sender = namespaces.popen(2, ["python3", "-c", send], **pipes)
    assert sender.stdout is not None
    assert sender.stdin is not None
    assert sender.stdout.readline() == b"ready\n"
    with namespaces.severed(2):
        sender.stdin.write(b"go\n")
        sender.stdin.flush()
        time.sleep(0.5)
        assert server.poll() is None
    assert server.communicate(timeout=30)[0] == b"b'late'\n"
    assert sender.wait(20) == 0
    sender.stdin.close()
    sender.stdout.close()


def test_nothing_is_left_of_a_network() -> None:
    with Network() as network:
        running = network.popen(0, ["sleep", "1000"])
        names = list(network.names)
        with Network():  # as after a crash of the first one: what it left is removed
            assert running.wait(20) != 0
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not any(name in listed for name in names)
