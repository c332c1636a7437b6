"""A store that fails when it is told to: at a chosen operation, or at random ones.

An open zarr store is a target like any other, and everything a run keeps goes through it, records
included.  So a store that counts its operations can stop a run between any two of them::

    for n in range(1, 500):
        store = FaultStore(zarr.storage.LocalStore(folder), kill_at(n))
        ...                      # in a process of its own: run the plan, which is killed at n
        plan.run()               # again, on a store that works: the same bytes

The fault comes *before* the operation; "after it" is before the next one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

__all__ = ["Broken", "Fault", "FaultStore", "fail_at", "kill_at"]

#: Takes the number of the operation (from 1), its name and its key; raises, or ends the process.
Fault = Callable[[int, str, str], None]


class Broken(ConnectionResetError):
    """A failure that was asked for; one that passes, as far as the package can tell."""


def kill_at(n: int) -> Fault:
    """End this process with SIGKILL before the ``n``-th operation."""

    def fault(count: int, operation: str, key: str) -> None:
        del operation, key
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)

    return fault


def fail_at(*numbers: int) -> Fault:
    """Raise :class:`Broken` in place of the operations of these numbers."""

    def fault(count: int, operation: str, key: str) -> None:
        if count in numbers:
            raise Broken(f"{operation} {key}: asked to fail, operation {count}")

    return fault


class FaultStore(WrapperStore[Store]):
    """A zarr store with faults.

    Parameters
    ----------
    store : zarr.abc.store.Store
    fault : callable ``(count, operation, key)``
        Called before every operation; see :func:`kill_at`, :func:`fail_at`.

    Attributes
    ----------
    operations : list of (str, str)
        Names and keys of the operations so far.
    """

    #: Newer zarr would otherwise go around the coroutines below.
    _supports_sync_io = False

    def __init__(self, store: Store, fault: Fault) -> None:
        super().__init__(store)
        self.fault = fault
        self.operations: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def _step(self, operation: str, key: str) -> None:
        with self._lock:
            self.operations.append((operation, key))
            count = len(self.operations)
        self.fault(count, operation, key)

    def _with_store(self, store: Store) -> FaultStore:
        """The same counter before another view of the store: read-only, say."""
        other = type(self)(store, self.fault)
        other.operations, other._lock = self.operations, self._lock
        return other

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self._step("get", key)
        return await self._store.get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, span) for key, span in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> Any:
        for request in requests:
            yield request[0], await self.get(*request)

    async def exists(self, key: str) -> bool:
        self._step("exists", key)
        return await self._store.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        self._step("set", key)
        await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self._step("set_if_not_exists", key)
        await self._store.set_if_not_exists(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        self._step("delete", key)
        await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        self._step("delete_dir", prefix)
        await self._store.delete_dir(prefix)

    async def clear(self) -> None:
        self._step("clear", "")
        await self._store.clear()

    async def list(self) -> AsyncIterator[str]:
        self._step("list", "")
        async for key in self._store.list():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        self._step("list_prefix", prefix)
        async for key in self._store.list_prefix(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        self._step("list_dir", prefix)
        async for key in self._store.list_dir(prefix):
            yield key
