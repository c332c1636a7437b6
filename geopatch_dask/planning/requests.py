"""What a run asks of an object store, counted before it runs.

Every object that a run touches is known from the plan, and so is how often.  For a new target, n
super-tiles, a arrays and t tables, and a run in which nothing fails::

    per super-tile    GET     its record and, before and after, a mark that it was given up (there
                              are none), each array's document, the record again for the report
                              (up to 63 super-tiles)
                      HEAD    each array's document
                      PUT     its objects, its rows, its record, last
    per run           the template, the plan, listings of records, the last act, the report, from
                      64 super-tiles on a bundle of records for each thousand
    every 2 s         PUT and HEAD of the heartbeat; in place of every fifth GET and HEAD of what
                      says that the target is still there

A chunk that holds nothing but the fill value is a DELETE in place of a PUT, so PUT is an upper
bound; everything else is exact, and tested to be, by counting what a server was asked.  What is
asked of another store than the target, because the *field* lives there, is
:attr:`Requests.field`: at most one GET per block that a super-tile reads.

obstore asks one HEAD whether an object is there; s3fs asks by HEAD, then, if there is none, whether
it is a folder by LIST.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from dataclasses import field as attribute

from geopatch_dask.patch.anchors import LatticeAnchors
from geopatch_dask.planning.core import PlanBase
from geopatch_dask.planning.cost import spans
from geopatch_dask.store import georef
from geopatch_dask.store.bundles import FEW, MANY
from geopatch_dask.store.jobs import BEAT, LOOK
from geopatch_dask.store.template import LABEL_CHUNK

__all__ = ["DRAWN", "KINDS", "Requests", "requests_of"]

#: Super-tiles up to which a run ends with a report for people: it reads every record once more.
DRAWN = 10_000
#: Names that one LIST answers.
PAGE = 1000
#: Kinds of requests, in the order in which they are told.
KINDS = ("PUT", "GET", "HEAD", "LIST", "DELETE")


@dataclass(frozen=True)
class Requests:
    """How often a store is asked, by kind.

    Parameters
    ----------
    supertile : dict of kind to count
        By all super-tiles.
    run : dict of kind to count
        By planning once and running once.
    beat, look : dict of kind to count
        By each heartbeat, and each look at whether the target is there.
    field : int
        Blocks of the field that are read, repeats included: the most GETs of its store.
    """

    supertile: dict[str, int] = attribute(default_factory=dict)
    run: dict[str, int] = attribute(default_factory=dict)
    beat: dict[str, int] = attribute(default_factory=dict)
    look: dict[str, int] = attribute(default_factory=dict)
    field: int = 0

    def total(self, seconds: float = 0.0) -> dict[str, int]:
        """All requests to the target's store, for a run that takes so many seconds."""
        looks, beats = divmod(int(seconds / BEAT), LOOK)
        beats += looks * (LOOK - 1)
        sums = Counter(self.supertile) + Counter(self.run)
        sums.update({kind: beats * n for kind, n in self.beat.items()})
        sums.update({kind: looks * n for kind, n in self.look.items()})
        return {kind: sums[kind] for kind in KINDS}


def requests_of(plan: PlanBase) -> Requests | None:
    """What a run of a plan asks of the target's object store; None where it is none.

    A path of this machine and an open zarr store are none.
    """
    client = plan.target.client_name
    if client not in ("obstore", "fsspec"):
        return None
    twice = client == "fsspec"  # how often one asks for what is not there
    per_tile = _per_supertile(plan)
    tiles = {kind: n * plan.n_supertiles for kind, n in per_tile.items()}
    tiles["PUT"] += plan.layout.objects() * sum(math.prod(a.leading) for a in plan.arrays)
    beat = {"PUT": 1, "HEAD": 1, "LIST": int(twice)}
    look = {"GET": 1, "HEAD": 1}
    return Requests(tiles, _per_run(plan, twice), beat, look, field_blocks(plan))


def _per_supertile(plan: PlanBase) -> Counter[str]:
    """Requests of one super-tile, but for its objects."""
    arrays, tables = len(plan.arrays), len(plan.tables)
    report = int(plan.n_supertiles < FEW)  # else it has them of bundles
    return Counter(
        {
            "GET": 3 + arrays + report,
            "HEAD": arrays,
            "PUT": 1 + tables,
        }
    )


def _per_run(plan: PlanBase, twice: bool) -> Counter[str]:
    """Requests of planning and running once, whatever the number of super-tiles."""
    report = int(plan.n_supertiles <= DRAWN)
    more_pages = math.ceil(plan.n_supertiles / PAGE) - 1
    documents, members = _template(plan)
    found = Counter(
        {
            # the group's document; the plan; each array's for the last act; those of the probe;
            # the plan again, to compare records with
            "GET": 6 + members + 1 + report,
            # template, plan, heartbeat, last act, report and its page, probe
            "PUT": documents + 4 + report + 1,
            "HEAD": 1,
            # twice the target, what is beside it, records (4), failures (3), report, probe
            "LIST": 11 + report * 2 + more_pages * (2 + report),
            "DELETE": 3,
        }
    )
    if twice:
        found["LIST"] += 9
    if plan.tables:  # their columns; their parts, and records, before and at the last act
        tables = len(plan.tables)
        found.update({"PUT": tables, "LIST": 2 * tables + 1 + more_pages * (1 + tables)})
    if plan.context is not None:
        found.update({"GET": 1, "PUT": 1})
    if plan.n_supertiles >= FEW:
        bundles, rest = divmod(plan.n_supertiles, MANY)  # a rest of few is read one by one
        bundles, rest = (bundles + 1, 0) if rest >= FEW else (bundles, rest)
        found.update({"PUT": bundles, "GET": (bundles + rest) * report, "LIST": report})
    return found


def _template(plan: PlanBase) -> tuple[int, int]:
    """Objects of an empty target, and arrays in it, labels and CRS included."""
    domain = plan.output_domain
    labels = [len(label.values) for label in georef.coordinates(domain).values()]
    crs = int(georef.spatial_ref_attrs(domain) is not None)
    chunks = sum(math.ceil(n / LABEL_CHUNK) for n in labels) + crs
    members = len(plan.arrays) + len(labels) + crs
    return 1 + members + chunks, members


def field_blocks(plan: PlanBase) -> int:
    """Blocks of the field that super-tiles read, repeats included; exact for a lattice.

    Elsewhere as many as the cells that are read would fill, and one more along each axis.
    """
    grid, blocks = plan.grid, plan.field.blocks
    size = [blocks[plan.field.domain.axis(dim)] for dim in grid.dims]
    lead = math.prod(
        math.ceil(plan.field.domain.size(dim) / blocks[plan.field.domain.axis(dim)])
        for dim in grid.riding
    )
    if not isinstance(grid.anchors, LatticeAnchors):
        per_tile = math.prod(
            math.ceil(n / b) + 1 for n, b in zip(plan.cost.widest_read, size, strict=True)
        )
        return lead * per_tile * plan.n_supertiles
    along = []
    for axis, (tile, block) in enumerate(zip(plan.layout.tile, size, strict=True)):
        _, begin, end = spans(grid, axis, tile)
        along.append(int((-(-end // block) - begin // block).sum()))
    return lead * math.prod(along)
