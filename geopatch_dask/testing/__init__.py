"""Helpers for tests, ours and yours: an operator keeps the contracts, a job survives."""

from geopatch_dask.testing.faults import Broken, FaultStore, fail_at, kill_at
from geopatch_dask.testing.layout import (
    Cut,
    assert_layout_invariant,
    assert_statistic,
    merged,
    read_back,
    telling_cuts,
)
from geopatch_dask.testing.same import assert_same_bytes, assert_same_table

__all__ = [
    "Broken",
    "Cut",
    "FaultStore",
    "assert_layout_invariant",
    "assert_same_bytes",
    "assert_same_table",
    "assert_statistic",
    "fail_at",
    "kill_at",
    "merged",
    "read_back",
    "telling_cuts",
]
