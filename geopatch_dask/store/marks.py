"""Marks in ``failed/``: how two who disagree about one super-tile find out.

Somebody may finish a super-tile while another gives it up and makes its cells fill: a backup, a
second run, a worker that was cut off and came back.  Nobody holds a lock, as nobody can tell
whether its holder lives.  Instead, each leaves a mark that the other looks for *after* it has
touched the data::

    compute     failed/id there? claim it  ->  data  ->  tiles/id  ->  failed/id as I left it?
                    yes: remove it, done             no: take tiles/id back, all of it once more

    give up     failed/id, take tiles/id back  ->  [failed/id still mine?  a row of fill]*  ->
                    still mine?  done                no: all of it once more

*Mine* is any mark of somebody who gives it up: those who want the same need not know of each other,
and who finds a claim takes it for its own.  Only who has computed a super-tile ever removes a mark,
and a record beside a mark is not trusted.  So, whoever made cells fill after they were computed
either sees that its mark is gone, and puts it back and takes the record away, or leaves it to be
seen by who computed them.

A process may die between any two steps: what it leaves is a mark, and the super-tile is computed
again.  One moment is left that no order of steps can close where data are replaced without a
condition: a request to make cells fill is sent while its mark is there, arrives only after somebody
has computed the whole super-tile, and its sender dies before it has looked again and said so.
:func:`geopatch_dask.verify` would tell.
"""

from __future__ import annotations

from dataclasses import replace

from geopatch_dask.errors import RecordError
from geopatch_dask.store.record_format import Record, now
from geopatch_dask.store.records import Ledger, mark_of

__all__ = ["claim", "is_erasable", "settle"]


def claim(ledger: Ledger, blank: Record) -> bytes | None:
    """Say that a super-tile that was given up is computed again, before its data are written.

    Parameters
    ----------
    ledger : Ledger
    blank : Record
        What is known of who computes it.

    Returns
    -------
    bytes or None
        The mark, for :func:`settle`: that of this claim, or of somebody else's.  None where the
        super-tile was not given up; then nothing is written.

    Raises
    ------
    TargetError
    """
    name = mark_of(blank.id)
    raw = ledger.folder.read(name)
    if raw is None or _is_claim(raw):
        return raw
    try:
        error = Record.from_bytes(raw, name).error
    except RecordError:
        error = {"type": "RecordError", "message": "why is not known any more", "traceback": ""}
    mine = replace(blank, state="failed", error=error, started=now(), finished="").to_bytes()
    ledger.folder.write(name, mine)
    return mine


def settle(ledger: Ledger, tile: str, mark: bytes | None) -> bool:
    """Whether the record counts that has just been put; then the mark goes.

    It does not count when somebody gave the super-tile up since :func:`claim`, and may have made
    its cells fill.

    Raises
    ------
    TargetError
    """
    found = ledger.folder.read(mark_of(tile))
    if found is None:  # never given up; or somebody else has claimed it, computed it and settled
        return True
    if found != mark:
        return False
    ledger.forget_failure(tile)
    return True


def is_erasable(ledger: Ledger, tile: str) -> bool:
    """Whether a super-tile is given up, and nobody has claimed it since.

    Raises
    ------
    TargetError
    """
    raw = ledger.folder.read(mark_of(tile))
    return raw is not None and not _is_claim(raw)


def _is_claim(raw: bytes) -> bool:
    try:
        return Record.from_bytes(raw).finished == ""
    except RecordError:
        return False
