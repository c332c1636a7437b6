"""Operators that misbehave on the patch that holds a value, as long as a file says so."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sample_operators import note

Array = npt.NDArray[Any]


class Misbehaves:
    """Doubles; on the patch with ``value``, does what the flag file says.

    ``raise``, ``nan``, ``kill`` (the process, with SIGKILL), ``hang``, ``eat`` (memory),
    ``network`` (a failure that passes), ``exit`` (``sys.exit``), ``wrapped`` (a MemoryError inside
    another error).  ``once-...``: only the first time, over all processes.
    """

    def __init__(self, value: float, flag: str | os.PathLike[str], log: str = "") -> None:
        self.value, self.flag, self.log = value, os.fspath(flag), log

    def __call__(self, x: Array) -> Array:
        if self.log:
            note(self.log, "call")
        if (x == self.value).any():
            what = self._what()
            if what:
                return self._misbehave(what, x)
        return x * 2

    def _what(self) -> str:
        flag = Path(self.flag)
        text = flag.read_text() if flag.exists() else ""
        if text.startswith("once-"):
            try:
                flag.rename(flag.with_suffix(".done"))  # one process only
            except FileNotFoundError:
                return ""
        return text.removeprefix("once-")

    def _misbehave(self, what: str, x: Array) -> Array:
        if what == "raise":
            raise RuntimeError(f"cannot digest {self.value:g}")
        if what == "network":
            raise ConnectionResetError("the model server hung up")
        if what == "exit":
            sys.exit("enough")
        if what == "wrapped":
            try:
                raise MemoryError("no room")
            except MemoryError as error:
                raise RuntimeError("the model failed") from error
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(600)
        if what == "eat":
            eaten = []
            while True:
                eaten.append(np.ones(8 << 20))
                time.sleep(0.05)
        return np.full(x.shape, np.nan, x.dtype)
