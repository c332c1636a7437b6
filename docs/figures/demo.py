"""Run ``geopatch demo`` and keep its picture, smaller.

``python docs/figures/demo.py`` writes ``docs/images/demo.png``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from geopatch_dask.cli import main as geopatch

OUT = Path(__file__).parents[1] / "images" / "demo.png"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if geopatch(["demo", "--out", folder]):
            raise SystemExit("the demo failed")
        image = Image.open(Path(folder) / "demo.png").convert("RGB")
        image.thumbnail((960, 960), Image.Resampling.LANCZOS)
        image.quantize(256).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
