"""``geopatch submit`` and ``geopatch retry``, and following or cancelling what runs."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopatch_dask as gp
from geopatch_dask.cli import commands
from geopatch_dask.cli.clusters import kind_of, scheduler_of
from geopatch_dask.cli.commands import job_of, make_plan, verdict
from geopatch_dask.cli.console import BAD_INPUT, INCOMPLETE, OK, Stopped, note, one_line, out
from geopatch_dask.cli.job import Job, load_job
from geopatch_dask.cli.progress import Following, progress_for
from geopatch_dask.clusters.address import is_address
from geopatch_dask.errors import OptionError, RunIncomplete
from geopatch_dask.execute.runs.retry import retry_plan
from geopatch_dask.execute.target.rebuild import rebuilt
from geopatch_dask.planning.units import seconds_text

__all__ = ["retry", "status", "submit"]

#: Seconds that a background process may take until it has begun.
BEGIN = 120.0


def submit(args: argparse.Namespace) -> int:
    """Start a job that goes on without this process."""
    job = job_of(args)
    if not is_address(kind_of(job)):
        return _in_background(job, args)
    if job.get("run", "share") is not None:
        raise OptionError("a share is run, not submitted: geopatch run --share I/N")
    with job.importable(), scheduler_of(job) as client:
        made = make_plan(job, client)
        made.submit(client, policy=job.policy, overwrite=args.overwrite)
    return _submitted(job.target)


def _submitted(target: str) -> int:
    out(f"submitted: {target}")
    note(f"geopatch status {target} --follow shows how it goes, --cancel stops it")
    return OK


def _in_background(job: Job, args: argparse.Namespace) -> int:
    """``geopatch run`` with the same words, in a process of its own on this machine."""
    log = Path(args.log or f"{Path(job.target).name}.log")
    if "://" not in job.target:
        log = Path(args.log or f"{job.target}.log")
    command = [sys.executable, "-m", "geopatch_dask", *run_words(args.words)]
    try:
        stream = log.open("ab")
    except OSError as error:
        raise OptionError(
            f"the log {log} cannot be written: {error.strerror}; give --log"
        ) from None
    with stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    _wait_for_begin(job, process, log)
    note(f"process {process.pid}, which logs to {log}")
    return _submitted(job.target)


def run_words(words: Sequence[str]) -> list[str]:
    """The words of ``geopatch submit`` as those of ``geopatch run``, which has no ``--log``.

    >>> run_words(["submit", "--log", "a.toml", "a.toml", "--log=b", "--log-every", "9"])
    ['run', 'a.toml', '--log-every', '9']
    """
    found, left = ["run"], iter(words[1:])
    for word in left:
        if word == "--log":
            next(left)  # its file
        elif not word.startswith("--log="):
            found.append(word)
    return found


def _wait_for_begin(job: Job, process: subprocess.Popen[bytes], log: Path) -> None:
    """Bad input is said here and now, not in a log that nobody reads."""
    deadline = time.monotonic() + BEGIN
    target = gp.Location(job.target, job.storage_options)
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            if code == OK:
                return
            lines = log.read_text("utf-8", "replace").splitlines() or ["no word"]
            if code == BAD_INPUT and len(lines) == 1:
                log.unlink()  # nothing but what is said here
            raise Stopped(one_line(lines[-1]).removeprefix("geopatch: error: "), code)
        try:
            if any(run.pid == process.pid for run in gp.attach(target).runs):
                return
        except gp.TargetError:
            pass  # nothing there yet
        time.sleep(0.2)


def retry(args: argparse.Namespace) -> int:
    """Compute what failed, and nothing else."""
    named = args.target.endswith(".toml")
    job = load_job(args.target if named else None, _retry_flags(args))
    target: Any = gp.Location(job.target, job.storage_options) if named else args.target
    with job.importable():
        changed = {"operator"} if args.operator_changed else ()
        plan = rebuilt(target, operator=args.operator, changed=changed)
        with (
            scheduler_of(job) as scheduler,
            progress_for(plan.n_supertiles, args.quiet, partial=True) as bar,
        ):
            report = retry_plan(plan, scheduler, job.policy, bar, "return")
    if not args.quiet:
        out(report)
    return verdict(report, args.allow_uncovered)


def _retry_flags(args: argparse.Namespace) -> dict[tuple[str, str], Any]:
    """What the command line says of the job, over what its file does."""
    given: dict[tuple[str, str], Any] = dict(commands.settings(args))
    for name in ("attempts", "timeout", "on_error"):
        given["run", name] = getattr(args, name)
    given["cluster", "kind"] = args.cluster
    return {place: value for place, value in given.items() if value is not None}


def status(args: argparse.Namespace) -> int:
    """Say how far a target is; or follow, or stop, whoever works on it."""
    if not (args.follow or args.cancel):
        return commands.status(args)
    target: Any = args.target
    if args.target.endswith(".toml"):
        job = load_job(args.target, {})
        target = gp.Location(job.target, job.storage_options)
    return cancel(target) if args.cancel else follow(target)


def follow(target: Any, quiet: bool = False) -> int:
    """Show how a run somewhere goes, until it ends."""
    job = gp.attach(target)
    if not job.alive:
        note("nobody works on it now")
        return OK if job.complete else INCOMPLETE
    try:
        with Following(quiet) as shown:
            report = job.wait(progress=shown)
    except KeyboardInterrupt:
        note("the run goes on; --cancel stops it", "left")
        return OK
    except RunIncomplete as error:
        note(str(error), "incomplete")
        return INCOMPLETE
    out(report)
    return verdict(report, allowed=False)


def cancel(target: Any) -> int:
    """Stop whatever works on a target."""
    job = gp.attach(target)
    live = [run for run in job.runs if run.alive]
    if not live:
        note("nobody works on it")
        return BAD_INPUT
    began = time.monotonic()
    job.cancel()
    took = seconds_text(time.monotonic() - began)
    out(f"{len(live)} runs stopped after {took}; what they did is kept")
    return OK
