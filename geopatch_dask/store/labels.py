"""Labels of axes as Zarr variables that xarray decodes to the very same labels.

Dates are encoded by xarray's own CF encoder, text becomes the Zarr type ``string``, numbers are
stored as they are.  Nothing is masked or scaled, so a label that goes in comes out, to the bit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.domain import Coordinate

if TYPE_CHECKING:  # xarray brings pandas: half a second and 50 MB that rasters do without
    import xarray as xr

__all__ = ["digest", "encoded", "encoded_fill", "jsonable"]

#: Attributes that say how values are stored; the encoder sets those that are needed.
_STORAGE = frozenset({"_FillValue", "add_offset", "coordinates", "missing_value", "scale_factor"})
_OF_TIME = frozenset({"calendar", "dtype", "units"})
#: Units of time that xarray has, as numpy and as CF spell them.
_SINCE = {"ns": "nanoseconds", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}


def encoded(dim: str, label: Coordinate) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Values and attributes to store for the labels of axis ``dim``.

    Returns
    -------
    values : ndarray, shape (n,)
        Numbers, or Python strings with dtype object.
    attrs : dict
        Plain JSON.

    Raises
    ------
    OptionError
        For labels that Zarr version 3 has no type for.

    Examples
    --------
    >>> values, attrs = encoded("t", Coordinate(np.array(["2001-01-03"], "datetime64[ns]")))
    >>> values, attrs["units"]
    (array([0]), 'days since 2001-01-03 00:00:00')
    """
    values = label.values
    if values.dtype.kind in "UT":
        values = values.astype(object)
    dropped = _STORAGE | _OF_TIME if _is_time(values) else _STORAGE
    attrs = {str(k): v for k, v in label.attrs.items() if k not in dropped}
    if values.dtype.kind not in "biufcmM" and not _is_text(values):
        variable = _encode_objects(dim, values, attrs)
    else:
        variable = _encode(dim, values, attrs)
    return np.asarray(variable.values), jsonable(variable.attrs)


def digest(label: Coordinate) -> str:
    """Hex SHA-256 of labels and their attributes."""
    values = label.values
    if values.dtype.kind in "OTU":
        raw = "\0".join(map(str, values)).encode()
    else:
        raw = np.ascontiguousarray(values).tobytes()
    seed = f"{values.dtype.kind}{values.dtype.itemsize}{len(values)}{jsonable(label.attrs)}"
    return hashlib.sha256(seed.encode() + raw).hexdigest()


def encoded_fill(value: np.generic) -> Any:
    """The ``_FillValue`` attribute that makes xarray show ``value`` as missing.

    Integers stand for themselves; floats are base64 of their eight bytes, as xarray writes them
    into Zarr, where JSON has no NaN.

    Examples
    --------
    >>> encoded_fill(np.uint8(255)), encoded_fill(np.float32(-9999))
    (255, 'AAAAAICHw8A=')
    """
    if value.dtype.kind in "iu":
        return int(value)
    if value.dtype.kind == "c":
        return [encoded_fill(np.float64(part)) for part in (value.real, value.imag)]
    return base64.b64encode(struct.pack("<d", float(value))).decode()


def jsonable(value: Any) -> Any:
    """Attributes as plain JSON: numpy values become Python's, NaN and infinities become text.

    Examples
    --------
    >>> jsonable({"valid_range": np.array([0.0, np.inf])})
    {'valid_range': [0.0, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _is_text(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind == "O" and all(isinstance(v, str) for v in values)


def _is_time(values: npt.NDArray[Any]) -> bool:
    """Whether the encoder will write units of time: dates, durations, or calendar objects."""
    return values.dtype.kind in "mM" or (
        values.dtype.kind == "O" and len(values) > 0 and hasattr(values[0], "calendar")
    )


def _encode(dim: str, values: npt.NDArray[Any], attrs: dict[str, Any]) -> xr.Variable:
    import xarray as xr
    from xarray.conventions import encode_cf_variable

    if values.dtype.kind == "M":
        return _encode_dates(dim, values, attrs)
    variable = xr.Variable((dim,), values, attrs, encoding={"_FillValue": None})
    return encode_cf_variable(variable, name=dim)


def _encode_dates(dim: str, values: npt.NDArray[Any], attrs: dict[str, Any]) -> xr.Variable:
    """Dates as xarray encodes them, if they come back; else as their distance from 1970.

    xarray chooses readable units ("days since ..."), but dates that are further apart than their
    type can say overflow on the way, on some versions without a word.
    """
    import xarray as xr
    from xarray.conventions import decode_cf_variable, encode_cf_variable

    def as_xarray_does() -> xr.Variable:
        variable = xr.Variable((dim,), values, attrs, encoding={"_FillValue": None})
        return encode_cf_variable(variable, name=dim)

    def as_they_are() -> xr.Variable:
        units = f"{_SINCE[np.datetime_data(values.dtype)[0]]} since 1970-01-01"
        own = {**attrs, "units": units, "calendar": "proleptic_gregorian"}
        return xr.Variable((dim,), values.view(np.int64), own)

    for encode in (as_xarray_does, as_they_are):
        with contextlib.suppress(
            ArithmeticError, AttributeError, ImportError, LookupError, ValueError
        ):
            variable = encode()
            back = decode_cf_variable(dim, variable.copy()).values
            if back.dtype.kind == "M" and back.astype(values.dtype).tobytes() == values.tobytes():
                return variable
    raise OptionError(
        f"the dates along axis {dim!r} do not survive being written and read again (xarray reads "
        "nanoseconds, years 1678 to 2262): label the axis with numbers"
    )


def _encode_objects(dim: str, values: npt.NDArray[Any], attrs: dict[str, Any]) -> xr.Variable:
    """Dates of other calendars become numbers; anything else is refused."""
    import xarray as xr
    from xarray.conventions import encode_cf_variable

    try:
        variable = encode_cf_variable(xr.Variable((dim,), values, attrs), name=dim)
    except (TypeError, ValueError, ImportError):
        variable = None
    if variable is None or variable.dtype.kind not in "biuf":
        raise OptionError(
            f"labels of axis {dim!r} have dtype {values.dtype}, which Zarr version 3 has no type "
            "for: use numbers, dates or text (bytes: decode them first)"
        )
    return variable
