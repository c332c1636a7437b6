"""Every order of the steps that some processes take at one store, with a death before any of them.

A process is a function that calls :func:`step` before each operation and :func:`saw` with what it
learnt.  An order is played from the beginning, again and again, each time with another last choice.
What a process does next depends on what it has seen, so an order that leads to known sights in a
known world is not played to its end a second time::

    a: write x    b: write y    or the other way round: one world, and the rest is played once
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Play", "called", "orders", "random_orders", "saw", "step"]

#: Makes a new world; returns its processes by name, and what tells the state of the world.
Begin = Callable[[], tuple[Mapping[str, Callable[[], None]], Callable[[], Hashable]]]
#: Whether a process may die that has seen this.
Mortal = Callable[[list[Hashable]], bool]
#: A process and whether it goes on; it dies if not.
Choice = tuple[str, bool]


class _Killed(BaseException):
    """What a process sees in place of every step after its death."""


class _Process(threading.Thread):
    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.work = work
        self.go, self.there = threading.Semaphore(0), threading.Semaphore(0)
        self.seen: list[Hashable] = []
        self.waits = self.dead = False
        self.error: BaseException | None = None

    def run(self) -> None:
        _here.process = self
        try:
            self.work()
        except _Killed:
            pass
        except BaseException as error:
            self.error = error
        self.waits = False
        self.there.release()

    def step(self, name: str) -> None:
        if self.dead:
            raise _Killed
        self.waits = True
        self.there.release()
        self.go.acquire()
        if self.dead:
            raise _Killed
        self.seen.append(name)

    def advance(self, lives: bool = True) -> None:
        self.dead |= not lives
        self.go.release()
        self.there.acquire()


_here = threading.local()


def step(name: str) -> None:
    """Called by a process before an operation: waits for its turn."""
    _here.process.step(name)


def saw(value: Hashable) -> None:
    """Called by a process with what an operation told it."""
    _here.process.seen.append(value)


def called() -> str:
    """The process that asks, and how much it has seen: a time, for those who need one."""
    return f"{_here.process.name}{len(_here.process.seen)}"


@dataclass
class Play:
    """One order, and how its processes ended."""

    choices: list[Choice] = field(default_factory=list)
    errors: dict[str, BaseException | None] = field(default_factory=dict)


def orders(begin: Begin, deaths: int = 0, mortal: Mortal = lambda seen: True) -> Iterator[Play]:
    """Play every order; stops after each, for a look at what it has left.

    Parameters
    ----------
    begin : callable
    deaths : int
        How many processes may die, at any moment.
    mortal : callable ``seen -> bool``
    """
    path: list[list[Choice]] = []  # at every step the choices that are left, the present one last
    known: set[Hashable] = set()
    while True:
        play = _played(begin, deaths, mortal, path, known)
        if play is not None:
            yield play
        while path and len(path[-1]) == 1:
            path.pop()
        if not path:
            return
        path[-1].pop()


def random_orders(begin: Begin, times: int, seed: int) -> Iterator[Play]:
    """Play some orders, for more processes than can be played in every order; nobody dies."""
    rng = random.Random(seed)
    for _ in range(times):
        play = _played(begin, 0, lambda seen: False, [], set(), rng)
        if play is not None:
            yield play


def _played(
    begin: Begin,
    deaths: int,
    mortal: Mortal,
    path: list[list[Choice]],
    known: set[Hashable],
    rng: random.Random | None = None,
) -> Play | None:
    """Play the choices, and then the last ones, or any; None from a known state on."""
    works, state = begin()
    live = {name: _Process(name, work) for name, work in works.items()}
    for process in live.values():
        process.start()
        process.there.acquire()
    play = Play()
    while ready := [process for process in live.values() if process.waits]:
        depth = len(play.choices)
        if depth == len(path):
            sights = tuple((p.name, p.dead, *p.seen) for p in live.values())
            if (sights, state()) in known:
                for process in ready:
                    process.advance(False)
                return None
            known.add((sights, state()))
            may = sum(p.dead for p in live.values()) < deaths
            choices = [(p.name, False) for p in ready if may and mortal(p.seen)]
            choices += [(p.name, True) for p in ready]
            if rng is not None:
                rng.shuffle(choices)
            path.append(choices)
        name, lives = path[depth][-1]
        live[name].advance(lives)
        play.choices.append((name, lives))
    play.errors = {name: process.error for name, process in live.items()}
    return play
