"""Batch jobs as text: what is asked of Slurm and PBS, in whose words, and what is refused."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import geopatch_dask as gp
from geopatch_dask.clusters.gpus import choose
from geopatch_dask.clusters.jobqueue import (
    MARGIN_LEAST,
    MARGIN_MOST,
    MEMORY,
    OPTIONS,
    OVERHEAD,
    Life,
    job_options,
)
from geopatch_dask.clusters.request import Request
from geopatch_dask.errors import OptionError

jobqueue = pytest.importorskip("dask_jobqueue", reason="batch systems are an extra: hpc")
JOBS = {"slurm": jobqueue.slurm.SLURMJob, "pbs": jobqueue.pbs.PBSJob}
DEPLOY = Path(__file__).parents[1] / "deploy"
GiB = 1 << 30


@pytest.fixture(autouse=True)
def _logs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a job makes its folder for logs


@pytest.fixture(params=["slurm", "pbs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def script(kind: str, request: Request | None = None, /, **options: Any) -> str:
    """The job script, without submitting it."""
    made = job_options(kind, request or Request(), {"interface": "lo"} | options)
    for word in ("scheduler_options", "security"):
        made.pop(word)
    return str(JOBS[kind]("tcp://127.0.0.1:1234", name="geopatch-0", **made).job_script())


def directives(text: str) -> list[str]:
    return [
        line.split(maxsplit=1)[1] for line in text.splitlines() if re.match("#(SBATCH|PBS)", line)
    ]


def worker(text: str) -> list[str]:
    """Arguments of the last line."""
    return shlex.split(text.strip().splitlines()[-1])


def last(arguments: list[str], flag: str) -> str:
    """What counts of a flag that is given twice."""
    return arguments[len(arguments) - arguments[::-1].index(flag)]


# ---- memory, cores, GPUs -------------------------------------------------------------------


@given(memory=st.integers(64 << 20, 64 << 30), processes=st.integers(1, 64))
def test_a_job_has_room_for_its_slots_and_dask_limits_each_to_what_was_planned(
    memory: int, processes: int
) -> None:
    for kind in JOBS:
        made = job_options(
            kind, Request(memory=memory), {"processes": processes, "interface": "lo"}
        )
        text = made.get("job_mem") or made["resource_spec"]
        asked = int(re.search(r"(\d+)(?:M|mb)$", text)[1]) << 20  # type: ignore[index]
        needed = processes * memory + OVERHEAD
        assert needed <= asked < needed + (1 << 20)
        assert last(made["worker_extra_args"], "--memory-limit") == str(memory)
        assert made["cores"] == made["processes"] == processes  # one thread each


def test_a_slurm_job_in_full() -> None:
    text = script(
        "slurm",
        Request(memory=GiB),
        walltime="04:00:00",
        queue="short",
        account="me",
        processes=4,
        cores=2,
        directives=["--constraint=skylake"],
        prologue="module load python",
        python="/shared/bin/python",
        local_directory="$TMPDIR",
        log_directory="logs",
        death_timeout=30,
    )
    assert directives(text) == [
        "-J geopatch",
        "-e logs/geopatch-%J.err",
        "-o logs/geopatch-%J.out",
        "-p short",
        "-A me",
        "-n 1",
        "--cpus-per-task=8",
        "--mem=4352M",
        "-t 04:00:00",
        "--no-requeue",
        "--constraint=skylake",
    ]
    assert "\nmodule load python\n" in text
    assert "export OMP_NUM_THREADS=2" in text
    found = worker(text)
    assert found[:3] == ["/shared/bin/python", "-m", "distributed.cli.dask_worker"]
    assert last(found, "--nworkers") == "4"
    assert last(found, "--nthreads") == "1"
    assert last(found, "--local-directory") == "$TMPDIR"
    assert last(found, "--death-timeout") == "30"
    assert last(found, "--dashboard-address") == "127.0.0.1:0"
    assert "--nanny" in found


def test_pages_of_workers_are_for_their_node_unless_a_host_is_named(kind: str) -> None:
    for words, listens in (
        ({}, "127.0.0.1:0"),
        ({"worker_dashboard": 8788}, "127.0.0.1:8788"),
        ({"worker_dashboard": "0.0.0.0:0"}, "0.0.0.0:0"),
    ):
        assert last(worker(script(kind, **words)), "--dashboard-address") == listens
    with pytest.raises(OptionError, match="worker_dashboard 'ib0' is no port, :port or host:port"):
        script(kind, worker_dashboard="ib0")


def test_a_bare_number_is_no_walltime_of_pbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PBS's own unit is the second, Slurm's the minute."""
    assert job_options("slurm", Request(), {"interface": "lo", "walltime": 30})["walltime"] == (
        "00:30:00"
    )
    for bare in ("30", 43200):
        with pytest.raises(OptionError, match="has no unit: PBS would take it for seconds"):
            job_options("pbs", Request(), {"interface": "lo", "walltime": bare})
    with (
        dask.config.set({"jobqueue.pbs.walltime": "1800"}),
        pytest.raises(OptionError, match="walltime '1800' has no unit"),
    ):
        job_options("pbs", Request(), {"interface": "lo"})


def test_a_pbs_job_in_full() -> None:
    text = script(
        "pbs",
        Request(memory=GiB),
        walltime="1-00:00:00",
        queue="short",
        account="me",
        gpus=2,
        cores=8,
        directives="-V",
    )
    assert directives(text) == [
        "-N geopatch",
        "-q short",
        "-A me",
        "-l select=1:ncpus=16:mem=2304mb:ngpus=2",
        "-l walltime=24:00:00",
        "-e geopatch-logs/",
        "-o geopatch-logs/",
        "-r n",
        "-V",
    ]
    assert last(worker(text), "--preload") == "geopatch_dask.clusters.gpus"


def test_a_slot_has_one_gpu(kind: str) -> None:
    text = script(kind, gpus=4)
    assert last(worker(text), "--nworkers") == "4"
    assert ("--gres=gpu:4" in directives(text)) == (kind == "slurm")
    assert "--preload" not in worker(script(kind, processes=4))
    with pytest.raises(OptionError, match="processes 2 and gpus 4: every slot has one GPU"):
        script(kind, gpus=4, processes=2)


@given(
    devices=st.lists(
        st.from_regex(r"[0-9]{1,2}|GPU-[0-9a-f]{8}", fullmatch=True), min_size=2, unique=True
    ),
    job=st.integers(0, 999),
)
def test_workers_of_a_job_share_its_gpus_out(devices: list[str], job: int) -> None:
    taken = []
    for rank in range(len(devices)):
        environ = {"CUDA_VISIBLE_DEVICES": ",".join(devices), "HOME": "/"}
        taken.append(choose(f"geopatch-{job}-{rank}", environ))
        assert environ == {"CUDA_VISIBLE_DEVICES": devices[rank], "HOME": "/"}
    assert taken == devices
    with pytest.raises(OptionError, match=f"is number {len(devices)} of its job, which has"):
        choose(f"geopatch-{job}-{len(devices)}", {"CUDA_VISIBLE_DEVICES": ",".join(devices)})


@pytest.mark.parametrize(
    "environ", [{}, {"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": ""}]
)
def test_where_there_is_nothing_to_choose_nothing_changes(environ: dict[str, str]) -> None:
    before = dict(environ)
    assert choose("geopatch-0-1", environ) is None
    assert environ == before


# ---- time ----------------------------------------------------------------------------------


@given(minutes=st.integers(1, 60 * 24 * 30))
def test_workers_retire_within_the_walltime_and_not_all_at_once(minutes: int) -> None:
    life = Life.of(str(minutes), None)
    first, latest = life.lifetime - life.stagger, life.lifetime + life.stagger
    assert 0 < first < latest == pytest.approx(60 * minutes - life.margin)
    assert life.margin == min(max(6 * minutes, MARGIN_LEAST), MARGIN_MOST, 30 * minutes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:30", 630), ("01:00:00", 3600), ("2-01", 176400), ("1-00:00:30", 86430)],
)
def test_walltimes_are_read_as_slurm_reads_them(kind: str, text: str, seconds: int) -> None:
    assert Life.of(text, None).walltime == seconds
    if kind == "pbs" and text.isdigit():  # there it is refused, see below
        return
    written = next(d for d in directives(script(kind, walltime=text)) if re.search(r"\d:\d\d$", d))
    hours, minutes, rest = (int(n) for n in re.findall(r"\d+", written)[-3:])
    assert hours * 3600 + minutes * 60 + rest == seconds


def test_the_lifetime_is_an_argument_of_workers(kind: str) -> None:
    found = worker(script(kind, walltime="01:00:00", margin="5 min"))
    assert last(found, "--lifetime") == "3210s"  # 3600 - 300 - 90
    assert last(found, "--lifetime-stagger") == "90s"


# ---- whose word counts ---------------------------------------------------------------------


def test_what_dask_is_configured_to_is_the_default_and_an_option_wins(kind: str) -> None:
    mine = {"queue": "long", "walltime": "02:00:00", "memory": "4352 MiB", "processes": 4}
    mine |= {"job-extra-directives": ["--mine"], "job-script-prologue": ["mine"], "name": "me"}
    with dask.config.set({f"jobqueue.{kind}.{name}": value for name, value in mine.items()}):
        text = script(kind)
        given_ = script(kind, Request(memory=GiB), queue="short", walltime="01:00:00", processes=1)
    assert {"long", "short"} & set(" ".join(directives(text)).split()) == {"long"}
    assert "02:00:00" in text
    assert last(worker(text), "--memory-limit") == str(GiB)  # a quarter of what is left of a job's
    assert "--mine" in directives(text)
    assert "\nmine\n" in text
    assert any(d.endswith(" me") for d in directives(text))
    assert {"long", "short"} & set(" ".join(directives(given_)).split()) == {"short"}
    assert "01:00:00" in given_
    assert last(worker(given_), "--memory-limit") == str(GiB)
    assert "--nworkers" not in worker(given_)


def test_without_any_word(kind: str) -> None:
    made = job_options(kind, Request(), {"interface": "lo"})
    assert (made["processes"], made["memory"]) == (1, MEMORY)
    options = made["scheduler_options"]
    assert options == {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "dashboard": False}


def test_the_scheduler_listens_on_one_network_only(kind: str) -> None:
    host = job_options(kind, Request(), {})["scheduler_options"]["host"]
    assert re.fullmatch(r"[\d.]+", host)
    assert host != "0.0.0.0"
    with pytest.raises(OptionError, match="interface 'ib7' is none of this machine"):
        job_options(kind, Request(), {"interface": "ib7"})


def test_the_environment_of_the_node_wins(kind: str, tmp_path: Path) -> None:
    text = script(kind)
    lines = [line for line in text.splitlines() if " || export " in line]
    assert lines
    name = re.findall(r"\{(\w+)\+set", "\n".join(lines))[0]
    shell = "\n".join([*lines, f'echo "${name}"'])
    for said in ({}, {name: "mine"}):
        done = subprocess.run(
            ["bash", "-uc", shell], env=said, capture_output=True, text=True, check=True
        )
        assert (done.stdout.strip() == "mine") == bool(said)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"walltime": "soon"}, "walltime 'soon' is no time"),
        ({"walltime": "00:00:00"}, "a walltime of 0"),
        (
            {"walltime": "00:10:00", "margin": "10 min"},
            "leaves workers no time before the margin of 600 s",
        ),
        ({"margin": "late"}, "margin: 'late' is no time"),
        ({"processes": 0.5}, "processes must be a whole number, at least 1; got 0.5"),
        ({"cores": -1}, "cores must be a whole number, at least 1; got -1"),
        ({"gpus": "two"}, "gpus must be a whole number, at least 0; got 'two'"),
        ({"prologue": 3}, "prologue must be a text, or a list of texts; got 3"),
        ({"directives": [1]}, "directives must be a text"),
        ({"nanny": False, "processes": 2}, "2 processes in a job need a nanny"),
        ({"dashboard": "here"}, "dashboard 'here' is no port"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        script(kind, **options)


def test_an_unknown_word_names_the_nearest(kind: str) -> None:
    with pytest.raises(OptionError, match="no option 'wall_time'; did you mean 'walltime'"):
        gp.cluster(kind, wall_time="01:00:00")


def test_a_machine_without_the_batch_system(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    submit = {"slurm": "sbatch", "pbs": "qsub"}[kind]
    with pytest.raises(OptionError, match=f"there is no {submit} here"):
        gp.cluster(kind, interface="lo")


def test_without_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(OptionError, match=r"pip install 'geopatch_dask\[hpc\]'"):
        gp.cluster(kind)


# ---- the files people copy -----------------------------------------------------------------


def settings(kind: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((DEPLOY / kind / "jobqueue.yaml").read_text("utf-8"))
    return found


@pytest.fixture
def _copied(kind: str) -> Iterator[None]:
    """The settings of deploy/ in place of the user's own."""
    mine = settings(kind)["jobqueue"][kind]
    with dask.config.set({f"jobqueue.{kind}.{name}": value for name, value in mine.items()}):
        yield


@pytest.mark.usefixtures("_copied")
def test_the_settings_to_copy_make_a_job(kind: str) -> None:
    text = script(kind)
    assert "04:00:00" in text
    found = worker(text)
    assert last(found, "--memory-limit") == str(MEMORY)
    assert last(found, "--local-directory") == "${TMPDIR:-/tmp}"
    assert ('cd "$PBS_O_WORKDIR"' in text.splitlines()) == (kind == "pbs")
    subprocess.run(["bash", "-n", "-c", text], check=True)


def test_every_line_of_the_settings_is_one_that_dask_knows(kind: str) -> None:
    known = dask.config.get(f"jobqueue.{kind}")
    assert set(settings(kind)) == {"jobqueue"}
    assert set(settings(kind)["jobqueue"]) == {kind}
    assert set(settings(kind)["jobqueue"][kind]) <= set(known)


@pytest.mark.parametrize("page", ["slurm.md", "pbs.md"])
def test_every_option_is_on_the_page(page: str) -> None:
    text = (DEPLOY.parent / "docs" / "deploy" / page).read_text("utf-8")
    told = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert told == set(OPTIONS)


def test_the_package_does_not_take_ctrl_c() -> None:
    """It replaces the handler when it is imported, so that no KeyboardInterrupt would be raised."""
    code = (
        "import signal; from geopatch_dask.clusters.options import optional; "
        "before = signal.getsignal(signal.SIGINT); optional('dask_jobqueue', 'slurm', 'hpc'); "
        "raise SystemExit(0 if signal.getsignal(signal.SIGINT) is before else 3)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
