"""Every error the package raises on purpose.

Each one is a :class:`GeopatchError` *and* the built-in a caller would expect, so that both
``except GeopatchError`` and ``except ValueError`` do what they say.  A message states, in one
line, what is wrong, where, the numbers, and the call or option that fixes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AlignmentError",
    "BoundaryError",
    "FieldError",
    "GeopatchError",
    "MemoryPlanError",
    "OperatorError",
    "OptionError",
    "PlanMismatch",
    "RecordError",
    "RunIncomplete",
    "StorageError",
    "SuperTileFailed",
    "TargetError",
    "VerificationError",
]


class GeopatchError(Exception):
    """Base of every error raised on purpose by this package."""


class OptionError(GeopatchError, ValueError):
    """An argument, option or job-file key has a value that makes no sense."""


class BoundaryError(GeopatchError, ValueError):
    """The anchors do not fit the domain under the chosen boundary mode."""


class AlignmentError(GeopatchError, ValueError):
    """Chunks, shards and super-tiles do not divide each other: two tasks would share an object."""


class MemoryPlanError(GeopatchError, MemoryError):
    """One super-tile needs more memory than a worker may use."""


class StorageError(GeopatchError, OSError):
    """Base of the two below: a place outside this process did not do what it was asked.

    Parameters
    ----------
    message : str
    kind : str
        What the failure means, one of :data:`~geopatch_dask.failures.KINDS`.
    transient : bool
        Whether the same request may succeed a little later.

    Attributes
    ----------
    kind : str
    transient : bool
    """

    def __init__(
        self, message: str = "", *, kind: str = "mistake", transient: bool = False
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.transient = transient


class FieldError(StorageError):
    """An input cannot be opened or read."""


class TargetError(StorageError):
    """The target store cannot be created, opened or written."""


class OperatorError(GeopatchError, TypeError):
    """An operator cannot be loaded or sent, or broke its contract on shape or dtype."""


class PlanMismatch(GeopatchError, ValueError):
    """The target holds the result of another plan.

    Attributes
    ----------
    fields : tuple of str
        Names of the parts of the fingerprint that differ.
    """

    def __init__(self, message: str, fields: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class RecordError(GeopatchError, ValueError):
    """A record is torn, of an unknown version, or belongs to another plan."""


class SuperTileFailed(GeopatchError, RuntimeError):
    """A super-tile could not be computed; the cause of a :class:`RunIncomplete`.

    Where its operator, field or store failed is a note of it, the traceback of the worker.
    """


class RunIncomplete(GeopatchError, RuntimeError):
    """A run ended with super-tiles that failed; the others are done and stay done.

    Attributes
    ----------
    failed : tuple of str
        Identifiers of the super-tiles that failed.
    report : object or None
        The :class:`~geopatch_dask.report.Report` of the run.
    """

    def __init__(self, message: str, failed: Sequence[str] = (), report: object = None) -> None:
        super().__init__(message)
        self.failed = tuple(failed)
        self.report = report


class VerificationError(GeopatchError, AssertionError):
    """Recomputed bytes differ from stored bytes.

    Attributes
    ----------
    verification : object or None
        The :class:`~geopatch_dask.Verification` that found it.
    """

    def __init__(self, message: str, verification: object = None) -> None:
        super().__init__(message)
        self.verification = verification
