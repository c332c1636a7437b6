"""The secrets of stores are nowhere: not in objects, logs, reports, tasks, errors; only in use.

The target has one and the source another, each under a variable that no client reads by itself.
Each search would find them: the same search finds something that is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import rasterio
from distributed import Client
from integration.buckets import KEY, OTHER_KEY, OTHER_SECRET, SECRET, Bucket
from integration.killing import TARGET, DaskProcesses
from integration.prying import graph, log_everything, spoken, telling
from integration.s3_job import job

import geopatch_dask as gp

pytestmark = pytest.mark.integration


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What libraries say in this process, at their most talkative."""
    with contextlib.ExitStack() as stack:
        for name in ("", "botocore", "s3fs", "fsspec", "distributed", "rasterio", "asyncio"):
            stack.enter_context(caplog.at_level(logging.DEBUG, name))
        yield caplog


@pytest.fixture
def source(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same bucket for a guest who may read; without options, nobody may do anything."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv(OTHER_KEY, s3.ceph.guest[0])
    monkeypatch.setenv(OTHER_SECRET, s3.ceph.guest[1])
    s3.ceph.grant(s3.name, "GetObject", "ListBucket", "GetBucketLocation")
    return dataclasses.replace(s3, names=(OTHER_KEY, OTHER_SECRET))


def environment(s3: Bucket) -> dict[str, str]:
    """For workers, as ``source`` has it here."""
    mine = {name: os.environ[name] for name in (OTHER_KEY, OTHER_SECRET)}
    return {
        name: value
        for name, value in {**s3.env, **mine, "PYTHONUNBUFFERED": "1"}.items()
        if not name.startswith(("AWS_ACCESS", "AWS_SECRET"))
    }


def secrets(s3: Bucket) -> list[str]:
    found = [os.environ[SECRET], os.environ[OTHER_SECRET]]
    assert found == [s3.ceph.owner[1], s3.ceph.guest[1]]
    assert not set(found) & {os.environ[n] for n in os.environ if n.startswith("AWS_")}
    return found


def hidden(found: bytes | str, s3: Bucket) -> bool:
    text = found if isinstance(found, bytes) else found.encode()
    return not any(secret.encode() in text for secret in secrets(s3))


@pytest.mark.parametrize("speaks", ["fsspec", "obstore"])
def test_a_secret_is_nowhere_while_a_job_runs_and_afterwards(
    speaks: str,
    s3: Bucket,
    source: Bucket,
    local_cog: Callable[[int], Path],
    tmp_path: Path,
    said: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    s3.write("input/scene.tif", local_cog(200).read_bytes())
    spec = {"field": s3.url("input/scene.tif"), "field_options": source.options}
    spec |= {"client": speaks}
    spec |= {"target": s3.url(TARGET), "options": s3.options}
    tasks: dict[str, bytes] = {}
    with DaskProcesses(tmp_path, environment(s3)) as dask, Client(dask.address) as cluster:
        cluster.wait_for_workers(2, timeout=60)
        cluster.run(log_everything)
        cluster.run_on_scheduler(log_everything)
        plan = job(spec)
        report = plan.run(
            cluster, progress=lambda *_: tasks.update(cluster.run_on_scheduler(graph))
        )
    told = capfd.readouterr()
    logs = (tmp_path / "dask.log").read_text() + said.text + told.out + told.err
    everything = {
        "tasks": b"".join(tasks.values()),
        "keys": " ".join(tasks).encode(),
        "logs": logs.encode(),
        "plan": cloudpickle.dumps(plan),
        "report": f"{report} {report!r} {report.to_json()} {plan!r} {plan.explain()}".encode(),
        "status": f"{gp.status(s3.place(TARGET))!s}".encode(),
        **{key: s3.read(key) for key in s3.objects() if key.startswith(TARGET)},
    }
    for where, found in everything.items():
        assert hidden(found, s3), where
    # all of these were looked at
    assert "out.zarr.geopatch/" in "".join(everything)
    assert any(key.endswith("report.html") for key in everything)
    assert f"env:{SECRET}".encode() in everything["tasks"]
    assert f"env:{OTHER_SECRET}".encode() in everything["tasks"]
    assert b"tile-" in everything["keys"]
    assert "DEBUG" in logs
    assert speaks == "obstore" or TARGET in logs  # obstore logs nothing


@pytest.mark.parametrize("scheduler", ["threads", "cluster"])
def test_no_operator_tells_a_secret(
    scheduler: str,
    s3: Bucket,
    source: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: pytest.LogCaptureFixture,
) -> None:
    """One that says both aloud, of a target and a field that have nothing to do with each other."""
    values = np.zeros((64, 64), "float32")
    values[40, 40] = 7
    with rasterio.open(
        tmp_path / "in.tif", "w", width=64, height=64, count=1, dtype="float32", driver="GTiff"
    ) as file:
        file.write(values, 1)
    s3.write("input/in.tif", (tmp_path / "in.tif").read_bytes())
    field = gp.RasterField(s3.url("input/in.tif"), storage_options=source.options)
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((16, 16)))
    plan = gp.plan(field, patcher, telling, s3.place(TARGET), outer=32, chunks=32, slots=2)
    with contextlib.ExitStack() as stack:
        way: object = "threads"
        if scheduler == "cluster":
            env = {**environment(s3), "GEOPATCH_TEST_TELLS": "1"}
            dask = stack.enter_context(DaskProcesses(tmp_path, env))
            way = stack.enter_context(Client(dask.address))
        else:
            monkeypatch.setenv("GEOPATCH_TEST_TELLS", "1")
        with pytest.raises(gp.RunIncomplete, match=r"cannot log in with \*\*\*, \*\*\*") as caught:
            plan.run(way, policy=gp.Policy(log="text"))
    assert hidden(spoken(caught.value) + str(caught.value.report) + said.text, s3)
    if scheduler == "cluster":
        log = (tmp_path / "dask.log").read_text()
        assert "cannot log in with ***" in log
        assert hidden(log, s3)
    assert len([key for key in s3.objects() if "/failed/" in key]) == 1
    for key in s3.objects():
        assert hidden(s3.read(key), s3), key


def test_no_failure_tells_a_secret(
    s3: Bucket, source: Bucket, said: pytest.LogCaptureFixture
) -> None:
    """Of the store and of the source."""
    texts: list[str] = []

    def fails(call: Callable[[], object], match: str) -> None:
        with pytest.raises(gp.GeopatchError, match=match) as caught:
            call()
        texts.append(spoken(caught.value))

    values = np.zeros((64, 64))
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((16, 16)))

    def planned(place: gp.Location) -> gp.Plan:
        return gp.plan(values, patcher, telling, place, outer=32, chunks=32, slots=2)

    for speaks in ("fsspec", "obstore"):
        other = gp.Location("s3://no-such-bucket/out.zarr", s3.options, client=speaks)
        fails(lambda place=other: planned(place), "no such bucket")
        options = {**s3.options, "key": f"env:{OTHER_KEY}"}  # the secret is another's
        place = gp.Location(s3.url(TARGET), options, client=speaks)
        fails(lambda place=place: place.write("a", b"x"), "forbidden")
    for reader in ("gdal", "fsspec"):
        absent = gp.RasterField(s3.url("no.tif"), reader=reader, storage_options=source.options)
        fails(lambda absent=absent: absent.domain, "cannot be opened")
        half = {**source.options, "key": f"env:{KEY}"}
        other = gp.RasterField(s3.url("no.tif"), reader=reader, storage_options=half)
        fails(lambda other=other: other.domain, "cannot be opened")
    literal = {**s3.options, "secret": secrets(s3)[0]}
    fails(lambda: gp.Location(s3.url(TARGET), literal), "holds a credential")
    s3.ceph.kill_gateway()
    for speaks in ("fsspec", "obstore"):
        place = gp.Location(s3.url(TARGET), s3.options, client=speaks)
        fails(lambda place=place: place.read("zarr.json"), "unreachable")
    s3.ceph.start_gateway()
    assert [text for text in texts if not hidden(text, s3)] == []
    assert hidden(said.text, s3)
