"""Patches with data of which an operator makes nothing: named, recorded, and computed again.

What is no answer is for the aggregation to say: NaN, the value that the output calls missing, a
variance that cannot be divided by.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from sample_operators import Counted, notes
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.cli import main
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import assert_same_bytes, merged, read_back

Array = npt.NDArray[Any]

#: Cells of the field, of a super-tile, of a patch; patches lie side by side.
SIDE, TILE, PATCH = 40, 20, 10
VALUES = np.random.default_rng(3).random((SIDE, SIDE)) + 1.0
#: The cell that gives a patch away, and the super-tile that it lies in.
AT, NAME = (5, 25), "y0-20_x20-40"
VALUES[AT] = 9.0


def planned(operator: Any, target: Any = None, **more: Any) -> gp.Plan:
    aggregation = more.pop("aggregation", gp.Mean())
    patcher = gp.Patcher(gp.Rectangular(PATCH), gp.RegularStride(PATCH), None, aggregation)
    options = {"outer": TILE, "chunks": 10, "slots": 1} | more
    field = options.pop("field", gp.ArrayField(VALUES))
    return gp.plan(field, patcher, operator, target or MemoryStore(), **options)


def seen(x: Array) -> bool:
    """Whether this is the patch that has no answer."""
    return bool((x == 9.0).any())


# ---- what is no answer ---------------------------------------------------------------------------


def labels(x: Array) -> Array:
    return np.full(x.shape, 255 if seen(x) else 1, "uint8")


def shares(x: Array) -> Array:
    """Of three classes, one is not known."""
    found = np.full((3, *x.shape), 1 / 3)
    if seen(x):
        found[1] = np.nan
    return found


def estimate(var: float) -> Any:
    return lambda x: (x, np.full(x.shape, var if seen(x) else 1.0))


def two(x: Array) -> dict[str, Array]:
    return {"a": np.where(seen(x), np.nan, x), "b": labels(x)}


MARKED = gp.Output(missing=255)
POSTERIOR = {"aggregation": gp.InvVarWeightedMean()}
BOTH = {"aggregation": {"a": gp.Mean(), "b": gp.HardVote(2)}}

NOTHING: dict[str, tuple[Any, dict[str, Any]]] = {
    "NaN": (lambda x: np.where(seen(x), np.nan, x), {}),
    "a marked integer": (labels, {"output": MARKED, "aggregation": gp.Max()}),
    "a marked class": (labels, {"output": MARKED, "aggregation": gp.HardVote(2)}),
    "a marked float": (
        lambda x: np.where(seen(x), -1.0, x),
        {"output": gp.Output(missing=-1.0), "aggregation": gp.Median()},
    ),
    "a class that is not known": (shares, {"aggregation": gp.SoftVote(3)}),
    "variances of zero": (estimate(0.0), POSTERIOR),
    "variances of NaN": (estimate(np.nan), POSTERIOR),
    "variances of next to nothing": (estimate(1e-310), POSTERIOR),
    "all of several outputs": (two, BOTH | {"output": {"b": gp.Output(name="b", missing=255)}}),
}


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.filterwarnings("ignore:.*streaming_safe")
def test_what_the_aggregation_takes_for_no_answer_is_hollow(what: str) -> None:
    operator, options = NOTHING[what]
    plan = planned(operator, **options)
    report = plan.run("sync")
    assert report.complete
    assert report.hollow == [NAME]
    assert report.summary.numbers["hollow_patches"] == 1
    records = Ledger(plan.target, plan.fingerprint).done()
    assert {r.id: r.hollow_patches for r in records.values() if r.hollow_patches} == {NAME: 1}


def corner(x: Array) -> Array:
    """All but the last cell: one answer is an answer."""
    found = np.full_like(x, np.nan)
    found[-1, -1] = 1.0
    return found


HOLED = VALUES.copy()
HOLED[:PATCH, 2 * PATCH : 3 * PATCH] = np.nan

SOMETHING: dict[str, tuple[Any, dict[str, Any]]] = {
    "one cell": (corner, {}),
    "one of two classes": (lambda x: np.where(x > 8.0, 255, 1).astype("uint8"), {"output": MARKED}),
    "one of several outputs": (two, BOTH),
    "255, which nothing calls missing": (labels, {"aggregation": gp.Max()}),
    "no data, no answer": (lambda x: x, {"field": gp.ArrayField(HOLED)}),
}


@pytest.mark.parametrize("what", SOMETHING)
def test_any_answer_is_one_and_no_data_needs_none(what: str) -> None:
    operator, options = SOMETHING[what]
    if what == "one of several outputs":
        options = BOTH | {"aggregation": {"a": gp.Mean(), "b": gp.Max()}}
    report = planned(operator, **options).run("sync")
    assert report.complete
    assert report.hollow == []
    assert report.summary.numbers["hollow_patches"] == 0


# ---- once more -----------------------------------------------------------------------------------


class Weights:
    """Triples; NaN on one patch as long as a file says so, and a note of every call."""

    def __init__(self, folder: Path) -> None:
        self.broken, self.calls = folder / "broken", Counted(folder / "calls")

    def __call__(self, x: Array) -> Array:
        self.calls(x)
        return x * np.nan if seen(x) and self.broken.exists() else x * 3


def broken(folder: Path, **more: Any) -> gp.Plan:
    """A plan that has run, and found nothing in one super-tile of four."""
    (folder / "broken").touch()
    plan = planned(gp.Operator(Weights(folder), version="1"), folder / "out.zarr", **more)
    report = plan.run("sync")
    assert (report.complete, report.ok, report.hollow) == (True, True, [NAME])
    return plan


MODEL = """
from pathlib import Path

def model(x):
    return x * (float("nan") if (x == 9.0).any() and Path("broken").exists() else 3)
"""
JOB = """
[field]
path = "values.zarr"
[patch]
size = 10
step = 10
aggregation = "mean"
[operator]
function = "hollow_model:model"
[output]
target = "out.zarr"
chunks = 10
[run]
outer = 20
[cluster]
kind = "sync"
"""


def whole(plan: gp.Plan) -> Array:
    found: Array = merged(plan.field, plan.patcher, lambda x: x * 3)
    return found


def test_retry_computes_hollow_super_tiles_and_no_other(tmp_path: Path) -> None:
    plan = broken(tmp_path)
    ledger = Ledger(plan.target, plan.fingerprint)
    before = {name: record for name, record in ledger.done().items() if name != NAME}
    (tmp_path / "broken").unlink()
    calls = notes(tmp_path / "calls")
    report = gp.retry(plan, "sync")
    assert notes(tmp_path / "calls") - calls == (TILE // PATCH) ** 2
    assert (report.complete, report.skipped, report.hollow) == (True, 3, [])
    assert {name: ledger.done()[name] for name in before} == before
    assert_same_bytes(read_back(plan.target), whole(plan))
    assert gp.status(tmp_path / "out.zarr").complete


@pytest.mark.parametrize(
    "refused",
    [
        {"client": "bogus"},
        {"client": "sync", "policy": gp.Policy(timeout=5)},
        {"client": "sync", "on_failure": "bogus"},
    ],
)
def test_a_retry_that_is_refused_forgets_nothing(tmp_path: Path, refused: dict[str, Any]) -> None:
    plan = broken(tmp_path)
    before = Ledger(plan.target, plan.fingerprint).done()
    with pytest.raises(gp.OptionError):
        gp.retry(plan, **refused)
    assert Ledger(plan.target, plan.fingerprint).done() == before
    assert gp.status(plan.target).complete


def test_what_is_still_hollow_is_named_again(tmp_path: Path) -> None:
    plan = broken(tmp_path)
    again = gp.retry(plan, "sync")
    assert (again.complete, again.hollow) == (True, [NAME])
    assert f"missing values, in {NAME}; if that is wrong" in str(gp.status(tmp_path / "out.zarr"))
    report = plan.run("sync")
    assert (report.skipped, report.hollow) == (4, [NAME]), "of the whole target, as its records say"


def test_retry_from_the_target_with_an_operator_that_changed(tmp_path: Path) -> None:
    plan = broken(tmp_path)
    mended = gp.Operator(lambda x: x * 3, version="2")
    given = {"field": plan.field, "operator": mended}
    with pytest.raises(gp.PlanMismatch, match="operator"):
        gp.retry(tmp_path / "out.zarr", "sync", **given)
    assert gp.status(tmp_path / "out.zarr").complete, "refused before anything was touched"
    report = gp.retry(tmp_path / "out.zarr", "sync", **given, operator_changed=True)
    assert (report.complete, report.summary.done) == (True, 1)
    assert_same_bytes(read_back(plan.target), whole(plan))


@pytest.mark.parametrize("outer", [10, 30, 40])
def test_retry_under_another_layout(outer: int, tmp_path: Path) -> None:
    """What shares cells with what is forgotten is computed, whatever it is called."""
    broken(tmp_path)
    (tmp_path / "broken").unlink()
    operator = gp.Operator(Weights(tmp_path), version="1")
    plan = planned(operator, tmp_path / "out.zarr", outer=outer)
    report = gp.retry(plan, "sync")
    assert (report.complete, report.hollow) == (True, [])
    assert_same_bytes(read_back(plan.target), whole(plan))


@pytest.mark.parametrize("outer", [10, 40])
def test_what_failed_under_another_layout_is_retried(outer: int, tmp_path: Path) -> None:
    def raises(x: Array) -> Array:
        if (tmp_path / "broken").exists() and seen(x):
            raise ValueError("a nine")
        return x * 3

    operator = gp.Operator(raises, version="1")
    (tmp_path / "broken").touch()
    planned(operator, tmp_path / "out.zarr").run("sync", on_failure="return")
    (tmp_path / "broken").unlink()
    plan = planned(operator, tmp_path / "out.zarr", outer=outer)
    assert gp.retry(plan, "sync").complete
    assert_same_bytes(read_back(plan.target), whole(plan))


@pytest.mark.slow
def test_the_command_line_computes_hollow_super_tiles_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    xr.Dataset({"v": (("y", "x"), VALUES)}).to_zarr("values.zarr", consolidated=False)
    Path("hollow_model.py").write_text(MODEL)
    Path("job.toml").write_text(JOB)
    Path("broken").touch()
    assert main(["run", "job.toml"]) == 0
    assert f"in {NAME}; if that is wrong, mend it, and geopatch retry" in capsys.readouterr().out
    assert main(["status", "out.zarr"]) == 0
    assert f"in {NAME}; if that is wrong" in " ".join(capsys.readouterr().out.split())
    assert main(["status", "out.zarr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["totals"]["hollow_patches"] == 1
    Path("broken").unlink()
    assert main(["retry", "out.zarr"]) == 0
    told = capsys.readouterr().out
    assert "1 done, 3 done before" in told
    assert "hollow" not in told
    assert_same_bytes(read_back(tmp_path / "out.zarr"), VALUES * 3)
