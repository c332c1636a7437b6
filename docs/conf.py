"""Sphinx configuration: `make docs` builds with warnings as errors and needs no network."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "geopatch_dask"
author = "geopatch_dask developers"
project_copyright = "geopatch_dask developers"
release = metadata.version("geopatch_dask")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "numpydoc",
    "public_api",
]
exclude_patterns = ["_build", "_ext", "figures"]
source_suffix = {".md": "markdown"}
nitpicky = True  # what counts as an unresolved reference: docs/_ext/public_api.py

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autosummary_generate = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

linkcheck_anchors = False  # pages of other projects make theirs by script
linkcheck_timeout = 20
linkcheck_retries = 2

html_theme = "furo"
html_title = f"geopatch_dask {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
