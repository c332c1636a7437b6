"""An HTTP proxy before the S3 gateway that injects faults, as often as it is told.

::

    client ----> proxy ----> gateway        what the client sees            was it applied?
      503        --X                        503 SlowDown                    no
      reset_before --X                      the connection is reset         no
      reset_after  ---------->  <-- X       the connection is reset         yes: the ambiguous one
      truncate     ---------->  <--- half   a GET whose body ends early     (nothing to apply)
      latency      ~~>                      the answer, later

It runs in a process of its own, so that it costs the test nothing of its interpreter, and it ends
when that test does: its standard input is the line through which it is told what to do.

**Deterministic.**  Which fault a request gets is a function of the seed, the method, the path below
the bucket, and how often exactly that was asked before; not of time, nor of the order in which
clients come.  The same job meets the same faults, and a retry meets another draw.

**Signatures survive.**  Requests are passed on as they came, Host header included.

Bodies are framed by Content-Length or chunks; connections are kept alive on both sides.  Run as a
script this file needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import random
import re
import socket
import struct
import sys
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Faults", "serve"]

#: Everything that is injected on purpose; latency is no fault.
KINDS = ("p503", "reset_before", "reset_after", "truncate")

_BLOCK = 1 << 18
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class Faults:
    """How often, as probabilities between 0 and 1.

    Parameters
    ----------
    p503, reset_before, reset_after : float
        Of all requests.
    truncate : float
        Of GET requests whose answer has a body of two bytes or more.
    latency : float
        Mean delay before a request is passed on, seconds; uniform between 0 and twice that.
    match : str
        A regular expression for "METHOD /path?query"; other requests pass unharmed.
    seed : int
    """

    p503: float = 0.0
    reset_before: float = 0.0
    reset_after: float = 0.0
    truncate: float = 0.0
    latency: float = 0.0
    match: str = ""
    seed: int = 0

    def draw(self, method: str, target: str, nth: int) -> tuple[str, float]:
        """The fault (or "") and the delay of the ``nth`` request of this kind."""
        if not re.search(self.match, f"{method} {target}"):
            return "", 0.0
        # below the bucket, whose name changes from test to test; random upload ids left out
        path, _, query = target.partition("?")
        below = path.lstrip("/").partition("/")[2]
        names = sorted(pair.partition("=")[0] for pair in query.split("&"))
        dice = random.Random(f"{self.seed} {method} {below} {names} {nth}")
        delay, x = 2 * self.latency * dice.random(), dice.random()
        for kind in KINDS:
            if kind == "truncate" and method != "GET":
                continue
            x -= getattr(self, kind)
            if x < 0:
                return kind, delay
        return "", delay


class Reset(Exception):
    """The client's connection is to be reset."""


class Head:
    """The first lines of a request or an answer."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        lines = raw[:-4].split(b"\r\n")
        self.first = lines[0].decode("latin-1")
        pairs = [line.decode("latin-1").partition(":") for line in lines[1:]]
        self.fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self.chunked = "chunked" in self.fields.get("transfer-encoding", "").lower()
        self.closes = "close" in self.fields.get("connection", "").lower()

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the head says so."""
        found = self.fields.get("content-length")
        return None if found is None or self.chunked else int(found)

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])


class Proxy:
    """All connections; counts what they did."""

    def __init__(self, upstream: int, faults: Faults) -> None:
        self.upstream = upstream
        self.faults = faults
        self.asked: Counter[tuple[str, str]] = Counter()
        self.requests: Counter[str] = Counter()
        self.injected: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.places: list[tuple[str, str, str]] = []

    def inject(self, fault: str, method: str, target: str) -> None:
        """Count a fault, and keep where it was."""
        self.injected[fault][method] += 1
        self.places.append((fault, method, target))

    def stats(self) -> dict[str, Any]:
        return {
            "requests": dict(self.requests),
            "injected": {kind: dict(count) for kind, count in self.injected.items()},
            "places": self.places,
        }

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its first request to its last."""
        upstream: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        try:
            while await self.exchange(reader, writer, upstream):
                pass
        except Reset:
            _reset(writer)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # one side went away: so does the other
        finally:
            for _, other in [*upstream, (reader, writer)]:
                other.close()

    async def exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
    ) -> bool:
        """One request and its answer; False when the connection is not to be used again."""
        request = Head(await reader.readuntil(b"\r\n\r\n"))
        method, target, _ = request.first.split(" ", 2)
        self.requests[method] += 1
        key = (method, target)
        fault, delay = self.faults.draw(method, target, self.asked[key])
        self.asked[key] += 1
        if delay:
            await asyncio.sleep(delay)
        if fault == "reset_before":
            self.inject(fault, method, target)
            raise Reset
        if fault == "p503":
            self.inject(fault, method, target)
            return await _refuse(request, reader, writer)
        if upstream and upstream[0][0].at_eof():  # the gateway closes what is idle for long
            upstream.pop()[1].close()
        if not upstream:
            upstream.append(await asyncio.open_connection("127.0.0.1", self.upstream, limit=_BLOCK))
        answer = await _pass_request(request, (reader, writer), upstream[0])
        return await self.answer(answer, (fault, method, target), upstream[0][0], writer) and not (
            request.closes
        )

    async def answer(
        self,
        answer: Head,
        asked: tuple[str, str, str],
        source: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Hand the answer on, or do to it what is to be done."""
        fault, method, _ = asked
        bare = method == "HEAD" or answer.status in (204, 304)
        if fault == "reset_after":
            if not bare:
                await _copy(answer, source, None)
            self.inject(*asked)
            raise Reset
        length = answer.length or 0
        writer.write(answer.raw)
        if fault == "truncate" and length >= 2 and answer.status in (200, 206):
            self.inject(*asked)
            await _copy_bytes(length // 2, source, writer)
            return False  # closed in good order, half-way: only the length tells
        if not bare:
            await _copy(answer, source, writer)
        await writer.drain()
        return not answer.closes and (bare or answer.chunked or answer.length is not None)


async def _refuse(
    request: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """503, without asking the gateway; the connection stays, unless a body may still come."""
    waits = "expect" in request.fields
    if not waits:
        await _copy(request, reader, None, request=True)
    keep = b"close" if waits else b"keep-alive"
    head = (
        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
        b"Content-Length: %d\r\nConnection: %s\r\n\r\n" % (len(_SLOW_DOWN), keep)
    )
    bare = request.first.startswith("HEAD ")  # an answer to HEAD has no body
    writer.write(head if bare else head + _SLOW_DOWN)
    await writer.drain()
    return not waits and not request.closes


async def _pass_request(
    request: Head,
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    gateway: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> Head:
    """Send a request on; the head of its final answer."""
    gateway[1].write(request.raw)
    if "expect" in request.fields:
        early = Head(await gateway[0].readuntil(b"\r\n\r\n"))
        if early.status != 100:  # refused without its body, which may come or not
            early.closes = True
            return early
        client[1].write(early.raw)
        await client[1].drain()
    await _copy(request, client[0], gateway[1], request=True)
    while True:
        answer = Head(await gateway[0].readuntil(b"\r\n\r\n"))
        if answer.status >= 200:
            return answer


async def _copy(
    head: Head,
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter | None,
    *,
    request: bool = False,
) -> None:
    """The body that follows a head; thrown away when there is no target."""
    if head.chunked:
        await _copy_chunks(source, target)
    elif head.length is not None:
        await _copy_bytes(head.length, source, target)
    elif not request:  # an answer without a length ends with its connection
        while block := await source.read(_BLOCK):
            if target is not None:
                target.write(block)
                await target.drain()


async def _copy_bytes(
    count: int, source: asyncio.StreamReader, target: asyncio.StreamWriter | None
) -> None:
    while count:
        block = await source.read(min(count, _BLOCK))
        if not block:
            raise EOFError
        count -= len(block)
        if target is not None:
            target.write(block)
            await target.drain()


async def _copy_chunks(source: asyncio.StreamReader, target: asyncio.StreamWriter | None) -> None:
    """Chunks with their sizes, as they are, to the empty line behind the last."""
    while True:
        line = await source.readline()
        if target is not None:
            target.write(line)
        size = int(line.partition(b";")[0], 16)
        if size:
            await _copy_bytes(size + 2, source, target)
            continue
        while True:  # trailers
            line = await source.readline()
            if target is not None:
                target.write(line)
                await target.drain()
            if line in (b"\r\n", b""):
                return


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crash does: a TCP reset, not a goodbye."""
    found: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def listening(host: str, namespace: str) -> socket.socket:
    """A socket that listens on a free port, in a network namespace if one is named.

    A socket stays in the namespace it was made in; the process goes back to its own, from where it
    reaches the gateway.
    """
    if not namespace:
        return _bound(host)
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: Path) -> None:
        with path.open() as file:
            if libc.setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {path}")

    with Path("/proc/self/ns/net").open() as home:
        enter(Path("/run/netns") / namespace)
        try:
            return _bound(host)
        finally:
            enter(Path(f"/proc/self/fd/{home.fileno()}"))


def _bound(host: str) -> socket.socket:
    server = socket.create_server((host, 0), backlog=512)
    # Connections inherit it; without, small answers wait 40 ms for an acknowledgement.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


async def serve(proxy: Proxy, server: socket.socket) -> None:
    """Serve until standard input ends; every line of it is an order, every order has an answer."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    running = await asyncio.start_server(proxy.connection, sock=server, limit=_BLOCK)
    print(json.dumps({"port": server.getsockname()[1]}), flush=True)
    known = {field.name for field in fields(Faults)}
    while line := await orders.readline():
        order = json.loads(line)
        unknown = set(order) - known
        if unknown:
            print(
                json.dumps({"error": f"{sorted(unknown)}: not among {sorted(known)}"}), flush=True
            )
            continue
        proxy.faults = Faults(**{**asdict(proxy.faults), **order})
        print(json.dumps(proxy.stats()), flush=True)
    running.close()


if __name__ == "__main__":
    _upstream, _host, _namespace = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    asyncio.run(serve(Proxy(_upstream, Faults()), listening(_host, _namespace)))
    os._exit(0)  # connections that are still open are of no interest
