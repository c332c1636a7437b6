"""What decides the values of a run, and nothing else: fingerprints.

A fingerprint covers the field, the axes, the operator and the output.  It does not cover the
layout: super-tiles, workers, chunks and schedulers never change a value, so a run may be resumed
with others.  It is a dictionary of named parts, so that a mismatch can say *what* differs.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
import numpy as np

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import Configurable

__all__ = ["MENDED", "canonical", "code_identity", "described", "differing", "digest"]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the parts that differ, deepest names first found: ``operator.code``.

    >>> differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c']
    """
    names = []
    for key in sorted({*ours, *theirs}):
        left, right = ours.get(key), theirs.get(key)
        if canonical(left) == canonical(right):
            continue
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += [f"{key}.{name}" for name in differing(left, right)]
        else:
            names.append(key)
    return names


def described(obj: Configurable) -> dict[str, Any] | str:
    """The configuration of an axis, with a digest of the user's own code in it, if there is any."""
    try:
        config = obj.get_config()
    except OptionError:  # a lambda: nothing but its code to go by
        return code_identity(obj)
    named = any(":" in text for text in _texts(config))
    return {**config, "code": code_identity(obj)} if named else config


def _texts(value: Any) -> Iterator[str]:
    """All strings in JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def code_identity(obj: Any) -> str:
    """A short digest of what an object computes, stable between processes.

    Functions: their source (else their bytecode), defaults, closure, and the functions and
    constants of their own module that they name.  Partials and callable
    objects: what they are made of.  Arrays: their bytes.  Anything else: its pickle.
    """
    sha = hashlib.sha256()
    _feed(sha.update, obj, {})
    return sha.hexdigest()[:24]


_ATOMS = (str, bytes, int, float, complex, bool, type(None))


#: Digests of objects by id; the object is held too, so that no id is used twice.
_Known = dict[int, tuple[Any, bytes]]
#: The source of a class is found by parsing its file; Python 3.11 counts the depth of a parse once
#: for all threads, and fails at times where two parse (SystemError, CPython issue 106905).
_PARSING = Lock()
#: What may be done, beside what a message says, where nothing but an operator's source differs.
MENDED = (
    "; if the operator was only mended, and what is done would not change: geopatch retry "
    "--operator-changed, or gp.retry(target, operator_changed=True)"
)


def _feed(update: Callable[[bytes], None], obj: Any, known: _Known) -> None:
    """Feed the digest of what an object is made of; containers and functions recurse."""
    if isinstance(obj, _ATOMS):
        update(_text(type(obj).__name__, repr(obj)))
        return
    if id(obj) not in known:
        sha = hashlib.sha256()
        known[id(obj)] = (obj, b"again")  # what it holds may hold it
        for part in _parts(sha.update, obj, known):
            _feed(sha.update, part, known)
        known[id(obj)] = (obj, sha.digest())
    update(known[id(obj)][1])


def _parts(update: Callable[[bytes], None], obj: Any, known: _Known) -> list[Any]:
    """Feed the kind of an object and give back what is inside it."""
    match obj:
        case functools.partial():
            update(_text("partial"))
            return [obj.func, obj.args, obj.keywords]
        case MethodType():
            update(_text("method", obj.__name__))
            return [obj.__self__]
        case FunctionType():
            _feed_function(update, obj, known)
        case ModuleType():
            update(_text("module", obj.__name__))
        case type():
            # Our own classes go by their name: a release that changes comments changes no value.
            ours = obj.__module__.partition(".")[0] == __name__.partition(".")[0]
            source = "" if ours else _source(obj)
            # A script is __main__ here and a module elsewhere: the source says what it is.
            update(_text("class", "" if source else obj.__module__, obj.__qualname__, source))
            if not ours:
                bases = [base for base in obj.__bases__ if base.__module__ == obj.__module__]
                return bases + [v for v in vars(obj).values() if isinstance(v, FunctionType)]
        case np.ndarray():
            update(_text("array", obj.dtype.str, obj.shape))
            update(np.ascontiguousarray(obj).tobytes())
        case Mapping():
            update(_text("mapping", len(obj)))
            return [part for key in sorted(obj, key=repr) for part in (repr(key), obj[key])]
        case list() | tuple():
            update(_text("sequence", len(obj)))
            return list(obj)
        case _ if hasattr(obj, "__dict__") and not callable(getattr(obj, "reduceat", None)):
            return [type(obj), vars(obj)]
        case _ if getattr(obj, "__name__", None):  # ufuncs, functions written in C
            update(_text("builtin", getattr(obj, "__module__", ""), obj.__name__))
        case _:
            update(cloudpickle.dumps(obj))
    return []


def _text(*words: object) -> bytes:
    return ("\0".join(map(str, words)) + "\1").encode()


def _feed_function(update: Callable[[bytes], None], obj: FunctionType, known: _Known) -> None:
    source = _source(obj)
    update(f"function\0{obj.__qualname__}\0{source}\1".encode())
    if not source:
        _feed_code(update, obj.__code__, known)
    _feed(update, obj.__defaults__, known)
    _feed(update, obj.__kwdefaults__, known)
    for name in _names(obj.__code__):
        value = obj.__globals__.get(name)
        ours = isinstance(value, FunctionType) and value.__module__ == obj.__module__
        if ours or _is_data(value):  # helpers and constants of the same module
            update(_text("global", name))
            _feed(update, value, known)
    for cell in obj.__closure__ or ():
        try:
            _feed(update, cell.cell_contents, known)
        except ValueError:  # a cell that is still empty
            update(b"empty\1")


def _is_data(value: Any) -> bool:
    """Whether a global is a constant: atoms, arrays, and containers of them (not a cache)."""
    if isinstance(value, dict):
        return all(_is_data(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_data(item) for item in value)
    return isinstance(value, (*_ATOMS, np.ndarray))


def _names(code: CodeType) -> list[str]:
    """Global names a function may use, those of functions inside it included."""
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c)]
    return sorted({*code.co_names, *inner})


def _feed_code(update: Callable[[bytes], None], code: CodeType, known: _Known) -> None:
    update(code.co_code)
    update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed_code(update, constant, known)
        else:
            _feed(update, constant, known)


def _source(obj: Any) -> str:
    try:
        with _PARSING:
            return textwrap.dedent(inspect.getsource(obj)).strip()
    except (OSError, TypeError, IndentationError, SyntaxError):
        return ""
