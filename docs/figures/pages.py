"""Run pages, and keep the pictures that their code makes.

``python docs/figures/pages.py`` runs all of them and writes ``docs/images/``;
``python docs/figures/pages.py start.md`` runs one.
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

#: What a page draws, and the name under which it is kept.
PICTURES = {
    "comparison.md": {"seams.png": "comparison.png"},
    "howto/chunks.md": {"reads.png": "reads.png"},
    "howto/normalisation.md": {"normalisation.png": "normalisation.png"},
    "howto/unet.md": {"water.png": "unet.png"},
    "howto/window.md": {"seams.png": "seams.png"},
    "quickstart.md": {"ndvi.png": "quickstart.png"},
    "start.md": {"contrast.png": "start.png"},
}


def keep(source: Path, name: str) -> None:
    """A picture of 256 colours, which is a third of the bytes."""
    image = Image.open(source).convert("RGB")
    image.quantize(256).save(DOCS / "images" / name, optimize=True)


def main(pages: list[str]) -> None:
    matplotlib.use("Agg")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for page in pages or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            run_page(DOCS / page, Path(folder), {"PATH": path})
            for made, name in PICTURES[page].items():
                keep(Path(folder) / made, name)


if __name__ == "__main__":
    main(sys.argv[1:])
