"""The page of error messages: every message is in the source, and most are provoked here."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import geopatch_dask as gp
from geopatch_dask.clusters.kubernetes import pods_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
ENTRY = re.compile(
    r"^### (.+?)\n\n```text\n(.+?)\n```\n\n(.+?)(?=^##|\Z)", re.MULTILINE | re.DOTALL
)
ENTRIES = {
    title: (" ".join(said.split()), told)
    for title, said, told in ENTRY.findall(PAGE.read_text("utf-8"))
}

FIELD = gp.ArrayField(np.random.default_rng(0).random((64, 64)))
PATCHER = gp.Patcher(gp.Rectangular(16), gp.RegularStride(12), gp.Hann(), gp.OverlapAdd())


def plan(
    operator: Any = np.sqrt, target: Any = "memory://told", field: Any = FIELD, **more: Any
) -> gp.Plan:
    options = {"chunks": 16, "outer": 32, "memory_limit": "4 GiB", "slots": 1} | more
    return gp.plan(field, options.pop("patcher", PATCHER), operator, target, **options)


def failing(patch: Any) -> Any:
    if patch[0, 0] == FIELD.read(gp.Box((0, 0), (1, 1)))[0, 0]:
        raise ValueError("the first patch")
    return patch


def fickle(patch: Any) -> Any:
    first = FIELD.read(gp.Box((0, 0), (1, 1)))[0, 0]
    return patch if patch[0, 0] == first else patch.astype("float32")


def again(folder: Path, **more: Any) -> None:
    plan(target=folder / "t.zarr").run("sync")
    plan(target=folder / "t.zarr", **more).run("sync")


def command(*words: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        from geopatch_dask.cli.job import load_job

        (folder / "job.toml").write_text(words[0])
        job = load_job(folder / words[1])
        from geopatch_dask.cli.commands import make_plan

        with job.importable():
            make_plan(job, None)

    return call


def dropped(folder: Path) -> None:
    patcher = gp.Patcher(gp.Rectangular(16, boundary="drop"), gp.RegularStride(15))
    plan(target=folder / "t.zarr", patcher=patcher).run("sync")


def some_failed(folder: Path) -> None:
    values = np.ones((64, 64))
    values[20, 20] = 2.0

    def picky(patch: Any) -> Any:
        if patch.max() > 1:
            raise ValueError("a two")
        return patch

    plan(picky, folder / "t.zarr", gp.ArrayField(values)).run("sync")


def unfinished(folder: Path) -> None:
    plan(target=folder / "t.zarr").run("sync", share="0/2")
    gp.open(folder / "t.zarr")


def two_variables(folder: Path) -> None:
    import xarray as xr

    grid = (("y", "x"), np.ones((4, 4)))
    xr.Dataset({"a": grid, "b": grid}).to_zarr(folder / "two.zarr")
    gp.XarrayField(folder / "two.zarr").domain  # noqa: B018  # opens it


def foreign(folder: Path) -> None:
    (folder / "t.zarr").mkdir()
    (folder / "t.zarr" / "thesis.tex").write_text("years of work")
    plan(target=folder / "t.zarr").run("sync", overwrite=True)


def masked(folder: Path) -> None:
    place = {"transform": (10, 0, 0, 0, -10, 0), "crs": 32633}
    shifted = gp.ArrayField(np.ones((64, 64)), transform=(10, 0, 5, 0, -10, 0), crs=32633)
    gp.ArrayField(np.ones((64, 64)), mask=shifted, **place).read(gp.Box((0, 0), (4, 4)))


def verified(folder: Path) -> None:
    from geopatch_dask.testing import assert_layout_invariant

    rng = np.random.default_rng()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_layout_invariant(FIELD, PATCHER, lambda p: p + rng.random(), schedulers=("sync",))


def rebuilt(folder: Path) -> None:
    plan(target=folder / "t.zarr").run("sync")
    gp.verify(folder / "t.zarr")


def without_obstore(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("geopatch_dask.store.clients._installed", lambda: False)
        _ = gp.Location("s3://bucket/out.zarr", client="obstore").client_name


def waited(folder: Path) -> None:
    plan(target=folder / "t.zarr").run("sync", share="0/2")
    gp.attach(folder / "t.zarr").wait()


def without_gpus(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CUDA_VISIBLE_DEVICES", "")
        gp.cluster("local", gpus=2)


def batch(kind: str, configured: dict[str, Any] | None = None, **words: Any) -> None:
    """What would be asked of a batch system; nothing is."""
    import dask

    from geopatch_dask.clusters.jobqueue import job_options
    from geopatch_dask.clusters.request import Request

    pytest.importorskip("dask_jobqueue")
    with dask.config.set(configured or {}):
        job_options(kind, Request(), {"interface": "lo"} | words)


def no_sbatch(folder: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", str(folder))
        gp.cluster("slurm", interface="lo", walltime="1:00:00")


def no_kubeconfig(folder: Path) -> None:
    pytest.importorskip("dask_kubernetes")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KUBECONFIG", str(folder / "none"))
        gp.cluster("kubernetes", image="a")


def big_operator() -> Callable[[Any], Any]:
    weights = np.ones(64 << 20, "uint8")
    return lambda patch: patch + weights[0]


def locked() -> Callable[[Any], Any]:
    lock = threading.Lock()

    def guarded(patch: Any) -> Any:
        with lock:
            return patch

    return guarded


LARGE = gp.ArrayField(np.broadcast_to(np.float32(1), (65536, 65536)))
JOB = '[field]\npath = "a.tif"\n[patch]\nsize = 8\nstep = 8\n[operator]\nfunction = "m:f"\n'
SECRET = {"secret": "wJalrXUtnFEMI"}

PROVOKED: dict[str, Callable[[Path], Any]] = {
    "Memory plan refused": lambda _: plan(
        field=LARGE, chunks=8192, outer="auto", memory_limit="300 MiB"
    ),
    "Super-tiles are not whole write units": lambda _: plan(outer=40),
    "Shards do not hold whole chunks": lambda _: plan(shards=40),
    "Field smaller than a patch": lambda _: plan(
        patcher=gp.Patcher(gp.Rectangular(128), gp.RegularStride(64))
    ),
    "The operator failed in the trial": lambda _: plan(failing),
    "The operator returns another shape": lambda _: plan(lambda patch: patch[1:]),
    "The operator changes its mind": lambda _: plan(fickle),
    "The operator cannot be sent": lambda _: plan(locked()),
    "The operator is too large to send": lambda _: plan(big_operator()),
    "The operator is not found": lambda _: plan("no_such_module:function"),
    "A file is not where it should be": lambda folder: plan(field=str(folder / "no.tif")),
    "Several variables": two_variables,
    "A mask on another grid": masked,
    "No scheduler like this": lambda _: plan().run("tcp://host:8786"),
    "An unknown key": command(JOB + "[run]\nworker = 2\n", "job.toml"),
    "Something is not given": command(JOB, "job.toml"),
    "No job file": command(JOB, "other.toml"),
    "Another plan's target": lambda folder: again(folder, operator=np.negative),
    "Other chunks": lambda folder: again(folder, chunks=32),
    "Something else is there": foreign,
    "Nothing is there": lambda folder: gp.open(folder / "t.zarr"),
    "Not complete": unfinished,
    "In memory only": lambda _: plan().run("processes"),
    "Super-tiles failed": some_failed,
    "Holes": dropped,
    "Timeout on threads": lambda folder: plan(target=folder / "t.zarr").run(
        "threads", policy=gp.Policy(timeout=9)
    ),
    "Nobody works on it": waited,
    "A share that is none": lambda folder: plan(target=folder / "t.zarr").run("sync", share="4/4"),
    "An option that a cluster does not know": lambda _: gp.cluster("local", waltime="1:00"),
    "Fewer GPUs than asked for": without_gpus,
    "A word for what is started": lambda _: gp.cluster("tcp://host:8786", memory="1 GiB"),
    "Certificates for an open address": lambda _: gp.cluster("tcp://host:8786", tls="certs"),
    "A walltime that is too short": lambda _: batch("slurm", walltime="00:10:00", margin="590 s"),
    "A walltime without a unit": lambda _: batch("pbs", walltime=30),
    "A network that this machine lacks": lambda _: batch("slurm", interface="ib7"),
    "Memory of a job too small for its slots": lambda _: batch(
        "slurm", configured={"jobqueue.slurm.memory": "256 MiB"}, processes=9
    ),
    "Slots and GPUs of a job": lambda _: batch("slurm", processes=3, gpus=2),
    "Several slots without a nanny": lambda _: batch("slurm", processes=3, nanny=False),
    "No command to submit with": no_sbatch,
    "No image": lambda _: pods_of({}),
    "TLS between pods": lambda _: gp.cluster("kubernetes", image="a", tls="certs"),
    "The API server does not answer": no_kubeconfig,
    "A secret in plain text": lambda _: gp.Location("s3://bucket/out.zarr", SECRET),
    "A client that is not installed": without_obstore,
    "A plan that cannot be rebuilt": rebuilt,
    "No records": lambda folder: gp.status(folder / "t.zarr"),
    "An operator that does not repeat itself": verified,
}


def pattern(said: str) -> re.Pattern[str]:
    """A regular expression of a message with dots for what differs."""
    return re.compile(".*".join(re.escape(part) for part in said.split("...")), re.DOTALL)


@cache
def templates() -> list[str]:
    """Every text of the package, with dots in place of what is formatted."""
    found = []
    for file in (ROOT / "geopatch_dask").rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            if text := text_of(node):
                found.append(text)
    return found


def text_of(node: ast.AST) -> str:
    """A text, with a zero byte for what is formatted; empty if it is none."""
    if isinstance(node, ast.JoinedStr):
        parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
        return "".join(map(str, parts))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


#: Messages about one value, which say all that there is to say.
PLAIN = re.compile(
    r"must be|at least 1|must be positive|is no (kind|name|time|port)|has no option|not both|"
    r"leaves workers no time: as in"
)


@cache
def cluster_errors() -> dict[str, str]:
    """Texts of errors that clusters raise, and the files."""
    found = {}
    for file in sorted((ROOT / "geopatch_dask" / "clusters").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OptionError":
                said = text_of(node.args[0]) if node.args else ""
                found[said] = file.name
    return found


@pytest.mark.parametrize(
    "said", [said for said in cluster_errors() if len(said) > 20 and not PLAIN.search(said)]
)
def test_the_page_has_what_clusters_refuse(said: str) -> None:
    """Some of its fixed words, in an entry's message or in its text."""
    page = " ".join(PAGE.read_text("utf-8").split()).replace("*", "")
    fixed = [part.strip(" :(),;'") for part in said.split("\0")]
    assert any(part[:40] in page for part in fixed if len(part) > 12), cluster_errors()[said]


def test_entries_are_well_formed() -> None:
    text = PAGE.read_text("utf-8")
    assert len(ENTRIES) == text.count("\n### ") >= 20
    assert all(len(told) > 40 for _, told in ENTRIES.values())
    assert len({said for said, _ in ENTRIES.values()}) == len(ENTRIES)
    assert set(PROVOKED) <= set(ENTRIES)
    assert len(PROVOKED) >= 20


@pytest.mark.parametrize("title", [title for title in ENTRIES if title not in PROVOKED])
def test_a_message_that_needs_a_cluster_is_in_the_source(title: str) -> None:
    """Its fixed words; a message may be put together from several texts."""
    said, _ = ENTRIES[title]
    parts = [part.strip(" :(),;'") for part in re.split(r"\.\.\.|: |; ", said)]
    parts = [part for part in parts if len(part) > 12]
    assert parts
    missing = [part for part in parts if not any(part in text for text in templates())]
    assert not missing, f"nothing in the package says {missing}"


@pytest.mark.parametrize("title", PROVOKED)
def test_the_message_is_what_is_said(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said, _ = ENTRIES[title]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", gp.UncoveredWarning)
        warnings.simplefilter("error", gp.IncompleteWarning)
        with pytest.raises((gp.GeopatchError, UserWarning)) as caught:
            PROVOKED[title](tmp_path)
    text = " ".join(str(caught.value).split())
    assert pattern(said).search(text), text
