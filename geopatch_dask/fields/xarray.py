"""Grids as xarray opens them: a DataArray, a Zarr store, a netCDF (or GRIB) file.

From a path, the field is configuration: each thread of each process opens the store for itself,
without Dask arrays, and reads slices.  From a DataArray, the field *is* that object: it pickles
with what the DataArray pickles with (its values when in memory, a reference when lazily backed by
a file), and has no configuration.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geopatch_dask.credentials import ENVIRONMENT, holds_secret, plain_options
from geopatch_dask.errors import FieldError, OptionError
from geopatch_dask.fields.base import Field, check_box, promoted
from geopatch_dask.fields.cf import block_shape, candidates, domain_of, fill_values
from geopatch_dask.fields.georef import crs_wkt
from geopatch_dask.fields.handles import Handles
from geopatch_dask.fields.masks import Mask, blank, blank_nodata, check_numeric, nodata_of
from geopatch_dask.fields.source import (
    birth,
    failure,
    normal_uri,
    sha256_slabs,
    short,
    shown,
    stamp,
    stat_identity,
    traceable,
)
from geopatch_dask.fields.stores import is_zarr, open_store, zarr_identity
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import GridDomain
from geopatch_dask.retries import call

if TYPE_CHECKING:  # xarray brings pandas: half a second and 50 MB that rasters do without
    import xarray as xr

__all__ = ["XarrayField"]


class XarrayField(Field):
    """A labelled grid: a DataArray, or one variable of a store that xarray opens.

    Parameters
    ----------
    source : DataArray, Dataset, or str or path-like
        An object in memory or lazily backed, or the path or URL of a Zarr store or netCDF file.
    variable : str, optional
        Which variable of a store or Dataset; not needed where there is only one.
    crs : anything pyproj or rasterio takes, optional
        Overrides the CRS of the source (which is read from its grid mapping).
    mask : Field, path, or None
        A field on the same (trailing) axes: cells where it is 0, False or NaN are missing too.
    engine, group : str, optional
        As in :func:`xarray.open_dataset`; guessed where not given.
    options : mapping, optional
        Further arguments of :func:`xarray.open_dataset`, as plain JSON.  In ``storage_options``,
        credentials only as ``"env:NAME"``, read where the store is read.

    Raises
    ------
    OptionError
        For arguments that make no sense, or a DataArray that holds no numbers or no cells.
    FieldError
        On first use: no such store or variable, a reader that is not installed.

    Notes
    -----
    Missing cells are NaN: decoded by xarray, or equal to a ``_FillValue`` or ``missing_value``
    that is still an attribute (integers are promoted).  An integer variable without any keeps its
    dtype.  The domain is a raster when the last two axes are evenly spaced map axes with a CRS or
    a ``GeoTransform``; its labels are the source's own in any case.  :meth:`identity` of a
    DataArray reads all of it once; that of a path reads metadata only.
    """

    def __init__(
        self,
        source: Any,
        variable: str | None = None,
        *,
        crs: Any = None,
        mask: Any = None,
        engine: str | None = None,
        group: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._array: xr.DataArray | None = None
        self._uri, self._born = "", 0
        self._variable = variable
        self._crs = crs_wkt(crs)
        self._mask = Mask.of(mask)
        self._engine, self._group = engine, group
        self._options = plain_options(options)
        kind = in_xarray(source)
        if kind is None:
            self._uri = normal_uri(source)
            self._born = birth(self._uri)
            return
        if engine or group or options:
            raise OptionError(
                "engine=, group= and options= open a path; the source is open already"
            )
        if kind == "Dataset":
            self._array = _selected(source, variable, "the Dataset")
        elif variable is not None and variable != source.name:
            raise OptionError(f"the DataArray is {source.name!r}; variable= chooses from a Dataset")
        else:
            self._array = source
        check_numeric(self._array.dtype, f"variable {self._array.name!r}")
        _ = self._facts  # what is wrong with data in memory is said here

    def __getstate__(self) -> dict[str, Any]:
        # what was read from the store is read again where the field arrives
        return {key: value for key, value in vars(self).items() if key not in _CACHED}

    @property
    def label(self) -> str:
        if self._array is not None:
            name = self._array.name
            return f"XarrayField({'DataArray' if name is None else name})"
        return f"XarrayField({short(self._uri)}{f':{self._variable}' if self._variable else ''})"

    @property
    def dtype(self) -> np.dtype[Any]:
        return promoted(self._facts.dtype) if self.may_miss else self._facts.dtype

    @property
    def may_miss(self) -> bool:
        facts = self._facts
        return self._mask is not None or facts.dtype.kind in "fc" or bool(facts.nodata)

    @property
    def secrets(self) -> dict[str, Any]:
        mask = {} if self._mask is None else self._mask.field.secrets
        return {"options": self._options, "mask": mask}

    @property
    def nodata(self) -> float | int | None:
        return self._facts.marker

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._facts.block

    @cached_property
    def domain(self) -> GridDomain:
        """Axes and labels of the variable; a raster where it has map axes and says where."""
        array, mapping = call(self._open)
        return domain_of(array, self._crs, mapping)

    def read(self, box: Box) -> npt.NDArray[Any]:
        facts = self._facts
        check_box(box, facts.shape)
        if not box:
            return np.empty(box.shape, self.dtype)
        cut = call(lambda: self._cut(box))
        # a view of the source's own memory must not be blanked, nor handed out
        owned = self._array is None and cut.flags.owndata and cut.flags.writeable
        values = np.array(cut, dtype=self.dtype, order="C", copy=None if owned else True)
        for marker in facts.nodata:
            if facts.dtype.kind in "iu":  # before float64 rounds 64-bit integers
                blank(values, cut == marker)
            else:
                blank_nodata(values, marker)
        if self._mask is not None:
            self._mask.apply(values, box)
        return values

    def _cut(self, box: Box) -> npt.NDArray[Any]:
        """The cells of a box as xarray gives them."""
        array, _ = self._open()
        if self._array is None and (now := self._store().facts) != self._facts:
            raise self._failure(
                f"has changed from {self._facts.shape} {self._facts.dtype} to {now.shape} "
                f"{now.dtype} or in chunks or fill value",
                "make the field (and the plan) again",
            )
        try:
            return _loaded(array, box.slices())
        except MemoryError:
            raise
        except Exception as error:  # every codec and driver has its own
            _DATASETS.drop(self._key)
            raise self._failure(
                f"cells {box.start} to {box.stop} cannot be read",
                "the store is incomplete or damaged, or its server failed; copy it again, or retry",
                error,
            ) from traceable(error, self._uri, self._options)

    def identity(self) -> dict[str, Any]:
        """URI, size, time and variable; of a Zarr store its metadata and the sum of its files.

        Of a DataArray: SHA-256 of its values (all are read, once), axes and dtype.
        """
        facts = self._facts
        found: dict[str, Any] = {"kind": self.kind, "dtype": facts.dtype.name}
        if self._array is not None:
            found |= {"sha256": self._sha256, "dims": [str(d) for d in self._array.dims]}
        else:
            found |= self._stored_identity()
        return found | {
            "nodata": list(facts.nodata),
            "mask": None if self._mask is None else self._mask.identity(),
        }

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments as JSON.

        Raises
        ------
        OptionError
            For a DataArray, or a URL that carries credentials.
        """
        if self._array is not None:
            raise OptionError(
                f"{self.label}: a DataArray has no configuration; give XarrayField the path it "
                "came from (save it with to_zarr), or pass field= again"
            )
        if holds_secret(self._uri):
            raise OptionError(
                f"{self.label}: its URL carries credentials, which are never written into a plan; "
                f"put them in {ENVIRONMENT}, or pass field= again"
            )
        return {
            "source": self._uri,
            "variable": self._variable,
            "crs": self._crs,
            "mask": None if self._mask is None else self._mask.get_config(),
            "engine": self._engine,
            "group": self._group,
            "options": self._options,
        }

    @cached_property
    def _sha256(self) -> str:
        array, _ = self._open()
        rows = array.shape[0]

        def read(start: int, stop: int) -> npt.NDArray[Any]:
            return _loaded(array, (slice(start, stop),)).astype(self._facts.dtype, copy=False)

        return sha256_slabs(read, rows, array.nbytes // rows, self._facts.block[0])

    def _stored_identity(self) -> dict[str, Any]:
        array, _ = call(self._open)
        found = {"variable": str(array.name), "group": self._group, "options": self._options}
        if not is_zarr(self._uri, self._engine):
            return found | stat_identity(self._uri, self._options.get("storage_options"))
        inside = "/".join(part.strip("/") for part in (self._group, str(array.name)) if part)
        return found | zarr_identity(self._uri, inside, self._options.get("storage_options"))

    @cached_property
    def _facts(self) -> _Facts:
        array, mapping = call(self._open)
        facts = _describe(array)
        if self._mask is not None:
            self._mask.check(domain_of(array, self._crs, mapping), self.label)
        return facts

    @property
    def _key(self) -> tuple[Any, ...]:
        options = repr(sorted(self._options.items()))
        return (self._born, self._uri, self._variable, self._engine, self._group, options)

    def _open(self) -> tuple[xr.DataArray, xr.Variable | None]:
        """The array and its grid mapping."""
        if self._array is not None:
            return self._array, _mapping(self._array, self._array.coords)
        opened = self._store()
        return opened.array, opened.mapping

    def _store(self) -> _Opened:
        return _DATASETS.get(self._key, stamp(self._uri), self._opened)

    def _opened(self) -> _Opened:
        dataset = open_store(self._uri, self._engine, group=self._group, **self._options)
        try:
            array = _selected(dataset, self._variable, shown(self._uri))
            try:
                facts = _describe(array)
            except OptionError as error:
                raise self._failure("is no field", "choose another variable", error) from error
            return _Opened(dataset, array, _mapping(array, dataset.variables), facts)
        except BaseException:
            dataset.close()
            raise

    def _failure(self, what: str, remedy: str, error: BaseException | None = None) -> FieldError:
        return failure(self._uri or self.label, what, remedy, error, self._options)


#: What :class:`XarrayField` keeps in its instance and does not pickle.
_CACHED = ("domain", "_facts")


@dataclass(frozen=True)
class _Facts:
    """What reading needs to know of a variable; equal for equal ones."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block: tuple[int, ...]
    nodata: tuple[float | int, ...]
    marker: float | int | None


def in_xarray(obj: object) -> str | None:
    """``"DataArray"`` or ``"Dataset"``, or None for anything else; does not import xarray."""
    xarray = sys.modules.get("xarray")
    for name in ("DataArray", "Dataset"):
        # Missing while another thread is still importing xarray; then obj cannot be one either.
        kind = getattr(xarray, name, None)
        if kind is not None and isinstance(obj, kind):
            return name
    return None


def _describe(array: xr.DataArray) -> _Facts:
    dtype = check_numeric(array.dtype, f"variable {array.name!r}")
    if 0 in array.shape or not array.shape:
        raise OptionError(f"variable {array.name!r} of shape {array.shape} has no cells to patch")
    marks = (nodata_of(value, dtype) for value in fill_values(array))
    nodata = tuple(value for value in marks if value is not None)
    decoded = array.encoding.get("_FillValue", array.encoding.get("missing_value"))
    if nodata or decoded is None or np.size(decoded) != 1:
        marker = nodata[0] if nodata else None
    else:
        value = np.asarray(decoded).reshape(-1)[0].item()
        marker = value if isinstance(value, int | float) and value == value else None
    return _Facts(array.shape, dtype, block_shape(array), nodata, marker)


@dataclass(frozen=True)
class _Opened:
    dataset: xr.Dataset
    array: xr.DataArray
    mapping: xr.Variable | None
    facts: _Facts


def _close(opened: _Opened) -> None:
    with contextlib.suppress(Exception):  # a broken store may not close; it is forgotten anyway
        opened.dataset.close()


_DATASETS: Handles[_Opened] = Handles(_close)


def _loaded(array: xr.DataArray, key: tuple[slice, ...]) -> npt.NDArray[Any]:
    """A slice as an ndarray; a Dask array is computed right here, not by a scheduler above."""
    found: npt.NDArray[Any] = array.variable[key].load(scheduler="synchronous").values
    return found


def _selected(dataset: xr.Dataset, variable: str | None, where: str) -> xr.DataArray:
    names = candidates(dataset)
    if variable is None:
        if len(names) == 1:
            return dataset[names[0]]
        listed = ", ".join(names) or "none"
        raise FieldError(
            f"{where}: holds {len(names)} variables of numbers ({listed}); name one: variable="
        )
    if variable not in dataset.variables:
        raise FieldError(
            f"{where}: no variable {variable!r}; it holds {', '.join(names) or 'none'}"
        )
    return dataset[variable]


def _mapping(array: xr.DataArray, variables: Mapping[Any, Any]) -> xr.Variable | None:
    """The grid mapping variable that an array names, or the usual one."""
    named = array.encoding.get("grid_mapping") or array.attrs.get("grid_mapping") or "spatial_ref"
    found = variables.get(str(named).split(":")[0].split()[0])
    return None if found is None else getattr(found, "variable", found)
