"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real sample files; tests that need it skip where there is none."""
    given = os.environ.get("GEOPATCH_TEST_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no sample data: {folder} is no folder (set GEOPATCH_TEST_DATA)")
    return folder
