"""Is what this container was started for still answering?  The HEALTHCHECK of the image.

::

    dask scheduler ...   http://127.0.0.1:8787/health
    dask worker ...      http://127.0.0.1:8788/health
    anything else        it runs, or the container would have ended
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

#: Ports of the health pages, by the command that serves them.
PORTS = {"scheduler": 8787, "worker": 8788}


def role(processes: Path = Path("/proc")) -> str | None:
    """What the process that tini started is, of those that have a health page.

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
                return words[i + 1]
            if name in ("dask-scheduler", "dask-worker"):
                return name.removeprefix("dask-")
    return None


def answers(port: int) -> bool:
    """Whether the health page says that all is well."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=8) as page:
            return bool(page.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """0 if it answers, or nothing is to answer; else 1."""
    found = role()
    return 0 if found is None or answers(PORTS[found]) else 1


if __name__ == "__main__":
    sys.exit(main())
