"""Columns of a table: a name, a type, and which values fit.

Types are named as numpy names them, plus four that numpy has no short word for::

    bool  int8 .. int64  uint8 .. uint64  float16 float32 float64
    string  binary  timestamp[ms] timestamp[us] timestamp[ns]
    list<T>  of any of these: a 1-D array per row, of any length

A value fits a column when storing it loses nothing that anybody would miss::

    integer -> integer    if it is in range
    integer -> float      always
    float   -> float      if the column is as wide, its type was asked for, or it is NaN or infinite
    other kinds           only into their own
    None    -> any        null

Nothing here needs pyarrow: rows are checked where they arise, tables are built where they are
written (:mod:`geopatch_dask.aggregation.table`).
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError

__all__ = ["Column", "Misfit", "schema_of", "type_name", "type_of"]

Array = npt.NDArray[Any]

_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
#: Canonical type names of single values, and the numpy dtype they are held in.
ITEMS: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in _NUMBERS},
    "string": np.dtype(object),
    "binary": np.dtype(object),
    **{f"timestamp[{unit}]": np.dtype(f"M8[{unit}]") for unit in ("ms", "us", "ns")},
}
#: Other words for them: Arrow's, Python's.
_WORDS = {
    "halffloat": "float16",
    "double": "float64",
    "large_string": "string",
    "large_binary": "binary",
    "utf8": "string",
    "bytes": "binary",
    "timestamp[s]": "timestamp[ms]",
}
_LIST = re.compile(r"(?:large_)?list<(?:\w+: )?(.+?)(?: not null)?>")
#: Coarser units are kept as milliseconds, the coarsest that Parquet has.
_UNITS = {"D": "ms", "h": "ms", "m": "ms", "s": "ms", "ms": "ms", "us": "us", "ns": "ns"}


class Misfit(ValueError):
    """A value that no column, or not this one, can hold; says what was found."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    name : str
    type : str
        As :func:`type_name` spells it.
    """

    name: str
    type: str

    @functools.cached_property
    def is_list(self) -> bool:
        """Whether every row holds a 1-D array."""
        return self.type.startswith("list<")

    @functools.cached_property
    def item(self) -> str:
        """The type of one value, or of the entries of a list."""
        return self.type[5:-1] if self.is_list else self.type

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype values are held in; object for text and bytes."""
        return ITEMS[self.item]

    def fit(self, value: Any, rounding: bool) -> Any:
        """The value as the column holds it.

        Parameters
        ----------
        value
            A number, text, bytes, a time, a 1-D array, or None.
        rounding : bool
            Whether floats may be rounded to the type of the column.

        Returns
        -------
        numpy scalar, str, bytes, 1-D ndarray, or None

        Raises
        ------
        Misfit
        """
        if type(value) is self._exact:
            return value
        found = type_of(value)
        if found is None:
            return None
        if found.startswith("list<") != self.is_list:
            raise Misfit(f"{found}")
        if self.item in ("string", "binary"):
            if found != self.type and not (self.is_list and not len(value)):
                raise Misfit(found)
            return _texts(value, self.item) if self.is_list else _text(value)
        array = _array(value)
        kept = _cast(array, self.dtype, rounding) if array.size else array.astype(self.dtype)
        if kept is None:
            raise Misfit(found if array.dtype.kind not in "iu" else f"{found} {_extreme(array)}")
        return kept if self.is_list else kept[()]

    @functools.cached_property
    def _exact(self) -> Any:
        """The type of values that need no second look; None where that is not enough to know."""
        if self.is_list or self.dtype.kind == "M":
            return None
        return {"string": str, "binary": bytes}.get(self.item, self.dtype.type)

    def to_json(self) -> list[str]:
        """``[name, type]``."""
        return [self.name, self.type]


def type_of(value: Any) -> str | None:
    """The type name of a value; None for None.

    Raises
    ------
    Misfit
        For what no column can hold: complex numbers, arrays of two axes, objects.
    """
    if value is None or value is np.ma.masked:
        return None
    if isinstance(value, str):
        return "string"
    if isinstance(value, bytes | bytearray):
        return "binary"
    array = _array(value)
    if array.ndim > 1:
        raise Misfit(f"an array of shape {array.shape}")
    item = _item(array.dtype)
    if item is None:
        raise Misfit(type(value).__name__ if array.dtype.kind == "O" else str(array.dtype))
    return f"list<{item}>" if array.ndim else item


def type_name(given: Any) -> str:
    """The canonical name of a type, however it was given.

    Parameters
    ----------
    given : str, numpy dtype or type, Python type, or pyarrow.DataType

    Raises
    ------
    OptionError
        For anything that is no type of a column.

    Examples
    --------
    >>> [type_name(t) for t in ("f4", float, str, "list<int16>", "datetime64[s]")]
    ['float32', 'float64', 'string', 'list<int16>', 'timestamp[ms]']
    """
    text = given
    if type(given).__module__.startswith("pyarrow"):
        text = re.sub(r"\bfloat\b", "float32", str(given))  # numpy's "float" is a float64
    inner = _LIST.fullmatch(text) if isinstance(text, str) else None
    item = _word(inner[1] if inner else text)
    if item is None:
        raise OptionError(
            f"column type {given!r} is none of {', '.join(ITEMS)}, or list<> of one of these"
        )
    return f"list<{item}>" if inner else item


def schema_of(given: Any) -> tuple[tuple[str, str], ...] | None:
    """A schema in its canonical form: pairs of column name and type name.

    Parameters
    ----------
    given : mapping of str to type, sequence of pairs, or None

    Raises
    ------
    OptionError
        For names that are no text, or twice there, and for unknown types.
    """
    if given is None:
        return None
    pairs: Iterable[Any] = given.items() if isinstance(given, Mapping) else given
    try:
        found = tuple((name, type_name(kind)) for name, kind in pairs)
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"schema must map column names to types, got {given!r}") from None
    names = [name for name, _ in found]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise OptionError(f"columns of a schema need names, each its own; got {names}")
    return found


def _word(word: Any) -> str | None:
    """The canonical name of the type of single values that a word, or a dtype, stands for."""
    if isinstance(word, str):
        known = _WORDS.get(word, word)
        if known in ITEMS:
            return known
    try:
        return None if word is None else _item(np.dtype(word))  # numpy takes None for float64
    except TypeError:
        return None


@functools.lru_cache(maxsize=256)
def _item(dtype: np.dtype[Any]) -> str | None:
    """The canonical name of a numpy dtype of single values."""
    if dtype.kind == "U":
        return "string"
    if dtype.kind == "S":
        return "binary"
    if dtype.kind == "M":
        unit = _UNITS.get(str(np.datetime_data(dtype)[0]))
        return f"timestamp[{unit}]" if unit else None
    return dtype.name if dtype.name in ITEMS else None


def _array(value: Any) -> Array:
    """A value as an array of no or one axis; masked entries of floats become NaN."""
    if isinstance(value, datetime.date):  # datetimes are dates, too
        exact = getattr(value, "to_datetime64", None)
        return np.asarray(exact() if exact else np.datetime64(value))
    if isinstance(value, np.ma.MaskedArray):
        if not np.ma.is_masked(value):
            return np.asarray(value.data)
        if value.dtype.kind != "f":
            raise Misfit(f"a masked array of {value.dtype}")
        return np.asarray(value.filled(np.nan))
    try:
        array = np.asarray(value)
    except ValueError:
        raise Misfit(f"a {type(value).__name__} of uneven entries") from None
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(v, str) for v in array):
        return array.astype(str)
    return array


def _text(value: Any) -> str | bytes:
    return str(value) if isinstance(value, str) else bytes(value)


def _texts(value: Any, item: str) -> Array:
    made = np.empty(len(value), object)
    made[:] = [str(v) if item == "string" else bytes(v) for v in value]
    return made


def _cast(array: Array, want: np.dtype[Any], rounding: bool) -> Array | None:
    """The array in another dtype, or None where that would lose something."""
    have = array.dtype
    if have == want:
        return array.astype(want)  # a copy: the operator may reuse its own
    if want.kind in "iu" and have.kind in "iu":
        info = np.iinfo(want)
        inside = int(info.min) <= int(array.min()) and int(array.max()) <= int(info.max)
        return array.astype(want) if inside else None
    if want.kind == "f" and have.kind in "iu":
        return array.astype(want)
    if want.kind == "f" and have.kind == "f":
        narrow = have.itemsize > want.itemsize and not rounding
        if narrow and np.isfinite(array).any():
            return None
        with np.errstate(over="ignore"):
            return array.astype(want)
    if want.kind == "M" and have.kind == "M":
        cast = array.astype(want)
        return cast if (np.isnat(array) | (cast == array)).all() else None
    return None


def _extreme(array: Array) -> str:
    low, high = int(array.min()), int(array.max())
    return str(low) if low == high else f"{low} .. {high}"
