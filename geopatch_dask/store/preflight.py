"""A trial before a run: may this process write, read, list and delete beside a target.

With one object of its own, before the first task starts, and nothing else::

    out.zarr.geopatch/.probe-<32 hex digits>     written, read back, listed, deleted

A run cannot do without writing, reading and deleting.  It can do without listing: records are then
read by name, for which the location has to know that "forbidden" may mean "absent"
(:attr:`Preflight.location`).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from geopatch_dask.errors import TargetError
from geopatch_dask.store.location import Location
from geopatch_dask.store.target import STATE

__all__ = ["PROBE", "Preflight", "preflight"]

#: How the name of the object begins; what was killed in its trial leaves it.
PROBE = ".probe-"

_OK = "ok"
#: How often a probe is repeated that is gone in between: a run that starts at the same moment may
#: be clearing the folder, of records whose target was deleted.
_ROUNDS = 5


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Parameters
    ----------
    list : str
        ``"ok"``, or ``"forbidden: ..."`` and what the place said.  All else worked, or this would
        not have been made.
    client : str
        What moves the bytes; :attr:`~geopatch_dask.store.location.Location.client_name`.
    location : Location
        The one that was asked about, with ``lists=False`` where listing is forbidden.
    """

    list: str
    client: str
    location: Location = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether all four worked."""
        return self.list == _OK


def preflight(location: Location | object) -> Preflight:
    """Try what a run needs on an object of its own, beside the target.

    Parameters
    ----------
    location : Location, or what :meth:`Location.of` takes
        Of the target.  It need not exist, and is not looked at.

    Raises
    ------
    TargetError
        When writing, reading or deleting does not work, or listing fails otherwise than by being
        forbidden; says which, and what the credentials need.
    """
    place = Location.of(location)
    folder, name = place.sibling(STATE), f"{PROBE}{uuid.uuid4().hex}"
    with _no_new_folders(folder):
        for _ in range(_ROUNDS):
            steps = _steps(folder, name)
            if not any(error and error.kind in ("failed", "absent") for error in steps.values()):
                break
    for step, error in steps.items():
        if error is not None and not (step == "list" and error.kind == "forbidden"):
            raise _refusal(folder, name, step, error)
    hidden = steps["list"]
    return Preflight(
        list=_OK if hidden is None else f"{hidden.kind}: {hidden}",
        client=place.client_name,
        location=replace(place, lists=hidden is None),
    )


def _steps(folder: Location, name: str) -> dict[str, TargetError | None]:
    content = name.encode()
    steps = {"write": _tried(lambda: folder.write(name, content))}
    if steps["write"] is None:
        steps["read"] = _tried(lambda: _read(folder, name, content))
        steps["list"] = _tried(lambda: _list(folder, name))
        steps["delete"] = _tried(lambda: folder.delete(name))
    return steps


def _tried(step: Callable[[], object]) -> TargetError | None:
    try:
        step()
    except TargetError as error:
        return error
    return None


def _read(folder: Location, name: str, content: bytes) -> None:
    # A missing list permission must not pass for a missing object here.
    found = replace(folder, lists=True).read(name)
    if found != content:
        what = "nothing" if found is None else f"{len(found)} other bytes"
        raise TargetError(
            f"cannot read {folder.display}/{name}: {what} came back of the {len(content)} bytes "
            "written a moment ago",
            kind="failed",
        )


def _list(folder: Location, name: str) -> None:
    if name not in folder.list():
        raise TargetError(
            f"cannot list {folder.display}: an object written a moment ago is not in it",
            kind="failed",
        )


def _refusal(folder: Location, name: str, step: str, error: TargetError) -> TargetError:
    left = f" (its probe {name} is still there)" if step == "delete" else ""
    remedy = (
        "allow GetObject, PutObject and DeleteObject there" if error.kind == "forbidden" else ""
    )
    remedy = remedy or ("retry" if error.transient else "mend that, or choose another target")
    made = TargetError(
        f"a run must {step} objects in {folder.display}/{left}: {error}; {remedy}",
        kind=error.kind,
        transient=error.transient,
    )
    made.__cause__ = error
    return made


@contextmanager
def _no_new_folders(folder: Location) -> Iterator[None]:
    """Remove what writing made on a local path, where nothing else has come into it since."""
    path = Path(folder.url)
    made = [p for p in (path, *path.parents) if not p.exists()] if folder.is_local else []
    try:
        yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
