"""Permissions, and what was damaged behind our back, on a real object store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from integration.buckets import Bucket
from integration.killing import TARGET, check_kept, check_same, check_trusted, records
from integration.s3_job import PAUSE, job

import geopatch_dask as gp
from geopatch_dask.cli import main

pytestmark = pytest.mark.integration

SIZE = 200  # cells: 4 x 4 super-tiles of 64
LocalRun = Callable[[dict[str, Any]], Path]


@pytest.fixture
def guest(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same bucket, for a user who may do nothing in it yet."""
    monkeypatch.setenv("GEOPATCH_GUEST_KEY", s3.ceph.guest[0])
    monkeypatch.setenv("GEOPATCH_GUEST_SECRET", s3.ceph.guest[1])
    return dataclasses.replace(s3, names=("GEOPATCH_GUEST_KEY", "GEOPATCH_GUEST_SECRET"))


@pytest.fixture
def spec(s3: Bucket, local_cog: Callable[[int], Path]) -> dict[str, Any]:
    return {"field": str(local_cog(SIZE)), "target": s3.url(TARGET), "options": s3.options}


# ---- permissions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["fsspec", "obstore"])
def test_without_permission_to_list(
    speaks: str,
    guest: Bucket,
    spec: dict[str, Any],
    local_run: LocalRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run in parts, resume, watch from elsewhere, wait: all without a single listing."""
    guest.ceph.grant(guest.name, "GetObject", "PutObject", "DeleteObject")
    spec |= {"options": guest.options, "client": speaks}
    place = guest.place(TARGET)
    assert not job(spec).run("threads", share="0/4").complete
    before = records(guest)
    assert len(before) == 4
    assert gp.status(place).counts == {"done": 4, "empty": 0, "failed": 0, "pending": 12}

    monkeypatch.setenv(PAUSE, "0.05")
    plan = job(spec)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(plan.run, "threads")
        attached = gp.attach(place)
        while not attached.alive:
            assert not running.done()
            time.sleep(0.02)
        assert not attached.complete
        waited = attached.wait(timeout=60)
        report = running.result(60)
    assert report.complete
    assert report.skipped == 4
    assert waited.to_json() == report.to_json()
    assert attached.runs == []
    check_kept(before, guest)
    check_same(guest, local_run(spec), but="zarr.json")  # it also names what cannot be listed
    check_trusted(guest, local_run(spec))
    assert gp.status(place).complete
    assert job(spec).run("threads").skipped == 16


def test_without_permission_to_list_a_run_is_cancelled_from_elsewhere(
    guest: Bucket, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.ceph.grant(guest.name, "GetObject", "PutObject", "DeleteObject")
    monkeypatch.setenv(PAUSE, "0.2")
    plan = job({**spec, "options": guest.options})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(plan.run, "threads", on_failure="return")
        while not records(guest):
            time.sleep(0.02)
        gp.attach(guest.place(TARGET)).cancel(timeout=30)
        report = running.result(30)
    assert report.cancelled
    assert 1 <= report.summary.done < 16


@pytest.mark.parametrize("speaks", ["fsspec", "obstore"])
@pytest.mark.parametrize(
    ("granted", "lacking"),
    [
        (("GetObject", "ListBucket", "DeleteObject"), "write"),
        (("GetObject", "PutObject", "ListBucket"), "delete"),
        ((), "write"),
    ],
    ids=["no write", "no delete", "nothing"],
)
def test_a_permission_that_a_run_needs_is_missed_before_anything_is_computed(
    speaks: str,
    granted: tuple[str, ...],
    lacking: str,
    guest: Bucket,
    spec: dict[str, Any],
) -> None:
    if granted:
        guest.ceph.grant(guest.name, *granted)
    with pytest.raises(gp.TargetError, match=f"a run must {lacking} objects") as caught:
        job({**spec, "options": guest.options, "client": speaks}).run("threads")
    text = str(caught.value)
    assert caught.value.kind == "forbidden"
    assert "\n" not in text
    assert "forbidden" in text
    assert "allow GetObject, PutObject and DeleteObject there" in text
    assert [key for key in guest.objects() if "/.probe-" not in key] == []


# ---- what happened to the store ------------------------------------------------------------------


def test_a_chunk_that_is_deleted_is_found_and_mended(
    spec: dict[str, Any], s3: Bucket, client: Any, local_run: LocalRun
) -> None:
    job(spec).run(client)
    plan, place = job(spec), s3.place(TARGET)
    assert gp.verify(plan).ok
    before = records(s3)
    lost = f"{TARGET}/data/c/3/2"
    s3.ceph.admin.delete_object(Bucket=s3.name, Key=lost)

    found = gp.verify(plan, on_mismatch="return", repair=True)
    assert not found.ok
    (wrong,) = found.mismatches
    assert (wrong.cause, wrong.record) == ("stored", "y64-128_x64-128")
    assert lost.endswith(wrong.key)
    assert not gp.status(place).complete

    again = job(spec).run(client)
    assert again.complete
    assert (again.skipped, again.summary.done) == (15, 1)
    before.pop(wrong.record)
    check_kept(before, s3)
    check_same(s3, local_run(spec))
    assert gp.verify(plan).ok


def test_a_chunk_that_is_swapped_for_another_is_found(
    spec: dict[str, Any], s3: Bucket, client: Any
) -> None:
    job(spec).run(client)
    s3.write(f"{TARGET}/data/c/1/1", s3.read(f"{TARGET}/data/c/2/2"))
    with pytest.raises(gp.VerificationError, match="y0-64_x0-64"):
        gp.verify(job(spec), windows=0)


def test_the_doctor_on_s3(
    spec: dict[str, Any],
    s3: Bucket,
    guest: Bucket,
    client: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All is well; then a torn record is found, and mended; then somebody may not list."""
    job(spec).run(client)
    place = s3.place(TARGET)
    found = gp.doctor(place, client=client)
    assert found.ok, str(found)
    assert "this process and 2 workers may write, read, list and delete beside it" in str(found)
    assert main(["doctor", s3.url(TARGET)]) == 0
    assert "16 of 16 super-tiles are recorded as done" in capsys.readouterr().out

    torn = next(key for key in sorted(s3.objects(f"{TARGET}.geopatch/")) if "/tiles/" in key)
    name = Path(torn).stem
    s3.write(torn, s3.read(torn)[:50])
    assert name in "".join(finding.what for finding in gp.doctor(place).warnings)
    mended = gp.doctor(place, repair=True).findings
    assert name in "".join(finding.what for finding in mended if finding.repaired)
    assert torn not in s3.objects()
    assert job(spec).run(client).summary.done == 1
    assert gp.doctor(place).ok

    s3.ceph.grant(s3.name, "GetObject", "PutObject", "DeleteObject")
    said = gp.doctor(guest.place(TARGET))
    assert list(said.errors) == []
    assert any("list" in finding.what for finding in said.warnings)
