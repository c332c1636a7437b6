"""Open datasets, a few per thread, found again by configuration.

::

    thread A   key 1 -> handle     key 7 -> handle     ...  at most `size`, least recent closed
    thread B   key 1 -> another handle on the same file
    fork       the child starts with nothing
    pickle     fields do not hold handles, so there is nothing to pickle

GDAL datasets must not be shared between threads, and no open file survives a fork (parent and
child would share one file offset), so the cache is per thread and remembers its process.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["OPEN_PER_THREAD", "Handles", "forget_handles"]

#: Datasets kept open by each thread.  A super-tile reads one field and perhaps its mask; a mosaic
#: a handful of scenes.  An open GeoTIFF costs one file descriptor and its tile index (16 bytes per
#: tile: 1.6 MB for a raster of 100,000 tiles), so 16 stay far below a default ``ulimit -n``.
OPEN_PER_THREAD = 16

T = TypeVar("T")

#: Handles inherited through a fork.  Closing them here could deadlock on a lock that some thread
#: of the parent held, so they are kept, unused, until the process ends.
_inherited: list[Any] = []


_caches: weakref.WeakSet[Any] = weakref.WeakSet()


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()


class Handles(Generic[T]):
    """A least-recently-used cache of open datasets per thread and process.

    Parameters
    ----------
    close : callable
        Closes one handle.
    size : int
        Handles kept open by each thread.
    """

    def __init__(self, close: Callable[[T], None], size: int = OPEN_PER_THREAD) -> None:
        self._close = close
        self._size = size
        self._threads = _PerThread()
        _caches.add(self)
        atexit.register(self.clear)

    def __len__(self) -> int:
        """Handles that the calling thread holds."""
        return len(self._mine())

    def get(self, key: Hashable, stamp: Hashable, opener: Callable[[], T]) -> T:
        """The handle of ``key``, opened (again) when there is none with this stamp.

        Parameters
        ----------
        key : hashable
            The configuration that opens it.
        stamp : hashable
            State of the source; another stamp means that it was replaced.
        opener : callable
        """
        mine = self._mine()
        if key in mine and mine[key][0] != stamp:
            self.drop(key)
        if key not in mine:
            mine[key] = (stamp, opener())
            while len(mine) > self._size:
                self.drop(next(iter(mine)))
        mine.move_to_end(key)
        handle: T = mine[key][1]
        return handle

    def drop(self, key: Hashable) -> None:
        """Close and forget a handle, if the calling thread has it: after an error, or a change."""
        found = self._mine().pop(key, None)
        if found is not None:
            self._close(found[1])

    def clear(self) -> None:
        """Close what the calling thread has open; runs by itself at exit.

        GDAL logs through Python when a dataset is closed, and an interpreter that is being taken
        apart cannot log any more.
        """
        for key in list(self._mine()):
            self.drop(key)

    def _mine(self) -> OrderedDict[Hashable, tuple[Hashable, T]]:
        threads = self._threads
        if threads.pid != os.getpid():
            _inherited.append(threads.open)
            threads.pid, threads.open = os.getpid(), OrderedDict()
        return threads.open


def forget_handles() -> None:
    """Close whatever the calling thread has open, so that the next use opens it anew.

    For a retry: a connection, or the directory of a file, may have gone bad in between.
    """
    for cache in list(_caches):
        cache.clear()
