"""Contract 1: the same bytes, whatever the layout.

    run(any layout, any scheduler) == run(one tile, one thread) == patcher.merge in RAM

bit for bit, for random domains, patches, strides, windows, boundary modes, samplers, chunks,
shards, super-tiles (also smaller than a patch), missing data, aggregations, dtypes and operators
(also ones that mix their whole patch, keep no dtype, work in place, or change the leading axes).

The same tests check contract 4, that the cells nobody covered, and those that were missing, are
counted: the report has the numbers that plain numpy finds.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import Job, cuts, examples, jobs
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.testing import Cut, assert_same_bytes, merged, read_back

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def _holes_are_no_news() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        yield


def planned(job: Job, cut: Cut, target: Any) -> gp.Plan:
    return gp.plan(
        *(job.field, job.patcher, job.operator, target),
        **cut.options(),
        output=job.output,
        memory_limit="1 TiB",
        slots=2,
    )


def computed(job: Job, cut: Cut, scheduler: Any, target: Any = None) -> tuple[Array, gp.Report]:
    plan = planned(job, cut, MemoryStore() if target is None else target)
    report = plan.run(scheduler)
    assert report.complete, report
    return read_back(plan.target), report


def whole(job: Job) -> Cut:
    """One super-tile, one chunk."""
    return Cut(job.cuttable, job.cuttable)


def expected_counts(job: Job, stored: Array) -> dict[str, int]:
    """Cells without an answer, by plain numpy: in all, uncovered ones, and the rest."""
    if not job.patcher.n_anchors(job.field):
        return {"fill": stored.size, "uncovered": stored.size, "missing": 0}
    stack = oracles.stack(job.field, job.patcher, job.operator, job.output.missing)
    values, answered = oracles.answer(job.patcher.aggregation, stack)
    fill = int((~answered | np.isnan(values)).sum())
    return {"fill": fill, "uncovered": stack.uncovered, "missing": fill - stack.uncovered}


@given(jobs(), st.data())
@examples(75)
def test_bytes_do_not_depend_on_the_layout(job: Job, data: st.DataObject) -> None:
    reference = merged(job.field, job.patcher, job.operator, job.output)
    one, report = computed(job, whole(job), "sync")
    assert_same_bytes(one, reference, "one tile in one thread, against patcher.merge,")
    for scheduler in ("sync", "threads"):
        cut = data.draw(cuts(job.cuttable), label=scheduler)
        found, other = computed(job, cut, scheduler)
        assert_same_bytes(found, reference, f"{cut} under {scheduler}")
        assert other.totals == report.totals


@given(jobs(), st.data())
@examples(40)
def test_cells_without_an_answer_are_counted(job: Job, data: st.DataObject) -> None:
    cut = data.draw(cuts(job.cuttable))
    stored, report = computed(job, cut, "sync")
    assert report.totals == expected_counts(job, stored)
    hole = np.asarray(planned(job, cut, MemoryStore()).arrays[0].fill).astype(stored.dtype)
    holes = np.isnan(stored) if hole != hole else stored == hole
    assert holes.sum() >= report.totals["fill"]


@given(jobs(), st.data())
@examples(40)
def test_a_run_may_be_continued_with_other_super_tiles(job: Job, data: st.DataObject) -> None:
    """A run that stopped anywhere is finished by a plan of another super-tile shape."""
    reference, report = computed(job, whole(job), "sync")
    first = data.draw(cuts(job.cuttable), label="first layout")
    second = data.draw(cuts(job.cuttable, storage=first), label="second layout")
    target = MemoryStore()
    plan = planned(job, first, target)
    stop = data.draw(st.integers(0, plan.n_supertiles), label="super-tiles before the crash")

    def crash(outcome: object, finished: int, total: int) -> None:
        if finished == stop:
            raise KeyboardInterrupt

    if stop:
        with pytest.raises(KeyboardInterrupt):
            plan.run("sync", progress=crash)
    resumed = planned(job, second, target).run("sync")
    assert_same_bytes(read_back(target), reference, "the resumed run")
    assert resumed.totals == report.totals


@given(jobs(), st.data())
@examples(30)
def test_the_compiled_graph_gives_the_same_bytes(job: Job, data: st.DataObject) -> None:
    reference = merged(job.field, job.patcher, job.operator, job.output)
    target = MemoryStore()
    graph = planned(job, data.draw(cuts(job.cuttable)), target).to_dask()
    summary = graph.compute(scheduler="threads")
    assert summary.complete
    assert_same_bytes(read_back(target), reference, "the compiled graph")


@given(jobs(), st.integers(1, 40), st.data())
@examples(30)
def test_the_automatic_layout_gives_the_same_bytes(
    job: Job, slots: int, data: st.DataObject
) -> None:
    cut = data.draw(cuts(job.cuttable))
    plan = gp.plan(
        *(job.field, job.patcher, job.operator, MemoryStore()),
        chunks=cut.chunks,
        shards=cut.shards,
        output=job.output,
        memory_limit="1 TiB",
        slots=slots,
    )
    plan.run("sync")
    reference = merged(job.field, job.patcher, job.operator, job.output)
    assert_same_bytes(read_back(plan.target), reference, f"{plan.layout}")


# ---- other processes -----------------------------------------------------------------------------


def some(n: int) -> list[tuple[Job, Cut]]:
    """A few jobs, always the same, without the machinery that looks for more."""
    found: list[tuple[Job, Cut]] = []

    @settings(
        max_examples=4 * n,
        phases=[Phase.generate],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(jobs(), st.data())
    def collect(job: Job, data: st.DataObject) -> None:
        found.append((job, data.draw(cuts(job.cuttable))))

    collect()
    return random.Random(5).sample(found, n)


@pytest.mark.slow
@pytest.mark.cluster
def test_bytes_do_not_depend_on_processes(tmp_path: Path) -> None:
    (job, cut) = some(1)[0]
    found, _ = computed(job, cut, "processes", tmp_path / "out.zarr")  # a cluster of its own
    assert_same_bytes(found, merged(job.field, job.patcher, job.operator, job.output))


@pytest.mark.cluster
def test_bytes_do_not_depend_on_a_cluster(tmp_path: Path, client: Any) -> None:
    for i, (job, cut) in enumerate(some(25)):
        found, _ = computed(job, cut, client, tmp_path / f"{i}.zarr")
        expected = merged(job.field, job.patcher, job.operator, job.output)
        assert_same_bytes(found, expected, f"{job}, {cut} on a cluster")
