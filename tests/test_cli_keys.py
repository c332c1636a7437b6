"""Job files and flags: one table, checked before anything is opened."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from cli_jobs import Raw, Shop

import geopatch_dask as gp
from geopatch_dask.cli.job import load_job
from geopatch_dask.cli.keys import KEYS, SECTIONS, find, nearest, toml_value
from geopatch_dask.cli.parser import build_parser
from geopatch_dask.errors import GeopatchError, OptionError


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


def test_every_key_is_in_a_section_and_no_flag_is_used_twice() -> None:
    assert {key.section for key in KEYS} == set(SECTIONS)
    flags = [key.flag for key in KEYS if key.flag]
    assert len(flags) == len(set(flags))
    assert len({(key.section, key.name) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("256,192", [256, 192]),
        ("[256, 192]", [256, 192]),
        ("lat=32, lon=64", {"lat": 32, "lon": 64}),
        ("hann", "hann"),
        ('{class="Tukey", alpha=0.3}', {"class": "Tukey", "alpha": 0.3}),
        ("4 GiB", "4 GiB"),
        ("true", True),
        ("-9999", -9999),
        ("", ""),
    ],
)
def test_values_of_flags_are_toml_with_the_brackets_left_out(text: str, value: object) -> None:
    assert toml_value(text) == value


def test_nan_on_the_command_line_is_nan() -> None:
    assert math.isnan(toml_value("nan"))


@pytest.mark.parametrize(
    ("section", "name", "says"),
    [
        ("ruin", "outer", "no section [ruin]; did you mean [run]?"),
        ("patch", "widow", "[patch] has no key 'widow'; did you mean 'window'?"),
        ("run", "chunks", "it belongs in [output]"),
        ("run", "overwrite", "give --overwrite on the command line"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(section: str, name: str, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        find(section, name)
    assert says in str(caught.value)


def test_nearest_always_finds_one() -> None:
    assert nearest("zzzz", ["size", "step"]) in ("size", "step")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"run.workers": "two"}, "[run] workers must be a whole number, at least 1; got 'two'"),
        ({"run.workers": 0}, "at least 1; got 0"),
        ({"run.workers": True}, "got True"),
        ({"run.quiet": 1}, "[run] quiet must be true or false"),
        ({"run.log_every": 0}, "[run] log_every must be positive"),
        ({"field.path": 7}, "[field] path must be text"),
        ({"operator.options": "radius"}, "[operator] options must be a table"),
        ({"output.dims": Raw("[1]")}, "[output] dims must be a list of texts"),
        ({"output.fill_value": "none"}, "[output] fill_value must be a number"),
        ({"patch.widow": "hann"}, "did you mean 'window'?"),
        ({"feild.path": "x"}, "did you mean [field]?"),
    ],
)
def test_values_of_the_wrong_sort(shop: Shop, changes: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_job(shop.job(changes))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("size = 3\n", "key 'size' stands before any section"),
        ("patch = 3\n", "[patch] must be a section of keys; got 3"),
        ("[patch\n", "is not TOML"),
        ("[ruin]\n", "did you mean [run]?"),
    ],
)
def test_files_that_are_no_jobs(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        load_job(file)
    assert says in str(caught.value)


def test_a_section_without_keys_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text("[run]\n")
    assert load_job(file).get("run", "workers") is None


def test_paths_of_a_file_are_relative_to_it_and_flags_win(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = shop.job({"field.mask": Raw('{path = "m.tif", kind = "raster"}')})
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    job = load_job(path, {("output", "target"): "there.zarr", ("patch", "size"): 32})
    assert job.get("field", "path") == str(shop.folder / "scene.tif")
    assert job.get("field", "mask")["path"] == str(shop.folder / "m.tif")
    assert job.target == "there.zarr"
    assert job.get("patch", "size") == 32
    assert job.get("patch", "step") == 48
    assert job.folders == (str(shop.folder), str(elsewhere))


@pytest.mark.parametrize("url", ["s3://bucket/a.tif", "/vsicurl/https://h/a.tif", "NETCDF:a.nc:u"])
def test_urls_stay_as_they_are(shop: Shop, url: str) -> None:
    assert load_job(shop.job({"field.path": url})).get("field", "path") == url


def test_the_search_path_is_left_as_it_was(shop: Shop) -> None:
    import sys

    job, before = load_job(shop.job()), list(sys.path)
    with job.importable():
        assert sys.path[0] == str(shop.folder)
    assert sys.path == before


# ---- objects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hann", gp.Hann()),
        ("Hann", gp.Hann()),
        (Raw('{class = "Tukey", alpha = 0.3}'), gp.Tukey(0.3)),
        (Raw('{class = "gaussian", sigma = 0.4}'), gp.Gaussian(0.4)),
        (None, gp.Boxcar()),
    ],
)
def test_windows(shop: Shop, value: object, expected: object) -> None:
    patcher = load_job(shop.job({"patch.window": value})).plan_arguments()["patcher"]
    assert patcher.window == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("overlap-add", gp.OverlapAdd()),
        ("overlap_add", gp.OverlapAdd()),
        ("any", gp.Any()),
        ("Mean", gp.Mean()),
        (None, gp.OverlapAdd()),
    ],
)
def test_aggregations(shop: Shop, value: object, expected: object) -> None:
    patcher = load_job(shop.job({"patch.aggregation": value})).plan_arguments()["patcher"]
    assert patcher.aggregation == expected


@pytest.mark.parametrize(
    ("sampler", "step", "expected"),
    [
        (None, 48, gp.RegularStride(48)),
        ("jittered-stride", 48, gp.JitteredStride(48)),
        (
            Raw('{class = "JitteredStride", step = 20, seed = 3}'),
            None,
            gp.JitteredStride(20, seed=3),
        ),
        (Raw('{class = "Random", n_samples = 5, seed = 1}'), None, gp.Random(5, seed=1)),
        (
            Raw('{class = "Explicit", positions = [[0, 0], [5, 9]]}'),
            None,
            gp.Explicit([[0, 0], [5, 9]]),
        ),
    ],
)
def test_samplers(shop: Shop, sampler: object, step: object, expected: object) -> None:
    job = load_job(shop.job({"patch.sampler": sampler, "patch.step": step}))
    assert job.plan_arguments()["patcher"].sampler == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch.window": "han"}, "[patch] window 'han' is unknown; did you mean 'Hann'?"),
        ({"patch.window": 3}, "[patch] window must be a name, or a table with a class"),
        ({"patch.window": Raw('{class = "Tukey", alpa = 1.0}')}, "did you mean 'alpha'?"),
        ({"patch.aggregation": "overlapad"}, "did you mean 'OverlapAdd'?"),
        ({"patch.sampler": Raw('{class = "Random", n_samples = 5}')}, "step does not go with"),
        ({"patch.step": None}, "the job has no step: give --step, or [patch] step"),
        ({"patch.size": None}, "give --size"),
        ({"field.path": None}, "the job has no path: give --field"),
        ({"field.kind": "rasta"}, "did you mean 'raster'?"),
        ({"field.kind": "raster", "field.variable": "u"}, "variable is nothing that a RasterField"),
        ({"field.variable": "u"}, "variable is nothing that a RasterField takes"),
        ({"operator.function": None}, "give --operator"),
        ({"operator.memory": "lots"}, "no number of bytes"),
        ({"output.target": None}, "give --target"),
        ({"output.dtype": "float33"}, "float33"),
    ],
)
def test_objects_that_cannot_be_made(shop: Shop, changes: dict[str, object], says: str) -> None:
    with pytest.raises(GeopatchError) as caught:
        load_job(shop.job(changes)).plan_arguments()
    assert says in str(caught.value)


def test_fields_of_both_kinds_and_of_your_own(shop: Shop) -> None:
    (shop.folder / f"{shop.module}_f.py").write_text(
        "import geopatch_dask as gp\n\n\nclass Mine(gp.RasterField):\n"
        "    def __init__(self, path, shade=1):\n"
        "        super().__init__(path)\n        self.shade = shade\n"
    )
    kind = f"{shop.module}_f:Mine"
    job = load_job(shop.job({"field.kind": kind, "field.shade": 2}))
    with job.importable():
        assert job.plan_arguments()["field"].shade == 2
        with pytest.raises(OptionError, match="did you mean 'shade'"):
            load_job(shop.job({"field.kind": kind, "field.shape": 2})).plan_arguments()
    job = load_job(shop.job({"field.kind": "RasterField", "field.bands": Raw("[1]")}))
    assert job.plan_arguments()["field"].domain.dims == ("band", "y", "x")


def test_a_mask_is_a_path_or_a_table_like_the_field(shop: Shop) -> None:
    for mask in ("scene.tif", Raw('{path = "scene.tif", bands = 1}')):
        field = load_job(shop.job({"field.mask": mask})).plan_arguments()["field"]
        assert field.get_config()["mask"] is not None


def test_set_reaches_every_key_and_flags_come_after_it(shop: Shop) -> None:
    from geopatch_dask.cli.commands import job_of

    words = ["plan", shop.job(), "--set", "patch.size=32", "--set", "output.attrs.x=1"]
    with pytest.raises(OptionError, match=r"\[output\] has no key 'attrs.x'"):
        job_of(build_parser().parse_args(words))
    words[3:] = ["patch.size=32", "--set", 'output.attrs={units="1"}', "--size", "16"]
    job = job_of(build_parser().parse_args(words))
    assert job.get("patch", "size") == 16
    assert job.get("output", "attrs") == {"units": "1"}
    with pytest.raises(OptionError, match="not of the form"):
        job_of(build_parser().parse_args(["plan", "--set", "size"]))


def test_switches_can_be_switched_off(shop: Shop) -> None:
    from geopatch_dask.cli.commands import job_of

    words = ["run", shop.job({"run.quiet": True}), "--no-quiet", "--allow-uncovered"]
    job = job_of(build_parser().parse_args(words))
    assert job.get("run", "quiet") is False
    assert job.get("run", "allow_uncovered") is True
