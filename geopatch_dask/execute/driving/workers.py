"""Where attempts run: this thread, threads of this process, or a Dask cluster.

All have one shape, :class:`Workers`: they are told what to start, and asked what has ended.  None
of them decides anything; that is the driver's business.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from dask.utils import key_split
from distributed import Client, Future, KilledWorker

from geopatch_dask.execute.attempt.events import Lost
from geopatch_dask.execute.attempt.policy import Policy
from geopatch_dask.execute.attempt.stage import recorded_context
from geopatch_dask.execute.attempt.tile import give_up, run_tile
from geopatch_dask.execute.attempt.watchdog import guarded, topic
from geopatch_dask.execute.driving.connection import (
    FORGOTTEN,
    check_connected,
    fetched,
    value_or_error,
)
from geopatch_dask.execute.driving.driver import GiveUp, Start, Stop
from geopatch_dask.execute.driving.graph import NamedTask
from geopatch_dask.execute.driving.head import Head, local_context
from geopatch_dask.execute.driving.losses import ASK, Losses
from geopatch_dask.execute.target.prepare import token
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.report.outcome import Outcome

__all__ = ["InThread", "Message", "OnCluster", "Threads", "Workers"]

#: Seconds between two looks at how many slots a cluster has.
LOOK = 2.0
#: How often a super-tile is given up anew because the worker that did it died.
RETRIES = 3
#: Attempts after which this process forgets what Dask remembers of their keys.
FORGET = 5_000
#: Seconds in which more may end before what ended is fetched, while many are under way: fetching
#: and starting cost a message each way, however many super-tiles they are about.  What is sent with
#: more than so many others is looked at so often; of others, Dask tells, each by a thread.
LINGER, MANY = 0.1, 100
#: Super-tiles per slot up to which Dask does not take them for many tasks of one kind.
FEW = 2


def _unchecked() -> None:
    """Nobody asks the run to stop."""


@dataclass(frozen=True, slots=True)
class Message:
    """An attempt that came to its end.

    Parameters
    ----------
    ordinal, attempt : int
        ``attempt`` is 0 for a super-tile that was given up and has been recorded so.
    outcome : Outcome
    """

    ordinal: int
    attempt: int
    outcome: Outcome


class Workers(Protocol):
    """Runs attempts of one plan."""

    @property
    def slots(self) -> int:
        """Super-tiles that are computed at the same time."""

    def start(self, attempts: Sequence[Start]) -> None:
        """Start some attempts."""

    def stop(self, attempts: Sequence[Stop]) -> None:
        """Forget attempts; those that nobody has begun are not."""

    def give_up(self, items: Sequence[GiveUp]) -> None:
        """Record super-tiles as failed; told as messages with attempt 0."""

    def wait(self, seconds: float) -> list[Message | Lost]:
        """What has ended, at least one message unless the time is over."""

    def close(self) -> None:
        """Forget everything that has not ended."""


class InThread:
    """One super-tile at a time, in the calling thread.

    Parameters
    ----------
    plan : PlanBase
    policy : Policy
    context : mapping or None
        What an earlier run found in pass 1; None: it is computed here, where the plan has one.
    check : callable
        Called all the while pass 1 is computed; what it raises ends that.

    Raises
    ------
    FirstPassFailed
    """

    slots = 1

    def __init__(
        self,
        plan: PlanBase,
        policy: Policy,
        context: Mapping[str, Any] | None = None,
        check: Callable[[], None] = _unchecked,
    ) -> None:
        self.plan, self.policy = plan, policy
        self.context = local_context(plan, policy, context, check)
        self._waiting: deque[Start | GiveUp] = deque()

    def start(self, attempts: Sequence[Start]) -> None:
        self._waiting.extend(attempts)

    def stop(self, attempts: Sequence[Stop]) -> None:
        gone = {(item.ordinal, item.attempt) for item in attempts}
        kept = [w for w in self._waiting if not _is_among(w, gone)]
        self._waiting = deque(kept)

    def give_up(self, items: Sequence[GiveUp]) -> None:
        self._waiting.extendleft(items)

    def wait(self, seconds: float) -> list[Message | Lost]:
        if not self._waiting:
            time.sleep(seconds)
            return []
        return [self._run(self._waiting.popleft())]

    def close(self) -> None:
        self._waiting.clear()

    def _run(self, item: Start | GiveUp) -> Message:
        if isinstance(item, GiveUp):
            outcome = give_up(
                self.plan, item.ordinal, item.error, item.attempts, self.policy, item.retries
            )
            return Message(item.ordinal, 0, outcome)
        outcome = run_tile(self.plan, item.ordinal, self.context, self.policy, item.attempt)
        return Message(item.ordinal, item.attempt, outcome)


class Threads(InThread):
    """As many super-tiles at a time as the plan has slots, in threads of this process."""

    def __init__(
        self,
        plan: PlanBase,
        policy: Policy,
        context: Mapping[str, Any] | None = None,
        check: Callable[[], None] = _unchecked,
    ) -> None:
        super().__init__(plan, policy, context, check)
        self.slots = plan.slots
        self._pool = ThreadPoolExecutor(plan.slots, "geopatch")
        self._ended: queue.SimpleQueue[ThreadFuture[Message]] = queue.SimpleQueue()
        self._running: dict[tuple[int, int], ThreadFuture[Message]] = {}

    def start(self, attempts: Sequence[Start]) -> None:
        for item in attempts:
            future = self._pool.submit(self._run, item)
            self._running[item.ordinal, item.attempt] = future
            future.add_done_callback(self._ended.put)

    def stop(self, attempts: Sequence[Stop]) -> None:
        for item in attempts:
            future = self._running.pop((item.ordinal, item.attempt), None)
            if future is not None:
                future.cancel()

    def give_up(self, items: Sequence[GiveUp]) -> None:
        for item in items:
            self._pool.submit(self._run, item).add_done_callback(self._ended.put)

    def wait(self, seconds: float) -> list[Message | Lost]:
        found: list[Message | Lost] = [
            future.result() for future in _drained(self._ended, seconds) if not future.cancelled()
        ]
        for message in found:
            self._running.pop((message.ordinal, message.attempt), None)
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class OnCluster:
    """On the workers of a Dask cluster.

    Parameters
    ----------
    plan : PlanBase
    policy : Policy
    client : distributed.Client
    context : mapping or None
        As for :class:`InThread`; pass 1 runs on the cluster.
    run : callable
        What computes a super-tile; called as :func:`~geopatch_dask.execute.attempt.tile.run_tile`.
    check : callable
        As for :class:`InThread`.

    Raises
    ------
    FirstPassFailed
    PlanNotLoaded
    """

    def __init__(
        self,
        plan: PlanBase,
        policy: Policy,
        client: Client,
        context: Mapping[str, Any] | None = None,
        run: Callable[..., Outcome] = run_tile,
        check: Callable[[], None] = _unchecked,
    ) -> None:
        self.plan, self.policy, self.client, self.run = plan, policy, client, run
        self.short = token(plan)
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._futures: dict[Any, Future[Any]] = {}
        self._crowd: set[Any] = set()  # keys of which nobody tells
        self._names: dict[Any, tuple[int, int, int]] = {}  # ordinal, attempt, and with which head
        self._giving_up: dict[int, tuple[GiveUp, int]] = {}
        self._looked, self._slots, self._sent = 0.0, 0, 0
        self._pause = LINGER
        self._losses = Losses(plan, client)
        self._topic = topic(self.short)
        self._head = Head(plan, policy, client, check)
        try:
            self._begin(context)
        except BaseException:
            self.close()
            raise

    def _begin(self, context: Mapping[str, Any] | None) -> None:
        # Each time: a scheduler forgets it when a connection breaks.
        self.client.subscribe_topic(self._topic, self._heard)
        self._head.begin(context)
        if 1 < self.slots <= self.plan.n_supertiles <= FEW * self.slots:
            self._head.spread()

    @property
    def slots(self) -> int:
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            check_connected(self.client)
            with suppress(OSError):  # the scheduler is away; if it stays so, the client will notice
                self._slots = sum(self.client.nthreads().values())
        return max(self._slots, 1)

    def start(self, attempts: Sequence[Start]) -> None:
        refs = self._head.refs
        context = refs[1] if len(refs) > 1 else None
        tasks: dict[Any, Any] = {}
        for item in attempts:
            key = (f"tile-{self.short}", item.ordinal, item.attempt)
            what = (self.run, refs[0], item.ordinal, context, self.policy, item.attempt)
            tasks[key] = NamedTask(key, guarded, *what)
            self._names[key] = (item.ordinal, item.attempt, self._head.begun)
        self._send(tasks)

    def stop(self, attempts: Sequence[Stop]) -> None:
        for item in attempts:
            self._forget((f"tile-{self.short}", item.ordinal, item.attempt))

    def give_up(self, items: Sequence[GiveUp]) -> None:
        plan = self._head.refs[0]
        tasks: dict[Any, Any] = {}
        for given in items:
            item = self._losses.completed(given)
            tries = self._giving_up.get(item.ordinal, (item, 0))[1] + 1
            self._giving_up[item.ordinal] = (item, tries)
            key = (f"give-up-{self.short}", item.ordinal, tries)
            what = (item.ordinal, dict(item.error), item.attempts, self.policy, item.retries)
            tasks[key] = NamedTask(key, give_up, plan, *what)
            self._names[key] = (item.ordinal, 0, self._head.begun)
        self._send(tasks)

    def _send(self, tasks: dict[Any, Any]) -> None:
        keys = list(tasks)
        if not keys:
            return
        check_connected(self.client)
        self._sent += len(keys)
        if self._sent > FORGET:
            # Dask remembers the prefix of every key, up to 100 000 of them: 1 kB each.
            self._sent = 0
            key_split.cache_clear()
        for key, future in zip(keys, self.client.get(tasks, keys, sync=False), strict=True):
            self._futures[key] = future
            if len(keys) > MANY:
                self._crowd.add(key)
            else:
                future.add_done_callback(lambda f, key=key: self._ended.put(key))

    def wait(self, seconds: float) -> list[Message | Lost]:
        found: list[Message | Lost] = []
        ended: list[tuple[Any, Future[Any]]] = []
        seconds = min(seconds, ASK) if self._losses else seconds
        for item in self._told(seconds):
            if isinstance(item, Lost):
                found.append(item)
                self._forget((f"tile-{self.short}", item.ordinal, item.attempt))
            elif item in self._futures:
                ended.append((item, self._futures[item]))
        if not ended:
            check_connected(self.client)
        return found + self._losses.judged() + self._gathered(ended)

    def _told(self, seconds: float) -> list[Any]:
        """Keys of attempts that have ended, and what workers told, after some waiting."""
        until = time.monotonic() + seconds
        while self._crowd:
            found = _drained(self._ended, self._pause)
            found += [key for key in self._crowd if self._futures[key].done()]
            # To look at 10 000 takes some ms: less often where they take long.
            self._pause = LINGER if found else max(LINGER, min(2 * self._pause, seconds))
            if found or time.monotonic() >= until:
                return found
        return _drained(self._ended, seconds, LINGER if len(self._futures) > MANY else 0)

    def _gathered(self, ended: list[tuple[Any, Future[Any]]]) -> list[Message | Lost]:
        done = [(key, future) for key, future in ended if future.status == "finished"]
        results = fetched(self.client, [future for _, future in done])
        if len(results) < len(done):  # lost between "finished" and now: one by one
            results = [value_or_error(future) for _, future in done]
        values = {key: value for (key, _), value in zip(done, results, strict=True)}
        messages: list[Message | Lost] = []
        orphans: list[tuple[int, int, int]] = []
        for key, future in ended:
            ordinal, attempt, head = self._names[key]
            value = values.get(key)
            error = None
            if not isinstance(value, Outcome):
                self._head.check_loaded()
                error = value_or_error(future)
            self._forget(key)
            if isinstance(value, Outcome):
                messages.append(Message(ordinal, attempt, value))
            elif _is_orphan(error, key):
                orphans.append((ordinal, attempt, head))
            elif attempt == 0 and self._giving_up[ordinal][1] < RETRIES:
                self.give_up([self._giving_up[ordinal][0]])  # on a worker that ended just then
            elif attempt and isinstance(error, KilledWorker):
                check_connected(self.client, error)
                self._losses.add(ordinal, attempt, error)
            else:
                messages.append(self._gone(ordinal, attempt, error))
        self._adopt(orphans)
        return messages

    def _adopt(self, orphans: list[tuple[int, int, int]]) -> None:
        """Start attempts again that are not to blame: what they depend on was lost, or forgotten.

        Those that had it from a head which has a successor by now need no other.
        """
        if not orphans:
            return
        check_connected(self.client)
        if any(head == self._head.begun for _, _, head in orphans):
            self._begin(recorded_context(self.plan)[0] if self.plan.context else None)
        self.start([Start(ordinal, attempt) for ordinal, attempt, _ in orphans if attempt])
        self.give_up([self._giving_up[ordinal][0] for ordinal, again, _ in orphans if not again])

    def _gone(self, ordinal: int, attempt: int, error: Any) -> Message:
        """A task that Dask could not run; or one that gives up, whose worker died."""
        check_connected(self.client, error)
        tile = self.plan.supertile(ordinal)
        message = self.plan.scrub(str(error))
        found = {
            "type": type(error).__name__,
            "message": message,
            "traceback": message,
            "kind": "permanent",
        }
        if attempt == 0:  # even giving it up failed
            return Message(ordinal, 0, Outcome(ordinal, tile.id, "failed", error=found))
        outcome = Outcome(ordinal, tile.id, "failed", error=found, attempt=attempt)
        return Message(ordinal, attempt, outcome)

    def _heard(self, event: Any) -> None:
        """A worker tells that it ends itself because an attempt, or a leaf, takes too long."""
        _, said = event
        if "leaf" in said:
            self._head.heard(said)
            return
        error = {name: str(said["error"][name]) for name in ("type", "message", "traceback")}
        where = (int(said["ordinal"]), int(said["attempt"]))
        self._ended.put(Lost(*where, error | {"kind": "timeout"}, timed_out=True))

    def _forget(self, key: Any) -> None:
        self._names.pop(key, None)
        self._crowd.discard(key)
        future = self._futures.pop(key, None)
        if future is not None:
            future.release()

    def close(self) -> None:
        with suppress(Exception):  # a client that is closed already
            self.client.unsubscribe_topic(self._topic)
        for key in list(self._futures):
            self._forget(key)
        self._head.release()


def _is_orphan(error: Any, key: Any) -> bool:
    """Whether a task is told of a death that one died which it depends on, or was forgotten."""
    if isinstance(error, KilledWorker):
        return str(error.task) != str(key)
    return isinstance(error, FORGOTTEN)


def _is_among(item: Start | GiveUp, gone: set[tuple[int, int]]) -> bool:
    return isinstance(item, Start) and (item.ordinal, item.attempt) in gone


def _drained(source: queue.SimpleQueue[Any], seconds: float, linger: float = 0) -> list[Any]:
    """Everything in a queue, after waiting for the first entry, and then a little for others."""
    found = []
    with suppress(queue.Empty):
        found.append(source.get(timeout=seconds))
        if linger:
            time.sleep(linger)
        while True:
            found.append(source.get_nowait())
    return found
