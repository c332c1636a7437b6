"""Run the quickstart and keep the picture it makes.

``python docs/figures/quickstart.py`` writes ``docs/images/quickstart.png``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib
from PIL import Image

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS / "_ext"))

from blocks import run_page  # noqa: E402  # it lies beside the Sphinx extension


def main() -> None:
    matplotlib.use("Agg")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as folder:
        run_page(DOCS / "quickstart.md", Path(folder), {"PATH": path})
        image = Image.open(Path(folder) / "ndvi.png").convert("RGB")
        image.quantize(256).save(DOCS / "images" / "quickstart.png", optimize=True)


if __name__ == "__main__":
    main()
