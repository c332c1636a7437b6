"""One statistic per cell of a coarse grid: of a field, of a finished target, of single patches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sample_operators as ops
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.testing import Cut, assert_layout_invariant, assert_same_bytes, merged, read_back

Array = npt.NDArray[Any]

#: Sketches and other statistics, a number of each, and its shape after the bands.
SAID: tuple[tuple[gp.Statistic, str, tuple[int, ...]], ...] = (
    (gp.ApproxQuantile(0.5), "value", ()),
    (gp.ApproxQuantile((0.1, 0.9)), "value", (2,)),
    (gp.ApproxCardinality(), "count", ()),
    (gp.ApproxMode(3), "values", (3,)),
    (gp.StreamingHistogram(4), "edges", (5,)),
    (gp.Reservoir(6), "values", (6,)),
    (gp.MeanStd(), "std", ()),
    (gp.MinMax(), "max", ()),
    (gp.Histogram((-1.0, 0.0, 1.0)), "counts", (2,)),
    (gp.Covariance(), "cov", (3,)),
)
CUT = [Cut((1, 2), (1, 1))]


def field(*shape: int) -> gp.ArrayField:
    values = np.round(np.random.default_rng(3).normal(size=shape or (3, 45, 70)), 2)
    values[..., 5:40, 20:50] = np.nan  # the whole of one block, and parts of others
    return gp.ArrayField(values, transform=(10, 0, 500, 0, -10, 900), crs="EPSG:32633")


def alone(values: Array, statistic: gp.Statistic, name: str, cells: int) -> Array:
    """Block by block, by hand, in the places they have in the whole field."""
    height, width = values.shape[-2:]
    rows = []
    for top in range(0, height, cells):
        row = []
        for left in range(0, width, cells):
            block = values[..., top : top + cells, left : left + cells]
            y, x = np.mgrid[top : top + block.shape[-2], left : left + block.shape[-1]]
            flat = np.ascontiguousarray(block).reshape(-1, y.size)
            state = statistic.init(len(flat))
            statistic.update(state, flat, (y * width + x).reshape(-1).astype(np.uint64))
            row.append(np.asarray(statistic.finalize(state)[name], np.float64))
        rows.append(np.stack(row, axis=-1))
    return np.stack(rows, axis=-2)


def test_integers_that_float64_has_not_are_refused() -> None:
    """ApproxMode gives values back exactly; a cell per block could not."""
    even, odd = np.full((4, 4), 2**53 + 2), np.full((4, 4), 2**53 + 1)
    job = gp.per_block(even, gp.ApproxMode(1), "values", 4)
    found = merged(job["field"], job["patcher"], job["operator"], job["output"])
    assert found.item() == 2**53 + 2
    job = gp.per_block(odd, gp.ApproxMode(1), "values", 4)
    with pytest.raises(gp.OperatorError, match=f"is {2**53 + 1}, beyond the integers"):
        gp.plan(**job, target=MemoryStore())


@pytest.mark.parametrize("cells", [(2, 4), [2, 4], {"y": 2, "x": 4}])
def test_blocks_are_as_long_as_wide(cells: Any) -> None:
    with pytest.raises(gp.OptionError, match=r"as long as wide.*give one number"):
        gp.per_block(np.ones((8, 8)), gp.MinMax(), "max", cells)


@pytest.mark.parametrize(("statistic", "name", "extra"), SAID, ids=lambda v: repr(v)[:20])
def test_every_block_by_itself_in_any_layout(
    statistic: gp.Statistic, name: str, extra: tuple[int, ...]
) -> None:
    """The bytes of ``patcher.merge``, of plans in several cuts, and of a loop over blocks."""
    job = gp.per_block(field(), statistic, name, cells=20)
    del job["chunks"]
    found = assert_layout_invariant(**job, cuts=CUT, schedulers=("threads",))
    assert found.shape == (3, *extra, 3, 4)
    values = field().read(field().domain.box)
    expected = alone(values, statistic, name, 20) + 0.0
    assert_same_bytes(found, expected.reshape(found.shape), name)


def test_blocks_of_a_field_without_bands_and_of_several_axes() -> None:
    flat = gp.per_block(field(45, 70), gp.MinMax(), "max", cells=20)
    assert merged(flat["field"], flat["patcher"], flat["operator"], flat["output"]).shape == (3, 4)
    cube = gp.ArrayField(np.arange(2.0 * 3 * 8 * 9).reshape(2, 3, 8, 9), dims=("t", "z", "y", "x"))
    job = gp.per_block(cube, gp.MinMax(), "max", cells=8)
    plan = gp.plan(**job, target=MemoryStore())
    plan.run("sync")
    assert plan.arrays[0].dims == ("t", "z", "y", "x")
    expected = cube.read(cube.domain.box)[..., -1, [7, 8]][..., None, :]
    assert_same_bytes(read_back(plan.target, "max"), expected)


def halved(x: Array) -> Array:
    return x / 2 + np.float64(1)


def test_one_block_is_one_output_chunk_by_default(tmp_path: Path) -> None:
    """What an operator made, summarised over its result: each cell once, whatever overlapped."""
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((6, 6)), gp.Hann())
    gp.plan(field(), patcher, halved, tmp_path / "o.zarr", chunks=20, outer=40).run("threads")
    job = gp.per_block(tmp_path / "o.zarr", gp.ApproxQuantile(0.9), "value")
    assert job["output"].scale == "1/20"
    found = gp.reconstruct(**job, target=tmp_path / "blocks.zarr", client="threads")
    assert found.name == "value"
    assert found.shape == (3, 3, 4)
    np.testing.assert_allclose(found.x.values, 500 + 200 * np.arange(4) + 100)
    result = read_back(tmp_path / "o.zarr")
    expected = alone(result, gp.ApproxQuantile(0.9), "value", 20)
    assert_same_bytes(found.values, expected, "the blocks of a target")
    n = gp.per_block(tmp_path / "o.zarr", gp.MeanStd(), "n")
    counts = gp.reconstruct(**n, target=tmp_path / "n.zarr", client="sync").values
    assert counts.sum() == np.count_nonzero(~np.isnan(result)), "each cell once"


def test_answers_patch_by_patch_are_another_question() -> None:
    """``per_patch(operator=)`` sees what a patch says, before it is blended with others."""
    patcher = gp.Patcher(gp.Rectangular((20, 20), "shrink"), gp.RegularStride((20, 20)))
    operator = gp.per_patch(gp.MinMax(), "max", ops.mixing)
    output = gp.Output(scale="1/20")
    found = assert_layout_invariant(
        field(), patcher, operator, output=output, cuts=CUT, schedulers=("threads",)
    )
    for patch, told in zip(patcher.split(field()), found.reshape(3, -1).T, strict=True):
        expected = gp.MinMax()
        state = expected.init(3)
        expected.update(state, ops.mixing(patch.data).reshape(3, -1), np.zeros(0, np.uint64))
        np.testing.assert_array_equal(told, expected.finalize(state)["max"])


@dataclass(frozen=True)
class ExactMedian(gp.Statistic):
    """A statistic that cannot merge has no first pass, but it can summarise a block."""

    def init(self, bands: int) -> dict[str, Array]:
        return {"median": np.full(bands, np.nan)}

    def update(self, state: dict[str, Array], values: Array, keys: Array) -> None:
        state["median"][...] = np.median(values, axis=1)

    def finalize(self, state: dict[str, Array]) -> dict[str, Array]:
        return dict(state)


def test_a_statistic_that_does_not_merge_can_summarise_blocks() -> None:
    values = np.random.default_rng(0).normal(size=(40, 40))
    job = gp.per_block(values, ExactMedian(), "median", cells=20)
    found = merged(job["field"], job["patcher"], job["operator"], job["output"])
    expected = np.median(values.reshape(2, 20, 2, 20), axis=(1, 3))
    np.testing.assert_array_equal(found, expected)


def test_the_default_edge(tmp_path: Path) -> None:
    def edge(shape: tuple[int, ...], chunks: Any) -> str:
        target = tmp_path / f"{shape}{chunks}.zarr"
        patcher = gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((8, 8)))
        gp.plan(np.ones(shape), patcher, np.positive, target, chunks=chunks).run("sync")
        return str(gp.per_block(target, gp.MinMax(), "max")["output"].scale)

    assert edge((40, 50), 16) == "1/16"
    assert edge((40, 50), 64) == "1/50", "one chunk: one block"
    assert edge((20, 50), 32) == "1/32", "one chunk high, two wide"
    assert gp.per_block(np.ones((40, 50)), gp.MinMax(), "max")["output"].scale == "1/512"
    with pytest.raises(gp.OptionError, match=r"chunks of \(10, 20\) cells.*give cells=") as caught:
        edge((40, 50), (10, 20))
    assert "\n" not in str(caught.value)


def test_parallel_enough() -> None:
    """A write unit of the coarse grid is no larger than a usual super-tile of the field."""
    job = gp.per_block(field(90, 120), gp.MinMax(), "max", cells=5)
    assert gp.plan(**job, target=MemoryStore(), outer=8).n_supertiles == 3 * 3


def test_what_is_asked_for_is_part_of_the_fingerprint() -> None:
    def of(statistic: gp.Statistic, name: str, cells: int = 20) -> str:
        job = gp.per_block(field(), statistic, name, cells)
        return gp.plan(**job, target=MemoryStore()).fingerprint

    prints = {
        of(gp.ApproxQuantile(0.5), "value"),
        of(gp.ApproxQuantile(0.9), "value"),
        of(gp.ApproxQuantile(0.5), "n"),
        of(gp.ApproxQuantile(0.5), "value", 10),
        of(gp.Quantiles((0.5,)), "value"),
    }
    assert len(prints) == 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "median"}, "ApproxQuantile has no 'median'; it gives q, value"),
        ({"name": "value", "cells": 0}, "cells"),
        ({"name": "value", "cells": 2.5}, "cells"),
        ({"name": "value", "statistic": "median"}, "must be a Statistic"),
    ],
)
def test_bad_blocks_are_refused(options: dict[str, Any], told: str) -> None:
    asked = {"statistic": gp.ApproxQuantile(0.5), **options}
    with pytest.raises(gp.OptionError, match=told) as caught:
        gp.per_block(field(), **asked)
    assert "\n" not in str(caught.value)
