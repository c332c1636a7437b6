"""Fields for tests: one of any size, and one that says what was read."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

import geopatch_dask as gp


class Endless(gp.Field):
    """Zeros, with a few holes if asked, on a grid of any size that takes no memory."""

    def __init__(self, *shape: int, dtype: str = "float32", may_miss: bool = False) -> None:
        dims = tuple("tzyx"[-len(shape) :])
        self._domain = gp.GridDomain(dims, shape)
        self._dtype, self._may_miss = np.dtype(dtype), may_miss

    @property
    def domain(self) -> gp.GridDomain:
        return self._domain

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def may_miss(self) -> bool:
        return self._may_miss

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(min(n, 512) for n in self._domain.shape)

    def read(self, box: gp.Box) -> npt.NDArray[Any]:
        values = np.zeros(box.shape, self._dtype)
        if self._may_miss:
            values.reshape(-1)[::97] = np.nan
        return values

    def identity(self) -> dict[str, Any]:
        return {"zeros": self._domain.shape, "dtype": self._dtype.name}

    def get_config(self) -> dict[str, Any]:
        raise gp.OptionError("nobody needs it")


class Watched(gp.ArrayField):
    """Keeps the boxes that were read, in this process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.boxes: list[gp.Box] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def read(self, box: gp.Box) -> npt.NDArray[Any]:
        with self._lock:
            self.boxes.append(box)
        return super().read(box)
