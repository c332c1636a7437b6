"""Rasters as rasterio opens them: GeoTIFF, COG, VRT, any GDAL path or URL.

The file is opened and described once per thread (:mod:`geopatch_dask.fields.header` says how its
cells and masks are read) and read window by window; the field itself is only configuration.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.env import get_gdal_config, set_gdal_config

from geopatch_dask.credentials import ENVIRONMENT, holds_secret, plain_options
from geopatch_dask.errors import FieldError, GeopatchError, OptionError
from geopatch_dask.fields.base import Field, check_box, promoted
from geopatch_dask.fields.georef import crs_wkt
from geopatch_dask.fields.handles import Handles
from geopatch_dask.fields.header import GDAL_CACHE, Header, describe
from geopatch_dask.fields.masks import Mask
from geopatch_dask.fields.remote import filesystem, gdal, reader_options
from geopatch_dask.fields.source import (
    birth,
    failure,
    file_set_digest,
    is_remote,
    local_path,
    normal_uri,
    short,
    stamp,
    stat_identity,
    traceable,
)
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Coordinate, RasterDomain
from geopatch_dask.retries import call

__all__ = ["GDAL_CACHE", "RasterField"]


class RasterField(Field):
    """A raster file.

    Parameters
    ----------
    path : str or path-like
        Whatever rasterio takes: a GeoTIFF, COG or VRT, ``/vsi...``, ``s3://...``, ``https://...``.
    bands : int, sequence of int, or None
        Band numbers from 1.  One number gives a field over ``("y", "x")``, a sequence one over
        ``("band", "y", "x")``.  Default: all, but for the alpha band where ``masked``; a single
        one gives a 2-D field.
    mask : Field, path, or None
        A field on the same grid: cells where it is 0, False or NaN are missing too.
    masked : bool
        Whether nodata, mask bands and alpha become NaN (integers are promoted where the file can
        have missing cells).  False gives the stored values.
    options : mapping, optional
        Keyword arguments of :func:`rasterio.open`, e.g. ``{"OVERVIEW_LEVEL": 0}``.  Scale and
        offset of a band are never applied.
    storage_options : mapping, optional
        Where a URL's server is and who asks, as fsspec takes them; credentials only as
        ``"env:NAME"``, read where the file is read.  With GDAL for ``s3://`` only.
    reader : "gdal" or "fsspec"
        What moves the bytes: GDAL's own ``/vsis3/`` and kin, which is faster, or any filesystem of
        fsspec.

    Raises
    ------
    OptionError
        For arguments that make no sense whatever the file holds.
    FieldError
        On first use: no such file, no such band, not a raster.  Its ``transient`` says whether a
        remote source was merely away, for longer than a few repetitions could bridge.

    Notes
    -----
    Each thread opens the file for itself, on first use, and opens it again when size or time of a
    local file change.  Credentials come from the environment; a URL that carries some opens, but
    has no :meth:`get_config`.
    """

    def __init__(
        self,
        path: Any,
        *,
        bands: int | Sequence[int] | None = None,
        mask: Any = None,
        masked: bool = True,
        options: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        reader: str = "gdal",
    ) -> None:
        if mask is not None and not masked:
            raise OptionError("masked=False returns stored values, mask= blanks some; choose one")
        self._uri = normal_uri(path)
        self._born = birth(self._uri)
        self._bands = _band_numbers(bands)
        self._masked = bool(masked)
        self._mask = Mask.of(mask)
        self._options = plain_options(options)
        self._storage = reader_options(self._uri, reader, storage_options)
        self._reader = reader

    def __getstate__(self) -> dict[str, Any]:
        # what was read from the file is read again where the field arrives
        return {key: value for key, value in vars(self).items() if key not in _CACHED}

    @property
    def label(self) -> str:
        return f"RasterField({short(self._uri)})"

    @property
    def dtype(self) -> np.dtype[Any]:
        facts = self._facts
        return promoted(facts.dtype) if self.may_miss else facts.dtype

    @property
    def may_miss(self) -> bool:
        facts = self._facts
        return self._mask is not None or facts.dtype.kind in "fc" or facts.marked

    @property
    def secrets(self) -> dict[str, Any]:
        mask = {} if self._mask is None else self._mask.field.secrets
        return {"options": self._options, "storage_options": self._storage, "mask": mask}

    @property
    def nodata(self) -> float | int | None:
        values = set(self._facts.nodata)
        return values.pop() if len(values) == 1 else None

    @property
    def blocks(self) -> tuple[int, ...]:
        facts = self._facts
        return facts.block if facts.flat else (1, *facts.block)

    @cached_property
    def domain(self) -> RasterDomain:
        """Axes ``("y", "x")`` or ``("band", "y", "x")``, CRS as WKT2, transform."""
        return self._place(self._facts)

    def _place(self, facts: Header) -> RasterDomain:
        crs = crs_wkt(call(self._open).dataset.crs)
        if facts.flat:
            return RasterDomain(("y", "x"), facts.size, crs=crs, transform=facts.transform)
        attrs: dict[str, Any] = {"long_name": "band number"}
        if any(facts.descriptions):
            attrs["descriptions"] = [text or "" for text in facts.descriptions]
        band = Coordinate(np.array(facts.bands, dtype=np.int64), attrs)
        return RasterDomain(("band", "y", "x"), facts.shape, {"band": band}, crs, facts.transform)

    def read(self, box: Box) -> npt.NDArray[Any]:
        facts = self._facts
        check_box(box, facts.shape)
        values = np.empty(box.shape, self.dtype)
        if not box:
            return values
        call(lambda: self._fill(box, values))
        if self._mask is not None:
            self._mask.apply(values, box)
        return values

    def _fill(self, box: Box, values: npt.NDArray[Any]) -> None:
        """Read the cells of a box into ``values``, once."""
        opened, facts = self._open(), self._facts
        if opened.facts != facts:
            raise failure(
                self._uri,
                f"has changed from {facts.summary} to {opened.facts.summary}",
                "make the field (and the plan) again",
            )
        try:
            with self._configured():
                facts.read(opened.dataset, box, values)
        except MemoryError:
            raise
        except Exception as error:  # GDAL's own errors are not all RasterioErrors
            _DATASETS.drop(self._key)  # so that a retry starts from the file
            raise self._failure(
                f"cells {box.start} to {box.stop} cannot be read",
                "the file is incomplete or damaged, or its server failed; copy it again, or retry",
                error,
            ) from traceable(error, self._uri, self._storage)

    def identity(self) -> dict[str, Any]:
        """URI, size, time (or ETag), bands, options, nodata, mask; side files by their digest."""
        facts = self._facts
        found = {"kind": self.kind, **stat_identity(self._uri, self._storage)}
        side = None
        if self._reader == "gdal":  # fsspec opens one file, under a name of the moment
            with self._configured():
                side = file_set_digest(self._uri, call(self._open).dataset.files)
        return found | {
            "bands": list(facts.bands),
            "flat": facts.flat,
            "masked": self._masked,
            "nodata": list(facts.nodata),
            "options": self._options,
            "files": side,
            "mask": None if self._mask is None else self._mask.identity(),
        }

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments as JSON.

        Raises
        ------
        OptionError
            When the URL carries credentials: a plan is stored beside its target.
        """
        if holds_secret(self._uri):
            raise OptionError(
                f"{self.label}: its URL carries credentials, which are never written into a plan; "
                f"put them in {ENVIRONMENT}, or pass field= again"
            )
        return {
            "path": self._uri,
            "bands": list(self._bands) if isinstance(self._bands, tuple) else self._bands,
            "mask": None if self._mask is None else self._mask.get_config(),
            "masked": self._masked,
            "options": self._options,
            "storage_options": self._storage,
            "reader": self._reader,
        }

    @property
    def _key(self) -> tuple[Any, ...]:
        return (
            self._born,
            self._uri,
            self._bands,
            self._masked,
            repr(sorted(self._options.items())),
            repr(self._storage),
            self._reader,
        )

    @cached_property
    def _facts(self) -> Header:
        facts = call(self._open).facts
        if self._mask is not None:
            self._mask.check(self._place(facts), self.label)
        return facts

    def _open(self) -> _Opened:
        return _DATASETS.get(self._key, stamp(self._uri), self._opened)

    def _opened(self) -> _Opened:
        if (get_gdal_config("GDAL_CACHEMAX") or 0) > GDAL_CACHE:
            # rasterio passes this one on as bytes, to the whole process (not as a config option)
            set_gdal_config("GDAL_CACHEMAX", GDAL_CACHE)
        path = local_path(self._uri)
        if path is not None and path.is_dir() and (path / "zarr.json").exists():
            raise failure(self._uri, "is a Zarr store", "open it with XarrayField")
        try:
            with self._configured():
                dataset = self._dataset()
        except GeopatchError:
            raise
        except Exception as error:  # GDAL's own errors are not all RasterioErrors
            raise self._failure(
                "cannot be opened as a raster", "check the path, the format and the rights", error
            ) from traceable(error, self._uri, self._storage)
        try:
            with self._configured():
                facts = describe(dataset, self._uri, self._bands, self._masked)
            return _Opened(dataset, facts)
        except BaseException:
            dataset.close()
            raise

    def _dataset(self) -> Any:
        if self._reader == "gdal":
            return rasterio.open(self._uri, sharing=False, **self._options)
        fs, name = filesystem(self._uri, self._storage, windows=True)
        fs.info(name)  # says what is wrong; GDAL would only say that it is no raster
        return rasterio.open(name, sharing=False, opener=fs, **self._options)

    def _configured(self) -> AbstractContextManager[None]:
        """What GDAL has to know; its remarks go to the logger of rasterio, not to stderr."""
        if is_remote(self._uri) and self._reader == "gdal":
            return gdal(self._uri, self._storage)
        env: AbstractContextManager[None] = rasterio.Env()
        return env

    def _failure(self, what: str, remedy: str, error: Exception) -> FieldError:
        """A failure of opening or reading.

        GDAL often says no more than that a block has too few bytes, or that a file begins like no
        raster.  Of a file on a disk that is damage; over a network it is as likely an answer that
        was cut short.
        """
        made = failure(self._uri, what, remedy, error, self._storage)
        if made.kind == "failed" and is_remote(self._uri):
            made.transient = True
        return made


#: What :class:`RasterField` keeps in its instance and does not pickle.
_CACHED = ("domain", "_facts")


@dataclass(frozen=True)
class _Opened:
    dataset: Any
    facts: Header


def _close(opened: _Opened) -> None:
    # A file of fsspec may not close once its event loop has gone; nothing was written to it.
    with contextlib.suppress(Exception), rasterio.Env():
        opened.dataset.close()


_DATASETS: Handles[_Opened] = Handles(_close)


def _band_numbers(bands: Any) -> int | tuple[int, ...] | None:
    """``bands=`` checked as far as it can be without the file."""
    if bands is None:
        return None
    single = isinstance(bands, int | np.integer)
    try:
        numbers = tuple(operator.index(b) for b in ((bands,) if single else bands))
    except TypeError:
        numbers = ()
    if isinstance(bands, bool | str) or not numbers or min(numbers) < 1:
        raise OptionError(
            f"bands= takes one band number or a sequence of them, counted from 1, not {bands!r}"
        )
    return numbers[0] if single else numbers
