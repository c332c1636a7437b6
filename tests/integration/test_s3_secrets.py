"""The secret of a store is nowhere: not in objects, logs, reports, tasks, errors; only in use.

Each search would find it: the same search finds something that is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from distributed import Client
from integration.buckets import SECRET, Bucket
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


def secret(s3: Bucket) -> str:
    found = os.environ[SECRET]
    assert found == s3.ceph.owner[1]
    return found


@pytest.mark.parametrize("speaks", ["fsspec", "obstore"])
def test_a_secret_is_nowhere_while_a_job_runs_and_afterwards(
    speaks: str,
    s3: Bucket,
    local_cog: Callable[[int], Path],
    tmp_path: Path,
    said: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    s3.write("input/scene.tif", local_cog(200).read_bytes())
    spec = {"field": s3.url("input/scene.tif"), "field_options": s3.options, "client": speaks}
    spec |= {"target": s3.url(TARGET), "options": s3.options}
    tasks: dict[str, bytes] = {}
    env = {**s3.env, "PYTHONUNBUFFERED": "1"}
    with DaskProcesses(tmp_path, env) as dask, Client(dask.address) as cluster:
        cluster.wait_for_workers(2, timeout=60)
        cluster.run(log_everything)
        cluster.run_on_scheduler(log_everything)
        plan = job(spec)
        report = plan.run(
            cluster, progress=lambda *_: tasks.update(cluster.run_on_scheduler(graph))
        )
    hidden = secret(s3)
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
        assert hidden.encode() not in found, where
    # all of these were looked at
    assert "out.zarr.geopatch/" in "".join(everything)
    assert any(key.endswith("report.html") for key in everything)
    assert f"env:{SECRET}".encode() in everything["tasks"]
    assert b"tile-" in everything["keys"]
    assert "DEBUG" in logs
    assert speaks == "obstore" or TARGET in logs  # obstore logs nothing


def test_no_failure_tells_a_secret(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    """Of the store, of the source, and of an operator that says it aloud."""
    hidden, texts = secret(s3), []

    def fails(call: Callable[[], object], match: str) -> None:
        with pytest.raises(gp.GeopatchError, match=match) as caught:
            call()
        texts.append(spoken(caught.value))

    values = np.zeros((64, 64))
    values[40, 40] = 7
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((16, 16)))

    def planned(place: gp.Location) -> gp.Plan:
        return gp.plan(values, patcher, telling, place, outer=32, chunks=32, slots=2)

    plan = planned(s3.place(TARGET))
    monkeypatch.setenv("GEOPATCH_TEST_TELLS", "1")
    fails(lambda: plan.run("threads"), "RuntimeError: cannot log in with")
    monkeypatch.delenv("GEOPATCH_TEST_TELLS")
    for speaks in ("fsspec", "obstore"):
        other = gp.Location("s3://no-such-bucket/out.zarr", s3.options, client=speaks)
        fails(lambda place=other: planned(place), "no such bucket")
        monkeypatch.setenv("GEOPATCH_OTHER_KEY", s3.ceph.guest[0])
        options = {**s3.options, "key": "env:GEOPATCH_OTHER_KEY"}  # the secret is another's
        place = gp.Location(s3.url(TARGET), options, client=speaks)
        fails(lambda place=place: place.write("a", b"x"), "forbidden")
    absent = gp.RasterField(s3.url("no.tif"), storage_options=s3.options)
    fails(lambda: absent.domain, "cannot be opened")
    literal = {**s3.options, "secret": hidden}
    fails(lambda: gp.Location(s3.url(TARGET), literal), "holds a credential")
    s3.ceph.kill_gateway()
    for speaks in ("fsspec", "obstore"):
        place = gp.Location(s3.url(TARGET), s3.options, client=speaks)
        fails(lambda place=place: place.read("zarr.json"), "unreachable")
    s3.ceph.start_gateway()
    assert [text for text in texts if hidden in text] == []
    assert hidden not in said.text
    records = [key for key in s3.objects() if "/failed/" in key]
    assert len(records) == 1
    for key in s3.objects():
        assert hidden.encode() not in s3.read(key), key
