"""Workers that are jobs of a batch system: Slurm, and PBS by the same words.

The scheduler runs in this process, which therefore has to be reachable from compute nodes.  A job
holds one or more slots, each a process with one thread under the job's nanny::

    job:  --mem = processes * memory + OVERHEAD      --cpus-per-task = processes * cores
    +--------------------------------------------------------------+
    |  nanny  |  slot 0: memory  |  slot 1: memory  |  ...          |
    +--------------------------------------------------------------+
                 what the plan's memory model speaks of, and what Dask limits a process to

    |<------------------------- walltime ------------------------->|
    |  work                         |<- stagger ->|<--- margin --->|
                                    workers retire,                 the batch system kills
                                    each at another moment

A worker that retires is no failure: its super-tile goes on elsewhere.  A job that is gone (retired,
preempted, cancelled, its node lost) is replaced as long as there is work
(:mod:`geopatch_dask.clusters.batch`).

What the user wrote into Dask's own ``jobqueue.yaml`` is the default of every option.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
from distributed.utils import get_ip, get_ip_interface

from geopatch_dask.clusters.options import (
    dashboard_address,
    optional,
    seconds_of,
    whole_number,
)
from geopatch_dask.clusters.request import Request
from geopatch_dask.clusters.settings import environment
from geopatch_dask.clusters.tls import security
from geopatch_dask.errors import OptionError
from geopatch_dask.planning.units import parse_bytes

__all__ = ["MARGIN_LEAST", "MEMORY", "OPTIONS", "OVERHEAD", "Life", "make_jobqueue"]

#: Bytes of a job beside its slots: the nanny, the shell, and what Python's multiprocessing starts
#: (measured: 95 MiB, for one slot and for three).
OVERHEAD = 256 << 20
#: Bytes of a slot where nobody says: fits the 4 GB per core that most clusters have, with room.
MEMORY = 2 << 30
#: Slots where nobody says.
WORKERS = 2
#: Seconds before the end of a job at which its workers are gone: a tenth of the walltime within
#: these bounds.  They hold the start of the workers, which the walltime counts and the lifetime
#: does not.
MARGIN_LEAST, MARGIN_MOST = 60.0, 600.0
#: Seconds over which the workers of many jobs retire: a twentieth of the walltime, at most this.
STAGGER_MOST = 300.0
#: Seconds that a cluster which adapts leaves workers idle before it gives them back.
IDLE = 30

#: Options of both kinds: word and one line of help.
OPTIONS: Mapping[str, str] = {
    "walltime": "of a job: '04:00:00', '2-00:00:00'; its workers retire in time",
    "queue": "queue, or partition of Slurm",
    "account": "whom it is charged to",
    "processes": "slots of a job (1; with gpus: one per GPU)",
    "cores": "CPU cores of a slot, for operators with threads of their own (1)",
    "gpus": "GPUs of a job; every slot sees one of them",
    "interface": "network of scheduler and workers: 'ib0', 'eth0'",
    "margin": "between the end of the workers and that of their job: '5 min'",
    "local_directory": "fast disk of a node, where workers spill: '$TMPDIR'",
    "log_directory": "where jobs write what they say (geopatch-logs)",
    "prologue": "shell lines before the worker starts: 'module load cuda'",
    "directives": "further lines of the job's head: '--constraint=skylake'",
    "python": "the interpreter on the nodes (this one)",
    "nanny": "whether a process watches each worker, and starts it again (yes)",
    "death_timeout": "seconds that a worker looks for its scheduler (60)",
    "dashboard": "port of the scheduler's dashboard, on loopback unless a host is named (off)",
    "worker_dashboard": "of each worker's pages and metrics: '0.0.0.0:0' (a free port of loopback)",
}

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d{1,2}){0,2})")


@dataclass(frozen=True)
class Life:
    """How long a job lasts, and its workers.

    Parameters
    ----------
    walltime : float, seconds
    margin : float, seconds
        Before the end of the walltime, in which no worker is alive.
    """

    walltime: float
    margin: float

    @property
    def stagger(self) -> float:
        """Seconds by which the lifetime of a worker varies, to both sides."""
        return min(self.walltime / 20, STAGGER_MOST) / 2

    @property
    def lifetime(self) -> float:
        """Seconds that a worker lives, before the stagger."""
        return self.walltime - self.margin - self.stagger

    @classmethod
    def of(cls, walltime: str, margin: str | float | None) -> Life:
        """From the words of the user.

        Raises
        ------
        OptionError
            For what is no time, or leaves workers no time to work.

        Examples
        --------
        >>> Life.of("01:00:00", None)
        Life(walltime=3600.0, margin=360.0)
        >>> Life.of("1-00:00:00", "5 min").lifetime
        85950.0
        """
        seconds = _seconds_of_walltime(walltime)
        if margin is None:
            kept = min(max(seconds / 10, MARGIN_LEAST), MARGIN_MOST, seconds / 2)
        else:
            kept = seconds_of("margin", margin)
        made = cls(seconds, kept)
        if made.lifetime - made.stagger <= 0:
            raise OptionError(
                f"a walltime of {seconds:g} s leaves workers no time before the margin of "
                f"{kept:g} s: give a longer walltime, or a shorter margin"
            )
        return made

    @property
    def text(self) -> str:
        """The walltime as batch systems read it, ``HH:MM:SS``."""
        whole = int(self.walltime)
        return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def make_jobqueue(kind: str, request: Request, options: Mapping[str, Any]) -> Any:
    """A cluster of batch jobs, as Dask's own object; its jobs are submitted, not waited for.

    Parameters
    ----------
    kind : {"slurm", "pbs"}
    request : Request
    options : mapping
        Words of :data:`OPTIONS`.

    Raises
    ------
    OptionError
        For options that contradict each other, an absent package or batch system, or a job that
        the batch system refuses.
    """
    wanted = job_options(kind, request, options)
    from geopatch_dask.clusters.batch import PbsCluster, SlurmCluster  # needs the optional package

    made = (SlurmCluster if kind == "slurm" else PbsCluster)(**wanted)
    try:
        made.populate(request.workers or WORKERS, request.adapt, IDLE)
    except BaseException:
        made.close()
        raise
    return made


def job_options(kind: str, request: Request, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of dask-jobqueue's class for what is asked of us.

    Raises
    ------
    OptionError
    """
    optional("dask_jobqueue", kind, "hpc")  # which brings the defaults of its configuration
    processes, gpus = _processes(kind, options)
    cores = whole_number("cores", options.get("cores") or 1)
    memory = _memory(kind, request, processes)
    total = processes * memory + OVERHEAD
    life = Life.of(_walltime(kind, options), options.get("margin"))
    interface = options.get("interface") or _configured(kind, "interface")
    found: dict[str, Any] = {
        "cores": processes,  # of Dask: threads, one per process
        "processes": processes,
        "memory": processes * memory,
        "walltime": life.text,
        "interface": interface,
        "job_script_prologue": _prologue(kind, cores, options),
        "job_extra_directives": _directives(kind, gpus, options),
        "worker_extra_args": _worker_arguments(kind, memory, life, gpus, options),
        "log_directory": str(_given(kind, options, "log_directory") or "geopatch-logs"),
        "scheduler_options": _scheduler(kind, interface, options),
        "security": None if request.tls is None else security(request.tls),
        **_resources(kind, processes * cores, total, gpus),
    }
    if _configured(kind, "name") == "dask-worker":
        found["job_name"] = "geopatch"
    for word in ("queue", "account", "python", "death_timeout", "local_directory"):
        if options.get(word) is not None:
            found[word] = options[word]
    if options.get("nanny") is not None:
        found["nanny"] = bool(options["nanny"])
        if not found["nanny"] and processes > 1:
            raise OptionError(
                f"{processes} processes in a job need a nanny: leave nanny out, or give processes=1"
            )
    return found


# ---- what a job asks for -------------------------------------------------------------------


def _processes(kind: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """Slots of a job, and its GPUs."""
    gpus = whole_number("gpus", options.get("gpus") or 0, least=0)
    given = options.get("processes") or (None if gpus else _configured(kind, "processes"))
    processes = whole_number("processes", given or gpus or 1)
    if gpus and processes != gpus:
        raise OptionError(
            f"processes {processes} and gpus {gpus}: every slot has one GPU; leave processes out"
        )
    return processes, gpus


def _memory(kind: str, request: Request, processes: int) -> int:
    """Bytes of a slot; what Dask's configuration says is that of a job."""
    if request.memory is not None:
        return request.memory
    configured = _configured(kind, "memory")
    if configured is None:
        return MEMORY
    each = (parse_bytes(configured) - OVERHEAD) // processes
    if each <= 0:
        raise OptionError(
            f"jobqueue.{kind}.memory {configured} leaves nothing for {processes} slots beside "
            f"{OVERHEAD >> 20} MiB of a job's own: raise it, or give memory (of a slot)"
        )
    return each


def _resources(kind: str, cores: int, total: int, gpus: int) -> dict[str, Any]:
    """Cores and memory of a job in the words of the batch system; memory is rounded up to MiB."""
    mebibytes = -(-total // (1 << 20))
    if kind == "slurm":
        return {"job_cpu": cores, "job_mem": f"{mebibytes}M"}
    if (spec := _configured(kind, "resource-spec")) is not None:
        return {"resource_spec": spec}
    graphics = f":ngpus={gpus}" if gpus else ""
    return {"resource_spec": f"select=1:ncpus={cores}:mem={mebibytes}mb{graphics}"}


def _directives(kind: str, gpus: int, options: Mapping[str, Any]) -> list[str]:
    """Lines of the job's head beside those of its resources.

    A job that is gone is replaced by us: would the batch system start it again as well, there would
    be one too many.
    """
    found = ["--no-requeue"] if kind == "slurm" else ["-r n"]
    if gpus and kind == "slurm":
        found.append(f"--gres=gpu:{gpus}")
    return [
        *found,
        *_configured_lines(kind, "job-extra-directives"),
        *_lines(options, "directives"),
    ]


def _prologue(kind: str, cores: int, options: Mapping[str, Any]) -> list[str]:
    """What the job's shell does before it starts the worker; what is set there already wins."""
    variables = dict(environment())
    if cores > 1:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        variables |= dict.fromkeys(names, str(cores))
    exports = [
        f'[ -n "${{{name}+set}}" ] || export {name}={shlex.quote(value)}'
        for name, value in variables.items()
    ]
    return [*exports, *_configured_lines(kind, "job-script-prologue"), *_lines(options, "prologue")]


def _worker_arguments(
    kind: str, memory: int, life: Life, gpus: int, options: Mapping[str, Any]
) -> list[str]:
    """Arguments of ``dask worker`` beyond those of dask-jobqueue; the last of two alike counts.

    The memory limit is repeated in bytes: dask-jobqueue rounds it to two digits.
    """
    found = ["--memory-limit", str(memory)]
    found += ["--lifetime", f"{life.lifetime:g}s", "--lifetime-stagger", f"{life.stagger:g}s"]
    pages = dashboard_address(options.get("worker_dashboard") or 0, "worker_dashboard")
    found += ["--dashboard-address", str(pages)]
    if gpus:
        found += ["--preload", "geopatch_dask.clusters.gpus"]
    return [*found, *_configured_lines(kind, "worker-extra-args")]


def _scheduler(kind: str, interface: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Where the scheduler listens: on one network only, and its dashboard on loopback."""
    found: dict[str, Any] = dict(_configured(kind, "scheduler-options") or {})
    where = dashboard_address(options.get("dashboard") or False)
    if "dashboard" in options or "dashboard_address" not in found:
        found["dashboard_address"] = where or "127.0.0.1:0"
        found["dashboard"] = where is not None
    if not {"host", "interface"} & set(found):
        try:
            found["host"] = get_ip() if interface is None else get_ip_interface(interface)
        except ValueError as error:
            raise OptionError(f"interface {interface!r} is none of this machine: {error}") from None
    return found


# ---- words ---------------------------------------------------------------------------------


def _configured(kind: str, name: str) -> Any:
    """What ``jobqueue.yaml`` says."""
    return dask.config.get(f"jobqueue.{kind}.{name}", None)


def _configured_lines(kind: str, name: str) -> list[str]:
    return [str(line) for line in _configured(kind, name) or ()]


def _walltime(kind: str, options: Mapping[str, Any]) -> str:
    """What was given, or configured; without an hour it means something else to each of them."""
    found = str(options.get("walltime") or _configured(kind, "walltime"))
    if kind == "pbs" and found.strip().isdigit():
        raise OptionError(
            f"walltime {found!r} has no unit: PBS would take it for seconds, Slurm for minutes; "
            "give hours:minutes:seconds, as in '04:00:00'"
        )
    return found


def _given(kind: str, options: Mapping[str, Any], word: str) -> Any:
    return options.get(word) or _configured(kind, word.replace("_", "-"))


def _lines(options: Mapping[str, Any], word: str) -> list[str]:
    """One line, or a list of them."""
    given = options.get(word) or ()
    if isinstance(given, str):
        return [given]
    if isinstance(given, Sequence) and all(isinstance(line, str) for line in given):
        return list(given)
    raise OptionError(f"{word} must be a text, or a list of texts; got {given!r}")


def _seconds_of_walltime(text: str) -> float:
    """Seconds of ``minutes``, ``M:S``, ``H:M:S`` or ``D-H[:M[:S]]``, as Slurm reads them."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise OptionError(
            f"walltime {text!r} is no time: give hours:minutes:seconds, as in '04:00:00'"
        )
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        weights: tuple[int, ...] = (3600, 60, 1)
    else:
        weights = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(parts)]
    days = 86400 * int(found["days"] or 0)
    seconds = days + sum(a * b for a, b in zip(parts, weights, strict=False))
    if not seconds:
        raise OptionError("a walltime of 0 leaves workers no time: as in '04:00:00'")
    return float(seconds)
