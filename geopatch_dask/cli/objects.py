"""What a job names, as objects of the package: fields, axes, statistics, outputs.

::

    window = "hann"                                Hann()
    window = { class = "Tukey", alpha = 0.3 }      Tukey(alpha=0.3)
    window = { class = "mine:Bell", width = 2 }    Bell(width=2), from mine.py

Names are those of the classes, however they are spelled; a wrong one is told with the nearest.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import geopatch_dask as gp
from geopatch_dask.cli.keys import KEYS, OUTPUTS, checked, find, nearest
from geopatch_dask.errors import OptionError
from geopatch_dask.fields import as_field
from geopatch_dask.patch.config import Configurable, load_object

__all__ = ["axis", "config_of", "field_of", "first_pass", "options_of", "several"]

#: Kinds of fields by their short names.
_FIELDS: dict[str, type[gp.Field]] = {"raster": gp.RasterField, "xarray": gp.XarrayField}
#: What a first pass may see, besides what an operator of its own returns.
_OVER = ("field", "output")


# ---- fields --------------------------------------------------------------------------------


def field_of(options: Mapping[str, Any], section: str) -> gp.Field:
    """The field that ``[field]``, or a table like it, describes.

    Raises
    ------
    GeopatchError
    """
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
        given["mask"] = field_of(given["mask"], "field.mask")
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


# ---- axes: windows, samplers, aggregations, statistics --------------------------------------


def axis(given: Any, base: type[Configurable], place: str) -> Any:
    """A window, an aggregation, a sampler or a statistic, from its name or a table.

    Parameters
    ----------
    given : str or mapping
    base : type
        What it must be.
    place : str
        Where it stands, for messages: ``[patch] window``.

    Returns
    -------
    object
        An instance of ``base``.

    Raises
    ------
    OptionError
        For an unknown name or option, with the nearest; for one that is lacking.
    """
    config = config_of(given, base, place)
    name = str(config["class"])
    takes = options_of(name)
    for option in config:
        if option != "class" and takes and option not in takes:
            hint = f"did you mean {nearest(option, takes)!r}?"
            raise OptionError(f"{place}: {name} takes no {option!r}; {hint}")
    lacking = [option for option, needed in takes.items() if needed and option not in config]
    if lacking:
        told = ", ".join(f"{option} = ..." for option in lacking)
        raise OptionError(
            f'{place}: {name} needs {", ".join(lacking)}; as in {{ class = "{name}", {told} }}'
        )
    try:
        return base.from_config(config)
    except OptionError as error:
        raise OptionError(f"{place}: {error}") from error


def config_of(given: Any, base: type[Configurable], place: str) -> dict[str, Any]:
    """The configuration of an axis, its class spelled as the package spells it.

    Raises
    ------
    OptionError
    """
    config = {"class": given} if isinstance(given, str) else given
    if not isinstance(config, Mapping) or not isinstance(config.get("class"), str):
        raise OptionError(f"{place} must be a name, or a table with a class; got {given!r}")
    known = {cls.__name__.lower(): cls.__name__ for cls in _known(base)}
    wanted = config["class"]
    spelled = known.get(re.sub(r"[-_ ]", "", wanted).lower())
    spelled = spelled or known.get(wanted.lower() + "_")  # Any is Any_ in the package
    if spelled is None and ":" not in wanted:
        public = sorted(cls.rstrip("_") for cls in known.values())
        raise OptionError(
            f"{place} {wanted!r} is unknown; did you mean {nearest(wanted, public)!r}? "
            f"There are {', '.join(public)}, and your own as 'module:Class'"
        )
    return {**config, "class": spelled or wanted}


def options_of(name: str) -> dict[str, bool]:
    """Options of a class of the package, and whether each is needed; none for a user's own."""
    found = [c for c in _known(Configurable) if c.__name__ == name]
    empty = dataclasses.MISSING
    return {
        f.name: f.default is empty and f.default_factory is empty
        for cls in found[:1]
        for f in dataclasses.fields(cast(Any, cls))
    }


def _known(base: type[Configurable]) -> list[type[Configurable]]:
    """Public classes of the package that are such an axis."""
    public = [getattr(gp, name, None) for name in gp.__all__]
    return [c for c in public if isinstance(c, type) and issubclass(c, base) and c is not base]


# ---- two passes, several outputs -----------------------------------------------------------


def first_pass(section: Mapping[str, Any]) -> dict[str, Any]:
    """``[context]`` as arguments of :func:`geopatch_dask.plan`; none where it says nothing.

    Raises
    ------
    OptionError
        For an unknown statistic, or one that is lacking.
    """
    statistic, over = section.get("statistic"), section.get("over", "field")
    if statistic is None and "over" not in section:
        return {}
    if statistic is None:
        raise OptionError(
            "[context] over says what a statistic sees, and there is none: give --context, or "
            "[context] statistic in a job file"
        )
    return {
        "context": axis(statistic, gp.Statistic, "[context] statistic"),
        "over": _over(over),
    }


def _over(given: Any) -> str | gp.Operator:
    """What a first pass sees: a word, or an operator by name or as a table like ``[operator]``."""
    if isinstance(given, Mapping):
        return _operator(given, "context.over")
    if not isinstance(given, str):
        raise OptionError(
            f"[context] over must be a text, or a table like [operator]; got {given!r}"
        )
    if given not in _OVER and ":" not in given:
        raise OptionError(
            f"[context] over {given!r} is unknown; did you mean {nearest(given, _OVER)!r}? "
            "An operator of your own is 'module:name'"
        )
    return given


def _operator(options: Mapping[str, Any], section: str) -> gp.Operator:
    """An operator from a table like ``[operator]``."""
    known = [key.name for key in KEYS if key.section == "operator"]
    for name, value in options.items():
        if name not in known:
            raise OptionError(
                f"[{section}] has no key {name!r}; did you mean {nearest(name, known)!r}? "
                f"It has {', '.join(known)}"
            )
        checked(replace(find("operator", name), section=section), value)
    if "function" not in options:
        raise OptionError(f"[{section}] has no function: it is an operator, 'module:name'")
    return gp.Operator(**options)


def several(
    tables: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, gp.Aggregation], dict[str, gp.Output]]:
    """Aggregations and outputs by the operator's key, from the tables of ``[outputs.NAME]``.

    Parameters
    ----------
    tables : mapping of key to table

    Returns
    -------
    aggregations : dict of str to Aggregation
        ``overlap-add`` where a table names none, as in ``[patch]``.
    outputs : dict of str to Output
        Named after their key.

    Raises
    ------
    OptionError
        Naming the table.
    """
    aggregations: dict[str, gp.Aggregation] = {}
    outputs: dict[str, gp.Output] = {}
    for key, table in tables.items():
        options = {"name": key} | dict(table)
        wanted = options.pop("aggregation", "OverlapAdd")
        place = f"[{OUTPUTS}.{key}]"
        aggregations[key] = axis(wanted, gp.Aggregation, f"{place} aggregation")
        try:
            outputs[key] = gp.Output(**options)
        except OptionError as error:
            raise OptionError(f"{place}: {error}") from error
    return aggregations, outputs
