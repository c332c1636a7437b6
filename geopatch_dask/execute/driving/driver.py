"""The driver: what is started, repeated, backed up and given up.  Pure: no clock, no Dask.

::

                     +--- again, after a pause or at once ---+
                     v                                       |
    todo  --->  running  ---- done ----------> (forgotten)   |
      window         |                                       |
                     +---- failed, lost ----> its case ------+
                                                |  |
               alone: when nothing else runs <--+  +--> over: given up

What a failure means is judged by its :class:`~geopatch_dask.execute.attempt.case.Case`.

*Backups*: in the last wave, when slots are idle and nothing waits, a super-tile that has been
running for much longer than others took is started a second time.  Both write the same bytes; the
first to finish wins.

Feed events and the time to :meth:`Driver.step`; do what it answers.  It keeps nothing about what
is done, so its memory does not grow with the number of super-tiles.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from geopatch_dask.execute.attempt.case import Case, Verdict
from geopatch_dask.execute.attempt.events import Done, Event
from geopatch_dask.execute.attempt.policy import Policy, backoff

__all__ = ["Driver", "GiveUp", "Instruction", "Start", "Stop"]

#: Up to so many super-tiles, a scheduler may know all of them at once (8 kB of its memory each).
ALL_AT_ONCE = 10_000
#: Beyond, the least number it knows, and how many per slot, so that no worker waits.
WINDOW = 2_000
PER_SLOT = 8
#: A straggler has run for so many times the median, and for so many seconds.
STRAGGLER = 3.0
STRAGGLER_SECONDS = 10.0
#: Durations that the median is taken of.
REMEMBERED = 256


# ---- what is to be done ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start an attempt."""

    ordinal: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Forget an attempt; whether it still runs does not matter."""

    ordinal: int
    attempt: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record a super-tile as failed."""

    ordinal: int
    error: Mapping[str, str]
    attempts: int
    retries: int = 0


Instruction = Start | Stop | GiveUp


@dataclass(slots=True)
class _Tile(Case):
    """What is known of a super-tile in hand."""

    running: dict[int, float] = field(default_factory=dict)  # attempt -> when it was started
    backed_up: bool = False


class Driver:
    """Drives the super-tiles of one run.

    Parameters
    ----------
    todo : iterable of int
        Ordinals, in the order in which they are to be started.
    policy : Policy
    total : int
        How many ``todo`` has.

    Attributes
    ----------
    backups : int
        Stragglers that were started a second time.
    """

    def __init__(self, todo: Iterable[int], policy: Policy, total: int) -> None:
        self._todo: Iterator[int] = iter(todo)
        self._left = total
        self.policy = policy
        self._whole = policy.window is None and total <= ALL_AT_ONCE
        self._tiles: dict[int, _Tile] = {}
        self._pauses: list[tuple[float, int]] = []  # a heap of (when, ordinal)
        self._alone: deque[int] = deque()
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._running = 0
        self._solo: int | None = None
        self._tail: float | None = None
        self.backups = 0

    # ---- outside ---------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether every super-tile is done or given up."""
        return not self._left and not self._tiles

    @property
    def running(self) -> int:
        """Attempts that were started and have not ended, nor been stopped."""
        return self._running

    @property
    def waiting(self) -> float | None:
        """When the next pause ends; None when there is none."""
        return self._pauses[0][0] if self._pauses else None

    def accepts(self, ordinal: int, attempt: int) -> bool:
        """Whether the end of an attempt would count: it runs, and was not stopped."""
        tile = self._tiles.get(ordinal)
        return tile is not None and attempt in tile.running

    def step(self, now: float, events: Sequence[Event] = (), slots: int = 1) -> list[Instruction]:
        """Take in what happened; say what is to be done.

        Parameters
        ----------
        now : float, seconds
            Of any clock that does not go back.
        events : sequence of Done, Failed and Lost
            Events of attempts that were stopped, or that are told twice, do no harm.
        slots : int
            Super-tiles that can be computed at the same time.
        """
        out: list[Instruction] = []
        for event in events:
            self._take(event, now, out)
        self._start(now, slots, out)
        self._back_up(now, slots, out)
        return out

    # ---- events ----------------------------------------------------------------------------

    def _take(self, event: Event, now: float, out: list[Instruction]) -> None:
        tile = self._tiles.get(event.ordinal)
        if tile is None or event.attempt not in tile.running:
            return
        del tile.running[event.attempt]
        self._running -= 1
        if self._solo == event.ordinal:
            self._solo = None
        if isinstance(event, Done):
            self._durations.append(event.seconds)
            self._close(event.ordinal, tile, out)
            return
        verdict = tile.take(event, self.policy)
        if tile.running:  # another attempt decides
            return
        if verdict is Verdict.OVER:
            self._give_up(event.ordinal, tile, out)
            return
        tile.alone = tile.alone or verdict is Verdict.ALONE
        wait = backoff(event.ordinal, tile.failures) if verdict is Verdict.PAUSE else 0.0
        heapq.heappush(self._pauses, (now + wait, event.ordinal))

    def _give_up(self, ordinal: int, tile: _Tile, out: list[Instruction]) -> None:
        error, attempts = tile.error or {}, tile.attempts
        self._close(ordinal, tile, out)
        out.append(GiveUp(ordinal, error, attempts))

    def _close(self, ordinal: int, tile: _Tile, out: list[Instruction]) -> None:
        out.extend(Stop(ordinal, attempt) for attempt in tile.running)
        self._running -= len(tile.running)
        del self._tiles[ordinal]

    # ---- starting --------------------------------------------------------------------------

    def _start(self, now: float, slots: int, out: list[Instruction]) -> None:
        if self._solo is not None:
            return
        while self._pauses and self._pauses[0][0] <= now:
            _, ordinal = heapq.heappop(self._pauses)
            if self._tiles[ordinal].alone:
                self._alone.append(ordinal)
            else:
                self._launch(ordinal, now, out)
        # Topped up by halves, so that attempts are sent many at a time.
        window = self._window(slots)
        if self._running <= window // 2:
            while self._left and self._running < window:
                self._left -= 1
                self._launch(next(self._todo), now, out)
        if not self._running and self._alone and not self._pauses:
            self._solo = self._alone.popleft()
            self._launch(self._solo, now, out)

    def _window(self, slots: int) -> int:
        if self._whole:
            return ALL_AT_ONCE
        return self.policy.window or max(WINDOW, PER_SLOT * slots)

    def _launch(self, ordinal: int, now: float, out: list[Instruction]) -> None:
        tile = self._tiles.setdefault(ordinal, _Tile())
        tile.attempts += 1
        tile.running[tile.attempts] = now
        self._running += 1
        out.append(Start(ordinal, tile.attempts))

    def _back_up(self, now: float, slots: int, out: list[Instruction]) -> None:
        idle = slots - self._running
        if self._left or self._pauses or self._alone or idle <= 0:
            self._tail = None
            return
        self._tail = now if self._tail is None else self._tail
        if not self.policy.backups or not self._durations:
            return
        long = max(STRAGGLER * median(self._durations), STRAGGLER_SECONDS)
        for ordinal, tile in self._tiles.items():
            if idle <= 0:
                return
            if tile.alone or tile.backed_up or not tile.running:
                continue
            # Before the tail it may have been waiting for a worker.
            if now - max(max(tile.running.values()), self._tail) >= long:
                tile.backed_up = True
                self.backups += 1
                self._launch(ordinal, now, out)
                idle -= 1
