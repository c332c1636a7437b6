"""``geopatch_dask.testing``: what users call on an operator or an aggregation of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_operators as ops

import geopatch_dask as gp
from geopatch_dask.aggregation import averaged
from geopatch_dask.testing import (
    Cut,
    assert_layout_invariant,
    assert_same_bytes,
    merged,
    telling_cuts,
)


def field() -> gp.ArrayField:
    values = np.random.default_rng(1).random((37, 50)).astype("float32") + 1
    values[5:20, 8:30] = np.nan
    return gp.ArrayField(values)


def patcher(aggregation: Any = None, **options: Any) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular((9, 8), **options), gp.RegularStride((5, 6)), gp.Hann(), aggregation
    )


@dataclass(frozen=True)
class GeometricMean(gp.Aggregation):
    """exp of the mean of logarithms: the example of the documentation."""

    def accumulators(self, dtype: Any) -> Any:
        return {"logs": (np.float64, 0.0)}

    def update(self, state: Any, patch: Any) -> None:
        state["logs"][patch.where] += np.log(patch.filled(1.0))

    def finalize(self, state: Any) -> Any:
        return np.exp(state["logs"] / np.maximum(state.coverage.counts(), 1))

    def result_dtype(self, dtype: Any) -> Any:
        return averaged(dtype)


@dataclass(frozen=True)
class Normalised(GeometricMean):
    """Divides by the largest value it sees, which depends on what it is given to see."""

    def finalize(self, state: Any) -> Any:
        found = super().finalize(state)
        return found / found.max()


class Remembers:
    """An operator with a memory."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return x + np.float32(self.calls)


def test_an_aggregation_of_ones_own_keeps_the_contract() -> None:
    found = assert_layout_invariant(field(), patcher(GeometricMean()), np.square)
    values = field().read(field().domain.box)
    np.testing.assert_allclose(found, values**2, rtol=1e-6)


def test_one_that_looks_at_other_cells_does_not() -> None:
    with pytest.raises(gp.VerificationError, match=r"Cut\(tile=.* under sync differs in [\d,]+ of"):
        assert_layout_invariant(field(), patcher(Normalised()), np.square)


def test_an_operator_that_remembers_does_not() -> None:
    with pytest.raises(gp.VerificationError, match=r"the first is \(0, 0\): .*expected"):
        assert_layout_invariant(field(), patcher(), gp.Operator(Remembers(), version="1"))


def test_it_runs_every_cut_and_every_scheduler(tmp_path: Path) -> None:
    log = tmp_path / "calls.txt"
    few = [Cut((9, 8), (9, 8))]
    assert_layout_invariant(
        field(), patcher(), ops.Counted(log), cuts=few, schedulers=("sync", "threads")
    )
    grid = patcher().grid(field().domain)
    plan = gp.plan(field(), patcher(), np.positive, tmp_path / "o.zarr", **few[0].options())
    one, cut, probes = len(grid.anchors), plan.cost.patches_run, 3
    assert ops.notes(log) == (probes + one) + one + 2 * (probes + cut)


@pytest.mark.cluster
def test_it_takes_a_client(client: Any, tmp_path: Path) -> None:
    assert_layout_invariant(
        *(field(), patcher(gp.Variance(), boundary="reflect"), ops.mixing),
        client=client,
        folder=tmp_path,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [1, 2, 3])
def test_telling_cuts_are_valid_and_differ(n: int) -> None:
    shape, size = (13, 11, 7)[:n], (5, 4, 3)[:n]
    source = gp.ArrayField(np.ones(shape), dims=tuple("zyx")[-n:])
    cuts = telling_cuts(shape, size)
    assert len(set(cuts)) == len(cuts)
    assert any(all(t < p for t, p in zip(c.tile, size, strict=True)) for c in cuts)
    assert any(c.shards for c in cuts)
    assert_layout_invariant(
        source, gp.Patcher(gp.Rectangular(size), gp.RegularStride(size), gp.Hann()), ops.mixing
    )


def test_same_bytes_means_every_bit() -> None:
    assert_same_bytes(np.array([np.nan, 0.0]), np.array([np.nan, 0.0]))
    with pytest.raises(gp.VerificationError, match=r"1 of 2 cells; the first is \(1,\): .*-0\.0"):
        assert_same_bytes(np.array([np.nan, -0.0]), np.array([np.nan, 0.0]))
    other = np.array([0x7FF8000000000001], "uint64").view("float64")
    with pytest.raises(gp.VerificationError, match="differs in 1 of 1"):
        assert_same_bytes(other, np.array([np.nan]))
    with pytest.raises(gp.VerificationError, match=r"is float64 \(2,\), expected float32 \(2,\)"):
        assert_same_bytes(np.zeros(2), np.zeros(2, "f4"))
    assert issubclass(gp.VerificationError, AssertionError)


def test_merged_is_what_a_user_would_write() -> None:
    axes = patcher()
    by_hand = axes.merge(
        (p.with_data(ops.mixing(p.data)) for p in axes.split(field())), field().domain
    )
    assert_same_bytes(merged(field(), axes, ops.mixing), by_hand)
