"""What :func:`geopatch_dask.verify` found: numbers, and differences with a name and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from geopatch_dask.errors import VerificationError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.planning.units import seconds_text

__all__ = ["REMEDIES", "Cause", "Mismatch", "Verification"]

#: Who is to blame for a difference.
Cause = Literal["stored", "record", "operator", "values"]

#: What to do about it.
REMEDIES: dict[Cause, str] = {
    "stored": "what lies on the store is not what was written: repair=True (--repair) forgets the "
    "super-tile, and the same command computes it again",
    "record": "the record is wrong: repair=True (--repair) forgets it, and the same command "
    "computes the super-tile again",
    "operator": "the operator is not repeatable: it gave two answers for one patch; seed its "
    "random numbers by patch.ordinal and let it remember nothing",
    "values": "the record fits what is stored, but computing it again gives something else: other "
    "versions or hardware (compare the record's with yours), or an operator that depends on how "
    "its patches are batched; overwrite=True computes everything anew",
}


@dataclass(frozen=True)
class Mismatch:
    """One difference.

    Parameters
    ----------
    cause : {"stored", "record", "operator", "values"}
        What lies on the store changed; the record did; the operator is not repeatable; or none of
        these, and computing it again gives something else.
    record : str
        Id of the super-tile.
    what : str
        Name of the array or table; "" for the record itself.
    detail : str
        What was expected and what was found, in words.
    box : Box or None
        Cells that were compared, over all axes of the array.
    cell : tuple of int, or None
        The first that differs.
    stored, recomputed : str
        Its values.
    cells : int
        How many cells of the box differ.
    key : str
        The object that holds the cell, relative to the target.
    """

    cause: Cause
    record: str
    what: str
    detail: str
    box: Box | None = None
    cell: tuple[int, ...] | None = None
    stored: str = ""
    recomputed: str = ""
    cells: int = 0
    key: str = ""

    def __str__(self) -> str:
        where = f"{self.what!r} of super-tile {self.record}" if self.what else self.record
        if self.cell is None:
            found = self.detail
        else:
            found = (
                f"{self.detail}; first at {self.cell}: stored {self.stored}, recomputed "
                f"{self.recomputed} ({self.cells:,} cells differ)"
            )
        key = f" [{self.key}]" if self.key else ""
        return f"{where}{key}: {found}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        box = None if self.box is None else self.box.to_json()
        return {**asdict(self), "box": box, "remedy": REMEDIES[self.cause]}


@dataclass(frozen=True)
class Verification:
    """What was compared, and what differs.

    Parameters
    ----------
    target, fingerprint : str
    supertiles : int
        Of the plan.
    recorded, records : int
        Records that can be trusted; of these, compared with what is stored.
    windows : int
        Recomputed.
    seed : int
        Of the windows, and of the records where not all were compared.
    cells, rows : int
        Recomputed and compared, in windows.
    left_out : mapping of str to int
        Super-tiles that were not compared, by reason.
    mismatches : tuple of Mismatch
        The first of them; one per super-tile and array.
    found : int
        How many there were.
    damaged : tuple of str
        Super-tiles whose stored data or record is wrong.
    repaired : tuple of str
        Those that were forgotten, so that the next run computes them.
    problems : tuple of str
        What else is worth knowing.
    seconds : float
    """

    target: str
    fingerprint: str
    supertiles: int
    recorded: int
    records: int
    windows: int
    seed: int
    cells: int = 0
    rows: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    mismatches: tuple[Mismatch, ...] = ()
    found: int = 0
    damaged: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything that was compared is right."""
        return not self.found

    @property
    def whole(self) -> bool:
        """Whether no super-tile was left out."""
        return not any(self.left_out.values())

    def raise_for_mismatch(self) -> None:
        """Raise unless :attr:`ok`.

        Raises
        ------
        VerificationError
            In one line; carries this object.
        """
        if self.ok:
            return
        first = self.mismatches[0]
        more = f" (and {self.found - 1} more)" if self.found > 1 else ""
        remedy = REMEDIES[first.cause]
        if self.repaired:
            forgotten = _counted(len(self.repaired), "super-tile")
            remedy = f"{forgotten} forgotten: run the same command again"
        raise VerificationError(f"{self.target}: {first}{more}; {remedy}", self)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {
            "ok": self.ok,
            "left_out": dict(self.left_out),
            "mismatches": [mismatch.to_json() for mismatch in self.mismatches],
            **{name: list(plain[name]) for name in ("damaged", "repaired", "problems")},
        }

    def __str__(self) -> str:
        sample = ", a random sample" if self.records < self.recorded else ""
        rows = f", {self.rows:,} rows" if self.rows else ""
        verdict = "no difference" if self.ok else _counted(self.found, "difference")
        lines = [
            f"target       {self.target}  ({verdict})",
            f"fingerprint  {self.fingerprint[:16]}",
            f"records      {self.records:,} of {self.recorded:,} compared with what is stored"
            f"{sample}",
            f"windows      {self.windows} computed again in one process: {self.cells:,} cells"
            f"{rows} (seed {self.seed}, {seconds_text(self.seconds)})",
        ]
        if not self.whole:
            told = [f"{n:,} {reason}" for reason, n in self.left_out.items() if n]
            lines.append(f"left out     {', '.join(told)}, of {self.supertiles:,} super-tiles")
        lines += [f"differs      {mismatch}" for mismatch in self.mismatches[:10]]
        if self.found > 10:
            lines.append(f"             and {self.found - 10:,} more")
        causes = dict.fromkeys(mismatch.cause for mismatch in self.mismatches)
        lines += [f"remedy       {REMEDIES[cause]}" for cause in causes if not self.repaired]
        if self.repaired:
            forgotten = _counted(len(self.repaired), "super-tile")
            lines.append(f"repaired     {forgotten} forgotten: run the same command again")
        return "\n".join([*lines, *(f"problem      {text}" for text in self.problems)])


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
