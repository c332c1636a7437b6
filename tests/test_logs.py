"""A line per super-tile: what it says, where it goes, and what is never in it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from fault_operators import Misbehaves
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.execute.attempt import logs
from geopatch_dask.execute.attempt import policy as policies
from geopatch_dask.execute.attempt.events import Lost
from geopatch_dask.report.outcome import Outcome

BAD = 1e6


@pytest.fixture(autouse=True)
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The logger as it is in a new process."""
    monkeypatch.setattr(policies, "BACKOFF", 0.01)
    found = logging.getLogger(logs.LOGGER)

    def blank() -> None:
        for handler in list(found.handlers):
            found.removeHandler(handler)
        found.setLevel(logging.NOTSET)
        found.propagate, logs._own.sets_level = True, False

    blank()
    yield found
    blank()


def planned(folder: Path, target: Any = None, flag: str = "") -> gp.Plan:
    values = np.random.default_rng(1).standard_normal((60, 60)).astype("float32")
    values[30, 50] = BAD
    if flag:
        (folder / "flag").write_text(flag)
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    operator = gp.Operator(Misbehaves(BAD, folder / "flag"), version="1")
    target = MemoryStore() if target is None else target
    return gp.plan(
        *(gp.ArrayField(values), patcher, operator, target),
        outer=20,
        chunks=10,
        slots=2,
        memory_limit="1 GiB",
    )


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_json_says_what_the_report_says(
    tmp_path: Path, scheduler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path)
    report = plan.run(scheduler, policy=gp.Policy(log="json"))
    told = lines(capsys.readouterr().err)
    assert sorted(line["id"] for line in told) == sorted(tile.id for tile in plan.layout)
    for name in ("patches", "bytes_read", "bytes_written", "uncovered", "retries"):
        assert sum(line[name] for line in told) == report.summary.numbers[name], name
    for phase, seconds in report.summary.seconds.items():
        heard = sum(line["seconds"][phase] for line in told)
        assert heard == pytest.approx(seconds, abs=9 * 0.0006), phase
    for line in told:
        assert line["plan"] == plan.fingerprint[:8]
        assert (line["event"], line["level"], line["attempt"]) == ("supertile", "info", 1)
        assert line["state"] == "done"
        assert line["target"] == plan.target.display
        assert line["pid"] == os.getpid()
        assert line["worker"] is None
        assert "error" not in line


def test_failures_and_what_becomes_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, flag="network")
    plan.run("sync", policy=gp.Policy(log="json", attempts=3), on_failure="return")
    bad = [line for line in lines(capsys.readouterr().err) if line["id"] == "y20-40_x40-60"]
    assert [(line["attempt"], line["state"], line["level"]) for line in bad] == [
        (1, "failed", "warning"),
        (2, "failed", "warning"),
        (3, "failed", "warning"),
        (3, "given_up", "error"),
    ]
    for line in bad:
        assert line["error"]["type"] == "ConnectionResetError"
        assert line["error"]["kind"] == "transient"
        assert line["error"]["message"] == "the model server hung up"


def test_text_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned(tmp_path, flag="raise").run("sync", policy=gp.Policy(log="text"), on_failure="return")
    told = capsys.readouterr().err
    assert " INFO super-tile y0-20_x0-20 done in " in told
    assert " WARNING super-tile y20-40_x40-60 failed: RuntimeError: cannot digest 1e+06" in told
    assert " ERROR super-tile y20-40_x40-60 given up: RuntimeError" in told
    assert "16 patches, 2.4 KiB read, " in told


def test_nothing_is_said_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned(tmp_path, flag="raise").run("sync", on_failure="return")
    assert capsys.readouterr().err == ""
    (tmp_path / "flag").unlink()
    planned(tmp_path).run("sync", policy=gp.Policy(log="json"))
    assert capsys.readouterr().err != ""
    planned(tmp_path).run("sync")  # the run before does not count as asking
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("word", "style"), [("json", "json"), ("text", "text"), (None, "")])
def test_daskʼs_configuration_is_asked(
    tmp_path: Path, word: str | None, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with dask.config.set({"geopatch.log": word}):
        planned(tmp_path).run("sync")
        told = capsys.readouterr().err
        assert told.startswith("{") == (style == "json")
        assert (" INFO super-tile" in told) == (style == "text")
        planned(tmp_path).run("sync", policy=gp.Policy(log="json"))  # the run's own word wins
        assert capsys.readouterr().err.startswith("{")


def test_a_handler_of_oneʼs_own_gets_them(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[logging.LogRecord] = []

    class Mine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    logger.addHandler(Mine())
    plan = planned(tmp_path)
    plan.run("sync")
    assert capsys.readouterr().err == ""
    assert len(heard) == plan.n_supertiles
    assert heard[0].getMessage().startswith("super-tile y0-20_x0-20 done in ")
    assert heard[0].geopatch["patches"] == 16  # type: ignore[attr-defined]  # for their formatter
    logger.setLevel(logging.ERROR)
    planned(tmp_path, flag="raise").run("sync", on_failure="return")
    assert [r.levelname for r in heard[plan.n_supertiles :]] == ["ERROR"]


def test_a_beginning_is_told_at_level_debug(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.setLevel(logging.DEBUG)
    planned(tmp_path).run("sync", policy=gp.Policy(log="json"))
    told = lines(capsys.readouterr().err)
    assert [line["state"] for line in told] == ["started", "done"] * 9
    assert told[0]["level"] == "debug"


def test_a_lost_worker_is_told_by_the_driver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, policy = planned(tmp_path), gp.Policy(log="json")
    error = {"type": "WorkerLost", "message": "it died", "traceback": "", "kind": "lost"}
    logs.log_lost(plan, Lost(4, 2, error), policy)
    logs.log_lost(plan, Lost(4, 2, error, timed_out=True), policy)  # its worker said so itself
    (line,) = lines(capsys.readouterr().err)
    assert (line["id"], line["attempt"], line["state"]) == ("y20-40_x20-40", 2, "lost")
    assert (line["level"], line["error"]["type"]) == ("warning", "WorkerLost")


@given(st.text(max_size=2000))
def test_a_line_is_one_line_whatever_an_error_says(message: str) -> None:
    plan = _PLAN
    error = {"type": "ValueError", "message": message, "traceback": message, "kind": "permanent"}
    told = logs._document(plan, Outcome(0, "y0-20_x0-20", "failed", error=error), "failed", None)
    assert "\n" not in json.dumps(told)
    assert "\n" not in logs._text(told)
    assert len(told["error"]["message"]) <= logs.LONGEST


_PLAN = gp.plan(
    gp.ArrayField(np.zeros((20, 20), "float32")),
    gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann()),
    np.sqrt,
    MemoryStore(),
)


def test_secrets_are_in_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    monkeypatch.setenv("MY_KEY", "AKIAVERYSECRETKEY000")
    monkeypatch.setenv("MY_SECRET", "s3cr3t/that+is/long0000000")
    options = {"key": "env:MY_KEY", "secret": "env:MY_SECRET"}
    target = gp.Location("s3://bucket/out.zarr", options)
    plan = replace(_PLAN, target=target)
    message = (
        "PUT https://AKIAVERYSECRETKEY000:s3cr3t/that+is/long0000000@host/x?"
        "X-Amz-Signature=0123456789abcdef failed"
    )
    error = {"type": "OSError", "message": message, "traceback": message, "kind": "transient"}
    for style in ("json", "text"):
        outcome = Outcome(0, "y0-20_x0-20", "failed", error=error)
        logs.log_tile(plan, outcome, "failed", gp.Policy(log=style))  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert "OSError" in told
    assert "bucket/out.zarr" in told
    for secret in ("AKIAVERY", "s3cr3t", "0123456789abcdef"):
        assert secret not in told, secret


def test_a_form_that_there_is_not() -> None:
    with pytest.raises(gp.OptionError, match="log 'xml' is neither 'text' nor 'json'"):
        gp.Policy(log="xml")  # type: ignore[arg-type]


SCRIPT = """
import sys
import numpy as np
import geopatch_dask as gp
from fault_operators import Misbehaves

if __name__ == "__main__":
    folder, log = sys.argv[1], sys.argv[2] or None
    values = np.ones((60, 60), "f4")
    values[30, 50] = 1e6  # where no patch of the trial at plan time sees it
    patcher = gp.Patcher(gp.Rectangular((10, 10)), gp.RegularStride((5, 5)), gp.Hann())
    operator = gp.Operator(Misbehaves(1e6, folder + "/flag"), version="1")
    plan = gp.plan(
        gp.ArrayField(values), patcher, operator, folder + "/out.zarr", outer=20, chunks=10,
        slots=2, memory_limit="1 GiB",
    )
    print(plan.fingerprint)
    plan.run(policy=gp.Policy(log=log, timeout=3, backups=False))
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("log", ["json", ""])
def test_worker_processes_write_them(tmp_path: Path, log: str) -> None:
    (tmp_path / "run.py").write_text(SCRIPT)
    (tmp_path / "flag").write_text("once-hang")
    environment = {**os.environ, **({} if log else {"DASK_GEOPATCH__LOG": "json"})}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "run.py", str(tmp_path), log],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = lines("\n".join(x for x in done.stderr.splitlines() if x.startswith("{")))
    assert {line["plan"] for line in told} == {done.stdout[:8]}
    ended = [line for line in told if line["state"] == "done"]
    assert sorted(line["ordinal"] for line in ended) == list(range(9))
    assert {line["worker"] for line in ended} <= {"0", "1", "2", "3"}
    hung = [line for line in told if line["state"] == "timed_out"]
    assert [(line["id"], line["attempt"]) for line in hung] == [("y20-40_x40-60", 1)]
    assert hung[0]["worker"] is not None
