"""Contract 2: run it again.  Whatever stopped a run, the same command finishes it.

What is done is known from records alone, never from which chunks exist, and is not done again:
the operator's calls are counted in a file, across processes and runs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_operators import Counted, FailsAt, notes

import geopatch_dask as gp
from geopatch_dask.store.target import reopen
from geopatch_dask.testing import assert_same_bytes, merged, read_back

TILE = 20


def field(n: int = 80) -> gp.ArrayField:
    return gp.ArrayField(np.arange(float(n * n)).reshape(n, n))


def plan_of(source: gp.Field, operator: Any, target: Path, **options: Any) -> gp.Plan:
    patcher = gp.Patcher(
        gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann(), gp.OverlapAdd()
    )
    options = {"outer": (TILE, TILE), "chunks": (TILE // 2, TILE // 2), **options}
    return gp.plan(source, patcher, operator, target, **options)


def records(target: Path) -> dict[str, Path]:
    return {p.stem: p for p in target.parent.glob(f"{target.name}.geopatch/*/tiles/*.json")}


def touched(plan: gp.Plan, ids: set[str]) -> int:
    """Patches that some super-tiles run."""
    return sum(plan.grid.count_touching(t.box) for t in plan.layout if t.id in ids)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls.txt"


def test_a_second_run_calls_nothing(tmp_path: Path, log: Path) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), Counted(log), target)
    first = plan.run("threads")
    calls, stored = notes(log), read_back(target).tobytes()
    again = plan.run("threads")
    assert notes(log) == calls
    assert (again.skipped, again.summary.states) == (plan.n_supertiles, {})
    assert again.totals == first.totals
    assert again.complete
    assert read_back(target).tobytes() == stored


DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn": lambda p: p.write_bytes(p.read_bytes()[:-40]),
    "empty": lambda p: p.write_bytes(b""),
    "no JSON": lambda p: p.write_bytes(b"\x00\xff\x17"),
    "of another version": lambda p: change(p, schema=99),
    "of another plan": lambda p: change(p, fingerprint="0" * 64),
    "of another super-tile": lambda p: change(p, id="y0-20_x0-20"),
    "with a field too many": lambda p: change(p, extra=1),
    "with a wrong type": lambda p: change(p, fill="many"),
}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_record_that_cannot_be_trusted_is_computed_again_and_told(
    name: str, tmp_path: Path, log: Path
) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), Counted(log), target)
    totals = plan.run("sync").totals
    stored = read_back(target).tobytes()
    victim = "y20-40_x40-60"
    DAMAGE[name](records(target)[victim])
    calls = notes(log)
    report = plan.run("sync")
    assert notes(log) - calls == touched(plan, {victim})
    assert report.skipped == plan.n_supertiles - 1
    assert any(victim in problem for problem in report.problems)
    assert report.complete
    assert report.totals == totals
    assert read_back(target).tobytes() == stored
    assert plan.run("sync").problems == []


def test_chunks_say_nothing_about_what_is_done(tmp_path: Path, log: Path) -> None:
    """Data without a record is computed again; so is a super-tile whose record was deleted."""
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), Counted(log), target)
    plan.run("sync")
    gone = {"y0-20_x0-20", "y60-80_x20-40"}
    for name in gone:
        records(target)[name].unlink()
    for path in (target / "data" / "c").rglob("*"):
        if path.is_file() and path.parts[-2:] in (("0", "0"), ("6", "2")):
            path.write_bytes(b"half written")
    calls = notes(log)
    plan.run("sync")
    assert notes(log) - calls == touched(plan, gone)
    assert_same_bytes(read_back(target), merged(field(), plan.patcher, plan.operator))


def test_a_super_tile_without_data_is_done_not_missing(tmp_path: Path, log: Path) -> None:
    """Zarr stores no object of fill values only, so only the record knows."""
    values = np.arange(6400.0).reshape(80, 80)
    values[:44, :44] = np.nan
    source = gp.ArrayField(values)
    target = tmp_path / "out.zarr"
    plan = plan_of(source, Counted(log), target)
    report = plan.run("threads")
    empty = "y0-20_x0-20"
    record = json.loads(records(target)[empty].read_text())
    assert record["state"] == "empty"
    assert record["fill"] == record["missing"] == TILE * TILE
    assert record["uncovered"] == record["bytes_written"] == 0
    assert not (target / "data" / "c" / "0" / "0").exists()
    assert report.summary.states == {"empty": 4, "done": 12}
    assert report.complete
    assert gp.status(target).counts == {"done": 12, "empty": 4, "failed": 0, "pending": 0}
    calls = notes(log)
    assert plan.run("sync").skipped == plan.n_supertiles
    assert notes(log) == calls
    assert np.isnan(read_back(target)).sum() == report.totals["missing"]


def test_a_field_of_nothing_but_holes(tmp_path: Path) -> None:
    source = gp.ArrayField(np.zeros((40, 40), "uint8"), nodata=0)
    plan = plan_of(source, np.positive, tmp_path / "out.zarr")
    report = plan.run("sync")
    assert report.summary.states == {"empty": 4}
    assert report.totals == {"fill": 1600, "uncovered": 0, "missing": 1600}
    assert report.complete


# ---- one bad super-tile --------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path: Path) -> FailsAt:
    """Fails on cell (50, 30), which only super-tile y40-60_x20-40 and its neighbours can see."""
    flag = tmp_path / "broken"
    flag.touch()
    return FailsAt(50 * 80 + 30.0, flag)


def test_one_bad_super_tile_does_not_sink_the_run(tmp_path: Path, bad: FailsAt) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), bad, target)
    near = {t.id for t in plan.layout if sees(plan, t.box, (50, 30))}
    assert 1 <= len(near) < 5
    with pytest.raises(gp.RunIncomplete, match="RuntimeError: cannot digest 4030") as caught:
        plan.run("threads")
    error = caught.value
    assert set(error.failed) == near
    assert "the others are done: mend the cause and run the same command again" in str(error)
    first = error.__cause__  # what Python shows of it names the line of the operator
    assert isinstance(first, gp.SuperTileFailed)
    assert str(first).split(": ", 1)[0] in near
    assert "sample_operators" in first.__notes__[0]
    assert isinstance(error.report, gp.Report)
    assert not error.report.complete
    assert error.report.summary.states == {
        "done": plan.n_supertiles - len(near),
        "failed": len(near),
    }
    assert set(records(target)) == {t.id for t in plan.layout} - near
    folder = tmp_path / "out.zarr.geopatch" / plan.fingerprint[:8]
    failed = {p.stem: json.loads(p.read_text()) for p in (folder / "failed").iterdir()}
    assert set(failed) == near
    for record in failed.values():
        assert record["error"]["type"] == "RuntimeError"
        assert "cannot digest" in record["error"]["message"]
        assert "sample_operators" in record["error"]["traceback"]
    status = gp.status(target)
    assert not status.complete
    assert status.counts["failed"] == len(near)
    with pytest.warns(UserWarning, match="not (complete|finished)|unfinished|incomplete"):
        partial = gp.open(target)
    for tile in plan.layout:
        values = partial.values[tile.box.slices()]
        assert np.isnan(values).all() if tile.id in near else not np.isnan(values).any()


def sees(plan: gp.Plan, box: gp.Box, cell: tuple[int, int]) -> bool:
    anchors = plan.grid.anchors.at(plan.grid.touching(box)).tolist()
    at = gp.Box.at(cell, (1, 1))
    return any(plan.grid.indices(a).intersect(at) for a in anchors)


def test_after_the_fix_the_same_command_finishes(tmp_path: Path, bad: FailsAt) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), bad, target)
    before = plan.run("sync", on_failure="return")
    written = {name: path.stat().st_mtime_ns for name, path in records(target).items()}
    Path(bad.flag).unlink()
    report = plan.run("sync")
    assert report.complete
    assert report.skipped == before.summary.done
    assert all(records(target)[n].stat().st_mtime_ns == t for n, t in written.items())
    assert not list((tmp_path / "out.zarr.geopatch").glob("*/failed/*.json"))
    assert_same_bytes(read_back(target), merged(field(), plan.patcher, plan.operator))
    assert gp.status(target).complete


def test_failures_of_another_layout_are_forgotten_when_their_cells_are_done(
    tmp_path: Path, bad: FailsAt
) -> None:
    target = tmp_path / "out.zarr"
    plan_of(field(), bad, target).run("sync", on_failure="return")
    Path(bad.flag).unlink()
    plan_of(field(), bad, target, outer=(40, 80)).run("sync")
    status = gp.status(target)
    assert status.complete
    assert not [r for r in status.records.values() if r.state == "failed"]
    assert "failed " not in str(status)


@pytest.mark.cluster
def test_one_bad_super_tile_on_a_cluster(tmp_path: Path, bad: FailsAt, client: Any) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), bad, target)
    report = plan.run(client, on_failure="return")
    assert 1 <= len(report.failures) < 5
    assert report.summary.done == plan.n_supertiles - len(report.failures)
    Path(bad.flag).unlink()
    assert plan.run(client).complete
    assert_same_bytes(read_back(target), merged(field(), plan.patcher, plan.operator))


def test_a_failed_read_is_a_failed_super_tile_not_a_hole(tmp_path: Path) -> None:
    class Broken(gp.ArrayField):
        broken = False

        def read(self, box: gp.Box) -> Any:
            if self.broken and box.stop[0] > 70:
                raise gp.FieldError("scene.tif: cells 60 to 80 cannot be read")
            return super().read(box)

    source = Broken(np.ones((80, 80)))
    plan = plan_of(source, np.positive, tmp_path / "out.zarr")
    source.broken = True
    with pytest.raises(gp.RunIncomplete, match=r"FieldError: scene\.tif"):
        plan.run("sync")
    source.broken = False
    assert plan.run("sync").complete
    np.testing.assert_allclose(read_back(tmp_path / "out.zarr"), 1.0, rtol=1e-14)


def test_an_operator_that_changes_its_mind_after_planning(tmp_path: Path) -> None:
    """The plan tried three patches; the others are checked where they are computed."""

    def fickle(x: Any) -> Any:
        return x.astype("float32") if (x == 4030).any() else x

    plan = plan_of(field(), fickle, tmp_path / "out.zarr")
    with pytest.raises(gp.RunIncomplete, match=r"dtype float32 for patch .*one shape and dtype"):
        plan.run("sync")


# ---- continuing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 7, 15])
def test_interrupted_runs_go_on_where_they_were(stop: int, tmp_path: Path, log: Path) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), Counted(log), target)

    def interrupt(outcome: object, finished: int, total: int) -> None:
        if finished == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.run("sync", progress=interrupt)
    done, calls = set(records(target)), notes(log)
    assert len(done) == stop
    plan.run("threads")
    rest = {tile.id for tile in plan.layout} - done
    assert notes(log) - calls == touched(plan, rest)
    assert_same_bytes(read_back(target), merged(field(), plan.patcher, plan.operator))


def test_super_tiles_may_change_between_runs(tmp_path: Path, log: Path) -> None:
    """Only what no record covers is computed; counts stay those of one pass."""
    source = field()
    target = tmp_path / "out.zarr"
    first = plan_of(source, Counted(log), target)
    totals = first.run("sync").totals
    second = plan_of(source, Counted(log), target, outer=(40, 40))
    records(target)["y0-20_x0-20"].unlink()
    calls = notes(log)
    report = second.run("sync")
    assert notes(log) - calls == touched(second, {"y0-40_x0-40"})
    assert report.skipped == 3
    assert report.totals == totals
    assert gp.status(target).counts == {"done": 4, "empty": 0, "failed": 0, "pending": 0}
    assert gp.status(target).totals()["fill"] == totals["fill"]


def test_a_graph_computed_over_another_layout_counts_every_cell_once(tmp_path: Path) -> None:
    values = np.ones((80, 80))
    values[3, 3] = np.nan
    source = gp.ArrayField(values)
    target = tmp_path / "out.zarr"
    plan_of(source, np.positive, target).run("sync")
    plan_of(source, np.positive, target, outer=(40, 30 + 50)).to_dask().compute(scheduler="sync")
    assert gp.status(target).totals()["missing"] == 1


def test_a_crash_before_the_last_act(tmp_path: Path, log: Path) -> None:
    """All records are there, but the store does not say complete: only that is left to do."""
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), Counted(log), target)
    plan.run("sync")
    reopen(plan.target)
    assert not gp.status(target).complete
    calls = notes(log)
    report = plan.run("threads")
    assert report.complete
    assert report.skipped == plan.n_supertiles
    assert notes(log) == calls
    assert gp.status(target).complete


def test_a_finished_target_is_reopened_while_it_is_mended(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), np.positive, target)
    plan.run("sync")
    records(target)["y0-20_x0-20"].unlink()
    seen = []
    plan.run("sync", progress=lambda *_: seen.append(gp.status(target).complete))
    assert seen == [False]
    assert gp.status(target).complete


def test_a_run_of_the_same_plan_at_the_same_time_is_harmless(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    target = tmp_path / "out.zarr"
    plan = plan_of(field(), np.positive, target)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: plan.run("sync"), range(4)))
    assert all(report.complete for report in reports)
    assert_same_bytes(read_back(target), merged(field(), plan.patcher, np.positive))


@pytest.mark.cluster
def test_two_targets_on_one_cluster_at_the_same_time(tmp_path: Path, client: Any) -> None:
    """Equal values, so equal fingerprints; the work is not equal."""
    from concurrent.futures import ThreadPoolExecutor

    plans = [plan_of(field(), np.positive, tmp_path / f"{i}.zarr") for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda plan: plan.run(client), plans))
    assert all(report.complete for report in reports)
    for plan in plans:
        assert_same_bytes(read_back(plan.target), merged(field(), plan.patcher, np.positive))


def test_reconstruct_opens_what_it_made(tmp_path: Path) -> None:
    source = gp.ArrayField(np.arange(6400.0).reshape(80, 80), dims=("lat", "lon"))
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())
    found = gp.reconstruct(source, patcher, np.sqrt, tmp_path / "o.zarr", client="threads")
    assert found.dims == ("lat", "lon")
    np.testing.assert_allclose(found.values, np.sqrt(np.arange(6400.0)).reshape(80, 80))
    with pytest.raises(gp.PlanMismatch):
        gp.reconstruct(source, patcher, np.cbrt, tmp_path / "o.zarr", client="threads")
    replaced = gp.reconstruct(
        *(source, patcher, np.cbrt, tmp_path / "o.zarr"), client="sync", overwrite=True
    )
    np.testing.assert_allclose(replaced.values, np.cbrt(np.arange(6400.0)).reshape(80, 80))


def test_uncovered_cells_warn_the_caller_of_reconstruct(tmp_path: Path) -> None:
    patcher = gp.Patcher(gp.Rectangular((16, 16), "drop"), gp.RegularStride((16, 16)))
    gp.reconstruct(field(), patcher, np.positive, tmp_path / "full.zarr", client="sync")
    with pytest.warns(
        gp.UncoveredWarning, match=r"of .*o\.zarr were reached by no patch"
    ) as caught:
        gp.reconstruct(field(90), patcher, np.positive, tmp_path / "o.zarr", client="sync")
    assert [w.filename for w in caught] == [__file__]


def test_reports_are_kept_as_json(tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    plan = plan_of(field(), np.positive, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = plan.run("threads")
    stored = json.loads(
        (tmp_path / "out.zarr.geopatch" / plan.fingerprint[:8] / "report.json").read_text()
    )
    assert stored == json.loads(json.dumps(report.to_json()))
    assert stored["complete"] is True
    assert stored["states"] == {"done": plan.n_supertiles}
    assert stored["numbers"]["patches"] == plan.cost.patches_run
    assert stored["planned_memory"] == plan.memory.total
