"""Where threads of one process compute: many at a time, or one alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Room"]

#: Seconds between two looks of who waits.
LOOK = 0.1


class Room:
    """A room that many may be in, or one that wants to be alone; then the others wait outside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._solos = 0  # that are inside, or wait until it is empty

    @contextmanager
    def entered(self, alone: bool, look: Callable[[], None]) -> Iterator[None]:
        """Be in it.

        Parameters
        ----------
        alone : bool
            Wait until nobody is inside, and let nobody in meanwhile.
        look : callable
            Called while it waits; what it raises ends that.
        """
        with self._changed:
            self._solos += alone
            try:
                while self._inside if alone else self._solos:
                    self._changed.wait(LOOK)
                    look()
            except BaseException:
                self._leave(alone)
                raise
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._leave(alone)

    def _leave(self, alone: bool) -> None:
        self._solos -= alone
        self._changed.notify_all()
