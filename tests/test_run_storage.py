"""What a run asks of its field and its store.

One read per super-tile, or per band of it; one write per storage object, never read and written
again; data first, record last; consolidation as the last act.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from sample_fields import Watched
from sample_stores import Logged
from strategies import Job, cuts, examples, jobs
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.execute.attempt.tile import run_tile
from geopatch_dask.patch.anchors import LatticeAnchors
from geopatch_dask.testing import assert_same_bytes, merged, read_back


def blend(size: int = 16, step: int = 12) -> gp.Patcher:
    return gp.Patcher(
        gp.Rectangular((size, size)), gp.RegularStride((step, step)), gp.Hann(), gp.OverlapAdd()
    )


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("shards", [None, (20, 40)])
def test_every_object_is_written_once_and_never_read(scheduler: str, shards: Any) -> None:
    store = Logged()
    values = np.arange(2 * 90 * 100.0).reshape(2, 90, 100)
    plan = gp.plan(
        *(gp.ArrayField(values), blend(), np.positive, store),
        outer=(40, 40),
        chunks=(10, 20),
        shards=shards,
    )
    plan.run(scheduler)
    written = store.keys("set", "data/c/")
    assert len(written) == len(set(written)) == 2 * plan.layout.objects()
    assert store.keys("get", "data/c/") == []
    assert store.keys("delete", "data/c/") == []
    np.testing.assert_allclose(read_back(store), values, rtol=1e-14)


@given(jobs(), st.data())
@examples(40)
def test_no_object_has_two_writers(job: Job, data: st.DataObject) -> None:
    store = Logged()
    cut = data.draw(cuts(job.cuttable))
    plan = gp.plan(
        *(job.field, job.patcher, job.operator, store),
        **cut.options(),
        output=job.output,
        memory_limit="1 TiB",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        plan.run("threads")
    written = store.keys("set", "data/c/")
    assert len(written) == len(set(written))  # objects of fill only are not written at all
    assert store.keys("get", "data/c/") == []


def test_data_comes_first_records_follow_and_consolidation_is_last() -> None:
    store = Logged()
    field = gp.ArrayField(np.ones((60, 60)))
    plan = gp.plan(field, blend(), np.positive, store, outer=(20, 60), chunks=(20, 20))
    plan.run("sync")
    order = [key for verb, key in store.log if verb == "set"]
    rows = [[f"data/c/{i}/{j}" for j in range(3)] for i in range(3)]
    for tile, row in zip(plan.layout, rows, strict=True):
        record = next(k for k in order if k.endswith(f"tiles/{tile.id}.json"))
        assert max(order.index(key) for key in row) < order.index(record)
    last = max(i for i, key in enumerate(order) if "tiles/" in key)
    assert "zarr.json" in order[last + 1 :]
    assert all("data/" not in key for key in order[last + 1 :])
    group = zarr.open_group(store, mode="r")
    assert group.attrs["geopatch:complete"] is True
    assert group.metadata.consolidated_metadata is not None


def test_a_store_is_not_complete_before_it_is() -> None:
    store = MemoryStore()
    field = gp.ArrayField(np.ones((60, 60)))
    plan = gp.plan(field, blend(), np.positive, store, outer=(20, 60), chunks=(20, 20))
    seen = []

    def look(outcome: object, finished: int, total: int) -> None:
        group = zarr.open_group(store, mode="r", use_consolidated=False)
        seen.append((finished, total, "geopatch:complete" in group.attrs))

    plan.run("sync", progress=look)
    assert seen == [(1, 3, False), (2, 3, False), (3, 3, False)]


class Faulty(Logged):
    """Refuses to store what a key says, as long as it is told to."""

    refused = ""

    async def set(self, key: str, value: Any) -> None:
        if self.refused and self.refused in key:
            raise OSError(f"no space for {key}")
        await super().set(key, value)

    def set_sync(self, key: str, value: Any) -> None:
        if self.refused and self.refused in key:
            raise OSError(f"no space for {key}")
        self.note("set", key)
        self._store.set_sync(key, value)  # type: ignore[attr-defined]


@pytest.mark.parametrize("refused", ["data/c/1/2", "tiles/y20-40_x0-60"])
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_write_that_fails_is_a_failed_super_tile(refused: str, scheduler: str) -> None:
    """Data or record: the others finish, nothing half-written stays, a second run mends it."""
    store = Faulty()
    field = gp.ArrayField(np.arange(3600.0).reshape(60, 60))
    plan = gp.plan(field, blend(), np.positive, store, outer=(20, 60), chunks=(20, 20))
    store.refused = refused
    with pytest.raises(gp.RunIncomplete, match=r"y20-40_x0-60.*no space for") as caught:
        plan.run(scheduler)
    assert caught.value.report.summary.states == {"done": 2, "failed": 1}  # type: ignore[attr-defined]
    found = read_back(store)
    assert np.isnan(found[20:40]).all()
    assert not np.isnan(found[:20]).any()
    store.refused = ""
    assert plan.run(scheduler).skipped == 2
    assert_same_bytes(read_back(store), merged(field, blend(), np.positive))


# ---- reading -------------------------------------------------------------------------------------


@given(jobs(), st.data())
@examples(50)
def test_a_super_tile_reads_no_cell_twice(job: Job, data: st.DataObject) -> None:
    field = Watched(job.values, dims=job.dims, nodata=job.nodata)
    cut = data.draw(cuts(job.cuttable))
    plan = gp.plan(
        *(field, job.patcher, job.operator, MemoryStore()),
        **cut.options(),
        output=job.output,
        memory_limit="1 TiB",
    )
    if plan.n_supertiles > 30:
        return
    riding = int(np.prod([field.domain.size(d) for d in plan.grid.riding]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        field.boxes.clear()
        plan.run("sync")
    total = np.zeros(field.domain.shape, int)
    for box in field.boxes:
        total[box.slices()] += 1
    assert total.max(initial=0) <= plan.n_supertiles
    cells = sum(box.cells for box in field.boxes)
    if isinstance(plan.grid.anchors, LatticeAnchors):
        assert cells <= plan.cost.cells_read * riding


def test_a_tall_super_tile_is_read_in_bands() -> None:
    field = Watched(np.ones((2000, 64), "float32"))
    plan = gp.plan(
        *(field, blend(32, 24), np.positive, MemoryStore()), outer=(2000, 64), chunks=(100, 64)
    )
    field.boxes.clear()
    plan.run("sync")
    assert len(field.boxes) > 5
    starts = [box.start[0] for box in field.boxes]
    stops = [box.stop[0] for box in field.boxes]
    assert starts == [0, *stops[:-1]]  # in order, without a gap or a cell read twice
    assert max(box.shape[0] for box in field.boxes) <= 256


def test_blocks_of_the_field_are_decoded_once() -> None:
    """Bands begin at multiples of the field's blocks, whatever the patches are."""

    class Blocked(Watched):
        @property
        def blocks(self) -> tuple[int, ...]:
            return (200, 64)

    field = Blocked(np.ones((2000, 64), "float32"))
    plan = gp.plan(
        *(field, blend(32, 24), np.positive, MemoryStore()), outer=(500, 64), chunks=(100, 64)
    )
    field.boxes.clear()
    plan.run("sync")
    inner = [box.stop[0] % 200 for box in field.boxes if box.stop[0] % 500 == 0]
    ends = {box.stop[0] for box in field.boxes}
    assert len(inner) <= plan.n_supertiles
    assert len([e for e in ends if e % 200]) <= plan.n_supertiles  # only where a tile ends


# ---- tasks ---------------------------------------------------------------------------------------


def test_a_task_carries_an_integer_and_returns_less_than_a_kilobyte(tmp_path: Any) -> None:
    field = gp.ArrayField(np.ones((200, 200)))
    plan = gp.plan(
        *(field, blend(), np.positive, tmp_path / "out.zarr"), outer=(40, 40), chunks=(40, 40)
    )
    graph = plan.to_dask()
    assert len(graph.tiles) == plan.n_supertiles == 25
    sizes = [len(pickle.dumps(graph[key])) for key in graph.tiles]
    assert max(sizes) < 1000
    plan.run("sync")
    assert len(pickle.dumps(run_tile(plan, 3))) < 1000
    keys = {key if isinstance(key, str) else key[0] for key in graph}
    assert len(keys) == 5  # spec, plan, tile, merge, finish
    assert plan.to_dask().tiles == graph.tiles  # deterministic


def test_graphs_of_two_targets_do_not_mix(tmp_path: Any) -> None:
    """The same values for two places, or cut in two ways, are different work."""
    import dask

    field = gp.ArrayField(np.arange(3600.0).reshape(60, 60))
    plans = [
        gp.plan(field, blend(), np.positive, tmp_path / name, outer=outer, chunks=(20, 20))
        for name, outer in (("a.zarr", (20, 20)), ("b.zarr", (20, 20)), ("c.zarr", (60, 60)))
    ]
    assert len({plan.fingerprint for plan in plans}) == 1
    summaries = dask.compute(*(plan.to_dask() for plan in plans), scheduler="threads")
    assert [s.complete for s in summaries] == [True] * 3
    expected = merged(field, blend(), np.positive)
    for plan in plans:
        assert_same_bytes(read_back(plan.target), expected)


def test_a_graph_composes_with_other_work(tmp_path: Any) -> None:
    import dask

    field = gp.ArrayField(np.ones((60, 60)))
    plan = gp.plan(field, blend(), np.positive, tmp_path / "o.zarr", chunks=(20, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary, other = dask.compute(
            plan.to_dask(), dask.delayed(sum)([1, 2]), scheduler="threads"
        )
    assert summary.complete
    assert other == 3
    assert plan.to_dask().compute(scheduler="sync").complete  # twice is harmless
