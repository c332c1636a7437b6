"""A job: what a TOML file and the flags say, as the arguments of :func:`geopatch_dask.plan`.

::

    [field]     path = "scene.tif"
    [patch]     size = [256, 256]   step = [192, 192]   window = "hann"
    [operator]  function = "mine:enhance"               # mine.py, beside this file
    [output]    target = "out.zarr"
    [run]       workers = 4
    [cluster]   kind = "local"

    [context]         statistic = "mean-std"            # two passes: context= of the plan
    [outputs.height]  aggregation = "median"            # one table per key of a dict

Paths in the file are relative to the file; those on the command line to the current folder.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from datetime import time
from pathlib import Path
from typing import Any, cast

import geopatch_dask as gp
from geopatch_dask.cli.keys import KEYS, OUTPUTS, SECTIONS, checked, find
from geopatch_dask.cli.objects import axis, config_of, field_of, first_pass, options_of, several
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.sampler import Sampler
from geopatch_dask.patch.window import Window
from geopatch_dask.planning.units import parse_bytes

__all__ = ["Job", "load_job"]

#: What every job says.
_REQUIRED = (("field", "path"), ("patch", "size"), ("operator", "function"), ("output", "target"))
#: Starts of what is no path of this machine: URLs, GDAL's virtual files and connection strings.
_REMOTE = re.compile(r"^(/vsi|<|[A-Za-z][A-Za-z0-9+.-]+:)")


@dataclass(frozen=True)
class Job:
    """A job, checked key by key; nothing is opened or imported before it is asked for.

    Parameters
    ----------
    values : mapping of section to mapping of key to value
        The section of the output ``height`` is ``outputs.height``.
    folders : tuple of str
        Where modules of operators are looked for, before the usual places.
    """

    values: Mapping[str, Mapping[str, Any]]
    folders: tuple[str, ...] = attribute(default=())

    def get(self, section: str, name: str, default: Any = None) -> Any:
        """One value."""
        return self.values.get(section, {}).get(name, default)

    @property
    def target(self) -> str:
        """Path or URL of the target.

        Raises
        ------
        OptionError
            When the job has none.
        """
        return str(self._required("output", "target"))

    @property
    def storage_options(self) -> dict[str, Any] | None:
        """Of the target."""
        return cast("dict[str, Any] | None", self.get("output", "storage_options"))

    @property
    def cluster(self) -> tuple[str, dict[str, Any]]:
        """Kind of the cluster, and the other words of ``[cluster]``.

        A walltime that TOML takes for a time of day is text again.
        """
        words = self._section("cluster")
        kind = str(words.pop("kind", "local"))
        return kind, {k: v.isoformat() if isinstance(v, time) else v for k, v in words.items()}

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Within it, modules in :attr:`folders` can be imported.

        Processes that are spawned within it (a local cluster, ``processes``) start with this
        search path: the spawn method of :mod:`multiprocessing` hands ``sys.path`` on.
        """
        before = list(sys.path)
        sys.path[:0] = [folder for folder in self.folders if folder not in before]
        try:
            yield
        finally:
            sys.path[:] = before

    def plan_arguments(self) -> dict[str, Any]:
        """Keyword arguments of :func:`geopatch_dask.plan`, but for memory and slots.

        Raises
        ------
        GeopatchError
            For whatever makes no sense, before anything is written.
        """
        for section, name in _REQUIRED:
            self._required(section, name)
        aggregation, output = self._results()
        return {
            "field": field_of(self._section("field"), "field"),
            "patcher": self._patcher(aggregation),
            "operator": self._operator(),
            "target": gp.Location(self.target, self.storage_options),
            "outer": self.get("run", "outer", "auto"),
            "chunks": self.get("output", "chunks"),
            "shards": self.get("output", "shards"),
            "output": output,
            **first_pass(self._section("context")),
        }

    @property
    def memory_limit(self) -> int | None:
        """Bytes of one worker slot, where the job says."""
        given = self.get("run", "memory_limit")
        return None if given is None else parse_bytes(given)

    @property
    def policy(self) -> gp.Policy:
        """What the run puts up with.

        Raises
        ------
        OptionError
        """
        names = ("attempts", "timeout", "on_error", "backups", "window", "losses", "log")
        given = {name: self.get("run", name) for name in names}
        return gp.Policy(**{name: value for name, value in given.items() if value is not None})

    # ---- parts -----------------------------------------------------------------------------

    def _section(self, name: str) -> dict[str, Any]:
        return dict(self.values.get(name, {}))

    def _required(self, section: str, name: str) -> Any:
        value = self.get(section, name)
        if value is None and (section, name) == ("field", "path") and self.get("field", "kind"):
            return None  # a field of your own may need no path
        if value is None:
            key = find(section, name)
            raise OptionError(
                f"the job has no {name}: give {key.flag}, or {key.place} in a job file"
            )
        return value

    def _results(self) -> tuple[Any, Any]:
        """How results are put together and stored; mappings where the operator returns a dict."""
        tables = {
            section.removeprefix(f"{OUTPUTS}."): table
            for section, table in self.values.items()
            if section.startswith(f"{OUTPUTS}.")
        }
        each = [key.name for key in KEYS if key.section == OUTPUTS]
        one = {name: self.get("output", name) for name in each}
        one["aggregation"] = self.get("patch", "aggregation")
        one = {name: value for name, value in one.items() if value is not None}
        if not tables:
            wanted = one.pop("aggregation", "OverlapAdd")
            return axis(wanted, gp.Aggregation, "[patch] aggregation"), gp.Output(**one)
        for name in one:
            place = find("patch" if name == "aggregation" else "output", name).place
            raise OptionError(
                f"{place} is of a job with one output, and this one has "
                f"{', '.join(f'[{OUTPUTS}.{key}]' for key in tables)}; give {name} there"
            )
        return several(tables)

    def _patcher(self, aggregation: Any) -> gp.Patcher:
        patch = self._section("patch")
        size = self._required("patch", "size")
        shape = {k: patch[k] for k in ("boundary", "pad_value") if k in patch}
        return gp.Patcher(
            gp.Rectangular(_tuples(size), **shape),
            self._sampler(patch.get("sampler", "RegularStride")),
            axis(patch.get("window", "Boxcar"), Window, "[patch] window"),
            aggregation,
        )

    def _sampler(self, given: Any) -> Sampler:
        config = config_of(given, Sampler, "[patch] sampler")
        step = self.get("patch", "step")
        takes = options_of(config["class"])
        if "step" in takes and "step" not in config:
            config["step"] = self._required("patch", "step")
        elif step is not None:
            raise OptionError(
                f"[patch] step does not go with this sampler ({config['class']}); drop one of them"
            )
        return cast(Sampler, axis(config, Sampler, "[patch] sampler"))

    def _operator(self) -> gp.Operator:
        function = self._required("operator", "function")
        options = self._section("operator") | {"function": function}
        return gp.Operator(**options)


def load_job(
    path: str | os.PathLike[str] | None, given: Mapping[tuple[str, str], Any] | None = None
) -> Job:
    """Read a job file and put what was given on the command line over it.

    Parameters
    ----------
    path : path-like or None
    given : mapping of (section, key) to value
        Another kind of cluster replaces all of ``[cluster]``.

    Raises
    ------
    OptionError
        For a file that is missing or is no TOML, an unknown section or key, a value of the wrong
        sort: naming it, and the nearest that exists.
    """
    values: dict[str, dict[str, Any]] = {}
    folders = [str(Path.cwd())]
    if path is not None:
        file = Path(path)
        folder = file.absolute().parent
        folders.insert(0, str(folder))
        for section, entries in _sections(_parsed(file)):
            values[section] = {k: _placed(section, k, v, folder) for k, v in entries.items()}
    kind = (given or {}).get(("cluster", "kind"))
    if kind is not None and kind != values.get("cluster", {}).get("kind", "local"):
        values.pop("cluster", None)  # its words are about another kind
    for (section, name), value in (given or {}).items():
        if value is not None:
            values.setdefault(section, {})[name] = _placed(section, name, value, None)
    return Job(values, tuple(dict.fromkeys(folders)))


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise OptionError(f"no job file {file}; check the path") from None
    except OSError as error:
        raise OptionError(f"job file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"job file {file} is not TOML: {error}") from None


def _sections(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Sections of a job file and what they hold, every key of which exists."""
    for section, entries in document.items():
        if section not in SECTIONS and not isinstance(entries, Mapping):
            raise OptionError(
                f"key {section!r} stands before any section; put it under one of "
                f"{', '.join(f'[{name}]' for name in SECTIONS)}"
            )
        if not isinstance(entries, Mapping):
            raise OptionError(f"[{section}] must be a section of keys; got {entries!r}")
        if section not in SECTIONS and not entries:
            find(section, "")
        parts = _tables(entries) if section == OUTPUTS else {section: entries}
        for part, keys in parts.items():
            if section != "field" or ":" not in str(keys.get("kind", "")):  # a kind of your own
                _known(part, keys)
            yield part, keys


def _tables(entries: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What ``[outputs]`` holds, by section."""
    for name, table in entries.items():
        if not isinstance(table, Mapping):
            find(OUTPUTS, name)
    return {f"{OUTPUTS}.{name}": table for name, table in entries.items()}


def _known(section: str, keys: Mapping[str, Any]) -> None:
    for name, value in keys.items():
        try:
            find(section, name)
        except OptionError as error:
            if section != "output" or not isinstance(value, Mapping):
                raise
            hint = f"the table of one output of several is [{OUTPUTS}.{name}]"
            raise OptionError(f"{error}; {hint}") from None


def _placed(section: str, name: str, value: Any, folder: Path | None) -> Any:
    """The value, checked; a path is made absolute from ``folder``."""
    try:
        key = find(section, name)
    except OptionError:
        return value  # an option of a user's own kind of field: its constructor checks it
    value = checked(key, value)
    if folder is None or key.sort not in ("path", "source"):
        return value
    if isinstance(value, Mapping):
        return {k: _absolute(v, folder) if k == "path" else v for k, v in value.items()}
    return _absolute(value, folder)


def _absolute(text: Any, folder: Path) -> Any:
    if not isinstance(text, str) or not text.strip():
        return text
    beside = folder / Path(text).expanduser()
    if _REMOTE.match(text) and not beside.exists():
        return text
    return str(beside)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
