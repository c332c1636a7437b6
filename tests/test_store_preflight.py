"""May a process do what a run will do, and what if it may not list."""

from __future__ import annotations

import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import fsspec
import keyed_jobs
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.errors import TargetError
from geopatch_dask.execute.target.prepare import ids
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import RasterDomain
from geopatch_dask.store import template
from geopatch_dask.store.backends import forget_clients
from geopatch_dask.store.location import Location
from geopatch_dask.store.preflight import preflight
from geopatch_dask.store.records import Ledger, Record, now
from geopatch_dask.store.regions import write_region
from geopatch_dask.store.tables import folder_of
from geopatch_dask.store.target import MEMBERS, existing_root, finish, open_array, open_target

FINGERPRINT = "abcdef01" * 8


class Guarded(MemoryFileSystem):
    """A bucket that refuses some verbs; who may not list is told "forbidden" of what is absent."""

    protocol = "guarded"
    store: dict[str, Any] = {}  # noqa: RUF012 - shared by all instances, as a bucket is
    pseudo_dirs = [""]  # noqa: RUF012
    refused: set[str] = set()  # noqa: RUF012
    log: list[tuple[str, str]] = []  # noqa: RUF012

    def _check(self, verb: str, path: str) -> None:
        self.log.append((verb, path))
        if verb in self.refused or "all" in self.refused:
            raise PermissionError("Access Denied")

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._check("read", path)
        self._veil(path)
        return super().cat_file(path, *args, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        self._veil(path)
        return super().info(path, **kwargs)

    def _veil(self, path: str) -> None:
        if "list" in self.refused and self._strip_protocol(path) not in self.store:
            raise PermissionError("Access Denied")

    def pipe_file(self, path: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        self._check("write", path)
        return super().pipe_file(path, value, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._check("delete", path)
        super().rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: Any = None) -> None:
        for name in [path] if isinstance(path, str) else path:
            self.rm_file(name)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._check("list", path)
        return super().ls(path, detail, **kwargs)


@pytest.fixture
def guarded() -> type[Guarded]:
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    Guarded.store, Guarded.pseudo_dirs, Guarded.refused, Guarded.log = {}, [""], set(), []
    forget_clients()
    return Guarded


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


class TestPreflight:
    def test_all_is_well_and_nothing_is_left(self, guarded):
        guarded.store.clear()
        place = Location("guarded://bucket/a/out.zarr")
        place.write("zarr.json", b"{}")
        guarded.log.clear()
        found = preflight(place)
        assert found.ok
        assert (found.client, found.location) == ("fsspec", place)
        assert found.list == "ok"
        assert [name.partition("bucket/")[2] for name in guarded.store] == ["a/out.zarr/zarr.json"]
        (touched,) = {path for verb, path in guarded.log if verb in ("read", "write", "delete")}
        assert "bucket/a/out.zarr.geopatch/.probe-" in touched

    def test_a_local_path_keeps_its_folders_and_no_others(self, tmp_path):
        place = Location(tmp_path / "new" / "deep" / "out.zarr")
        assert preflight(place).ok
        assert everything(tmp_path) == []
        place.sibling(".geopatch").write("x", b"1")
        before = everything(tmp_path)
        assert preflight(place).client == "local"
        assert everything(tmp_path) == before

    def test_an_open_store(self):
        store = MemoryStore()
        assert preflight(store).client == "zarr"
        assert not store._store_dict

    def test_a_file_where_a_folder_belongs(self, tmp_path):
        (tmp_path / "out.zarr.geopatch").write_bytes(b"x")
        with pytest.raises(TargetError, match=r"a run must write objects in .*another target"):
            preflight(tmp_path / "out.zarr")
        assert (tmp_path / "out.zarr.geopatch").read_bytes() == b"x"

    @pytest.mark.parametrize("verb", ["read", "write", "delete"])
    def test_what_a_run_cannot_do_without(self, guarded, verb):
        guarded.refused = {verb}
        with pytest.raises(TargetError, match=f"a run must {verb} objects in .*allow") as caught:
            preflight("guarded://bucket/out.zarr")
        assert (caught.value.kind, caught.value.transient) == ("forbidden", False)
        assert "\n" not in str(caught.value)
        assert ("is still there" in str(caught.value)) == (verb == "delete")
        assert len(guarded.store) == (verb == "delete")

    def test_listing_is_not_needed(self, guarded):
        guarded.refused = {"list"}
        found = preflight("guarded://bucket/out.zarr")
        assert found.list.startswith("forbidden: ")
        assert not found.ok
        assert not found.location.lists
        assert not guarded.store

    def test_other_bytes_than_were_written(self, guarded, monkeypatch):
        monkeypatch.setattr(Guarded, "cat_file", lambda self, path, **kwargs: b"other")
        with pytest.raises(TargetError, match=r"must read.*5 other bytes came back of the 39"):
            preflight("guarded://bucket/out.zarr")
        assert not guarded.store

    def test_a_place_that_is_away(self):
        class Away(fsspec.AbstractFileSystem):
            protocol = "away"

            def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
                raise ConnectionRefusedError("refused")

        fsspec.register_implementation("away", Away, clobber=True)
        with pytest.raises(TargetError, match=r"a run must write.*unreachable.*; retry") as caught:
            preflight("away://bucket/out.zarr")
        assert caught.value.transient


def record(tile: str, state: str = "done") -> Record:
    error = {"type": "E", "message": "m", "traceback": "t"} if state == "failed" else None
    return Record(
        id=tile,
        ordinal=int(tile.lstrip("t")),
        fingerprint=FINGERPRINT,
        layout="l" * 16,
        box=Box((0,), (4,)),
        state=state,  # type: ignore[arg-type]
        started=now(),
        finished=now(),
        error=error,
    )


class TestWithoutListing:
    @pytest.fixture
    def place(self, guarded: type[Guarded]) -> Location:
        guarded.refused = {"list"}
        return preflight(f"guarded://bucket/{uuid.uuid4().hex}/out.zarr").location

    def test_forbidden_may_mean_absent(self, place):
        known = Location(place.url)
        with pytest.raises(TargetError, match="forbidden"):
            known.read("nothing")
        with pytest.raises(TargetError, match="forbidden"):
            known.exists("nothing")
        assert place.read("nothing") is None
        assert not place.exists("nothing")
        place.write("a", b"1")
        assert place.read("a") == b"1"
        with pytest.raises(TargetError, match="forbidden"):
            place.list()
        travelled = pickle.loads(pickle.dumps(place))
        assert travelled.child("x").read("nothing") is None
        assert Location.from_json(json.loads(json.dumps(place.to_json()))) == place

    def test_unreachable_never_means_absent(self, place, monkeypatch):
        def away(*args: Any, **kwargs: Any) -> bytes:
            raise ConnectionRefusedError

        monkeypatch.setattr(Guarded, "cat_file", away)
        with pytest.raises(TargetError, match="unreachable"):
            place.read("a")

    @pytest.mark.parametrize("count", [5, 300])
    def test_records_are_read_by_name(self, place, count):
        tiles = [f"t{i}" for i in range(count)]
        for known in (place, Location(place.url)):
            ledger = Ledger(known, FINGERPRINT)
            with pytest.raises(TargetError, match="forbidden"):
                ledger.done()
            for tile in tiles[::2]:
                ledger.put(record(tile))
            ledger.put_failed(record("t1", "failed"))
            assert list(ledger.done(expected=tiles)) == tiles[::2]
            assert list(ledger.failed(expected=iter(tiles))) == ["t1"]
            ledger.folder.write("tiles/t3.json", b"torn")
            assert list(ledger.done(expected=tiles)) == tiles[::2]
            assert "t3.json" in ledger.problems[0]

    def test_where_listing_works_it_is_believed(self, tmp_path):
        ledger = Ledger(Location(tmp_path / "out.zarr"), FINGERPRINT)
        for tile in ("t0", "t9"):
            ledger.put(record(tile))
        assert list(ledger.done(expected=["t0", "t1"])) == ["t0", "t9"]

    def test_a_target_is_made_filled_and_finished(self, place):
        domain = RasterDomain(("y", "x"), (40, 40), crs="EPSG:32632", transform=(1, 0, 0, 0, -1, 0))
        spec = template.ArraySpec("data", "float64", ("y", "x"), (40, 40), (20, 20))
        attrs = {"geopatch:fingerprint": FINGERPRINT}
        assert template.create(place, [spec], domain, attrs)
        assert not template.create(place, [spec], domain, attrs)
        values = np.random.default_rng(0).normal(size=(40, 40))
        write_region(open_array(place, "data"), Box((0, 0), (40, 40)), values)
        finish(place)
        assert existing_root(place)["attributes"][MEMBERS] == ["data", "y", "x", "spatial_ref"]
        dataset = open_target(Location(place.url))
        np.testing.assert_array_equal(dataset["data"].values, values)
        assert dataset["spatial_ref"].attrs["crs_wkt"]
        with pytest.raises(TargetError, match="may not list what there is to delete"):
            template.create(place, [spec], domain, attrs, overwrite=True)
        np.testing.assert_array_equal(open_target(Location(place.url))["data"].values, values)

    @pytest.mark.filterwarnings("ignore::geopatch_dask.UncoveredWarning")
    @pytest.mark.parametrize("suffix", ["", ".parquet"])
    def test_a_table_is_written_resumed_and_read(self, place, suffix):
        pytest.importorskip("pyarrow")
        url = f"{place.url}{suffix}"
        plan = keyed_jobs.plan_of(url)
        first = plan.run("sync", share="0/2")
        assert not first.complete
        tile = next(iter(Ledger(plan.target, plan.fingerprint).done(expected=ids(plan))))
        folder_of(plan.target, "data").delete(f"part-{tile}.parquet")
        second = keyed_jobs.plan_of(url).run("sync")
        assert second.complete
        assert second.skipped == first.summary.done - 1
        assert any(tile in problem for problem in second.problems)
        for known in (plan.target, url):
            assert keyed_jobs.same(gp.read_table(known), keyed_jobs.merged().table())

    def test_records_of_a_target_that_is_gone_are_not_walked_into(self, place):
        domain = RasterDomain(("y", "x"), (40, 40))
        spec = template.ArraySpec("data", "float64", ("y", "x"), (40, 40), (20, 20))
        Ledger(place, FINGERPRINT).folder.write("plan.json", b"{}")
        with pytest.raises(TargetError, match=r"is gone but .* is not"):
            template.create(place, [spec], domain, {"geopatch:fingerprint": FINGERPRINT})
        assert not place.exists("zarr.json")
