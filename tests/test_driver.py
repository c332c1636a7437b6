"""The driver, without a cluster: what it decides, for hand-made stories and for random ones."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

import geopatch_dask as gp
from geopatch_dask.execute.attempt.events import Done, Event, Failed, Lost
from geopatch_dask.execute.attempt.policy import DEFAULT, Policy, backoff
from geopatch_dask.execute.driving import driver as module
from geopatch_dask.execute.driving.drive import drive
from geopatch_dask.execute.driving.driver import Driver, GiveUp, Start, Stop
from geopatch_dask.execute.driving.workers import Message
from geopatch_dask.planning.units import parse_seconds
from geopatch_dask.report.outcome import Outcome


def error(kind: str) -> dict[str, str]:
    return {"type": "E", "message": kind, "traceback": "", "kind": kind}


def starts(orders: list[module.Instruction]) -> list[tuple[int, int]]:
    return [(o.ordinal, o.attempt) for o in orders if isinstance(o, Start)]


def given_up(orders: list[module.Instruction]) -> list[int]:
    return [o.ordinal for o in orders if isinstance(o, GiveUp)]


class TestDecisions:
    def test_all_at_once_then_over(self) -> None:
        driver = Driver(range(5), Policy(), 5)
        assert starts(driver.step(0.0, slots=2)) == [(i, 1) for i in range(5)]
        assert not driver.over
        assert driver.step(1.0, [Done(i, 1, 0.5) for i in range(5)], 2) == []
        assert driver.over

    def test_nothing_to_do_is_over(self) -> None:
        driver = Driver([], Policy(), 0)
        assert driver.step(0.0) == []
        assert driver.over

    def test_a_permanent_failure_is_given_up_at_once(self) -> None:
        driver = Driver([7], Policy(), 1)
        driver.step(0.0)
        orders = driver.step(1.0, [Failed(7, 1, error("permanent"))])
        assert orders == [GiveUp(7, error("permanent"), 1)]
        assert driver.over

    def test_a_transient_failure_waits_longer_each_time(self) -> None:
        driver, now = Driver([3], Policy(attempts=4), 1), 0.0
        driver.step(now)
        for attempt in (1, 2, 3):
            assert driver.step(now, [Failed(3, attempt, error("transient"))]) == []
            assert driver.waiting == now + backoff(3, attempt)
            assert driver.step(driver.waiting - 1e-3) == []
            now = driver.waiting
            assert starts(driver.step(now)) == [(3, attempt + 1)]
        assert given_up(driver.step(now, [Failed(3, 4, error("transient"))])) == [3]

    def test_a_lost_worker_is_forgiven_once_then_the_tile_runs_alone(self) -> None:
        driver = Driver([0, 1], Policy(), 2)
        driver.step(0.0)
        assert starts(driver.step(1.0, [Lost(0, 1, error("lost"))])) == [(0, 2)]
        assert driver.step(2.0, [Lost(0, 2, error("lost"))]) == []  # 1 is still running
        assert starts(driver.step(3.0, [Done(1, 1, 1.0)])) == [(0, 3)]
        assert given_up(driver.step(4.0, [Lost(0, 3, error("lost"))])) == [0]
        assert driver.over

    def test_bad_company_is_acquitted_alone(self) -> None:
        driver = Driver([0, 1], Policy(), 2)
        driver.step(0.0)
        driver.step(1.0, [Lost(0, 1, error("lost")), Lost(1, 1, error("lost"))])
        orders = driver.step(2.0, [Lost(0, 2, error("lost")), Lost(1, 2, error("lost"))])
        assert starts(orders) == [(0, 3)]  # alone: 1 waits
        orders = driver.step(3.0, [Done(0, 3, 1.0)])
        assert starts(orders) == [(1, 3)]
        assert given_up(driver.step(4.0, [Lost(1, 3, error("lost"))])) == [1]

    def test_a_transient_failure_waits_also_when_alone(self) -> None:
        driver = Driver([0], Policy(attempts=3), 1)
        driver.step(0.0)
        assert starts(driver.step(1.0, [Failed(0, 1, error("memory"))])) == [(0, 2)]
        assert driver.step(1.0, [Failed(0, 2, error("transient"))]) == []
        assert driver.waiting == 1.0 + backoff(0, 1)
        assert starts(driver.step(driver.waiting)) == [(0, 3)]
        assert given_up(driver.step(9.0, [Failed(0, 3, error("memory"))])) == [0]

    def test_out_of_memory_runs_alone_at_once(self) -> None:
        driver = Driver([0, 1], Policy(), 2)
        driver.step(0.0)
        assert driver.step(1.0, [Failed(0, 1, error("memory"))]) == []
        assert starts(driver.step(2.0, [Done(1, 1, 1.0)])) == [(0, 2)]
        assert given_up(driver.step(3.0, [Failed(0, 2, error("memory"))])) == [0]

    def test_a_lost_machine_is_not_held_against_the_tile(self) -> None:
        driver = Driver([0, 1], Policy(losses=5), 2)
        driver.step(0.0)
        for attempt in range(1, 6):  # 1 is running all the time: never alone
            gone = Lost(0, attempt, error("lost"), machine=True)
            assert starts(driver.step(float(attempt), [gone])) == [(0, attempt + 1)]
        assert given_up(driver.step(9.0, [Lost(0, 6, error("lost"), machine=True)])) == [0]
        assert not driver.over

    def test_lost_machines_and_dead_workers_are_counted_apart(self) -> None:
        driver = Driver([0, 1], Policy(losses=1), 2)
        driver.step(0.0)
        gone, died = {"machine": True}, {"machine": False}
        for attempt, how in enumerate([gone, died], 1):
            lost = Lost(0, attempt, error("lost"), **how)
            assert starts(driver.step(1.0, [lost])) == [(0, attempt + 1)]
        assert driver.step(2.0, [Lost(0, 3, error("lost"))]) == []  # died twice: alone, later
        assert starts(driver.step(3.0, [Done(1, 1)])) == [(0, 4)]
        assert given_up(driver.step(4.0, [Lost(0, 4, error("lost"), machine=True)])) == [0]

    def test_a_tile_that_is_alone_stays_so_when_its_machine_is_lost(self) -> None:
        driver = Driver([0, 1], Policy(), 2)
        driver.step(0.0)
        driver.step(1.0, [Failed(0, 1, error("memory")), Lost(1, 1, error("lost"), machine=True)])
        driver.step(2.0, [Done(1, 2)])  # now 0 runs, alone
        assert starts(driver.step(3.0, [Lost(0, 2, error("lost"), machine=True)])) == [(0, 3)]
        assert given_up(driver.step(4.0, [Lost(0, 3, error("lost"))])) == [0]

    def test_a_worker_killed_for_its_memory_sends_the_tile_alone_at_once(self) -> None:
        driver = Driver([0, 1], Policy(), 2)
        driver.step(0.0)
        assert driver.step(1.0, [Lost(0, 1, error("memory"))]) == []
        assert starts(driver.step(2.0, [Done(1, 1)])) == [(0, 2)]
        assert given_up(driver.step(3.0, [Lost(0, 2, error("memory"))])) == [0]

    def test_a_time_out_is_forgiven_once(self) -> None:
        driver = Driver([0], Policy(), 1)
        driver.step(0.0)
        late = error("timeout")
        assert starts(driver.step(1.0, [Lost(0, 1, late, timed_out=True)])) == [(0, 2)]
        assert given_up(driver.step(2.0, [Lost(0, 2, late, timed_out=True)])) == [0]

    def test_the_window_bounds_what_is_known(self) -> None:
        driver = Driver(range(100), Policy(window=10), 100)
        first = starts(driver.step(0.0, slots=4))
        assert len(first) == 10
        assert driver.step(1.0, [Done(i, 1) for i in range(4)], 4) == []  # topped up by halves
        assert len(starts(driver.step(1.0, [Done(4, 1)], 4))) == 5
        assert driver.running == 10

    def test_the_window_appears_by_itself(self) -> None:
        driver = Driver(range(10**5), Policy(), 10**5)
        assert len(starts(driver.step(0.0, slots=2))) == module.WINDOW
        wide = Driver(range(10**5), Policy(), 10**5)
        assert len(starts(wide.step(0.0, slots=1000))) == 1000 * module.PER_SLOT

    def test_events_of_the_past_do_no_harm(self) -> None:
        driver = Driver([0], Policy(), 1)
        driver.step(0.0)
        driver.step(1.0, [Lost(0, 1, error("lost"))])
        assert not driver.accepts(0, 1)
        assert driver.accepts(0, 2)
        assert driver.step(2.0, [Done(0, 1), Failed(9, 1, error("permanent"))]) == []
        assert not driver.over
        driver.step(3.0, [Done(0, 2), Done(0, 2)])
        assert driver.over


class TestBackups:
    def tail(self, policy: Policy = DEFAULT) -> Driver:
        """Nine done in a second each, one running since 0, four slots."""
        driver = Driver(range(10), policy, 10)
        driver.step(0.0, slots=4)
        driver.step(9.0, [Done(i, 1, 1.0) for i in range(9)], 4)
        return driver

    def test_a_straggler_is_started_once_more_and_the_first_wins(self) -> None:
        driver = self.tail()
        assert driver.step(9.0 + module.STRAGGLER_SECONDS - 0.1, slots=4) == []
        assert starts(driver.step(9.0 + module.STRAGGLER_SECONDS, slots=4)) == [(9, 2)]
        assert driver.step(100.0, slots=4) == []  # no third one
        assert driver.step(101.0, [Done(9, 2, 1.0)], 4) == [Stop(9, 1)]
        assert driver.over

    def test_the_backup_of_a_lost_attempt_goes_on(self) -> None:
        driver = self.tail()
        driver.step(50.0, slots=4)
        assert driver.step(51.0, [Lost(9, 1, error("lost"))], 4) == []
        assert driver.step(52.0, [Failed(9, 2, error("transient"))], 4) == []
        assert not driver.over
        assert starts(driver.step(driver.waiting or 0.0, slots=4)) == [(9, 3)]

    @pytest.mark.parametrize("kind", ["permanent", "transient", "memory"])
    def test_nothing_is_given_up_while_its_backup_runs(self, kind: str) -> None:
        driver = self.tail(Policy(attempts=1))
        driver.step(50.0, slots=4)
        assert driver.step(51.0, [Failed(9, 1, error(kind))], 4) == []
        assert driver.step(52.0, [Done(9, 2)], 4) == []
        assert driver.over

    @pytest.mark.parametrize("done_first", [True, False])
    def test_an_attempt_fails_in_the_moment_in_which_its_backup_is_done(
        self, done_first: bool
    ) -> None:
        driver = self.tail()
        driver.step(50.0, slots=4)
        both: list[Event] = [Failed(9, 1, error("permanent")), Done(9, 2)]
        assert given_up(driver.step(51.0, both[::-1] if done_first else both, 4)) == []
        assert driver.over

    def test_not_while_slots_are_busy_nor_when_unwanted(self) -> None:
        assert self.tail().step(1000.0, slots=1) == []
        assert self.tail(Policy(backups=False)).step(1000.0, slots=4) == []

    def test_waiting_in_a_queue_is_no_straggling(self) -> None:
        driver = Driver(range(3), Policy(), 3)
        driver.step(0.0, slots=1)
        driver.step(100.0, [Done(0, 1, 100.0)], 1)
        driver.step(200.0, [Done(1, 1, 100.0)], 3)  # two slots are idle from here on
        assert driver.step(200.0 + 299.0, slots=3) == []
        assert starts(driver.step(200.0 + 301.0, slots=3)) == [(2, 2)]


# ---- the loop ------------------------------------------------------------------------------


class Scripted:
    """Workers on which the first try at 1 fails when its backup is done: told at once."""

    slots = 4

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.told: list[Message | Lost] = []

    def start(self, attempts: Sequence[Start]) -> None:
        for item in attempts:
            self.started.append((item.ordinal, item.attempt))
            if item.ordinal == 0:
                self.told.append(Message(0, 1, Outcome(0, "a", "done", seconds={"read": 0.1})))
            elif item.attempt == 2:
                failed = Outcome(1, "b", "failed", error=error("permanent"))
                self.told.append(Message(1, 1, failed))
                self.told.append(Message(1, 2, Outcome(1, "b", "done")))

    def stop(self, attempts: Sequence[Stop]) -> None:
        """Nothing runs any more."""

    def give_up(self, items: Sequence[GiveUp]) -> None:
        """Finds that somebody has finished it."""
        self.told += [
            Message(item.ordinal, 0, Outcome(item.ordinal, "b", "done")) for item in items
        ]

    def wait(self, seconds: float) -> list[Message | Lost]:
        time.sleep(min(seconds, 0.01))
        told, self.told = self.told, []
        return told

    def close(self) -> None:
        """Nothing is open."""


def test_a_super_tile_whose_backup_is_done_as_it_fails_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STRAGGLER", 0.0)
    monkeypatch.setattr(module, "STRAGGLER_SECONDS", 0.0)
    workers, ended = Scripted(), Counter[tuple[int, str]]()
    drive([0, 1], workers, Policy(), lambda o: ended.update([(o.ordinal, o.state)]))
    assert workers.started == [(0, 1), (1, 1), (1, 2)]
    assert ended == {(0, "done"): 1, (1, "done"): 1}


# ---- random stories ------------------------------------------------------------------------

#: What happens to an attempt: how it ends, and after how many seconds.
FATES = st.tuples(
    st.sampled_from(["done", "transient", "permanent", "memory", "lost", "machine", "timeout"]),
    st.floats(0.01, 50.0),
)


@dataclass
class World:
    """A cluster in which every attempt has its fate; time goes from event to event."""

    fate: Callable[[int, int], tuple[str, float]]
    slots: int
    now: float = 0.0
    queue: list[tuple[int, int]] = field(default_factory=list)
    running: list[tuple[float, int, int, str]] = field(default_factory=list)
    alone: Callable[[int], bool] = lambda ordinal: False
    most: int = 0

    def start(self, ordinal: int, attempt: int) -> None:
        self.queue.append((ordinal, attempt))

    def stop(self, ordinal: int, attempt: int) -> None:
        self.queue = [q for q in self.queue if q != (ordinal, attempt)]

    def next(self, wake: float | None) -> list[Event]:
        while self.queue and len(self.running) < self.slots:
            ordinal, attempt = self.queue.pop(0)
            end, seconds = self.fate(ordinal, attempt)
            heapq.heappush(self.running, (self.now + seconds, ordinal, attempt, end))
        self.most = max(self.most, len(self.running))
        if not self.running or (wake is not None and wake < self.running[0][0]):
            self.now = wake if wake is not None else self.now
            return []
        self.now, ordinal, attempt, end = heapq.heappop(self.running)
        if end == "done":
            return [Done(ordinal, attempt, 1.0)]
        if end in ("lost", "machine", "timeout"):
            return [Lost(ordinal, attempt, error(end), end == "timeout", end == "machine")]
        return [Failed(ordinal, attempt, error(end))]


def play(total: int, policy: Policy, world: World) -> tuple[Counter[int], list[int], list[int]]:
    """Attempts by ordinal, what ended well, and what was given up."""
    driver, attempts = Driver(range(total), policy, total), Counter[int]()
    done: list[int] = []
    lost: list[int] = []
    events: list[Event] = []
    for _ in range(100_000):
        accepted = [e for e in events if driver.accepts(e.ordinal, e.attempt)]
        done += [e.ordinal for e in accepted if isinstance(e, Done)]
        for order in driver.step(world.now, events, world.slots):
            if isinstance(order, Start):
                attempts[order.ordinal] += 1
                world.start(order.ordinal, order.attempt)
            elif isinstance(order, Stop):
                world.stop(order.ordinal, order.attempt)
            else:
                lost.append(order.ordinal)
        if driver.over:
            return attempts, done, lost
        events = world.next(driver.waiting)
    raise AssertionError("the driver never ends")


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 8) | st.none(), st.data())
def test_every_story_ends_and_tells_of_each_tile_once(
    total: int, slots: int, window: int | None, data: st.DataObject
) -> None:
    fates: dict[tuple[int, int], tuple[str, float]] = {}

    def fate(ordinal: int, attempt: int) -> tuple[str, float]:
        if (ordinal, attempt) not in fates:
            fates[ordinal, attempt] = data.draw(FATES)
        return fates[ordinal, attempt]

    policy = Policy(attempts=3, window=window, losses=2)
    attempts, done, lost = play(total, policy, World(fate, slots))
    assert sorted(done + lost) == list(range(total))  # each once, and none forgotten
    # transient 2, lost 2 and alone 1, machine 2, timeout 1, memory 1, a backup
    assert all(n <= 10 for n in attempts.values())
    for ordinal in done:
        assert any(fates[ordinal, k][0] == "done" for k in range(1, attempts[ordinal] + 1))
    assert all(fates[ordinal, 1][0] != "done" for ordinal in lost)


@given(st.integers(1, 60), st.integers(1, 5))
def test_without_failures_every_tile_is_computed_once(total: int, slots: int) -> None:
    attempts, done, lost = play(total, Policy(), World(lambda i, k: ("done", 1.0), slots))
    assert attempts == dict.fromkeys(range(total), 1)
    assert (sorted(done), lost) == (list(range(total)), [])


@given(st.integers(2, 30), st.integers(2, 5))
def test_a_tile_that_eats_workers_takes_no_other_with_it(total: int, slots: int) -> None:
    """Whoever runs beside the glutton is lost as well; still only the glutton is given up."""
    glutton = total // 2
    world: World

    def fate(ordinal: int, attempt: int) -> tuple[str, float]:
        beside = any(o == glutton for _, o, _, _ in world.running)
        return ("lost", 1.0) if ordinal == glutton or beside else ("done", 1.0)

    world = World(fate, slots)
    _, done, lost = play(total, Policy(), world)
    assert lost == [glutton]
    assert sorted(done) == [i for i in range(total) if i != glutton]


# ---- the policy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"attempts": 0},
        {"attempts": 1.5},
        {"on_error": "ignore"},
        {"window": 0},
        {"losses": -1},
        {"losses": 1.5},
        {"timeout": "soon"},
        {"timeout": 0},
        {"timeout": -3},
        {"timeout": True},
    ],
)
def test_a_policy_that_makes_no_sense(bad: Mapping[str, object]) -> None:
    with pytest.raises(gp.OptionError, match=next(iter(bad)) + "|time"):
        Policy(**bad)  # type: ignore[arg-type]


def test_times() -> None:
    assert parse_seconds("2 h") == 7200
    assert parse_seconds("1.5min") == 90
    assert Policy(timeout="90 s").seconds == 90
    assert Policy().seconds is None
