"""Run a job in which some super-tiles fail, and photograph its report with a headless browser.

``python docs/figures/report.py`` writes ``docs/images/report.png``; needs Chromium or Chrome.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPERATOR = """
import time

import numpy as np


def enhance(patch):
    if np.isnan(patch).all():
        return patch
    if patch.max() > 9:
        raise ValueError("a pixel is saturated")
    time.sleep(0.004 + 0.02 * float(np.nanmean(patch)) ** 4)
    return np.sqrt(patch)
"""


def scene(rows: int, columns: int) -> np.ndarray:
    """A smooth field with a hole and three bright pixels."""
    y, x = np.mgrid[0:rows, 0:columns]
    values = 0.5 + 0.4 * np.sin(x / 190) * np.cos(y / 150)
    values[:330, -420:] = np.nan
    values[[700, 720, 1100], [300, 900, 1200]] = 10
    return values.astype("float32")


def main() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser found: install one of {', '.join(BROWSERS)}")
    patcher = gp.Patcher(
        gp.Rectangular((64, 64)), gp.RegularStride((48, 48)), gp.Hann(), gp.OverlapAdd()
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "ops_pictured.py").write_text(OPERATOR)
        sys.path.insert(0, folder)
        from ops_pictured import enhance

        field = gp.ArrayField(scene(1300, 1700))
        options = {"chunks": 50, "outer": 100, "memory_limit": "1 GiB", "slots": 2}
        plan = gp.plan(field, patcher, enhance, place / "out.zarr", **options)
        plan.run(on_failure="return")
        page = gp.status(place / "out.zarr").to_html(place / "report.html")
        text = (
            page.read_text("utf-8")
            .replace(str(place), "/data")
            .replace(socket.gethostname(), "node")
        )
        page.write_text(text, "utf-8")
        shot = place / "report.png"
        size = ["--window-size=1180,1390", "--force-device-scale-factor=1"]
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *size]
        subprocess.run([browser, *words, f"--screenshot={shot}", page.as_uri()], check=True)
        Image.open(shot).convert("RGB").save(OUT, optimize=True)


if __name__ == "__main__":
    main()
