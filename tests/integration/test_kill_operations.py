"""A small job on S3, killed before each of its store operations in turn, and run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from integration.buckets import Bucket
from test_run_kill import HERE, check_rounds

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("way", "least"), [("store", 30), ("place", 15)])
def test_killed_between_any_two_operations_on_s3(
    s3: Bucket, tmp_path: Path, way: str, least: int
) -> None:
    """Of an open store, and of a URL, whose client is asked directly."""
    words = [sys.executable, str(HERE / "kill_operations.py"), way, str(tmp_path)]
    done = subprocess.run(
        [*words, s3.url("rounds")], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    check_rounds(done.stdout, least)
