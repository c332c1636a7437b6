"""Bundles: fewer requests, the same records; nothing is believed that the listing contradicts."""

from __future__ import annotations

import json
import pickle
import urllib.request
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sample_s3 import VALUES, options, process

import geopatch_dask as gp
from geopatch_dask.execute.attempt.tile import run_tile
from geopatch_dask.execute.target.prepare import prepare
from geopatch_dask.patch.boxes import Box
from geopatch_dask.store import bundles
from geopatch_dask.store import records as records_module
from geopatch_dask.store.backends import forget_clients
from geopatch_dask.store.bundles import BUNDLES, Bundler, digest
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger, Record

FINGERPRINT = "0123456789abcdef"
COUNT = 12


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bundles, "FEW", 6)
    monkeypatch.setattr(records_module, "FEW", 6)
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield
    forget_clients()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with process("counting_s3.py", "bucket") as found:
        yield found


@pytest.fixture(params=["fsspec", "obstore"])
def ledger(port: int, request: pytest.FixtureRequest) -> Ledger:
    if request.param == "obstore":
        pytest.importorskip("obstore")
    name = f"{request.param}-{uuid.uuid4().hex}"
    place = Location(f"s3://bucket/{name}.zarr", options(port), client=request.param)
    return Ledger(place, FINGERPRINT)


def asked(port: int) -> dict[str, list[str]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_requests") as answer:
        return json.loads(answer.read())


def record(ordinal: int, **more: Any) -> Record:
    box = Box((ordinal, 0), (ordinal + 1, 8))
    return Record(
        id=f"y{ordinal}-{ordinal + 1}_x0-8",
        ordinal=ordinal,
        fingerprint=FINGERPRINT,
        layout="a",
        box=box,
        state="done",
        seconds={"read": 0.25},
        **more,
    )


def written(ledger: Ledger, count: int = COUNT) -> list[Record]:
    """Records in the store, and bundles of them."""
    records = [record(i) for i in range(count)]
    with Bundler(ledger.folder) as bundler:
        for item in records:
            ledger.put(item)
            bundler.add(zlib.compress(item.to_bytes()))
    return records


def test_a_bundle_saves_the_requests(ledger: Ledger, port: int):
    records = written(ledger)
    asked(port)
    assert list(ledger.done().values()) == records
    assert not ledger.problems
    found = asked(port)
    # One for the bundle, and s3fs may look at it first.
    assert len(found["GET"]) + len(found.get("HEAD", ())) <= 2
    assert len(found["LIST"]) <= 4


def test_few_are_not_bundled(ledger: Ledger):
    assert list(ledger.done().values()) == []
    records = written(ledger, bundles.FEW - 1)
    assert ledger.folder.list(BUNDLES) == []
    assert list(ledger.done().values()) == records


def test_many_are_written_as_they_come(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bundles, "MANY", 10)
    monkeypatch.setattr(bundles, "FEW", 1)
    with Bundler(ledger.folder) as bundler:
        for ordinal in range(10):
            bundler.add(zlib.compress(record(ordinal).to_bytes()))
        assert bundler._writing is not None
        bundler._writing.join(30)
        assert len(ledger.folder.list(BUNDLES)) == 1
    assert len(ledger.folder.list(BUNDLES)) == 1


def test_the_object_counts_not_its_copy(ledger: Ledger):
    """Torn, replaced or deleted since: as if there were no bundle."""
    records = written(ledger)
    raw = records[1].to_bytes()
    ledger.folder.write(f"tiles/{records[0].id}.json", raw[:-7])
    ledger.folder.write(f"tiles/{records[1].id}.json", b"")
    newer = record(2, patches=7)
    ledger.put(newer)
    ledger.delete(records[3].id)
    found = ledger.done()
    assert list(found.values()) == [newer, *records[4:]]
    assert len(ledger.problems) == 2
    assert all("torn" in text or "empty" in text for text in ledger.problems)


def test_a_copy_under_another_name_is_no_record(ledger: Ledger):
    """The listing vouches for bytes; the record says whose they are."""
    records = written(ledger)
    ledger.folder.write(f"tiles/{records[5].id}.json", records[6].to_bytes())
    found = ledger.done()
    assert records[5].id not in found
    assert found[records[6].id] == records[6]
    assert "holds the record of super-tile" in ledger.problems[0]


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"schema": 1, "records": ["{', b"[1]", b'{"schema": 2, "records": []}', b"\xff\xfe"],
    ids=["empty", "torn", "a list", "another version", "not text"],
)
def test_a_damaged_bundle_costs_requests_only(ledger: Ledger, damage: bytes):
    records = written(ledger)
    (name,) = ledger.folder.list(BUNDLES)
    ledger.folder.write(name, damage)
    assert list(ledger.done().values()) == records
    assert not ledger.problems


def test_a_bundle_of_nonsense_is_passed_over(ledger: Ledger):
    records = written(ledger)
    texts = [1, None, "x", {"a": 1}, records[0].to_bytes().decode()[:-1]]
    text = json.dumps({"schema": 1, "records": texts})
    ledger.folder.write(f"{BUNDLES}/0.json", text.encode())
    assert list(ledger.done().values()) == records


def test_a_listing_tells_digests(ledger: Ledger):
    raw = record(0).to_bytes()
    ledger.folder.write("tiles/a.json", raw)
    assert ledger.folder.digests("tiles") == {"tiles/a.json": digest(raw)}


def test_a_run_bundles_what_it_records(ledger: Ledger, port: int):
    """Another run asks for no record by name, and finds all of them."""
    field = gp.ArrayField(np.arange(32.0 * 32).reshape(32, 32))
    patcher = gp.Patcher(gp.Rectangular(8), gp.RegularStride(8), gp.Boxcar(), gp.Mean())
    plan = gp.plan(field, patcher, np.negative, ledger.location, outer=8, chunks=8)
    assert plan.run("threads").summary.done == 16
    asked(port)
    again = plan.run("threads")
    assert again.complete
    assert again.skipped == 16
    assert not [name for name in asked(port)["GET"] if "/tiles/" in name]


def test_an_outcome_stays_small(ledger: Ledger):
    field = gp.ArrayField(np.ones((16, 16)))
    patcher = gp.Patcher(gp.Rectangular(8), gp.RegularStride(8), gp.Boxcar(), gp.Mean())
    plan = gp.plan(field, patcher, np.negative, ledger.location, outer=8, chunks=8)
    prepare(plan)
    outcome = run_tile(plan, 0)
    raw = ledger.location.sibling(".geopatch").read(
        f"{plan.fingerprint[:8]}/tiles/{outcome.id}.json"
    )
    assert zlib.decompress(outcome.record) == raw
    assert len(pickle.dumps(outcome)) <= 1024


def test_a_directory_tells_none(tmp_path):
    ledger = Ledger(Location(tmp_path / "out.zarr"), FINGERPRINT)
    records = written(ledger)
    assert set(ledger.folder.digests("tiles").values()) == {None}
    assert list(ledger.done().values()) == records
