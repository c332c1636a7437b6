r"""A landscape that nobody has to download: hills, a river, fields, clouds.

The scene is a function of its size and a seed.  It is made and written in bands of rows, so a
large one needs no more memory than a small one::

    noise (coarse, fractal) --> relief --> forest, rock        \
    distance to the river   --> water, valley, farmland         > three bands, 1..255
    rotated rows of parcels --> crops, bare soil, pivot circles /
    another noise           --> clouds (0 = no data) and their shadows
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from geopatch_dask.errors import FieldError, OptionError

__all__ = ["BANDS", "Landscape", "make_scene"]

Floats = npt.NDArray[np.float32]

#: Names of the bands, in order.
BANDS = ("red", "green", "near infrared")
#: Rows made and written at a time, and the edge of a block in the file.
BLOCK = 256
#: The smallest scene: two patches of 256 cells must fit along each axis.
LEAST = 512
#: Version of what a seed means; part of the file's tags.
VERSION = "1"
#: Metres per cell, and the corner of the scene in UTM zone 32 N.
RESOLUTION, WEST, NORTH = 10.0, 560_000.0, 5_320_000.0
#: Cells per side of the coarse noise; what is finer is parcels and texture.
COARSE = 1024
#: Share of the scene that clouds hide.
CLOUDY = 0.11


@dataclass(frozen=True)
class Landscape:
    """The cells of a scene, computed by rows.

    Parameters
    ----------
    size : int, cells per side
    seed : int
    """

    size: int
    seed: int = 0

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Three bands of some rows: uint8, shape (3, stop - start, size); 0 is no data."""
        y = np.arange(start, stop, dtype=np.float32)
        x = np.arange(self.size, dtype=np.float32)
        water, valley = self._river(y, x)
        relief = self._sample(self._relief, y, x)
        detail = self._sample(self._detail, y, x)
        height = relief - 1.3 * valley + 0.3 * detail
        farmed = _ramp(-height, -0.06, 0.04)
        green, soil = self._cover(y, x, height, detail, farmed)
        light = self._light(y, x, relief, 1 - 0.85 * farmed) * (0.8 + 0.2 * farmed)
        rng = np.random.default_rng([self.seed, 7, start])
        light *= 1 + np.float32(0.03) * rng.standard_normal(relief.shape, np.float32)
        cloudy = self._sample(self._clouds, y, x) > 1
        out = np.empty((3, *relief.shape), np.uint8)
        # reflectance of vegetation, of soil (times its brightness), and of water
        for band, (leaf, ground, wet) in enumerate(
            ((0.045, 0.24, 0.035), (0.085, 0.18, 0.05), (0.50, 0.31, 0.015))
        ):
            value = (leaf * green + ground * soil * (1 - green)) * light
            value += (wet - value) * water
            value[cloudy] = 0
            # from 1: 0 is no data, and only where there is a cloud
            out[band] = np.clip(np.rint(value * np.float32(420)), 1 - cloudy, 255)
        return out

    # ---- parts -----------------------------------------------------------------------------

    def _river(self, y: Floats, x: Floats) -> tuple[Floats, Floats]:
        """How much of a cell is water, and how deep it lies in the valley, both 0..1."""
        s = self.size
        rng = np.random.default_rng([self.seed, 1])
        t = y / s
        middle = 0.42 + 0.16 * t
        for waves, width in ((1.1, 0.075), (2.6, 0.035), (6.3, 0.012), (13.0, 0.004)):
            middle += width * np.sin(2 * np.pi * (waves * t + np.float32(rng.random())))
        half = 0.0055 + 0.0025 * t + 0.001 * np.sin(40 * t)
        away = np.abs(x[None, :] / s - middle[:, None])
        water = _ramp(-away, -(half + 0.0008)[:, None], -(half - 0.0008)[:, None])
        valley: Floats = np.exp(-((away / np.float32(0.17)) ** 2))
        return water, valley

    def _cover(
        self, y: Floats, x: Floats, height: Floats, detail: Floats, farmed: Floats
    ) -> tuple[Floats, Floats]:
        """Share of vegetation, and brightness of the soil."""
        crops, soil = self._parcels(y, x, detail)
        wild = 0.80 + 0.05 * detail  # forest
        wild += (0.50 + 0.10 * detail - wild) * _ramp(detail, 0.5, 1.0)  # meadow
        wild += (0.10 + 0.06 * detail - wild) * _ramp(height, 1.1, 1.6)  # rock
        green = np.clip(wild, 0, 1)
        green += (crops - green) * farmed
        soil = np.float32(0.85) + (soil - np.float32(0.85)) * farmed
        return green, soil

    def _parcels(self, y: Floats, x: Floats, detail: Floats) -> tuple[Floats, Floats]:
        """Crops and soil of fields: strips in rows that slope, and circles under pivots."""
        cos, sin = np.float32(np.cos(0.31)), np.float32(np.sin(0.31))
        u = x[None, :] * cos + y[:, None] * sin
        v = y[:, None] * cos - x[None, :] * sin
        row = np.floor(v / 74)
        wide = 70 + 130 * _chance(row, 0, self.seed + 11)
        place = u / wide + 7 * _chance(row, 0, self.seed + 12)
        column = np.floor(place)
        across, along = v - row * 74, (place - column) * wide
        crop = _chance(row, column, self.seed + 13)
        crop = np.where(crop < 0.3, 0.05 + 0.3 * crop, 0.25 + 0.72 * crop)
        hedge = (np.minimum(across, along) < 2.5) | (np.maximum(across - 74, along - wide) > -2.5)
        crop[hedge] = 0.6
        soil = 0.7 + 0.6 * _chance(row, column, self.seed + 14)

        i, j = np.floor(y / 152)[:, None], np.floor(x / 152)[None, :]
        dy, dx = y[:, None] - i * 152 - 76, x[None, :] - j * 152 - 76
        circle = np.clip(72 - np.sqrt(dy * dy + dx * dx), 0, 1)
        watered = np.sqrt(_chance(i, j, self.seed + 15))
        dry = self._sample(self._relief, y * 0.5 + 0.3 * self.size, x * 0.5)
        pivots = _ramp(dry, 0.1, 0.15)
        crop += (0.16 + (watered * 0.82 - 0.16) * circle - crop) * pivots
        soil += (1.05 - soil) * pivots * (1 - circle)
        return np.clip(crop + 0.03 * detail, 0, 1), soil

    def _light(self, y: Floats, x: Floats, relief: Floats, steep: Floats) -> Floats:
        """Sunlight from the north-west on the slopes, and the shadows of the clouds; around 1."""
        step = np.float32(self.size / 300)
        slope = relief - self._sample(self._relief, y - step, x - step)
        gap = np.float32(self.size * 0.022)  # a shadow falls this far south-east of its cloud
        shadow = _ramp(self._sample(self._clouds, y - gap, x - gap), 1.0, 1.12)
        light: Floats = np.clip(1 + 1.5 * slope * steep, 0.5, 1.45)
        return light * (1 - np.float32(0.5) * shadow)

    # ---- noise -----------------------------------------------------------------------------

    @cached_property
    def _relief(self) -> Floats:
        return _fractal(min(COARSE, self.size), 3.6, self.seed * 101 + 1)

    @cached_property
    def _detail(self) -> Floats:
        return _fractal(min(COARSE, self.size), 2.2, self.seed * 101 + 2)

    @cached_property
    def _clouds(self) -> Floats:
        """Noise in which more than 1 is cloud."""
        n = min(COARSE, self.size)
        noise = _fractal(n, 3.1, self.seed * 101 + 3) + 0.12 * self._detail
        threshold = np.quantile(noise, 1 - CLOUDY)
        return np.asarray((noise - threshold) * 0.6 + 1, np.float32)

    def _sample(self, noise: Floats, y: Floats, x: Floats) -> Floats:
        """Bilinear values of coarse noise (which repeats) at rows ``y`` and columns ``x``."""
        n = len(noise)
        scale = np.float32(n / self.size)
        fy, fx = y * scale, x * scale
        iy, ix = np.floor(fy).astype(int), np.floor(fx).astype(int)
        wy, wx = (fy - iy)[:, None].astype(np.float32), (fx - ix)[None, :].astype(np.float32)
        lines = noise[iy % n] * (1 - wy) + noise[(iy + 1) % n] * wy
        values: Floats = lines[:, ix % n] * (1 - wx) + lines[:, (ix + 1) % n] * wx
        return values


def make_scene(path: str | os.PathLike[str], size: int, seed: int, overwrite: bool = False) -> bool:
    """Write a scene as GeoTIFF: three bands, uint8, nodata 0, UTM, tiled, deflate.

    Parameters
    ----------
    path : path-like
    size : int, cells per side
        At least 512.
    seed : int
    overwrite : bool
        Make it again; a file that is no demo scene is never replaced.

    Returns
    -------
    bool
        False when the same scene was there.

    Raises
    ------
    OptionError
        For a size too small, or another file at that path.
    """
    out = Path(path)
    if size < LEAST or seed < 0:
        raise OptionError(
            f"a demo scene has at least {LEAST} cells per side and a seed from 0; "
            f"got {size} and {seed}"
        )
    tags = {"GEOPATCH_DEMO": VERSION, "SIZE": str(size), "SEED": str(seed)}
    if out.exists():
        found = _tags(out)
        if "GEOPATCH_DEMO" not in found:
            raise OptionError(f"{out} is no demo scene and is left alone; choose another --out")
        if all(found.get(k) == v for k, v in tags.items()) and not overwrite:
            return False
        if not overwrite:
            raise OptionError(
                f"{out} is a demo scene of {found.get('SIZE')} cells, seed {found.get('SEED')}; "
                "choose another --out, or --overwrite to start afresh"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    try:
        _write(part, Landscape(size, seed), tags)
        part.replace(out)  # a scene that is there is a whole one
    finally:
        part.unlink(missing_ok=True)
    return True


def _write(path: Path, land: Landscape, tags: dict[str, str]) -> None:
    n = land.size
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": n,
        "height": n,
        "count": len(BANDS),
        "dtype": "uint8",
        "nodata": 0,
        "crs": "EPSG:32632",
        "transform": from_origin(WEST, NORTH, RESOLUTION, RESOLUTION),
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 2,
        "num_threads": "all_cpus",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.update_tags(**tags)
        for band, name in enumerate(BANDS, start=1):
            file.set_band_description(band, name)
        for start, stop in _strips(n):
            file.write(land.rows(start, stop), window=Window(0, start, n, stop - start))


def _strips(n: int) -> Iterator[tuple[int, int]]:
    return ((a, min(a + BLOCK, n)) for a in range(0, n, BLOCK))


def _tags(path: Path) -> dict[str, str]:
    try:
        with rasterio.open(path) as file:
            return dict(file.tags())
    except rasterio.errors.RasterioError as error:
        raise FieldError(f"{path} cannot be read ({error}); choose another --out") from None


def _fractal(n: int, beta: float, seed: int) -> Floats:
    """Noise whose power falls with frequency as ``f ** -beta``; mean 0, standard deviation 1."""
    rng = np.random.default_rng(seed)
    shape = (n, n // 2 + 1)
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    frequency[0, 0] = np.inf
    size = (frequency ** (-beta / 2)).astype(np.float32)
    wave = (
        rng.standard_normal(shape, np.float32) + 1j * rng.standard_normal(shape, np.float32)
    ) * size
    noise = np.fft.irfft2(wave, s=(n, n)).astype(np.float32)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _chance(i: Any, j: Any, seed: int) -> Any:
    """A number in [0, 1) for each pair of whole numbers, the same everywhere: a hash."""
    h = np.asarray(i).astype(np.int64).astype(np.uint32) * np.uint32(0x9E3779B1)
    h = h ^ (np.asarray(j).astype(np.int64).astype(np.uint32) * np.uint32(0x85EBCA77))
    h ^= np.uint32(seed * 0x27D4EB2F & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    h ^= h >> np.uint32(16)
    return (h >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


def _ramp(value: Floats, low: Any, high: Any) -> Floats:
    """0 below ``low``, 1 above ``high``, a straight line between."""
    return np.asarray(np.clip((value - low) / (high - low), 0, 1), np.float32)
