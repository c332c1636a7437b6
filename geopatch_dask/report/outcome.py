"""What one super-tile tells when it ends, and the sum of many.

An :class:`Outcome` travels from a worker to whoever drives the run; everything that is kept is in
the record beside the target.  A :class:`Summary` adds outcomes up in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Outcome", "Summary"]

#: Failures that a summary names.
_NAMED = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task returns: under 1 kB when it is done; with its traceback when it failed.

    Parameters
    ----------
    ordinal : int
    id : str
    state : {"done", "empty", "failed"}
    numbers : mapping
        Patches, cells, bytes, retries, peak RSS.
    seconds : mapping of phase to seconds
    error : mapping or None
        ``type``, ``message``, ``traceback`` of a failure, all text, and ``kind``: what it says
        about trying again (see :mod:`geopatch_dask.execute.attempt.case`).
    worker : str
        ``host:pid``.
    attempt : int
        1 for the first.
    record : bytes
        Of a super-tile that is done in a bucket, for
        :class:`~geopatch_dask.store.bundles.Bundler`; elsewhere none.
    """

    ordinal: int
    id: str
    state: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    worker: str = ""
    attempt: int = 1
    record: bytes = b""

    def repeated(self, requests: int) -> Outcome:
        """The same with that many requests that were repeated."""
        return replace(self, numbers={**self.numbers, "retries": requests})

    def also(self, requests: int) -> Outcome:
        """The same with so many more of them."""
        return self.repeated(self.numbers.get("retries", 0) + requests) if requests else self

    @property
    def why(self) -> str:
        """``Type: message`` of a failure, shortened; "" when there is none."""
        if self.error is None:
            return ""
        return f"{self.error['type']}: {self.error['message']}"[:500]


@dataclass(frozen=True)
class Summary:
    """Sums over outcomes; small, mergeable in any order.

    Parameters
    ----------
    states : dict of state to count
    numbers : dict
        Sums of patches, cells, bytes and retries; the maximum of ``peak_rss``.
    seconds : dict of phase to seconds
    failed : tuple of str
        Identifiers, the first hundred.
    complete : bool
        Whether every super-tile of the plan is done and the target says so.
    """

    states: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    complete: bool = False

    @classmethod
    def of(cls, outcome: Outcome) -> Summary:
        """The summary of one outcome."""
        return cls(
            {outcome.state: 1},
            dict(outcome.numbers),
            dict(outcome.seconds),
            (outcome.id,) if outcome.state == "failed" else (),
        )

    @classmethod
    def sum(cls, items: Sequence[Outcome | Summary]) -> Summary:
        """The sum of some outcomes or summaries."""
        total = cls()
        for item in items:
            total = total + (cls.of(item) if isinstance(item, Outcome) else item)
        return total

    def __add__(self, other: Summary) -> Summary:
        """Sum of two."""
        numbers = _added(self.numbers, other.numbers)
        peaks = [s.numbers.get("peak_rss", 0) for s in (self, other)]
        return Summary(
            _added(self.states, other.states),
            {**numbers, "peak_rss": max(peaks)} if numbers else {},
            _added(self.seconds, other.seconds),
            (self.failed + other.failed)[:_NAMED],
        )

    @property
    def done(self) -> int:
        """Super-tiles that are done, empty ones included."""
        return self.states.get("done", 0) + self.states.get("empty", 0)


def _added(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    return {key: left.get(key, 0) + right.get(key, 0) for key in {**left, **right}}
