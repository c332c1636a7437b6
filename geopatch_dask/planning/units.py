"""Bytes and seconds as people write and read them."""

from __future__ import annotations

import re

from geopatch_dask.errors import OptionError

__all__ = ["bytes_text", "parse_bytes", "parse_seconds", "seconds_text"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{u}i": 2 ** (10 * i) for i, u in enumerate("kmgt", start=1)}
_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*")


def parse_bytes(value: int | float | str) -> int:
    """A number of bytes from ``4294967296``, ``"4 GiB"``, ``"500MB"``.

    Raises
    ------
    OptionError
        When it is neither, or not positive.

    >>> parse_bytes("4 GiB"), parse_bytes("1.5kB"), parse_bytes(7)
    (4294967296, 1500, 7)
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        number, unit = float(value), ""
    else:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", str(value), re.IGNORECASE)
        if not match or match[1].count(".") > 1 or match[1] == ".":
            raise OptionError(f"{value!r} is no number of bytes; write 4294967296 or '4 GiB'")
        number, unit = float(match[1]), match[2].lower()
        if unit not in _UNITS:
            raise OptionError(f"{value!r} is no number of bytes; write 4294967296 or '4 GiB'")
    found = number * _UNITS[unit]
    if not 0 < found < 2**63:
        raise OptionError(f"a number of bytes must be positive, got {value!r}")
    return int(found)


def parse_seconds(value: float | str, zero: bool = False) -> float:
    """Seconds from a number or from text with a unit.

    Parameters
    ----------
    value : float or str
    zero : bool
        Whether no time is a time.

    Raises
    ------
    OptionError

    Examples
    --------
    >>> parse_seconds("10 min"), parse_seconds(1.5)
    (600.0, 1.5)
    """
    found = _TIME.fullmatch(str(value).lower())
    if found is None or found[2] not in _SECONDS or isinstance(value, bool):
        raise OptionError(f"{value!r} is no time: give seconds, or text as in '90 s', '10 min'")
    if not zero and float(found[1]) == 0:
        raise OptionError(f"{value!r} is no time: give seconds, or text as in '90 s', '10 min'")
    return float(found[1]) * _SECONDS[found[2]]


def bytes_text(n: float) -> str:
    """Bytes for people.

    >>> bytes_text(1536), bytes_text(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return ""


def seconds_text(seconds: float) -> str:
    """Seconds for people.

    >>> seconds_text(3.21), seconds_text(75), seconds_text(7300)
    ('3.2 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
