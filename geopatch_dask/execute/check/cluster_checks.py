"""Is a cluster fit for a plan?  Versions, threads, memory, and what its workers may do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distributed import Client

from geopatch_dask.errors import GeopatchError
from geopatch_dask.execute.attempt.versions import THREADS, Answers, ask, differences
from geopatch_dask.execute.check.diagnosis import Finding
from geopatch_dask.planning.memory import MemoryModel
from geopatch_dask.planning.units import bytes_text
from geopatch_dask.store.location import Location
from geopatch_dask.store.preflight import preflight
from geopatch_dask.store.target import root_name

__all__ = ["check_access", "check_cluster", "check_here"]

Worker = Mapping[str, Any]


def check_here(found: Answers) -> list[Finding]:
    """This process: what is installed, and its threads."""
    told = ", ".join(f"{name} {value}" for name, value in found.client["versions"].items())
    lacking = [name for name, value in found.client["versions"].items() if value == "none"]
    findings = [Finding("ok", f"here: {told}")]
    for name in lacking:
        findings.append(Finding("error", f"{name} is not installed here", f"pip install {name}"))
    return findings


def check_cluster(client: Client, need: int | None = None) -> tuple[Answers, list[Finding]]:
    """Ask scheduler and workers about themselves; what they said, and what is wrong with it.

    Parameters
    ----------
    client : distributed.Client
    need : int, bytes
        Of one super-tile, where there is a plan.
    """
    found = ask(client)
    hard, soft = differences(found)
    findings = [
        Finding("error", line, "install the same versions everywhere, or workers fail or differ")
        for line in hard
    ]
    findings += [
        Finding("warning", line, "bytes may differ from those of a run elsewhere: make them equal")
        for line in soft
    ]
    workers = found.answers
    if not found.workers:
        findings.append(
            Finding("error", "the cluster has no workers", "start some (dask worker ADDRESS)")
        )
    elif not hard and not soft:
        n = len(found.workers)
        findings.append(Finding("ok", f"{_count(n)}: the same versions as here"))
    findings += _threads(workers)
    findings += _memory(workers, need)
    return found, findings


# ---- threads -------------------------------------------------------------------------------


def _threads(workers: Mapping[str, Worker]) -> list[Finding]:
    findings = []
    several = [w for w in workers.values() if w["nthreads"] > 1]
    if several:
        most = max(w["nthreads"] for w in several)
        findings.append(
            Finding(
                "warning",
                f"{_count(len(several))} of {len(workers)} with several threads (up to {most}): "
                "they share one operator, its model and its memory",
                "processes with one thread each (--nthreads 1), unless the operator is "
                "thread-safe and lets go of Python's lock",
            )
        )
    hosts: dict[str, list[Worker]] = defaultdict(list)
    for worker in workers.values():
        hosts[worker["host"]].append(worker)
    for host, there in sorted(hosts.items()):
        busy = sum(w["nthreads"] * _blas(w) for w in there)
        cores = max(w["cores"] for w in there)
        if busy > 2 * cores:
            slots = sum(w["nthreads"] for w in there)
            findings.append(
                Finding(
                    "warning",
                    f"{host}: {slots} slots with up to {max(map(_blas, there))} threads of BLAS "
                    f"each, {busy} in all, on {cores} cores",
                    "set OMP_NUM_THREADS=1 (and OPENBLAS_, MKL_) where workers start",
                )
            )
    return findings


def _blas(worker: Worker) -> int:
    """Threads that numpy's libraries may start in one slot."""
    given = [worker["threads"].get(name) for name in THREADS]
    known = [int(text) for text in given if text is not None and text.isdecimal()]
    return max(known) if known else int(worker["cores"])


# ---- memory --------------------------------------------------------------------------------


def _memory(workers: Mapping[str, Worker], need: int | None) -> list[Finding]:
    findings = _grouped(
        workers,
        lambda w: "" if w["nanny"] else "without a nanny",
        "nobody starts them again after a crash, and an attempt that hangs cannot be ended",
        "start workers as `dask worker`, which has one",
    )
    findings += _grouped(
        workers,
        lambda w: "" if w["memory_limit"] else "without a memory limit",
        "the machine may kill what Dask would have paused",
        "start them with --memory-limit",
    )
    share = MemoryModel().share
    findings += _grouped(
        workers,
        lambda w: _low(w, share),
        f"a plan may use {share:.0%} of a worker",
        "raise it in distributed.worker.memory",
    )
    if need is not None:
        findings += _fits(workers, need)
    return findings


def _low(worker: Worker, share: float) -> str:
    """Which threshold of Dask lies below what a plan may use."""
    for name in ("pause", "terminate"):
        if 0 < worker[name] < share:
            return f"that {name} at {worker[name]:.0%} of their memory"
    return ""


def _fits(workers: Mapping[str, Worker], need: int) -> list[Finding]:
    limited = [w for w in workers.values() if w["memory_limit"]]
    if not limited:
        return []
    slot = min(w["memory_limit"] // w["nthreads"] for w in limited)
    share = MemoryModel().share
    told = f"a slot has {bytes_text(slot)}, a super-tile of the plan needs {bytes_text(need)}"
    remedy = "larger workers, fewer threads each, or smaller super-tiles"
    if slot < need:
        return [Finding("error", told, remedy)]
    if share * slot < need:
        return [Finding("warning", f"{told}, more than {share:.0%} of it", remedy)]
    return [Finding("ok", f"memory: {told}")]


def _grouped(
    workers: Mapping[str, Worker], say: Callable[[Worker], str], why: str, remedy: str
) -> list[Finding]:
    """One finding per thing that some workers are said to be."""
    groups: dict[str, int] = defaultdict(int)
    for worker in workers.values():
        groups[say(worker)] += 1
    return [
        Finding("warning", f"{_count(n)} of {len(workers)} {text}: {why}", remedy)
        for text, n in groups.items()
        if text
    ]


# ---- permissions ---------------------------------------------------------------------------


def check_access(place: Location, client: Client | None, exists: bool) -> list[Finding]:
    """What this process, and every worker, may not do to the store that a run has to.

    Parameters
    ----------
    place : Location
        Of the target.
    client : distributed.Client or None
    exists : bool
        Whether this process sees a target there, so that workers have to see it, too.
    """
    said = {"here": allowed(place, False)}
    if client is not None and place.is_shared:
        answers = client.run(allowed, place, exists, on_error="return")
        for address, answer in answers.items():
            said[address] = answer if isinstance(answer, list) else [f"failed: {answer}"]
    groups: dict[str, list[str]] = defaultdict(list)
    for who, problems in said.items():
        for problem in problems:
            groups[problem].append(who)
    findings = [_denied(place, problem, _names(who)) for problem, who in groups.items()]
    if not findings:
        n = len(said) - 1
        by = f"this process and {_count(n)}" if n else "this process"
        findings.append(
            Finding("ok", f"{place.display}: {by} may write, read, list and delete beside it")
        )
    return findings


def allowed(place: Location, exists: bool) -> list[str]:
    """What this process may not do beside a target; runs on workers, so it returns plain text.

    It tries that on an object of its own, which is gone afterwards.
    """
    try:
        found = preflight(place)
        problems = [] if found.list == "ok" else [f"cannot list ({found.list})"]
        if exists and not place.exists(root_name(place)):
            problems.append("sees no target there: the path is not shared with that machine")
    except GeopatchError as error:
        problems = [str(error)]
    return problems


def _denied(place: Location, problem: str, who: str) -> Finding:
    if problem.startswith("cannot list"):
        remedy = "allow it if you can: without it, a run reads its records by name"
        return Finding("warning", f"{place.display}: {who} {problem}", remedy)
    remedy = "check the address, credentials and permissions in that environment"
    return Finding("error", f"{place.display}: {who}: {problem}", remedy)


def _names(who: Iterable[str]) -> str:
    known = list(who)
    told = ", ".join("this process" if name == "here" else name for name in known[:3])
    return told + (f" and {len(known) - 3} more" if len(known) > 3 else "")


def _count(n: int) -> str:
    return f"{n} worker{'' if n == 1 else 's'}"
