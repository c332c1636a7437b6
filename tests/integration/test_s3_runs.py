"""Reconstructions on a real object store: targets, inputs, permissions.

The oracle is the same job on a local disk, compared object by object, byte for byte.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import rasterio
from integration.buckets import Bucket, Cog
from integration.killing import TARGET, check_kept, check_same, check_trusted, records
from integration.s3_job import job

import geopatch_dask as gp
from geopatch_dask.errors import GeopatchError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.testing import assert_same_bytes, read_back

pytestmark = pytest.mark.integration

SIZE = 400  # cells: 7 x 7 super-tiles of 64, the last ones cut
LocalRun = Callable[[dict[str, Any]], Path]
LAYOUTS = {"unsharded": None, "sharded": [64, 64]}


@pytest.fixture
def spec(s3: Bucket, local_cog: Callable[[int], Path]) -> dict[str, Any]:
    """The job with a local input."""
    return {"field": str(local_cog(SIZE)), "target": s3.url(TARGET), "options": s3.options}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_on_s3_has_the_bytes_of_a_local_one(
    layout: str, spec: dict[str, Any], s3: Bucket, client: Any, local_run: LocalRun
) -> None:
    spec["shards"] = LAYOUTS[layout]
    report = job(spec).run(client)
    assert report.complete
    expected = local_run(spec)
    check_same(s3, expected)
    check_trusted(s3, expected)
    assert len(records(s3)) == 49
    assert_same_bytes(read_back(s3.place(TARGET)), read_back(expected))
    before = records(s3)
    assert job(spec).run(client).skipped == 49
    check_kept(before, s3)


def test_status_reads_what_is_on_s3(spec: dict[str, Any], s3: Bucket, client: Any) -> None:
    job(spec).run(client)
    found = gp.status(s3.place(TARGET))
    assert found.complete
    assert found.counts["done"] + found.counts["empty"] == 49


def test_started_afresh_with_overwrite(spec: dict[str, Any], s3: Bucket, client: Any) -> None:
    job(spec).run(client)
    first = records(s3)
    s3.write(f"{TARGET}/data/c/9999/0", b"left over")
    report = job({**spec, "outer": [128, 128]}).run(client, overwrite=True)
    assert report.complete
    assert records(s3).items().isdisjoint(first.items())
    assert f"{TARGET}/data/c/9999/0" not in s3.objects()


def test_a_record_is_not_trusted_when_it_is_damaged(
    spec: dict[str, Any], s3: Bucket, client: Any, local_run: LocalRun
) -> None:
    """Truncated, empty, of another version, of another plan: said so, and computed again."""
    job(spec).run(client)
    keys = [key for key in sorted(s3.objects(f"{TARGET}.geopatch/")) if "/tiles/" in key][:4]
    whole = json.loads(s3.read(keys[2]))
    s3.write(keys[0], s3.read(keys[0])[:40])
    s3.write(keys[1], b"")
    s3.write(keys[2], json.dumps({**whole, "schema": 999}).encode())
    s3.write(keys[3], json.dumps({**whole, "fingerprint": "0" * 64}).encode())
    report = job(spec).run(client)
    assert report.complete
    assert report.skipped == 45
    said = "\n".join(report.problems)
    assert [Path(key).name in said for key in keys] == [True] * 4
    check_same(s3, local_run(spec))


# ---- input ---------------------------------------------------------------------------------------


def cells(field: gp.RasterField) -> Any:
    """All of a field, in odd pieces: bytes must not depend on how blocks are cut."""
    height, width = field.domain.shape
    pieces = [
        [field.read(Box((y, x), (min(y + 150, height), min(x + 270, width)))) for x in (0, 270)]
        for y in range(0, height, 150)
    ]
    return np.block(pieces)


def test_a_cog_on_s3_is_read_like_the_file(s3: Bucket, cog_on_s3: Callable[[int], Cog]) -> None:
    cog = cog_on_s3(SIZE)
    remote, local = gp.RasterField(cog.url), gp.RasterField(cog.path)
    for name in ("dtype", "may_miss", "blocks", "nodata"):
        assert getattr(remote, name) == getattr(local, name)
    for name in ("dims", "shape", "crs", "transform"):
        assert getattr(remote.domain, name) == getattr(local.domain, name)
    assert_same_bytes(cells(remote), cells(local))
    with rasterio.open(cog.path) as dataset:
        assert_same_bytes(cells(remote), dataset.read(1))
    assert "etag" in remote.identity()
    # said in the options, by way of the variables, or by both: the same file
    assert gp.RasterField(cog.url, storage_options=s3.options).identity() == remote.identity()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_a_cog_on_s3_to_s3(
    layout: str, s3: Bucket, cog_on_s3: Callable[[int], Cog], client: Any, local_run: LocalRun
) -> None:
    cog = cog_on_s3(SIZE)
    spec = {"field": cog.url, "target": s3.url(TARGET), "options": s3.options}
    spec["shards"] = LAYOUTS[layout]
    assert job(spec).run(client).complete
    expected = local_run({**spec, "field": str(cog.path)})
    assert_same_bytes(read_back(s3.place(TARGET)), read_back(expected))
    check_trusted(s3, expected)
    check_same(s3, local_run(spec))


def test_a_cog_that_was_replaced_is_another_field(
    s3: Bucket, cog_on_s3: Callable[[int], Cog]
) -> None:
    """Its ETag is part of the fingerprint, and nothing remembered of the old file is served."""
    cog = cog_on_s3(SIZE)
    spec = {"field": cog.url, "target": s3.url(TARGET), "options": s3.options}
    job(spec).run("threads")
    with rasterio.open(cog.path) as dataset:
        changed, profile = dataset.read(1) + np.float32(1), dataset.profile
    with rasterio.MemoryFile() as memory:
        with memory.open(**{**profile, "driver": "GTiff"}) as dataset:
            dataset.write(changed, 1)
        s3.write("input/scene.tif", bytes(memory.read()))
    assert_same_bytes(cells(gp.RasterField(cog.url)), changed)
    with pytest.raises(gp.PlanMismatch, match="field"):
        job(spec).run("threads")


# ---- what is not allowed -------------------------------------------------------------------------


def secret_free(error: BaseException, s3: Bucket) -> str:
    """The message, in one line and without credentials."""
    text = str(error)
    assert "\n" not in text
    for secret in (s3.ceph.owner[1], s3.ceph.guest[1]):
        assert secret not in text
    return text


@pytest.fixture
def guest(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same bucket, for a user who may do nothing in it yet."""
    monkeypatch.setenv("GEOPATCH_GUEST_KEY", s3.ceph.guest[0])
    monkeypatch.setenv("GEOPATCH_GUEST_SECRET", s3.ceph.guest[1])
    return dataclasses.replace(s3, names=("GEOPATCH_GUEST_KEY", "GEOPATCH_GUEST_SECRET"))


def test_absent_forbidden_and_unreachable_are_told_apart(
    s3: Bucket, guest: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3.place(TARGET).read("zarr.json") is None
    assert s3.place(TARGET).list() == []
    with pytest.raises(GeopatchError, match="no such bucket") as caught:
        gp.Location("s3://no-such-bucket/out.zarr", s3.options).read("zarr.json")
    secret_free(caught.value, s3)
    with pytest.raises(GeopatchError, match="forbidden") as caught:
        guest.place(TARGET).write("a", b"x")
    secret_free(caught.value, s3)
    with pytest.raises(GeopatchError, match="forbidden") as caught:
        guest.place(TARGET).list()
    secret_free(caught.value, s3)
    monkeypatch.setenv("GEOPATCH_WRONG_SECRET", "not-the-secret")
    wrong = dataclasses.replace(s3, names=(s3.names[0], "GEOPATCH_WRONG_SECRET"))
    with pytest.raises(GeopatchError, match="forbidden") as caught:
        wrong.place(TARGET).write("a", b"x")
    assert "not-the-secret" not in secret_free(caught.value, s3)
    s3.ceph.kill_gateway()
    with pytest.raises(GeopatchError, match="unreachable") as caught:
        s3.place(TARGET).read("zarr.json")
    secret_free(caught.value, s3)


def test_a_target_that_may_not_be_written_is_refused_before_any_work(
    guest: Bucket, spec: dict[str, Any]
) -> None:
    guest.ceph.grant(guest.name, "GetObject", "ListBucket")
    with pytest.raises(GeopatchError, match="forbidden") as caught:
        job({**spec, "options": guest.options}).run("threads")
    secret_free(caught.value, guest)
    assert guest.objects() == {}


def test_no_secret_is_stored_beside_the_target(
    spec: dict[str, Any], s3: Bucket, client: Any
) -> None:
    job(spec).run(client)
    keys = s3.objects()
    assert any(key.endswith("plan.json") for key in keys)
    for key in keys:
        data = s3.read(key)
        assert s3.ceph.owner[1].encode() not in data, key
        assert s3.ceph.owner[0].encode() not in data, key


def test_an_opened_target_travels_without_its_secret(
    spec: dict[str, Any], s3: Bucket, client: Any, local_run: LocalRun
) -> None:
    """Workers resolve credentials themselves: the graph of what ``gp.open`` gives holds none."""
    job(spec).run(client)
    opened = gp.open(s3.place(TARGET))
    sent = cloudpickle.dumps(opened.data)
    assert s3.ceph.owner[1].encode() not in sent
    assert s3.ceph.owner[0].encode() not in sent
    assert_same_bytes(opened.to_numpy(), read_back(local_run(spec)))
