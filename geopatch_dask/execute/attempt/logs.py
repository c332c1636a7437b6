"""One line per attempt at a super-tile, where it ran: for people, or as JSON for log collectors.

::

    2026-05-04 12:00:07 INFO super-tile y0-512_x0-512 done in 3.20 s: 49 patches, ...      "text"
    {"time": "2026-05-04T12:00:07.120+00:00", "level": "info", "plan": "1f0c2a9e", ...}    "json"

They go through the logger ``geopatch_dask.tiles`` of the standard library.  Whether there are any,
and in which form, is asked in this order:

1. ``Policy(log=...)``, of the run;
2. Dask's configuration in the process that logs: ``geopatch.log``, or ``DASK_GEOPATCH__LOG`` in its
   environment, which is how a manifest of Kubernetes tells workers;
3. the logger: if it has a level or a handler, somebody wants lines, and gets text.

Without any of them nothing is logged: a run has a report.  Lines go to a handler on that logger if
there is one, and to standard error otherwise.

A line has the display name of the target, and messages of errors without credentials: what is in a
record, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import dask
from distributed import get_worker

from geopatch_dask.execute.attempt.events import Event, Lost
from geopatch_dask.execute.attempt.metrics import name_of, trouble
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.units import bytes_text
from geopatch_dask.report.outcome import Outcome
from geopatch_dask.store.records import now

__all__ = ["LOGGER", "log_lost", "log_start", "log_tile"]

#: The name of the logger.
LOGGER = "geopatch_dask.tiles"
#: The key of Dask's configuration.
CONFIG = "geopatch.log"
#: Longest message of an error, so that a line stays one write to a pipe.
LONGEST = 500

_log = logging.getLogger(LOGGER)
#: Ends that are no news, those that may mend themselves, and those that will not.
_LEVELS = {"failed": logging.WARNING, "lost": logging.WARNING, "timed_out": logging.WARNING}
_LEVELS |= {"given_up": logging.ERROR, "started": logging.DEBUG}
#: Numbers of an outcome that a line has.
_NUMBERS = (
    *("patches", "failed_patches", "uncovered", "missing", "rows", "bytes_read"),
    *("bytes_written", "retries", "peak_rss"),
)


class _Lines(logging.StreamHandler[Any]):
    """Writes to what standard error is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.sets_level = False

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Nothing: there is only one."""


_own = _Lines()


def log_start(plan: PlanBase, ordinal: int, attempt: int, policy: Policy) -> None:
    """Tell, at level DEBUG, that an attempt begins: the last line of a process that was killed."""
    if (style := _style(policy)) and _log.isEnabledFor(logging.DEBUG):
        begun = Outcome(ordinal, plan.supertile(ordinal).id, "started", attempt=attempt)
        _tell(plan, begun, "started", style)


def log_tile(
    plan: PlanBase, outcome: Outcome, end: str, policy: Policy, worker: Any = None
) -> None:
    """Tell how an attempt ended.

    Parameters
    ----------
    plan : PlanBase
    outcome : Outcome
    end : str
        One of :data:`~geopatch_dask.execute.attempt.metrics.ENDS`.
    policy : Policy
    worker : distributed.Worker, optional
        Where it ran, if this thread does not know.
    """
    if style := _style(policy):
        _tell(plan, outcome, end, style, worker)


def log_lost(plan: PlanBase, event: Event, policy: Policy) -> None:
    """Tell what a worker could not: that it died.  To be called in the driver's process."""
    if isinstance(event, Lost) and not event.timed_out and (style := _style(policy)):
        tile = plan.supertile(event.ordinal).id
        lost = Outcome(event.ordinal, tile, "failed", error=event.error, attempt=event.attempt)
        _tell(plan, lost, trouble(event), style)


def _style(policy: Policy) -> str | None:
    """``"text"``, ``"json"``, or None where nobody wants lines."""
    wanted = policy.log or dask.config.get(CONFIG, None)
    if not wanted:
        leveled = _log.level != logging.NOTSET and not _own.sets_level
        return "text" if leveled or _others() else None
    return "json" if str(wanted).lower() == "json" else "text"  # words of a configuration


def _tell(plan: PlanBase, outcome: Outcome, end: str, style: str, worker: Any = None) -> None:
    told = _document(plan, outcome, end, worker)
    level = _LEVELS.get(end, logging.INFO)
    told = {"time": now(), "level": logging.getLevelName(level).lower(), **told}
    _prepare(style)
    text = json.dumps(told) if style == "json" else _text(told)
    _log.log(level, "%s", text, extra={"geopatch": told})


def _document(plan: PlanBase, outcome: Outcome, end: str, worker: Any) -> dict[str, Any]:
    """What a line says, as JSON."""
    told: dict[str, Any] = {
        "event": "supertile",
        "state": end,
        "plan": name_of(plan),
        "target": plan.scrub(plan.target.display),
        "id": outcome.id,
        "ordinal": outcome.ordinal,
        "attempt": outcome.attempt,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "worker": _worker_name(worker),
    }
    if outcome.seconds:
        told["seconds"] = {k: round(v, 3) for k, v in outcome.seconds.items()}
        told["seconds_total"] = round(sum(outcome.seconds.values()), 3)
    told |= {name: outcome.numbers[name] for name in _NUMBERS if name in outcome.numbers}
    if outcome.error is not None:
        told["error"] = _error(plan, outcome.error)
    return told


def _error(plan: PlanBase, error: Mapping[str, str]) -> dict[str, str]:
    """Type, kind and message, in one line; the traceback is in the record."""
    message = plan.scrub(" ".join(error["message"].split()))[:LONGEST]
    return {"type": error["type"], "kind": error.get("kind", ""), "message": message}


def _worker_name(worker: Any) -> str | None:
    if worker is None:
        try:
            worker = get_worker()
        except ValueError:  # this is no thread of a worker
            return None
    return str(worker.name)


def _text(told: Mapping[str, Any]) -> str:
    """The same for people."""
    said = [f"super-tile {told['id']} {told['state'].replace('_', ' ')}"]
    if "seconds_total" in told:
        said.append(f" in {told['seconds_total']:.2f} s")
    if told["attempt"] > 1:
        said.append(f" (attempt {told['attempt']})")
    details = []
    if told.get("patches"):
        details.append(f"{told['patches']:,} patches")
        details += [f"{bytes_text(told[f'bytes_{what}'])} {what}" for what in ("read", "written")]
    if told.get("retries"):
        details.append(f"{told['retries']:,} requests repeated")
    details += [f"{k} {v:.2f} s" for k, v in told.get("seconds", {}).items() if v >= 0.005]
    if "error" in told:
        details.append(f"{told['error']['type']}: {told['error']['message']}")
    return "".join(said) + (": " + ", ".join(details) if details else "")


def _prepare(style: str) -> None:
    """Have the logger pass lines on: to its handlers, or to standard error."""
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.INFO)
        _own.sets_level = True
    if _others():
        _log.removeHandler(_own)
        return
    _log.addHandler(_own)  # once, however often
    _log.propagate = False  # or the command line would tell it again
    pattern = "%(message)s" if style == "json" else "%(asctime)s %(levelname)s %(message)s"
    _own.setFormatter(logging.Formatter(pattern, "%Y-%m-%d %H:%M:%S"))


def _others() -> bool:
    """Whether somebody put a handler on the logger."""
    return any(handler is not _own for handler in _log.handlers)
