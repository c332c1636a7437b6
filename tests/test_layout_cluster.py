"""Contract 1 on a real cluster: every aggregation and every statistic, byte for byte.

Two single-threaded worker processes against one super-tile in one thread and against
``patcher.merge``.  One job for each; what a cut may do to them is tested without a cluster, by
``test_layout_invariance.py`` and ``test_layout_several.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sample_operators as ops
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.execute.attempt.stage import recorded_context
from geopatch_dask.testing import (
    Cut,
    assert_layout_invariant,
    assert_same_bytes,
    merged,
    read_back,
)

Array = npt.NDArray[Any]

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*streaming_safe")
        yield


def field(*shape: int) -> gp.ArrayField:
    values = np.random.default_rng(9).normal(size=shape).astype("float32")
    values[..., 5:14, 3:9] = np.nan
    return gp.ArrayField(values)


# ---- aggregations --------------------------------------------------------------------------------


def labels(x: Array) -> Array:
    return np.floor(np.abs(ops.mixing(x)) * 7) % 12


def scores(x: Array) -> Array:
    """Twelve of them: enough for a sum that depends on how it is grouped."""
    mixed = np.abs(ops.mixing(x))
    return np.stack([(mixed + np.float32(0.1)) ** np.float32(c / 7) for c in range(12)])


def estimate(x: Array) -> dict[str, Array]:
    return {"mu": ops.mixing(x), "var": np.abs(x) - np.float32(0.05)}


def row(x: Array) -> dict[str, float]:
    return {"mean": float(np.nan_to_num(x).mean(dtype=np.float64))}


def spread(layers: Array, n: Array) -> Array:
    last = np.take_along_axis(layers, np.maximum(n - 1, 0)[None], axis=0)[0]
    return np.asarray(last - layers[0])


JOBS: dict[str, tuple[gp.Aggregation, Any]] = {
    "HardVote": (gp.HardVote(12), labels),
    "SoftVote": (gp.SoftVote(12), scores),
    "InvVarWeightedMean": (gp.InvVarWeightedMean(), estimate),
    "Quantile": (gp.Quantile((0.0, 0.3, 1.0)), ops.mixing),
    "Learned": (gp.Learned(spread), ops.mixing),
    "ByIndex": (gp.ByIndex(), row),
    **{
        name: (getattr(gp, name)(), ops.mixing)
        for name in (
            *("All", "Any", "Count", "Max", "Mean", "Median", "Min", "Mode", "OverlapAdd"),
            *("Range", "Sum", "Variance", "WeightedSum"),
        )
    },
}


def test_none_is_forgotten() -> None:
    public = {getattr(gp, name) for name in gp.__all__}
    known = {v for v in public if isinstance(v, type) and issubclass(v, gp.Aggregation)}
    assert {type(a) for a, _ in JOBS.values()} == known - {gp.Aggregation}
    known = {v for v in public if isinstance(v, type) and issubclass(v, gp.Statistic)}
    assert {type(s) for s in STATISTICS if type(s) is not Share} == known - {gp.Statistic}


@pytest.mark.parametrize("name", sorted(JOBS))
def test_an_aggregation(name: str, client: Any, tmp_path: Path) -> None:
    aggregation, operator = JOBS[name]
    if name == "ByIndex":
        pytest.importorskip("pyarrow")
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((4, 5)), gp.Hann(), aggregation)
    assert_layout_invariant(
        *(field(22, 26), patcher, operator),
        cuts=[Cut((8, 13), (4, 13))],
        schedulers=(),
        client=client,
        folder=tmp_path,
    )


def test_a_dict_of_outputs(client: Any, tmp_path: Path) -> None:
    members = {"class": gp.HardVote(12), "value": gp.Median(), "weight": gp.OverlapAdd()}
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((4, 5)), gp.Hann(), members)
    found = assert_layout_invariant(
        *(field(22, 26), patcher, several),
        cuts=[Cut((8, 13), (4, 13))],
        schedulers=(),
        client=client,
        folder=tmp_path,
    )
    assert set(found) == {"class", "class_share", "class_votes", "value", "weight"}


def several(x: Array) -> dict[str, Array]:
    return {"class": labels(x), "value": ops.mixing(x), "weight": x}


# ---- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share(gp.Statistic):
    """One that a user might write."""

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


@pytest.mark.parametrize("over", ["field", "operator"])
@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: type(s).__name__)
def test_a_statistic(statistic: gp.Statistic, over: Any, client: Any, tmp_path: Path) -> None:
    """Several leaves of the real size: blocks of 1024 rows, groups of 64 patches."""
    source = field(2, 2100, 12)
    first: Any = "field" if over == "field" else ops.mixing
    patcher = gp.Patcher(gp.Rectangular((30, 12)), gp.RegularStride((15, 12)))
    call = None if over == "field" else ops.mixing
    expected = patcher.reduce(source, statistic, "field" if call is None else "output", call)
    operator = ops.Informed(next(iter(expected)))
    plan = gp.plan(
        *(source, patcher, operator, tmp_path / "out.zarr"),
        context=statistic, over=first, slots=2, outer=(1050, 12), chunks=(1050, 12),
    )  # fmt: skip
    assert plan.run(client).complete
    found, problem = recorded_context(plan)
    assert found is not None
    assert not problem
    for name, value in expected.items():
        assert_same_bytes(np.asarray(found[name]), np.asarray(value), name)
    reference = merged(source, patcher, operator, context=expected)
    assert_same_bytes(read_back(plan.target), reference, "the output of a cluster")


def test_blocks(client: Any, tmp_path: Path) -> None:
    job = gp.per_block(field(2, 90, 70), gp.ApproxQuantile((0.1, 0.9)), "value", cells=6)
    alone = gp.plan(**job, target=MemoryStore(), outer=40)
    alone.run("sync")
    plan = gp.plan(**job, target=tmp_path / "o.zarr", outer=8)
    assert plan.n_supertiles > 2
    assert plan.run(client).complete
    assert_same_bytes(read_back(plan.target, "value"), read_back(alone.target, "value"))
