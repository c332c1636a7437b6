"""The fault proxy as a test holds it: started, told what to do, asked what it did, ended.

::

    with FaultProxy(ceph.port, seed=3, p503=0.08, truncate=0.02) as proxy:
        ...                                   # clients use proxy.endpoint
        proxy.set(p503=0.0)                   # from now on
        proxy.injected()["p503"]              # how often
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["FaultProxy"]


class FaultProxy:
    """A proxy in a process of its own; see :mod:`services.fault_proxy` for the faults.

    Parameters
    ----------
    upstream_port : int
        Of the gateway on 127.0.0.1.
    host, namespace : str
        Where to listen: an address, and the network namespace that has it.
    faults
        Fields of :class:`services.fault_proxy.Faults`: ``seed``, ``p503``, ``reset_before``,
        ``reset_after``, ``truncate``, ``latency``, ``match``.
    """

    def __init__(
        self,
        upstream_port: int,
        *,
        host: str = "127.0.0.1",
        namespace: str = "",
        **faults: float | str,
    ) -> None:
        script = Path(__file__).with_name("fault_proxy.py")
        self.host = host
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(upstream_port), host, namespace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self.port = int(self._answer()["port"])
            self.set(**faults)
        except BaseException:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def set(self, **faults: float | str) -> None:
        """Change what is injected from the next request on; what is not named stays.

        Raises
        ------
        ValueError
            For a fault that does not exist.
        """
        self._ask(faults)

    def requests(self) -> int:
        """How many requests came."""
        return sum(self._ask({})["requests"].values())

    def injected(self) -> dict[str, int]:
        """How many faults of each kind were injected."""
        by_method = self.injected_by_method()
        return {kind: sum(count.values()) for kind, count in by_method.items()}

    def injected_by_method(self) -> dict[str, dict[str, int]]:
        """The same by method: ``{"p503": {"GET": 3, "PUT": 5}, ...}``."""
        found: dict[str, dict[str, int]] = self._ask({})["injected"]
        return found

    def places(self) -> list[tuple[str, str, str]]:
        """Every fault that was injected, in order: its kind, and method and path of the request."""
        return [(kind, method, target) for kind, method, target in self._ask({})["places"]]

    def close(self) -> None:
        """End the process; connections break."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        if "error" in found:
            raise ValueError(f"no such fault: {found['error']}")
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fault proxy ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found
