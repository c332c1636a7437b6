"""The object store of the integration tests (Ceph RGW on loopback), for benchmarks.

It is started where it does not run yet, which needs root and apt, and ended if it was started here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopatch_dask as gp

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

BUCKET = "benchmark"


@contextmanager
def gateway() -> Iterator[Any]:
    """The store of the integration tests, and the environment in which everybody finds it."""
    from integration.buckets import environment
    from services.ceph import Ceph, settings_file

    ours = not settings_file().is_file()
    if ours:
        subprocess.run(["bash", str(TESTS / "services" / "up.sh")], check=True, stdout=sys.stderr)
    try:
        ceph = Ceph.running()
        os.environ.update(environment(ceph, ceph.endpoint))
        ceph.fresh_bucket(BUCKET)
        yield ceph
        ceph.drop_bucket(BUCKET)
    finally:
        if ours:
            subprocess.run(["bash", str(TESTS / "services" / "down.sh")], check=True)


def place(name: str, client: str = "auto") -> gp.Location:
    """A location in the bucket."""
    options = {"key": "env:GEOPATCH_TEST_KEY", "secret": "env:GEOPATCH_TEST_SECRET"}
    server = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}
    return gp.Location(f"s3://{BUCKET}/{name}", {**options, "client_kwargs": server}, client=client)
