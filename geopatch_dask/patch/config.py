"""Axes as plain JSON and back.

Every axis of a patcher is a frozen dataclass.  Its configuration is its fields, plus the name of
its class: the bare name for a class of this package, ``"module:Class"`` for a user's own, which
:func:`from_config` then imports.  Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, ClassVar, Self

import numpy as np

from geopatch_dask.errors import OptionError

__all__ = ["Configurable", "from_config", "load_object", "object_name", "to_json"]


class Configurable:
    """Base of frozen dataclasses that round-trip through JSON."""

    _known: ClassVar[dict[str, type[Configurable]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            Configurable._known[cls.__name__] = cls

    def get_config(self) -> dict[str, Any]:
        """This object as plain JSON: ``{"class": name, field: value, ...}``."""
        cls = type(self)
        known = Configurable._known.get(cls.__name__) is cls
        name = cls.__name__ if known else object_name(cls)
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {"class": name, **{f.name: to_json(getattr(self, f.name)) for f in fields}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The object that :meth:`get_config` described.

        Raises
        ------
        OptionError
            For an unknown class, a class of another kind, or fields it does not have.
        """
        found = from_config(config)
        if not isinstance(found, cls):
            raise OptionError(f"{config.get('class')!r} is not a {cls.__name__}")
        return found


def from_config(config: Mapping[str, Any]) -> Configurable:
    """Build any configurable from its JSON; see :meth:`Configurable.from_config`."""
    options = dict(config)
    name = options.pop("class", None)
    cls = Configurable._known.get(str(name)) if name else None
    if cls is None:
        if not isinstance(name, str) or ":" not in name:
            raise OptionError(
                f"unknown class {name!r} in a configuration; known: "
                f"{', '.join(sorted(Configurable._known))}, or 'module:Class'"
            )
        loaded = load_object(name)
        if not isinstance(loaded, type) or not issubclass(loaded, Configurable):
            raise OptionError(f"{name!r} is not a configurable class")
        cls = loaded
    try:
        return cls(**{key: _revived(value) for key, value in options.items()})
    except TypeError as error:
        raise OptionError(f"{name}: {error}") from None


def to_json(value: Any) -> Any:
    """Tuples to lists, numpy scalars to Python, NaN to ``"nan"``, callables to ``module:name``.

    Raises
    ------
    OptionError
        For a value that JSON cannot say (a lambda, an open file).
    """
    if isinstance(value, Configurable):
        return value.get_config()
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # "nan", "inf": JSON has no word for them
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value):
        return object_name(value)
    raise OptionError(f"{value!r} cannot be written as JSON")


def _revived(value: Any) -> Any:
    if isinstance(value, Configurable):
        return value
    if isinstance(value, Mapping):
        if isinstance(value.get("class"), str):  # a member may be named "class", too
            return from_config(value)
        return {key: _revived(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_revived(item) for item in value)
    return value


def object_name(obj: Callable[..., Any]) -> str:
    """``"module:qualname"`` of an importable function or class.

    Raises
    ------
    OptionError
        For lambdas, closures and methods of instances: the name must lead back to the object.
    """
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not module or not name or "<" in name:
        raise OptionError(f"{obj!r} has no importable name; define it at the top level of a module")
    found = load_object(f"{module}:{name}")
    if found is not obj and not (isinstance(obj, MethodType) and found == obj):
        raise OptionError(
            f"{obj!r} has no importable name: {module}:{name} is something else; define a function "
            "at the top level of a module"
        )
    return f"{module}:{name}"


def load_object(name: str) -> Any:
    """Import ``"module:attribute.path"``.

    Raises
    ------
    OptionError
        When the module or the attribute does not exist, saying which.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise OptionError(f"{name!r} is not of the form 'module:name'")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module runs anything when it is imported
        what = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise OptionError(f"cannot import {module_name!r} of {name!r}: {what}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise OptionError(f"module {module_name!r} has no {path!r}") from None
    return found
