"""The header of a raster file, and how its cells and masks are read.

A read is one pass over the blocks it touches.  Where missing cells are marked in the file, the
window is walked in strips of whole block rows that fit GDAL's block cache, so that a mask or alpha
band stored with the data is decoded together with it, once::

    window          +--------------+
                    | strip 0      |   data, then its mask (same blocks, still cached)
    block rows ---- |--------------| ----
                    | strip 1      |
                    +--------------+

A strip is cut at block borders, and every cell depends on itself alone: reading a window in pieces
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.windows import Window

from geopatch_dask.fields.georef import affine6
from geopatch_dask.fields.masks import blank, blank_nodata, nodata_of
from geopatch_dask.fields.source import failure, shown
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import Affine6

__all__ = ["GDAL_CACHE", "Header", "describe"]

#: Upper limit of GDAL's block cache, bytes, for the whole process.  GDAL's default is 5 % of the
#: machine, per process, which no plan could account for; a field reads each block once, so a cache
#: only has to hold the strip being read.  Reading a 604 MB raster in 1024-cell tiles grew a process
#: by 583 MiB under the default (1.2 GiB) and by 68 MiB under this limit, in the same time.
GDAL_CACHE = 64 * 2**20

#: Bytes of one strip (all bands, source dtype): the rest of the cache is for blocks cut by the
#: window's sides and for the other threads.
_STRIP = GDAL_CACHE // 4


@dataclass(frozen=True)
class Header:
    """What reading needs to know of a file; equal for equal files.

    ``together`` bands are decoded when one is read (pixel interleaving).
    ``nodata`` is compared cell by cell; ``stored`` are positions in ``bands`` whose mask GDAL
    keeps or derives (``one_mask``: the same for all of them); ``alpha`` is the band that masks the
    positions in ``under_alpha``.
    """

    size: tuple[int, int]
    bands: tuple[int, ...]
    flat: bool
    dtype: np.dtype[Any]
    block: tuple[int, int]
    together: int
    transform: Affine6 | None
    descriptions: tuple[str | None, ...]
    nodata: tuple[float | int | None, ...]
    stored: tuple[int, ...]
    one_mask: bool
    alpha: int | None
    under_alpha: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size if self.flat else (len(self.bands), *self.size)

    @property
    def marked(self) -> bool:
        """Whether the file itself can mark a cell as missing."""
        return bool(self.stored or self.under_alpha) or any(v is not None for v in self.nodata)

    @property
    def summary(self) -> str:
        return f"{len(self.bands)} bands of {self.size[0]} x {self.size[1]} {self.dtype}"

    def read(self, dataset: Any, box: Box, values: npt.NDArray[Any]) -> None:
        """Fill ``values``, of the shape of ``box``, promoted where cells can be missing."""
        cube = values.reshape((-1, *box.shape[-2:]))
        first, last = (0, 1) if self.flat else (box.start[0], box.stop[0])
        for start, stop in self._strips(box):
            strip = cube[:, start - box.start[-2] : stop - box.start[-2]]
            window = Window(box.start[-1], start, box.shape[-1], stop - start)
            self._read_strip(dataset, range(first, last), window, strip)

    def _strips(self, box: Box) -> Iterator[tuple[int, int]]:
        """Rows to read at once: all, unless a mask stored with the data is read after it."""
        start, stop = box.start[-2], box.stop[-2]
        if not (self.stored or self.under_alpha):
            yield start, stop
            return
        row_bytes = self.together * self.dtype.itemsize * (box.shape[-1] + self.block[1])
        high = self.block[0]
        size = max(_STRIP // (row_bytes * high), 1) * high
        for edge in range(start // high * high, stop, size):
            yield max(edge, start), min(edge + size, stop)

    def _read_strip(
        self, dataset: Any, positions: range, window: Window, strip: npt.NDArray[Any]
    ) -> None:
        indexes = [self.bands[i] for i in positions]
        # 64-bit integers are compared with nodata before float64 rounds them
        wide = self.dtype.kind in "iu" and self.dtype.itemsize == 8 and strip.dtype != self.dtype
        raw = np.empty(strip.shape, self.dtype) if wide else strip
        dataset.read(indexes, window=window, out=raw)
        if wide:
            strip[...] = raw
        for i, cells, found in zip(positions, strip, raw, strict=True):
            marker = self.nodata[i]
            if wide and marker is not None:
                blank(cells, found == marker)
            else:
                blank_nodata(cells, marker)
        flags = None
        for k, i in enumerate(positions):
            if i in self.stored:
                if flags is None or not self.one_mask:
                    flags = dataset.read_masks(indexes[k], window=window)
                blank(strip[k], flags == 0)
        under = [k for k, i in enumerate(positions) if i in self.under_alpha]
        if under:
            missing = dataset.read(self.alpha, window=window) == 0
            for k in under:
                blank(strip[k], missing)


def describe(dataset: Any, uri: str, bands: int | tuple[int, ...] | None, masked: bool) -> Header:
    """Read the header of an open dataset."""
    if dataset.count == 0:
        inside = [shown(name) for name in dataset.subdatasets]
        what = f"{len(inside)} subdatasets, the first {inside[0]}" if inside else "nothing else"
        raise failure(uri, f"has no bands but {what}", "give one as path, or use XarrayField")
    alphas = [i for i, c in enumerate(dataset.colorinterp, 1) if c == ColorInterp.alpha]
    numbers = _chosen(dataset, uri, bands, alphas if masked else [])
    dtype = _common_dtype([dataset.dtypes[b - 1] for b in numbers], uri)
    flags = [set(dataset.mask_flag_enums[b - 1]) for b in numbers]
    under_alpha = [i for i, b in enumerate(numbers) if alphas and b not in alphas]
    transform = dataset.transform
    nowhere = dataset.crs is None and transform.is_identity
    return Header(
        size=(dataset.height, dataset.width),
        bands=numbers,
        flat=isinstance(bands, int) or (bands is None and len(numbers) == 1),
        dtype=dtype,
        block=tuple(dataset.block_shapes[numbers[0] - 1]),
        together=dataset.count if dataset.interleaving == Interleaving.pixel else len(numbers) + 1,
        transform=None if nowhere else affine6(transform),
        descriptions=tuple(dataset.descriptions[b - 1] for b in numbers),
        nodata=tuple(
            nodata_of(dataset.nodatavals[b - 1], dtype)
            if masked and found == {MaskFlags.nodata}
            else None
            for b, found in zip(numbers, flags, strict=True)
        ),
        stored=tuple(i for i, found in enumerate(flags) if masked and _stored(found)),
        one_mask=all(MaskFlags.per_dataset in found for found in flags if _stored(found)),
        alpha=alphas[0] if alphas and masked else None,
        under_alpha=tuple(under_alpha) if masked else (),
    )


def _stored(flags: set[MaskFlags]) -> bool:
    """Whether GDAL must be asked for the mask: a mask band, or nodata of several bands at once."""
    return MaskFlags.alpha not in flags and flags not in ({MaskFlags.all_valid}, {MaskFlags.nodata})


def _chosen(
    dataset: Any, uri: str, bands: int | tuple[int, ...] | None, alphas: list[int]
) -> tuple[int, ...]:
    if bands is None:
        every = range(1, dataset.count + 1)
        return tuple(b for b in every if b not in alphas) or tuple(every)
    numbers = (bands,) if isinstance(bands, int) else bands
    absent = [b for b in numbers if b > dataset.count]
    if absent:
        raise failure(
            uri,
            f"has no band {absent[0]}",
            f"choose bands= from 1 to {dataset.count}",
        )
    return numbers


def _common_dtype(names: Sequence[str], uri: str) -> np.dtype[Any]:
    try:
        return np.result_type(*(np.dtype(name) for name in names))
    except TypeError:
        raise failure(
            uri,
            f"holds {', '.join(sorted(set(names)))}, which numpy has not",
            "convert it (gdal_translate -ot)",
        ) from None
