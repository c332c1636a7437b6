"""The life of a target: made, found again, replaced, finished, opened; and dying in between."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import MemoryStore, WrapperStore

from geopatch_dask.errors import AlignmentError, OptionError, TargetError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Coordinate, GridDomain, RasterDomain
from geopatch_dask.store.location import Location
from geopatch_dask.store.regions import write_region
from geopatch_dask.store.target import (
    IncompleteWarning,
    finish,
    is_complete,
    open_array,
    open_target,
    reopen,
)
from geopatch_dask.store.template import ArraySpec, create

RASTER = RasterDomain(
    ("y", "x"), (12, 9), {}, "EPSG:32633", transform=(10.0, 0.0, 5e5, 0.0, -10.0, 4e6)
)
SPEC = ArraySpec("data", "float32", ("y", "x"), (12, 9), (4, 4))
ONES = np.ones((12, 9), "float32")


def contents(store):
    """Everything in a store in memory but the records."""
    inner = store._store if isinstance(store, WrapperStore) else store
    return {k: v.to_bytes() for k, v in inner._store_dict.items() if not k.startswith(".geopatch/")}


@pytest.fixture(params=["local", "memory-url", "store"])
def place(request, tmp_path):
    if request.param == "local":
        return Location(tmp_path / "out.zarr")
    if request.param == "memory-url":
        return Location(f"memory://b/{uuid.uuid4().hex}/out.zarr")
    return Location.of(MemoryStore())


class TestSpec:
    def test_json(self):
        spec = ArraySpec("a", "int16", ("t", "y"), (3, 9), (1, 4), (1, 8), -1, {"units": "m"})
        told = json.loads(json.dumps(spec.to_json()))
        kept = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
        assert ArraySpec(**kept) == spec

    @pytest.mark.parametrize(
        ("given_", "kept"),
        [(float("nan"), "NaN"), (float("inf"), "Infinity"), (-9999.0, -9999.0), (None, None)],
    )
    def test_fill_is_json(self, given_, kept):
        spec = ArraySpec("a", "float32", ("y",), (3,), (2,), None, given_)
        assert spec.fill_value == kept
        json.dumps(spec.to_json(), allow_nan=False)
        np.testing.assert_equal(spec.fill, np.float32(0 if given_ is None else given_))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"chunks": (4,)}, AlignmentError, r"chunks \(4,\) do not fit shape \(12, 9\)"),
            ({"shards": (8, 6)}, AlignmentError, "axis 1: chunks of 4 .* shards of 6"),
            ({"dtype": "nonsense"}, OptionError, "is no dtype"),
            ({"dtype": "U3"}, OptionError, "numbers or bools"),
            ({"dtype": "uint8", "fill_value": 300}, OptionError, "300 does not fit uint8"),
            ({"dtype": "uint8", "fill_value": -1}, OptionError, "-1 does not fit"),
            ({"dtype": "uint8", "fill_value": 0.5}, OptionError, "0.5 does not fit"),
            ({"dtype": "int32", "fill_value": "NaN"}, OptionError, "'NaN' does not fit int32"),
            ({"dtype": "bool", "fill_value": "NaN"}, OptionError, "'NaN' does not fit bool"),
            ({"fill_value": "blue"}, OptionError, "'blue' does not fit"),
            ({"name": "a/b"}, OptionError, "cannot name an array"),
            ({"name": ".hidden"}, OptionError, "cannot name an array"),
        ],
    )
    def test_refused(self, change, error, message):
        values = {f: getattr(SPEC, f) for f in ("name", "dtype", "dims", "shape", "chunks")}
        with pytest.raises(error, match=message):
            ArraySpec(**{**values, **change})


class TestLife:
    def test_made_written_finished_opened(self, place):
        attrs = {"title": "t", "geopatch:note": [1, "two"]}
        assert create(place, [SPEC], RASTER, attrs) is True
        assert not is_complete(place)
        write_region(open_array(place, "data"), Box((0, 0), (8, 9)), ONES[:8])
        with pytest.warns(IncompleteWarning, match="is not complete"):
            dataset = open_target(place)
        assert int(dataset["data"].isnull().sum()) == 4 * 9
        write_region(open_array(place, "data"), Box((8, 0), (12, 9)), ONES[8:])
        finish(place)
        assert is_complete(place)
        dataset = open_target(place)
        assert set(dataset.coords) == {"x", "y", "spatial_ref"}
        assert dataset.attrs["title"] == "t"
        assert dataset.attrs["geopatch:note"] == [1, "two"]
        assert (dataset["data"] == 1).all()
        assert open_target(place, chunks=None)["data"].chunks is None

    def test_found_again(self, place):
        create(place, [SPEC], RASTER, {"title": "t"})
        write_region(open_array(place, "data"), Box.of_shape((12, 9)), ONES)
        assert create(place, [SPEC], RASTER, {"title": "t"}) is False
        finish(place)
        assert create(place, [SPEC], RASTER, {"title": "t"}) is False
        assert is_complete(place)
        assert (open_array(place, "data")[...] == 1).all()

    def test_reopen_takes_the_end_back(self, place):
        create(place, [SPEC], RASTER)
        before = place.read("zarr.json")
        finish(place)
        finish(place)
        reopen(place)
        assert not is_complete(place)
        assert json.loads(place.read("zarr.json"))["attributes"] == json.loads(before)["attributes"]
        assert "consolidated_metadata" not in json.loads(place.read("zarr.json"))

    def test_nothing_there(self, place):
        assert not is_complete(place)
        for act in (finish, reopen, open_target, lambda p: open_array(p, "data")):
            with pytest.raises(TargetError, match=r"no Zarr store at|no array 'data' in"):
                act(place)
        assert place.list() == []
        if place.is_local:
            from pathlib import Path

            assert not Path(place.url).exists()

    def test_records_of_a_target_that_is_gone_are_removed(self, place):
        create(place, [SPEC], RASTER)
        state = place.sibling(".geopatch")
        state.write("12345678/tiles/0.json", b"done")
        assert create(place, [SPEC], RASTER) is False
        assert state.read("12345678/tiles/0.json") == b"done"
        for name in ("zarr.json", "data/zarr.json"):
            place.delete(name)
        for name in ("x", "y", "spatial_ref"):
            place.child(name).clear()
        if place.list() and place.is_local:
            place.clear()
        assert create(place, [SPEC], RASTER) is True
        assert state.read("12345678/tiles/0.json") is None

    def test_consolidated_metadata_is_what_zarr_writes(self, tmp_path):
        create(tmp_path / "a", [SPEC], RASTER)
        create(tmp_path / "b", [SPEC], RASTER)
        finish(tmp_path / "a")
        with pytest.warns(match="onsolidated"):
            zarr.consolidate_metadata(str(tmp_path / "b"))
        ours, theirs = (
            json.loads((tmp_path / name / "zarr.json").read_text())["consolidated_metadata"]
            for name in "ab"
        )
        assert ours == theirs
        group = zarr.open_consolidated(str(tmp_path / "a"))
        assert set(group.array_keys()) == {"data", "x", "y", "spatial_ref"}

    def test_arrays_open_by_their_own_metadata(self, tmp_path):
        create(tmp_path / "a", [SPEC], RASTER)
        finish(tmp_path / "a")
        zarr.create_array(str(tmp_path / "a"), name="late", shape=(3,), dtype="i4", chunks=(2,))
        assert open_array(tmp_path / "a", "late").shape == (3,)

    def test_a_petabyte_costs_the_same(self, tmp_path):
        n = 1_000_000
        small, large = (
            RasterDomain(
                ("band", "y", "x"), (300, m, m), {}, "EPSG:32633", transform=RASTER.transform
            )
            for m in (1000, n)
        )
        spans = []
        for domain in (small, large):
            shape, chunks = domain.shape, (1, 1000, 1000)
            spec = ArraySpec("data", "float32", domain.dims, shape, chunks, (1, 1000, 1000))
            start = time.perf_counter()
            create(tmp_path / str(shape[1]), [spec], domain)
            spans.append(time.perf_counter() - start)
        assert np.prod(large.shape) * 4 > 1e15
        assert not (tmp_path / str(n) / "data/c").exists()
        assert spans[1] < spans[0] + 2
        assert sum(f.stat().st_size for f in (tmp_path / str(n)).rglob("*") if f.is_file()) < 5e6

    def test_a_store_in_memory_under_threads(self):
        store = MemoryStore()
        create(store, [SPEC], RASTER)
        boxes = [Box((r, 0), (r + 4, 9)) for r in (0, 4, 8)]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda b: write_region(open_array(store, "data"), b, ONES[:4]), boxes))
        Location.of(store).sibling(".geopatch").write("12345678/plan.json", b"{}")
        finish(store)
        assert (xr.open_zarr(store)["data"] == 1).all()
        assert set(zarr.open_group(store, mode="r").array_keys()) >= {"data", "x"}

    def test_a_part_of_an_open_store(self):
        place = Location.of(MemoryStore()).child("results/first")
        create(place, [SPEC], RASTER)
        write_region(open_array(place, "data"), Box.of_shape((12, 9)), ONES)
        finish(place)
        assert (open_target(place)["data"] == 1).all()
        assert place.sibling(".geopatch").path == "results/first.geopatch"


class TestWhatIsThereAlready:
    def test_another_result_is_refused_and_named(self, place):
        create(place, [SPEC], RASTER, {"geopatch:fingerprint": "aaaa"})
        write_region(open_array(place, "data"), Box.of_shape((12, 9)), ONES)
        wider = ArraySpec("data", "float32", ("y", "x"), (12, 9), (4, 8))
        moved = RasterDomain(
            ("y", "x"), (12, 9), {}, "EPSG:32633", transform=(10.0, 0.0, 6e5, 0.0, -10.0, 4e6)
        )
        plain = GridDomain(("y", "x"), (12, 9), {"y": Coordinate(np.arange(12.0))})
        for args, reason in (
            (([wider], RASTER, {"geopatch:fingerprint": "aaaa"}), "chunk_grid of 'data'"),
            (([SPEC], RASTER, {"geopatch:fingerprint": "bbbb"}), "geopatch:fingerprint"),
            (([SPEC], moved, {"geopatch:fingerprint": "aaaa"}), "spatial:transform"),
            (([SPEC], plain, {"geopatch:fingerprint": "aaaa"}), "labels of its axes"),
        ):
            with pytest.raises(TargetError, match=f"{reason}.*overwrite=True"):
                create(place, *args)
        assert (open_array(place, "data")[...] == 1).all()

    def test_overwrite_deletes_data_and_records(self, place):
        create(place, [SPEC], RASTER)
        write_region(open_array(place, "data"), Box.of_shape((12, 9)), ONES)
        place.sibling(".geopatch").write("12345678/tiles/0.json", b"done")
        finish(place)
        assert create(place, [SPEC], RASTER, overwrite=True) is True
        assert not is_complete(place)
        assert np.isnan(open_array(place, "data")[...]).all()
        assert place.sibling(".geopatch").read("12345678/tiles/0.json") is None

    def test_a_foreign_zarr_store(self, tmp_path):
        path = tmp_path / "out.zarr"
        beside = tmp_path / "out.zarr.bak"
        for p in (path, beside):
            xr.Dataset({"v": ("n", np.arange(4))}).to_zarr(p, zarr_format=3, consolidated=False)
        with pytest.raises(TargetError, match=r"not written by geopatch_dask.*overwrite=True"):
            create(path, [SPEC], RASTER)
        assert (xr.open_zarr(path, consolidated=False)["v"] == np.arange(4)).all()
        create(path, [SPEC], RASTER, overwrite=True)
        assert not (path / "v").exists()
        assert (beside / "v").exists()

    def test_an_older_zarr_store(self, tmp_path):
        path = tmp_path / "out.zarr"
        xr.Dataset({"v": ("n", np.arange(4))}).to_zarr(path, zarr_format=2)
        with pytest.raises(TargetError, match=r"Zarr version 2.*overwrite=True"):
            create(path, [SPEC], RASTER)
        create(path, [SPEC], RASTER, overwrite=True)
        assert not (path / ".zgroup").exists()

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_something_else_is_never_deleted(self, tmp_path, overwrite):
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(TargetError, match=r"not a Zarr store \(it has 'thesis.tex'\)"):
            create(tmp_path, [SPEC], RASTER, overwrite=overwrite)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_is_never_deleted(self, tmp_path):
        (tmp_path / "out.zarr").write_text("x")
        with pytest.raises(TargetError, match="choose another name"):
            create(tmp_path / "out.zarr", [SPEC], RASTER, overwrite=True)
        assert (tmp_path / "out.zarr").read_text() == "x"

    def test_leftovers_of_a_killed_writer_do_not_count(self, tmp_path):
        (tmp_path / "out.zarr").mkdir()
        (tmp_path / "out.zarr/zarr.0123.partial").write_bytes(b"{")
        assert create(tmp_path / "out.zarr", [SPEC], RASTER)

    def test_a_torn_document_is_a_foreign_one(self, tmp_path):
        (tmp_path / "zarr.json").write_bytes(b'{"zarr_')
        assert not is_complete(tmp_path)
        with pytest.raises(TargetError, match="overwrite=True"):
            create(tmp_path, [SPEC], RASTER)
        for act in (finish, reopen, open_target):
            with pytest.raises(TargetError, match=r"is torn: .*overwrite=True"):
                act(tmp_path)
        assert (tmp_path / "zarr.json").read_bytes() == b'{"zarr_'
        assert create(tmp_path, [SPEC], RASTER, overwrite=True)

    def test_a_racing_create_attaches(self, tmp_path):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: create(tmp_path / "o", [SPEC], RASTER), range(8)))
        assert any(made)
        write_region(open_array(tmp_path / "o", "data"), Box.of_shape((12, 9)), ONES)
        finish(tmp_path / "o")
        assert (xr.open_zarr(tmp_path / "o")["data"] == 1).all()


class Dying(WrapperStore[MemoryStore]):
    """A store that dies before its n-th change."""

    def __init__(self, store, left=10**9):
        super().__init__(store)
        self.left = left

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("died")

    async def set(self, key, value):
        self._count()
        await super().set(key, value)

    async def delete(self, key):
        self._count()
        await super().delete(key)


def changes(act, store):
    """How many changes of the store an act makes."""
    watched = Dying(store)
    before = watched.left
    act(watched)
    return before - watched.left


class TestDyingInBetween:
    def test_while_it_is_made(self):
        def make(store):
            return create(store, [SPEC], RASTER, {"title": "t"})

        whole = MemoryStore()
        n = changes(make, whole)
        assert n > 5
        for step in range(n):
            store = MemoryStore()
            with pytest.raises(TargetError, match="unreachable"):
                make(Dying(store, step))
            assert not is_complete(store)
            make(store)
            assert contents(store) == contents(whole)

    def test_while_it_is_replaced(self):
        def old():
            store = MemoryStore()
            create(store, [SPEC], RASTER, {"title": "old"})
            write_region(open_array(store, "data"), Box.of_shape((12, 9)), ONES)
            Location.of(store).sibling(".geopatch").write("12345678/tiles/0.json", b"done")
            finish(store)
            return store

        def replace(store, overwrite=True):
            return create(store, [SPEC], RASTER, {"title": "new"}, overwrite)

        whole = old()
        n = changes(replace, whole)
        for step in range(n):
            store = old()
            with pytest.raises(TargetError):
                replace(Dying(store, step))
            record = Location.of(store).sibling(".geopatch").read("12345678/tiles/0.json")
            if step == 0:
                assert is_complete(store)
            else:
                assert not is_complete(store)
                chunks = [k for k in contents(store) if k.startswith("data/c/")]
                assert record is None or len(chunks) == 9
                replace(store, overwrite=False)
                assert contents(store) == contents(whole)

    def test_a_tombstone_is_not_a_target(self):
        store = MemoryStore()
        create(store, [SPEC], RASTER)
        with pytest.raises(TargetError):
            create(Dying(store, 1), [SPEC], RASTER, overwrite=True)
        for act in (finish, open_target):
            with pytest.raises(TargetError, match="was being replaced when that run was interrupt"):
                act(store)

    def test_while_it_is_finished(self):
        store = MemoryStore()
        create(store, [SPEC], RASTER)
        assert changes(finish, store) == 1
        reopen(store)
        with pytest.raises(TargetError):
            finish(Dying(store, 0))
        assert not is_complete(store)


class TestArrays:
    def test_integers_are_masked_as_xarray_masks_them(self, tmp_path):
        specs = [
            ArraySpec("i", "int16", ("y", "x"), (12, 9), (4, 4), None, -1),
            ArraySpec("f", "float32", ("y", "x"), (12, 9), (4, 4), None, -9999.0),
            ArraySpec("plain", "uint8", ("y", "x"), (12, 9), (4, 4), None, None),
            ArraySpec("flag", "bool", ("y", "x"), (12, 9), (4, 4), None, 0),
        ]
        create(tmp_path / "o", specs, RASTER)
        finish(tmp_path / "o")
        dataset = xr.open_zarr(tmp_path / "o")
        assert dataset["i"].isnull().all()
        assert dataset["f"].isnull().all()
        assert dataset["i"].encoding["_FillValue"] == -1
        assert dataset["f"].encoding["_FillValue"] == -9999.0
        assert dataset["plain"].dtype == "uint8"
        assert dataset["flag"].dtype == bool
        raw = xr.Dataset({"i": ("n", np.array([1.0, np.nan]))})
        raw.to_zarr(
            tmp_path / "x",
            encoding={"i": {"dtype": "int16", "_FillValue": -1}},
            zarr_format=3,
            consolidated=False,
        )
        theirs = json.loads((tmp_path / "x/i/zarr.json").read_text())["attributes"]["_FillValue"]
        ours = json.loads((tmp_path / "o/i/zarr.json").read_text())["attributes"]["_FillValue"]
        assert ours == theirs

    def test_documents_are_plain_version_3(self, tmp_path):
        spec = ArraySpec("data", "float32", ("y", "x"), (12, 9), (4, 4), (8, 8))
        create(tmp_path / "o", [spec], RASTER)
        for path in (tmp_path / "o").rglob("zarr.json"):
            document = json.loads(path.read_text(), parse_constant=pytest.fail)
            assert document["zarr_format"] == 3
            if document["node_type"] == "array":
                assert isinstance(document["data_type"], str)
                assert len(document.get("dimension_names", [])) == len(document["shape"])
                codecs = {codec["name"] for codec in document["codecs"]}
                assert codecs <= {"bytes", "zstd", "sharding_indexed"}

    def test_the_user_configuration_of_zarr_changes_nothing(self):
        stores = MemoryStore(), MemoryStore()
        create(stores[0], [SPEC], RASTER)
        with zarr.config.set({"array.write_empty_chunks": True, "array.order": "F"}):
            create(stores[1], [SPEC], RASTER)
            nan = np.full((12, 9), np.nan, "float32")
            write_region(open_array(stores[1], "data"), Box.of_shape((12, 9)), nan)
        assert contents(stores[0]) == contents(stores[1])

    def test_own_attributes(self, tmp_path):
        spec = ArraySpec(
            *("data", "float32", ("y", "x"), (12, 9), (4, 4)),
            attrs={"units": "K", "coordinates": "quality", "n": np.int64(3)},
        )
        create(tmp_path / "o", [spec], RASTER)
        attrs = json.loads((tmp_path / "o/data/zarr.json").read_text())["attributes"]
        assert attrs["units"] == "K"
        assert attrs["n"] == 3
        assert attrs["coordinates"] == "quality spatial_ref"

    @pytest.mark.parametrize(
        ("arrays", "attrs", "message"),
        [
            ([], {}, "arrays of distinct names"),
            ([SPEC, SPEC], {}, "arrays of distinct names"),
            ([ArraySpec("x", "f4", ("y", "x"), (12, 9), (4, 4))], {}, r"\['x'\] are those of axes"),
            ([ArraySpec("spatial_ref", "f4", ("y",), (12,), (4,))], {}, "of the CRS"),
            ([ArraySpec("a", "f4", ("z",), (12,), (4,))], {}, "no axis 'z'"),
            ([ArraySpec("a", "f4", ("y",), (13,), (4,))], {}, "13 cells along 'y', .* has 12"),
            ([SPEC], {"a": object()}, "must be plain JSON"),
            ([SPEC], {"a": float("nan")}, "must be plain JSON"),
            ([SPEC], {"geopatch:complete": True}, "set by finish"),
        ],
    )
    def test_refused_before_anything_is_written(self, tmp_path, arrays, attrs, message):
        with pytest.raises(OptionError, match=message):
            create(tmp_path / "o", arrays, RASTER, attrs)
        assert not (tmp_path / "o").exists()
