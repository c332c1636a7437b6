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
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
import numpy as np

__all__ = ["canonical", "code_identity", "differing", "digest"]


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


def code_identity(obj: Any) -> str:
    """A short digest of what an object computes, stable between processes.

    Functions: their source (else their bytecode), defaults and closure.  Partials and callable
    objects: what they are made of.  Arrays: their bytes.  Anything else: its pickle.
    """
    seen: set[int] = set()
    sha = hashlib.sha256()
    _feed(sha.update, obj, seen)
    return sha.hexdigest()[:24]


def _feed(update: Callable[[bytes], None], obj: Any, seen: set[int]) -> None:
    def text(*words: object) -> None:
        update(("\0".join(map(str, words)) + "\1").encode())

    if id(obj) in seen and not isinstance(obj, str | bytes | int | float | bool | type(None)):
        text("again")
        return
    seen.add(id(obj))
    if isinstance(obj, functools.partial):
        text("partial")
        for part in (obj.func, obj.args, obj.keywords):
            _feed(update, part, seen)
    elif isinstance(obj, MethodType):
        text("method", obj.__name__)
        _feed(update, obj.__self__, seen)
    elif isinstance(obj, FunctionType):
        _feed_function(update, obj, seen)
    elif isinstance(obj, ModuleType):
        text("module", obj.__name__)
    elif isinstance(obj, type):
        text("class", obj.__module__, obj.__qualname__, _source(obj))
    elif isinstance(obj, np.ndarray):
        text("array", obj.dtype.str, obj.shape)
        update(np.ascontiguousarray(obj).tobytes())
    elif isinstance(obj, Mapping):
        text("mapping", len(obj))
        for key in sorted(obj, key=repr):
            text(repr(key))
            _feed(update, obj[key], seen)
    elif isinstance(obj, list | tuple):
        text("sequence", len(obj))
        for item in obj:
            _feed(update, item, seen)
    elif isinstance(obj, str | bytes | int | float | complex | bool | type(None)):
        text(type(obj).__name__, repr(obj))
    elif callable(obj) and getattr(obj, "__name__", None) and not hasattr(obj, "__dict__"):
        text("builtin", getattr(obj, "__module__", ""), obj.__name__)  # np.ufunc, C functions
    elif hasattr(obj, "__dict__"):
        _feed(update, type(obj), seen)
        _feed(update, vars(obj), seen)
    else:
        update(cloudpickle.dumps(obj))


def _feed_function(update: Callable[[bytes], None], obj: FunctionType, seen: set[int]) -> None:
    source = _source(obj)
    update(f"function\0{obj.__qualname__}\0{source}\1".encode())
    if not source:
        _feed_code(update, obj.__code__, seen)
    _feed(update, obj.__defaults__, seen)
    _feed(update, obj.__kwdefaults__, seen)
    for cell in obj.__closure__ or ():
        try:
            _feed(update, cell.cell_contents, seen)
        except ValueError:  # a cell that is still empty
            update(b"empty\1")


def _feed_code(update: Callable[[bytes], None], code: CodeType, seen: set[int]) -> None:
    update(code.co_code)
    update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed_code(update, constant, seen)
        else:
            _feed(update, constant, seen)


def _source(obj: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(obj)).strip()
    except (OSError, TypeError, IndentationError, SyntaxError):
        return ""
