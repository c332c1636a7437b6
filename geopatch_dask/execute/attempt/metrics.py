"""Numbers for Prometheus, through the endpoint that Dask has anyway.

Every Dask worker and scheduler answers ``GET /metrics`` on its dashboard port with what the process
has registered with ``prometheus_client``.  What is counted here is therefore served there::

    worker process     geopatch_*         its own attempts:  supertiles, patches, bytes, phases
    driver's process   geopatch_run_*     the whole run:     done, failed, lost, backups, left

    Prometheus ---- GET :dashboard/metrics ---> each worker
               `--- GET :8787/metrics --------> the scheduler, where the driver runs in its process

The driver is the process that called ``run``; of a submitted plan, some worker.  Where that process
has no endpoint (a client of a distant scheduler), :func:`serve` makes one.

Counters begin at 0 in every process: a worker that died took its own with it, as Prometheus expects
(``rate`` and ``increase`` see through resets).  The driver's counters have heard of everything that
the report counts, so they are the ones that equal it after workers died.  A sum over workers equals
the report where none did.

Without ``prometheus_client`` (the ``metrics`` extra) nothing is counted, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from geopatch_dask.errors import OptionError
from geopatch_dask.execute.attempt.events import Event, Failed, Lost
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.report.outcome import Outcome

__all__ = [
    "ENDS",
    "RunMetrics",
    "count_leaves",
    "count_tile",
    "in_progress",
    "name_of",
    "peak_rss",
    "serve",
    "trouble",
]

#: How an attempt at a super-tile ends: ``found`` when somebody had finished it, ``failed`` when
#: there may be another attempt, ``given_up`` when there will be none.
ENDS = ("done", "empty", "found", "failed", "timed_out", "given_up")
#: States of a super-tile that ended.
STATES = ("done", "empty", "failed")
#: Upper bounds of the histogram of super-tile seconds: a super-tile is meant to take ten.
BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
#: Characters of a fingerprint that name a plan: those of its folder beside the target.
SHORT = 8
#: Numbers of an outcome, and the counters they go to.
_NUMBERS = {
    "patches": "geopatch_patches",
    "failed_patches": "geopatch_failed_patches",
    "uncovered": "geopatch_uncovered_cells",
    "bytes_read": "geopatch_read_bytes",
    "bytes_written": "geopatch_written_bytes",
}


_MAKING = Lock()


class _Set:
    """The metrics of a process; made once, since a registry refuses a second one of a name."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        plan = ("plan",)
        self.ends = Counter(
            "geopatch_attempts", "Attempts at super-tiles that ended, by how.", (*plan, "end")
        )
        self.tiles = Counter(
            "geopatch_supertiles", "Super-tiles that ended, by state.", (*plan, "state")
        )
        self.again = Counter(
            "geopatch_supertile_retries",
            "Attempts after the first one at a super-tile, backups included.",
            plan,
        )
        self.numbers = {
            name: Counter(metric, f"{name} of super-tiles that ended.".replace("_", " "), plan)
            for name, metric in _NUMBERS.items()
        }
        self.requests = Counter(
            "geopatch_store_retries",
            "Requests to stores that were repeated, by how their attempt ended.",
            (*plan, "end"),
        )
        self.phases = Counter(
            "geopatch_phase_seconds", "Worker time of super-tiles, by phase.", (*plan, "phase")
        )
        self.seconds = Histogram(
            "geopatch_supertile_seconds",
            "Worker time of one super-tile.",
            plan,
            buckets=BUCKETS,
        )
        self.leaves = Counter("geopatch_first_pass_leaves", "Leaves of a first pass.", plan)
        self.running = Gauge(
            "geopatch_supertiles_in_progress", "Super-tiles being computed now.", plan
        )
        self.planned = Gauge("geopatch_planned_memory_bytes", "Peak of a slot by the plan.", plan)
        self.limit = Gauge("geopatch_memory_limit_bytes", "What the plan gives a slot.", plan)
        self.peak = Gauge(
            "geopatch_peak_memory_bytes", "The largest resident set this process has had."
        )
        self.peak.set_function(peak_rss)
        self._of_runs()

    def _of_runs(self) -> None:
        from prometheus_client import Counter, Gauge

        plan = ("plan",)
        self.run_tiles = Counter(
            "geopatch_run_supertiles",
            "Super-tiles that the runs of this process saw end, by state.",
            (*plan, "state"),
        )
        self.run_left = Gauge(
            "geopatch_run_supertiles_left", "Super-tiles of the run that have not ended.", plan
        )
        self.run_trouble = Counter(
            "geopatch_run_trouble",
            "Attempts that the driver heard to have failed, been lost with their worker, or taken "
            "too long.",
            (*plan, "kind"),
        )
        self.run_backups = Counter(
            "geopatch_run_backups", "Stragglers that were started a second time.", plan
        )


def _metrics() -> _Set | None:
    with _MAKING:  # runs may begin in several threads at once
        return _made()


@cache
def _made() -> _Set | None:
    return _Set() if find_spec("prometheus_client") is not None else None


def name_of(plan: PlanBase) -> str:
    """What a plan is called in metrics and logs: the folder of its records."""
    return plan.fingerprint[:SHORT]


@contextmanager
def in_progress(plan: PlanBase, attempt: int) -> Iterator[None]:
    """Within it, a super-tile is being computed in this process."""
    found = _metrics()
    if found is None:
        yield
        return
    plan_name = name_of(plan)
    found.planned.labels(plan_name).set(plan.memory.total)
    found.limit.labels(plan_name).set(plan.memory_limit)
    for end in ENDS:  # a series that begins with its first event has no rate then
        found.ends.labels(plan_name, end)
    for state in STATES:
        found.tiles.labels(plan_name, state)
    found.again.labels(plan_name).inc(int(attempt > 1))
    with found.running.labels(plan_name).track_inprogress():
        yield


def count_tile(plan: PlanBase, outcome: Outcome, end: str) -> None:
    """Count an attempt that ended in this process.

    Parameters
    ----------
    plan : PlanBase
    outcome : Outcome
    end : str
        One of :data:`ENDS`.  What was found done is counted by whoever
        did it.
    """
    found = _metrics()
    if found is None:
        return
    plan_name = name_of(plan)
    found.ends.labels(plan_name, end).inc()
    if end in ("done", "empty", "failed"):
        retries = outcome.numbers.get("retries", 0)
        found.requests.labels(plan_name, "failed" if end == "failed" else "done").inc(retries)
    if end in ("done", "empty"):
        found.tiles.labels(plan_name, end).inc()
        for name, counter in found.numbers.items():
            counter.labels(plan_name).inc(outcome.numbers.get(name, 0))
        for phase, seconds in outcome.seconds.items():
            found.phases.labels(plan_name, phase).inc(seconds)
        found.seconds.labels(plan_name).observe(sum(outcome.seconds.values()))
    elif end == "given_up":
        found.tiles.labels(plan_name, "failed").inc()


def count_leaves(plan: PlanBase, leaves: int) -> None:
    """Count leaves of a first pass."""
    found = _metrics()
    if found is not None:
        found.leaves.labels(name_of(plan)).inc(leaves)


class RunMetrics:
    """What the driver of one run counts, in its own process.

    Parameters
    ----------
    plan : PlanBase
    total : int
        Super-tiles of the run.
    """

    def __init__(self, plan: PlanBase, total: int) -> None:
        self._plan, self._set, self._backups = name_of(plan), _metrics(), 0
        if self._set is None:
            return
        for state in STATES:
            self._set.run_tiles.labels(self._plan, state)
        for kind in ("failed", "lost", "timed_out"):
            self._set.run_trouble.labels(self._plan, kind)
        self._set.run_backups.labels(self._plan)
        self._set.run_left.labels(self._plan).set(total)

    def heard(self, events: Sequence[Event], backups: int) -> None:
        """Count what workers told, and backups: how many there have been in all."""
        if self._set is None:
            return
        self._set.run_backups.labels(self._plan).inc(backups - self._backups)
        self._backups = backups
        for event in events:
            kind = trouble(event)
            if kind:
                self._set.run_trouble.labels(self._plan, kind).inc()

    def ended(self, outcome: Outcome) -> None:
        """Count a super-tile that ended."""
        if self._set is None:
            return
        self._set.run_tiles.labels(self._plan, outcome.state).inc()
        self._set.run_left.labels(self._plan).dec()

    def close(self) -> None:
        """The run is over: nothing is left of it, whether it was finished or stopped."""
        if self._set is not None:
            self._set.run_left.labels(self._plan).set(0)


def peak_rss() -> int:
    """The largest resident set this process has had, bytes; 0 where the system does not tell.

    From ``VmHWM``: ``ru_maxrss`` starts at the size of the parent, which a spawned worker is not.
    """
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) * 1024 if found else 0


def trouble(event: Event) -> str:
    """What went wrong, in the words of the metrics; "" when nothing did."""
    if isinstance(event, Lost):
        return "timed_out" if event.timed_out else "lost"
    return "failed" if isinstance(event, Failed) else ""


@contextmanager
def serve(address: str) -> Iterator[int]:
    """Serve what this process counts, for as long as a ``with`` block lasts.

    Parameters
    ----------
    address : str
        ``host:port``; port 0: any that is free.  A port alone is one of loopback.

    Yields
    ------
    int
        The port.

    Raises
    ------
    OptionError
        When the address is none or taken, or ``prometheus_client`` is not installed.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise OptionError(
            f"metrics address {address!r} is not host:port: write 9464, or 0.0.0.0:9464 to be "
            "reached from other machines"
        )
    if _metrics() is None:
        raise OptionError(
            "metrics need prometheus_client, which is not installed: "
            "pip install 'geopatch_dask[metrics]'"
        )
    from prometheus_client import start_http_server

    try:
        started: Any = start_http_server(int(port), addr=host.strip("[]") or "127.0.0.1")
    except OSError as error:
        raise OptionError(
            f"metrics cannot be served at {address}: {error.strerror}; choose another port"
        ) from None
    server, thread = started
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
