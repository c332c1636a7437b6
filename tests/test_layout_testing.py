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
    assert_statistic,
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
    shape, size = (13, 8, 6)[:n], (5, 3, 2)[:n]
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


#: Two ways to cut: smaller than a patch, and odd.
FEW = [Cut((8, 9), (8, 9)), Cut((20, 26), (20, 13))]


# ---- several outputs -----------------------------------------------------------------------------


def analysed(x: Any) -> dict[str, Any]:
    return {"high": np.where(np.isnan(x), np.nan, np.floor(x * 3) % 4), "plain": np.square(x)}


def test_a_dict_of_outputs_keeps_the_contract() -> None:
    found = assert_layout_invariant(
        *(field(), patcher({"high": gp.HardVote(4), "plain": GeometricMean()}), analysed),
        output={"plain": gp.Output(name="power", dtype="float64")},
        cuts=FEW,
    )
    assert sorted(found) == ["high", "high_share", "high_votes", "power"]
    assert found["power"].dtype == np.float64


def test_one_bad_output_of_a_dict_is_named() -> None:
    aggregations = {"high": gp.HardVote(4), "plain": Normalised()}
    with pytest.raises(gp.VerificationError, match=r"'plain' of Cut\(.* differs in"):
        assert_layout_invariant(field(), patcher(aggregations), analysed, cuts=FEW)


def both(x: Any) -> dict[str, Any]:
    return {"rows": float(np.nan_to_num(x).max()), "cells": x}


def test_a_table_beside_an_array() -> None:
    pytest.importorskip("pyarrow")
    axes = patcher({"rows": gp.ByIndex(), "cells": gp.Mean()})
    found = assert_layout_invariant(field(), axes, both, cuts=FEW)
    assert found["rows"].num_rows == axes.n_anchors(field())
    assert found["cells"].shape == (37, 50)


def coarse(x: Any) -> Any:
    return np.nanmax(np.nan_to_num(x).reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2), axis=(1, 3))


def test_another_scale() -> None:
    axes = gp.Patcher(gp.Rectangular((8, 8), "pad"), gp.RegularStride((6, 4)), gp.Hann())
    found = assert_layout_invariant(field(), axes, coarse, output=gp.Output(scale="1/2"), cuts=FEW)
    assert found.shape == (19, 25)


# ---- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean(gp.Statistic):
    """The mean of each band, right or in one of the ways to get it wrong."""

    wrong: str = ""

    def init(self, bands: int) -> dict[str, Any]:
        return {"n": np.zeros(bands, np.int64), "mean": np.zeros(bands)}

    def update(self, state: dict[str, Any], values: Any, keys: Any) -> None:
        state["n"] += np.count_nonzero(~np.isnan(values), axis=1)
        state["mean"] += np.nansum(values, axis=1, dtype=float) / np.maximum(state["n"], 1)

    def merge(self, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
        n = left["n"] + right["n"]
        mean = (left["n"] * left["mean"] + right["n"] * right["mean"]) / np.maximum(n, 1)
        if self.wrong == "mean of means":
            mean = (left["mean"] + right["mean"]) / 2
        elif self.wrong == "the last":
            mean = np.where(right["n"] > 0, right["mean"], left["mean"])
        elif self.wrong == "touches right":
            right["mean"] *= 2
        elif self.wrong == "no state":
            return n  # type: ignore[no-any-return]
        elif self.wrong == "other names":
            return {"mean": mean}
        elif self.wrong == "no arrays":
            return {"n": n, "mean": mean.tolist()}
        return {"n": n, "mean": mean}

    def finalize(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"mean": np.where(state["n"] > 0, state["mean"], np.nan)}


class DoesNotMerge(gp.Statistic):
    """The exact median of what it sees: it cannot be had from two medians."""

    def init(self, bands: int) -> dict[str, Any]:
        return {"median": np.full(bands, np.nan)}

    def update(self, state: dict[str, Any], values: Any, keys: Any) -> None:
        state["median"][...] = np.nanmedian(values, axis=1)

    def finalize(self, state: dict[str, Any]) -> dict[str, Any]:
        return dict(state)


def centred(x: Any, context: Any = None) -> Any:
    return x if context is None else x - np.float32(next(iter(context.values()))[0])


def test_a_statistic_of_ones_own_keeps_the_contract() -> None:
    found = assert_statistic(field(), patcher(), Mean())
    values = field().read(field().domain.box)
    np.testing.assert_allclose(found["mean"], np.nanmean(values), rtol=1e-6)
    result = assert_layout_invariant(field(), patcher(), centred, context=Mean(), cuts=FEW)
    reference = patcher().two_pass(field(), centred, Mean())
    assert_same_bytes(result, reference)


@pytest.mark.parametrize("over", ["output", ops.mixing])
def test_a_statistic_over_results(over: Any) -> None:
    axes = patcher()
    found = assert_layout_invariant(field(), axes, centred, context=Mean(), over=over, cuts=FEW)
    assert_same_bytes(found, patcher().two_pass(field(), centred, Mean(), over))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("mean of means", r"of two halves, merged over a tree, gives .* for 'mean' at \(0,\)"),
        ("the last", "merge must not depend on how values were split"),
        ("touches right", "changes 'mean' of its right side"),
    ],
)
def test_a_statistic_that_merges_wrongly_is_found(wrong: str, told: str) -> None:
    with pytest.raises(gp.VerificationError, match=told) as caught:
        assert_statistic(field(), patcher(), Mean(wrong))
    assert "\n" not in str(caught.value)
    with pytest.raises(gp.VerificationError, match=told):
        assert_layout_invariant(field(), patcher(), centred, context=Mean(wrong))


@pytest.mark.parametrize(
    ("statistic", "told"),
    [
        (DoesNotMerge(), "DoesNotMerge does not merge: .* define merge"),
        (Mean("no state"), r"Mean.merge returned array\(.*it must return a state"),
        (Mean("other names"), "returned a dict with mean; .* with mean, n"),
        (Mean("no arrays"), "it must return a state, a dict of arrays"),
    ],
)
def test_a_statistic_that_does_not_merge_is_refused(
    statistic: gp.Statistic, told: str, tmp_path: Path
) -> None:
    """At plan time, also where there is one block and nothing would have to be merged."""
    one = gp.Patcher(gp.Rectangular((37, 50)), gp.RegularStride(50))
    for axes in (patcher(), one):
        with pytest.raises(gp.OptionError, match=told) as caught:
            gp.plan(field(), axes, centred, tmp_path / "o.zarr", context=statistic)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(gp.OptionError, match=told):
        assert_statistic(field(), patcher(), statistic)


class Stores(gp.Statistic):
    """A state of Python objects, which no record can hold."""

    def init(self, bands: int) -> dict[str, Any]:
        return {"seen": np.array([None] * bands, object)}

    def update(self, state: dict[str, Any], values: Any, keys: Any) -> None:
        state["seen"][...] = 1

    def merge(self, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
        return {"seen": left["seen"].copy()}

    def finalize(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"seen": np.ones(len(state["seen"]))}


def test_a_state_of_python_objects_is_found() -> None:
    with pytest.raises(gp.VerificationError, match="holds Python objects"):
        assert_statistic(field(), patcher(), Stores())


STATISTICS: tuple[gp.Statistic, ...] = (
    gp.MeanStd(),
    gp.MinMax(),
    gp.Histogram((0.0, 1.2, 1.5, 3.0)),
    gp.Covariance(),
    gp.Quantiles(),
    gp.ApproxQuantile((0.1, 0.9)),
    gp.ApproxCardinality(),
    gp.ApproxMode(),
    gp.StreamingHistogram(8),
    gp.StreamingHistogram(8, (1.0, 2.0)),
    gp.Reservoir(20),
)


@pytest.mark.parametrize("statistic", STATISTICS, ids=repr)
def test_every_statistic_merges(statistic: gp.Statistic) -> None:
    """Sums of floats to their rounding, everything else (sketches!) to the bit."""
    sums = isinstance(statistic, gp.MeanStd | gp.Covariance)
    found = assert_statistic(field(), patcher(), statistic, rtol=1e-12 if sums else 0.0)
    expected = patcher().reduce(field(), statistic)
    for name, value in expected.items():
        assert_same_bytes(np.asarray(found[name]), np.asarray(value), name)


def test_a_statistic_by_itself_has_no_operator() -> None:
    with pytest.raises(gp.OptionError, match="give over= one instead"):
        assert_statistic(field(), patcher(), Mean(), "output")
