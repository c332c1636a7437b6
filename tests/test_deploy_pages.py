"""docs/deploy/kubernetes.md and containers.md: every block is executed, or judged by what it names.

Files are written and rendered; ``geopatch`` runs against an object store on loopback, Python
against an API server that pretends (:mod:`fake_kubernetes`), with a real scheduler behind it.
Commands that need a real cluster or engine are checked as far as they say something: what they
apply is rendered
and held against schemas, what they name must have been made, flags must exist.  A command that
nothing here understands is an error.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from deploy_schemas import (
    DEPLOY,
    ROOT,
    Spec,
    containers,
    contradictions,
    need_renderer,
    one,
    pod_specs,
    problems,
    render,
)
from dockerfile_steps import parse as parse_dockerfile
from fake_kubernetes import Kubernetes, api_server
from sample_s3 import process

from geopatch_dask.cli.clusters import kind_of
from geopatch_dask.cli.job import load_job
from geopatch_dask.cli.parser import build_parser
from geopatch_dask.clusters.kubernetes import OPTIONS

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
try:
    import blocks
finally:
    sys.path.remove(str(ROOT / "docs" / "_ext"))

PAGES = ROOT / "docs" / "deploy"


@dataclass
class Place:
    """Where a page is followed: a folder with ``deploy``, a bucket, an API server.

    ``light``: what takes long (geopatch, Python) is only parsed.
    """

    folder: Path
    env: dict[str, str]
    kubernetes: Kubernetes
    light: bool = False
    made: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def do(self, words: list[str]) -> str:
        """Run a command here."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    need_renderer()
    pytest.importorskip("moto.server", reason="it is the object store")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    with process("s3_server.py", "my-bucket") as port, api_server(tmp_path) as (known, config):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)  # of the integration tests' store, which GDAL would ask
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example-of-a-secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("KUBECONFIG", str(config))
        upload(tmp_path)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield Place(tmp_path, {**os.environ, "PATH": path}, known)


def upload(folder: Path) -> None:
    import boto3
    import rasterio

    values = np.random.default_rng(3).integers(1, 250, (4, 300, 300), dtype="uint8")
    with rasterio.open(
        folder / "scene.tif",
        "w",
        driver="GTiff",
        count=4,
        height=300,
        width=300,
        dtype="uint8",
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 4e5, 0, -10, 5e6),
    ) as file:
        file.write(values)
    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    s3.upload_file(str(folder / "scene.tif"), "my-bucket", "scene.tif")


# ---- following a page ----------------------------------------------------------------------


def follow(page: Path, place: Place) -> None:
    """Every block, in order."""
    for block in blocks.parse(page):
        if block.mark == "file":
            path = place.folder / block.value
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code + "\n", "utf-8")
            assert shape_is_right(path), block.where
        elif block.kind == "console":
            for line in block.code.splitlines():
                assert line.startswith("$ "), f"{block.where}: {line}"
                judge(shlex.split(line[2:]), place, block.where)
                place.told.append(line[2:])
        elif block.kind == "python":
            run_python(block, place)
        elif block.kind == "toml":
            # Beside the page's job: the end of it, as the page says.
            path = place.folder / "mine" / "shown.toml"
            job = (place.folder / "mine" / "job.toml").read_text("utf-8")
            path.write_text(f"{job}\n{block.code}\n", "utf-8")
            kind_of(load_job(path))
            judge_geopatch(["geopatch", "plan", str(path)], place)
        else:
            raise AssertionError(f"{block.where}: nobody checks a block of kind {block.kind!r}")


def shape_is_right(path: Path) -> bool:
    """Whether a file is what its name says; what it means shows when it is used."""
    text = path.read_text("utf-8")
    if path.suffix == ".toml":
        return bool(load_job(path).target)
    if path.suffix == ".py":
        return bool(compile(text, str(path), "exec"))
    if path.suffix == ".yaml":
        return yaml.safe_load(text)["kind"] in ("Kustomization", "Component")
    if path.suffix == ".env":
        return all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in text.splitlines())
    return path.name == "Dockerfile" and parse_dockerfile(path)[0].name == "FROM"


def judge(words: list[str], place: Place, where: str) -> None:
    """Run a command, or check what it says."""
    judges = {
        "kubectl": judge_kubectl,
        "geopatch": judge_geopatch,
        "docker": judge_docker,
        "helm": judge_helm,
        "sed": lambda words, place: place.do(words),
        "python": lambda words, place: place.do([sys.executable, *words[1:]]),
        "export": judge_export,
        "until": judge_until,
    }
    assert words[0] in judges, f"{where}: nobody can judge {words[0]!r}"
    try:
        judges[words[0]](words, place)
    except AssertionError as error:
        raise AssertionError(f"{where}: {shlex.join(words)}: {error}") from error


# ---- kubectl -------------------------------------------------------------------------------


def judge_kubectl(words: list[str], place: Place) -> None:
    verb = words[1]
    options = dict(pairwise(words))
    if verb == "kustomize":
        rendered(words[2], place)
    elif verb == "apply" and "-k" in options:
        documents = rendered(options["-k"], place)
        place.made |= {name for document in documents for name in names_of(document)}
        done = "the runner's work"  # done here, once
        if any(d["kind"] == "DaskJob" for d in documents) and not (
            {done} <= place.made or place.light
        ):
            place.made.add(done)
            job = str(place.folder / "mine/job.toml")
            place.do(["geopatch", "run", job, "--cluster", "sync", "--quiet"])
    elif verb == "apply" and "-f" in options:
        file = place.folder / options["-f"]
        documents = list(yaml.safe_load_all(file.read_text("utf-8")))
        assert documents
        assert [problem for d in documents for problem in problems(d)] == []
        place.made |= {name for document in documents for name in names_of(document)}
    elif verb == "delete" and "-k" in options:
        names = {n for d in rendered(options["-k"], place) for n in names_of(d)}
        assert names <= place.made, f"{names - place.made} was never made"
    elif verb == "create":
        created(words, place)
    elif verb == "label":
        assert f"{words[2]}/{words[3]}" in place.made
        assert re.fullmatch(r"[\w.-]+/[\w.-]+=[\w.-]+", words[4])
    elif verb in ("logs", "get", "wait", "port-forward", "delete"):
        assert f"namespace/{options.get('-n')}" in place.made, "in which namespace?"
        wanted = named(words)
        assert wanted in place.made, f"{wanted} was never made; there are {sorted(place.made)}"
        if verb == "wait" and wanted.startswith("job/"):
            raise AssertionError("a job that failed is never complete")
        if verb == "logs" and wanted.startswith("pod/"):
            assert options["-c"] in {"runner", "wait"}
            waits = f"daskjob/{wanted.removeprefix('pod/').removesuffix('-runner')}"
            assert any("kubectl wait" in line and waits in line for line in place.told), "too early"
    else:
        raise AssertionError(f"kubectl {verb} is not understood")


def rendered(folder: str, place: Place) -> list[Spec]:
    """What a folder of the page leads to; it must be right."""
    text = place.do([*need_renderer(), folder])
    documents = [document for document in yaml.safe_load_all(text) if document]
    assert documents
    assert [problem for d in documents for problem in problems(d)] == []
    assert contradictions(documents) == []
    return documents


def names_of(document: Spec) -> Iterator[str]:
    """What exists after a document was applied, as kind/name."""
    name = document["metadata"]["name"]
    yield f"{document['kind'].lower()}/{name}"
    if document["kind"] == "DaskJob":
        operator = pytest.importorskip("dask_kubernetes.operator.controller.controller")
        yield f"pod/{operator.get_job_runner_pod_name(name)}"
    if document["kind"] in ("DaskJob", "DaskCluster"):
        yield f"service/{name}-scheduler"


def named(words: list[str]) -> str:
    """The object that a command is about, as kind/name; all pods of a cluster are in the job."""
    flags = [i for i, word in enumerate(words) if word in ("-n", "-c", "-l", "-o", "--timeout")]
    rest = [
        word
        for i, word in enumerate(words[2:], start=2)
        if not word.startswith("-") and i - 1 not in flags
    ]
    if "/" in rest[0]:
        return rest[0]
    if words[1] == "logs":
        return f"pod/{rest[0]}"
    if rest == ["pods"]:
        label, _, role = words[words.index("-l") + 1].partition("=")
        assert (label, role in ("worker", "scheduler")) == ("dask.org/component", True)
        return "daskjob/geopatch"
    return f"{rest[0].rstrip('s')}/{rest[1]}"


def judge_until(words: list[str], place: Place) -> None:
    """A loop that looks at a job until it has ended, either way."""
    bar = words.index("|")
    judge_kubectl(words[1:bar], place)
    assert "jsonpath={.status.conditions[*].type}" in words[1:bar]
    assert words[bar + 1 :] == [
        *("grep", "-wE", "Complete|Failed;", "do", "sleep", "10;", "done"),
    ]


def judge_export(words: list[str], place: Place) -> None:
    """Variables of a bucket; those of the test stay."""
    named = {word.partition("=")[0] for word in words[1:]}
    assert named <= {name for name in place.env if name.startswith("AWS_")}, named


def created(words: list[str], place: Place) -> None:
    """Let kubectl make the object without sending it."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    document = yaml.safe_load(place.do([*words, "--dry-run=client", "-o", "yaml"]))
    document["metadata"].pop("creationTimestamp", None)
    for key in ("spec", "status"):
        if not document.get(key):
            document.pop(key, None)
    assert problems(document) == []
    place.made |= set(names_of(document))


# ---- the others ----------------------------------------------------------------------------


def judge_geopatch(words: list[str], place: Place) -> None:
    build_parser().parse_args(words[1:])
    if not (place.light or any("tcp://" in word for word in words)):
        place.told.append(place.do(words))


def judge_docker(words: list[str], place: Place) -> None:
    if words[1] in ("tag", "push"):
        assert f"image/{words[2]}" in place.made, f"{words[2]} was never made"
        place.made.add(f"image/{words[-1]}")
        return
    [image] = [i for i, w in enumerate(words) if re.fullmatch(r"geopatch-dask:[\w.-]+", w)][-1:]
    if words[1] == "build":
        place.made.add(f"image/{words[words.index('-t') + 1]}")
        assert parse_dockerfile(ROOT / words[words.index("-f") + 1])
        assert words[-1] == "."
    else:
        assert words[1] == "run"
        inner = words[image + 1 :]
        options = dict(pairwise(words[:image]))
        if "$PWD/mine:/job" in words:
            job = (place.folder / "mine/job.toml").read_text("utf-8")
            keys = place.folder / options.get("--env-file", "none")
            assert "s3://" not in job or keys.is_file(), "without the keys of its bucket"
        if inner[0] == "geopatch" and inner[1] != "--version":
            build_parser().parse_args(inner[1:])
        elif inner[0] == "dask":
            if inner[1] == "worker":
                assert {"$PWD/mine:/job", "PYTHONPATH=/job"} <= set(words), "without the operator"
                pages = dict(pairwise(inner)).get("--dashboard-address", "")
                assert pages.startswith("127.0.0.1:"), "its pages are on every network"
            usage = place.do([sys.executable, "-m", "dask", inner[1], "--help"])
            for flag in (word for word in inner if word.startswith("--")):
                assert re.search(rf"{flag}\b", usage), f"dask {inner[1]} has no {flag}"
    if shutil.which("docker"):
        usage = place.do(["docker", words[1], "--help"])
        for flag in (word for word in words[2:image] if word.startswith("--")):
            assert flag.split("=")[0] in usage, f"docker {words[1]} has no {flag}"


def judge_helm(words: list[str], place: Place) -> None:
    assert words[1] == "install"
    values = yaml.safe_load((place.folder / words[words.index("-f") + 1]).read_text("utf-8"))
    assert f"namespace/{words[words.index('-n') + 1]}" in place.made
    for volume in values["worker"]["mounts"]["volumes"]:
        if "configMap" in volume:
            assert f"configmap/{volume['configMap']['name']}" in place.made
    place.made |= {f"service/{words[2]}-dask-{part}" for part in ("scheduler", "worker")} & {
        f"service/{words[2]}-dask-{part}" for part in values
    }
    assert words[words.index("--repo") + 1] == "https://helm.dask.org"


def run_python(block: Any, place: Place) -> None:
    """A block of Python; one that asks for a cluster has the API server that pretends, and a
    scheduler behind it.
    """
    if place.light:
        compile(block.code, block.where, "exec")
        return
    if "gp.cluster" not in block.code:
        place.told.append(place.do([sys.executable, "-c", block.code]))
        return
    assert "networkpolicy/geopatch-scheduler" in place.made, "nothing keeps others out"
    with scheduler(place):
        done = place.do([sys.executable, "-c", block.code])
    [body] = place.kubernetes.posted("daskclusters")
    assert problems(body) == []
    place.told.append(done)


class scheduler:  # noqa: N801
    """A scheduler and a worker in processes of their own, for a ``with`` block."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __enter__(self) -> None:
        file = self.place.folder / "scheduler.json"
        host = ["--host", "127.0.0.1", "--scheduler-file", str(file)]
        host += ["--dashboard-address", "127.0.0.1:0"]
        dask, env = [sys.executable, "-m", "dask"], self.place.env
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
        size = ["--nthreads", "1", "--local-directory", str(self.place.folder)]
        self.started = [subprocess.Popen([*dask, "scheduler", "--port", "0", *host], **quiet)]
        self.started.append(subprocess.Popen([*dask, "worker", *size, *host], **quiet))
        for _ in range(300):
            if file.exists() and file.stat().st_size:
                break
            time.sleep(0.1)
        known = json.loads(file.read_text("utf-8"))
        self.place.kubernetes.comm = int(known["address"].rsplit(":", 1)[1])
        self.place.kubernetes.http = int(known["services"]["dashboard"])

    def __exit__(self, *error: object) -> None:
        for process_ in reversed(self.started):
            process_.terminate()
            process_.wait(20)


# ---- the pages -----------------------------------------------------------------------------


@pytest.mark.slow
def test_kubernetes_md_says_what_is_there(place: Place) -> None:
    place.light = True
    follow(PAGES / "kubernetes.md", place)
    assert "pod/geopatch-runner" in place.made
    assert {"job/geopatch-shares", "job/geopatch-finish", "daskautoscaler/geopatch"} <= place.made
    overlays = place.folder / "deploy/kubernetes/overlays"
    job = yaml.safe_load((overlays / "job/dask-job.yaml").read_text("utf-8"))
    worker = job["spec"]["cluster"]["spec"]["worker"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["memory"] == "6656Mi"  # the page asked for 6 GiB
    shares = yaml.safe_load((overlays / "shares/job.yaml").read_text("utf-8"))
    assert shares["spec"]["completions"] == 20


@pytest.mark.parametrize(
    ("run", "image"), [("cheap", "0.1.0-gpu"), ("mine-shares", "0.1.0"), ("cloud", "0.1.0")]
)
def test_what_the_page_applies_is_all_ones_own(run: str, image: str, tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for block in blocks.parse(PAGES / "kubernetes.md"):
        if block.mark == "file":
            path = tmp_path / block.value
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.code + "\n", "utf-8")
    documents = render(tmp_path / run)
    assert {d["metadata"]["namespace"] for d in documents} == {"science"}
    images = {c["image"] for d in documents for _, pod in pod_specs(d) for c in containers(pod)}
    assert images == {f"registry.example.org/me/geopatch-dask:{image}"}
    assert "my-bucket" in one(documents, "ConfigMap")["data"]["job.toml"]


def test_kubernetes_md_has_every_word_of_the_kind() -> None:
    text = (PAGES / "kubernetes.md").read_text("utf-8")
    table = text.split("| word | means |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [re.fullmatch(r"\| `(\w+)` \| (.+) \|", line) for line in table.splitlines()]
    assert {row[1]: row[2] for row in rows if row} == dict(OPTIONS)


@pytest.mark.slow
def test_kubernetes_md_is_followed(place: Place) -> None:
    follow(PAGES / "kubernetes.md", place)
    told = "\n".join(place.told)
    assert "kubectl apply -k mine" in told
    assert any(name.startswith("job/") for name in place.made)


def test_containers_md_is_followed(place: Place) -> None:
    follow(PAGES / "containers.md", place)
    assert sum(line.startswith("docker run") for line in place.told) >= 5


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("kubectl apply -k deploy/kubernetes/overlays/jobs", "jobs"),
        ("kubectl logs -n science -f geopatch-run", "was never made"),
        ("kubectl logs -f geopatch-runner", "which namespace"),
        ("kubectl logs -n science -f geopatch-runner -c runner", "too early"),
        ("kubectl wait -n science --for=condition=complete job/geopatch-shares", "never complete"),
        ("docker push registry.example.org/me/geopatch-dask:0.1.0", "was never made"),
        ("docker run geopatch-dask:0.1.0 dask worker tcp://a:1", "without the operator"),
        ("kubectl drain node", "not understood"),
        ("kubectx other", "nobody can judge"),
        ("geopatch run job.toml --clusters a", "clusters"),
        ("docker run geopatch-dask:0.1.0 dask scheduler --nprocs 8", "has no --nprocs"),
        ("docker build -f deploy/docker/Dockerfile.cpu -t geopatch-dask:1 .", "Dockerfile.cpu"),
    ],
)
def test_a_wrong_line_of_a_page_is_seen(line: str, text: str, place: Place) -> None:
    place.made |= {"namespace/science", "pod/geopatch-runner", "job/geopatch-shares"}
    with pytest.raises(Exception, match=text):
        judge(shlex.split(line), place, "page:1")
