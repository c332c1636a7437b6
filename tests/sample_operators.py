"""Operators that tests send to worker processes: importable there, and pure.

Each stands for a kind of operator that could go wrong in its own way.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import geopatch_dask as gp

Array = npt.NDArray[Any]


def identity(x: Array) -> Array:
    return x


def mixing(x: Array) -> Array:
    """Every value depends on the whole patch, so a patch that is cut elsewhere shows."""
    real = x[np.isfinite(x)] if x.dtype.kind == "f" else x
    mean = real.mean(dtype=np.float64) if real.size else 0.0
    mixed = x * 2.0 + mean
    return mixed.astype(x.dtype) if x.dtype.kind == "f" else mixed


def mixing_batch(x: Array) -> Array:
    """The same for a batch of patches."""
    return np.stack([mixing(patch) for patch in x])


def in_place(x: Array) -> Array:
    """Writes into its argument, as careless code does."""
    x += x.dtype.type(1)
    return x


def stacked(x: Array) -> Array:
    """Two new bands before all other axes."""
    return np.stack([x, x[..., ::-1]])


def flattened(x: Array, ndim: int) -> Array:
    """No riding axes any more: their sum in order."""
    return x.reshape(-1, *x.shape[x.ndim - ndim :]).sum(axis=0)


def classed(x: Array) -> Array:
    """Three classes as uint8, and 255 for "no answer"."""
    classes = np.digitize(x, [-0.5, 0.5]).astype(np.uint8)
    if x.dtype.kind == "f":
        classes[np.isnan(x)] = 255
    return classes


def placed(patch: gp.Patch) -> Array:
    """Depends on where the patch sits."""
    return patch.data.astype(np.float64) + (patch.ordinal + 0.25 * sum(patch.anchor))


def placed_patch(patch: gp.Patch) -> gp.Patch:
    """Gives a patch back."""
    return patch.with_data(placed(patch))


def smooth(x: Array) -> Array:
    """A 3 x 3 box filter over the last two axes, edges repeated, NaN spreading."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    h, w = x.shape[-2:]
    parts = [padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return (sum(parts[1:], parts[0]) / 9).astype(x.dtype)


class Counted:
    """Doubles, and leaves a line per call in a file: across processes, and after their death."""

    def __init__(self, log: str | os.PathLike[str]) -> None:
        self.log = os.fspath(log)

    def __call__(self, x: Array) -> Array:
        note(self.log, "call")
        return x * 2


def note(log: str | os.PathLike[str], text: str) -> None:
    """Append one line, in one write."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, f"{text}\n".encode())
    finally:
        os.close(handle)


def notes(log: str | os.PathLike[str]) -> int:
    """How many lines there are."""
    path = Path(log)
    return len(path.read_text().splitlines()) if path.exists() else 0


class FailsAt:
    """Doubles; raises on the patch that holds a value, as long as a file says so."""

    def __init__(self, value: float, flag: str | os.PathLike[str]) -> None:
        self.value, self.flag = value, os.fspath(flag)

    def __call__(self, x: Array) -> Array:
        if Path(self.flag).exists() and (x == self.value).any():
            raise RuntimeError(f"cannot digest {self.value:g}")
        return x * 2


def make_scaler(factor: float = 2.0) -> Any:
    """A factory: what it returns has been built in the process that calls it."""

    def scale(x: Array) -> Array:
        return x * factor

    return scale


def rescaled(x: Array, num: int, den: int) -> Array:
    """Nearest cells on a grid ``num / den`` times as fine, for the last two axes."""
    for axis in (-2, -1):
        n = -(-x.shape[axis] * num // den)
        x = np.take(x, (2 * np.arange(n) + 1) * den // (2 * num), axis=axis)
    return x


def constant(value: float) -> Any:
    """An operator that returns one value everywhere."""
    return functools.partial(_full, value=value)


def _full(x: Array, value: float) -> Array:
    return np.full(x.shape, value)


def named(*names: str) -> Any:
    """An operator that returns its input under some names."""
    return functools.partial(_named, names=names)


def _named(x: Array, names: tuple[str, ...]) -> dict[str, Array]:
    return dict.fromkeys(names, x)


class Informed:
    """Adds what a first pass found; takes no part in it where there is nothing yet."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: Array, context: Any = None) -> Array:
        if context is None:
            return x
        found = np.nan_to_num(np.asarray(context[self.name], np.float64))
        return x + found.sum() / found.size


def suited(patch: gp.Patch, operator: gp.Operator, kind: str) -> Array:
    """What another operator returns, as classes, as scores, or as an estimate and its variance."""
    value = np.asarray(operator.run([patch])[0], np.float64)
    finite = np.where(np.isfinite(value), value, 0.0)
    if kind == "HardVote":
        return np.where(np.isnan(value), np.nan, np.floor(np.abs(finite)) % 4)
    if kind == "SoftVote":
        scores = np.stack([np.abs(finite), np.abs(finite - 1), np.ones_like(finite)])
        return np.where(np.isnan(value), np.nan, scores / scores.sum(axis=0))
    return np.stack([value, np.abs(finite) - 0.1])
