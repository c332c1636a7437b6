"""The gallery scripts run, on made data and on real data, and their numbers hold."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import geopatch_dask as gp

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_picture(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


@pytest.mark.parametrize(
    "name", ["global_normalisation", "global_eof", "partial_pooling", "block_sketches"]
)
def test_a_script_ends_in_a_picture(name: str, tmp_path: Path) -> None:
    script(name).main(["--out", str(tmp_path)])
    assert is_picture(tmp_path / f"{name}.png")


def test_pooling_beats_every_patch_for_itself(tmp_path: Path) -> None:
    module = script("partial_pooling")
    module.main(["--out", str(tmp_path)])
    slope = module.make_field()[1]
    alone, pooled = (gp.open(tmp_path / f"{name}.zarr").values for name in ("alone", "pooled"))
    errors = [float(np.sqrt(np.nanmean((v - slope) ** 2))) for v in (alone, pooled)]
    assert errors[1] < errors[0] / 3
    assert not np.isnan(pooled).any()


def test_normalised_landsat_has_mean_0_and_std_1(real_data: Path, tmp_path: Path) -> None:
    scene = str(real_data / "landsat_2020.tif")
    script("global_normalisation").main([scene, "--out", str(tmp_path)])
    values = gp.open(tmp_path / "normalised.zarr").values
    valid = values.reshape(4, -1)
    assert np.abs(np.nanmean(valid, axis=1)).max() < 1e-12
    assert np.abs(np.nanstd(valid, axis=1) - 1).max() < 1e-12
    assert np.isnan(values).any(), "the scene has nodata"


def test_global_eofs_are_those_of_the_whole_cube(real_data: Path, tmp_path: Path) -> None:
    """Against numpy's SVD: variances, patterns and principal components."""
    module = script("global_eof")
    cube = str(real_data / "eraint_uvz.nc")
    module.main([cube, "u", "--out", str(tmp_path)])
    field = gp.XarrayField(cube, "u")
    whole = field.read(field.domain.box).reshape(6, -1).astype(np.float64)
    whole -= whole.mean(axis=1, keepdims=True)
    left, singular, right = np.linalg.svd(whole, full_matrices=False)
    signs = np.sign(left[np.abs(left).argmax(axis=0), range(6)])
    found = gp.open(tmp_path / "eof.zarr").values.reshape(3, -1)
    expected = (signs * singular)[:3, None] * right[:3]
    np.testing.assert_allclose(found, expected, atol=1e-9 * singular[0], rtol=1e-9)
