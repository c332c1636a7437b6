"""gp.doctor: what crashes and helping hands leave is found, named, mended where that is safe."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keyed_jobs
import numpy as np
import pytest
import sample_operators as ops
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.cli import main
from geopatch_dask.execute.check.diagnosis import Finding
from geopatch_dask.store.jobs import Heartbeat, RunState
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import read_back

PATCHER = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())
FIELD = gp.ArrayField(np.random.default_rng(3).random((60, 60)))


@pytest.fixture
def plan(tmp_path: Path) -> gp.Plan:
    return planned(tmp_path / "out.zarr")


def planned(target: Any, outer: int = 20) -> gp.Plan:
    found = gp.plan(FIELD, PATCHER, ops.mixing, target, outer=(outer, outer), chunks=(10, 10))
    found.run("sync")
    return found


def state(plan: gp.Plan) -> Path:
    return Path(Ledger(plan.target, plan.fingerprint).folder.url)


def bad(found: gp.Diagnosis) -> list[str]:
    return [finding.what for finding in (*found.errors, *found.warnings)]


def test_what_is_right_is_said(plan: gp.Plan) -> None:
    found = gp.doctor(plan=plan)
    assert bad(found) == []
    assert found.ok
    text = str(found)
    assert "9 of 9 super-tiles are recorded as done, the target is complete" in text
    assert "numpy" in text
    assert "may write, read, list and delete" in text


def test_it_leaves_nothing_behind(tmp_path: Path, plan: gp.Plan) -> None:
    before = sorted(tmp_path.rglob("*"))
    gp.doctor(plan.target)
    gp.doctor(tmp_path / "nothing.zarr")
    gp.doctor(plan.target, repair=True)
    assert sorted(tmp_path.rglob("*")) == before


# ---- what is left behind -----------------------------------------------------------------------


def torn_record(plan: gp.Plan) -> str:
    (state(plan) / "tiles" / "y0-20_x0-20.json").write_bytes(b"{")
    return "a record cannot be trusted"


def record_of_another_plan(plan: gp.Plan) -> str:
    path = state(plan) / "tiles" / "y0-20_x0-20.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "0" * 64}))
    return "a record cannot be trusted .*of plan 00000000"


def given_up_and_done(plan: gp.Plan) -> str:
    ledger = Ledger(plan.target, plan.fingerprint)
    path = state(plan) / "tiles" / "y0-20_x0-20.json"
    error = {"type": "OSError", "message": "no", "traceback": ""}
    text = json.dumps({**json.loads(path.read_text()), "state": "failed", "error": error})
    ledger.folder.write("failed/y0-20_x0-20.json", text.encode())
    return "recorded as done and as given up"


def dead_run(plan: gp.Plan) -> str:
    run = RunState.begin()
    Heartbeat(Ledger(plan.target, plan.fingerprint), run).beat()
    path = state(plan) / "runs" / f"{run.id}.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "updated": "2020-01-01T00:00:00+00:00"}))
    return f"run {run.id} on .* died"


def old_temporary_file(plan: gp.Plan) -> str:
    path = Path(plan.target.url) / "data" / "c" / "0" / "0.1f2e.partial"
    path.write_bytes(b"x" * 2048)
    os.utime(path, (1, 1))
    return r"1 temporary files of writers that were killed, 2\.0 KiB"


def folder_of_another_plan(plan: gp.Plan) -> str:
    Ledger(plan.target, "ab" * 32).write_plan(json.dumps({"fingerprint": "ab" * 32}))
    return r"abababab holds 0 records, \d+ B of another plan"


def metadata_not_consolidated(plan: gp.Plan) -> str:
    path = Path(plan.target.url) / "zarr.json"
    document = json.loads(path.read_text())
    del document["consolidated_metadata"]
    path.write_text(json.dumps(document))
    return "metadata is not consolidated"


def two_layouts(plan: gp.Plan) -> str:
    other = planned(plan.target.sibling("-other").url, 60)
    there, here = (state(p) / "tiles" for p in (other, plan))
    name = "y0-60_x0-60.json"
    (here / name).write_bytes((there / name).read_bytes())
    return "record y0-60_x0-60 is of cells that others are recorded for"


def probe(plan: gp.Plan) -> str:
    (state(plan).parent / f".probe-{'0' * 32}").write_bytes(b"x")
    return r"\.probe-0{32} is a trial of a process that was killed"


LEFT: tuple[Callable[[gp.Plan], str], ...] = (
    torn_record,
    record_of_another_plan,
    given_up_and_done,
    dead_run,
    old_temporary_file,
    folder_of_another_plan,
    metadata_not_consolidated,
    two_layouts,
    probe,
)


@pytest.mark.parametrize("leave", LEFT, ids=lambda f: f.__name__)
def test_what_is_left_behind_is_told_then_mended(
    leave: Callable[[gp.Plan], str], plan: gp.Plan
) -> None:
    right = read_back(plan.target).tobytes()
    pattern = leave(plan)
    before = gp.doctor(plan=plan)
    said = [f for f in before.findings if f.repairable]
    assert len(said) == 1, str(before)
    assert said[0].level == "warning"
    matches(said[0], pattern)
    repaired = [f for f in gp.doctor(plan=plan, repair=True).findings if f.repaired]
    matches(repaired[0], pattern)
    assert len(repaired) == 1
    plan.run("sync")
    assert bad(gp.doctor(plan=plan)) == []
    assert gp.verify(plan, 4).ok
    assert read_back(plan.target).tobytes() == right
    opened = gp.open(plan.target)  # complete: warns otherwise, which is an error here
    assert opened.shape == (60, 60)


def matches(finding: Finding, pattern: str) -> None:
    import re

    assert re.search(pattern, finding.what), finding.what


def test_rows_without_a_record_are_removed(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra")
    plan = keyed_jobs.plan_of(
        tmp_path / "o.zarr", keyed_jobs.both, keyed_jobs.BOTH, chunks=(16, 16)
    )
    plan.run("sync")
    folder = tmp_path / "o.zarr.tables" / "stats.parquet"
    stray = folder / "part-y0-99_x0-99.parquet"
    stray.write_bytes(b"")
    assert "rows of y0-99_x0-99" in bad(gp.doctor(plan=plan))[0]
    gp.doctor(plan=plan, repair=True)
    assert not stray.exists()
    assert bad(gp.doctor(plan=plan)) == []
    next(folder.glob("part-*")).unlink()
    found = gp.doctor(plan=plan)
    assert "are gone from table 'stats'" in found.errors[0].what


def test_records_of_a_target_that_is_gone_are_told_then_removed(plan: gp.Plan) -> None:
    shutil.rmtree(plan.target.url)
    beat = Heartbeat(Ledger(plan.target, plan.fingerprint), RunState.begin())
    beat.beat()
    assert gp.doctor(plan.target, repair=True).warnings[-1].remedy.startswith("a run may be")
    beat.end()
    found = gp.doctor(plan.target)
    assert "there is no target" in bad(found)[0]
    matches(found.warnings[1], r"holds 9 records, \d.* of a plan, whose data is not here")
    assert found.warnings[1].repairable
    assert [f.repaired for f in gp.doctor(plan.target, repair=True).findings].count(True) == 1
    assert len(bad(gp.doctor(plan.target))) == 1
    assert plan.run("sync").summary.done == 9


def test_tables_of_a_target_that_is_gone_are_told(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="tables need the extra")
    target = tmp_path / "o.zarr"
    keyed_jobs.plan_of(target, keyed_jobs.both, keyed_jobs.BOTH, chunks=(16, 16)).run("sync")
    shutil.rmtree(target)
    assert any("holds tables, whose target is gone" in what for what in bad(gp.doctor(target)))


def test_what_was_found_before_the_store_failed_is_told(
    plan: gp.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, listed = dead_run(plan), Location.list

    def fail(self: Location, prefix: str = "") -> list[str]:
        if self.url.endswith(".geopatch") and not prefix:
            raise gp.TargetError("cannot list: busy", kind="busy", transient=True)
        return listed(self, prefix)

    monkeypatch.setattr(Location, "list", fail)
    found = gp.doctor(plan.target, repair=True)
    assert found.errors[0].what == "not looked at: cannot list: busy"
    (mended,) = (f for f in found.findings if f.repaired)
    matches(mended, pattern)


def test_nothing_is_removed_while_a_run_is_at_work(plan: gp.Plan) -> None:
    torn_record(plan)
    path = state(plan) / "tiles" / "y0-20_x0-20.json"
    beat = Heartbeat(Ledger(plan.target, plan.fingerprint), RunState.begin())
    beat.beat()
    found = gp.doctor(plan=plan, repair=True)
    assert path.exists()
    assert "a run may be at work" in str(found)
    assert "is at work, heard from" in str(found)
    beat.end()
    gp.doctor(plan=plan, repair=True)
    assert not path.exists()


def test_young_temporary_files_and_strangers_are_left_alone(plan: gp.Plan) -> None:
    young = Path(plan.target.url) / "data" / "c" / "0" / "0.1f2e.partial"
    young.write_bytes(b"x")
    stranger = state(plan).parent / "notes"
    stranger.mkdir()
    (stranger / "todo.txt").write_text("mine")
    other = state(plan).parent / "abababab"
    (other / "tiles").mkdir(parents=True)
    (other / "precious.txt").write_text("mine")
    (state(plan).parent / "todo.txt").write_text("mine")
    (state(plan).parent / "abcdefgh").write_text("mine")
    found = gp.doctor(plan=plan, repair=True)
    assert young.exists()
    assert (stranger / "todo.txt").exists()
    assert (other / "precious.txt").exists()
    assert sum("is not ours to judge" in what for what in bad(found)) == 4
    assert (state(plan).parent / "abcdefgh").exists()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "is torn"),
        (b'{"attributes": {"geopatch:deleting": true}}', "was being replaced"),
        (b'{"attributes": {}}', "was not written by a plan"),
    ],
)
def test_targets_that_are_none(document: bytes, message: str, plan: gp.Plan) -> None:
    records = sorted(state(plan).rglob("*"))
    plan.target.write("zarr.json", document)
    found = gp.doctor(plan.target, repair=True)
    assert message in found.errors[0].what
    assert sorted(state(plan).rglob("*")) == records  # nothing says whose they are: kept


def test_a_target_that_is_not_done(plan: gp.Plan) -> None:
    tiles = state(plan) / "tiles"
    (tiles / "y0-20_x0-20.json").unlink()
    assert "complete, but only 8 of 9" in bad(gp.doctor(plan.target))[0]
    (state(plan) / "plan.json").unlink()
    assert "plan.json" in gp.doctor(plan.target).errors[0].what
    assert "there is no target" in bad(gp.doctor(plan.target.url + "x"))[0]


def test_a_store_in_memory() -> None:
    plan = planned(MemoryStore())
    assert bad(gp.doctor(plan=plan)) == []


def test_a_place_that_forbids_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path / "out.zarr")

    def refuse(self: Location, name: str, data: bytes) -> None:
        raise gp.TargetError(f"cannot write {name}: no", kind="forbidden")

    monkeypatch.setattr(Location, "write", refuse)
    found = gp.doctor(plan.target)
    assert not found.ok
    assert "a run must write objects" in found.errors[0].what


def test_repair_needs_a_target() -> None:
    with pytest.raises(gp.OptionError, match="repair= is about a target"):
        gp.doctor(repair=True)


# ---- a cluster ---------------------------------------------------------------------------------


@pytest.mark.cluster
def test_a_cluster_that_fits(plan: gp.Plan, client: Any) -> None:
    found = gp.doctor(plan=plan, client=client)
    assert bad(found) == []
    assert "2 workers: the same versions as here" in str(found)
    assert "this process and 2 workers may write" in str(found)
    assert "memory: a slot has 2.0 GiB" in str(found)


@pytest.mark.cluster
def test_comparing_versions_is_fast(client: Any) -> None:
    from geopatch_dask.execute.attempt.versions import compare_versions

    compare_versions(client)  # the workers import the package
    began = time.perf_counter()
    assert compare_versions(client) == []
    assert time.perf_counter() - began < 0.3


@pytest.fixture
def patched(client: Any) -> Iterator[Callable[[str, str], None]]:
    """Makes the first worker say that it has another version of a package."""

    # inside, so that it travels by value: workers need not import this module, and pytest
    def swap(module: str, version: str) -> str:
        import importlib

        loaded: Any = importlib.import_module(module)
        before, loaded.__version__ = loaded.__version__, version
        return str(before)

    first = min(client.scheduler_info()["workers"])
    undo: list[tuple[str, str]] = []

    def patch(module: str, version: str) -> None:
        undo.append((module, client.run(swap, module, version, workers=[first])[first]))

    yield patch
    for module, version in reversed(undo):
        client.run(swap, module, version, workers=[first])


@pytest.mark.cluster
def test_another_version_of_a_package_is_told(
    plan: gp.Plan, client: Any, patched: Callable[[str, str], None]
) -> None:
    from geopatch_dask.execute.attempt.versions import compare_versions

    patched("numpy", "1.0.0")
    line = f"1 of 2 workers has numpy 1.0.0, the client {np.__version__}"
    assert compare_versions(client) == [line]
    found = gp.doctor(plan=plan, client=client)
    assert found.ok
    assert bad(found) == [line]


@pytest.mark.cluster
@pytest.mark.parametrize("package", ["geopatch_dask", "dask", "distributed"])
def test_what_must_agree_is_refused(
    package: str, client: Any, patched: Callable[[str, str], None]
) -> None:
    from geopatch_dask.execute.attempt.versions import compare_versions

    patched(package, "0.0.1")
    patched("zarr", "0.0.2")
    with pytest.raises(gp.OptionError, match=f"1 of 2 workers has {package} 0.0.1.*everywhere"):
        compare_versions(client)
    found = gp.doctor(client=client)
    assert [f.what.partition(",")[0] for f in found.errors] == [
        f"1 of 2 workers has {package} 0.0.1"
    ]
    assert "zarr 0.0.2" in bad(found)[1]


@pytest.mark.cluster
def test_a_worker_with_other_threads_is_told(client: Any) -> None:
    from geopatch_dask.execute.attempt.versions import compare_versions

    def set_variable(name: str, value: str | None) -> str | None:
        import os

        before = os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
        return before

    first = min(client.scheduler_info()["workers"])
    before = client.run(set_variable, "OMP_NUM_THREADS", "7", workers=[first])[first]
    try:
        [line] = compare_versions(client)
        assert line.startswith("OMP_NUM_THREADS differs: ")
        assert "7 on 1 worker" in line
    finally:
        client.run(set_variable, "OMP_NUM_THREADS", before, workers=[first])


def test_no_workers_is_no_crash() -> None:
    from distributed import Client, LocalCluster

    from geopatch_dask.execute.attempt.versions import compare_versions

    options: dict[str, Any] = {"processes": False, "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=0, **options) as cluster,
        Client(cluster, set_as_default=False) as empty,
    ):
        assert compare_versions(empty) == []
        found = gp.doctor(client=empty)
        assert "the cluster has no workers" in found.errors[0].what


def test_workers_that_do_not_fit(tmp_path: Path) -> None:
    """Threads in this process: no nanny, several threads, and too little memory."""
    from distributed import Client, LocalCluster

    plan = planned(tmp_path / "out.zarr")
    options: dict[str, Any] = {"processes": False, "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, memory_limit="400 MiB", **options
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        found = gp.doctor(plan=plan, client=client)
    assert "a slot has 100.0 MiB, a super-tile of the plan needs" in found.errors[0].what
    told = "\n".join(bad(found))
    assert "1 worker of 1 without a nanny" in told
    assert "with several threads (up to 4)" in told


# ---- the command -------------------------------------------------------------------------------


def test_the_command(plan: gp.Plan, capsys: pytest.CaptureFixture[str]) -> None:
    target = plan.target.url
    assert main(["doctor"]) == 0
    assert main(["doctor", target]) == 0
    dead_run(plan)
    capsys.readouterr()
    assert main(["doctor", target]) == 0
    assert "1 of these: --repair" in capsys.readouterr().out
    assert main(["doctor", target, "--repair", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [f["repaired"] for f in found if f["level"] == "warning"] == [True]
    plan.target.write("zarr.json", b"{")
    assert main(["doctor", target]) == 1
    assert "1 errors" in capsys.readouterr().err
    assert main(["doctor", target, "--cluster", "somewhere"]) == 2
    assert "is no address" in capsys.readouterr().err
