"""The loop of a run: what the driver decides, the workers do; what they tell, the driver hears.

::

    Driver.step(events) ---> start, stop, give up ---> Workers
        ^                                                 |
        |            outcomes, lost workers               |
        +------------------- drive() <--------------------+
                               |
                 report, progress, heartbeat beside the target

A heartbeat goes on in a thread of its own, because a super-tile that is computed in this thread
may take longer than those who watch are patient.  In place of every fifth, the same thread looks
whether the target is still there.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from geopatch_dask.errors import RunIncomplete
from geopatch_dask.execute.attempt.events import Done, Event, Failed, Lost
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.driving.driver import Driver, GiveUp, Start, Stop
from geopatch_dask.execute.driving.workers import Message, Workers
from geopatch_dask.execute.target.presence import TargetGone, absence
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.report.outcome import Outcome
from geopatch_dask.store.jobs import BEAT, LOOK, Heartbeat, RunState
from geopatch_dask.store.records import Ledger

__all__ = ["Cancelled", "Pulse", "drive"]

#: Seconds between two looks at the clock when nothing is told.
TICK = 0.5
#: Seconds that a run which ends by an exception tries to say so beside the target.
LAST_WORDS = 5.0

OnOutcome = Callable[[Outcome], None]
#: Takes what workers told, and how many backups there have been.
OnEvents = Callable[[Sequence[Event], int], None]


class Cancelled(RunIncomplete):
    """Somebody asked the run to stop; what was done is kept."""


class Pulse:
    """Tells beside the target how far a run is, and hears when it is to stop.

    A context manager.

    Parameters
    ----------
    plan : PlanBase
    before, total : int
        Super-tiles found done, and of this run.
    state : RunState
        What it says first.
    """

    def __init__(self, plan: PlanBase, before: int, total: int, state: RunState) -> None:
        self._plan = plan
        self._heart = Heartbeat(Ledger(plan.target, plan.fingerprint), state)
        self._numbers = {"before": before, "total": total, "done": 0, "failed": 0}
        self._numbers |= {"patches": 0, "bytes_read": 0, "bytes_written": 0}
        self._over = threading.Event()
        self._stop = threading.Event()
        self._absence: str | None = None
        self._thread = threading.Thread(target=self._beat, name="geopatch-pulse", daemon=True)

    @property
    def id(self) -> str:
        """Of the run."""
        return self._heart.state.id

    def __enter__(self) -> Self:
        if not self._heart.beat(**self._numbers):  # cancelled while it was being prepared
            self._stop.set()
        self._thread.start()
        return self

    def __exit__(self, why: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        # Requests to a store that does not answer are repeated for minutes, and nobody who presses
        # Ctrl-C waits for that.  A run of which nothing is heard counts as dead anyway.
        ending = threading.Thread(target=self._end, name="geopatch-pulse-end", daemon=True)
        ending.start()
        ending.join(None if why is None else LAST_WORDS)

    def _end(self) -> None:
        self._thread.join()
        self._heart.end()

    def count(self, outcome: Outcome) -> None:
        """One more super-tile has ended."""
        self._numbers["failed" if outcome.state == "failed" else "done"] += 1
        for name in ("patches", "bytes_read", "bytes_written"):
            self._numbers[name] += outcome.numbers.get(name, 0)

    def check(self) -> None:
        """Raise if the run is to stop.

        Raises
        ------
        Cancelled
        TargetGone
        """
        if self._absence is not None:
            raise TargetGone(self._absence)
        if self._stop.is_set():
            raise Cancelled("the run was cancelled; what was done is kept: run it again to finish")

    def look(self) -> None:
        """Raise if the target is not there any more.

        Raises
        ------
        TargetGone
        """
        self._absence = self._absence or absence(self._plan)
        if self._absence is not None:
            raise TargetGone(self._absence)

    def _beat(self) -> None:
        beats = 0
        while self._absence is None and not self._over.wait(BEAT):
            beats += 1
            if not beats % LOOK:
                self._absence = absence(self._plan)
            elif not self._heart.beat(**self._numbers):
                self._stop.set()


def drive(
    todo: Sequence[int],
    workers: Workers,
    policy: Policy,
    on_outcome: OnOutcome,
    check: Callable[[], None] = lambda: None,
    on_events: OnEvents = lambda events, backups: None,
) -> None:
    """Run super-tiles to their end: done, empty, or given up.

    Parameters
    ----------
    todo : sequence of int
        Ordinals.
    workers : Workers
        Closed at the end, whatever happens.
    policy : Policy
    on_outcome : callable
        Called once per super-tile.
    check : callable
        Called often; what it raises ends the run.
    on_events : callable
        Called with every event that counts, and the number of backups.
    """
    driver = Driver(todo, policy, len(todo))
    giving_up = 0
    repeated: Counter[int] = Counter()  # requests, by super-tile, of attempts that failed
    messages: list[Message | Lost] = []
    try:
        while True:
            check()
            heard: list[Event] = []
            done: set[int] = set()  # a super-tile and its backup may end in the same moment
            for message in messages:
                if isinstance(message, Message) and message.attempt == 0:
                    giving_up -= 1
                    on_outcome(message.outcome)
                elif driver.accepts(message.ordinal, message.attempt):
                    event = message if isinstance(message, Lost) else _event(message)
                    if isinstance(message, Message) and isinstance(event, Done):
                        if event.ordinal not in done:
                            on_outcome(message.outcome.also(repeated.pop(event.ordinal, 0)))
                        done.add(event.ordinal)
                    elif isinstance(message, Message):
                        repeated[message.ordinal] += message.outcome.numbers.get("retries", 0)
                    heard.append(event)
            orders = driver.step(time.monotonic(), heard, workers.slots)
            on_events(heard, driver.backups)
            workers.stop([order for order in orders if isinstance(order, Stop)])
            lost = [
                replace(order, retries=repeated.pop(order.ordinal, 0))
                for order in orders
                if isinstance(order, GiveUp)
            ]
            workers.give_up(lost)
            giving_up += len(lost)
            workers.start([order for order in orders if isinstance(order, Start)])
            if driver.over and not giving_up:
                return
            messages = workers.wait(_patience(driver))
    finally:
        workers.close()


def _patience(driver: Driver) -> float:
    """Seconds to wait for messages: until a pause ends, or for a tick."""
    if driver.waiting is None:
        return TICK
    return min(max(driver.waiting - time.monotonic(), 0.0), TICK)


def _event(message: Message) -> Event:
    outcome = message.outcome
    if outcome.error is not None:
        return Failed(message.ordinal, message.attempt, outcome.error)
    return Done(message.ordinal, message.attempt, sum(outcome.seconds.values()))
