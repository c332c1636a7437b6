"""Asking again: how often, how long, what is counted, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from fault_server import Server
from hypothesis import given
from hypothesis import strategies as st
from sample_s3 import VALUES, options
from sample_stores import Logged
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore

from geopatch_dask import retries, s3
from geopatch_dask.errors import OptionError, TargetError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.retries import (
    POLICY,
    Retries,
    call,
    call_async,
    carried,
    counting,
    repetitions,
    take_retries,
)
from geopatch_dask.store.location import Location
from geopatch_dask.store.regions import write_region
from geopatch_dask.store.retry import RetryStore, innermost, patient

BUFFER = default_buffer_prototype()


@pytest.fixture(autouse=True)
def _counted_from_zero() -> Iterator[None]:
    take_retries()
    yield
    take_retries()


class Failing:
    """Fails ``times`` times, then answers."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.times, self.error, self.calls = times, error or ConnectionResetError("gone"), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.calls

    async def later(self) -> int:
        return self()


class TestPolicy:
    def test_pauses_double_and_are_capped(self):
        policy = Retries(base=0.2, cap=10.0)
        for failures, most in ((1, 0.2), (2, 0.4), (5, 3.2), (7, 10.0), (60, 10.0)):
            drawn = [policy.pause(failures) for _ in range(300)]
            assert 0 <= min(drawn) < most / 4
            assert most * 3 / 4 < max(drawn) <= most

    def test_a_seed_of_the_user_does_not_align_workers(self):
        random.seed(1)
        first = [POLICY.pause(7) for _ in range(4)]
        random.seed(1)
        assert [POLICY.pause(7) for _ in range(4)] != first

    def test_the_docstring_tells_the_numbers(self):
        policy = Retries()
        longest = [min(policy.cap, policy.base * 2.0**k) for k in range(policy.attempts - 1)]
        assert "11 s of pauses on average and 23 s at most" in " ".join(
            (Retries.__doc__ or "").split()
        )
        assert round(sum(longest)) == 23
        assert round(sum(longest) / 2) == 11

    def test_the_page_tells_the_numbers(self):
        page = Path(__file__).parents[1] / "docs" / "storage.md"
        text = " ".join(page.read_text("utf-8").split())
        policy = Retries()
        assert f"at most {policy.attempts} attempts" in text
        assert f"up to {policy.base:g} s, {2 * policy.base:g} s" in text
        assert f"at most {policy.cap:g} s; after two minutes" in text
        assert policy.total == 120
        assert f"stand after {s3.CONNECT:g} s" in text
        assert f"given up after {s3.READ:g} s" in text


class TestCall:
    @given(st.integers(0, 12))
    def test_as_often_as_needed_and_allowed(self, times):
        take_retries()
        work = Failing(times)
        if times < POLICY.attempts:
            assert call(work) == times + 1
        else:
            with pytest.raises(ConnectionResetError) as caught:
                call(work)
            assert work.calls == POLICY.attempts
            assert f"after {POLICY.attempts} attempts" in caught.value.__notes__[0]
        assert take_retries() == min(times, POLICY.attempts - 1)
        assert take_retries() == 0

    @given(st.integers(0, 12))
    def test_the_same_for_coroutines(self, times):
        take_retries()
        work = Failing(times)
        if times < POLICY.attempts:
            assert asyncio.run(call_async(work.later)) == times + 1
        else:
            with pytest.raises(ConnectionResetError):
                asyncio.run(call_async(work.later))
        assert take_retries() == min(times, POLICY.attempts - 1)

    @pytest.mark.parametrize("error", [ValueError("x"), PermissionError("x"), MemoryError()])
    def test_what_lasts_is_asked_once(self, error):
        work = Failing(1, error)
        with pytest.raises(type(error)) as caught:
            call(work)
        assert caught.value is error
        assert (work.calls, take_retries()) == (1, 0)
        assert not hasattr(error, "__notes__")

    def test_an_end_after_some_time_however_few_attempts(self, monkeypatch):
        clock = SimpleNamespace(now=0.0, sleep=lambda seconds: None)
        clock.monotonic = lambda: clock.now
        monkeypatch.setattr(retries, "time", clock)
        work = Failing(100)

        def slow() -> int:
            clock.now += 50.0
            return work()

        with pytest.raises(ConnectionResetError):
            call(slow)
        assert work.calls == 3  # after 50 s and 100 s once more, after 150 s not

    def test_the_loop_goes_on_during_pauses(self, monkeypatch):
        monkeypatch.setattr(Retries, "pause", lambda policy, failures: 0.1)
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.001)

        async def both() -> None:
            other = asyncio.create_task(tick())
            await call_async(Failing(4).later)
            other.cancel()

        asyncio.run(both())
        assert len(ticks) > 12  # one or two between pauses, if nothing went on during them

    def test_threads_are_counted_together(self):
        threads = [threading.Thread(target=call, args=(Failing(3),)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert take_retries() == 48

    def test_each_counts_its_own(self):
        counted = {}

        async def several(times: int) -> None:
            await asyncio.gather(*(call_async(Failing(times).later) for _ in range(3)))

        def work(times: int) -> None:
            with counting() as tally:
                call(Failing(times))
                assert repetitions() == times
                sync(several(times))  # in the thread of zarr's event loop
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(carried(call), [Failing(times) for _ in range(4)]))
                counted[times] = tally.value

        threads = [threading.Thread(target=work, args=(times,)) for times in range(6)]
        with counting() as outside:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with counting() as inside:
                call(Failing(2))
            call(Failing(1))
        assert counted == {times: 8 * times for times in range(6)}
        assert (inside.value, outside.value, repetitions()) == (2, 1, 0)
        assert take_retries() == 8 * 15 + 3

    def test_a_fork_starts_from_zero(self):
        call(Failing(2))
        child = os.fork()
        if child == 0:
            os._exit(take_retries())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert take_retries() == 2


class Shaky(WrapperStore[Store]):
    """Fails at random, also after it has done what it was asked, and in the middle of listings."""

    def __init__(self, store: Store, rate: float = 0.3, seed: int = 0) -> None:
        super().__init__(store)
        self.rate, self.random = rate, random.Random(seed)

    def _with_store(self, store: Store) -> Shaky:
        return Shaky(store, self.rate)

    def stumble(self) -> None:
        if self.random.random() < self.rate:
            raise ConnectionResetError("gone")

    async def _twice(self, work: Any) -> Any:
        self.stumble()
        found = await work
        self.stumble()  # the answer is lost, the request was carried out
        return found

    async def _listed(self, names: AsyncIterator[str]) -> AsyncIterator[str]:
        async for name in names:
            self.stumble()
            yield name

    def list(self) -> AsyncIterator[str]:
        return self._listed(super().list())

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(super().list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._listed(super().list_dir(prefix))


def _shaken(name: str) -> Any:
    async def method(self: Shaky, *args: Any, **given: Any) -> Any:
        work = getattr(self._store, name)(*args, **given)
        try:
            return await self._twice(work)
        finally:
            work.close()

    return method


for _name in ("get", "get_partial_values", "exists", "set", "set_if_not_exists", "delete"):
    setattr(Shaky, _name, _shaken(_name))
for _name in ("getsize", "getsize_prefix", "is_empty", "delete_dir", "clear"):
    setattr(Shaky, _name, _shaken(_name))


class TestStore:
    @given(st.integers(0, 10**6))
    def test_every_operation_comes_through(self, seed):
        plain = MemoryStore()
        shaky = Shaky(plain, 0.25, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retries, "POLICY", replace(POLICY, attempts=60, base=0, cap=0))
            sync(self.everything(RetryStore(shaky), plain))

    async def everything(self, store: Store, plain: MemoryStore) -> None:
        value = BUFFER.buffer.from_bytes(bytes(range(100)))
        await store.set("a/b/c", value)
        await store.set_if_not_exists("a/b/c", BUFFER.buffer.from_bytes(b"no"))
        await store.set_if_not_exists("a/d", value)
        await store._set_many([("e", value), ("f/g", value)])
        assert sorted([name async for name in store.list()]) == ["a/b/c", "a/d", "e", "f/g"]
        assert sorted([name async for name in store.list_prefix("a/")]) == ["a/b/c", "a/d"]
        assert sorted([name async for name in store.list_dir("a")]) == ["b", "d"]
        whole = await store.get("a/b/c", BUFFER)
        assert whole is not None
        assert whole.to_bytes() == value.to_bytes()
        asked = [RangeByteRequest(3, 9), OffsetByteRequest(90), SuffixByteRequest(4), None]
        want = [value.to_bytes()[cut] for cut in (slice(3, 9), slice(90, None), slice(-4, None))]
        want.append(value.to_bytes())
        for request, part in zip(asked, want, strict=True):
            found = await store.get("e", BUFFER, request)
            assert found is not None
            assert found.to_bytes() == part
        found = await store.get_partial_values(BUFFER, iter([("e", r) for r in asked]))
        assert [part.to_bytes() for part in found if part is not None] == want
        many = store._get_many([("e", BUFFER, asked[0]), ("no", BUFFER, None)])
        assert [part and part.to_bytes() async for _, part in many] == [want[0], None]
        if hasattr(Store, "get_ranges"):
            groups = [g async for g in store.get_ranges("e", asked, prototype=BUFFER)]
            parts = {i: part.to_bytes() for group in groups for i, part in group}
            assert [parts[i] for i in range(4)] == want
        assert await store.getsize("e") == 100
        assert await store.getsize_prefix("a") == 200
        assert await store.exists("e")
        assert not await store.exists("x")
        assert not await store.is_empty("a")
        await store.delete("e")
        await store.delete("e")
        await store.delete_dir("a")
        assert list(plain._store_dict) == ["f/g"]
        await store.clear()
        assert not plain._store_dict

    def test_it_looks_like_the_store_inside(self, tmp_path):
        inner = Logged()
        store = RetryStore(inner)
        assert (str(store), store.supports_writes, store.supports_listing) == (
            str(inner),
            True,
            True,
        )
        assert store.with_read_only(True).read_only
        assert isinstance(store.with_read_only(True), RetryStore)
        assert innermost(store) is inner._store
        travelled = pickle.loads(pickle.dumps(RetryStore(LocalStore(tmp_path))))
        assert isinstance(travelled, RetryStore)

    def test_stores_of_this_machine_go_without(self, tmp_path):
        for store in (MemoryStore(), LocalStore(tmp_path), Logged()):
            assert patient(store) is store
        remote = Location("memory://b/out.zarr").zarr_store()
        assert isinstance(remote, RetryStore)
        assert patient(remote) is remote
        assert isinstance(innermost(remote), FsspecStore)
        assert type(Location(tmp_path).zarr_store()) is LocalStore

    @pytest.mark.parametrize("shards", [None, (40, 40)])
    def test_arrays_survive(self, shards):
        values = np.random.default_rng(0).normal(size=(100, 90))
        plain = MemoryStore()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retries, "POLICY", replace(POLICY, attempts=60, base=0, cap=0))
            store = RetryStore(Shaky(plain, 0.2))
            array = zarr.create_array(
                store, shape=values.shape, chunks=(20, 20), shards=shards, dtype="float64"
            )
            write_region(array, Box((0, 0), values.shape), values)
            again = zarr.open_array(store, mode="r")
            np.testing.assert_array_equal(again[:], values)
            np.testing.assert_array_equal(again[13:57, 5:6], values[13:57, 5:6])
            asked = take_retries()
        assert asked > 2
        np.testing.assert_array_equal(zarr.open_array(plain, mode="r")[:], values)


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)


def at(server: Server, client: str) -> Location:
    """A place there; botocore's own repetitions, which take a second each, are turned off."""
    once = {"retries": {"total_max_attempts": 1}}
    given = options(server.port, config_kwargs=once)
    return Location("s3://bucket/out.zarr", given, client=client)


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize("client", ["fsspec", "obstore"])
class TestClients:
    @pytest.mark.parametrize("fault", ["reset", "cut", "SlowDown"])
    def test_a_read_and_a_write_outlast_faults(self, client, fault):
        content = bytes(range(256)) * 40
        with Server(content, fault, count=6) as server:
            place = at(server, client)
            assert place.client_name == client
            assert place.read("object") == content
            assert take_retries() >= 1  # they, and aiohttp, ask again by themselves as well
            if fault != "cut":  # there is nothing to cut in an answer to PUT
                server.first = len(server.requests)
                place.write("object", b"1")
                assert take_retries() >= 1

    def test_a_chunk_that_was_cut_short_is_asked_for_again(self, client):
        content = bytes(range(256)) * 40
        with Server(content, "short", count=6) as server:
            store = at(server, client).zarr_store()
            found = sync(store.get("data/c/0", BUFFER))
            assert found is not None
            assert found.to_bytes() == content
            server.first = len(server.requests)
            part = sync(store.get("data/c/0", BUFFER, RangeByteRequest(100, 5000)))
            assert part is not None
            assert part.to_bytes() == content[100:5000]
        assert take_retries() >= 2

    def test_what_stays_away_is_given_up(self, client):
        with Server(b"", "ServiceUnavailable") as server:
            place = at(server, client)
            with pytest.raises(TargetError, match=r"server is busy.*after 8 attempts") as caught:
                place.read("object")
            assert (caught.value.kind, caught.value.transient) == ("busy", True)
            assert len(server.requests) == POLICY.attempts  # no client adds some of its own

    def test_what_is_forbidden_is_asked_once(self, client):
        with Server(b"", "AccessDenied") as server:
            place = at(server, client)
            with pytest.raises(TargetError, match="forbidden"):
                place.read("object")
            assert len(server.requests) == 1
        assert take_retries() == 0


def test_an_option_that_is_wrong_is_no_failure_of_the_place():
    with pytest.raises(OptionError, match="not set in this process"):
        Location("s3://b/x", {"key": "env:GP_NOT_SET"}).read("a")
    assert take_retries() == 0
