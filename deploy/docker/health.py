"""Is what this container was started for still answering?  The HEALTHCHECK of the image.

::

    dask scheduler ...                               http://127.0.0.1:8787/health
    dask worker ... --dashboard-address :8788        http://127.0.0.1:8788/health
    dask worker ...                                  any port that was free: it runs
    anything else                                    it runs, or the container would have ended
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path

#: Ports of the health pages where the command does not name one; 0: nobody knows.
PORTS = {"scheduler": 8787, "worker": 0}


def command(processes: Path = Path("/proc")) -> tuple[str, list[str]] | None:
    """What the process that tini started is, of those that have a health page; and its words.

    Parameters
    ----------
    processes : path
        As the kernel shows them: ``<pid>/cmdline``, words that end with a zero byte.
    """
    for pid in sorted(int(path.name) for path in processes.iterdir() if path.name.isdigit()):
        try:
            words = (processes / str(pid) / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has ended
        for i, word in enumerate(words):
            name = Path(word).name
            if name == "dask" and words[i + 1 : i + 2] and words[i + 1] in PORTS:
                return words[i + 1], words[i + 2 :]
            if name in ("dask-scheduler", "dask-worker"):
                return name.removeprefix("dask-"), words[i + 1 :]
    return None


def role(processes: Path = Path("/proc")) -> str | None:
    """``scheduler``, ``worker``, or None for anything else."""
    found = command(processes)
    return None if found is None else found[0]


def page(kind: str, words: list[str]) -> tuple[str, int]:
    """Host and port of the health page; port 0: unknown.  The last of two flags counts."""
    flag = "--dashboard-address"
    given = [after for word, after in pairwise(words) if word == flag]
    given += [word.removeprefix(f"{flag}=") for word in words if word.startswith(f"{flag}=")]
    host, _, port = given[-1].rpartition(":") if given else ("", "", str(PORTS[kind]))
    everywhere = host in ("", "0.0.0.0", "[::]")
    return "127.0.0.1" if everywhere else host, int(port)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether the health page says that all is well."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=8) as page:
            return bool(page.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """0 if it answers, or nothing is to answer; else 1."""
    found = command()
    if found is None:
        return 0
    host, port = page(*found)
    return 0 if port == 0 or answers(port, host) else 1


if __name__ == "__main__":
    sys.exit(main())
