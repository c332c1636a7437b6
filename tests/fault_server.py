"""An HTTP server on loopback that serves one object, after a number of faults of one kind.

In a thread for clients that let go of the GIL while they wait; as a script for GDAL, which may
not::

    python fault_server.py FILE KIND FIRST COUNT     requests FIRST to FIRST + COUNT - 1 fail
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from pathlib import Path


def answer(status: str, body: bytes = b"", length: int | None = None, extra: str = "") -> bytes:
    size = len(body) if length is None else length
    head = (
        f'HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\nETag: "e"\r\n'
        f"Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nAccept-Ranges: bytes\r\n{extra}\r\n"
    )
    return head.encode() + body


def error(status: str, code: str) -> bytes:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'
    return answer(status, text.encode())


#: What a faulty request gets; None for the half of what it should get.  "reset" and "cut" end the
#: connection rudely.
FAULTS = {
    "reset": b"",
    "closed": b"",
    "cut": None,
    "short": None,
    "SlowDown": error("503 Slow Down", "SlowDown"),
    "ServiceUnavailable": error("503 Service Unavailable", "ServiceUnavailable"),
    "empty 503": answer("503 Service Unavailable"),
    "InternalError": error("500 Internal Server Error", "InternalError"),
    "TooManyRequests": error("429 Too Many Requests", "TooManyRequests"),
    "Bad Gateway": answer("502 Bad Gateway", b"<html>bad gateway</html>"),
    "Gateway Timeout": answer("504 Gateway Timeout"),
    "RequestTimeout": error("400 Bad Request", "RequestTimeout"),
    "AccessDenied": error("403 Forbidden", "AccessDenied"),
    "InvalidAccessKeyId": error("403 Forbidden", "InvalidAccessKeyId"),
    "SignatureDoesNotMatch": error("403 Forbidden", "SignatureDoesNotMatch"),
    "ExpiredToken": error("400 Bad Request", "ExpiredToken"),
    "RequestTimeTooSkewed": error("403 Forbidden", "RequestTimeTooSkewed"),
    "Unauthorized": error("401 Unauthorized", "Unauthorized"),
    "NoSuchBucket": error("404 Not Found", "NoSuchBucket"),
    "NoSuchKey": error("404 Not Found", "NoSuchKey"),
    "QuotaExceeded": error("403 Forbidden", "QuotaExceeded"),
    "InsufficientStorage": error("507 Insufficient Storage", "InsufficientStorage"),
}
_RUDE = ("reset", "cut")


class Server:
    """Fails requests ``first`` to ``first + count - 1`` (from 0) and answers the others."""

    def __init__(self, content: bytes, fault: str, first: int = 0, count: int = 1 << 30) -> None:
        self.content, self.fault, self.first, self.count = content, fault, first, count
        self.requests: list[str] = []
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                head = self._head(connection)
                if not head:
                    return
                number = len(self.requests)
                self.requests.append(head.split("\r\n", 1)[0])
                bad = self.first <= number < self.first + self.count
                good = self._answer(head)
                head_size = good.index(b"\r\n\r\n") + 4
                half = good[: (head_size + len(good)) // 2]
                fault = FAULTS[self.fault]
                connection.sendall((half if fault is None else fault) if bad else good)
                if bad and self.fault in _RUDE:  # a reset, instead of an orderly end
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            except OSError:
                return

    @staticmethod
    def _head(connection: socket.socket) -> str:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return ""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(
            line.lower().split(": ", 1) for line in head.decode().split("\r\n") if ": " in line
        )
        if "expect" in fields:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = int(fields.get("content-length", 0)) - len(body)
        while left > 0:
            left -= len(connection.recv(65536) or b" " * left)
        return head.decode()

    def _answer(self, head: str) -> bytes:
        verb = head.split(" ", 1)[0]
        if verb in ("PUT", "DELETE", "POST"):
            return answer("200 OK")
        size = len(self.content)
        asked = [line for line in head.split("\r\n") if line.lower().startswith("range: bytes=")]
        if verb == "HEAD" or not asked:
            return answer("200 OK", b"" if verb == "HEAD" else self.content, length=size)
        low, _, high = asked[0].partition("=")[2].partition("-")
        start = int(low) if low else size - int(high)
        stop = min(int(high) + 1 if low and high else size, size)
        if start >= size:
            return error("416 Requested Range Not Satisfiable", "InvalidRange")
        extra = f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        return answer("206 Partial Content", self.content[start:stop], extra=extra)


if __name__ == "__main__":
    file, kind, begin, amount = sys.argv[1:]
    with Server(Path(file).read_bytes(), kind, int(begin), int(amount)) as server:
        print(server.port, flush=True)
        sys.stdin.read()
