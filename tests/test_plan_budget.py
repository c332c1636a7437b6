"""What a plan costs on given machines."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_fields import Endless
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.planning.memory import MemoryModel
from geopatch_dask.planning.nodes import Rates, forecast, least_slot, parse_nodes, slots_that_fit
from geopatch_dask.store.jobs import LOOK

GIB = 1 << 30


def double(x: Any) -> Any:
    return x * 2


def planned(target: Any = None, seconds: float = 0.01, **options: Any) -> gp.Plan:
    patcher = gp.Patcher(gp.Rectangular((64, 64)), gp.RegularStride((48, 48)), gp.Hann())
    where = {"outer": 256, "chunks": 128, "memory_limit": "4 GiB", "slots": 2}
    target = MemoryStore() if target is None else target
    plan = gp.plan(Endless(2048, 1024), patcher, double, target, **where | options)
    return replace(plan, seconds_per_patch=seconds)  # not what this machine happens to take


PLAN = planned()
RUN = PLAN.explain().numbers["patches_run"]


def test_the_sum_by_hand() -> None:
    nodes = gp.Nodes(2, cores=3, memory="64 GiB", price=1.5, speed=0.5)
    rates = Rates(
        startup=5, supertile=0.1, task=0.1, read=1e-8, aggregate=2e-8, write=3e-8, flush=0.02
    )
    found = forecast(PLAN, nodes, RUN, rates)
    numbers = PLAN.explain().numbers
    operator = 0.01 * RUN / 0.5
    around = 1e-8 * numbers["bytes_read"] + 2e-8 * RUN * 64 * 64 + 3e-8 * numbers["bytes_written"]
    tiles, objects = 8 * 4, 16 * 8
    assert (PLAN.n_supertiles, numbers["objects"]) == (tiles, objects)
    assert found.work == pytest.approx(
        {"operator": operator, "around": around / 0.5 + 0.1 * tiles, "store": 0.02 * objects}
    )
    assert (found.slots, found.waves, found.limited_by) == (6, 6, "cores")
    mean = sum(found.work.values()) / tiles
    assert 6 * mean > 0.1 * tiles
    assert found.seconds == pytest.approx(5 + 6 * mean)
    assert found.bound == "slots"
    assert found.node_hours == pytest.approx(2 * found.seconds / 3600)
    assert found.node_price == pytest.approx(1.5 * found.node_hours)
    assert found.requests is None
    assert found.request_price is None


def test_what_bounds_the_wall_time() -> None:
    nodes = gp.Nodes(2, cores=3, memory="64 GiB")
    slow = forecast(PLAN, replace(nodes, bandwidth="100 kB"), RUN)
    moved = sum(PLAN.explain().numbers[f"bytes_{what}"] for what in ("read", "written"))
    assert slow.bound == "bandwidth"
    assert slow.seconds == pytest.approx(Rates().startup + moved / 200_000)
    many = forecast(PLAN, nodes, RUN, Rates(task=10.0))
    assert (many.bound, many.seconds) == ("scheduler", 320 + Rates().startup)


def test_memory_decides_how_many_slots_fit() -> None:
    slot = math.ceil(PLAN.memory.total / MemoryModel().share)
    assert slot == least_slot(PLAN.memory.total)
    node = gp.Nodes(1, cores=8, memory=5 * slot + 1, slot_memory=slot)
    found = PLAN.explain(node)
    assert found.numbers["nodes"]["slots_per_node"] == 5
    assert found.numbers["nodes"]["limited_by"] == "memory"
    assert "5 slots each (memory allows no more: " in str(found)
    assert "; 3 cores stay idle)" in str(found)
    assert "8 slots each (one per core, " in str(PLAN.explain(replace(node, memory=8 * slot)))
    with pytest.raises(
        gp.MemoryPlanError, match="take larger nodes, or plan with a smaller memory"
    ):
        PLAN.explain(replace(node, memory=slot - 1))
    with pytest.raises(gp.MemoryPlanError, match="is too small for this plan, which needs"):
        PLAN.explain(replace(node, slot_memory=slot - 1))


def test_a_slot_is_given_what_is_asked_for() -> None:
    """Not what the plan needs of it: a job of 4 GiB leaves no room for another beside it."""
    node = gp.Nodes(1, cores=16, memory="8 GB", job_memory="256 MiB")
    found = PLAN.explain(node)
    told = found.numbers["nodes"]
    assert (told["slots"], told["slot_memory"], told["limited_by"]) == (1, 4 * GIB, "memory")
    assert "1 slot each (memory allows no more: 4.0 GiB a slot, 256.0 MiB beside those" in str(
        found
    )
    assert PLAN.explain(replace(node, memory="8.5 GiB")).numbers["nodes"]["slots"] == 2


def test_no_more_slots_than_are_asked_for() -> None:
    """Nodes that get none of them cost nothing."""
    node = gp.Nodes(4, cores=4, memory="64 GiB", price=1.0, workers=6)
    found = PLAN.explain(node)
    told = found.numbers["nodes"]
    assert (told["slots_per_node"], told["slots"], told["limited_by"]) == (4, 6, "workers")
    assert told["node_hours"] == pytest.approx(2 * told["seconds"] / 3600)
    assert "4 slots each (6 are asked for, 4.0 GiB a slot)" in str(found)


def test_slots_of_several_cores() -> None:
    node = gp.Nodes(1, cores=64, memory="256 GiB", slot_cores=8)
    found = PLAN.explain(node)
    assert found.numbers["nodes"]["slots"] == 8
    assert "8 slots each (one per 8 cores, 4.0 GiB a slot)" in str(found)
    with pytest.raises(gp.OptionError, match="a job of 4 slots needs 32 cores, a node has 16"):
        PLAN.explain(replace(node, cores=16, job_slots=4))


@given(
    slot=st.integers(1, 1 << 40),
    cores=st.integers(1, 256),
    memory=st.integers(1, 1 << 42),
    each=st.integers(1, 9),
    together=st.integers(1, 9),
    beside=st.integers(0, 1 << 30),
)
def test_slots_fill_a_node_and_no_more(
    slot: int, cores: int, memory: int, each: int, together: int, beside: int
) -> None:
    node = gp.Nodes(1, cores, memory, slot_cores=each, job_slots=together, job_memory=beside)
    job = together * slot + beside

    def fits(jobs: int) -> bool:
        return jobs * job <= memory and jobs * together * each <= cores

    try:
        fit, limited = slots_that_fit(slot, node)
    except (gp.MemoryPlanError, gp.OptionError):
        assert not fits(1)
        return
    jobs, rest = divmod(fit, together)
    assert rest == 0
    assert fits(jobs)
    assert not fits(jobs + 1)
    assert (limited == "memory") == ((jobs + 1) * together * each <= cores)


@given(count=st.integers(1, 64), more=st.integers(1, 64), cores=st.integers(1, 64))
def test_more_nodes_are_never_slower_and_never_cheaper(count: int, more: int, cores: int) -> None:
    few = forecast(PLAN, gp.Nodes(count, cores, "1 TiB", price=1.0), RUN)
    many = forecast(PLAN, gp.Nodes(count + more, cores, "1 TiB", price=1.0), RUN)
    assert many.seconds <= few.seconds
    assert few.waves >= many.waves >= 1
    # Work does not shrink by sharing it: node-hours are at least the work.
    assert many.node_hours * 3600 * cores >= sum(many.work.values()) * (1 - 1e-9)


def test_requests_have_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    from geopatch_dask.execute import api

    monkeypatch.setenv("AWS_REGION", "r")
    monkeypatch.setattr(api, "preflight", lambda place: type("Found", (), {"location": place}))
    place = gp.Location("s3://bucket/out.zarr", {"key": "env:K", "secret": "env:S"}, None, "fsspec")
    monkeypatch.setenv("K", "k")
    monkeypatch.setenv("S", "s")
    plan = planned(place)
    nodes = gp.Nodes(1, 2, "8 GiB", price=2.0, put_price=0.005, get_price=0.0004)
    found = plan.explain(nodes)
    told = found.numbers["nodes"]
    asked = told["requests"]
    beats = int(told["seconds"] / 2)
    written = beats - beats // LOOK  # in place of some heartbeats, the target is looked at
    assert asked["PUT"] == found.numbers["requests"]["PUT"] + written
    price = 5e-6 * (asked["PUT"] + asked["LIST"]) + 4e-7 * (asked["GET"] + asked["HEAD"])
    assert told["request_price"] == pytest.approx(price)
    assert f"{told['node_price']:.2g} for nodes, {price:.2g} for requests" in str(found)
    # one after another, each 20 ms; objects ten at a time
    requests = found.numbers["requests"]
    alone = 32 * (1 + 5 + 1)  # PUT, GET and HEAD of a super-tile, its objects apart
    assert told["work"]["store"] == pytest.approx(0.02 * (alone + 128 / 10))
    assert "requests" in dict(found.lines)
    assert f"{requests['GET']:,} GET" in dict(found.lines)["requests"]


def test_nodes_by_their_flag() -> None:
    nodes = parse_nodes("4, cores=32, memory=256 GiB, price=1.2, bandwidth=1GB, speed=.8")
    assert nodes == gp.Nodes(4, 32, 256 * GIB, 1.2, 10**9, 0.8)
    assert parse_nodes("count=1,cores=2,memory=7") == gp.Nodes(1, 2, 7)
    asked = parse_nodes("1,cores=8,memory=9,slot_memory=2GiB,slot_cores=2,job_slots=3,workers=4")
    assert asked == gp.Nodes(1, 8, 9, slot_memory=2 * GIB, slot_cores=2, job_slots=3, workers=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4", "says no cores"),
        ("4,cores=32", "says no memory"),
        ("4,cores=32,memory=1GiB,pric=2", "'pric=2' is none of cores=, memory=, price="),
        ("many,cores=32,memory=1GiB", "invalid literal for int"),
        ("cores=16", "the number of nodes comes first, as in --nodes 4,cores=16,memory=64GiB"),
        ("cores=16,memory=64GiB,count=4", "the number of nodes comes first"),
        ("4,cores=32,memory=lots", "'lots' is no number of bytes"),
        ("0,cores=32,memory=1GiB", "count must be at least 1, got 0"),
        ("4,cores=32,memory=1GiB,price=-1", "price must not be negative"),
        ("4,cores=32,memory=1GiB,speed=0", "speed must be positive"),
        ("4,cores=32,memory=1GiB,speed=nan", "speed must be positive"),
        ("4,cores=32,memory=1GiB,slot_cores=0", "slot_cores must be at least 1, got 0"),
        ("4,cores=32,memory=1GiB,workers=0", "workers must be at least 1, got 0"),
    ],
)
def test_nodes_that_make_no_sense(text: str, said: str) -> None:
    with pytest.raises(gp.OptionError, match=said):
        parse_nodes(text)


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import rasterio

    from geopatch_dask.cli import main

    shape = {"driver": "GTiff", "height": 200, "width": 200, "count": 1, "dtype": "float32"}
    with rasterio.open(tmp_path / "s.tif", "w", **shape) as file:
        file.write(np.ones((1, 200, 200), "f4"))
    command = ["plan", "--field", str(tmp_path / "s.tif"), "--size", "64", "--step", "48"]
    command += [
        "--operator",
        "numpy:sqrt",
        "--target",
        str(tmp_path / "o.zarr"),
        "--kind",
        "raster",
    ]
    assert main([*command, "--nodes", "2,cores=4,memory=16GiB,price=3"]) == 0
    told = capsys.readouterr().out
    assert "2 of 4 cores and 16.0 GiB: 4 slots each (one per core, " in told
    assert "\nnode-hours  " in told
    assert " for nodes" in told
    assert main([*command, "--nodes", "2"]) == 2
    assert "says no cores: write 4,cores=32,memory=256GiB" in capsys.readouterr().err


KINDS = {
    "slurm": ({"kind": "slurm", "interface": "lo"}, 1, 256 << 20),
    "pbs": ({"kind": "pbs", "interface": "lo", "processes": 3, "cores": 2}, 3, 256 << 20),
    "kubernetes": ({"kind": "kubernetes", "cpu": 2}, 1, 512 << 20),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forecast_is_of_the_jobs_that_will_be_asked_for(kind: str) -> None:
    """Cores and bytes of what is placed, as the cluster itself would ask for them."""
    from geopatch_dask.clusters.core import on_nodes
    from geopatch_dask.clusters.jobqueue import job_options
    from geopatch_dask.clusters.kubernetes import pods_of
    from geopatch_dask.clusters.pods import cluster_spec
    from geopatch_dask.clusters.request import Request

    pytest.importorskip("dask_jobqueue")
    words, together, beside = KINDS[kind]
    options = {word: value for word, value in words.items() if word != "kind"}
    nodes = on_nodes(gp.Nodes(2, 16, "64 GiB"), kind, workers=8, memory="4 GiB", **options)
    assert (nodes.workers, nodes.slot_memory, nodes.job_slots) == (8, 4 * GIB, together)
    assert nodes.job_memory == beside
    mebibytes = (nodes.job_slots * int(nodes.slot_memory or 0) + int(nodes.job_memory)) >> 20
    cores = nodes.job_slots * nodes.slot_cores
    request = Request(workers=8, memory=4 * GIB)
    if kind == "kubernetes":
        body = cluster_spec(request, pods_of(options | {"image": "i"}), 4 * GIB)
        asked = body["spec"]["worker"]["spec"]["containers"][0]["resources"]["requests"]
        assert asked == {"cpu": str(cores), "memory": f"{mebibytes}Mi"}
    elif kind == "slurm":
        job = job_options(kind, request, options)
        assert (job["job_cpu"], job["job_mem"]) == (cores, f"{mebibytes}M")
    else:
        job = job_options(kind, request, options)
        assert job["resource_spec"] == f"select=1:ncpus={cores}:mem={mebibytes}mb"


@pytest.mark.parametrize(
    ("flags", "nodes", "told"),
    [
        (
            ["--memory-limit", "4GiB"],
            "1,cores=16,memory=8GB",
            "1 slot each (memory allows no more",
        ),
        (["--set", "cluster.cores=8"], "1,cores=64,memory=256GiB", "8 slots each (2 are asked for"),
        (["--set", "cluster.cores=8", "--workers", "9"], "1,cores=64,memory=256GiB", "one per 8 c"),
        (["--workers", "3"], "4,cores=4,memory=64GiB", "4 slots each (3 are asked for"),
        (["--workers", "3"], "4,cores=4,memory=64GiB,workers=99", "4 slots each (one per core"),
    ],
)
def test_the_command_line_forecasts_its_own_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], nodes: str, told: str
) -> None:
    import rasterio

    from geopatch_dask.cli import main

    pytest.importorskip("dask_jobqueue")
    shape = {"driver": "GTiff", "height": 200, "width": 200, "count": 1, "dtype": "float32"}
    with rasterio.open(tmp_path / "s.tif", "w", **shape) as file:
        file.write(np.ones((1, 200, 200), "f4"))
    command = ["plan", "--field", str(tmp_path / "s.tif"), "--size", "64", "--step", "48"]
    command += ["--operator", "numpy:sqrt", "--target", str(tmp_path / "o.zarr")]
    command += ["--cluster", "slurm", "--set", "cluster.interface=lo", *flags, "--nodes", nodes]
    assert main(command) == 0
    assert told in capsys.readouterr().out
