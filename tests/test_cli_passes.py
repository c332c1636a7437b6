"""Job files with a first pass, and with several outputs: the plan that Python makes, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_jobs import Raw, Shop, geopatch, stored

import geopatch_dask as gp
from geopatch_dask.cli.commands import job_of, make_plan
from geopatch_dask.cli.job import load_job
from geopatch_dask.cli.parser import build_parser
from geopatch_dask.errors import GeopatchError, OptionError

Captured = pytest.CaptureFixture[str]

MORE = """
from dataclasses import dataclass

import numpy as np

import geopatch_dask as gp


def normalise(a, context):
    return (a - context["mean"][0]) / context["std"][0]


def centred(a, context):
    return a if context is None else a - context["mean"][0]


def above(a, context):
    return a + context["share"][0]


def level(patches):
    return np.nanmean(patches, axis=(-2, -1))


def both(a):
    return {"height": a * 2.5, "high": np.where(np.isnan(a), np.nan, a > 100)}


@dataclass(frozen=True)
class Share(gp.Statistic):
    limit: float

    def init(self, bands):
        return {"n": np.zeros(bands, np.int64), "above": np.zeros(bands, np.int64)}

    def update(self, state, values, keys):
        state["n"] += np.count_nonzero(~np.isnan(values), axis=1)
        state["above"] += np.count_nonzero(values > self.limit, axis=1)

    def merge(self, left, right):
        return {name: left[name] + right[name] for name in left}

    def finalize(self, state):
        return {"share": state["above"] / np.maximum(state["n"], 1)}


@dataclass(frozen=True)
class Highest(gp.Max):
    pass
"""

TWO: dict[str, Any] = {
    "operator.function": "MODULE:both",
    "outputs.height.aggregation": "mean",
    "outputs.height.dtype": "float32",
    "outputs.height.fill_value": -9999,
    "outputs.height.attrs": Raw('{units = "m"}'),
    "outputs.high.aggregation": Raw('{class = "HardVote", k = 2}'),
    "outputs.high.name": "class",
}
NORMAL: dict[str, Any] = {"operator.function": "MODULE:normalise", "context.statistic": "mean-std"}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop.open(tmp_path)
    module = tmp_path / f"{shop.module}.py"
    module.write_text(module.read_text() + MORE)
    monkeypatch.syspath_prepend(tmp_path)
    return shop


def planned(path: str) -> gp.Plan:
    """The plan of a job file."""
    job = load_job(path)
    with job.importable():
        return make_plan(job, "sync")


def python(shop: Shop, function: str, aggregation: Any = None, **more: Any) -> gp.Plan:
    """The same plan as Python makes it."""
    patcher = gp.Patcher(gp.Rectangular(64), gp.RegularStride(48), gp.Hann(), aggregation)
    return gp.plan(
        gp.RasterField(shop.folder / "scene.tif"),
        patcher,
        f"{shop.module}:{function}",
        shop.folder / "python.zarr",
        chunks=64,
        outer=128,
        **more,
    )


def own(shop: Shop, name: str) -> Any:
    """A name of the shop's module."""
    from geopatch_dask.patch.config import load_object

    return load_object(f"{shop.module}:{name}")


# ---- the same plan, the same bytes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "section", "more"),
    [
        ("normalise", {"statistic": "MeanStd"}, {"context": gp.MeanStd()}),
        (
            "normalise",
            {"statistic": Raw('{class = "mean_std", ddof = 1}'), "over": "field"},
            {"context": gp.MeanStd(ddof=1)},
        ),
        (
            "centred",
            {"statistic": "mean-std", "over": "output"},
            {"context": gp.MeanStd(), "over": "output"},
        ),
    ],
)
def test_a_first_pass_is_that_of_python(
    shop: Shop, function: str, section: dict[str, Any], more: dict[str, Any]
) -> None:
    changes = {f"context.{name}": value for name, value in section.items()}
    made = planned(shop.job({"operator.function": f"MODULE:{function}", **changes}))
    assert made.fingerprint == python(shop, function, **more).fingerprint
    assert made.parts["context"]["statistic"]["class"] == "MeanStd"


def test_a_statistic_and_an_operator_of_your_own(shop: Shop) -> None:
    given = {"operator.function": "MODULE:above", "context.statistic": "MODULE:Share"}
    given["context.statistic"] = Raw('{class = "MODULE:Share", limit = 90.0}')
    share = own(shop, "Share")(90.0)
    assert planned(shop.job(given)).fingerprint == python(shop, "above", context=share).fingerprint

    level = f"{shop.module}:level"
    of_fit = planned(shop.job({**NORMAL, "context.over": "MODULE:level"}))
    same = python(shop, "normalise", context=gp.MeanStd(), over=level)
    assert of_fit.fingerprint == same.fingerprint
    table = Raw('{function = "MODULE:level", batch = 4}')
    batched = planned(shop.job({**NORMAL, "context.over": table}))
    same = python(shop, "normalise", context=gp.MeanStd(), over=gp.Operator(level, batch=4))
    assert batched.fingerprint == same.fingerprint != of_fit.fingerprint


@pytest.mark.parametrize("cluster", ["sync", "threads"])
def test_a_run_of_two_passes_writes_what_python_writes(
    shop: Shop, capsys: Captured, cluster: str
) -> None:
    job = shop.job({**NORMAL, "context.statistic": "quantiles", "operator.function": "MODULE:mid"})
    module = shop.folder / f"{shop.module}.py"
    module.write_text(
        module.read_text() + '\n\ndef mid(a, context):\n    return a - context["value"][0, 1]\n'
    )
    assert geopatch("run", job, "--cluster", cluster) == 0
    assert "(complete)" in capsys.readouterr().out
    assert python(shop, "mid", context=gp.Quantiles()).run("sync").complete
    assert stored(shop.target) == stored(shop.folder / "python.zarr") != {}
    assert geopatch("run", job) == 0
    assert "4 done before" in capsys.readouterr().out
    assert geopatch("verify", job) == 0


def test_several_outputs_are_those_of_python(shop: Shop, capsys: Captured) -> None:
    job = shop.job(TWO)
    members = {"height": gp.Mean(), "high": gp.HardVote(2)}
    outputs = {
        "height": gp.Output(name="height", dtype="float32", fill_value=-9999, attrs={"units": "m"}),
        "high": gp.Output(name="class"),
    }
    same = python(shop, "both", members, output=outputs)
    assert planned(job).fingerprint == same.fingerprint
    assert geopatch("run", job) == 0
    assert "(complete)" in capsys.readouterr().out
    assert same.run("sync").complete
    assert stored(shop.target) == stored(shop.folder / "python.zarr")
    names = {name.split("/")[0] for name in stored(shop.target)}
    assert {"height", "class", "class_share", "class_votes"} < names
    assert gp.open(shop.target)["height"].attrs["units"] == "m"


def test_outputs_have_the_defaults_of_one_output(shop: Shop) -> None:
    path = Path(shop.job({"operator.function": "MODULE:both"}))
    path.write_text(path.read_text() + "[outputs.high]\n[outputs.height]\naggregation = 'max'\n")
    arguments = load_job(path).plan_arguments()
    assert arguments["patcher"].aggregation.members == {
        "high": gp.OverlapAdd(),
        "height": gp.Max(),
    }
    assert arguments["output"] == {"high": gp.Output("high"), "height": gp.Output("height")}


def test_an_aggregation_of_your_own_for_one_output(shop: Shop) -> None:
    job = shop.job({**TWO, "outputs.high.aggregation": "MODULE:Highest"})
    members = {"height": gp.Mean(), "high": own(shop, "Highest")()}
    outputs = load_job(job).plan_arguments()["output"]
    assert planned(job).fingerprint == python(shop, "both", members, output=outputs).fingerprint


def test_a_table_beside_an_array(shop: Shop) -> None:
    pytest.importorskip("pyarrow")
    module = shop.folder / f"{shop.module}.py"
    module.write_text(
        module.read_text()
        + '\n\ndef told(a):\n    return {"map": a, "rows": {"n": float(a.size)}}\n'
    )
    changes = {"outputs.map.aggregation": "mean", "outputs.rows.aggregation": "by-index"}
    assert geopatch("run", shop.job({"operator.function": "MODULE:told", **changes})) == 0
    assert gp.read_table(shop.target).num_rows == 25


# ---- flags ---------------------------------------------------------------------------------


def test_flags_and_set_reach_them(shop: Shop) -> None:
    words = ["plan", shop.job(TWO), "--set", "outputs.high.dtype=uint8"]
    job = job_of(build_parser().parse_args([*words, "--set", 'outputs.high.attrs={a="1"}']))
    assert job.plan_arguments()["output"]["high"] == gp.Output("class", "uint8", attrs={"a": "1"})
    words = ["plan", shop.job(), "--context", "min-max", "--over", "output"]
    arguments = job_of(build_parser().parse_args(words)).plan_arguments()
    assert (arguments["context"], arguments["over"]) == (gp.MinMax(), "output")
    table = '{class = "Histogram", edges = [0, 50, 250]}'
    words = ["plan", shop.job(), "--set", f"context.statistic={table}"]
    arguments = job_of(build_parser().parse_args(words)).plan_arguments()
    assert arguments["context"] == gp.Histogram((0, 50, 250))


# ---- what makes no sense -------------------------------------------------------------------

ONE = {"operator.function": "MODULE:both", "outputs.height.aggregation": "mean"}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"context.statistic": "meanstdd"}, "[context] statistic 'meanstdd' is unknown; did you mean"),
    ({"context.statistic": "OverlapAdd"}, "statistic 'OverlapAdd' is unknown"),
    ({"context.statistic": 3}, "[context] statistic must be a name, or a table with a class"),
    ({"context.statistic": "histogram"}, "Histogram needs edges; as in { class = "),
    (
        {"context.statistic": Raw('{class = "MeanStd", dof = 1}')},
        "[context] statistic: MeanStd takes no 'dof'; did you mean 'ddof'?",
    ),
    ({"context.statistic": "MODULE:both"}, "is not a configurable class"),
    ({"context.statistic": "MODULE:Highest"}, "[context] statistic: 'MODULE:Highest' is not a S"),
    ({"context.statistic": "MODULE:absent"}, "has no 'absent'"),
    ({"context.over": "output"}, "give --context, or [context] statistic in a job file"),
    ({**NORMAL, "context.over": "fields"}, "did you mean 'field'?"),
    ({**NORMAL, "context.over": 3}, "[context] over must be a text, or a table like [operator]"),
    ({**NORMAL, "context.over": Raw("{batch = 2}")}, "[context.over] has no function"),
    ({**NORMAL, "context.over": Raw("{fnction = 2}")}, "did you mean 'function'?"),
    (
        {**NORMAL, "context.over": Raw('{function = "a:b", batch = 0}')},
        "[context.over] batch must be a whole number, at least 1; got 0",
    ),
    ({"context.statistics": "MeanStd"}, "[context] has no key 'statistics'; did you mean 'stat"),
    ({"contxt.statistic": "MeanStd"}, "no section [contxt]; did you mean [context]?"),
    ({"run.context": "MeanStd"}, "it is a section of its own, [context]"),
    ({**ONE, "patch.aggregation": "mean"}, "[patch] aggregation is of a job with one output"),
    ({**ONE, "output.dtype": "uint8"}, "[output] dtype is of a job with one output, and this one"),
    ({**ONE, "output.dtype": "uint8"}, "has [outputs.height]; give dtype there"),
    ({**ONE, "outputs.height.dtyp": "uint8"}, "[outputs.height] has no key 'dtyp'; did you mean"),
    ({**ONE, "outputs.height.target": "x"}, "[outputs.height] has no key 'target'; it belongs in"),
    ({**ONE, "outputs.height.dims": "x"}, "[outputs.height] dims must be a list of texts"),
    ({**ONE, "outputs.height.dtype": "uint9"}, "[outputs.height]: output dtype 'uint9'"),
    ({**ONE, "outputs.height.aggregation": "men"}, "[outputs.height] aggregation 'men' is unknown"),
    ({**ONE, "outputs.height.aggregation": "hard-vote"}, "aggregation: HardVote needs k; as in"),
    ({"outputs.aggregation": "mean"}, "[outputs] holds one table per output, and 'aggregation' is"),
    ({"output.height.dtype": "uint8"}, "the table of one output of several is [outputs.height]"),
    ({"outptus.height.dtype": "uint8"}, "no section [outptus]; did you mean [outputs]?"),
    # of the package, in the words of the command line
    (ONE, "output 'high': no aggregation"),
    ({**ONE, "outputs.low.aggregation": "mean"}, "output 'high': no aggregation"),
    ({"operator.function": "MODULE:both"}, "give each a table [outputs.NAME]"),
    ({**TWO, "outputs.high.name": "height"}, "give each [outputs.NAME] name"),
    ({**NORMAL, "operator.function": "MODULE:double"}, "context"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=[f"{c}" for c, _ in BAD])
def test_what_makes_no_sense_is_one_line(
    shop: Shop, capsys: Captured, changes: dict[str, Any], says: str
) -> None:
    job, before = shop.job(changes), shop.paths()
    assert geopatch("run", job) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("geopatch: error: ")
    assert says.replace("MODULE", shop.module) in told.err
    assert shop.paths() == before


def test_a_table_of_outputs_by_set_needs_a_key(shop: Shop) -> None:
    args = build_parser().parse_args(["plan", shop.job(), "--set", "outputs.height=mean"])
    with pytest.raises(OptionError, match=r"--set outputs\.NAME\.KEY=VALUE"):
        job_of(args)


def test_nothing_is_said_of_a_pass_that_is_not_there(shop: Shop) -> None:
    path = Path(shop.job())
    path.write_text(path.read_text() + "[context]\n[outputs]\n")
    arguments = load_job(path).plan_arguments()
    assert "context" not in arguments
    assert arguments["output"] == gp.Output()
    with pytest.raises(GeopatchError):
        load_job(shop.job({"outputs..dtype": "uint8"})).plan_arguments()
