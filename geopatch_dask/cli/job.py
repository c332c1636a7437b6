"""A job: what a TOML file and the flags say, as the arguments of :func:`geopatch_dask.plan`.

::

    [field]     path = "scene.tif"
    [patch]     size = [256, 256]   step = [192, 192]   window = "hann"
    [operator]  function = "mine:enhance"               # mine.py, beside this file
    [output]    target = "out.zarr"
    [run]       workers = 4

Paths in the file are relative to the file; those on the command line to the current folder.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path
from typing import Any, cast

import geopatch_dask as gp
from geopatch_dask.cli.keys import SECTIONS, checked, find, nearest
from geopatch_dask.errors import OptionError
from geopatch_dask.fields import as_field
from geopatch_dask.patch.config import Configurable, load_object
from geopatch_dask.patch.sampler import Sampler
from geopatch_dask.patch.window import Window
from geopatch_dask.planning.units import parse_bytes

__all__ = ["Job", "load_job"]

#: Kinds of fields by their short names.
_FIELDS: dict[str, type[gp.Field]] = {"raster": gp.RasterField, "xarray": gp.XarrayField}
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
        output = self._section("output")
        found = {name: output.pop(name, None) for name in ("chunks", "shards")}
        target = gp.Location(self.target, output.pop("storage_options", None))
        output.pop("target")
        return {
            "field": self._field(),
            "patcher": self._patcher(),
            "operator": self._operator(),
            "target": target,
            "outer": self.get("run", "outer", "auto"),
            "output": gp.Output(**output),
            **found,
        }

    @property
    def memory_limit(self) -> int | None:
        """Bytes of one worker slot, where the job says."""
        given = self.get("run", "memory_limit")
        return None if given is None else parse_bytes(given)

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

    def _field(self) -> gp.Field:
        return _field_of(self._section("field"), "field")

    def _patcher(self) -> gp.Patcher:
        patch = self._section("patch")
        size = self._required("patch", "size")
        shape = {k: patch[k] for k in ("boundary", "pad_value") if k in patch}
        geometry = gp.Rectangular(_tuples(size), **shape)
        return gp.Patcher(
            geometry,
            self._sampler(patch.get("sampler", "RegularStride")),
            cast(Window, _axis(patch.get("window", "Boxcar"), Window, "window")),
            cast(
                gp.Aggregation,
                _axis(patch.get("aggregation", "OverlapAdd"), gp.Aggregation, "aggregation"),
            ),
        )

    def _sampler(self, given: Any) -> Sampler:
        config = _config(given, Sampler, "sampler")
        step = self.get("patch", "step")
        takes = _options_of(config["class"])
        if "step" in takes and "step" not in config:
            config["step"] = self._required("patch", "step")
        elif step is not None:
            raise OptionError(
                f"[patch] step does not go with this sampler ({config['class']}); drop one of them"
            )
        return cast(Sampler, _axis(config, Sampler, "sampler"))

    def _operator(self) -> gp.Operator:
        function = self._required("operator", "function")
        options = self._section("operator") | {"function": function}
        if "memory" in options:
            options["memory"] = parse_bytes(options["memory"])
        return gp.Operator(**options)


def load_job(
    path: str | os.PathLike[str] | None, given: Mapping[tuple[str, str], Any] | None = None
) -> Job:
    """Read a job file and put what was given on the command line over it.

    Parameters
    ----------
    path : path-like or None
    given : mapping of (section, key) to value

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
        folder = file.resolve().parent
        folders.insert(0, str(folder))
        for section, name, value in _entries(_parsed(file)):
            values.setdefault(section, {})[name] = _placed(section, name, value, folder)
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


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for section, entries in document.items():
        if section not in SECTIONS and not isinstance(entries, Mapping):
            raise OptionError(
                f"key {section!r} stands before any section; put it under one of "
                f"{', '.join(f'[{name}]' for name in SECTIONS)}"
            )
        if section in SECTIONS and not isinstance(entries, Mapping):
            raise OptionError(f"[{section}] must be a section of keys; got {entries!r}")
        custom = section == "field" and ":" in str(entries.get("kind", ""))
        if section not in SECTIONS and not entries:
            find(section, "")
        for name, value in entries.items():
            if not custom:
                find(section, name)
            yield section, name, value


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


# ---- objects -------------------------------------------------------------------------------


def _field_of(options: Mapping[str, Any], section: str) -> gp.Field:
    given = dict(options)
    kind, path = given.pop("kind", None), given.pop("path", None)
    if kind is None:
        field = as_field(path)
        if not given:
            return field
        cls: type[gp.Field] = type(field)
    else:
        cls = _field_class(kind)
    takes = list(inspect.signature(cls).parameters)
    first = () if path is None else (path,)
    known = takes[len(first) :]
    for name in given:
        if name not in known:
            raise OptionError(
                f"[{section}] {name} is nothing that a {cls.__name__} takes; did you mean "
                f"{nearest(name, known)!r}? It takes {', '.join(known)}"
            )
    if isinstance(given.get("mask"), Mapping):
        given["mask"] = _field_of(given["mask"], "field.mask")
    try:
        return cls(*first, **given)
    except TypeError as error:
        raise OptionError(f"[{section}] {cls.__name__}: {error}") from None


def _field_class(kind: str) -> type[gp.Field]:
    if ":" in kind:
        loaded: Any = load_object(kind)
        if isinstance(loaded, type) and issubclass(loaded, gp.Field):
            return loaded
        raise OptionError(f"[field] kind {kind!r} is no Field class")
    short = kind.lower().removesuffix("field")
    if short not in _FIELDS:
        raise OptionError(
            f"[field] kind {kind!r} is unknown; did you mean {nearest(kind, _FIELDS)!r}? "
            "Your own are 'module:Class'"
        )
    return _FIELDS[short]


def _axis(given: Any, base: type[Configurable], name: str) -> Configurable:
    """A window, an aggregation or a sampler, from its name or a table."""
    config = _config(given, base, name)
    takes = _options_of(config["class"])
    for option in config:
        if option != "class" and takes and option not in takes:
            hint = f"did you mean {nearest(option, takes)!r}?"
            raise OptionError(f"[patch] {name}: {config['class']} takes no {option!r}; {hint}")
    return base.from_config(config)


def _config(given: Any, base: type[Configurable], name: str) -> dict[str, Any]:
    """The configuration of an axis, its class spelled as the package spells it."""
    config = {"class": given} if isinstance(given, str) else given
    if not isinstance(config, Mapping) or not isinstance(config.get("class"), str):
        raise OptionError(f"[patch] {name} must be a name, or a table with a class; got {given!r}")
    known = {cls.__name__.lower(): cls.__name__ for cls in _known(base)}
    wanted = config["class"]
    spelled = known.get(re.sub(r"[-_ ]", "", wanted).lower())
    spelled = spelled or known.get(wanted.lower() + "_")  # Any is Any_ in the package
    if spelled is None and ":" not in wanted:
        public = sorted(cls.rstrip("_") for cls in known.values())
        raise OptionError(
            f"[patch] {name} {wanted!r} is unknown; did you mean {nearest(wanted, public)!r}? "
            f"There are {', '.join(public)}, and your own as 'module:Class'"
        )
    return {**config, "class": spelled or wanted}


def _known(base: type[Configurable]) -> list[type[Configurable]]:
    """Public classes of the package that are such an axis."""
    public = [getattr(gp, name, None) for name in gp.__all__]
    return [c for c in public if isinstance(c, type) and issubclass(c, base) and c is not base]


def _options_of(name: str) -> list[str]:
    """Fields of a class of the package; empty for a user's own."""
    found = [c for c in _known(Configurable) if c.__name__ == name]
    return [f.name for f in dataclasses.fields(cast(Any, found[0]))] if found else []


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
