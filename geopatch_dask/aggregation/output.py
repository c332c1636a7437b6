"""What is written: dtype, fill value, name; and the one rounding at the end.

Accumulators are float64 or int64 everywhere.  :func:`settle` is the only place where their values
become the output dtype: round half to even and saturate for integers, one rounding for floats, the
fill value where a cell has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.config import Configurable

__all__ = ["Output", "default_fill", "fill_for", "saturated", "settle"]


@dataclass(frozen=True)
class Output(Configurable):
    """How an operator's result is stored; every part has a default.

    Parameters
    ----------
    name : str
        Name of the array in the target.
    dtype : str or None
        None: what the aggregation makes of the operator's dtype (see
        :meth:`~geopatch_dask.aggregation.Aggregation.result_dtype`).
    fill_value : float, int or None
        What cells without an answer hold.  None: NaN for floats, the largest value of an unsigned
        and the smallest of a signed integer type.
    missing : float, int or None
        A value by which the operator says "no answer", besides NaN; such cells are left out of
        every aggregation.
    dims : tuple of str or None
        Names of the leading axes of the operator's result.  None: the riding axes of the field
        where their lengths agree, else ``band`` (one axis) or ``axis_0``, ``axis_1`` ...
    attrs : mapping
        CF attributes of the array (``long_name``, ``units``), as JSON.
    scale : int, or "n/d"
        Cells of the output per cell of the field along every patch axis: 4 for a super-resolution
        operator, ``"1/2"`` (or 0.5) for one that halves.
    returns : str or None
        What an operator that no plan tries (``Operator(trial=False)``) returns: its dtype, after
        the lengths of its leading axes where it has some, ``"float32"`` or ``"(5,)float32"``.

    Raises
    ------
    OptionError
        For an unusable dtype, or a fill value the dtype cannot hold.
    """

    name: str = "data"
    dtype: str | None = None
    fill_value: float | int | None = None
    missing: float | int | None = None
    dims: tuple[str, ...] | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    scale: int | float | str = 1
    returns: str | None = None

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise OptionError(f"scale must be positive, got {self.scale!r}")
        if not self.name or self.name.startswith((".", "__")) or "/" in self.name:
            raise OptionError(f"output name {self.name!r} cannot be the name of an array")
        for name in ("fill_value", "missing"):
            if isinstance(getattr(self, name), str):  # JSON says "nan"
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.dims is not None:
            object.__setattr__(self, "dims", tuple(self.dims))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(checked_dtype(self.dtype)))
            fill_for(np.dtype(self.dtype), self.fill_value)
        if self.returns is not None:
            _ = self.declared

    @property
    def factor(self) -> Fraction:
        """The scale as an exact fraction."""
        try:
            return Fraction(self.scale).limit_denominator(1 << 16)
        except (ValueError, ZeroDivisionError, OverflowError, TypeError):
            raise OptionError(f"scale {self.scale!r} is no fraction; write 4 or '1/2'") from None

    @property
    def declared(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Leading axes and dtype that ``returns`` says; those of one float64 where it is None."""
        try:
            found = np.dtype(self.returns)
        except (TypeError, ValueError, SyntaxError):
            raise OptionError(
                f"returns {self.returns!r} is no dtype; write 'float32', or '(5,)float32' with "
                "the lengths of leading axes"
            ) from None
        return found.shape, checked_dtype(found.base)


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """A numeric dtype the engine can store: integers, floats, bool."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise OptionError(f"output dtype {dtype!r} is no numpy dtype") from None
    if found.kind not in "iufb":
        raise OptionError(f"output dtype {found} is not a real number; use integers or floats")
    return found


def default_fill(dtype: np.dtype[Any]) -> float | int:
    """NaN for floats, the largest unsigned or the smallest signed integer."""
    if dtype.kind == "f":
        return float("nan")
    if dtype.kind == "b":
        return 0
    info = np.iinfo(dtype)
    return int(info.max if dtype.kind == "u" else info.min)


def fill_for(dtype: np.dtype[Any], wanted: float | int | None) -> float | int:
    """The fill value for a dtype: the wanted one, checked, or the default.

    Raises
    ------
    OptionError
        When the dtype cannot hold it (NaN in an integer array, 300 in uint8).
    """
    if wanted is None:
        return default_fill(dtype)
    if dtype.kind == "f":
        return float(wanted)
    held = False
    if float(wanted).is_integer():
        info = np.iinfo(dtype) if dtype.kind in "iu" else np.iinfo(np.uint8)
        held = int(info.min) <= int(wanted) <= int(info.max)
    if not held:
        raise OptionError(
            f"fill_value {wanted!r} does not fit in {dtype}; give one that does, or a float dtype"
        )
    return int(wanted)


def settle(
    values: npt.NDArray[Any],
    answered: npt.NDArray[np.bool_] | None,
    dtype: np.dtype[Any],
    fill: float | int,
) -> tuple[npt.NDArray[Any], int]:
    """Round accumulated values to the output dtype, once, and fill the cells without an answer.

    Parameters
    ----------
    values : ndarray of float64, int64, uint64 or bool
    answered : ndarray of bool, broadcastable to ``values.shape``, or None
        None when every cell has an answer.  A NaN (from ``inf - inf``) is no answer either.
    dtype, fill
        Of the output.

    Returns
    -------
    array : ndarray of ``dtype``, C-contiguous, shape ``values.shape``
    filled : int
        How many cells hold the fill value for want of an answer.
    """
    if values.dtype.kind == "f" and values.size and np.isnan(values.min()):
        real = ~np.isnan(values)
        answered = real if answered is None else answered & real
    if dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            out = np.array(values, dtype, order="C")
    else:
        out = saturated(values, answered, dtype)
    if answered is None:
        return out, 0
    mask = np.broadcast_to(answered, out.shape)
    np.copyto(out, np.asarray(fill).astype(dtype), where=~mask)
    return out, int(mask.size - np.count_nonzero(mask))


def saturated(
    values: npt.NDArray[Any], answered: npt.NDArray[np.bool_] | None, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Values as integers: to the nearest, ties to even, and never beyond what the dtype holds."""
    if dtype.kind == "b":
        return np.ascontiguousarray(values != 0)
    info = np.iinfo(dtype)
    if values.dtype.kind == "f":
        if answered is not None:
            values = np.where(answered, values, 0.0)
        low, high = float(info.min), float(info.max)
        if int(high) > info.max:  # the largest int64 is not a float64
            high = float(np.nextafter(high, 0))
        return np.ascontiguousarray(np.clip(np.rint(values), low, high).astype(dtype))
    if values.dtype.kind == "b":
        return np.ascontiguousarray(values.astype(dtype))
    held = np.iinfo(values.dtype)
    low_i, high_i = max(int(info.min), int(held.min)), min(int(info.max), int(held.max))
    return np.ascontiguousarray(np.clip(values, low_i, high_i).astype(dtype))
