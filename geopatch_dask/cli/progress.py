"""How a run is going: a bar on a terminal, lines in a log.

Both say the same: super-tiles done of all, patches, bytes, failures, and when it will be over.  The
estimate is the plain one, ``elapsed * left / done``, over what *this* run has done, from the
start of its first super-tile: how long workers took to start says nothing about the rest.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from geopatch_dask.cli.console import note
from geopatch_dask.planning.units import bytes_text, seconds_text
from geopatch_dask.report.outcome import Outcome
from geopatch_dask.store.jobs import RunState

__all__ = ["Bar", "Counts", "Following", "Lines", "Silent", "progress_for"]


@dataclass
class Counts:
    """What has happened so far.

    Parameters
    ----------
    total : int
        Super-tiles of the plan.
    before : int
        Of these, done by earlier runs; known once the first one is done.
    done, failed, patches, read, written : int
        Of this run; bytes.
    partial : bool
        Whether the run is to do a part only: a share, what failed.  Then that part is the total.
    clock : callable
        Seconds, monotonic.
    """

    total: int
    before: int = 0
    done: int = 0
    failed: int = 0
    patches: int = 0
    read: int = 0
    written: int = 0
    partial: bool = False
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    working: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.working = self.clock()

    def add(self, outcome: Outcome, todo: int) -> None:
        """Count one super-tile of ``todo`` in this run."""
        if self.partial:
            self.total = todo
        self.before = self.total - todo
        if not self.done:
            self.working = max(self.clock() - sum(outcome.seconds.values()), self.began)
        self.done += 1
        self.failed += outcome.state == "failed"
        self.patches += outcome.numbers.get("patches", 0)
        self.read += outcome.numbers.get("bytes_read", 0)
        self.written += outcome.numbers.get("bytes_written", 0)

    @property
    def reached(self) -> int:
        """Super-tiles behind us, earlier runs included."""
        return self.before + self.done

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self.clock() - self.began

    @property
    def pace(self) -> float:
        """Seconds since the first super-tile was started."""
        return max(self.clock() - self.working, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left, or None before anything is done."""
        if not self.done:
            return None
        return self.pace * (self.total - self.reached) / self.done

    def short(self) -> str:
        """For a bar."""
        if self.eta is None:
            when = "starting"
        elif self.reached < self.total:
            when = f"ETA {seconds_text(self.eta)}"
        else:
            when = seconds_text(self.seconds)
        parts = [when, f"{self.failed} failed", f"{self.patches:,} patches"]
        return ", ".join([*parts, bytes_text(self.written)])

    def line(self) -> str:
        """For a log."""
        if self.eta is None:
            return f"0/{self.total} super-tiles, none done after {seconds_text(self.seconds)}"
        share = self.reached / self.total if self.total else 1.0
        before = f", {self.before} of them before" if self.before else ""
        text = (
            f"{self.reached}/{self.total} super-tiles ({share:.0%}{before}), "
            f"{self.patches:,} patches ({self.patches / self.pace:,.1f}/s), "
            f"{bytes_text(self.read)} read, {bytes_text(self.written)} written "
            f"({bytes_text(self.written / self.pace)}/s), {self.failed} failed"
        )
        if self.reached >= self.total:
            return f"{text}, after {seconds_text(self.seconds)}"
        return f"{text}, ETA {seconds_text(self.eta)}"


class Silent:
    """Counts, and shows nothing; a context manager, and the ``progress=`` of a run."""

    def __init__(self, total: int, partial: bool = False) -> None:
        self.counts = Counts(total, partial=partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, outcome: Outcome, finished: int, total: int) -> None:
        del finished  # one call per super-tile
        self.counts.add(outcome, total)


class Lines(Silent):
    """A line about every ``every`` seconds, however long a super-tile takes, and a last one."""

    def __init__(self, total: int, partial: bool = False, every: float = 10.0) -> None:
        super().__init__(total, partial)
        self.every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None and self.counts.done:
            note(self.counts.line())

    def _tell(self) -> None:
        while not self._over.wait(self.every):
            note(self.counts.line())


class Bar(Silent):
    """A bar on a terminal; it stays when the run is over."""

    def __init__(self, total: int, partial: bool = False) -> None:
        super().__init__(total, partial)
        self._bar = RichProgress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.completed:.0f}/{task.total:.0f} super-tiles"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            _Numbers(self.counts),
            console=Console(stderr=True),
            expand=True,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, outcome: Outcome, finished: int, total: int) -> None:
        super().__call__(outcome, finished, total)
        self.show()

    def show(self) -> None:
        """Draw what the counts say."""
        self._bar.update(self._task, completed=self.counts.reached, total=self.counts.total)


class _Numbers(ProgressColumn):
    """What no column of rich says, redrawn with the spinner."""

    def __init__(self, counts: Counts) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.counts = counts

    def render(self, task: Task) -> Text:
        """The numbers of now."""
        del task
        return Text(self.counts.short(), no_wrap=True)


def progress_for(
    total: int, quiet: bool = False, every: float = 10.0, partial: bool = False
) -> Silent:
    """The progress that suits where stderr goes.

    Parameters
    ----------
    total : int
        Super-tiles of the plan.
    quiet : bool
        Show nothing.
    every : float, seconds
        Between lines of a log.
    partial : bool
        See :class:`Counts`.
    """
    if quiet:
        return Silent(total, partial)
    stream: Any = sys.stderr
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Bar(total, partial)
    return Lines(total, partial, every)


class Following:
    """Shows what runs elsewhere last said; a context manager, and the ``progress=`` of a wait.

    Parameters
    ----------
    quiet : bool
        Show nothing.
    every : float, seconds
        Between lines of a log.
    """

    def __init__(self, quiet: bool = False, every: float = 10.0) -> None:
        self.quiet, self.every = quiet, every
        self._shown: Silent | None = None
        self._said = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(self._shown, Bar):
            self._shown.__exit__(kind, error, trace)

    def __call__(self, runs: Sequence[RunState]) -> None:
        """Show the sum of some runs."""
        before = min(run.before for run in runs)
        # Shares add up to a whole; runs of a whole have it in common.
        shares = {run.share: run.total for run in runs}
        whole = max(run.before + run.total for run in runs)
        total = whole if "" in shares else before + sum(shares.values())
        if self._shown is None:
            found = progress_for(total, self.quiet)
            self._shown = found if isinstance(found, Bar) else Silent(total)
            if isinstance(found, Bar):
                found.__enter__()
        counts = self._shown.counts
        counts.total, counts.before = total, before
        counts.done = sum(run.done + run.failed for run in runs)
        counts.failed = sum(run.failed for run in runs)
        counts.patches = sum(run.patches for run in runs)
        counts.read = sum(run.bytes_read for run in runs)
        counts.written = sum(run.bytes_written for run in runs)
        if isinstance(self._shown, Bar):
            self._shown.show()
        elif not self.quiet and time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            note(counts.line())
