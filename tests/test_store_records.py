"""Records are trusted whole or not at all; the ledger never guesses."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from geopatch_dask.errors import RecordError, TargetError
from geopatch_dask.patch.boxes import Box, box_id
from geopatch_dask.store import records
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import SCHEMA, Ledger, Record, fingerprints, now

FP = "0123456789abcdef"
OTHER = "fedcba9876543210"
PLAN = json.dumps({"fingerprint": FP, "n": 3})
ERROR = {"type": "ValueError", "message": "no", "traceback": "line 1\nline 2"}


def record(tile="3", **change):
    values = {
        "id": tile,
        "ordinal": int(tile) if tile.isdecimal() else 0,
        "fingerprint": FP,
        "layout": "abcd",
        "box": Box((0, 4), (4, 8)),
        "state": "done",
        "attempts": 2,
        "seconds": {"read": 0.25, "compute": 1.5},
        "bytes_read": 2**40,
        "checksum": "deadbeef",
        "host": "nöde",
        "started": now(),
        "versions": {"zarr": "3.1.6"},
    }
    return Record(**{**values, **change})


@pytest.fixture(params=["local", "memory-url", "store"])
def ledger(request, tmp_path):
    if request.param == "local":
        return Ledger(Location(tmp_path / "out.zarr"), FP)
    if request.param == "memory-url":
        return Ledger(Location(f"memory://b/{uuid.uuid4().hex}/out.zarr"), FP)
    return Ledger(Location.of(MemoryStore()), FP)


class TestRecord:
    def test_round_trip(self):
        for one in (record(), record(state="empty"), record(state="failed", error=ERROR)):
            assert Record.from_bytes(one.to_bytes()) == one
            assert pickle.loads(pickle.dumps(one)) == one

    def test_it_is_small_plain_json(self):
        data = record().to_bytes()
        assert len(data) < 1000
        assert json.loads(data)["box"] == [[0, 4], [4, 8]]
        assert json.loads(data)["schema"] == SCHEMA

    def test_every_truncation_is_refused(self):
        data = record(state="failed", error=ERROR).to_bytes()
        for n in range(len(data)):
            with pytest.raises(RecordError, match=r"tiles/3\.json: (empty file|torn or not JSON)"):
                Record.from_bytes(data[:n], "tiles/3.json")

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_record_error(self, data):
        with pytest.raises(RecordError):
            Record.from_bytes(data)

    @given(data=st.data())
    def test_any_value_in_any_field_is_a_record_or_a_record_error(self, data):
        raw = json.loads(record().to_bytes())
        name = data.draw(st.sampled_from(sorted(raw)))
        raw[name] = data.draw(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=5)
            | st.lists(st.integers(), max_size=3)
            | st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2)
        )
        try:
            kept = Record.from_bytes(json.dumps(raw).encode())
        except RecordError:
            return
        assert json.loads(kept.to_bytes()) == raw

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"schema": SCHEMA + 1}, f"record version {SCHEMA + 1}, this package reads {SCHEMA}"),
            ({"schema": None}, "record version None"),
            ({"schema": True}, "record version True"),
            ({"schema": float(SCHEMA)}, "record version"),
            ({"ordinal": "3"}, "ordinal is '3', not a whole number"),
            ({"ordinal": True}, "ordinal is True"),
            ({"patches": -1}, "patches is -1"),
            ({"fill": 1.5}, "fill is 1.5"),
            ({"id": 3}, "id is 3, not text"),
            ({"state": "finished"}, "state is 'finished'"),
            ({"state": "failed"}, "state is 'failed', error is None"),
            ({"error": ERROR}, "state is 'done', error is"),
            ({"error": {"type": "E"}}, "not type, message and traceback"),
            ({"seconds": {"read": "1"}}, "not times by phase"),
            ({"seconds": {"read": -1}}, "not times by phase"),
            ({"seconds": [1]}, "not times by phase"),
            ({"versions": {"zarr": 3}}, "not text by package"),
            ({"box": [[0], [1, 2]]}, "is not .start, stop. in cells"),
            ({"box": [[0.5], [1]]}, "is not .start, stop. in cells"),
            ({"box": "0:4"}, "is not .start, stop. in cells"),
            ({"extra": 1}, "unknown field 'extra'"),
        ],
    )
    def test_wrong_values(self, change, reason):
        raw = {**json.loads(record().to_bytes()), **change}
        with pytest.raises(RecordError, match=rf"^tiles/3\.json: .*{reason}"):
            Record.from_bytes(json.dumps(raw).encode(), "tiles/3.json")

    def test_missing_field(self):
        for name in [f.name for f in dataclasses.fields(Record)]:
            raw = json.loads(record().to_bytes())
            del raw[name]
            with pytest.raises(RecordError, match=r"record version|missing field"):
                Record.from_bytes(json.dumps(raw).encode())

    @pytest.mark.parametrize("text", ["[]", "null", '"done"', "NaN", '{"a": NaN}', "[" * 100_000])
    def test_json_that_is_no_record(self, text):
        with pytest.raises(RecordError):
            Record.from_bytes(text.encode())

    def test_made_wrong(self):
        with pytest.raises(RecordError, match="ordinal is -1"):
            record(ordinal=-1)
        with pytest.raises(RecordError, match="not times by phase"):
            record(seconds={"read": float("nan")})

    def test_now(self):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", now())


class TestLedger:
    def test_where_it_is(self, tmp_path):
        place = Location(tmp_path / "out.zarr")
        Ledger(place, FP).put(record())
        assert (tmp_path / "out.zarr.geopatch/01234567/tiles/3.json").is_file()
        assert not (tmp_path / "out.zarr").exists()

    def test_nothing_there(self, ledger):
        assert ledger.read_plan() is None
        assert ledger.read_report() is None
        assert ledger.get("3") is None
        assert ledger.done() == ledger.failed() == {}
        assert ledger.problems == []
        assert fingerprints(ledger.location) == []
        ledger.delete("3")

    def test_plan_and_report(self, ledger):
        ledger.write_plan(PLAN)
        assert ledger.read_plan() == PLAN
        ledger.write_report({"seconds": 3.5})
        assert ledger.read_report() == {"seconds": 3.5}
        Ledger(ledger.location, OTHER).write_plan(json.dumps({"fingerprint": OTHER}))
        Ledger(ledger.location, "77777777").write_report({})
        assert fingerprints(ledger.location) == [FP, OTHER]

    def test_put_get_delete(self, ledger):
        one = record()
        ledger.put(one)
        assert ledger.get("3") == one
        assert ledger.done() == {"3": one}
        ledger.delete("3")
        assert ledger.get("3") is None

    def test_done_after_failed(self, ledger):
        bad = record(state="failed", error=ERROR)
        ledger.put_failed(bad)
        assert ledger.failed() == {"3": bad}
        assert ledger.done() == {}
        assert ledger.get("3") is None
        assert ledger.is_given_up("3")
        ledger.forget_failure("3")
        assert not ledger.is_given_up("3")
        ledger.put(record())
        assert ledger.failed() == {}
        assert set(ledger.done()) == {"3"}
        ledger.put_failed(bad)
        ledger.delete("3")
        assert ledger.failed() == ledger.done() == {}

    def test_many(self, ledger):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: ledger.put(record(str(i))), range(200)))
        done = ledger.done()
        assert [r.ordinal for r in done.values()] == list(range(200))
        assert list(done) == [str(i) for i in range(200)]
        assert ledger.problems == []

    def test_bad_records_are_not_done_and_told(self, ledger):
        good = record("0")
        ledger.put(good)
        folder = ledger.folder
        folder.write("tiles/1.json", record("1").to_bytes()[:-20])
        folder.write("tiles/2.json", b"")
        folder.write("tiles/3.json", record("3", fingerprint=OTHER).to_bytes())
        folder.write("tiles/4.json", record("5").to_bytes())
        folder.write("tiles/6.json", record("6", state="failed", error=ERROR).to_bytes())
        folder.write("tiles/7.json", pickle.dumps(record("7")))
        folder.write("tiles/bad name.json", record("8").to_bytes())
        newer = json.loads(record("9").to_bytes())
        folder.write("tiles/9.json", json.dumps({**newer, "schema": 99}).encode())
        assert ledger.done() == {"0": good}
        text = "\n".join(ledger.problems)
        assert len(ledger.problems) == 8
        for part in (
            "tiles/1.json: torn or not JSON",
            "tiles/2.json: empty file",
            "super-tile '3' is of plan fedcba98, not of 01234567",
            "tiles/4.json: holds the record of super-tile '5'",
            "state 'failed' is in its wrong place",
            "tiles/7.json: torn or not JSON",
            "'bad name' cannot name a super-tile",
            "record version 99",
        ):
            assert part in text
        with pytest.raises(RecordError, match=r"tiles/1\.json: torn"):
            ledger.get("1")
        ledger.put(record("1"))
        assert set(ledger.done()) == {"0", "1"}
        assert len(ledger.problems) == 7

    def test_a_box_that_is_not_that_of_the_id(self, ledger):
        layout = {"dims": ["y", "x"], "shape": [40, 30]}
        good = record("y0-20_x0-20", box=Box((0, 0), (20, 20)))
        wrong = {
            "is not the one it is named after": (Box((0, 0), (40, 30)), Box((0,), (20,))),
            "lies outside the output": (Box((0, 0), (20, 31)), Box((20, 0), (20, 30))),
        }
        for reason, boxes in wrong.items():
            for box in boxes:
                name = "y0-20_x0-20"
                if "outside" in reason:
                    name = box_id(layout["dims"], box)
                ledger.put(replace(good, id=name, box=box))
                found = Ledger(ledger.location, FP)
                assert name in found.done()  # nobody knows the plan
                found.write_plan(json.dumps({"fingerprint": FP, "layout": layout}))
                assert name not in found.done()
                assert reason in found.problems[0]
                with pytest.raises(RecordError, match=rf"tiles/{name}\.json: .*{reason}"):
                    Ledger(ledger.location, FP).get(name)
                ledger.delete(name)
                ledger.folder.delete("plan.json")
        ledger.write_plan(json.dumps({"fingerprint": FP, "layout": layout}))
        ledger.put(good)
        assert ledger.done() == {good.id: good}

    def test_another_layout(self, ledger):
        ledger.put(record("0"))
        ledger.put(record("1", layout="other"))
        assert set(ledger.done()) == {"0", "1"}

    def test_what_is_refused(self, ledger):
        with pytest.raises(RecordError, match="is of plan fedcba98, not of 01234567"):
            ledger.put(record(fingerprint=OTHER))
        with pytest.raises(RecordError, match="wrong place"):
            ledger.put(record(state="failed", error=ERROR))
        with pytest.raises(RecordError, match="wrong place"):
            ledger.put_failed(record())
        with pytest.raises(RecordError, match="cannot name a super-tile"):
            ledger.get("../../etc/passwd")
        with pytest.raises(RecordError, match=r"plan\.json has fingerprint None"):
            ledger.write_plan("{}")
        with pytest.raises(RecordError, match="torn or not JSON"):
            ledger.write_plan("{")
        with pytest.raises(RecordError, match="is no fingerprint"):
            Ledger(ledger.location, "../..")

    def test_a_torn_plan(self, ledger):
        ledger.folder.write("plan.json", PLAN.encode()[:-3])
        with pytest.raises(RecordError, match=r"01234567/plan\.json: torn"):
            ledger.read_plan()
        with pytest.raises(RecordError, match=r"01234567/plan\.json: torn"):
            fingerprints(ledger.location)
        ledger.folder.write("plan.json", json.dumps({"fingerprint": OTHER}).encode())
        with pytest.raises(RecordError, match="its folder is for"):
            ledger.read_plan()
        with pytest.raises(RecordError, match="is not that of its folder"):
            fingerprints(ledger.location)

    def test_unreachable_is_not_absent(self, tmp_path):
        (tmp_path / "out.zarr.geopatch").write_text("a file")
        ledger = Ledger(Location(tmp_path / "out.zarr"), FP)
        for act in (ledger.done, ledger.read_plan, lambda: ledger.get("3")):
            with pytest.raises(TargetError, match="in each other's place"):
                act()

    def test_credentials_leave_the_error(self, monkeypatch):
        monkeypatch.setenv("GP_SECRET", "hunter2-hunter2")
        place = Location(f"memory://b/{uuid.uuid4().hex}/o", {"token": "env:GP_SECRET"})
        ledger = Ledger(place, FP)
        error = {**ERROR, "message": "login hunter2-hunter2 at s3://me:pw@host/x failed"}
        ledger.put_failed(record(state="failed", error=error))
        kept = ledger.failed()["3"].error["message"]
        assert kept == "login *** at s3://***@host/x failed"
        assert b"hunter2" not in ledger.folder.read("failed/3.json")

    def test_it_travels(self, tmp_path):
        ledger = Ledger(Location(tmp_path / "out.zarr"), FP)
        ledger.put(record())
        assert pickle.loads(pickle.dumps(ledger)) == ledger
        assert pickle.loads(pickle.dumps(ledger)).get("3") == record(
            started=ledger.get("3").started
        )

    @pytest.mark.parametrize("pause", [0.0, 0.002])
    def test_many_threads_read_where_answers_take_time(self, ledger, monkeypatch, pause):
        for i in range(300):
            ledger.put(record(str(i)))
        threads, read = set(), Location.read

        def reads(self, name):
            threads.add(threading.get_ident())
            time.sleep(pause)
            return read(self, name)

        monkeypatch.setattr(Location, "read", reads)
        # A busy machine is no slow store.
        monkeypatch.setattr(records, "_QUICK", 0.001 if pause else 1.0)
        done = ledger.done()
        assert list(done) == [str(i) for i in range(300)]
        assert ledger.problems == []
        assert (len(threads) > 1) == bool(pause)
        assert threading.get_ident() in threads
