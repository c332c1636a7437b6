"""Two passes: a statistic that no layout changes, computed once, recorded, given to every patch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sample_operators as ops
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.aggregation import passes
from geopatch_dask.execute.attempt.stage import recorded_context
from geopatch_dask.testing import assert_same_bytes, read_back

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Share(gp.Statistic):
    """The example of the documentation: share of valid values above a limit, per band."""

    limit: float

    def init(self, bands: int) -> dict[str, Array]:
        return {"n": np.zeros(bands, np.int64), "above": np.zeros(bands, np.int64)}

    def update(self, state: dict[str, Array], values: Array, keys: Array) -> None:
        state["n"] += np.count_nonzero(~np.isnan(values), axis=1)
        state["above"] += np.count_nonzero(values > self.limit, axis=1)

    def merge(self, left: dict[str, Array], right: dict[str, Array]) -> dict[str, Array]:
        return {name: left[name] + right[name] for name in left}

    def finalize(self, state: dict[str, Array]) -> dict[str, Any]:
        return {"share": state["above"] / np.maximum(state["n"], 1)}


STATISTICS: tuple[gp.Statistic, ...] = (
    gp.MeanStd(),
    gp.MeanStd(ddof=1),
    gp.MinMax(),
    gp.Histogram((-2.0, -1.0, 0.0, 0.5, 3.0)),
    gp.Covariance(),
    gp.Quantiles(),
    gp.ApproxQuantile((0.1, 0.9)),
    gp.ApproxCardinality(),
    gp.ApproxMode(),
    gp.StreamingHistogram(8),
    gp.Reservoir(20),
    Share(0.5),
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many leaves in a small field."""
    monkeypatch.setattr(passes, "BLOCK_EDGE", 8)
    monkeypatch.setattr(passes, "PATCHES_PER_LEAF", 3)


def cube(seed: int = 0, shape: tuple[int, ...] = (3, 45, 37)) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    values[:, 5:12, 20:30] = np.nan
    values[1, 30] = np.nan
    return values


def patcher(size: int = 10, step: int = 6) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular((size, size)), gp.RegularStride((step, step)), gp.Hann(), gp.OverlapAdd()
    )


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return set(left) == set(right) and all(
        np.asarray(left[k]).tobytes() == np.asarray(right[k]).tobytes() for k in left
    )


# ---- oracles -------------------------------------------------------------------------------------


def test_statistics_are_what_numpy_says(small_blocks: None) -> None:
    values = cube()
    field, flat = gp.ArrayField(values), values.reshape(3, -1)
    reduce = patcher().reduce
    moments = reduce(field, gp.MeanStd(ddof=1))
    np.testing.assert_allclose(moments["mean"], np.nanmean(flat, axis=1), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(moments["std"], np.nanstd(flat, axis=1, ddof=1), rtol=1e-13)
    np.testing.assert_array_equal(moments["n"], (~np.isnan(flat)).sum(axis=1))
    extremes = reduce(field, gp.MinMax())
    np.testing.assert_array_equal(extremes["min"], np.nanmin(flat, axis=1))
    np.testing.assert_array_equal(extremes["max"], np.nanmax(flat, axis=1))
    both = flat[:, ~np.isnan(flat).any(axis=0)]
    covariance = reduce(field, gp.Covariance())
    np.testing.assert_allclose(covariance["cov"], np.cov(both), rtol=1e-12, atol=1e-15)
    assert covariance["n"] == both.shape[1]
    edges = (-2.0, -1.0, 0.0, 0.5, 3.0)
    counted = reduce(field, gp.Histogram(edges))
    for band, row in enumerate(flat):
        np.testing.assert_array_equal(
            counted["counts"][band], np.histogram(row[~np.isnan(row)], edges)[0]
        )
        total = sum(int(counted[k][band]) for k in ("below", "above", "missing"))
        assert total + counted["counts"][band].sum() == row.size


def test_a_large_mean_costs_no_digits(small_blocks: None) -> None:
    """Mean 1e8, standard deviation 1e-3."""
    noise = 1e-3 * np.random.default_rng(2).standard_normal((1, 64, 64))
    found = patcher().reduce(gp.ArrayField(1e8 + noise), gp.MeanStd())
    assert found["std"][0] == pytest.approx(np.std((1e8 + noise) - 1e8), rel=1e-6)


def test_no_valid_value_is_nan_not_zero() -> None:
    nothing = gp.ArrayField(np.full((2, 20, 20), np.nan))
    for statistic in (gp.MeanStd(), gp.MinMax(), gp.Covariance()):
        found = patcher().reduce(nothing, statistic)
        assert all(np.isnan(v).all() for k, v in found.items() if k != "n")


# ---- contract 1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("over", ["field", "operator"])
def test_no_layout_changes_a_statistic(
    statistic: gp.Statistic, over: Any, small_blocks: None
) -> None:
    """The finalized context, and the bytes of the output, for any number of tasks."""
    field = gp.ArrayField(cube())
    first: Any = "field" if over == "field" else ops.mixing
    name = next(iter(patcher().reduce(field, statistic)))
    operator = ops.Informed(name)
    call = None if over == "field" else ops.mixing
    expected = patcher().reduce(field, statistic, "field" if call is None else "output", call)
    reference = patcher().two_pass(field, operator, statistic, first)
    for slots, tile, scheduler in ((1, (45, 37), "sync"), (2, (10, 20), "threads"), (9, 5, "sync")):
        plan = gp.plan(
            *(field, patcher(), operator, MemoryStore()),
            context=statistic, over=first, slots=slots, outer=tile, chunks=5,
        )  # fmt: skip
        assert plan.run(scheduler).complete
        found, problem = recorded_context(plan)
        assert found is not None
        assert not problem
        assert same(found, expected)
        assert_same_bytes(read_back(plan.target), reference, f"{slots} slots, {scheduler}")


@given(st.integers(1, 70), st.integers(0, 6))
@examples(60)
def test_runs_of_leaves_meet_in_the_same_tree(leaves: int, power: int) -> None:
    """Text instead of numbers shows who was merged with whom."""

    class Tree(gp.MinMax):
        def merge(self, left: Any, right: Any) -> Any:
            return {"": np.array(f"({left['']} {right['']})")}

    class Leaves(passes.Pass):
        @property
        def leaves(self) -> int:
            return leaves

        @property
        def leaf_bytes(self) -> int:
            return 0

        def state(self, statistic: Any, leaf: int) -> Any:
            return {"": np.array(str(leaf))}

    run = 2**power
    whole = passes.reduce_leaves(Leaves(), Tree(), 0, leaves)
    parts = [
        passes.reduce_leaves(Leaves(), Tree(), first, min(first + run, leaves))
        for first in range(0, leaves, run)
    ]
    assert gp.aggregation.statistic.merge_tree(Tree(), parts) == whole  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("over", ["field", "operator"])
def test_two_passes_on_a_cluster(over: str, client: Any, tmp_path: Path) -> None:
    """Several leaves of the real size: blocks of 1024 rows, groups of 64 patches."""
    field = gp.ArrayField(cube(shape=(2, 2200, 24)))
    first: Any = "field" if over == "field" else ops.mixing
    reference = patcher().two_pass(field, ops.Informed("mean"), gp.MeanStd(), first)
    plan = gp.plan(
        *(field, patcher(), ops.Informed("mean"), tmp_path / "out.zarr"),
        context=gp.MeanStd(), over=first, slots=2, outer=(600, 12), chunks=12,
    )  # fmt: skip
    assert plan.run(client).complete
    assert_same_bytes(read_back(plan.target), reference, "a cluster")


# ---- recorded and reused -------------------------------------------------------------------------


def test_a_recorded_context_is_not_computed_again(tmp_path: Path, small_blocks: None) -> None:
    log = tmp_path / "calls"
    counted = ops.Counted(log)
    field = gp.ArrayField(cube())

    def plan() -> gp.Plan:
        return gp.plan(
            *(field, patcher(), ops.Informed("mean"), tmp_path / "out.zarr"),
            context=gp.MeanStd(),
            over=gp.Operator(counted, version="1"),
            slots=1, outer=(10, 20), chunks=5,
        )  # fmt: skip

    def crash(outcome: object, finished: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan().run("sync", progress=crash)
    after_first = ops.notes(log)
    made = plan()
    probing = ops.notes(log) - after_first
    assert made.run("sync").complete
    assert ops.notes(log) == after_first + probing, "pass 1 ran again"
    again = ops.Counted(tmp_path / "elsewhere")
    reference = patcher().two_pass(field, ops.Informed("mean"), gp.MeanStd(), again)
    assert_same_bytes(read_back(made.target), reference, "the resumed run")


@pytest.mark.parametrize("damage", ["torn", "empty", "foreign", "version", "object"])
def test_a_damaged_context_is_said_and_computed_again(damage: str, tmp_path: Path) -> None:
    field = gp.ArrayField(cube())
    arguments = (field, patcher(), ops.Informed("mean"), tmp_path / "out.zarr")
    plan = gp.plan(*arguments, context=gp.MeanStd(), slots=1, chunks=20, outer=20)
    plan.run("sync")
    reference = read_back(plan.target)
    folder = tmp_path / "out.zarr.geopatch" / plan.fingerprint[:8]
    record = folder / "context.json"
    text = record.read_text()
    document = json.loads(text)
    if damage == "foreign":
        document["fingerprint"] = "0" * 64
    elif damage == "version":
        document["schema"] = 99
    elif damage == "object":
        document["state"]["mean"]["dtype"] = "|O"
    changed = {"torn": text[: len(text) // 2], "empty": ""}.get(damage, json.dumps(document))
    record.write_text(changed)
    next((folder / "tiles").iterdir()).unlink()
    report = plan.run("sync")
    assert report.complete
    assert report.problems
    assert_same_bytes(read_back(plan.target), reference, damage)


@pytest.mark.slow
def test_killed_between_the_passes(tmp_path: Path) -> None:
    """SIGKILL as soon as the context is recorded; the same command finishes, without pass 1."""
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time, numpy as np, geopatch_dask as gp

            def first(x):
                with open("first", "a") as log: log.write(".")
                return np.nanmean(x, axis=(1, 2))

            def second(x, context):
                with open("second", "a") as log: log.write(".")
                time.sleep(0.02)
                return x - context["mean"][:, None, None]

            values = np.random.default_rng(0).normal(size=(2, 60, 60))
            patcher = gp.Patcher(gp.Rectangular((20, 20)), gp.RegularStride((10, 10)), gp.Hann())
            plan = gp.plan(gp.ArrayField(values), patcher, second, "out.zarr", chunks=20, outer=20,
                           context=gp.MeanStd(), over=first, slots=1)
            plan.run("sync")
            """
        )
    )

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)

    process = start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out.zarr.geopatch/*/context.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = (tmp_path / "first").stat().st_size
    assert start().wait() == 0
    probes = 3  # planning tries the first, the middle and the last patch
    assert (tmp_path / "first").stat().st_size == seen + probes
    undisturbed = tmp_path / "other"
    undisturbed.mkdir()
    assert subprocess.run([sys.executable, str(script)], cwd=undisturbed).returncode == 0
    left, right = (gp.open(folder / "out.zarr").values for folder in (tmp_path, undisturbed))
    assert left.tobytes() == right.tobytes()


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"context": "mean"}, "must be a Statistic"),
        ({"over": "output"}, "first pass"),
        ({"context": gp.MeanStd(), "over": "everything"}, "neither 'field' nor 'output'"),
        ({"context": gp.MeanStd(), "over": ops.named("a")}, "give over= an operator"),
    ],
)
def test_bad_first_passes_are_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    field = gp.ArrayField(cube())
    with pytest.raises(gp.GeopatchError, match=told):
        gp.plan(field, patcher(), ops.Informed("mean"), tmp_path / "out.zarr", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("edges", [(1.0,), (2.0, 1.0), (1.0, 1.0)])
def test_bad_edges_are_refused(edges: Any) -> None:
    with pytest.raises(gp.OptionError, match="ascending"):
        gp.Histogram(edges)


def test_the_context_is_part_of_the_fingerprint() -> None:
    field = gp.ArrayField(cube())

    def of(**options: Any) -> str:
        return gp.plan(field, patcher(), ops.Informed("mean"), MemoryStore(), **options).fingerprint

    prints = {
        of(context=gp.MeanStd()),
        of(context=gp.MeanStd(ddof=1)),
        of(context=gp.MeanStd(), over="output"),
        of(context=gp.MeanStd(), over=ops.mixing),
        of(context=gp.MeanStd(), over=ops.identity),
    }
    assert len(prints) == 5
