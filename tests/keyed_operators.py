"""Operators that return rows, importable in worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import geopatch_dask as gp

Array = npt.NDArray[Any]


def number(x: Array) -> Any:
    """One value per patch, of the dtype of the field."""
    real = x[~np.isnan(x)] if x.dtype.kind == "f" else x.ravel()
    return real.max() if real.size else x.dtype.type(0)


def vector(x: Array) -> Array:
    """A list column; shorter at the edges under ``shrink``."""
    return np.asarray(x, np.float64).ravel()[:5]


def record(patch: gp.Patch) -> dict[str, Any]:
    """Every type of column, with nulls, depending on the place and the whole patch."""
    k = patch.ordinal
    data = np.nan_to_num(np.asarray(patch.data, np.float64), posinf=1.0, neginf=-1.0)
    return {
        "total": np.float32(data.sum() * 1e-3),
        "missing": int(np.isnan(patch.data).sum()) if patch.data.dtype.kind == "f" else 0,
        "odd": bool(k % 2),
        "name": f"p{k}",
        "label": None if k % 3 == 1 else "é" * (k % 3),
        "raw": bytes([k % 256]),
        "when": np.datetime64("2020-01-01") + k,
        "shape": list(patch.data.shape),
        "few": None if k % 4 == 1 else np.arange(k % 4, dtype=np.int16),
        "maybe": None if k % 5 == 1 else np.float64(k),
    }


def ragged(patch: gp.Patch) -> list[dict[str, Any]]:
    """No, one, or more rows."""
    low = float(np.nan_to_num(np.asarray(patch.data, np.float64), posinf=1, neginf=-1).min())
    return [{"i": i, "v": low + i, "at": sum(patch.anchor)} for i in range((patch.ordinal + 1) % 4)]


def structured(x: Array) -> Array:
    """One entry per row of cells."""
    rows = np.zeros(min(len(x), 3), [("first", "f4"), ("i", "u2"), ("two", "i4", 2)])
    rows["first"] = np.nan_to_num(x.reshape(len(x), -1)[: len(rows), 0], posinf=0, neginf=0)
    rows["i"] = np.arange(len(rows))
    return rows


def frame(x: Array) -> pd.DataFrame:
    """A DataFrame with two rows."""
    return pd.DataFrame({"size": [x.size, x.ndim], "text": ["size", "ndim"]})


def sometimes(patch: gp.Patch) -> dict[str, Any] | None:
    """A row for every other patch."""
    return {"n": patch.ordinal} if patch.ordinal % 2 == 0 else None


def batched(x: Array) -> dict[str, Any]:
    """A dict of arrays whose first axis is the batch."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return {"first": flat[:, 0], "some": flat[:, :3], "size": [row.size for row in flat]}


def batched_list(x: Array) -> list[Any]:
    """A list with one entry per patch, each a list of rows."""
    return [[{"i": i} for i in range(int(patch.size) % 3)] for patch in x]


def both(patch: gp.Patch) -> dict[str, Any]:
    """An array and rows."""
    data = np.asarray(patch.data, np.float64)
    return {"height": data * 2 + patch.ordinal, "stats": {"k": patch.ordinal, "n": data.size}}


def stats(x: Array) -> dict[str, Any]:
    """Mean, extremes and count of valid cells."""
    valid = x[~np.isnan(x)]
    if not valid.size:
        return {"mean": np.float32(np.nan), "least": None, "most": None, "n": 0}
    return {
        "mean": valid.mean(dtype=np.float64).astype(np.float32),
        "least": int(valid.min()),
        "most": int(valid.max()),
        "n": int(valid.size),
    }


#: Name -> (function, how it is called).
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "number": (number, {}),
    "vector": (vector, {}),
    "record": (record, {"takes": "patch"}),
    "ragged": (ragged, {"takes": "patch"}),
    "structured": (structured, {}),
    "frame": (frame, {}),
    "sometimes": (sometimes, {"takes": "patch"}),
    "batched": (batched, {"batch": 3}),
    "batched_list": (batched_list, {"batch": 2}),
}
#: Types where no or the first patch might not tell them.
SCHEMAS: dict[str, dict[str, Any]] = {
    "record": {
        "total": "float32",
        "missing": int,
        "odd": bool,
        "name": str,
        "label": str,
        "raw": bytes,
        "when": "M8[D]",
        "shape": "list<int64>",
        "few": "list<int16>",
        "maybe": float,
    },
    "ragged": {"i": int, "v": float, "at": int},
    "batched_list": {"i": "int32"},
}
