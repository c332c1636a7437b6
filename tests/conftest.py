"""Fixtures and settings that several test modules share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from geopatch_dask import retries
from geopatch_dask.clusters.options import optional
from geopatch_dask.errors import OptionError

# Helper modules beside the tests (operators, strategies, oracles) are imported by name, here and in
# the worker processes that tests start: those inherit sys.path, or PYTHONPATH.
HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))

#: Examples per property test.  The default is the same few every time; a number in the environment
#: asks for as many *new* ones, and a failure prints how to repeat it.
EXAMPLES = int(os.environ.get("GEOPATCH_TEST_EXAMPLES", "0"))
settings.register_profile(
    "geopatch",
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
)
settings.load_profile("geopatch")

with suppress(OptionError):  # absent: tests that need it are skipped
    optional("dask_jobqueue", "slurm", "hpc")  # here first: on its own, it takes Ctrl-C from pytest


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails here fails as often as anywhere, but without the pauses in between."""
    monkeypatch.setattr(retries, "POLICY", replace(retries.POLICY, base=1e-4, cap=1e-3))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sample files; tests that need it skip where there is none."""
    given = os.environ.get("GEOPATCH_TEST_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no sample data: {folder} is no folder (set GEOPATCH_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def client() -> Iterator[object]:
    """One LocalCluster of two single-threaded processes for the whole session."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit="2 GiB",
        ) as cluster,
        Client(cluster, set_as_default=False) as found,
    ):
        yield found


@pytest.fixture
def tcp_client() -> Iterator[object]:
    """A client of two workers in this process, by TCP: a connection that a test can break."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address=None,
        ) as cluster,
        Client(cluster.scheduler_address, set_as_default=False) as found,
    ):
        yield found
