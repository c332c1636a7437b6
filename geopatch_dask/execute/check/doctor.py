"""Why does it not run, or not as it should?  One call that looks at everything around a plan.

::

    here         packages, threads
    cluster      versions, threads, memory against the plan, permissions of every worker
    target       records, marks, rows and temporary files that no run will look at again

It changes nothing unless it is told to, and then only what is safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed import Client

from geopatch_dask.errors import GeopatchError, OptionError
from geopatch_dask.execute.attempt.versions import Answers, about
from geopatch_dask.execute.check.cluster_checks import check_access, check_cluster, check_here
from geopatch_dask.execute.check.diagnosis import Diagnosis, Finding, Level
from geopatch_dask.execute.check.target_checks import TargetChecks
from geopatch_dask.execute.runs.runners import AnyScheduler, opened
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.memory import MemoryPlan
from geopatch_dask.store.location import Location

__all__ = ["doctor"]


def doctor(
    target: Any = None,
    *,
    plan: PlanBase | None = None,
    client: AnyScheduler = None,
    storage_options: Mapping[str, Any] | None = None,
    repair: bool = False,
) -> Diagnosis:
    """Look at this machine, a cluster, and what lies beside a target.

    Parameters
    ----------
    target : path, URL, Location or zarr store
        That of ``plan`` by default.
    plan : Plan, optional
        For what its super-tiles need; else the plan beside the target says.
    client : distributed.Client or Cluster, optional
        Its scheduler and workers are asked, too.
    storage_options : mapping
        For the target.
    repair : bool
        Remove records that cannot be trusted, marks of dead runs, temporary files of killed
        writers, rows that no record speaks of, records of other plans or of a target that is gone,
        what killed trials left; consolidate the metadata of a complete target.  Only what no run
        will look at again, and nothing while a run is at work.

    Returns
    -------
    Diagnosis

    Raises
    ------
    OptionError
        When there is nothing to repair: no target was given; or ``client`` is no cluster.
    """
    if target is None and plan is not None:
        target = plan.target
    if repair and target is None:
        raise OptionError("repair= is about a target: name it")
    need = None if plan is None else plan.memory.total
    place = None if target is None else Location.of(target, storage_options)
    findings: list[Finding] = []
    exists = False
    if place is not None:
        found, document, exists = _target(place, repair)
        findings += found
        need = need or _need(document)
    with opened(client) as asked:
        if asked is not None and not isinstance(asked, Client):
            raise OptionError(f"{asked!r} is no cluster that could be asked: pass a Client")
        answers = Answers(about(), {}, {})
        if asked is not None:
            answers, found = check_cluster(asked, need)
            findings += found
        findings += check_here(answers)
        if place is not None:
            findings += check_access(place, asked, exists)
    return Diagnosis.of(findings)


def _target(place: Location, repair: bool) -> tuple[list[Finding], Mapping[str, Any] | None, bool]:
    """What lies beside a target: findings, the stored plan, whether there is a target at all."""
    try:
        checks = TargetChecks(place, repair)
    except GeopatchError as error:
        return [_unseen(error)], None, False
    try:
        checks.run()
    except GeopatchError as error:  # what was found, or mended, before is still so
        checks.findings.append(_unseen(error))
    return checks.findings, checks.plan, checks.root is not None


def _unseen(error: GeopatchError) -> Finding:
    """Forbidden, or unreachable: nothing can be said of the rest."""
    may_do = getattr(error, "kind", "") == "forbidden"  # runs need no permission to list
    level: Level = "warning" if may_do else "error"
    return Finding(level, f"not looked at: {error}", "mend that first")


def _need(plan: Mapping[str, Any] | None) -> int | None:
    """Bytes that a super-tile of a stored plan needs."""
    return None if plan is None else MemoryPlan(**plan["memory"]).total
