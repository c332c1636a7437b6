"""The documentation: every code block runs, every table says what the code says, every link leads
somewhere."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import geopatch_dask as gp

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *PAGES]
#: Pages whose blocks are one session, executed here.
SESSIONS = [
    "README.md",
    "docs/aggregations.md",
    "docs/clusters.md",
    "docs/comparison.md",
    "docs/concepts.md",
    "docs/contracts.md",
    "docs/cost.md",
    "docs/howto/chunks.md",
    "docs/howto/normalisation.md",
    "docs/howto/resume.md",
    "docs/howto/unet.md",
    "docs/howto/window.md",
    "docs/jobs.md",
    "docs/quickstart.md",
    "docs/start.md",
    "docs/storage.md",
    "docs/trust.md",
    "docs/watching.md",
]
#: Those of them that start clusters, a minute in all; CI runs them with the slow tests.
CLUSTERS = {
    *("docs/clusters.md", "docs/howto/resume.md", "docs/jobs.md", "docs/quickstart.md"),
    *("docs/start.md", "docs/watching.md"),
}
#: Pages with a test of their own, and where that is; it must name the page.
ELSEWHERE = {
    "docs/deploy/containers.md": "tests/test_deploy_pages.py",
    "docs/deploy/kubernetes.md": "tests/test_deploy_pages.py",
    "docs/deploy/pbs.md": "tests/test_jobqueue_pages.py",
    "docs/deploy/slurm.md": "tests/integration/test_slurm_page.py",
    "docs/job-file.md": "tests/test_docs.py",
    "docs/troubleshooting.md": "tests/test_troubleshooting.py",
}
#: Pages that take a reader by the hand; each shows a picture.
TUTORIALS = [
    "start.md",
    "quickstart.md",
    "concepts.md",
    "howto/chunks.md",
    "howto/normalisation.md",
    "howto/resume.md",
    "howto/unet.md",
    "howto/window.md",
    "gallery.md",
    "watching.md",
    "comparison.md",
    "jobs.md",
    "trust.md",
    "cost.md",
    "clusters.md",
    *(f"deploy/{page.name}" for page in sorted(DOCS.glob("deploy/*.md"))),
]
#: Why a block may be left out, and nothing else.
REASONS = {
    "installs software",
    "is a target of the Makefile",
    "needs a batch system",
    "needs a cluster",
    "needs a store of yours",
    "says the same in other words",
}


@pytest.fixture(scope="module")
def blocks() -> Iterator[ModuleType]:
    """The runner of code blocks, which lies beside the Sphinx extension."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import blocks

        yield blocks
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the tables under a heading, up to the next one; without the head of a table."""
    text = page.read_text("utf-8")
    section = re.split(r"^#+ ", text.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[
        0
    ]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {i - 1 for i, row in enumerate(found) if set("".join(row)) <= set("-: ")}
    return [row for i, row in enumerate(found) if i not in heads and i - 1 not in heads]


# ---- what pages do -------------------------------------------------------------------------


def runs(block: Any) -> bool:
    """Whether somebody has to execute a block."""
    return block.kind in ("python", "console") and block.mark not in ("skip", "file")


def test_every_page_is_executed_somewhere(blocks: ModuleType) -> None:
    told = {*SESSIONS, *ELSEWHERE}
    assert not set(SESSIONS) & set(ELSEWHERE)
    assert {name for name in told if not (ROOT / name).exists()} == set()
    for page in (ROOT / "README.md", *PAGES):
        if any(runs(block) for block in blocks.parse(page)):
            assert name_of(page) in told, f"add {name_of(page)} to SESSIONS or ELSEWHERE"
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text("utf-8"), f"{test} does not name {page}"


def test_blocks_that_are_left_out_have_a_reason_and_real_flags(blocks: ModuleType) -> None:
    from geopatch_dask.cli.parser import build_parser

    for block in (block for page in TEXTS for block in blocks.parse(page)):
        if block.mark != "skip":
            continue
        assert block.value in REASONS, f"{block.where}: left out because {block.value!r}"
        for target in re.findall(r"^\$ make (\w+)", block.code, re.MULTILINE):
            assert f"\n{target}: " in (ROOT / "Makefile").read_text("utf-8"), block.where
        for command in re.findall(r"^\$ geopatch (.+?)(?:  #.*)?$", block.code, re.MULTILINE):
            build_parser().parse_args(shlex.split(command))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in CLUSTERS else ()) for page in SESSIONS],
)
def test_every_block_of_a_page_runs(
    page: str, blocks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="pages draw pictures")
    pytest.importorskip("rioxarray", reason="pages read the CRS with it")
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("Agg")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages; ours are looked at in other tests
        blocks.run_page(ROOT / page, tmp_path, {"PATH": path})
    plt.close("all")


def test_the_job_file_and_its_python_are_the_same_job(
    blocks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rasterio

    from geopatch_dask.cli.commands import make_plan
    from geopatch_dask.cli.job import load_job

    profile = {"driver": "GTiff", "width": 300, "height": 200, "count": 3, "dtype": "uint8"}
    transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    values = np.arange(3 * 200 * 300, dtype="uint32").reshape(3, 200, 300) % 251
    with rasterio.open(
        tmp_path / "scene.tif", "w", crs="EPSG:32633", transform=transform, nodata=0, **profile
    ) as file:
        file.write(values.astype("uint8"))
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\n"
        "def index(patch, scale):\n    return scale * (patch[1] - patch[0])\n\n\n"
        "def anomaly(patch, context):\n"
        "    value = (patch - context['mean'][0]) / context['std'][0]\n"
        "    return {'value': value, 'class': np.clip(np.rint(value + 1), 0, 2)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    space = blocks.run_page(DOCS / "job-file.md", tmp_path, {}, main="job")
    monkeypatch.chdir(tmp_path)
    for name, python in (("job.toml", "job"), ("two.toml", "two_passes")):
        job = load_job(name)
        with job.importable():
            made = make_plan(job, "threads")
            same = space[python]()
        assert made.fingerprint == same.fingerprint
        assert made.layout == same.layout
        assert made.run("threads").complete


@pytest.mark.parametrize("script", sorted((DOCS / "gallery").glob("*.py")), ids=lambda p: p.stem)
def test_the_gallery_draws(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the gallery draws pictures")
    space = runpy.run_path(str(script))
    space["main"](["--out", str(tmp_path)])
    assert (tmp_path / f"{script.stem}.png").read_bytes().startswith(b"\x89PNG")
    assert f"({script.relative_to(DOCS).as_posix()})" in (DOCS / "aggregations.md").read_text(
        "utf-8"
    )


# ---- what pages say ------------------------------------------------------------------------


def test_readme_is_one_screen() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 90
    code = "\n".join(lines).split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_blocks_are_well_formed(page: Path, blocks: ModuleType) -> None:
    found = blocks.parse(page)
    assert page.read_text("utf-8").count("```") % 2 == 0
    for block in found:
        if block.kind == "python":
            ast.parse(block.code, block.where)
        elif block.kind == "toml":
            tomllib.loads(block.code)
        elif block.kind == "console" and page in (ROOT / "README.md", *PAGES):
            assert block.code.startswith("$ "), block.where


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        where = (page.parent / file) if file else page
        assert where.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(where), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "design.md", DOCS / "contracts.md"], ids=name_of
)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|md|toml))(?::\w+)?`", text):
        places = (ROOT / name, ROOT / "geopatch_dask" / name)
        assert any(place.exists() for place in places), f"{name_of(page)} names {name}"


def test_every_page_is_in_the_contents() -> None:
    trees = (DOCS / "index.md").read_text("utf-8").split("{toctree}")[1:]
    listed = [
        name
        for tree in trees
        for name in re.findall(r"^([\w/-]+)$", tree.split("```")[0], re.MULTILINE)
    ]
    assert len(listed) == len(set(listed))
    made = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
    assert set(listed) == made - {"index"}
    assert len(trees) == (DOCS / "index.md").read_text("utf-8").count(":caption:")


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_to_other_sites_are_well_formed(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((\w+://[^)\s]+)\)", text):
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert "." in (parts.hostname or ""), link
        assert not re.search(r"[<>{}|\\^`]", link), link


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_tutorial_page_has_a_picture(name: str) -> None:
    page = DOCS / name
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+\.png)\)", page.read_text("utf-8"))
    assert pictures, f"{name} shows nothing"
    for told, where in pictures:
        assert len(told) > 20, f"{name}: {where} needs a description"
        assert (page.parent / where).read_bytes().startswith(b"\x89PNG")


def test_every_picture_is_made_by_a_script() -> None:
    sys.path.insert(0, str(DOCS / "figures"))
    try:
        from pages import PICTURES
    finally:
        sys.path.remove(str(DOCS / "figures"))
    made = {f"{script.stem}.png" for script in DOCS.glob("figures/*.py")}
    made |= {f"{script.stem}.png" for script in DOCS.glob("gallery/*.py")}
    made |= {name for pictures in PICTURES.values() for name in pictures.values()}
    assert {picture.name for picture in (DOCS / "images").glob("*.png")} <= made
    for page, pictures in PICTURES.items():
        text = (DOCS / page).read_text("utf-8")
        for drawn, kept in pictures.items():
            assert f'savefig("{drawn}"' in text, f"{page} draws no {drawn}"
            assert f"images/{kept})" in text, f"{page} does not show {kept}"


def test_every_public_name_is_documented() -> None:
    pytest.importorskip("sphinx", reason="the page is made by a Sphinx extension")
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import public_api
    finally:
        sys.path.remove(str(DOCS / "_ext"))
    page = (DOCS / "api.md").read_text("utf-8")
    for name in public_api.public_names():
        assert not public_api.undocumented(name), name
        assert f"<!-- public: {public_api.group_of(name)} -->" in page, name


# ---- what tables say -----------------------------------------------------------------------


def test_every_key_of_a_job_is_in_the_reference() -> None:
    from geopatch_dask.cli.keys import KEYS, SECTIONS

    for section in SECTIONS:
        table = rows(DOCS / "job-file.md", f"`[{section}]`")
        told = {row[0].strip("`"): row[1].strip("`") for row in table}
        assert told == {key.name: key.flag for key in KEYS if key.section == section}


def test_flags_and_exit_codes_of_the_command() -> None:
    from geopatch_dask.cli import console
    from geopatch_dask.cli.keys import KEYS
    from geopatch_dask.cli.parser import build_parser

    page = DOCS / "job-file.md"
    codes = {int(row[0]) for row in rows(page, "Exit status")}
    known = ("OK", "INCOMPLETE", "BAD_INPUT", "INTERRUPTED", "TERMINATED")
    assert codes == {getattr(console, name) for name in known}
    told = set(
        re.findall(r"--[a-z-]+", " ".join(r[1] for r in rows(page, "Flags that are no keys")))
    )
    commands = next(a for a in build_parser()._actions if a.choices and "run" in a.choices).choices
    named = " ".join(row[0] for row in rows(page, "Job files and the command line"))
    assert set(commands) == set(re.findall(r"`geopatch (\w+)", named))
    flags = {
        flag for parser in commands.values() for a in parser._actions for flag in a.option_strings
    }
    keys = {key.flag for key in KEYS if key.flag} - {"--allow-uncovered", "--workers", "--size"}
    keys |= {f"--no-{flag[2:]}" for flag in keys} | {"--no-allow-uncovered"}
    assert told == {flag for flag in flags if flag.startswith("--")} - keys - {"--help"}


def test_constants_of_the_design_are_those_of_the_code() -> None:
    from geopatch_dask.aggregation.passes import PATCHES_PER_LEAF
    from geopatch_dask.execute.driving.graph import FAN_IN
    from geopatch_dask.fields import GDAL_CACHE
    from geopatch_dask.planning import choose, sweep
    from geopatch_dask.planning.memory import MemoryModel

    text = (DOCS / "design.md").read_text("utf-8")
    model = MemoryModel()
    assert f"| {model.reserved >> 20} MiB | `reserved`" in text
    assert f"| {GDAL_CACHE >> 20} MiB for a raster" in text
    for name in ("reading", "temporaries", "rounding", "encoding", "share"):
        assert f"`{name}` = {getattr(model, name):g}" in text, name
    assert {f.name for f in dataclasses.fields(model)} <= set(re.findall(r"`(\w+)`", text))
    assert f"{choose.TASK_CELLS:,} / cells".replace(",", " ") in text
    assert (
        f"{choose.LOSS:.0%}".replace("%", " %") + f" for each wave short of {choose.WAVES}" in text
    )
    assert f"within {choose.TIE:.0%}".replace("%", " %") in text
    assert f"at least {sweep.LEAST_BAND} rows" in text
    assert f"{FAN_IN} at a time" in text
    assert f"fixed groups of {PATCHES_PER_LEAF} patches" in text


def test_limits_of_the_performance_page_are_those_of_the_benchmarks() -> None:
    page = (DOCS / "performance.md").read_text("utf-8")
    source = {p.stem: p.read_text("utf-8") for p in (ROOT / "benchmarks").glob("bench_*.py")}
    assert {f"{stem}.py" for stem in source} == set(re.findall(r"`(bench_\w+\.py)`", page))
    assert "LIMIT = 1.6" in source["bench_raster"]
    assert "1.6 x the seconds" in page
    assert "LIMIT = 1 / 0.7" in source["bench_s3"]
    assert f"{1 / 0.7:.2f} x, which is 70 %" in page
    assert 'away, 0.25, "away from the plan"' in source["bench_memory"]
    assert "25 % away from the plan" in page
    assert 'share, 1.0, "x the plan"' in source["bench_memory"]
    assert "| 1 x the plan |" in page
    assert '400 / rate, 1.0, "x of 400 super-tiles/s"' in source["bench_driver"]
    assert "| 400 super-tiles per second | 1 x |" in page
    assert 'seen[1] / seen[0], 1.1, "x that after 5000"' in source["bench_driver"]
    assert "| the same after 5000 super-tiles | 1.1 x |" in page
    assert 'seconds / SECONDS, 1.0, f"x of {SECONDS} s"' in source["bench_resume"]
    assert "SECONDS = 30\n" in source["bench_resume"]
    assert "through each client | 30 s | 1 x |" in page
    assert "LIMIT = 2.0" in source["bench_cost"]
    assert "2 x apart" in page
    assert "TARGET = 30e6" in source["bench_sketches"]
    assert "30 million values per second" in page
    assert re.search(r"<!-- numbers -->\n.+\n<!-- end of numbers -->", page, re.DOTALL)


def test_the_table_of_aggregations() -> None:
    table = rows(DOCS / "aggregations.md", "Aggregation: from patches to cells")
    told = {}
    for row in table:
        for name in re.findall(r"`(\w+)\(", row[0]):
            told[getattr(gp, name)] = row
    public = {getattr(gp, name) for name in gp.__all__ if isinstance(getattr(gp, name), type)}
    assert set(told) == {a for a in public if issubclass(a, gp.Aggregation)} - {gp.Aggregation}
    for kind, row in told.items():
        assert kind.weighted == (row[2] == "used"), kind
        if row[-1].isdecimal():
            assert kind().bytes_per_cell(np.dtype("float32")) * (2 if kind.inputs else 1) == int(
                row[-1]
            ), kind
        else:
            assert kind.streaming_safe == (not row[-1].startswith("K values")), kind


def test_the_table_of_statistics() -> None:
    table = rows(DOCS / "aggregations.md", "Two passes: a statistic first")
    told = {name for row in table for name in re.findall(r"`(\w+)\(", row[0])}
    public = {name for name in gp.__all__ if isinstance(getattr(gp, name), type)}
    assert told == {n for n in public if issubclass(getattr(gp, n), gp.Statistic)} - {"Statistic"}


@pytest.mark.parametrize(
    ("heading", "base"), [("Window: how much a cell counts", "window"), ("Edges", "boundary")]
)
def test_windows_and_edges_are_all_listed(heading: str, base: str) -> None:
    from typing import get_args

    from geopatch_dask.patch.boundary import Boundary

    told = {re.findall(r"`(\w+)", row[0])[0] for row in rows(DOCS / "aggregations.md", heading)}
    if base == "boundary":
        assert told == set(get_args(Boundary))
    else:
        assert told == {w.__name__ for w in gp.Boxcar.__mro__[1].__subclasses__()} & set(gp.__all__)


def test_what_is_not_built_does_not_exist() -> None:
    text = (DOCS / "design.md").read_text("utf-8").split("## Not built yet")[1]
    for name in re.findall(r"`(\w+)(?:\(\w*=?\))?`", text):
        assert not hasattr(gp, name), f"gp.{name} exists: take it off the list in docs/design.md"
