"""Plans travel as a few kB of JSON or pickle, and know what decides their values.

The *fingerprint* covers the values: field, axes, operator, output.  It does not cover the layout:
super-tiles, chunks, memory and workers may change between a run and its resumption.
"""

from __future__ import annotations

import functools
import importlib
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import rasterio
import sample_operators as ops
import strategies
from rasterio.transform import from_origin
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.planning.identity import code_identity
from geopatch_dask.testing import read_back


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    write(path, np.arange(3 * 60 * 80, dtype="float32").reshape(3, 60, 80))
    return path


def write(path: Path, values: Any) -> None:
    count, height, width = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=values.dtype,
        crs="EPSG:32633",
        transform=from_origin(500_000, 4_000_000, 10, 10),
    ) as dataset:
        dataset.write(values)


def patcher(**changes: Any) -> gp.Patcher:
    parts: dict[str, Any] = {
        "geometry": gp.Rectangular((16, 16)),
        "sampler": gp.RegularStride((12, 12)),
        "window": gp.Hann(),
        "aggregation": gp.OverlapAdd(),
    }
    return gp.Patcher(**{**parts, **changes})


def plan_of(field: Any, target: Any, operator: Any = ops.smooth, **options: Any) -> gp.Plan:
    axes = options.pop("patcher", None) or patcher()
    return gp.plan(field, axes, operator, target, **{"chunks": (20, 20), **options})


# ---- travelling ----------------------------------------------------------------------------------


def test_plans_survive_json_and_run_from_it(raster: Path, tmp_path: Path) -> None:
    plan = plan_of(raster, tmp_path / "out.zarr", outer=(40, 40), shards=(40, 40))
    text = plan.to_json()
    again = gp.Plan.from_json(text)
    assert again.to_json() == text
    assert again.fingerprint == plan.fingerprint
    assert [again.supertile(i) for i in range(again.n_supertiles)] == list(plan.layout)
    again.run("sync")
    expected = plan.patcher.merge(
        (p.with_data(ops.smooth(p.data)) for p in plan.patcher.split(plan.field)), plan.field
    )
    assert read_back(tmp_path / "out.zarr").tobytes() == expected.tobytes()
    assert (tmp_path / "out.zarr.geopatch" / plan.fingerprint[:8] / "plan.json").is_file()


def test_plans_of_paths_are_small(raster: Path, tmp_path: Path) -> None:
    """Sent to every worker: configuration, not data; the same after it has been used."""
    plan = plan_of(raster, tmp_path / "out.zarr")
    _ = plan.grid, plan.cost, plan.output_domain, plan.explain()
    for dumped in (pickle.dumps(plan), cloudpickle.dumps(plan), plan.to_json().encode()):
        assert len(dumped) < 10_000
    again = pickle.loads(pickle.dumps(plan))
    assert again.to_json() == plan.to_json()
    assert again.supertile(0) == plan.supertile(0)


def test_what_json_cannot_hold_is_asked_for(tmp_path: Path) -> None:
    field = gp.ArrayField(np.ones((40, 40)))
    plan = plan_of(field, tmp_path / "out.zarr", lambda x: x + 1)
    text = plan.to_json()
    assert json.loads(text)["field"] is None
    with pytest.raises(gp.OptionError, match=r"no field .* pass field= again"):
        gp.Plan.from_json(text)
    with pytest.raises(gp.OptionError, match=r"no operator .* pass operator= again"):
        gp.Plan.from_json(text, field=field)
    again = gp.Plan.from_json(text, field=field, operator=plan.operator)
    assert again.to_json() == text
    windowed = plan_of(
        field, tmp_path / "b.zarr", patcher=patcher(window=gp.Custom(lambda n: np.ones(n)))
    )
    with pytest.raises(gp.OptionError, match="pass patcher= again"):
        gp.Plan.from_json(windowed.to_json(), field=field)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": 99}', '{"fingerprint": "ab"}', b"\xff\xfe"]
)
def test_what_is_no_plan_is_refused(text: Any) -> None:
    with pytest.raises(gp.RecordError, match=r"plan\.json"):
        gp.Plan.from_json(text)


def test_super_tiles_are_a_pure_function_of_the_number(raster: Path, tmp_path: Path) -> None:
    plan = plan_of(raster, tmp_path / "out.zarr", outer=(40, 20))
    tiles = [plan.supertile(i) for i in range(plan.n_supertiles)]
    assert tiles == [plan.supertile(i) for i in range(plan.n_supertiles)]
    assert tiles[5].id == "y40-60_x20-40"
    covered = np.zeros((60, 80), int)
    for tile in tiles:
        covered[tile.box.slices()] += 1
    assert (covered == 1).all()
    for outside in (-1, plan.n_supertiles):
        with pytest.raises(IndexError, match="super-tile"):
            plan.supertile(outside)


# ---- the fingerprint -----------------------------------------------------------------------------


def test_the_layout_is_no_part_of_it(raster: Path, tmp_path: Path) -> None:
    first = plan_of(raster, tmp_path / "a.zarr").fingerprint
    for options in (
        {"outer": (20, 20)},
        {"outer": (60, 80)},
        {"chunks": (10, 8)},
        {"shards": (40, 40)},
        {"memory_limit": "7 GiB"},
        {"slots": 13},
    ):
        assert plan_of(raster, tmp_path / "b.zarr", **options).fingerprint == first


@pytest.mark.cluster
def test_it_is_the_same_in_another_process(raster: Path, tmp_path: Path, client: Any) -> None:
    plan = plan_of(raster, tmp_path / "a.zarr")
    remade = client.submit(_fingerprint, raster, tmp_path / "a.zarr", pure=False).result()
    assert remade == plan.fingerprint


def _fingerprint(raster: Path, target: Path) -> str:
    return plan_of(raster, target).fingerprint


AXES: dict[str, tuple[Any, str]] = {
    "size": (patcher(geometry=gp.Rectangular((16, 17))), "geometry.size"),
    "boundary": (patcher(geometry=gp.Rectangular((16, 16), "pad")), "geometry.boundary"),
    "pad value": (patcher(geometry=gp.Rectangular((16, 16), "shift", 3)), "geometry.pad_value"),
    "step": (patcher(sampler=gp.RegularStride((12, 11))), "sampler.step"),
    "sampler": (patcher(sampler=gp.Random(40)), "sampler.class"),
    "window": (patcher(window=gp.Tukey()), "window.class"),
    "form": (patcher(window=gp.Hann("symmetric")), "window.form"),
    "aggregation": (patcher(aggregation=gp.WeightedSum()), "aggregation.class"),
}


@pytest.mark.parametrize("name", AXES)
def test_every_axis_is_part_of_it_and_a_mismatch_names_it(
    name: str, raster: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.zarr"
    plan_of(raster, target).run("sync")
    before = read_back(target).tobytes()
    changed, part = AXES[name]
    other = plan_of(raster, target, patcher=changed)
    with pytest.raises(gp.PlanMismatch, match=r"another plan; it differs in .*overwrite") as e:
        other.run("sync")
    assert part in e.value.fields
    assert all(field.startswith(part.partition(".")[0]) for field in e.value.fields)
    assert read_back(target).tobytes() == before  # refused before anything was touched


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (gp.JitteredStride((12, 12), 0.5, 1), gp.JitteredStride((12, 12), 0.5, 2)),
        (gp.JitteredStride((12, 12), 0.5), gp.JitteredStride((12, 12), 0.4)),
        (gp.Random(30, 1), gp.Random(30, 2)),
        (gp.Random(30), gp.Random(31)),
        (gp.PoissonDisk(9.0), gp.PoissonDisk(9.5)),
        (gp.PoissonDisk(9.0, 30, 1), gp.PoissonDisk(9.0, 30, 2)),
        (gp.Explicit([(0, 0)]), gp.Explicit([(0, 1)])),
    ],
    ids=repr,
)
def test_every_parameter_of_a_sampler_is_part_of_it(one: Any, two: Any) -> None:
    field = gp.ArrayField(np.ones((60, 80)))
    plans = [plan_of(field, MemoryStore(), patcher=patcher(sampler=s)) for s in (one, two)]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_custom_windows_count_by_what_they_return() -> None:
    """The name of a function says little: its weights are part of the fingerprint."""
    field = gp.ArrayField(np.ones((60, 80)))

    def fingerprint(window: Any) -> str:
        return plan_of(field, MemoryStore(), patcher=patcher(window=gp.Custom(window))).fingerprint

    assert fingerprint(strategies.pyramid) == fingerprint(strategies.pyramid)
    assert fingerprint(lambda n: np.ones(n)) != fingerprint(lambda n: np.full(n, 2.0))
    level = {"value": 1.0}

    def impure(shape: tuple[int, ...]) -> Any:
        return np.full(shape, level["value"])

    assert fingerprint(impure) == fingerprint(impure)


def test_a_window_that_does_not_weigh_is_no_part_of_it() -> None:
    field = gp.ArrayField(np.ones((60, 80)))
    plans = [
        plan_of(field, MemoryStore(), patcher=patcher(window=w, aggregation=gp.Max()))
        for w in (gp.Hann(), gp.Boxcar())
    ]
    assert plans[0].fingerprint == plans[1].fingerprint


def test_the_output_is_part_of_it(tmp_path: Path) -> None:
    field = gp.ArrayField(np.ones((60, 80), "float32"))
    target = tmp_path / "out.zarr"
    plan_of(field, target).run("sync")
    for output, part in (
        (gp.Output(dtype="float64"), "dtype"),
        (gp.Output(fill_value=-9999), "fill"),
        (gp.Output(missing=0), "missing"),
        (gp.Output(name="other"), "other"),
    ):
        with pytest.raises(gp.PlanMismatch) as caught:
            plan_of(field, target, output=output).run("sync")
        assert any(part in name and name.startswith("output") for name in caught.value.fields)


def test_the_field_is_part_of_it(raster: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    plan_of(raster, target).run("sync")
    write(raster, np.zeros((3, 60, 80), "float32"))  # another file under the old name
    with pytest.raises(gp.PlanMismatch) as caught:
        plan_of(raster, target).run("sync")
    assert {name.partition(".")[0] for name in caught.value.fields} == {"field"}
    bands = [plan_of(gp.RasterField(raster, bands=b), target) for b in ([1, 2], [2, 1])]
    assert bands[0].fingerprint != bands[1].fingerprint


def test_the_values_of_an_array_are_part_of_it() -> None:
    values = np.ones((60, 80))
    plans = [plan_of(gp.ArrayField(values.copy()), MemoryStore()) for _ in range(2)]
    values[3, 3] = 2
    plans.append(plan_of(gp.ArrayField(values), MemoryStore()))
    assert plans[0].fingerprint == plans[1].fingerprint
    assert plans[0].fingerprint != plans[2].fingerprint


def test_overwriting_is_said_out_loud(raster: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    plan_of(raster, target).run("sync")
    other = plan_of(raster, target, ops.mixing)
    report = other.run("sync", overwrite=True)
    assert report.skipped == 0
    folders = [p.name for p in (tmp_path / "out.zarr.geopatch").iterdir()]
    assert folders == [other.fingerprint[:8]]


def test_chunks_and_shards_of_a_target_stay(raster: Path, tmp_path: Path) -> None:
    """They are no part of the values, but of the store: a run resumes with those it has."""
    target = tmp_path / "out.zarr"
    plan_of(raster, target).run("sync")
    with pytest.raises(gp.PlanMismatch, match=r"has chunks of .*resume with the chunks it has"):
        plan_of(raster, target, chunks=(10, 10)).run("sync")
    with pytest.raises(gp.PlanMismatch, match="has shards of None"):
        plan_of(raster, target, shards=(40, 40)).run("sync")


# ---- operators -----------------------------------------------------------------------------------


def scaled(x: Any, factor: float = 2.0) -> Any:
    return x * factor


class Scaler:
    def __init__(self, factor: float, table: Any = None) -> None:
        self.factor, self.table = factor, table

    def __call__(self, x: Any) -> Any:
        return x * self.factor


def closing_over(value: Any) -> Any:
    def scale(x: Any) -> Any:
        return x * value

    return scale


def test_operators_count_by_source_closure_options_and_state() -> None:
    field = gp.ArrayField(np.ones((60, 80)))

    def fingerprint(operator: Any) -> str:
        return plan_of(field, MemoryStore(), operator).fingerprint

    different: list[Any] = [
        lambda x: x * 2,
        lambda x: x * 3,
        closing_over(2),
        closing_over(3),
        closing_over(np.ones(1)),
        closing_over(np.full(1, 2.0)),
        scaled,
        functools.partial(scaled, factor=3),
        functools.partial(scaled, factor=4),
        gp.Operator(scaled, options={"factor": 3}),
        gp.Operator(scaled, options={"factor": 4}),
        gp.Operator(scaled, version="1"),
        gp.Operator(scaled, version="2"),
        gp.Operator(scaled, missing="mask"),
        gp.Operator(scaled, missing="mask", fill=1),
        gp.Operator(ops.mixing_batch, batch=2),
        gp.Operator(ops.mixing_batch, batch=3),
        gp.Operator(ops.make_scaler, factory=True),
        gp.Operator(ops.make_scaler, factory=True, options={"factor": 5.0}),
        Scaler(2),
        Scaler(3),
        np.sqrt,
        np.square,
    ]
    prints = [fingerprint(operator) for operator in different]
    twice = [i for i, p in enumerate(prints) if p in prints[:i]]
    assert not twice, [different[i] for i in twice]
    again = [fingerprint(operator) for operator in different]
    assert again == prints


MODULE = """
OFFSET = {offset}

def helper(x):
    return x {sign} OFFSET

class Base:
    def work(self, x):
        return helper(x) * {factor}

class Operator(Base):
    def __call__(self, x):
        return self.work(x)
"""


def test_classes_count_with_what_they_build_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helpers, constants and base classes of their module; but not the name of the module.

    A script is ``__main__`` when it runs and a module when something imports it.
    """
    monkeypatch.syspath_prepend(tmp_path)
    default = {"offset": 1, "sign": "+", "factor": 2}
    changes: list[dict[str, Any]] = [{}, {"offset": 3}, {"sign": "-"}, {"factor": 5}, {}]
    identities = []
    for i, change in enumerate(changes):
        name = f"operators_of_test_{i}"
        (tmp_path / f"{name}.py").write_text(MODULE.format(**{**default, **change}))
        identities.append(code_identity(importlib.import_module(name).Operator()))
    assert len(set(identities[:4])) == 4
    assert identities[4] == identities[0]


def test_equal_operators_are_equal_however_they_were_built() -> None:
    """Two lists with the same content count the same as one list held twice."""
    shared = [1.0, 2.0]
    assert code_identity(Scaler(2, (shared, shared))) == code_identity(
        Scaler(2, ([1.0, 2.0], [1.0, 2.0]))
    )
    assert code_identity(pickle.loads(pickle.dumps(Scaler(2, (shared, shared))))) == (
        code_identity(Scaler(2, (list(shared), list(shared))))
    )
    loop: list[Any] = []
    loop.append(loop)
    assert code_identity(loop) == code_identity(loop)


class Lazy:
    """Builds its model, and opens a log, when it is first called: what many operators do."""

    model: Any = None

    def __call__(self, x: Any) -> Any:
        if self.model is None:
            self.model, self.lock = np.full(100_000, 2.0), threading.Lock()
        return x * self.model[0]


_CACHE: dict[str, Any] = {}


def caching(x: Any) -> Any:
    """The same with a global."""
    if "lock" not in _CACHE:
        _CACHE["lock"] = threading.Lock()
    return x * 2


def test_what_an_operator_builds_when_it_is_called_stays_where_it_was_called(
    tmp_path: Path, raster: Path
) -> None:
    """Else a plan would carry the model that was loaded when the operator was tried."""
    operator = Lazy()
    plan = plan_of(raster, tmp_path / "out.zarr", operator)
    assert operator.model is None
    assert len(cloudpickle.dumps(plan)) < 10_000
    assert plan.fingerprint == plan_of(raster, tmp_path / "out.zarr", Lazy()).fingerprint
    plan.run("sync")
    assert operator.model is None
    assert plan_of(raster, tmp_path / "out.zarr", operator).run("sync").skipped == plan.n_supertiles
    cached = plan_of(raster, tmp_path / "b.zarr", caching)
    assert _CACHE
    assert plan_of(raster, tmp_path / "b.zarr", caching).fingerprint == cached.fingerprint


def test_a_changed_operator_is_named(tmp_path: Path) -> None:
    field = gp.ArrayField(np.ones((60, 80)))
    target = tmp_path / "out.zarr"
    plan_of(field, target, closing_over(2)).run("sync")
    with pytest.raises(gp.PlanMismatch, match=r"differs in operator\.code: .*--operator-changed"):
        plan_of(field, target, closing_over(3)).run("sync")
    plan_of(field, target, closing_over(2)).run("sync")


def test_a_version_makes_the_source_not_matter(tmp_path: Path) -> None:
    field = gp.ArrayField(np.ones((60, 80)))
    plans = [
        plan_of(field, MemoryStore(), gp.Operator(closing_over(value), version="net-7"))
        for value in (2, 3)
    ]
    assert plans[0].fingerprint == plans[1].fingerprint
