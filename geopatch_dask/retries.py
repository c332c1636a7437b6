"""Asking again: the one policy for everything outside this process.

A request that failed for a passing reason (:func:`~geopatch_dask.failures.is_transient`) is
repeated after a pause that doubles and is drawn at random, so that a thousand workers that a busy
server sent away do not come back in the same instant::

    attempt   1      2       3          4               ...       8
              |-u(.2)-|-u(.4)-|---u(.8)---|                       |
              u(x) is uniform in 0..x seconds, x at most 10         then the failure is passed on

Requests are repeated whole.  That is safe where doing it twice is the same as doing it once: reads,
lists, deletes, and writes that replace an object by the same bytes.  It also settles the one case
that nobody can see from here, an answer that was lost after the request had been carried out.

Every repetition is counted: for the process, and for whoever began to count before it
(:func:`counting`), an attempt at a super-tile, say.  Whose it is travels with the context, which
asyncio and zarr hand to the event loop's thread, so that attempts in many threads of one process
do not take each other's::

    thread 1   with counting() as mine:   zarr.set ---> event loop: call_async ---> mine + 1
    thread 2   with counting() as mine:   call ------------------------------------> mine + 1
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from geopatch_dask.failures import is_transient

__all__ = [
    "POLICY",
    "Retries",
    "Tally",
    "call",
    "call_async",
    "carried",
    "counting",
    "repetitions",
    "take_retries",
]

T = TypeVar("T")
A = TypeVar("A")


@dataclass(frozen=True)
class Retries:
    """How often to ask again, and how long to wait before.

    The pauses are "full jitter" of Amazon's Builders' Library ("Timeouts, retries, and backoff
    with jitter", and "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): with many
    clients it takes the fewest calls and nearly the least time.  With the numbers below, a place
    that stays away is given up after 11 s of pauses on average and 23 s at most; a server that
    restarts is usually back before.

    Parameters
    ----------
    attempts : int
        Requests at most, the first one included.
    base, cap : float, seconds
        Longest first pause, which doubles, and longest pause.
    total : float, seconds
        No request is repeated later than this after the first one, however long each of them
        took: it bounds what a server that accepts and then says nothing can cost.
    """

    attempts: int = 8
    base: float = 0.2
    cap: float = 10.0
    total: float = 120.0

    def pause(self, failures: int) -> float:
        """Seconds to wait after that many failures; random.

        Not from the generator that a user may have seeded, or workers would draw alike.
        """
        return _random.uniform(0.0, min(self.cap, self.base * 2.0 ** (failures - 1)))


#: What everything uses.
POLICY = Retries()


def call(function: Callable[[], T]) -> T:
    """The result of ``function``, called again while it fails for a passing reason.

    Raises
    ------
    Exception
        The last failure, as it came, with a note of how many attempts there were.
    """
    effort = _Effort()
    while True:
        try:
            return function()
        except Exception as error:
            pause = effort.pause_after(error)
        time.sleep(pause)


async def call_async(function: Callable[[], Awaitable[T]]) -> T:
    """As :func:`call`, for a coroutine function; the event loop goes on during the pauses."""
    effort = _Effort()
    while True:
        try:
            return await function()
        except Exception as error:
            pause = effort.pause_after(error)
        await asyncio.sleep(pause)


def take_retries() -> int:
    """Repetitions in this process since this was last asked; asking sets the count to 0."""
    return _COUNT.take()


class Tally:
    """A count of repetitions.

    Attributes
    ----------
    value : int
    """

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """One more."""
        with self._lock:
            self.value += 1


@contextmanager
def counting() -> Iterator[Tally]:
    """Count, in a block, the repetitions of this thread and of what an event loop does for it.

    Of two blocks, one inside the other, the inner one counts.
    """
    tally = Tally()
    token = _TALLY.set(tally)
    try:
        yield tally
    finally:
        _TALLY.reset(token)


def repetitions() -> int:
    """Those that the innermost block of :func:`counting` has counted so far; 0 outside of any."""
    tally = _TALLY.get()
    return 0 if tally is None else tally.value


def carried(function: Callable[[A], T]) -> Callable[[A], T]:
    """A function for another thread, whose repetitions are counted where this one's are."""
    tally = _TALLY.get()

    def call_there(item: A) -> T:
        token = _TALLY.set(tally)
        try:
            return function(item)
        finally:
            _TALLY.reset(token)

    return call_there


class _Effort:
    """The attempts at one request."""

    def __init__(self) -> None:
        self.policy = POLICY
        self.began = time.monotonic()
        self.failures = 0

    def pause_after(self, error: Exception) -> float:
        """How long to wait before the next attempt; raises ``error`` when there is to be none."""
        self.failures += 1
        spent = time.monotonic() - self.began
        again = is_transient(error)
        if again and self.failures < self.policy.attempts:
            pause = self.policy.pause(self.failures)
            if spent + pause <= self.policy.total:
                _COUNT.add()
                if (tally := _TALLY.get()) is not None:
                    tally.add()
                return pause
        if again:
            error.add_note(f"given up after {self.failures} attempts in {spent:.1f} s")
        raise error


class _Count:
    """A number that starts at 0 in every process, also in one that was forked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid, self.value = os.getpid(), 0

    def add(self) -> None:
        with self.lock:
            self._mine()
            self.value += 1

    def take(self) -> int:
        with self.lock:
            self._mine()
            taken, self.value = self.value, 0
            return taken

    def _mine(self) -> None:
        if self.pid != os.getpid():
            self.pid, self.value = os.getpid(), 0


_COUNT = _Count()
_TALLY: contextvars.ContextVar[Tally | None] = contextvars.ContextVar("tally", default=None)
_random = random.SystemRandom()
