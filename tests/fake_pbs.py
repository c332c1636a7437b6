"""A batch system that speaks PBS: ``qsub``, ``qdel``, ``qselect`` and ``qstat`` on this machine.

Jobs are started at once, as PBS starts them: in the home folder, with a bare environment unless
``-V`` is said, in a session of their own.  Its state is a folder, ``$FAKE_PBS``::

    7/script  7/pid  7/status  7/log       job 7; 7/pid until it ends, then 7/status

It believes no ``-l``: that requests make sense is looked at in the scripts, as text.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("qsub", "qdel", "qselect", "qstat")
#: Seconds between SIGTERM and SIGKILL.
PATIENCE = 5.0


def install(folder: Path, state: Path) -> dict[str, str]:
    """Put the commands into a folder; the environment in which they are found."""
    folder.mkdir()
    state.mkdir()
    for name in COMMANDS:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(0o755)
    return {"FAKE_PBS": str(state), "PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}


def jobs(state: Path) -> list[int]:
    """Jobs that were submitted."""
    return sorted(int(path.name) for path in state.iterdir() if path.name.isdecimal())


def ended(state: Path, job: int) -> bool:
    return (state / str(job) / "status").exists()


def qsub(state: Path, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("qsub")
    parser.add_argument("-J", default=None)
    parser.add_argument("-v", default="")
    parser.add_argument("-W", action="append", default=[])
    parser.add_argument("script")
    given = parser.parse_args(arguments)
    text = Path(given.script).read_text()
    said = re.findall(r"^#PBS (.*)$", text, re.MULTILINE)
    number = 1
    while True:  # a folder is made by one process only
        try:
            (state / str(number)).mkdir()
            break
        except FileExistsError:
            number += 1
    here = state / str(number)
    (here / "script").write_text(text)
    found = re.search(r"ncpus=(\d+)", " ".join(said))
    environment = dict(os.environ) if "-V" in said else {"HOME": str(Path.home())}
    try:
        variables = dict(variable(word) for word in given.v.split(",") if word)
    except KeyError:
        print("qsub: cannot send environment with the job", file=sys.stderr)
        return 1
    environment |= {
        "PBS_JOBID": f"{number}.fake",
        "PBS_O_WORKDIR": str(Path.cwd()),
        "NCPUS": found[1] if found else "1",
        "FAKE_PBS": str(state),
        **variables,
    }
    words = [word for option in given.W for word in option.split(",")]
    after = [int(word.split(":")[1].split(".")[0]) for word in words if word.startswith("depend=")]
    first, _, last = (given.J or "").partition("-")
    tasks = list(range(int(first), int(last) + 1)) if given.J else [None]
    with (here / "log").open("ab") as log:
        runner = subprocess.Popen(
            [sys.executable, __file__, "job", str(number), repr(tasks), repr(after)],
            env=environment,
            cwd=Path.home(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (here / "pid").write_text(str(runner.pid))
    print(f"{number}.fake")
    return runner.wait() if "block=true" in words else 0


def variable(word: str) -> tuple[str, str]:
    """A variable of ``-v``: with its value, or a name whose value is that of qsub's own."""
    name, equals, value = word.partition("=")
    return name, value if equals else os.environ[name]


def job(state: Path, number: int, tasks: list[int | None], after: list[int]) -> int:
    """What runs a job: waits for others, then its tasks, one after the other."""
    while not all(ended(state, other) for other in after):
        time.sleep(0.05)
    here, status = state / str(number), 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # its shell hears it
    for task in tasks:
        index = {} if task is None else {"PBS_ARRAY_INDEX": str(task)}
        done = subprocess.Popen(
            ["bash", str(here / "script")],
            env={**os.environ, **index},
            preexec_fn=_hears_sigterm,
        ).wait()
        status = status or (done if done >= 0 else 128 - done)
    (here / "status").write_text(str(status))
    return status


def qdel(state: Path, arguments: list[str]) -> int:
    for name in arguments:
        number = int(name.split(".")[0])
        if ended(state, number):
            return 35  # as PBS: job has finished
        group = int((state / str(number) / "pid").read_text())
        end(group, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while not ended(state, number) and time.monotonic() < until:
            time.sleep(0.05)
        if not ended(state, number):
            end(group, signal.SIGKILL)
            (state / str(number) / "status").write_text("271")
    return 0


def end(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _hears_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def qselect(state: Path) -> int:
    for number in jobs(state):
        if not ended(state, number):
            print(f"{number}.fake")
    return 0


def qstat(state: Path, arguments: list[str]) -> int:
    number = int(arguments[-1].split(".")[0])
    print(f"Job Id: {number}.fake")
    if ended(state, number):
        print(
            f"    job_state = F\n    Exit_status = {(state / str(number) / 'status').read_text()}"
        )
    return 0


def main(arguments: list[str]) -> int:
    state = Path(os.environ["FAKE_PBS"])
    command, *rest = arguments
    if command == "job":
        number, tasks, after = rest
        return job(state, int(number), eval(tasks), eval(after))
    if command == "qselect":
        return qselect(state)
    return {"qsub": qsub, "qdel": qdel, "qstat": qstat}[command](state, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
