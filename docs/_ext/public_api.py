"""The API reference writes itself from ``geopatch_dask.__all__``.

``api.md`` holds one line ``<!-- public: GROUP -->`` per group.  Before the page is parsed, each
line becomes a summary table and the full documentation of the public names of that group::

    geopatch_dask.__all__ --> module that defines the name --> GROUPS --> place on the page

A name whose module belongs to no group, a group without a place, a public name that the built page
does not document, and a public name or method without a docstring (its own or an inherited one) are
warnings, and warnings are errors in ``make docs``.  References are
resolved here as well: public names link to the page; other names of this package must exist;
names of other packages stay plain text, so that no inventory has to be fetched.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pydoc import locate
from typing import TYPE_CHECKING, Any

from docutils.nodes import Text
from sphinx.addnodes import pending_xref
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import geopatch_dask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from docutils.nodes import Element, TextElement, document
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

logger = logging.getLogger(__name__)

PACKAGE = "geopatch_dask"
PAGE = "api"
# First match wins.  A name is placed by the module that defines it.
GROUPS: tuple[tuple[str, str], ...] = (
    (f"{PACKAGE}.patch", "axes"),
    (f"{PACKAGE}.aggregation", "aggregations"),
    (f"{PACKAGE}.fields", "fields"),
    (f"{PACKAGE}.errors", "errors"),
    (f"{PACKAGE}.planning", "running"),
    (f"{PACKAGE}.execute", "running"),
    (f"{PACKAGE}.clusters", "running"),
    (f"{PACKAGE}.store", "running"),
    (f"{PACKAGE}.report", "running"),
    (f"{PACKAGE}.testing", "testing"),
)
# Public names that carry no module of their own (constants, type aliases): name -> group.
PLACED: dict[str, str] = {}
MARKER = re.compile(r"^<!-- public: (\w+) -->$", re.MULTILINE)
# A star that opens no emphasis, as in "shape (*leading, *cells)": none closes it on its line.
STAR = re.compile(r"(?<![\\*\w])\*(?=\w)(?![^*]*[^\s*]\*(?!\w))")


def public_names() -> list[str]:
    """Return the names of ``__all__``, without ``__version__`` and its like."""
    return [name for name in geopatch_dask.__all__ if not name.startswith("__")]


def group_of(name: str) -> str | None:
    """Return the group of a public name, or None when its module belongs to no group."""
    if name in PLACED:
        return PLACED[name]
    obj = getattr(geopatch_dask, name)
    module = obj.__name__ if inspect.ismodule(obj) else getattr(obj, "__module__", "") or ""
    for prefix, group in GROUPS:
        if module == prefix or module.startswith(prefix + "."):
            return group
    return None


def directive(name: str) -> str:
    """Return the autodoc directive that documents a public name."""
    obj = getattr(geopatch_dask, name)
    if inspect.ismodule(obj):
        return "automodule"
    if inspect.isclass(obj):
        return "autoexception" if issubclass(obj, BaseException) else "autoclass"
    return "autofunction" if callable(obj) else "autodata"


def render(names: Iterable[str]) -> str:
    """Return the reStructuredText of one group, fenced for MyST."""
    ordered = list(names)
    lines = ["```{eval-rst}", f".. currentmodule:: {PACKAGE}", "", ".. autosummary::", ""]
    lines += [f"   {name}" for name in ordered]
    for name in ordered:
        lines += ["", f".. {directive(name)}:: {PACKAGE}.{name}"]
    return "\n".join([*lines, "```"])


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the markers of the API page (event ``source-read``)."""
    if docname != PAGE:
        return
    groups: dict[str, list[str]] = {}
    for name in public_names():
        group = group_of(name)
        if group is None:
            logger.warning("public name %s has no group in docs/_ext/public_api.py", name)
        else:
            groups.setdefault(group, []).append(name)
    placed = set(MARKER.findall(source[0]))
    for group in groups.keys() - placed:
        logger.warning("group %s has no '<!-- public: %s -->' on the page %s", group, group, PAGE)
    for group in placed - groups.keys():
        logger.warning("group %s of the page %s has no public name", group, PAGE)
    source[0] = MARKER.sub(lambda found: render(groups.get(found[1], [])), source[0])


def escape_stars(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escape unpacking stars in the prose of docstrings (event ``autodoc-process-docstring``)."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")  # odd parts are literal
            parts[::2] = [STAR.sub(r"\\*", part) for part in parts[::2]]
            lines[i] = "``".join(parts)


def unlink_any(app: Sphinx, doctree: document) -> None:
    """Keep ``typing.Any`` in annotations from linking to our ``Any`` (event ``doctree-read``)."""
    for node in list(doctree.findall(pending_xref)):
        if node.get("reftarget") in ("Any", "typing.Any") and "refwarn" not in node:
            node.replace_self(Text("Any"))


def check_complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about each public name that no page documents (event ``env-check-consistency``)."""
    documented = set(env.domains.python_domain.objects)
    for name in public_names():
        if f"{PACKAGE}.{name}" not in documented:
            logger.warning("public name %s.%s is documented on no page", PACKAGE, name)
        for bare in undocumented(name):
            logger.warning("public name %s.%s has no docstring", PACKAGE, bare)


def undocumented(name: str) -> list[str]:
    """Return the public name and those of its public methods that have no docstring at all."""
    obj = getattr(geopatch_dask, name)
    if not callable(obj):
        return []
    bare = [] if (obj.__doc__ or "").strip() else [name]
    if inspect.isclass(obj):
        for attribute, member in inspect.getmembers(obj):
            if attribute.startswith("_") or inspect.getdoc(member):
                continue
            ours = str(getattr(member, "__module__", "")).startswith(PACKAGE)
            if isinstance(member, property) or (inspect.isroutine(member) and ours):
                bare.append(f"{name}.{attribute}")
    return bare


def exists(target: str, context: Iterable[str]) -> bool:
    """Whether a dotted name can be found, as it stands or from one of the contexts."""
    return any(
        locate(f"{prefix}.{target}" if prefix else target) is not None for prefix in ("", *context)
    )


def contexts(node: pending_xref) -> list[str]:
    """Return where a docstring's short names are looked up: its class, its module, the package."""
    owner: Any = locate(f"{PACKAGE}.{node.get('py:class')}") if node.get("py:class") else None
    found = [PACKAGE]
    if owner is not None:
        found += [f"{owner.__module__}.{owner.__qualname__}", owner.__module__]
    # a function's docstring names neighbours of its module, and the text in a summary table is
    # nobody's: any module of the package and any public class will do
    found += [module for module in sys.modules if module.startswith(PACKAGE + ".")]
    found += [f"{PACKAGE}.{name}" for name in public_names()]
    return found


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: TextElement
) -> Element | None:
    """Resolve what the Python domain could not (event ``missing-reference``).

    Returns None, which is a warning, only for a role in a text whose target exists nowhere.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    public = set(public_names())
    parts = target.split(".")
    # the longest tail that is documented: geopatch_dask.patch.window.Hann.weights -> Hann.weights
    for start, head in enumerate(parts):
        if head in public:
            name = f"{PACKAGE}." + ".".join(parts[start:])
            domain = env.domains.python_domain
            if name in domain.objects:
                page, anchor = domain.objects[name][:2]
                fromdoc = str(node.get("refdoc", env.docname))
                return make_refnode(app.builder, fromdoc, page, anchor, contnode, name)
    from_annotation = "refwarn" not in node
    if from_annotation or exists(target, contexts(node)):
        return contnode
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    importlib.import_module(PACKAGE)
    app.connect("autodoc-process-docstring", escape_stars, priority=400)  # before numpydoc
    app.connect("source-read", fill_page)
    app.connect("doctree-read", unlink_any)
    app.connect("env-check-consistency", check_complete)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
