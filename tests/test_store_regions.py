"""Whole objects only: what may be written, what is stored, and that nothing is read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore, WrapperStore

from geopatch_dask.errors import AlignmentError, OptionError, TargetError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.store.regions import sync_region, write_region, write_unit
from geopatch_dask.store.target import open_array
from geopatch_dask.store.template import ArraySpec, create

NAN = float("nan")


class Watched(WrapperStore[MemoryStore]):
    """A store in memory that remembers which chunks were asked for and which were stored."""

    def __init__(self, store=None):
        super().__init__(store if store is not None else MemoryStore())
        self.got, self.put, self.deleted = [], [], []

    async def get(self, key, *args, **kwargs):
        if "/c/" in key:
            self.got.append(key)
        return await super().get(key, *args, **kwargs)

    def get_sync(self, key, **kwargs):
        self.got.append(key)
        return super().get_sync(key, **kwargs)

    async def set(self, key, value):
        self.put.append(key)
        await super().set(key, value)

    def set_sync(self, key, value):
        self.put.append(key)
        super().set_sync(key, value)

    async def delete(self, key):
        self.deleted.append(key)
        await super().delete(key)


def made(store, shape, chunks, shards=None, dtype="float32", fill="NaN"):
    dims = tuple(f"d{i}" for i in range(len(shape)))
    create(
        store,
        [ArraySpec("data", dtype, dims, shape, chunks, shards, fill)],
        GridDomain(dims, shape),
    )
    return open_array(store, "data")


def units(shape, unit):
    """Boxes of all write units."""
    axes = [[(a, min(a + u, n)) for a in range(0, n, u)] for n, u in zip(shape, unit, strict=True)]
    for sides in itertools.product(*axes):
        yield Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))


@st.composite
def layouts(draw):
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 13)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, 6)) for _ in range(ndim))
    sharded = draw(st.booleans())
    shards = tuple(c * draw(st.integers(1, 3)) for c in chunks) if sharded else None
    return shape, chunks, shards


class TestWriteUnit:
    def test_divides(self):
        assert write_unit((4, 4), None) == (4, 4)
        assert write_unit((4, 4), (8, 4)) == (8, 4)

    @pytest.mark.parametrize(
        ("chunks", "shards", "message"),
        [
            ((4, 4), (8, 6), "axis 1: chunks of 4 cells do not divide shards of 6; .*instance 4"),
            ((4, 4), (2, 4), "axis 0: chunks of 4 cells do not divide shards of 2"),
            ((4, 0), None, "axis 1 has 0"),
            ((4, 4), (8,), "differ in axes"),
        ],
    )
    def test_errors_name_axis_and_numbers(self, chunks, shards, message):
        with pytest.raises(AlignmentError, match=message):
            write_unit(chunks, shards)


class TestWriteRegion:
    @settings(max_examples=60, deadline=None)
    @given(layout=layouts(), data=st.data())
    def test_any_partition_into_whole_units_gives_the_array(self, layout, data):
        shape, chunks, shards = layout
        unit = write_unit(chunks, shards)
        array = made(MemoryStore(), shape, chunks, shards)
        values = np.random.default_rng(0).random(shape).astype("float32")
        for box in data.draw(st.permutations(list(units(shape, unit)))):
            write_region(array, box, values[box.slices()])
        np.testing.assert_array_equal(array[...], values)

    @settings(max_examples=60, deadline=None)
    @given(layout=layouts(), data=st.data())
    def test_a_region_is_written_exactly_when_it_is_whole_units(self, layout, data):
        shape, chunks, shards = layout
        unit = write_unit(chunks, shards)
        sides = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
        box = Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))
        array = made(MemoryStore(), shape, chunks, shards)
        whole = all(
            a % u == 0 and (b % u == 0 or b == n)
            for a, b, u, n in zip(box.start, box.stop, unit, shape, strict=True)
        )
        ones = np.ones(box.shape, "float32")
        if whole:
            write_region(array, box, ones)
            expected = np.full(shape, NAN, "float32")
            expected[box.slices()] = 1
            np.testing.assert_array_equal(array[...], expected)
        else:
            with pytest.raises(AlignmentError, match=r"axis \d: cells \d+ to \d+ are not whole"):
                write_region(array, box, ones)
            assert np.isnan(array[...]).all()

    @pytest.mark.parametrize("shards", [None, (8, 8)])
    def test_one_put_per_unit_and_no_get(self, shards):
        store = Watched()
        array = made(store, (18, 20), (4, 4), shards)
        unit = write_unit((4, 4), shards)
        rounds = [np.ones((18, 20), "float32"), np.full((18, 20), 2, "float32")]
        for values in rounds:
            store.put.clear()
            for box in units(array.shape, unit):
                write_region(array, box, values[box.slices()])
            assert len(store.put) == len(set(store.put)) == len(list(units(array.shape, unit)))
        assert store.got == []
        np.testing.assert_array_equal(array[...], rounds[-1])

    def test_a_damaged_shard_is_repaired_by_writing_it_again(self, tmp_path):
        array = made(tmp_path / "o.zarr", (10, 10), (4, 4), (8, 8))
        for box in units(array.shape, (8, 8)):
            write_region(array, box, np.ones(box.shape, "float32"))
        for shard in (tmp_path / "o.zarr/data/c/0").iterdir():
            shard.write_bytes(b"torn")
        for box in units(array.shape, (8, 8)):
            write_region(array, box, np.full(box.shape, 3, "float32"))
        assert (array[...] == 3).all()

    @pytest.mark.parametrize("shards", [None, (8, 8)])
    def test_fill_is_not_stored_and_replaces_what_was(self, shards):
        store = Watched()
        array = made(store, (10, 10), (4, 4), shards)
        box = Box.of_shape((10, 10))
        assert write_region(array, box, np.ones((10, 10), "float32")) > 0
        assert write_region(array, box, np.full((10, 10), NAN, "float32")) == 0
        assert [k for k in store._store._store_dict if "data/c/" in k] == []
        assert np.isnan(array[...]).all()

    def test_the_same_cells_give_the_same_bytes(self):
        stores = [MemoryStore(), MemoryStore()]
        values = np.random.default_rng(1).random((20, 30)).astype("float32")
        values[3:9, 2:25] = np.nan
        for store, whole in zip(stores, (True, False), strict=True):
            array = made(store, (20, 30), (4, 4), (8, 8))
            boxes = [Box.of_shape((20, 30))] if whole else list(units((20, 30), (8, 8)))[::-1]
            for box in boxes:
                write_region(array, box, values[box.slices()])
        first, second = ({k: v.to_bytes() for k, v in s._store_dict.items()} for s in stores)
        assert first == second

    def test_bytes_are_those_stored(self, tmp_path):
        array = made(tmp_path / "o.zarr", (16, 16), (4, 4), (8, 8))
        values = np.random.default_rng(1).random((16, 16)).astype("float32")
        count = write_region(array, Box.of_shape((16, 16)), values)
        files = [p for p in (tmp_path / "o.zarr/data/c").rglob("*") if p.is_file()]
        assert count == sum(p.stat().st_size for p in files)

    def test_what_is_refused(self):
        array = made(MemoryStore(), (10, 10), (4, 4))
        ones = np.ones((4, 4), "float32")
        with pytest.raises(AlignmentError, match="box of 1 axes in an array of 2"):
            write_region(array, Box((0,), (4,)), ones)
        with pytest.raises(AlignmentError, match="cells 8 to 12 are not inside the 10"):
            write_region(array, Box((8, 0), (12, 4)), ones)
        with pytest.raises(OptionError, match=r"shape \(4, 4\) and dtype float64"):
            write_region(array, Box((0, 0), (4, 4)), ones.astype("float64"))
        with pytest.raises(OptionError, match=r"box of shape \(8, 4\)"):
            write_region(array, Box((0, 0), (8, 4)), ones)
        assert write_region(array, Box((4, 4), (4, 8)), ones[:0]) == 0

    def test_a_failing_store_is_a_target_error(self):
        class Full(Watched):
            async def set(self, key, value):
                if "/c/" in key:
                    raise OSError(28, "No space left on device")
                await super().set(key, value)

            set_sync = None

        array = made(Full(), (4, 4), (4, 4))
        with pytest.raises(TargetError, match=r"cannot write .*No space left"):
            write_region(array, Box.of_shape((4, 4)), np.ones((4, 4), "float32"))

    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64", "complex64"])
    def test_dtypes(self, dtype):
        array = made(MemoryStore(), (5, 5), (4, 4), None, dtype, None)
        values = np.arange(25).reshape(5, 5).astype(dtype)
        write_region(array, Box.of_shape((5, 5)), values)
        np.testing.assert_array_equal(array[...], values)


def test_sync_region(tmp_path):
    array = made(tmp_path / "o.zarr", (10, 10), (4, 4), (8, 8))
    sync_region(array, Box.of_shape((10, 10)))
    write_region(array, Box.of_shape((10, 10)), np.ones((10, 10), "float32"))
    sync_region(array, Box.of_shape((10, 10)))
    sync_region(made(MemoryStore(), (4, 4), (4, 4)), Box.of_shape((4, 4)))
    assert isinstance(array, zarr.Array)
