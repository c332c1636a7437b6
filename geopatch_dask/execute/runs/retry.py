"""Once more, only what failed, or what the operator had no answer for.

Three things may have gone wrong with a super-tile, and records tell all of them::

    failed/<id>                       it was given up
    tiles/<id>, failed_patches > 0    done, without the patches whose operator raised
    tiles/<id>, hollow_patches > 0    done, but of patches with data the operator made nothing

The records of the last two are deleted, so that their super-tiles are to be computed; all others
stay.  What was never tried stays so, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geopatch_dask.execute.attempt.policy import DEFAULT, Policy
from geopatch_dask.execute.runs.judge import check_on_failure, judge
from geopatch_dask.execute.runs.run import Progress, execute
from geopatch_dask.execute.runs.runners import AnyScheduler, opened
from geopatch_dask.execute.target.prepare import finished, forget_tiles, ids, unfinished
from geopatch_dask.execute.target.rebuild import rebuilt
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.operator import Operator
from geopatch_dask.report.report import Report
from geopatch_dask.store.records import Ledger

__all__ = ["retry", "retry_plan"]


def retry(
    target: Any,
    client: AnyScheduler = None,
    *,
    field: Any = None,
    operator: Operator | Callable[..., Any] | str | None = None,
    operator_changed: bool = False,
    policy: Policy = DEFAULT,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    on_failure: str = "raise",
) -> Report:
    """Compute the super-tiles that failed, and those with patches left out or hollow.

    A patch is left out when its operator raises and the run was told to go on
    (``Policy(on_error="fill")``); it is hollow when it has data and the operator made nothing but
    missing values of it (``Report.hollow``).  Where such an answer is right, run
    the plan again instead: that computes what failed or was never tried, and nothing else.

    The plan is the one beside the target; nothing has to be said again.

    Parameters
    ----------
    target : Plan, path, URL, Location or zarr store
    client, policy, progress, on_failure
        As for :meth:`geopatch_dask.Plan.run`.
    field, operator : optional
        Where they were in memory only, and so are not beside the target.
    operator_changed : bool
        Accept an operator whose code is not what it was: you say that the repair changes nothing
        in the super-tiles that are done.
    storage_options : mapping, optional
        For the target.

    Returns
    -------
    Report

    Raises
    ------
    PlanMismatch
        When the input or (without ``operator_changed``) the operator changed meanwhile.
    RunIncomplete
        When super-tiles failed again, or others have not been computed yet.
    TargetError
        When there is no plan beside the target.
    """
    check_on_failure(on_failure)
    plan = rebuilt(
        target,
        field=field,
        operator=operator,
        storage_options=storage_options,
        changed={"operator"} if operator_changed else (),
    )
    return retry_plan(plan, client, policy, progress, on_failure)


def retry_plan(
    plan: PlanBase,
    client: AnyScheduler,
    policy: Policy,
    progress: Progress | None,
    on_failure: str,
) -> Report:
    """As :func:`retry`, with a plan that was compared with its target already."""
    with opened(client) as scheduler:
        report = execute(plan, scheduler, policy, select=_reopened, progress=progress)
    judge(report, on_failure)
    return report


def _reopened(plan: PlanBase) -> set[str]:
    """Forget the records of super-tiles with patches to compute again; ids of all to compute."""
    failed = Ledger(plan.target, plan.fingerprint).failed(expected=ids(plan))
    records, _ = finished(plan)
    left, records = unfinished(plan, records)
    again = {name: r for name, r in records.items() if r.failed_patches or r.hollow_patches}
    kept = {name: record for name, record in records.items() if name not in again}
    forget_tiles(plan, again)
    todo, _ = unfinished(plan, kept)
    # Under another layout, super-tiles have other names than those that failed.
    other = [r.box for r in failed.values() if r.layout != plan.layout.digest]
    wanted = {k for k in left if any(plan.supertile(k).box.intersect(box) for box in other)}
    wanted |= set(todo) - set(left)
    return set(failed) | {plan.supertile(k).id for k in wanted}
