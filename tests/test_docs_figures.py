"""Drawings of the documentation: the scripts that make them still do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

DOCS = Path(__file__).parents[1] / "docs"
#: Scripts that need a browser, Prometheus, PyTorch or what benchmarks measured, or that run pages,
#: which are tests of their own.
ELSEWHERE = {"report", "dashboard", "train_unet", "measured", "pages"}
DRAWN = sorted(p.stem for p in DOCS.glob("figures/*.py") if p.stem not in ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_a_script_draws_its_picture(name: str, tmp_path: Path) -> None:
    """In a copy of the documentation, beside everything else of the repository."""
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "*.png"))
    for beside in ("benchmarks", "deploy", "tests"):
        (tmp_path / beside).symlink_to(DOCS.parent / beside)
    script = tmp_path / "docs" / "figures" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, "-P", str(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    drawn, kept = (folder / "images" / f"{name}.png" for folder in (tmp_path / "docs", DOCS))
    here, there = plt.imread(drawn), plt.imread(kept)
    assert here.std() > 0.01, "it is blank"
    assert here.shape[1] / here.shape[0] == pytest.approx(there.shape[1] / there.shape[0], rel=0.1)
