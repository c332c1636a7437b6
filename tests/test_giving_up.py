"""Those who compute a super-tile, and those who give it up: no order of their steps does harm.

The code is the package's; records, marks and cells are in a small world in memory, in which every
step waits for its turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from interleaving import Play, called, orders, random_orders, saw, step

from geopatch_dask.errors import TargetError
from geopatch_dask.execute.attempt import tile as tiles
from geopatch_dask.execute.attempt.kernel import Counts
from geopatch_dask.execute.attempt.policy import DEFAULT
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.supertile import Layout
from geopatch_dask.store.location import Location
from geopatch_dask.store.record_format import Record
from geopatch_dask.store.records import Ledger

ROWS = 1
LAYOUT = Layout(("y", "x"), (ROWS, 1), (ROWS, 1), (1, 1))
TILE = LAYOUT.supertile(0)
DONE, MARK = f"tiles/{TILE.id}.json", f"failed/{TILE.id}.json"
PLAN: Any = SimpleNamespace(
    fingerprint="0123456789",
    layout=LAYOUT,
    n_supertiles=1,
    target=Location("/nowhere/out.zarr"),
    arrays=[SimpleNamespace(name="data", leading=(), fill=0.0, dtype="float32")],
    tables=(),
)
BLANK = Record(
    id=TILE.id, ordinal=0, fingerprint=PLAN.fingerprint, layout="", box=TILE.box, state="empty"
)
ERROR = {"type": "E", "message": "lost", "traceback": ""}


class World:
    """Objects, and what is in cells: None, "right" or "fill"."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.cells: list[str | None] = [None] * ROWS
        self.told: dict[str, Any] = {}

    # what a ledger needs of a folder
    display = "here"

    def read(self, name: str) -> bytes | None:
        step(f"read {name}")
        found = self.objects.get(name)
        saw(found)
        return found

    def exists(self, name: str) -> bool:
        return self.read(name) is not None

    def write(self, name: str, data: bytes) -> None:
        step(f"write {name}")
        self.objects[name] = data

    def delete(self, name: str) -> None:
        step(f"delete {name}")
        self.objects.pop(name, None)

    def list(self, kind: str) -> list[str]:
        step(f"list {kind}")
        found = [name for name in self.objects if name.startswith(kind)]
        saw(tuple(found))
        return found

    def state(self) -> Any:
        return (*sorted(self.objects.items()), *self.cells)

    # what it looks like in the end
    @property
    def trusted(self) -> bool:
        return DONE in self.objects and MARK not in self.objects

    @property
    def right(self) -> bool:
        return self.cells == ["right"] * ROWS


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Holds the world of the moment as ``now``."""
    held = SimpleNamespace(now=World())

    def put(name: str, box: Box, value: str) -> None:
        step(f"{value} {box.start[0]}")
        held.now.cells[box.start[0]] = value

    def compute(*_: Any) -> Counts:
        for row in range(ROWS):
            put("data", Box((row, 0), (row + 1, 1)), "right")
        return Counts(cells=1)

    monkeypatch.setattr(Ledger, "folder", property(lambda ledger: held.now))
    monkeypatch.setattr(tiles, "_compute", compute)
    monkeypatch.setattr(tiles, "open_array", lambda *_: None)
    monkeypatch.setattr(tiles, "delete_parts", lambda *_: None)
    monkeypatch.setattr(tiles, "write_region", lambda a, box, v, place: put("data", box, "fill"))
    monkeypatch.setattr(tiles, "is_complete", lambda _: False)
    monkeypatch.setattr("geopatch_dask.store.marks.now", called)
    return held


def computes(world: World, name: str) -> Callable[[], None]:
    def work() -> None:
        try:
            record, _ = tiles._finished(PLAN, TILE, replace(BLANK, host=name), None, DEFAULT)
        except TargetError:  # another run keeps giving it up
            return
        world.told[name] = record.state

    return work


def gives_up(world: World, name: str) -> Callable[[], None]:
    record = replace(BLANK, state="failed", error=ERROR, finished="then", host=name)

    def work() -> None:
        found = tiles._made_fill(PLAN, TILE, record)
        world.told[name] = "failed" if found is None else found.state

    return work


KINDS = {"A": computes, "B": computes, "X": gives_up, "Y": gives_up}


def begin(held: SimpleNamespace, names: str, given_up: bool) -> Any:
    world = held.now = World()
    if given_up:  # by an earlier run
        world.objects[MARK] = replace(
            BLANK, state="failed", error=ERROR, finished="before", host="earlier"
        ).to_bytes()
        world.cells = ["fill"] * ROWS
    return {name: KINDS[name](world, name) for name in names}, world.state


def mortal(seen: list[Any]) -> bool:
    """Not between making cells fill and saying so: the moment that no order of steps can close."""
    if "fill 0" not in seen:
        return True
    after = seen[len(seen) - 1 - seen[::-1].index("fill 0") :]
    if len(after) < 3:  # it has not looked yet
        return False
    told = after[2] and json.loads(after[2])["finished"]
    return bool(told) or f"delete {DONE}" in after


def check(world: World, play: Play) -> None:
    assert not any(play.errors.values()), play
    assert world.right or not world.trusted, play


@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("names", ["AX", "AB", "XY"])
def test_no_order_of_two_leaves_a_record_without_data(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, names: str, given_up: bool
) -> None:
    """One round each; of two that compute, or give up, both succeed, in a second one at most."""
    monkeypatch.setattr(tiles, "ROUNDS", 1 if names == "AX" else 2)
    for play in orders(lambda: begin(world, names, given_up)):
        check(world.now, play)
        if names != "AX":
            assert set(world.now.told) == set(names), play
            assert world.now.trusted == (names == "AB"), play
            assert world.now.cells == ["right" if names == "AB" else "fill"], play


@pytest.mark.slow
@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("names", ["AX", "AB", "XY"])
def test_nor_with_a_death(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, names: str, given_up: bool
) -> None:
    """One of the two dies at any moment."""
    monkeypatch.setattr(tiles, "ROUNDS", 1 if names == "AX" else 2)
    for play in orders(lambda: begin(world, names, given_up), 1, mortal):
        assert world.now.right or not world.now.trusted, play


@pytest.mark.parametrize("names", ["ABX", "AXY"])
def test_nor_does_any_order_of_three(world: SimpleNamespace, names: str) -> None:
    for given_up in (False, True):
        for play in random_orders(lambda g=given_up: begin(world, names, g), 40, 7):
            check(world.now, play)


def test_the_model_finds_a_protocol_that_is_wrong(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who erases does not look again."""
    monkeypatch.setattr(tiles, "is_erasable", lambda *_: True)
    played = orders(lambda: begin(world, "AX", False))
    assert any(world.now.trusted and not world.now.right for _ in played)
