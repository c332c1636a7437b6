"""Every key of a job file, and the flag that overrides it: one table for both.

::

    [patch]                       geopatch run --size 256,256 --step 192,192 --window hann
    size = [256, 256]
    step = [192, 192]
    window = "hann"

    [outputs.height]              --set outputs.height.dtype=float32
    dtype = "float32"

What a value must be is checked as far as the kind of the key tells; what it means is checked by the
object that gets it, so that a job file and a Python call fail with the same words.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from geopatch_dask.clusters.core import all_words
from geopatch_dask.clusters.options import nearest
from geopatch_dask.errors import OptionError

__all__ = [
    "KEYS",
    "OUTPUTS",
    "SECTIONS",
    "Key",
    "checked",
    "find",
    "nearest",
    "parted",
    "toml_value",
]

#: The section of tables: the key ``dtype`` of the output ``height`` is in ``outputs.height``.
OUTPUTS = "outputs"

_SORTS = {
    "text": "text",
    "path": "text",
    "count": "a whole number, at least 1",
    "number": "a number",
    "flag": "true or false",
    "table": "a table",
    "names": "a list of texts",
    "source": "a path, or a table like [field]",
}


@dataclass(frozen=True)
class Key:
    """One key.

    Parameters
    ----------
    section, name : str
    sort : str
        ``text``, ``path`` (relative to the job file), ``count``, ``number``, ``flag``, ``table``,
        ``names``, ``source`` (a path or a table), or ``any``: the object that gets it knows.
    help : str
    flag : str
        Empty: ``--set section.name=value`` is the only one.
    metavar : str
    """

    section: str
    name: str
    sort: str
    help: str
    flag: str = ""
    metavar: str = ""

    @property
    def place(self) -> str:
        """As messages name it: ``[patch] size``."""
        return f"[{self.section}] {self.name}"


def _key(section: str, text: str, sort: str, help_: str, flag: str = "") -> Key:
    name = text.strip()
    flag, _, metavar = flag.partition(" ")
    return Key(section, name, sort, help_, flag, metavar)


#: What each section is about.
SECTIONS = {
    "field": "what is read",
    "patch": "how it is cut and put together again",
    "operator": "what is done to a patch",
    "context": "a first pass, whose result every call of the operator gets",
    "output": "what is written",
    "outputs": "one table per key of the dict that the operator returns",
    "run": "how it is computed; never changes a value",
    "cluster": "where it is computed; never changes a value",
}

KEYS: tuple[Key, ...] = (
    _key("field", "path", "path", "raster, netCDF or Zarr: path or URL", "--field PATH"),
    _key("field", "kind", "text", "raster, xarray, or 'module:Class'; else guessed", "--kind NAME"),
    _key("field", "bands", "any", "band numbers from 1: 3 or 4,1", "--bands N,..."),
    _key("field", "variable", "text", "of a netCDF or Zarr", "--variable NAME"),
    _key("field", "mask", "source", "cells where it is 0 or NaN are missing", "--mask PATH"),
    _key("field", "masked", "flag", "whether nodata becomes missing (default: yes)", "--masked"),
    _key("field", "crs", "any", "overrides the CRS of a netCDF or Zarr", "--crs CRS"),
    _key("field", "engine", "text", "of xarray"),
    _key("field", "group", "text", "of a netCDF or Zarr"),
    _key("field", "options", "table", "for rasterio.open or xarray.open_dataset"),
    _key("field", "reader", "text", "of a raster: gdal (default) or fsspec"),
    _key("field", "storage_options", "table", "of a raster; secrets as 'env:NAME'"),
    _key("patch", "size", "any", "cells: 256 or 256,256 or lat=32,lon=64", "--size N,..."),
    _key("patch", "step", "any", "cells between patches, like the size", "--step N,..."),
    _key("patch", "boundary", "text", "shift reflect pad shrink drop raise", "--boundary MODE"),
    _key("patch", "pad_value", "number", "for boundary pad", "--pad-value X"),
    _key("patch", "window", "any", "boxcar hann tukey gaussian", "--window NAME"),
    _key("patch", "aggregation", "any", "overlap-add mean max ...", "--aggregation NAME"),
    _key("patch", "sampler", "any", "regular-stride (default) random ...", "--sampler NAME"),
    _key("operator", "function", "text", "module:name, importable", "--operator MODULE:NAME"),
    _key("operator", "factory", "flag", "the function makes the operator", "--factory"),
    _key("operator", "options", "table", "keyword arguments: radius=3", "--options K=V,..."),
    _key("operator", "batch", "count", "patches per call", "--batch N"),
    _key("operator", "takes", "text", "array or patch", "--takes WHAT"),
    _key("operator", "missing", "text", "pass (NaN goes in) or mask", "--missing HOW"),
    _key("operator", "fill", "number", "replaces NaN under missing mask", "--fill X"),
    _key("operator", "version", "text", "names weights that changed", "--operator-version TEXT"),
    _key("operator", "memory", "any", "bytes that numpy does not see", "--operator-memory BYTES"),
    _key("operator", "trial", "flag", "whether planning tries it (default: yes)", "--trial"),
    _key("context", "statistic", "any", "mean-std min-max quantiles ...", "--context NAME"),
    _key("context", "over", "any", "field (default), output or module:name", "--over WHAT"),
    _key("output", "target", "path", "the Zarr: path or URL", "--target PATH"),
    _key("output", "chunks", "any", "cells (default: 512)", "--chunks N,..."),
    _key("output", "shards", "any", "cells (default: none)", "--shards N,..."),
    _key("output", "dtype", "text", "of the stored array", "--dtype NAME"),
    _key("output", "fill_value", "number", "of cells without an answer", "--fill-value X"),
    _key("output", "missing", "number", "by which the operator says: no answer"),
    _key("output", "name", "text", "of the array (default: data)", "--name NAME"),
    _key("output", "dims", "names", "names of the operator's leading axes"),
    _key("output", "scale", "any", "cells of the output per cell of the field", "--scale N"),
    _key("output", "returns", "text", "dtype of the result of an operator without a trial"),
    _key("output", "attrs", "table", "CF attributes of the array"),
    _key("output", "storage_options", "table", "for fsspec; secrets as 'env:NAME'"),
    _key("outputs", "aggregation", "any", "as in [patch]"),
    _key("outputs", "dtype", "text", "of the stored array"),
    _key("outputs", "fill_value", "number", "of cells without an answer"),
    _key("outputs", "missing", "number", "by which the operator says: no answer"),
    _key("outputs", "name", "text", "of the array (default: the key)"),
    _key("outputs", "dims", "names", "names of the leading axes of this result"),
    _key("outputs", "scale", "any", "as in [output]; the same for all"),
    _key("outputs", "returns", "text", "dtype of this result, as in [output]"),
    _key("outputs", "attrs", "table", "CF attributes of the array"),
    _key("run", "outer", "any", "super-tiles in cells (default: auto)", "--outer N,..."),
    _key("run", "memory_limit", "any", "of one worker: 4GiB", "--memory-limit BYTES"),
    _key("run", "workers", "count", "super-tiles at the same time", "--workers N"),
    _key("run", "attempts", "count", "at a super-tile whose store fails (4)", "--attempts N"),
    _key("run", "losses", "any", "machines lost under a super-tile (10)", "--losses N"),
    _key("run", "timeout", "any", "of one attempt: '10 min' (default: none)", "--timeout TIME"),
    _key("run", "on_error", "text", "a patch that fails: raise fill retry", "--on-error WHAT"),
    _key("run", "backups", "flag", "compute stragglers twice (default: yes)", "--backups"),
    _key("run", "window", "count", "super-tiles the scheduler knows at once", "--task-window N"),
    _key("run", "share", "text", "only part i of n, from 0: 3/16", "--share I/N"),
    _key("run", "allow_uncovered", "flag", "exit 0 with uncovered cells", "--allow-uncovered"),
    _key("run", "log_every", "number", "seconds between log lines (10)", "--log-every SECONDS"),
    _key("run", "log", "text", "a line per super-tile: text or json", "--log-tiles FORMAT"),
    _key("run", "metrics", "any", "port to serve numbers for Prometheus at", "--metrics PORT"),
    _key("run", "quiet", "flag", "no progress, no report", "--quiet"),
    _key(
        "cluster",
        "kind",
        "text",
        "local (default: processes here), threads, sync, slurm, pbs, kubernetes, or the address of "
        "a Dask scheduler; its own words by --set cluster.WORD=VALUE",
        "--cluster KIND",
    ),
    _key("cluster", "adapt", "any", "fewest and most workers, as needed: 0,16", "--adapt MIN,MAX"),
    _key("cluster", "tls", "path", "folder of ca.pem, cert.pem, key.pem", "--tls DIR"),
)

_BY_PLACE = {(key.section, key.name): key for key in KEYS}

#: Flags that a job file must not hold, and why.
_NOT_IN_A_FILE = {
    "overwrite": "it would undo 'run the same command again'; give --overwrite on the command line",
    "scheduler": "where a job runs is kind in [cluster] (--cluster)",
}


def find(section: str, name: str) -> Key:
    """The key, or an error that names the nearest one.

    Raises
    ------
    OptionError
    """
    kind, _, output = section.partition(".")
    if kind != OUTPUTS and section not in SECTIONS:
        raise OptionError(
            f"a job has no section [{section}]; did you mean [{nearest(section, SECTIONS)}]?"
        )
    if kind == OUTPUTS and not output:
        raise OptionError(
            f"[{OUTPUTS}] holds one table per output, and {name!r} is none: [{OUTPUTS}.NAME], or "
            f"--set {OUTPUTS}.NAME.KEY=VALUE"
        )
    found = _BY_PLACE.get((kind, name))
    if found is not None:
        return replace(found, section=section)
    if section == "cluster" and name in (words := all_words()):
        return Key(section, name, "any", words[name])  # its kind checks the value
    if name in _NOT_IN_A_FILE:
        raise OptionError(f"{name!r} is no key of a job: {_NOT_IN_A_FILE[name]}")
    elsewhere = [key.section for key in KEYS if key.name == name]
    if elsewhere:
        raise OptionError(f"[{section}] has no key {name!r}; it belongs in [{elsewhere[0]}]")
    if name in SECTIONS:
        raise OptionError(f"[{section}] has no key {name!r}; it is a section of its own, [{name}]")
    known = [key.name for key in KEYS if key.section == kind]
    known += [] if section != "cluster" else all_words()
    raise OptionError(
        f"[{section}] has no key {name!r}; did you mean {nearest(name, known)!r}? "
        f"It has {', '.join(known)}"
    )


def checked(key: Key, value: Any) -> Any:
    """The value, if it is of the sort that the key takes.

    Raises
    ------
    OptionError
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    good = {
        "text": isinstance(value, str),
        "path": isinstance(value, str),
        "count": whole and value >= 1,
        "number": whole or isinstance(value, float),
        "flag": isinstance(value, bool),
        "table": isinstance(value, Mapping),
        "names": isinstance(value, list) and all(isinstance(v, str) for v in value),
        "source": isinstance(value, str | Mapping),
        "any": True,
    }
    if not good[key.sort]:
        raise OptionError(f"{key.place} must be {_SORTS[key.sort]}; got {value!r}")
    if key.name == "log_every" and not 0 < value < math.inf:
        raise OptionError(f"{key.place} must be positive; got {value!r}")
    return value


def parted(place: str) -> tuple[str, str]:
    """Section and key of ``section.key``; the name of an output is a part of its section.

    >>> parted("patch.size"), parted("outputs.height.dtype")
    (('patch', 'size'), ('outputs.height', 'dtype'))
    """
    section, _, name = place.partition(".")
    if section == OUTPUTS:
        section, _, name = place.rpartition(".")
    return section, name


def toml_value(text: str) -> Any:
    """A value given on the command line: TOML, with the brackets left out where they may be.

    >>> toml_value("256,192"), toml_value("lat=32,lon=64"), toml_value("hann"), toml_value("4")
    ([256, 192], {'lat': 32, 'lon': 64}, 'hann', 4)
    """
    for spelled in (text, f"[{text}]", f"{{{text}}}") if text.strip() else ():
        try:
            return tomllib.loads(f"value = {spelled}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return text
