"""What planning learns of an operator, and what it is told of one that cannot run there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.errors import OptionError
from geopatch_dask.planning.probe import LARGE_MODEL
from geopatch_dask.testing import read_back

Array = npt.NDArray[Any]

MIB = 1 << 20
DEVICE = "GEOPATCH_TEST_DEVICE"
FIELD = gp.ArrayField(np.arange(400.0, dtype="f4").reshape(20, 20))


def patcher(aggregation: Any = None) -> gp.Patcher:
    return gp.Patcher(gp.Rectangular((8, 8)), gp.RegularStride((6, 6)), gp.Hann(), aggregation)


class Model:
    """Holds so many MiB."""

    made = 0

    def __init__(self, mib: int) -> None:
        Model.made += 1
        self.weights = np.ones(mib * MIB, np.uint8)

    def __call__(self, x: Array, context: Any = None) -> Array:
        return x * self.weights[0]


def model(mib: int, **options: Any) -> gp.Operator:
    return gp.Operator(Model, factory=True, options={"mib": mib}, **options)


# ---- what building it keeps ----------------------------------------------------------------------


def test_the_weights_of_a_factory_are_planned_and_not_kept() -> None:
    operator = model(96)
    plan = gp.plan(FIELD, patcher(), operator, MemoryStore())
    assert 90 * MIB <= plan.memory.operator <= 110 * MIB
    assert not operator.built
    made = Model.made
    again = gp.plan(FIELD, patcher(), operator, MemoryStore())
    assert abs(again.memory.operator - plan.memory.operator) < MIB
    assert Model.made == made + 1, "it is measured once per process"
    assert plan.run("sync").complete
    assert Model.made == made + 2
    gp.plan(FIELD, patcher(), operator, MemoryStore())
    assert operator.built, "what a run has built stays for the next one"
    assert Model.made == made + 2
    operator.forget()


def test_a_small_model_stays_for_the_run() -> None:
    operator = model(1)
    assert LARGE_MODEL > MIB
    plan = gp.plan(FIELD, patcher(), operator, MemoryStore())
    made = Model.made
    plan.run("sync")
    assert Model.made == made


def test_weights_of_both_passes_are_planned() -> None:
    first = model(65)
    plan = gp.plan(*(FIELD, patcher(), model(97), MemoryStore()), context=gp.MeanStd(), over=first)
    assert 155 * MIB <= plan.memory.operator <= 180 * MIB
    assert not first.built


def test_what_is_declared_counts_if_it_is_more() -> None:
    plan = gp.plan(FIELD, patcher(), model(66, memory="50 MiB"), MemoryStore())
    assert plan.memory.operator >= 60 * MIB
    plan = gp.plan(FIELD, patcher(), model(67, memory="300 MiB"), MemoryStore())
    assert plan.memory.operator == 300 * MIB


def test_a_factory_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no device"):
        gp.plan(FIELD, patcher(), on_device(), tmp_path / "out.zarr")
    assert not list(tmp_path.iterdir())


# ---- without a trial -----------------------------------------------------------------------------


def make_on_device(bands: int = 0) -> Any:
    """A network that is nowhere without its device."""
    if DEVICE not in os.environ:
        raise RuntimeError("no device here")

    def call(x: Array, context: Any = None) -> Array:
        result = x + 1 if context is None else x - context["mean"][0]
        return np.stack([result] * bands) if bands else result

    return call


def on_device(bands: int = 0, **options: Any) -> gp.Operator:
    return gp.Operator(make_on_device, factory=True, options={"bands": bands}, **options)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it to have one from then on."""
    monkeypatch.delenv(DEVICE, raising=False)
    return lambda: monkeypatch.setenv(DEVICE, "0")


def test_what_cannot_run_here_is_planned_here(device: Any) -> None:
    operator = on_device(3, trial=False, memory="1 GiB")
    output = gp.Output(returns="(3,)float32")
    plan = gp.plan(FIELD, patcher(), operator, MemoryStore(), output=output, chunks=8, outer=8)
    assert plan.memory.operator == 1024 * MIB
    assert plan.arrays[0].leading == (3,)
    text = str(plan.explain())
    assert "not tried, its time is unknown" in text
    assert "operator time" not in text
    assert "whose time is unknown" in str(plan.explain(nodes=gp.Nodes(1, 4, "64 GiB")))
    device()
    assert plan.run("sync").complete
    tried = gp.plan(FIELD, patcher(), on_device(3), MemoryStore(), chunks=8)
    assert tried.fingerprint == plan.fingerprint
    assert tried.run("sync").complete
    assert read_back(tried.target).tobytes() == read_back(plan.target).tobytes()
    tried.operator.forget()


@pytest.mark.parametrize(
    ("returns", "told"),
    [("float64", "dtype float32 .* the plan was made for .* float64"), ("(2,)float32", "leading")],
)
def test_workers_check_what_was_declared(returns: str, told: str, device: Any) -> None:
    operator = on_device(trial=False, memory="1 MiB")
    plan = gp.plan(FIELD, patcher(), operator, MemoryStore(), output=gp.Output(returns=returns))
    device()
    report = plan.run("sync", on_failure="return")
    assert not report.complete
    with pytest.raises(gp.RunIncomplete, match=told):
        plan.run("sync")


def test_all_that_is_lacking_is_named() -> None:
    with pytest.raises(OptionError, match=r"trial=False.*memory=.*; Output\(returns="):
        gp.plan(FIELD, patcher(), on_device(trial=False), MemoryStore())
    operator = on_device(trial=False, memory="1 MiB")
    both = {"height": gp.Mean(), "rows": gp.ByIndex()}
    with pytest.raises(OptionError, match=r"'height'.*ByIndex\(schema=...\) of 'rows'"):
        gp.plan(FIELD, patcher(both), operator, MemoryStore())


@pytest.mark.parametrize("returns", ["many", "(2,)U3", "(a,)f4"])
def test_bad_declarations(returns: str) -> None:
    with pytest.raises(OptionError, match=r"returns|real number"):
        gp.Output(returns=returns)


def test_masks_and_pairs_are_counted_in(device: Any) -> None:
    """``missing='mask'`` promotes integers, and (mu, var) is one result with two entries."""
    operator = gp.Operator("nowhere:at_all", trial=False, memory=1, missing="mask", version="1")
    plan = gp.plan(FIELD, patcher(), operator, MemoryStore(), output=gp.Output(returns="uint8"))
    assert plan.products[0].result_dtype == "float32"
    pair = gp.plan(
        *(FIELD, patcher(gp.InvVarWeightedMean()), operator, MemoryStore()),
        output=gp.Output(returns="float32"),
    )
    assert pair.products[0].leading == (2,)


@pytest.mark.parametrize("over", ["field", "output"])
def test_a_first_pass_without_a_trial(over: str, device: Any) -> None:
    operator = on_device(trial=False, memory="1 MiB")
    output = gp.Output(returns="float64")
    field = gp.ArrayField(np.arange(400.0).reshape(20, 20))
    plan = gp.plan(
        *(field, patcher(), operator, MemoryStore()),
        context=gp.MeanStd(), over=over, output=output,
    )  # fmt: skip
    assert plan.context is not None
    assert plan.context.shape == ((1, 64) if over == "output" else (0, 0))
    device()
    assert plan.run("sync").complete
    merged = patcher().two_pass(field, on_device(), gp.MeanStd(), over)
    assert read_back(plan.target).tobytes() == merged.tobytes()
    on_device().forget()


def test_another_operator_of_a_first_pass_is_always_tried() -> None:
    with pytest.raises(OptionError, match=r"over= operator .* has trial=False"):
        gp.plan(
            *(FIELD, patcher(), np.negative, MemoryStore()),
            context=gp.MeanStd(), over=on_device(trial=False),
        )  # fmt: skip
