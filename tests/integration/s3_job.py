"""The job that integration tests run, here or as a command: ``python s3_job.py JOB.json``.

A blend of overlapping patches of a raster with holes; every patch is worth a pause, whose length
is taken from the environment, so that it is no part of the plan.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import geopatch_dask as gp

#: Seconds per patch, as text: a job that is to be caught in the middle takes its time.
PAUSE = "GEOPATCH_TEST_PAUSE"

Array = npt.NDArray[Any]


def sharpened(x: Array) -> Array:
    """Depends on all of a patch, so that a patch that is cut elsewhere shows."""
    time.sleep(float(os.environ.get(PAUSE, "0")))
    known = x[np.isfinite(x)]
    mean = known.mean(dtype=np.float64) if known.size else 0.0
    return (2.0 * x - mean).astype(x.dtype)


def job(spec: Mapping[str, Any]) -> gp.Plan:
    """The plan of a job, the same from whichever process asks.

    ``field`` and ``target``; optionally ``field_options``, ``options`` and ``client`` (of the
    target), ``outer``, ``chunks``, ``shards``.
    """
    patcher = gp.Patcher(gp.Rectangular((32, 32)), gp.RegularStride((24, 24)), gp.Hann())
    return gp.plan(
        gp.RasterField(spec["field"], storage_options=spec.get("field_options")),
        patcher,
        sharpened,
        gp.Location(spec["target"], spec.get("options"), client=spec.get("client", "auto")),
        outer=spec.get("outer", [64, 64]),
        chunks=spec.get("chunks", [32, 32]),
        shards=spec.get("shards"),
        slots=2,
        memory_limit="1 GiB",
    )


def main(spec: Mapping[str, Any]) -> None:
    """Run it: on a cluster of its own, under a scheduler by name, or at an address.

    With ``submit`` it is left to that cluster, and this process ends.  ``at`` is a moment, by the
    clock of the machine, to begin at.
    """
    plan, where = job(spec), spec.get("scheduler")
    time.sleep(max(spec.get("at", 0.0) - time.time(), 0.0))
    if where is None or "://" not in where:
        plan.run(where)
        return
    from distributed import Client

    with Client(where) as client:
        if spec.get("submit"):
            plan.submit(client)
        else:
            plan.run(client)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
