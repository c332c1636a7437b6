"""``geopatch verify`` and ``geopatch doctor``; certificates for tests."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from geopatch_dask.cli.console import INCOMPLETE, OK, note, out
from geopatch_dask.cli.job import Job, load_job
from geopatch_dask.clusters.address import connect, is_address
from geopatch_dask.clusters.tls import CA, CERTIFICATE, KEY, make_certificates
from geopatch_dask.errors import OptionError
from geopatch_dask.execute.check.doctor import doctor as diagnose
from geopatch_dask.execute.check.verify import Compared
from geopatch_dask.execute.check.verify import verify as compare

__all__ = ["doctor", "verify"]


def verify(args: argparse.Namespace) -> int:
    """Compare a target with its records, and windows of it with what its plan computes."""
    job, target, options = _place(args.target)
    with job.importable(), _progress(args.json) as progress:
        found = compare(
            target,
            args.windows,
            seed=args.seed,
            records=_records(args.records),
            storage_options=options,
            repair=args.repair,
            on_mismatch="return",
            progress=progress,
        )
    out(json.dumps(found.to_json(), indent=1) if args.json else found)
    if not found.ok:
        note(f"{found.found:,} differences, see above", "mismatch")
    elif not found.whole:
        left = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items() if n)
        note(f"{left}: what is done is right; {_rest(found.left_out)}", "incomplete")
    return OK if found.ok and found.whole else INCOMPLETE


def doctor(args: argparse.Namespace) -> int:
    """Look at this machine, a cluster, and what lies beside a target; or make certificates."""
    job, target, options = Job({}), None, None
    if args.target is not None:
        job, target, options = _place(args.target)
    address, tls = _asked(args, job)
    if args.tls is not None and address is None:
        if target is not None or args.repair:
            raise OptionError("doctor --tls makes certificates and looks at nothing: drop the rest")
        return _certificates(args.tls)
    with ExitStack() as stack:
        client = None
        if address is not None:
            client = stack.enter_context(connect(address, job.folders, tls))
        found = diagnose(target, client=client, storage_options=options, repair=args.repair)
    out(json.dumps(found.to_json(), indent=1) if args.json else found)
    if not found.ok:
        note(f"{len(found.errors)} errors, {len(found.warnings)} warnings", "doctor")
    return OK if found.ok else INCOMPLETE


# ---- parts ---------------------------------------------------------------------------------


def _rest(left_out: Mapping[str, int]) -> str:
    """How what is not done gets done: ``retry`` is for what was tried, and failed."""
    run = "run the job again for those that are pending"
    retry = "geopatch retry computes what failed"
    pending = left_out["pending"]
    tried = sum(left_out.values()) - pending
    return ", ".join([*([run] * (pending > 0)), *([retry] * (tried > 0))])


def _place(target: str) -> tuple[Job, str, dict[str, Any] | None]:
    """The job (for its folders), the target and its options, from a target or a job file."""
    if target.endswith(".toml"):
        job = load_job(target, {})
        return job, job.target, job.storage_options
    return Job({}, (str(Path.cwd()),)), target, None


def _asked(args: argparse.Namespace, job: Job) -> tuple[str | None, str | None]:
    """The cluster to look at, and the certificates for it: by flag, else those of the job file."""
    kind, words = job.cluster
    if args.cluster is not None:
        if not is_address(args.cluster):
            raise OptionError(
                f"--cluster {args.cluster!r} is no address, and doctor starts nothing; give one as "
                "in tcp://host:8786"
            )
        kind = args.cluster
    address = kind if is_address(kind) else None
    return address, args.tls or (words.get("tls") if address else None)


def _certificates(folder: str) -> int:
    """A set for tests, and what to tell Dask of it."""
    made = make_certificates(folder)
    place = made[0].parent.absolute()
    files = f"--tls-ca-file {place / CA} --tls-cert {place / CERTIFICATE} --tls-key {place / KEY}"
    out(f"{', '.join(str(file) for file in made)}: for tests; whoever has {KEY} is in")
    out(f"scheduler:   dask scheduler --protocol tls {files}")
    out(f"worker:      dask worker tls://HOST:8786 --nthreads 1 {files}")
    out(f'job file:    [cluster]  kind = "tls://HOST:8786"  tls = "{place}"')
    out(f'Python:      gp.cluster("tls://HOST:8786", tls="{place}")')
    return OK


def _records(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if text.isdecimal():
        return int(text)
    raise OptionError(f"--records {text!r} is neither 'all' nor a number")


@contextmanager
def _progress(quiet: bool) -> Iterator[Compared | None]:
    """A bar on a terminal, one line of it per thing that is compared; else nothing."""
    stream: Any = sys.stderr
    if quiet or not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield None
        return
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tell(number: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=number)

        yield tell
