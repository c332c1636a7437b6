"""A folder with a scene, operators and a job file, for tests of the command line."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

from geopatch_dask.cli import main

#: A module is imported once per process, so every folder has a module of its own name.
_NUMBERS = itertools.count()

OPERATORS = """
import time
from pathlib import Path

HERE = Path(__file__).parent


def _called():
    with open(HERE / "calls", "ab") as file:
        file.write(b".")


def double(a):
    _called()
    return a * 2


def slow(a, seconds):
    _called()
    time.sleep(seconds)
    return a * 2


def flaky(a):
    _called()
    if (HERE / "broken").exists() and (a == 250).any():
        raise ValueError("the lamp\\nis out")
    return a * 2


def trimmed(a):
    return a[..., 1:]


def raising(a):
    raise KeyError("no such luck")
"""

#: Every key is here, so that a test changes one of them.
JOB: dict[str, dict[str, Any]] = {
    "field": {"path": "scene.tif"},
    "patch": {"size": 64, "step": 48, "window": "hann"},
    "operator": {"function": "MODULE:double"},
    "output": {"target": "out.zarr", "chunks": 64},
    "run": {"outer": 128, "log_every": 600},  # one line is one line
    "cluster": {"kind": "sync"},
}


@dataclass
class Shop:
    """The folder; 256 x 256 cells, 25 patches, 4 super-tiles, one cell of 250 in the second."""

    folder: Path
    module: str

    @classmethod
    def open(cls, folder: Path) -> Shop:
        rng = np.random.default_rng(0)
        cells = rng.integers(1, 200, (1, 256, 256)).astype("uint8")
        cells[0, 30:50, 60:90] = 0
        cells[0, 20, 220] = 250  # in no patch that is tried at plan time
        profile = {"width": 256, "height": 256, "count": 1, "dtype": "uint8", "nodata": 0}
        place = {"crs": "EPSG:32632", "transform": from_origin(0, 0, 10, 10)}
        with rasterio.open(folder / "scene.tif", "w", driver="GTiff", **profile, **place) as file:
            file.write(cells)
        module = f"shop_{os.getpid()}_{next(_NUMBERS)}"
        (folder / f"{module}.py").write_text(OPERATORS)
        return cls(folder, module)

    def job(self, changes: dict[str, Any] | None = None, name: str = "job.toml") -> str:
        """Write a job file; ``changes`` are ``"section.key": value``, of which None drops a key."""
        sections = {section: dict(keys) for section, keys in JOB.items()}
        for place, value in (changes or {}).items():
            section, _, key = place.rpartition(".")
            sections.setdefault(section, {})[key] = value
        lines = []
        for section, keys in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{k} = {_toml(v)}" for k, v in keys.items() if v is not None]
        path = self.folder / name
        path.write_text("\n".join(lines).replace("MODULE", self.module) + "\n")
        return str(path)

    @property
    def target(self) -> Path:
        return self.folder / "out.zarr"

    @property
    def calls(self) -> int:
        """How often an operator was called since this was asked last."""
        log = self.folder / "calls"
        found = log.stat().st_size if log.exists() else 0
        log.unlink(missing_ok=True)
        return found

    def records(self) -> list[Path]:
        return sorted(self.folder.glob("out.zarr.geopatch/*/tiles/*.json"))

    def paths(self) -> set[str]:
        """Everything in the folder, but what importing and calling operators leaves."""
        found = {str(p.relative_to(self.folder)) for p in self.folder.rglob("*")}
        return {p for p in found if "__pycache__" not in p and p != "calls"}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Raw):
        return str(value)
    return repr(value) if isinstance(value, int | float | list) else f'"{value}"'


class Raw(str):
    """A value that is TOML already."""


def stored(target: Path) -> dict[str, bytes]:
    """Every chunk of a target."""
    return {
        str(p.relative_to(target)): p.read_bytes()
        for p in sorted(target.rglob("*"))
        if p.is_file() and "c" in p.relative_to(target).parts
    }


def geopatch(*words: str) -> int:
    """The command, in this process."""
    return main(list(words))


def command(*words: str) -> list[str]:
    """The command, for a process of its own."""
    return [sys.executable, "-m", "geopatch_dask", *words]
