"""Before the first task: the target, its plan, and what is done already.

The client does this once.  It is also where a second run finds out that the target holds something
else: another plan's result is never overwritten without being told to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from geopatch_dask.errors import PlanMismatch, TargetError
from geopatch_dask.planning.core import PlanBase, read_plan
from geopatch_dask.planning.identity import MENDED, differing, digest
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.tables import drop_strays, forget, parts, write_schema
from geopatch_dask.store.target import (
    FINGERPRINT,
    TABLE_NAMES,
    finish,
    is_complete,
    owner,
    read_root,
    reopen,
)
from geopatch_dask.store.template import ArraySpec, create

__all__ = [
    "FINGERPRINT",
    "check_mismatch",
    "complete",
    "complete_if_done",
    "finished",
    "forget_other_layouts",
    "forget_tiles",
    "ids",
    "prepare",
    "token",
    "unfinished",
]


def prepare(plan: PlanBase, overwrite: bool = False) -> bool:
    """Create the target, or recognise it.

    Parameters
    ----------
    plan : PlanBase
    overwrite : bool
        Replace a target that holds another result (or this one) and its records.

    Returns
    -------
    bool
        True when a new target was made.

    Raises
    ------
    PlanMismatch
        When the target holds the result of another plan; names what differs.
    TargetError
        When something else is there, or it cannot be written.
    """
    if not overwrite:
        check_mismatch(plan)
    layout, shape = plan.layout, plan.grid.shape
    specs = [
        ArraySpec(
            name=array.name,
            dtype=array.dtype,
            dims=array.dims,
            shape=array.leading + shape,
            chunks=(1,) * len(array.leading) + layout.chunks,
            shards=layout.shards and (1,) * len(array.leading) + layout.shards,
            fill_value=array.fill,
            attrs=array.attrs,
        )
        for array in plan.arrays
    ]
    attrs: dict[str, Any] = {FINGERPRINT: plan.fingerprint}
    if plan.tables:
        attrs[TABLE_NAMES] = [table.name for table in plan.tables]
    made = create(plan.target, specs, plan.output_domain, attrs, overwrite)
    for table in plan.tables:
        write_schema(plan.target, table.name, table.sheet(plan.grid).table([]))
    Ledger(plan.target, plan.fingerprint).write_plan(plan.to_json())
    return made


def check_mismatch(plan: PlanBase) -> None:
    """Refuse a target that holds what another plan made; nothing is written.

    Raises
    ------
    PlanMismatch
        Naming what differs.
    """
    theirs = owner(read_root(plan.target))
    if theirs is None:
        return
    text = Ledger(plan.target, theirs).read_plan()
    stored = read_plan(text) if text is not None else {}
    if theirs != plan.fingerprint:
        names = differing(plan.parts, stored.get("parts", {})) if stored else ["plan"]
        raise PlanMismatch(
            f"{plan.target.display} holds the result of another plan; it differs in "
            f"{', '.join(names)}: choose another target, or pass overwrite=True (--overwrite) to "
            f"replace it{MENDED if names == ['operator.code'] else ''}",
            names,
        )
    layout = stored.get("layout", {})
    for name in ("chunks", "shards"):
        ours, old = getattr(plan.layout, name), layout.get(name)
        if stored and (list(ours) if ours else None) != old:
            raise PlanMismatch(
                f"{plan.target.display} has {name} of {old}, this plan {ours}: resume with the "
                f"{name} it has (super-tiles may differ), or pass overwrite=True (--overwrite)",
                [name],
            )


def ids(plan: PlanBase) -> Iterator[str]:
    """Names of all super-tiles: to read records by, where they cannot be listed."""
    return (tile.id for tile in plan.layout)


def finished(plan: PlanBase) -> tuple[dict[str, Record], list[str]]:
    """Records of super-tiles that are done, of any layout, and what is wrong with others."""
    ledger = Ledger(plan.target, plan.fingerprint)
    records = ledger.done(expected=ids(plan))
    problems = list(ledger.problems)
    # Looked at once more: a mark that went before the record came says nothing of it.
    torn = {name for name in ledger.contested() & records.keys() if ledger.is_given_up(name)}
    problems += [f"{name}: done and given up at once" for name in sorted(torn)]
    for table in plan.tables:
        said = [r.id for r in records.values() if r.tables.get(table.name)]
        there = parts(plan.target, table.name, said)
        lost = [name for name in said if name not in there]
        problems += [f"{name}: its rows of {table.name!r} are gone" for name in lost]
        torn.update(lost)
    forget_tiles(plan, torn)
    return {name: r for name, r in records.items() if name not in torn}, problems


def complete(plan: PlanBase) -> None:
    """The last act, when every super-tile is done: no stray rows, one consolidated document."""
    names = [table.name for table in plan.tables]
    drop_strays(plan.target, names, Ledger(plan.target, plan.fingerprint))
    finish(plan.target)


def complete_if_done(plan: PlanBase, expected: int | None) -> list[str]:
    """Declare a target complete if every super-tile has a record.

    Parameters
    ----------
    plan : PlanBase
    expected : int or None
        How many records there must be, as far as this run knows; None: others work on the rest of
        the plan, so all records are read to find out.

    Returns
    -------
    list of str
        What is wrong, if anything.
    """
    ledger = Ledger(plan.target, plan.fingerprint)
    if expected is None:
        records, _ = finished(plan)
        if plan.layout.unfinished([record.box for record in records.values()]):
            return []
    elif (there := _count(ledger, expected)) < expected:
        return [
            f"{expected - there} records are gone since they were written: does another run with "
            "other super-tiles work on this target? Run the same command again"
        ]
    complete(plan)
    # Who gives a super-tile up takes its record away, and then looks whether this was said.
    if ledger.contested() or (expected and _count(ledger, expected) < expected):
        reopen(plan.target)
        return ["a super-tile was given up by another run just now: run the same command again"]
    return []


def _count(ledger: Ledger, expected: int) -> int:
    """Records that are there; taken for granted where they cannot be listed."""
    try:
        return len(ledger.names())
    except TargetError as error:
        if error.kind != "forbidden":
            raise
        return expected


def unfinished(
    plan: PlanBase, records: Mapping[str, Record]
) -> tuple[list[int], dict[str, Record]]:
    """Ordinals to compute, and the records that stay.

    A record of another layout may reach into a super-tile that has to be computed.  It is deleted,
    and what else it covered is computed again: every cell is counted by exactly one record.  A
    target that called itself complete stops doing so if there is anything to compute.
    """
    kept = list(records.values())
    while True:
        boxes = [record.box for record in kept]
        todo = plan.layout.unfinished(boxes)
        stale = set(plan.layout.overlapping(todo, boxes))
        if not stale:
            break
        kept = [record for i, record in enumerate(kept) if i not in stale]
    if todo and is_complete(plan.target):
        reopen(plan.target)
    staying = {record.id: record for record in kept}
    forget_tiles(plan, records.keys() - staying.keys())
    _forget_failures(plan)
    return todo, staying


def forget_other_layouts(plan: PlanBase) -> None:
    """Delete records of other layouts, because every super-tile of this one is computed now."""
    if is_complete(plan.target):
        reopen(plan.target)
    ours = plan.layout.digest
    done = Ledger(plan.target, plan.fingerprint).done(expected=ids(plan)).values()
    forget_tiles(plan, {record.id for record in done if record.layout != ours})
    _forget_failures(plan)


def forget_tiles(plan: PlanBase, tiles: Collection[str], reopens: bool = True) -> None:
    """Forget super-tiles; as :func:`geopatch_dask.store.tables.forget`."""
    ledger = Ledger(plan.target, plan.fingerprint)
    forget(ledger, [table.name for table in plan.tables], tiles, reopens)


def _forget_failures(plan: PlanBase) -> None:
    """Delete marks of failures under other layouts: their cells are computed, or are done."""
    # Where listing is forbidden, nobody knows what other layouts left.
    failed = Ledger(plan.target, plan.fingerprint).failed(expected=()).values()
    ours = plan.layout.digest
    forget_tiles(plan, {record.id for record in failed if record.layout != ours}, reopens=False)


def token(plan: PlanBase) -> str:
    """Names one piece of work: values, layout, and where they go (stores by identity)."""
    opened = id(plan.target.store) if plan.target.store is not None else None
    return digest([plan.fingerprint, plan.layout.digest, plan.target.to_json(), opened])[:16]
