"""A store for tests that keeps what was asked of it, in order."""

from __future__ import annotations

import threading
from typing import Any

from zarr.storage import MemoryStore, WrapperStore


class Logged(WrapperStore[MemoryStore]):
    """Notes every operation as ``(verb, key)``."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        super().__init__(MemoryStore() if store is None else store)
        self.log: list[tuple[str, str]] = []
        self._guard = threading.Lock()

    def note(self, verb: str, key: str) -> None:
        with self._guard:
            self.log.append((verb, key))

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        self.note("get", key)
        return await super().get(key, *args, **options)

    async def set(self, key: str, value: Any) -> None:
        self.note("set", key)
        await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        self.note("set", key)
        await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        self.note("delete", key)
        await super().delete(key)

    def keys(self, verb: str, containing: str = "") -> list[str]:
        return [key for found, key in self.log if found == verb and containing in key]


def _sync_too(name: str, verb: str) -> None:
    """Newer zarr also has methods without an event loop; they are to be seen as well."""
    if not hasattr(MemoryStore, name):
        return

    def method(self: Logged, key: str, *args: Any, **options: Any) -> Any:
        self.note(verb, key)
        return getattr(self._store, name)(key, *args, **options)

    setattr(Logged, name, method)


for _name, _verb in (("get_sync", "get"), ("set_sync", "set"), ("delete_sync", "delete")):
    _sync_too(_name, _verb)
