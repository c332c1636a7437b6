"""What an operator returned for one patch, as rows: dictionaries of column name and value.

::

    3.5                      {"value": 3.5}                           one row
    array([1., 2.])          {"value": array([1., 2.])}               one row, a list column
    {"mean": 3, "max": 9}    {"mean": 3, "max": 9}                    one row
    [row, row, row]          any of the above, each                   any number of rows, also none
    structured array         one row per entry                        any number of rows
    pandas.DataFrame         one row per row                          any number of rows
    None                                                              no row

An operator that takes batches returns a list with one of these per patch, or arrays (also a
dictionary of arrays, a structured array, a DataFrame) whose first axis is the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from geopatch_dask.aggregation.column import Column, Misfit, type_of
from geopatch_dask.errors import OperatorError

__all__ = ["VALUE", "Row", "fitted", "inferred", "rows_of", "slot_of"]

Row = dict[str, Any]

#: Name of the column of operators that return bare values.
VALUE = "value"


def rows_of(result: Any, what: str) -> tuple[list[Row], bool]:
    """The rows of one patch, and whether their number is free.

    Parameters
    ----------
    result
        Whatever the operator returned.
    what : str
        Names patch and output in messages.

    Raises
    ------
    OperatorError
        For results that are no rows.
    """
    if result is None:
        return [], False
    result = _records(result)
    if isinstance(result, list):
        return [_row(element, what) for element in result], True
    if isinstance(result, np.ndarray) and result.dtype.names and result.ndim:
        if result.ndim > 1:
            raise OperatorError(
                f"{what} is a structured array of shape {result.shape}: return one entry per row"
            )
        return [_row(entry, what) for entry in result], True
    return [_row(result, what)], False


def slot_of(result: Any, slot: int, size: int, name: str) -> Any:
    """What an operator that takes batches returned for one patch of its batch.

    Raises
    ------
    OperatorError
        When the batch is not its first axis.
    """
    result = _records(result)
    if isinstance(result, Mapping):
        return {
            key: slot_of(value, slot, size, f"{name}, {key!r}") for key, value in result.items()
        }
    held = result if isinstance(result, list | tuple) else np.asarray(result)
    length = len(held) if isinstance(held, list | tuple) or held.ndim else 0
    if length != size:
        raise OperatorError(
            f"operator {name} got a batch of {size} and returned {length or 'no'} entries; return "
            "one per patch: a list of rows, or arrays with the batch axis first"
        )
    return held[slot]


def inferred(rows: Iterable[tuple[str, Row]], what: str) -> tuple[Column, ...]:
    """Columns and types of the first row; of later ones where that holds None.

    Parameters
    ----------
    rows : iterable of (where, row)
    what : str
        Names the output in messages.

    Raises
    ------
    OperatorError
        For values that no column can hold, and for columns without any value.
    """
    names: tuple[str, ...] | None = None
    types: dict[str, str] = {}
    for where, row in rows:
        names = tuple(row) if names is None else names
        if set(row) != set(names):
            raise OperatorError(f"{where}: {_difference(row, names)}")
        for name, value in row.items():
            if name not in types and (found := _type_of(name, value, where)) is not None:
                types[name] = found
        if len(types) == len(names):
            break
    unknown = [name for name in names or () if name not in types]
    if unknown:
        raise OperatorError(
            f"{what}: column {unknown[0]!r} is None in every row that was tried, so its type is "
            "unknown; give ByIndex(schema={...})"
        )
    return tuple(Column(name, types[name]) for name in names or ())


def fitted(row: Row, columns: Iterable[Column], where: str, rounding: bool) -> Row:
    """A row as the columns hold it, in their order.

    Raises
    ------
    OperatorError
        Naming column, patch and both types.
    """
    held: Row = {}
    for column in columns:
        if column.name not in row:
            raise OperatorError(f"{where}: {_difference(row, tuple(c.name for c in columns))}")
        try:
            held[column.name] = column.fit(row[column.name], rounding)
        except Misfit as found:
            raise OperatorError(
                f"{where}: column {column.name!r} is {column.type}, got {found}; let the operator "
                "return one type always, or give ByIndex(schema={...}) with one that holds all"
            ) from None
    if len(row) != len(held):
        raise OperatorError(f"{where}: {_difference(row, tuple(held))}")
    return held


def _records(result: Any) -> Any:
    """A DataFrame as a structured array; anything else as it is."""
    if hasattr(result, "to_records") and hasattr(result, "columns"):
        return np.asarray(result.to_records(index=False))
    return result


def _row(element: Any, what: str) -> Row:
    if isinstance(element, Mapping):
        wrong = [key for key in element if not isinstance(key, str) or not key]
        if wrong:
            raise OperatorError(f"{what} has a column {wrong[0]!r}: columns are named by text")
        return dict(element)
    names = getattr(getattr(element, "dtype", None), "names", None)
    if names:
        return {name: element[name] for name in names}
    if isinstance(element, tuple | set):
        raise OperatorError(
            f"{what} is a {type(element).__name__}: return a dict (one row), or a list (of rows)"
        )
    return {VALUE: element}


def _type_of(name: str, value: Any, where: str) -> str | None:
    try:
        return type_of(value)
    except Misfit as found:
        raise OperatorError(
            f"{where}: column {name!r} is {found}; rows hold numbers, text, bytes, times, and 1-D "
            "arrays of these"
        ) from None


def _difference(row: Row, names: tuple[str, ...]) -> str:
    missing = [name for name in names if name not in row]
    if missing:
        return f"no column {missing[0]!r}; every row has {', '.join(names)} (None is a null)"
    extra = [name for name in row if name not in names]
    return f"unknown column {extra[0]!r}; every row has {', '.join(names)}"
