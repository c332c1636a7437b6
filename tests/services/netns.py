"""Three hosts on one machine: network namespaces, joined by a bridge that is a fourth one.

::

    geopatch-0  10.99.0.10 --+
    geopatch-1  10.99.0.11 --+-- bridge in geopatch-b
    geopatch-2  10.99.0.12 --+

A cable can be cut and mended.  Cutting it is what a broken switch does: packets get lost, nobody is
told.  The hosts share this machine's file system, but not its network, its loopback least of all;
what runs outside reaches them through a proxy (``services.proxied``) that listens in one of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Network"]

_BRIDGE = "geopatch-b"
_HOSTS = 3


class Network:
    """Three hosts; a context manager, which leaves nothing behind.

    What an interrupted test left is removed when the next one begins.
    """

    def __init__(self) -> None:
        self.names = [f"geopatch-{i}" for i in range(_HOSTS)]
        self.addresses = [f"10.99.0.{10 + i}" for i in range(_HOSTS)]

    def __enter__(self) -> Network:
        self.close()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _build(self) -> None:
        _ip("netns", "add", _BRIDGE)
        _ip("-n", _BRIDGE, "link", "add", "br0", "type", "bridge")
        _ip("-n", _BRIDGE, "link", "set", "br0", "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            _ip("netns", "add", name)
            # both ends are made where they belong: no name of ours appears on the machine itself
            pair = ("type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", _BRIDGE, "link", "add", f"port{i}", *pair)
            _ip("-n", _BRIDGE, "link", "set", f"port{i}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def close(self) -> None:
        """End everything that runs in the hosts, and remove them; safe to call at any time."""
        for name in (*self.names, _BRIDGE):
            if not Path("/run/netns", name).exists():
                continue
            deadline = time.monotonic() + 20
            while (pids := self._pids(name)) and time.monotonic() < deadline:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
            _ip("netns", "delete", name)

    def popen(
        self,
        host: int,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; ``env`` is added to the environment of this process."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *command],
            env={**os.environ, **(env or {})},
            **options,
        )

    def run(self, host: int, command: Sequence[str], timeout: float = 30) -> tuple[int, str]:
        """Run a command on a host to its end: exit status, and what it wrote."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[host], *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            text=True,
        )
        return done.returncode, done.stdout

    def cut(self, host: int) -> None:
        """Pull the cable of a host out of the bridge."""
        _ip("-n", _BRIDGE, "link", "set", f"port{host}", "nomaster")

    def mend(self, host: int) -> None:
        """Put it back."""
        _ip("-n", _BRIDGE, "link", "set", f"port{host}", "master", "br0")

    @contextlib.contextmanager
    def severed(self, host: int) -> Iterator[None]:
        """A host without network for as long as the block lasts."""
        self.cut(host)
        try:
            yield
        finally:
            self.mend(host)

    @staticmethod
    def _pids(name: str) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()} (root is needed)")
