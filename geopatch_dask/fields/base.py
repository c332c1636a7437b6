"""What a field is: configuration that can be opened anywhere and read box by box.

A field never travels with its data or its file handles.  It says what it lives on
(:attr:`Field.domain`), what :meth:`Field.read` will return, and what identifies its values
(:meth:`Field.identity`).  Missing cells, whatever marked them in the source (NaN, a nodata value,
a mask band, a ``mask=`` field), come out of :meth:`Field.read` as NaN; an integer source that can
have missing cells is therefore promoted to the smallest float type that holds it exactly
(8- and 16-bit integers to float32, wider ones to float64).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.config import load_object
from geopatch_dask.patch.domain import GridDomain

__all__ = ["Field", "check_box", "field_from_config", "promoted"]

#: Every subclass of :class:`Field` by its ``kind``.
_KINDS: dict[str, type[Field]] = {}


class Field(ABC):
    """A lazy input on a domain.

    Subclasses are cheap to construct, pickle as configuration, and open their source on first use
    in each process (and thread, where the reader is not thread-safe).
    """

    #: Name under which :func:`field_from_config` finds the class again: by default the class name
    #: for a field of this package, ``"module:Class"`` (importable anywhere) for a user's own.
    kind: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" not in cls.__dict__:
            ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
            cls.kind = cls.__name__ if ours else f"{cls.__module__}:{cls.__qualname__}"
        _KINDS[cls.kind] = cls

    def __repr__(self) -> str:
        return f"<{self.label}>"

    @property
    @abstractmethod
    def domain(self) -> GridDomain:
        """Axes, labels and georeference (read from the source once, then cached)."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Dtype of what :meth:`read` returns, after promotion for missing cells."""

    @property
    @abstractmethod
    def may_miss(self) -> bool:
        """Whether :meth:`read` may return NaN."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[int, ...]:
        """Storage block (chunk) shape along every axis of the domain, cells.

        Reads that start and end at multiples of it decode every block once.
        """

    @property
    def nodata(self) -> float | int | None:
        """The value that marks missing cells in the source, if it has one."""
        return None

    @property
    def label(self) -> str:
        """A short name for plots and reports; never holds a secret."""
        return type(self).__name__

    @property
    def secrets(self) -> Mapping[str, Any]:
        """Options in which credentials are named (``"env:NAME"``), those of a mask among them.

        Their values are taken out of every message, record and report.  Unless a field says
        otherwise, its configuration.
        """
        try:
            return self.get_config()
        except OptionError:  # in memory
            return {}

    @abstractmethod
    def read(self, box: Box) -> npt.NDArray[Any]:
        """The cells of ``box`` as a C-contiguous array of shape ``box.shape``, dtype :attr:`dtype`.

        Parameters
        ----------
        box : Box
            Over *all* axes of the domain, inside it.

        Raises
        ------
        FieldError
            When the source cannot be read; nothing is ever filled in silently.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the values, as JSON: URI, size, mtime or ETag, variable, bands, mask ..."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Constructor arguments as JSON; raises :class:`OptionError` for in-memory data."""


def field_from_config(config: Mapping[str, Any]) -> Field:
    """The field that ``{"kind": field.kind, **field.get_config()}`` describes; opens nothing.

    Parameters
    ----------
    config : mapping
        ``kind`` and the arguments of that class, as plain JSON.

    Raises
    ------
    OptionError
        For an unknown kind, or arguments the class does not take.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    found: Any = _KINDS.get(str(kind))
    if found is None and isinstance(kind, str) and ":" in kind:
        found = load_object(kind)
    if not isinstance(found, type) or not issubclass(found, Field):
        raise OptionError(
            f"unknown kind of field {kind!r}; known: {', '.join(sorted(_KINDS))}, or 'module:Class'"
        )
    try:
        return found(**options)
    except TypeError as error:
        raise OptionError(f"{kind}: {error}") from None


def check_box(box: Box, shape: tuple[int, ...]) -> None:
    """Refuse a box that is not over all axes of ``shape`` (cells), or not inside it.

    Raises
    ------
    OptionError
        With the box and the shape.

    Examples
    --------
    >>> check_box(Box((0, 0), (4, 4)), (4, 4))
    """
    if box.ndim != len(shape):
        raise OptionError(f"a box of {box.ndim} axes cannot cut a field of shape {shape}")
    if not Box.of_shape(shape).contains(box):
        raise OptionError(
            f"box {box.start} to {box.stop} leaves the field of shape {shape}; "
            "clip it with Box.intersect first"
        )


def promoted(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The smallest float dtype that holds every value of ``dtype`` and NaN.

    >>> promoted(np.dtype("uint8")), promoted(np.dtype("int32")), promoted(np.dtype("float32"))
    (dtype('float32'), dtype('float64'), dtype('float32'))
    """
    if dtype.kind in "fc":
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
