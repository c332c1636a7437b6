"""A super-tile that raises, hangs, kills, eats all memory or returns nothing; the target on S3.

Others finish, the report names it, and after the repair ``gp.retry`` computes it and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from fault_operators import Misbehaves
from integration.buckets import Bucket
from integration.killing import TARGET, check_kept, records

import geopatch_dask as gp
from geopatch_dask.execute.runs.runners import local_client
from geopatch_dask.testing import assert_same_bytes, merged, read_back

pytestmark = pytest.mark.integration

BAD = 1e6
#: Cells; BAD lies inside one super-tile, where no other patch sees it.
SIDE, TILE, AT, NAME = 60, 20, (30, 50), "y20-40_x40-60"
PATCHER = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())


def field() -> gp.ArrayField:
    values = np.random.default_rng(1).standard_normal((SIDE, SIDE)).astype("float32")
    values[AT] = BAD
    return gp.ArrayField(values)


def planned(s3: Bucket, folder: Path) -> gp.Plan:
    operator = gp.Operator(Misbehaves(BAD, folder / "flag"), version="1")
    options: dict[str, Any] = {"outer": TILE, "chunks": 10, "slots": 2, "memory_limit": "1 GiB"}
    return gp.plan(field(), PATCHER, operator, s3.place(TARGET), **options)


@pytest.fixture(scope="module")
def workers(
    store: Any, credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """The two processes that a run makes for itself, for all tests here."""
    folder = tmp_path_factory.mktemp("workers")
    operator = gp.Operator(Misbehaves(BAD, folder / "flag"), version="1")
    options: dict[str, Any] = {"outer": TILE, "chunks": 10, "slots": 2, "memory_limit": "1 GiB"}
    plan = gp.plan(field(), PATCHER, operator, folder / "out.zarr", **options)
    with local_client(plan, 2) as client:
        yield client


@pytest.mark.parametrize(
    ("what", "error", "timeout"),
    [
        ("raise", "RuntimeError: cannot digest 1e+06", None),
        ("hang", "took longer than 3 s", "3 s"),
        ("kill", "WorkerLost: the worker that computed super-tile", None),
        ("eat", "was ended by Dask at its memory limit", None),
    ],
)
def test_one_super_tile_fails_and_the_others_finish(
    what: str, error: str, timeout: str | None, s3: Bucket, workers: Client, tmp_path: Path
) -> None:
    (tmp_path / "flag").write_text(what)
    plan = planned(s3, tmp_path)
    report = plan.run(workers, policy=gp.Policy(timeout=timeout), on_failure="return")
    assert not report.complete
    assert report.summary.states == {"done": 8, "failed": 1}
    assert [f.id for f in report.failures] == [NAME]
    assert error in report.failures[0].error
    assert NAME in str(report)
    status = gp.status(s3.place(TARGET))
    assert (status.counts["done"], status.states[NAME]) == (8, "failed")
    expected = merged(field(), PATCHER, lambda x: x * 2)
    stored = read_back(s3.place(TARGET))
    assert np.isnan(stored[20:40, 40:60]).all()
    stored[20:40, 40:60] = expected[20:40, 40:60]
    assert_same_bytes(stored, expected)

    (tmp_path / "flag").unlink()
    before = records(s3)
    again = gp.retry(plan, workers)
    assert again.complete
    assert (again.skipped, again.summary.done) == (8, 1)
    check_kept(before, s3)
    assert_same_bytes(read_back(s3.place(TARGET)), expected)
    assert gp.status(s3.place(TARGET)).counts == {"done": 9, "empty": 0, "failed": 0, "pending": 0}


def test_one_super_tile_is_nan_everywhere(s3: Bucket, workers: Client, tmp_path: Path) -> None:
    """No error, but told; after the repair, ``retry`` computes it and nothing else."""
    (tmp_path / "flag").write_text("nan")
    plan = planned(s3, tmp_path)
    report = plan.run(workers, on_failure="return")
    assert report.complete
    assert report.hollow == [NAME]
    (tmp_path / "flag").unlink()
    before = {name: entry for name, entry in records(s3).items() if name != NAME}
    again = gp.retry(plan, workers)
    assert again.complete
    assert (again.skipped, again.summary.done, again.hollow) == (8, 1, [])
    check_kept(before, s3)
    assert_same_bytes(read_back(s3.place(TARGET)), merged(field(), PATCHER, lambda x: x * 2))
