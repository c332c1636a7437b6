"""Messages in the words of the command line.

The package speaks Python, as it should: ``choose boundary='shift'``, ``pass overwrite=True``.  Who
gave a job file has no such call to change, but a key or a flag of the same name::

    choose boundary='shift'           choose [patch] boundary = 'shift'
    pass overwrite=True               pass --overwrite
    name one: variable=               name one: [field] variable

Only exact spellings are rewritten: whole phrases of the package (:data:`PHRASES`), and keywords
(:data:`KEYWORDS`) with an equals sign right behind them, and behind that a literal or nothing.
Everything else stays as it is, such as what a user's own operator said.
"""

from __future__ import annotations

import re

from geopatch_dask.cli.keys import find, parted

__all__ = ["KEYWORDS", "PHRASES", "in_words"]

#: What would take one Python object is said as a whole, in this order.
PHRASES: tuple[tuple[str, str], ...] = (
    ("overwrite=True (--overwrite)", "--overwrite"),
    ("repair=True (--repair)", "--repair"),
    ("overwrite=True", "--overwrite"),
    ("repair= is about", "--repair is about"),
    (", or gp.retry(target, operator_changed=True)", ""),
    ("gp.attach(target).cancel()", "geopatch status TARGET --cancel"),
    ("pass the plan itself instead of its target, or run the plan again", "run the job again"),
    # ---- what a stored plan lacks: the command line can give an operator, and nothing else
    (", or pass field= again", ""),
    ("; pass operator= again", "; name it: geopatch retry --operator MODULE:NAME"),
    ("; pass field= again", "; retry and verify it in Python, where it is"),
    ("; pass patcher= again", "; retry and verify it in Python, where it is"),
    (", or pass field= and operator= as it was given to gp.plan", ""),
    (", or pass field= as it was given to gp.plan", ""),
    (
        ", or pass operator= as it was given to gp.plan",
        ", or name that: geopatch retry --operator MODULE:NAME",
    ),
    (", or pass the plan as it was given to gp.plan", ""),
    # ---- fields
    (
        'mask=gp.RasterField("mask.tif", bands=1), or in a job file mask = {',
        "[field] mask = {",
    ),
    # ---- operators
    (
        "Operator('module:make', factory=True)",
        "[operator] function = 'module:make' with factory = true",
    ),
    ("(Operator(memory=))", "([operator] memory)"),
    ("Operator(memory=...), all", "[operator] memory, all"),
    ("Output(returns='float32' or '(5,)float32')", "[output] returns = 'float32' or '(5,)float32'"),
    (": per_patch(..., operator=)", ", by an operator of yours"),
    ("missing='mask'", "[operator] missing = 'mask'"),
    ("give over= an operator", "give [context] over an operator"),
    # ---- clusters
    ("folder: gp.cluster(..., folders=[...])", "folder: that of the job file, or the current one"),
    # ---- outputs
    ("give one aggregation per key, aggregation={'name': ...}", "give each a table [outputs.NAME]"),
    ("gp.Output(missing=value)", "[output] missing = value"),
    ("gp.Output(scale=...)", "[output] scale"),
    ("gp.Output(dims=...)", "[outputs.NAME] dims"),
    ("give each gp.Output(name=...)", "give each [outputs.NAME] name"),
    ("use gp.Output(name=...)", "use [output] name, or [outputs.NAME] name"),
    ("ByIndex(schema={...})", "aggregation = {class = 'ByIndex', schema = {...}}"),
    ("ByIndex(schema=...)", "aggregation = {class = 'ByIndex', schema = {...}}"),
    ("use geometry=None, rows", "drop geometry, rows"),
    ("geometry=", "geometry = "),
    # ---- runs
    ("neither 'auto', a Patcher, nor cells per axis", "neither 'auto' nor cells per axis"),
    ("make super-tiles smaller (outer)", "make super-tiles smaller ([run] outer)"),
    ("adapt=(fewest, most)", "[cluster] adapt"),
)

#: Keywords of Python that messages name, and the keys of a job that they are.
KEYWORDS: dict[str, str] = {
    parted(place)[1]: place
    for place in (
        *("field.bands", "field.variable", "field.mask", "field.masked", "field.crs"),
        *("field.engine", "field.group", "field.reader"),
        *("patch.boundary", "operator.factory", "operator.trial", "context.over"),
        *("output.missing", "output.shards"),
        *("run.memory_limit", "run.on_error"),
        *("cluster.tls", "cluster.image", "cluster.secret", "cluster.processes"),
    )
} | {"context": "context.statistic"}

_PLACES = {keyword: find(*parted(place)).place for keyword, place in KEYWORDS.items()}
#: A keyword that is not a part of another word, and what may stand behind the equals sign.
_KEYWORD = re.compile(
    rf"(?<![\w.\]-])({'|'.join(_PLACES)})=(?:(True|False)\b|((?=['\"\d]))|(?=[\s,;:.)]|$))"
)


def in_words(text: str) -> str:
    """A message of the package, with keys of a job and flags for keywords of Python.

    >>> in_words("choose boundary='shift', or pass overwrite=True")
    "choose [patch] boundary = 'shift', or pass --overwrite"
    """
    for python, words in PHRASES:
        text = text.replace(python, words)
    return _KEYWORD.sub(_as_key, text)


def _as_key(found: re.Match[str]) -> str:
    place, switch, value = _PLACES[found[1]], found[2], found[3]
    if switch:
        return f"{place} = {switch.lower()}"
    return place if value is None else f"{place} = "
