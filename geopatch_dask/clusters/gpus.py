"""One GPU per worker process: a preload of workers whose job has several.

A batch system gives a *job* its GPUs and says which in ``CUDA_VISIBLE_DEVICES``.  Processes of one
job would all take the first::

    job:  CUDA_VISIBLE_DEVICES=4,5,6,7

    worker geopatch-0-0   ->  CUDA_VISIBLE_DEVICES=4
    worker geopatch-0-1   ->  CUDA_VISIBLE_DEVICES=5       the number at the end of the name, that
    worker geopatch-0-2   ->  CUDA_VISIBLE_DEVICES=6       a worker keeps when its nanny starts it
    worker geopatch-0-3   ->  CUDA_VISIBLE_DEVICES=7       again

CUDA reads the variable when it is first used, which is later: the model is made with the first
super-tile.  A job with one process has nothing to choose.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import Any

from geopatch_dask.errors import OptionError

__all__ = ["VARIABLES", "choose", "dask_setup"]

#: Where NVIDIA's and AMD's libraries look for the devices of a process.
VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

_log = logging.getLogger(__name__)


def choose(name: str, environ: MutableMapping[str, str]) -> str | None:
    """Leave a worker one device of its job.

    Parameters
    ----------
    name : str
        Of the worker; its last part is its number in the job, from 0.
    environ : mutable mapping of str to str
        Environment of the process; changed.

    Returns
    -------
    str or None
        The device; None where the environment names at most one, which is left as it is.

    Raises
    ------
    OptionError
        When the job has fewer devices than workers.

    Examples
    --------
    >>> environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    >>> choose("geopatch-3-1", environ), environ
    ('5', {'CUDA_VISIBLE_DEVICES': '5'})
    """
    found = None
    for variable in VARIABLES:
        devices = [device for device in environ.get(variable, "").split(",") if device.strip()]
        if len(devices) < 2:
            continue
        rank = int(name.rpartition("-")[2])
        if rank >= len(devices):
            raise OptionError(
                f"worker {name} is number {rank} of its job, which has {len(devices)} GPUs "
                f"({variable}={environ[variable]}): give processes as many as gpus"
            )
        found = environ[variable] = devices[rank].strip()
    return found


def dask_setup(worker: Any) -> None:
    """What ``dask worker --preload`` calls in a new worker process."""
    device = choose(str(worker.name), os.environ)
    if device is not None:
        _log.info("worker %s has GPU %s", worker.name, device)
