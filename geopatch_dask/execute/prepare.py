"""Before the first task: the target, its plan, and what is done already.

The client does this once.  It is also where a second run finds out that the target holds something
else: another plan's result is never overwritten without being told to.
"""

from __future__ import annotations

from geopatch_dask.errors import PlanMismatch
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.core import PlanBase, read_plan
from geopatch_dask.planning.identity import differing
from geopatch_dask.store.records import Ledger, Record
from geopatch_dask.store.target import read_root
from geopatch_dask.store.template import ArraySpec, create, is_complete, reopen

__all__ = ["FINGERPRINT", "finished", "prepare", "unfinished"]

#: Group attribute that says whose result this is.
FINGERPRINT = "geopatch:fingerprint"


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
        _check_mismatch(plan)
    product, domain = plan.product, plan.output_domain
    spec = ArraySpec(
        name=product.name,
        dtype=product.dtype,
        dims=product.dims,
        shape=domain.shape,
        chunks=plan.chunks,
        shards=plan.shards,
        fill_value=product.fill,
        attrs=product.attrs,
    )
    made = create(plan.target, [spec], domain, {FINGERPRINT: plan.fingerprint}, overwrite)
    Ledger(plan.target, plan.fingerprint).write_plan(plan.to_json())
    return made


def _check_mismatch(plan: PlanBase) -> None:
    theirs = (read_root(plan.target) or {}).get("attributes", {}).get(FINGERPRINT)
    if not isinstance(theirs, str):
        return
    text = Ledger(plan.target, theirs).read_plan()
    stored = read_plan(text) if text is not None else {}
    if theirs != plan.fingerprint:
        names = differing(plan.parts, stored.get("parts", {})) if stored else ["plan"]
        raise PlanMismatch(
            f"{plan.target.display} holds the result of another plan; it differs in "
            f"{', '.join(names)}: choose another target, or pass overwrite=True (--overwrite) to "
            "replace it",
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


def finished(plan: PlanBase) -> tuple[dict[str, Record], list[str]]:
    """Records of super-tiles that are done, of any layout, and what is wrong with others."""
    ledger = Ledger(plan.target, plan.fingerprint)
    records = ledger.done()
    return records, list(ledger.problems)


def unfinished(plan: PlanBase, records: dict[str, Record]) -> list[int]:
    """Ordinals to compute; a target that called itself complete stops doing so if there are any."""
    boxes: list[Box] = [record.box for record in records.values()]
    todo = plan.layout.unfinished(boxes)
    if todo and is_complete(plan.target):
        reopen(plan.target)
    return todo
