"""Messages on the command line name keys and flags, not keywords of Python."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cli_jobs import Raw, Shop, geopatch

import geopatch_dask as gp
from geopatch_dask.cli.console import LONGEST, note, out
from geopatch_dask.cli.keys import find, parted
from geopatch_dask.cli.words import KEYWORDS, PHRASES, in_words
from geopatch_dask.clusters.core import all_words
from geopatch_dask.errors import OptionError
from geopatch_dask.execute.target import rebuild

Captured = pytest.CaptureFixture[str]
PACKAGE = Path(gp.__file__).parent

#: Messages with keywords of Python that no job file and no flag can bring about, and why.
PYTHON_ONLY = {
    "testing/": "for tests",
    "report/": "markup",
    "with asynchronous=True cannot run": "the scheduler is an object",
    "is no scheduler: pass None": "the scheduler is an object",
    "is submitted to a cluster that outlives": "geopatch submit does not ask for it",
    "ask for another one with gp.cluster": "the scheduler is an object",
    "holds no arrays, only tables: gp.read_table": "of gp.open",
    "is a table: gp.read_table reads it": "of gp.open",
    "holds no table; gp.open reads": "of gp.read_table",
    "pass *= with a path or URL only": "the plan is an object",
    "fit= runs in a pass over": "Context.of never does that",
    "give one Output per key": "a job with several outputs has several",
    'over="output" reduces what': "of Patcher.reduce",
    "give cells=, for instance": "of gp.per_block",
    "mask= takes a Field": "the sort of the key is checked before",
    "engine=, group= and options= open": "the source is an object",
    "the DataArray is '*'; variable= chooses": "the source is an object",
    "client='obstore' *; or use client=": "of Location(client=)",
    ", client='*'": "the repr of a Location",
    "SoftVote(*, axis=*) needs": "says what it is called with",
    "dask.org/cluster-name=": "a label of Kubernetes",
    "4,cores=32,memory=256GiB": "a flag",
    "4,cores=16,memory=64GiB": "a flag",
    "select=1:ncpus=": "an option of PBS",
}


@cache
def messages() -> tuple[tuple[str, str], ...]:
    """Every text of the package that is no docstring; ``*`` or ``'*'`` for what is filled in."""
    found: list[tuple[str, str]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("cli/"):
            found += [(name, text) for text in _texts(ast.parse(path.read_text("utf-8")))]
    return tuple(found)


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(_part(value) for value in node.values)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def _part(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    return "'*'" if getattr(value, "conversion", -1) == ord("r") else "*"


@cache
def keywords() -> frozenset[str]:
    """Keywords of what somebody may call from Python."""
    calls: tuple[Callable[..., Any], ...] = (
        *(gp.plan, gp.Plan.run, gp.retry, gp.verify, gp.doctor, gp.cluster, gp.Policy),
        *(gp.Patcher, gp.Rectangular, gp.Operator, gp.Output, gp.RasterField, gp.XarrayField),
        *(gp.ByIndex, gp.HardVote, gp.SoftVote, gp.Location, gp.per_block),
    )
    names = {name for call in calls for name in inspect.signature(call).parameters}
    return frozenset(names | set(all_words()) | {"fit", "asynchronous"})


def python_in(text: str) -> list[str]:
    """What is Python in a message: keywords with an equals sign, and names of the package."""
    named = re.findall(r"(?<![\w.-])([a-z_]+)=", text)
    return [n for n in named if n in keywords()] + re.findall(r"\bgp\.\w+|pass \*=", text)


def excused(where: str, text: str) -> bool:
    return any(where.startswith(why) or why in text for why in PYTHON_ONLY)


def test_no_message_that_the_command_can_print_speaks_python() -> None:
    told = {
        f"{where}: {in_words(text)}"
        for where, text in messages()
        if python_in(text) and not excused(where, text) and python_in(in_words(text))
    }
    left = {text for text in told if not any(d in text for d in DYNAMIC.values())}
    assert left == set()


#: Of what is filled in: the phrase, and what the source has instead.
DYNAMIC = {
    **{
        phrase: "or pass * as it was given to gp.plan"
        for phrase, _ in PHRASES
        if "as it was given" in phrase
    },
    **{
        f"; pass {name}= again": "(it was in memory only); pass *= again"
        for name in ("operator", "field", "patcher")
    },
}


def test_every_phrase_and_keyword_is_one_of_the_package() -> None:
    texts = [text for _, text in messages()]
    for phrase, _ in PHRASES:
        assert any(DYNAMIC.get(phrase, phrase) in text for text in texts), phrase
    for keyword, place in KEYWORDS.items():
        assert find(*parted(place)).name == parted(place)[1]
        named = re.compile(rf"(?<![\w.\]-]){keyword}=")
        assert any(named.search(text) for text in texts), keyword
    for words in PYTHON_ONLY:
        assert any(where.startswith(words) or words in text for where, text in messages()), words


@pytest.mark.parametrize("names", [["field.a"], ["operator.code"], ["field.a", "operator.b"], []])
def test_what_a_rebuilt_plan_asks_for(names: list[str]) -> None:
    told = in_words(f"give it back, or pass {rebuild._remedy(names)} as it was given to gp.plan")
    assert "=" not in told
    assert ("--operator" in told) == (names == ["operator.code"])


SAID = [
    ("choose boundary='shift' (or pad)", "choose [patch] boundary = 'shift' (or pad)"),
    ("under boundary='reflect': use", "under [patch] boundary = 'reflect': use"),
    ("give it memory_limit='2 GiB', or", "give it [run] memory_limit = '2 GiB', or"),
    ("or pass overwrite=True (--overwrite) to", "or pass --overwrite to"),
    ("run with overwrite=True", "run with --overwrite"),
    ("repair=True (--repair) mends", "--repair mends"),
    ("repair= is about a target", "--repair is about a target"),
    ("choose bands= from 1 to 3", "choose [field] bands from 1 to 3"),
    ("and engine= and group=", "and [field] engine and [field] group"),
    ("is incomplete (x); give crs=", "is incomplete (x); give [field] crs"),
    ("name one: variable=", "name one: [field] variable"),
    (
        "masked=False returns stored values, mask= blanks some",
        "[field] masked = false returns stored values, [field] mask blanks some",
    ),
    ("use reader='fsspec'", "use [field] reader = 'fsspec'"),
    ("with NaN or missing=", "with NaN or [output] missing"),
    ("missing='mask' needs", "[operator] missing = 'mask' needs"),
    ("64 objects: shards= of a few", "64 objects: [output] shards of a few"),
    ("over= belongs to it: give context= a", "[context] over belongs to it: give [context] sta"),
    ("give over= an operator", "give [context] over an operator"),
    ("left out (on_error='fill')", "left out ([run] on_error = 'fill')"),
    ("give tls='folder' with", "give [cluster] tls = 'folder' with"),
    ("give image='...'", "give [cluster] image = '...'"),
    ("with secret='...'", "with [cluster] secret = '...'"),
    ("or give processes=1", "or give [cluster] processes = 1"),
    ("as in processes=8", "as in [cluster] processes = 8"),
    ("has trial=False, but", "has [operator] trial = false, but"),
    ("Operator('module:make', factory=True)", "function = 'module:make' with factory = true"),
    ("needs (Operator(memory=)), or", "needs ([operator] memory), or"),
    ("(gp.Output(scale=...) if it", "([output] scale if it"),
    ("say gp.Output(missing=value)", "say [output] missing = value"),
    ("or gp.attach(target).cancel()", "or geopatch status TARGET --cancel"),
    ("(it was in memory only); pass operator= again", "geopatch retry --operator MODULE:NAME"),
    ("or smaller (outer)", "or smaller (outer)"),
]


@pytest.mark.parametrize(("python", "words"), SAID, ids=[python for python, _ in SAID])
def test_what_python_says_in_words(python: str, words: str) -> None:
    told = in_words(python)
    assert words in told
    assert in_words(told) == told


def test_the_page_says_so_too() -> None:
    page = (PACKAGE.parent / "docs" / "job-file.md").read_text("utf-8")
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", page.split("\n## Errors\n")[1], re.MULTILINE)
    assert rows
    assert [(python, in_words(python)) for python, _ in rows] == rows


@pytest.mark.parametrize(
    "text",
    [
        "conv2d(x, stride=1, padding='same', size=3)",
        "f(x, mask=None)",
        "no_mask=1, self.crs=2, a-group=3",
        "[run] memory_limit = '2 GiB'",
        "boundary=wrapped",
        "http://host/?bands==3",
        "--nodes 4,cores=32,memory=256GiB",
    ],
)
def test_everything_else_stays_as_it_is(text: str) -> None:
    assert in_words(text) == text


def test_text_that_is_a_result_is_left_alone(capsys: Captured) -> None:
    out('{"remedy": "overwrite=True"}')
    out(OptionError("overwrite=True"))
    note("overwrite=True\n  or\nboundary='shift'", "warning")
    note("x" * 2 * LONGEST)
    told = capsys.readouterr()
    assert told.out == '{"remedy": "overwrite=True"}\n--overwrite\n'
    first, second = told.err.splitlines()
    assert first == "geopatch: warning: --overwrite or [patch] boundary = 'shift'"
    assert second == f"geopatch: {'x' * LONGEST} ..."


# ---- by the command ------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch.boundary": "raise", "patch.size": 60}, "choose [patch] boundary = 'shift'"),
        ({"patch.size": 999}, "under [patch] boundary = 'shift': use a patch of at most 256"),
        ({"run.memory_limit": "1 MB"}, "give it [run] memory_limit = '"),
        ({"run.outer": "large"}, "outer 'large' is neither 'auto' nor cells per axis"),
        ({"field.bands": 9}, "choose [field] bands from 1 to 1"),
        ({"field.masked": False, "field.mask": "scene.tif"}, "[field] masked = false returns"),
        ({"field.reader": "fsspec"}, "[field] reader = 'fsspec' opens URLs"),
        ({"field.reader": "gdl"}, "[field] reader = 'gdl': use one of gdal, fsspec"),
        ({"field.storage_options": Raw('{key = "env:K"}')}, "use [field] reader = 'fsspec'"),
        ({"operator.function": "MODULE:trimmed"}, "([output] scale if it refines or coarsens)"),
        ({"output.name": "y"}, "use [output] name, or [outputs.NAME] name"),
    ],
)
def test_errors_of_a_job(shop: Shop, capsys: Captured, changes: dict[str, Any], says: str) -> None:
    assert geopatch("run", shop.job(changes)) == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.splitlines()) == 1


def test_errors_of_a_target_and_of_doctor(shop: Shop, capsys: Captured) -> None:
    job = shop.job()
    assert geopatch("run", job, "--quiet") == 0
    capsys.readouterr()
    assert geopatch("run", job, "--step", "32") == 2
    assert "choose another target, or pass --overwrite to replace it" in capsys.readouterr().err
    assert geopatch("plan", job, "--step", "32") == 0
    assert "or pass --overwrite to replace it" in capsys.readouterr().err
    assert geopatch("doctor", "--repair") == 2
    assert "error: --repair is about a target: name it" in capsys.readouterr().err
    chunk = next(p for p in shop.target.rglob("c/0/0") if p.parts[-4] == "data")
    chunk.write_bytes(b"torn")
    assert geopatch("verify", str(shop.target)) == 1
    told = capsys.readouterr().out
    assert "--repair forgets" in told
    assert "repair=True" not in told
