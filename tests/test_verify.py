"""gp.verify: whatever changes one stored cell is found and named; what is right passes.

The oracle is plain zarr: a change of the store counts exactly if it changes what can be read.
"""

from __future__ import annotations

import errno
import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sample_operators as ops
from hypothesis import given
from hypothesis import strategies as st
from strategies import Job, cuts, examples, jobs
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.execute.check.stored import Stored
from geopatch_dask.execute.check.verification import Mismatch
from geopatch_dask.store.records import Ledger
from geopatch_dask.testing import Cut, read_back


@dataclass
class Run:
    """A finished run in a store of this process, whose objects can be tampered with."""

    plan: gp.Plan
    store: MemoryStore

    @property
    def objects(self) -> dict[str, Any]:
        return self.store._store_dict

    def keys(self, inside: str) -> list[str]:
        return sorted(key for key in self.objects if inside in key)

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = default_buffer_prototype().buffer.from_bytes(data)

    def get(self, key: str) -> bytes:
        found: bytes = self.objects[key].to_bytes()
        return found

    def verify(self, windows: int = 0, **options: Any) -> gp.Verification:
        return gp.verify(self.plan, windows, on_mismatch="return", **options)

    def cells(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """What plain zarr reads; None when it cannot."""
        try:
            return {a.name: read_back(self.store, a.name) for a in self.plan.arrays}
        except Exception:
            return None


def finished(job: Job, cut: Cut) -> Run:
    store = MemoryStore()
    return Run(planned(job, cut, store), store)


def planned(job: Job, cut: Cut, store: MemoryStore) -> gp.Plan:
    plan = gp.plan(
        *(job.field, job.patcher, job.operator, store),
        **cut.options(),
        output=job.output,
        memory_limit="1 TiB",
        slots=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gp.UncoveredWarning)
        plan.run("sync")
    return plan


@st.composite
def runs(draw: st.DrawFn) -> Run:
    job = draw(jobs())
    return finished(job, draw(cuts(job.cuttable)))


# ---- what is right passes --------------------------------------------------------------------


@given(st.data())
@examples(15)
def test_a_run_of_any_layout_passes(data: st.DataObject) -> None:
    job = data.draw(jobs())
    cut = data.draw(cuts(job.cuttable))
    run = finished(job, cut)
    found = run.verify(6, seed=data.draw(st.integers(0, 99)))
    assert found.ok, str(found)
    assert found.whole
    assert found.records == found.recorded == run.plan.n_supertiles
    assert found.windows == 6
    assert found.cells > 0
    # through a plan that is cut otherwise, too
    other = planned(job, data.draw(cuts(job.cuttable, cut)), run.store)
    assert gp.verify(other, 2).ok


# ---- what is wrong is found ------------------------------------------------------------------


@given(st.data())
@examples(50)
def test_any_change_of_a_stored_object_is_found_and_named(data: st.DataObject) -> None:
    run = data.draw(runs())
    chunks = run.keys("/c/")
    if not chunks:  # nothing but fill: nothing is stored
        return
    before = run.cells()
    key = data.draw(st.sampled_from(chunks))
    damage(data, run, key, chunks)
    after = run.cells()
    assert before is not None
    changed = [name for name in before if not same(before[name], (after or {}).get(name))]
    found = run.verify()
    assert found.ok == (after is not None and not changed), str(found)
    touched = {key, *(k for k in chunks if run.objects.get(k) is None)}
    for mismatch in found.mismatches:
        assert mismatch.cause == "stored"
        assert mismatch.key == key or mismatch.key in touched
        check_cell(run, mismatch, before, after)
    if not found.ok:
        with pytest.raises(gp.VerificationError, match=found.mismatches[0].record) as caught:
            gp.verify(run.plan, 0)
        assert isinstance(caught.value.verification, gp.Verification)


def damage(data: st.DataObject, run: Run, key: str, chunks: list[str]) -> None:
    raw = bytearray(run.get(key))
    how = data.draw(st.sampled_from(["flip", "flip", "delete", "copy", "truncate", "empty"]))
    if how == "flip":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        run.put(key, bytes(raw))
    elif how == "delete":
        del run.objects[key]
    elif how == "copy":
        run.put(key, run.get(data.draw(st.sampled_from(chunks))))
    else:
        run.put(key, bytes(raw[: len(raw) // 2]) if how == "truncate" else b"")


def same(left: Any, right: Any) -> bool:
    return right is not None and left.tobytes() == right.tobytes()


def check_cell(run: Run, mismatch: Mismatch, before: Any, after: Any) -> None:
    """The cell that is named is the first that differs in its super-tile, and has those values."""
    tile = next(t for t in run.plan.layout if t.id == mismatch.record)
    if mismatch.cell is None:
        assert after is None
        return
    ndim = tile.box.ndim
    assert all(
        a <= c < b
        for a, b, c in zip(tile.box.start, tile.box.stop, mismatch.cell[-ndim:], strict=True)
    )
    if after is not None:
        name = mismatch.what
        assert mismatch.stored == repr(after[name][mismatch.cell].item())
        assert mismatch.recomputed == repr(before[name][mismatch.cell].item())
        inside = (..., *tile.box.slices())
        left, right = before[name][inside], after[name][inside]
        assert mismatch.cells == (bits(left) != bits(right)).sum()


def bits(values: Any) -> Any:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


@given(runs(), st.data())
@examples(20)
def test_a_swap_of_two_objects_is_found(run: Run, data: st.DataObject) -> None:
    chunks = run.keys("/c/")
    if len(chunks) < 2:
        return
    one, two = data.draw(st.lists(st.sampled_from(chunks), min_size=2, max_size=2, unique=True))
    before = run.cells()
    run.objects[one], run.objects[two] = run.objects[two], run.objects[one]
    after = run.cells()
    differs = after is None or any(not same(before[n], after[n]) for n in before or {})
    found = run.verify()
    assert found.ok == (not differs), str(found)
    assert {m.key for m in found.mismatches} <= {one, two}


RECORD: dict[str, Any] = {
    "checksum": lambda r: {"checksum": f"{int(r['checksum'], 16) ^ 1:08x}"},
    "box": lambda r: {"box": [r["box"][0], [n + 1 for n in r["box"][1]]]},
    "state": lambda r: {"state": "done" if r["state"] == "empty" else "empty"},
    "fill": lambda r: {"fill": r["fill"] + 10**9, "missing": r["missing"] + 10**9},
    "missing": lambda r: {"missing": r["missing"] + 1},
    "rows": lambda r: {"tables": {"stats": 3}},
    "torn": None,
    "of another plan": lambda r: {"fingerprint": "0" * 64},
}


@given(runs(), st.sampled_from(sorted(RECORD)), st.data())
@examples(25)
def test_a_record_that_was_changed_is_found_and_named(
    run: Run, how: str, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(run.keys("/tiles/")))
    raw = run.get(key)
    if RECORD[how] is None:
        run.put(key, raw[:-1])
    else:
        record = json.loads(raw)
        run.put(key, json.dumps(record | RECORD[how](record)).encode())
    found = run.verify()
    assert [m.cause for m in found.mismatches] == ["record"], str(found)
    assert found.damaged == (key.rpartition("/")[2].removesuffix(".json"),)


# ---- who is to blame -------------------------------------------------------------------------

FIELD = gp.ArrayField(np.random.default_rng(3).random((60, 60)))
PATCHER = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())


def run_of(operator: Any, store: Any = None, **options: Any) -> Run:
    kept = MemoryStore() if store is None else store
    options = {"outer": (20, 20), "chunks": (10, 10), **options}
    plan = gp.plan(options.pop("field", FIELD), PATCHER, operator, kept, **options)
    plan.run("sync")
    return Run(plan, kept)


class Drifting:
    """Remembers how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        return x + self.calls


def by_slot(x: Any) -> Any:
    """Every answer depends on the place in the batch, and is the same when asked again."""
    return x + np.arange(len(x)).reshape(-1, 1, 1)


def test_an_operator_that_is_not_repeatable_is_told_apart() -> None:
    run = run_of(gp.Operator(Drifting(), version="1"))
    found = run.verify(8)
    assert {m.cause for m in found.mismatches} == {"operator"}
    assert found.damaged == ()
    assert "not repeatable" in str(found)
    with pytest.raises(gp.VerificationError, match=r"not repeatable.*seed its random numbers"):
        gp.verify(run.plan, 8)


def test_damage_under_an_operator_that_is_not_repeatable_is_still_damage() -> None:
    run = run_of(gp.Operator(Drifting(), version="1"))
    del run.objects["data/c/3/3"]
    found = run.verify()
    assert [(m.cause, m.record, m.cell) for m in found.mismatches] == [
        ("stored", "y20-40_x20-40", None)
    ]
    assert "checksum" in found.mismatches[0].detail


def test_an_operator_that_depends_on_its_batch_is_neither() -> None:
    found = run_of(gp.Operator(by_slot, batch=4)).verify(8)
    assert {m.cause for m in found.mismatches} == {"values"}
    assert "numpy" in found.mismatches[0].detail  # with which versions it was written
    assert found.damaged == ()


def test_a_window_names_what_the_sample_of_records_did_not_see() -> None:
    run = run_of(ops.mixing)
    del run.objects["data/c/3/3"]
    found = run.verify(60, records=0)
    assert found.records == 0
    assert {(m.cause, m.record, m.key) for m in found.mismatches} == {
        ("stored", "y20-40_x20-40", "data/c/3/3")
    }


def test_a_sample_of_records_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(ops.mixing)
    assert "4 of 9 compared with what is stored, a random sample" in str(run.verify(records=4))
    monkeypatch.setattr("geopatch_dask.execute.check.verify.CHEAP", 60 * 60 * 8 // 3)
    assert run.verify().records == 3
    assert run.verify(records="all").records == 9


# ---- repair ----------------------------------------------------------------------------------


def test_repair_forgets_what_is_wrong_and_a_run_mends_it() -> None:
    run = run_of(ops.mixing)
    right = read_back(run.store).tobytes()
    del run.objects["data/c/3/3"]
    torn = next(k for k in run.keys("/tiles/") if "y0-20_x0-20" in k)
    run.put(torn, b"{")
    found = run.verify(repair=True)
    assert set(found.repaired) == {"y20-40_x20-40", "y0-20_x0-20"}
    assert "run the same command again" in str(found)
    again = run.verify(4)
    assert (again.ok, again.whole, again.left_out["pending"]) == (True, False, 2)
    report = run.plan.run("sync")
    assert (report.complete, report.summary.states) == (True, {"done": 2})
    assert read_back(run.store).tobytes() == right
    assert run.verify(4).ok


def chained(cause: Exception) -> Exception:
    """As a library that wraps what the system said."""
    error = RuntimeError("cannot get")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "errors",
    [
        [OSError(errno.EMFILE, "Too many open files")],
        [OSError(errno.EIO, "Input/output error")],
        [OSError(errno.ESTALE, "Stale file handle")],
        [chained(OSError(errno.EMFILE, "Too many open files"))],
        [ConnectionResetError()],
        [MemoryError()],
        [ValueError("a codec"), OSError(errno.EMFILE, "Too many open files")],
    ],
    ids=repr,
)
def test_trouble_of_this_process_is_no_damage(
    errors: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(ops.mixing)
    before = dict(run.objects)
    left = iter(errors)

    class Troubled:
        """An array that cannot be read here and now."""

        def __init__(self, array: Any) -> None:
            self.array = array

        def __getattr__(self, name: str) -> Any:
            return getattr(self.array, name)

        def __getitem__(self, cells: Any) -> Any:
            raise next(left, errors[-1])

    opened = Stored._open
    monkeypatch.setattr(Stored, "_open", lambda self, array: Troubled(opened(self, array)))
    monkeypatch.setattr("geopatch_dask.execute.check.verify.READERS", 1)
    with pytest.raises(gp.TargetError, match=r"cannot read .*data"):
        run.verify(repair=True)
    assert run.objects == before
    monkeypatch.undo()
    assert run.verify(4).whole


def test_nothing_is_repaired_while_a_run_is_at_work() -> None:
    from geopatch_dask.store.jobs import Heartbeat, RunState
    from geopatch_dask.store.records import Ledger

    run = run_of(ops.mixing)
    Heartbeat(Ledger(run.plan.target, run.plan.fingerprint), RunState.begin()).beat()
    del run.objects["data/c/3/3"]
    found = run.verify(repair=True)
    assert (found.ok, found.repaired) == (False, ())
    assert "a run on" in found.problems[0]
    assert run.plan.run("sync").summary.states == {}


# ---- several arrays, scale, tables, two passes -----------------------------------------------


def test_a_record_names_what_decides_bytes() -> None:
    from geopatch_dask.execute.attempt.versions import versions

    run = run_of(ops.mixing)
    (first, *_) = Ledger(run.plan.target, run.plan.fingerprint).done().values()
    assert first.versions == versions()


def test_all_arrays_of_a_dict_are_compared() -> None:
    members = {"a": gp.OverlapAdd(), "b": gp.Max()}
    patcher = gp.Patcher(PATCHER.geometry, PATCHER.sampler, PATCHER.window, members)
    store = MemoryStore()
    options: dict[str, Any] = {"outer": (20, 20), "chunks": (10, 10)}
    plan = gp.plan(FIELD, patcher, ops.named("a", "b"), store, **options)
    plan.run("sync")
    run = Run(plan, store)
    assert run.verify(8).ok
    run.objects["b/c/0/4"] = run.objects["b/c/1/4"]
    [found] = run.verify().mismatches
    assert (found.what, found.key, found.record) == ("b", "b/c/0/4", "y0-20_x40-60")


@pytest.mark.parametrize(("scale", "num", "den"), [("3", 3, 1), ("1/2", 1, 2)])
def test_other_scales(scale: str, num: int, den: int) -> None:
    geometry = gp.Rectangular((16, 16), boundary="shrink")
    patcher = gp.Patcher(geometry, PATCHER.sampler, gp.Hann())
    operator = gp.Operator(ops.rescaled, options={"num": num, "den": den})
    store = MemoryStore()
    options: dict[str, Any] = {"outer": (20, 20), "chunks": (10, 10)}
    plan = gp.plan(FIELD, patcher, operator, store, output=gp.Output(scale=scale), **options)
    plan.run("sync")
    run = Run(plan, store)
    assert run.verify(8).ok
    del run.objects["data/c/2/2"]
    [found] = run.verify().mismatches
    assert (found.key, found.cell) == ("data/c/2/2", (20, 20))


def test_a_first_pass_is_taken_from_its_record_or_computed_again() -> None:
    run = run_of(ops.Informed("mean"), context=gp.MeanStd())
    assert run.verify(4).ok
    assert run.verify(4, context="recomputed").ok
    [key] = run.keys("context.json")
    document = json.loads(run.get(key))
    other = run_of(
        ops.Informed("mean"), context=gp.MeanStd(), field=gp.ArrayField(np.ones((60, 60)))
    )
    stranger = json.loads(other.get(other.keys("context.json")[0]))
    run.put(key, json.dumps(document | {"state": stranger["state"]}).encode())
    found = run.verify(4, context="recomputed")
    assert ("context.json", "values") in {(m.record, m.cause) for m in found.mismatches}
    del run.objects[key]
    found = run.verify(4)
    assert found.ok
    assert "computed again" in found.problems[0]


# ---- arguments and progress ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_mismatch": "shout"}, "neither 'raise' nor 'return'"),
        ({"context": "old"}, "neither 'recorded' nor 'recomputed'"),
        ({"windows": -1}, "0 for none"),
        ({"records": "some"}, "neither 'all' nor a number"),
        ({"operator": ops.mixing}, "a plan has its own operator"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    run = run_of(ops.mixing)
    with pytest.raises(gp.OptionError, match=message):
        gp.verify(run.plan, **options)


def test_a_target_of_which_nothing_is_done_is_refused() -> None:
    store = MemoryStore()
    plan = gp.plan(FIELD, PATCHER, ops.mixing, store, outer=(20, 20), chunks=(10, 10))
    with pytest.raises(gp.TargetError, match="there is no Zarr store"):
        gp.verify(plan)
    plan.run("sync")
    for key in [k for k in store._store_dict if "/tiles/" in k]:
        del store._store_dict[key]
    with pytest.raises(gp.TargetError, match=r"nothing of .* is recorded as done"):
        gp.verify(plan)


def test_progress_counts_records_then_windows() -> None:
    said: list[tuple[int, int, str]] = []
    run_of(ops.mixing).verify(3, progress=lambda *words: said.append(words))
    assert said == [(i, 9, "records") for i in range(1, 10)] + [
        (i, 3, "windows") for i in range(1, 4)
    ]


def test_it_is_plain_json() -> None:
    run = run_of(ops.mixing)
    del run.objects["data/c/3/3"]
    found = json.loads(json.dumps(run.verify(2).to_json(), allow_nan=False))
    assert found["ok"] is False
    assert found["mismatches"][0]["key"] == "data/c/3/3"
    assert "--repair" in found["mismatches"][0]["remedy"]
