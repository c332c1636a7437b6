"""Looks where a secret must not be: into the scheduler, into logs, into everything that was stored.

Imported by workers, too.
"""

from __future__ import annotations

import logging
import os
import traceback
from typing import Any

import cloudpickle
import numpy.typing as npt
from integration.buckets import OTHER_SECRET, SECRET

__all__ = ["graph", "log_everything", "spoken", "telling"]


def log_everything() -> None:
    """Every library says all it can, on standard error; for ``Client.run``."""
    logging.basicConfig(level=logging.DEBUG, force=True)
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.DEBUG)


def graph(dask_scheduler: Any) -> dict[str, bytes]:
    """Every task that a scheduler knows, as it would travel; for ``Client.run_on_scheduler``."""
    return {
        str(key): cloudpickle.dumps((task.run_spec, task.annotations))
        for key, task in dask_scheduler.tasks.items()
    }


def telling(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An operator that gives away what it should not, on the one patch with the value 7."""
    if os.environ.get("GEOPATCH_TEST_TELLS") and (x == 7).any():
        raise RuntimeError(f"cannot log in with {os.environ[SECRET]}, {os.environ[OTHER_SECRET]}")
    return x * 2


def spoken(error: BaseException) -> str:
    """Everything that an exception says: its text, notes and causes."""
    return str(error) + repr(error) + "".join(traceback.format_exception(error))
