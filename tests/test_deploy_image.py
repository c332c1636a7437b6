"""The image: its Dockerfiles are linted, built or carried out; what is in it, and that it runs."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from deploy_schemas import DEPLOY, ROOT
from dockerfile_steps import Image, build, discard, ignored, parse

import geopatch_dask as gp

DOCKER = DEPLOY / "docker"
FILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.gpu"]


# ---- what they say -------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    bad = tmp_path / "Dockerfile"
    bad.write_text(FILES[0].read_text("utf-8").replace("'tini=0.19.*'", "tini"))
    done = subprocess.run([hadolint, str(bad)], capture_output=True, text=True)
    assert "DL3008" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_containers_are_not_root(path: Path) -> None:
    users = [step.words for step in parse(path) if step.name == "USER"]
    assert users[-1] == "10001:10001"


def test_the_image_is_pinned_and_says_its_version() -> None:
    steps = parse(FILES[0])
    arguments = dict(s.words.split("=", 1) for s in steps if s.name == "ARG" and "=" in s.words)
    assert arguments["BASE"].startswith("python:3.11-")
    assert arguments["VERSION"] == gp.__version__
    [install] = [s.words for s in steps if "-r pyproject.toml" in s.words]
    assert "-c constraints.txt" in install
    assert {"ENTRYPOINT", "HEALTHCHECK", "LABEL"} <= {s.name for s in steps}
    gpu = dict(s.words.split("=", 1) for s in parse(FILES[1]) if s.name == "ARG")
    assert gpu["IMAGE"] == f"geopatch-dask:{gp.__version__}"


def test_the_builder_sees_only_what_it_needs() -> None:
    kept = ("geopatch_dask/cli/job.py", "constraints.txt", "pyproject.toml", "README.md")
    for path in (*kept, "deploy/docker/health.py", "LICENSE"):
        assert (ROOT / path).exists()
        assert not ignored(ROOT, path), path
    left = (
        "tests/conftest.py",
        ".git/config",
        ".venv/bin/python",
        "docs/index.md",
        "deploy/docker",
    )
    for path in (*left, "geopatch_dask/__pycache__", "geopatch_dask/cli/__pycache__/job.pyc"):
        assert ignored(ROOT, path), path


# ---- health --------------------------------------------------------------------------------


def process(folder: Path, pid: int, *words: str) -> None:
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "cmdline").write_bytes("\0".join([*words, ""]).encode())


@pytest.mark.parametrize(
    ("words", "role"),
    [
        (
            ("/opt/geopatch/bin/python", "/opt/geopatch/bin/dask", "scheduler", "--host", "0"),
            "scheduler",
        ),
        (("python", "/opt/geopatch/bin/dask", "worker", "--name", "a"), "worker"),
        (("python", "/usr/bin/dask-worker", "tcp://a:8786"), "worker"),
        (("python", "/opt/geopatch/bin/geopatch", "run", "/job/worker.toml"), None),
    ],
)
def test_health_knows_what_it_looks_at(
    words: tuple[str, ...], role: str | None, tmp_path: Path
) -> None:
    process(tmp_path, 1, "tini", "-g", "--", "x")
    process(tmp_path, 7, *words)
    (tmp_path / "meminfo").write_text("")
    assert runpy.run_path(str(DOCKER / "health.py"))["role"](tmp_path) == role


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("scheduler --host 10.0.0.5 --port 8786", ("127.0.0.1", 8787)),
        ("scheduler --dashboard-address 127.0.0.1:8797", ("127.0.0.1", 8797)),
        ("worker --name a --dashboard-address :8788", ("127.0.0.1", 8788)),
        ("worker --dashboard-address=10.0.0.6:8788", ("10.0.0.6", 8788)),
        ("worker --dashboard-address 0.0.0.0:8788 --nworkers 8", ("127.0.0.1", 8788)),
        ("worker tcp://a:8786 --nworkers 8", ("127.0.0.1", 0)),  # any port that is free
        ("worker --dashboard-address 127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_health_asks_where_the_command_says(
    words: str, asked: tuple[str, int], tmp_path: Path
) -> None:
    process(tmp_path, 7, "python", "/opt/geopatch/bin/dask", *words.split())
    health = runpy.run_path(str(DOCKER / "health.py"))
    assert health["page"](*health["command"](tmp_path)) == asked


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        del args


def test_health_asks_the_page() -> None:
    answers = runpy.run_path(str(DOCKER / "health.py"))["answers"]
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        assert answers(port)
        server.shutdown()
    assert not answers(port)


# ---- built, or carried out -----------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image: exported from an engine where there is one, else its steps, one by one."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("trees of an image belong to root")
    work = tmp_path_factory.mktemp("image")
    if engine():
        yield _exported(work)
        return
    base = work / "base"
    tool = shutil.which("mmdebstrap") or shutil.which("debootstrap")
    if tool is None:
        pytest.skip("no container engine, and neither mmdebstrap nor debootstrap (apt)")
    packages = "--include=python3,python3-venv,ca-certificates"
    command = [tool, "--variant=minbase", packages, "bookworm", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("python", "python3"):  # where the official image has it
        (base / "usr/local/bin" / name).symlink_to("/usr/bin/python3")
    try:
        yield build(FILES[0], ROOT, {"python:3.11-slim-bookworm": base}, work)
    finally:
        discard(work)


def engine() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "info"], capture_output=True).returncode == 0


def _exported(work: Path) -> Image:
    """Let an engine build it, and unpack what it built."""
    tag = "geopatch-dask:under-test"
    subprocess.run(["docker", "build", "-q", "-f", str(FILES[0]), "-t", tag, str(ROOT)], check=True)
    name = subprocess.run(["docker", "create", tag], capture_output=True, text=True, check=True)
    root = work / "root"
    root.mkdir()
    export = subprocess.Popen(["docker", "export", name.stdout.strip()], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(root)], stdin=export.stdout, check=True)
    assert export.wait() == 0
    subprocess.run(["docker", "rm", name.stdout.strip()], check=True, capture_output=True)
    said = Image(root)
    for step in parse(FILES[0]):
        if step.name == "FROM":
            said = Image(root)
        elif step.name == "ENV":
            said.env.update(pair.split("=", 1) for pair in step.words.split())
    said.folder, said.user, said.entrypoint = "/job", "10001:10001", ["tini", "-g", "--"]
    return said


@pytest.mark.integration
def test_the_image_holds_what_runs_and_nothing_else(
    image: Image, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image.root
    here = root / "opt/geopatch/bin"
    for name in ("geopatch", "dask", "dask-worker", "python", "geopatch-health"):
        assert os.path.lexists(here / name), name
    assert (root / "usr/bin/tini").exists()
    for path in ("opt/uv", "src", "root/.cache", "opt/geopatch/bin/pip", "opt/geopatch/bin/uv"):
        assert not (root / path).exists(), path
    for name in ("gcc", "cc", "make", "git"):
        assert not (root / "usr/bin" / name).exists(), name
    assert not list((root / "var/lib/apt/lists").glob("*"))
    [site] = (root / "opt/geopatch/lib").glob("python3*/site-packages")
    assert not [p for p in site.rglob("tests") if p.is_dir()]
    assert not [p for p in root.rglob(".git") if p.is_dir()]
    shipped = {p.name for p in (site / "geopatch_dask").iterdir()}
    assert {"cli", "execute", "clusters", "py.typed"} <= shipped
    assert (site / "geopatch_dask/__pycache__").exists()  # nothing can be compiled later
    sizes = {path: size(root / path) for path in ("opt/geopatch", "usr", ".")}
    with capsys.disabled():
        print("\nMB:", {path: round(n / 1e6) for path, n in sizes.items()})
    assert sizes["opt/geopatch"] < 650e6


def size(folder: Path) -> int:
    done = subprocess.run(["du", "-sxb", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


@pytest.mark.integration
def test_the_image_for_gpus_is_the_same_and_a_package_more(image: Image, tmp_path: Path) -> None:
    """Its steps on top of the other; in place of PyTorch, which is gigabytes, a small package."""
    if engine():
        tag, base = "geopatch-dask:gpu-under-test", "geopatch-dask:under-test"
        given = ["--build-arg", f"IMAGE={base}", "--build-arg", "TORCH=iniconfig"]
        words = ["docker", "build", "-q", *given, "-f", str(FILES[1]), "-t", tag, str(ROOT)]
        subprocess.run(words, check=True)
        asked = ["docker", "run", "--rm", tag, "python", "-c", "import geopatch_dask, iniconfig"]
        subprocess.run(asked, check=True)
        return
    try:
        bases = {f"geopatch-dask:{gp.__version__}": image}
        made = build(FILES[1], ROOT, bases, tmp_path, {"TORCH": "iniconfig"})
        assert (made.user, made.entrypoint) == (image.user, image.entrypoint)
        assert made.env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
        assert not (made.root / "opt/uv").exists()
        told = made.run(["python", "-c", "import geopatch_dask, iniconfig, os; print(os.getuid())"])
        assert told.stdout == "10001\n", told.stderr
        assert "iniconfig" in image.run(["python", "-c", "import iniconfig"]).stderr
    finally:
        discard(tmp_path)


@pytest.mark.integration
def test_the_image_runs_as_nobody_on_a_sealed_root(image: Image) -> None:
    told = image.run(["geopatch", "--version"])
    assert (told.returncode, told.stdout) == (0, f"geopatch {gp.__version__}\n"), told.stderr
    who = image.run(["python", "-c", "import os; print(os.getuid(), os.getgid(), os.getgroups())"])
    assert who.stdout == "10001 10001 []\n"
    sealed = image.run(["python", "-c", "open('/opt/geopatch/x', 'w')"])
    assert "Read-only file system" in sealed.stderr or "Permission denied" in sealed.stderr
    assert "--nthreads" in image.run(["dask", "worker", "--help"]).stdout
    assert image.run(["dask", "scheduler", "--help"]).returncode == 0


@pytest.mark.integration
def test_the_image_reconstructs_a_scene(image: Image) -> None:
    script = (
        "cd /scratch && python -c 'from geopatch_dask.demo.scene import make_scene as make; "
        'make("s.tif", 600, 0)\' && '
        "geopatch run --field s.tif --size 128 --step 96 --window hann --chunks 256 "
        "--operator geopatch_dask.demo:ndvi --target /scratch/out.zarr --cluster local --workers 2"
        " && geopatch verify /scratch/out.zarr"
    )
    done = image.run(["bash", "-c", script])
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_the_image_knows_whether_it_is_healthy(image: Image) -> None:
    script = (
        "dask scheduler --host 127.0.0.1 --dashboard-address :8787 >/tmp/log 2>&1 & "
        "for i in $(seq 60); do python /opt/geopatch/bin/geopatch-health && break; sleep 1; done; "
        "python /opt/geopatch/bin/geopatch-health; echo up $?; "
        "kill -STOP %1; python /opt/geopatch/bin/geopatch-health; echo stopped $?; kill -KILL %1"
    )
    done = image.run(["bash", "-mc", script])
    assert "up 0" in done.stdout, done.stderr
    assert "stopped 1" in done.stdout, done.stdout


@pytest.mark.integration
def test_the_image_knows_whether_its_worker_is_healthy(image: Image) -> None:
    """As containers.md starts it, and with a port that nobody named."""
    health = "python /opt/geopatch/bin/geopatch-health"
    worker = "dask worker tcp://127.0.0.1:8786 --nworkers 2 --nthreads 1 --memory-limit 300MiB"
    scheduler = (
        "import time; from distributed import LocalCluster; "
        "c = LocalCluster(n_workers=0, scheduler_port=8786, dashboard_address=':0'); "
        "time.sleep(250)"
    )
    script = (
        f'python -c "{scheduler}" & sleep 5; '
        f"setsid {worker} >/tmp/one 2>&1 & one=$!; sleep 10; {health}; echo unnamed $?; "
        "kill -- -$one; wait $one; "
        f"setsid {worker} --dashboard-address 127.0.0.1:8788 >/tmp/two 2>&1 & two=$!; "
        f"for i in $(seq 60); do {health} && break; sleep 1; done; {health}; echo up $?; "
        f"kill -STOP -- -$two; {health}; echo stopped $?; kill -KILL -- -$two; kill -KILL %1"
    )
    done = image.run(["bash", "-c", script])
    assert "unnamed 0" in done.stdout, done.stderr
    assert "up 0" in done.stdout, done.stderr
    assert "stopped 1" in done.stdout, done.stdout
