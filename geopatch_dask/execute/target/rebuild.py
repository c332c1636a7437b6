"""A plan that can compute again, from the plan itself or from what lies beside a target.

What is compared with a target must be the plan that wrote it.  So the fingerprint is taken anew,
part by part: of the field as it is now, of the operator as it is now.  A raster that was replaced,
or a line changed in an operator, shows here and not as thousands of wrong cells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any

from geopatch_dask import fields
from geopatch_dask.errors import OptionError, PlanMismatch, RecordError, TargetError
from geopatch_dask.patch.config import load_object
from geopatch_dask.patch.patcher import Patcher
from geopatch_dask.planning.core import PlanBase, fingerprint_parts, read_plan
from geopatch_dask.planning.identity import MENDED, differing
from geopatch_dask.planning.operator import Operator
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.target import existing_root, owner

__all__ = ["rebuilt"]

#: Stands for the target in a stored plan: the one that is asked about counts, wherever it moved.
_HERE = Location("target").to_json()


def rebuilt(
    plan_or_target: Any,
    *,
    operator: Operator | Callable[..., Any] | str | None = None,
    field: Any = None,
    patcher: Patcher | None = None,
    storage_options: Mapping[str, Any] | None = None,
    changed: Container[str] = (),
) -> PlanBase:
    """The plan behind a target, ready to compute, and checked to be the one that wrote it.

    Parameters
    ----------
    plan_or_target : Plan, or path, URL, Location or zarr store
    operator, field, patcher : optional
        As they were given to :func:`geopatch_dask.plan`, where the stored plan lacks them (lambdas,
        arrays in memory).
    storage_options : mapping
        For the target.
    changed : container of str
        Parts of the fingerprint that need not be what they were, as in ``{"operator"}``.

    Raises
    ------
    TargetError
        When there is no target, or no plan beside it.
    OptionError
        When a part is missing that JSON could not hold; names what to pass.
    PlanMismatch
        When field or operator are not (any more) those that the target was made with.
    """
    given = {"operator": operator, "field": field, "patcher": patcher}
    if isinstance(plan_or_target, PlanBase):
        extra = [name for name, value in given.items() if value is not None]
        if extra or storage_options is not None:
            name = extra[0] if extra else "storage_options"
            raise OptionError(f"a plan has its own {name}; pass {name}= with a path or URL only")
        plan = plan_or_target
    else:
        plan = _stored(Location.of(plan_or_target, storage_options), operator, field, patcher)
    _check(plan, changed)
    return plan


def _stored(place: Location, operator: Any, field: Any, patcher: Patcher | None) -> PlanBase:
    theirs = owner(existing_root(place))
    text = Ledger(place, theirs).read_plan() if theirs else None
    if text is None:
        raise TargetError(
            f"no plan is recorded beside {place.display}: pass the plan itself instead of its "
            "target, or run the plan again, which records it"
        )
    document = read_plan(text)
    document["target"] = _HERE
    given = None if operator is None else _given(operator, "context" in document["parts"])
    source = None if field is None else fields.as_field(field)
    try:
        plan = PlanBase.from_json(
            json.dumps(document), field=source, patcher=patcher, operator=given
        )
    except (KeyError, TypeError) as error:
        raise RecordError(f"plan.json beside {place.display} is not whole ({error!r})") from None
    return _as_written(replace(plan, target=place))


def _given(operator: Any, context: bool) -> Operator:
    run = Operator.of(operator)
    run = replace(run, context=True) if context else run
    # What an object builds while it runs here is not the user's to keep.
    return run if isinstance(run.function, str) else run.copied()


def _as_written(plan: PlanBase) -> PlanBase:
    """Operators as they were given: a function is stored by name, but has another identity."""
    first = plan.context
    stored = plan.parts.get("context") or {}
    if first is not None and first.fit is not None and isinstance(stored.get("fit"), Mapping):
        first = replace(first, fit=_named(first.fit, stored["fit"]["name"]))
    return replace(
        plan, operator=_named(plan.operator, plan.parts["operator"]["name"]), context=first
    )


def _named(operator: Operator, name: str) -> Operator:
    if isinstance(operator.function, str) and operator.name != name:
        return replace(operator, function=load_object(operator.function))
    return operator


def _check(plan: PlanBase, changed: Container[str]) -> None:
    where = plan.target.display
    theirs = owner(existing_root(plan.target))
    if theirs != plan.fingerprint:
        raise PlanMismatch(
            f"{where} holds the result of plan {str(theirs)[:8]}, not of {plan.fingerprint[:8]}: "
            "pass the plan that it was made with, or the target alone"
        )
    now = fingerprint_parts(
        plan.field,
        plan.patcher,
        plan.operator,
        plan.products,
        plan.grid,
        plan.context,
        plan.tables,
    )
    names = [n for n in differing(plan.parts, now) if n.partition(".")[0] not in changed]
    if names:
        raise PlanMismatch(
            f"{where} was made with another {_kinds(names)}: it differs in {', '.join(names)}; "
            f"give back what it was made with, or pass {_remedy(names)} as it was given to gp.plan"
            f"{MENDED if names == ['operator.code'] else ''}",
            names,
        )


def _kinds(names: list[str]) -> str:
    return " and ".join(dict.fromkeys(name.partition(".")[0] for name in names))


def _remedy(names: list[str]) -> str:
    parts = {name.partition(".")[0] for name in names}
    given = [name for name in ("field", "operator") if name in parts]
    return " and ".join(f"{name}=" for name in given) or "the plan"
