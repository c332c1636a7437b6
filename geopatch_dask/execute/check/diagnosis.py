"""What :func:`geopatch_dask.doctor` found: one line per finding, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Diagnosis", "Finding", "Level"]

#: ``"ok"`` was looked at and is right; a ``"warning"`` may cost time or a repetition; with an
#: ``"error"`` a run fails, or its result is not what it says.
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    level : {"ok", "warning", "error"}
    what : str
    remedy : str
        What to do; "" where nothing is to be done.
    repairable : bool
        Whether ``repair=True`` mends it.
    repaired : bool
        Whether it has been mended just now; :attr:`what` is how it was.
    """

    level: Level
    what: str
    remedy: str = ""
    repairable: bool = False
    repaired: bool = False

    def __str__(self) -> str:
        label = "repaired" if self.repaired else self.level
        remedy = f": {self.remedy}" if self.remedy and not self.repaired else ""
        return f"{label:<9}{self.what}{remedy}"


@dataclass(frozen=True)
class Diagnosis:
    """All findings, errors first.

    Parameters
    ----------
    findings : tuple of Finding
    """

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Diagnosis:
        """Sorted: errors, warnings, what was repaired, what is right."""
        order = {"error": 0, "warning": 1, "ok": 3}
        return cls(tuple(sorted(findings, key=lambda f: 2 if f.repaired else order[f.level])))

    @property
    def ok(self) -> bool:
        """Whether there is no error, or none that is left."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Errors that are left."""
        return tuple(f for f in self.findings if f.level == "error" and not f.repaired)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Warnings that are left."""
        return tuple(f for f in self.findings if f.level == "warning" and not f.repaired)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings]}

    def __str__(self) -> str:
        lines = [str(finding) for finding in self.findings]
        repairable = sum(f.repairable and not f.repaired for f in self.findings)
        if repairable:
            lines.append(f"\n{repairable} of these: repair=True (--repair) mends what is safe")
        return "\n".join(lines)
