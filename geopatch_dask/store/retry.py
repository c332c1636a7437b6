"""A zarr store whose every operation is repeated when it fails for a passing reason.

Stores of files and of memory go without: nothing is between them and their bytes.  Everything that
a store offers beyond the bare minimum (byte ranges, sizes, listings of one folder, deleting a
folder) is passed on to the store inside, or is built here on operations that are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from geopatch_dask.retries import call_async

__all__ = ["RetryStore", "innermost", "patient"]

T = TypeVar("T")


def patient(store: Store) -> Store:
    """The store, made to repeat what fails for a passing reason, unless it is of this machine."""
    here = isinstance(innermost(store), LocalStore | MemoryStore)
    return store if here or isinstance(store, RetryStore) else RetryStore(store)


def innermost(store: Store) -> Store:
    """The store inside all wrappers."""
    while isinstance(store, WrapperStore):
        store = store._store
    return store


class RetryStore(WrapperStore[Store]):
    """A store that asks again.

    Parameters
    ----------
    store : zarr.abc.store.Store
    """

    #: Newer zarr would otherwise go around the coroutines below.
    _supports_sync_io = False
    #: The location that it was made from, and how: then it travels as that, without clients or
    #: credentials, and is made again where it arrives.
    origin: Callable[[], Store] | None = None

    def __str__(self) -> str:
        return str(self._store)

    def __reduce__(self) -> Any:
        if self.origin is None:
            return RetryStore, (self._store,)
        return _made_again, (self.origin,)

    def _with_store(self, store: Store) -> RetryStore:
        made = RetryStore(store)
        if isinstance(self.origin, partial):
            made.origin = partial(self.origin.func, read_only=store.read_only)
        return made

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await call_async(lambda: self._store.get(key, prototype, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        return await call_async(lambda: self._store.get_partial_values(prototype, wanted))

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **options: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # What newer zarr does by itself, over our get; the wrapper's own would call the store's.
        inherited: Any = super(WrapperStore, self)
        given = {name: value for name, value in options.items() if value is not None}
        async for group in inherited.get_ranges(key, byte_ranges, **given):
            yield group

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> Any:
        for request in requests:
            yield request[0], await self.get(*request)

    async def exists(self, key: str) -> bool:
        return await call_async(lambda: self._store.exists(key))

    async def getsize(self, key: str) -> int:
        return await call_async(lambda: self._store.getsize(key))

    async def getsize_prefix(self, prefix: str) -> int:
        return await call_async(lambda: self._store.getsize_prefix(prefix))

    async def is_empty(self, prefix: str) -> bool:
        return await call_async(lambda: self._store.is_empty(prefix))

    async def set(self, key: str, value: Buffer) -> None:
        await call_async(lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Said twice it is still "there is an object now": the second finds that of the first.
        await call_async(lambda: self._store.set_if_not_exists(key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*(self.set(key, value) for key, value in values))

    async def delete(self, key: str) -> None:
        await call_async(lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        await call_async(lambda: self._store.delete_dir(prefix))

    async def clear(self) -> None:
        await call_async(self._store.clear)

    def list(self) -> AsyncIterator[str]:
        return _whole(self._store.list)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return _whole(lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return _whole(lambda: self._store.list_dir(prefix))


def _made_again(origin: Callable[[], Store]) -> Store:
    return origin()


async def _whole(listing: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
    """A listing that is repeated from its start when it breaks off: half of one is a wrong one."""

    async def collected() -> list[str]:
        return [name async for name in listing()]

    read: Callable[[], Awaitable[list[str]]] = collected
    for name in await call_async(read):
        yield name
