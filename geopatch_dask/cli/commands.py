"""``geopatch plan``, ``run`` and ``status``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopatch_dask as gp
from geopatch_dask.cli.console import (
    BAD_INPUT,
    INCOMPLETE,
    INTERRUPTED,
    OK,
    Stopped,
    note,
    one_line,
    out,
)
from geopatch_dask.cli.job import Job, load_job
from geopatch_dask.cli.keys import KEYS, find, nearest, toml_value
from geopatch_dask.cli.progress import progress_for
from geopatch_dask.errors import GeopatchError, OptionError
from geopatch_dask.execute.connect import connect
from geopatch_dask.execute.report import Report
from geopatch_dask.execute.runners import Scheduler, resources
from geopatch_dask.planning.drawing import pyplot

__all__ = ["job_of", "make_plan", "plan", "run", "run_plan", "status"]

_LOCAL = ("local", "processes", "threads", "sync")


def plan(args: argparse.Namespace) -> int:
    """Say what a job would do; writes nothing but what is asked for."""
    job = job_of(args)
    if args.draw:
        pyplot()  # what is missing for it is said before the work
    with job.importable(), _planning_on(job) as scheduler:
        made = make_plan(job, scheduler)
        explanation = made.explain()
    if args.json == "-":
        out(made.to_json())
    else:
        out(explanation)
    if args.json and args.json != "-":
        _save(args.json, made.to_json())
    if args.draw:
        _drawn(args.draw, explanation.draw)
    return OK


def run(args: argparse.Namespace) -> int:
    """Do a job, or what is left of it."""
    job = job_of(args)
    quiet = bool(job.get("run", "quiet", False))
    with job.importable(), _scheduler(job) as scheduler:
        made = make_plan(job, scheduler)
        report = run_plan(job, made, scheduler, overwrite=args.overwrite)
    if not quiet:
        out(report)
    return judged(
        report.complete,
        report.supertiles,
        len(report.failures),
        report.totals.get("uncovered", 0),
        bool(job.get("run", "allow_uncovered", False)),
        report.failures[0].error if report.failures else "",
    )


def status(args: argparse.Namespace) -> int:
    """Say how far a target is."""
    allowed = args.allow_uncovered
    target, options = args.target, None
    if target.endswith(".toml"):
        job = load_job(target, {})
        target, options = job.target, job.storage_options
        allowed = allowed or bool(job.get("run", "allow_uncovered", False))
    if args.draw:
        pyplot()
    found = gp.status(target, options)
    out(json.dumps(_status_json(found), indent=1) if args.json else found)
    if args.draw:
        _drawn(args.draw, found.draw)
    failed = [r for r in found.records.values() if r.state == "failed"]
    first = (failed[0].error or {}) if failed else {}
    return judged(
        found.complete,
        found.layout.count,
        len(failed),
        found.totals()["uncovered"],
        allowed,
        f"{first.get('type')}: {first.get('message')}" if first else "",
    )


# ---- shared with the demo ------------------------------------------------------------------


def job_of(args: argparse.Namespace) -> Job:
    """The job of a command line: its file, then ``--set``, then the flags."""
    given: dict[tuple[str, str], Any] = {}
    for text in args.set or ():
        place, equals, value = text.partition("=")
        section, dot, name = place.strip().partition(".")
        if not equals or not dot:
            raise OptionError(f"--set {text!r} is not of the form section.key=value")
        find(section, name)
        given[section, name] = toml_value(value.strip())
    for key in KEYS:
        value = getattr(args, f"{key.section}.{key.name}", None)
        if value is not None:
            given[key.section, key.name] = value
    return load_job(args.job, given)


def make_plan(job: Job, scheduler: Scheduler) -> gp.Plan:
    """The plan of a job.

    Raises
    ------
    GeopatchError
        For bad input.
    Stopped
        For anything else that goes wrong before the first super-tile.
    """
    slots, memory = _resources(job, scheduler)
    try:
        return gp.plan(**job.plan_arguments(), slots=slots, memory_limit=memory)
    except GeopatchError:
        raise
    except Exception as error:  # of a reader, or of the user's own code
        raise Stopped(
            f"{type(error).__name__}: {error}; --traceback shows where", BAD_INPUT
        ) from error


def run_plan(job: Job, made: gp.Plan, scheduler: Scheduler, overwrite: bool = False) -> Report:
    """Run a plan with its progress on stderr.

    Raises
    ------
    GeopatchError
        When the target cannot be what the plan needs; nothing has been computed then.
    Stopped
        When the run itself ends before its time.
    """
    quiet = bool(job.get("run", "quiet", False))
    every = float(job.get("run", "log_every", 10.0))
    progress = progress_for(made.n_supertiles, quiet, every)
    try:
        with progress:
            return made.run(scheduler, overwrite=overwrite, progress=progress, on_failure="return")
    except KeyboardInterrupt as error:
        raise Stopped(
            f"{_kept(made)}; run the same command again to finish", INTERRUPTED, "interrupted"
        ) from error
    except Exception as error:
        if isinstance(error, GeopatchError) and not progress.counts.done:
            raise
        raise Stopped(
            f"the run broke off ({type(error).__name__}: {error}); {_kept(made)}: mend the cause "
            "and run the same command again",
            INCOMPLETE,
        ) from error


def _kept(made: gp.Plan) -> str:
    """What a run leaves behind, by its records: workers may have finished more than was told."""
    try:
        counts = gp.status(made.target).counts
    except GeopatchError:
        return "what was done is kept"
    done = counts["done"] + counts["empty"]
    return f"{done} of {made.n_supertiles} super-tiles are done and kept"


def judged(
    complete: bool, supertiles: int, failed: int, uncovered: int, allowed: bool, first: str
) -> int:
    """The exit code, and one line on stderr that says why it is not 0.

    Parameters
    ----------
    complete : bool
    supertiles, failed : int
    uncovered : int, cells
    allowed : bool
        Whether uncovered cells are all right.
    first : str
        The error of the first super-tile that failed.
    """
    if not complete and failed:
        note(
            f"{failed} of {supertiles} super-tiles failed ({one_line(first)}); the others are "
            "kept: mend the cause and run the same command again",
            "incomplete",
        )
    elif not complete:
        note("not all super-tiles are done; run the same command again to finish", "incomplete")
    elif uncovered and not allowed:
        note(
            f"{uncovered:,} cells were reached by no patch and hold the fill value; "
            "boundary = 'shift' covers every cell of a regular stride, --allow-uncovered "
            "accepts them",
            "incomplete",
        )
    else:
        return OK
    return INCOMPLETE


# ---- parts ---------------------------------------------------------------------------------


@contextmanager
def _scheduler(job: Job) -> Iterator[Scheduler]:
    """What runs the plan: None is a cluster of processes on this machine."""
    name = _scheduler_name(job)
    if "://" not in name:
        yield None if name == "local" else name
        return
    with connect(name, job.folders) as client:
        yield client


@contextmanager
def _planning_on(job: Job) -> Iterator[Scheduler]:
    """As :func:`_scheduler`; a cluster is asked only for what the job does not say."""
    told = job.get("run", "workers") is not None and job.memory_limit is not None
    if told and "://" in _scheduler_name(job):
        yield None
        return
    with _scheduler(job) as scheduler:
        yield scheduler


def _scheduler_name(job: Job) -> str:
    name = str(job.get("run", "scheduler", "local"))
    if name not in _LOCAL and "://" not in name:
        raise OptionError(
            f"[run] scheduler {name!r} is unknown; did you mean {nearest(name, _LOCAL)!r}? There "
            f"are {', '.join(_LOCAL)}, and addresses as in tcp://host:8786"
        )
    return name


def _resources(job: Job, scheduler: Scheduler) -> tuple[int, int]:
    """Slots, and bytes of memory of one."""
    slots, memory = resources(scheduler)
    workers = job.get("run", "workers")
    if workers is not None and scheduler in (None, "threads", "processes"):
        slots, memory = workers, memory * slots // workers
    return slots, job.memory_limit or memory


def _status_json(found: gp.Status) -> dict[str, Any]:
    failures = [r for r in found.records.values() if r.state == "failed"]
    return {
        "schema": 1,
        "target": found.target,
        "fingerprint": found.fingerprint,
        "complete": found.complete,
        "supertiles": found.layout.count,
        "states": found.counts,
        "totals": found.totals(),
        "failures": [{"id": r.id, "error": _error_text(r.error)} for r in failures],
        "problems": list(found.problems),
    }


def _error_text(error: Mapping[str, str] | None) -> str:
    return f"{error['type']}: {error['message']}" if error else ""


def _save(path: str, text: str) -> None:
    try:
        Path(path).write_text(text + "\n", "utf-8")
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}") from None
    note(f"the plan is in {path}")


def _drawn(path: str, draw: Any) -> None:
    try:
        draw(path)
    except (OSError, ValueError) as error:  # no such folder; a suffix matplotlib does not know
        raise OptionError(f"{path} cannot be drawn: {error}") from None
    note(f"the drawing is in {path}")
