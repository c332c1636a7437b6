"""Bad input: one line that names what, where, the numbers and the remedy, and nothing half-made.

Operators are tried on three patches before anything is planned, so most of what can go wrong with
them goes wrong here, where no target exists yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sample_operators as ops
from zarr.storage import MemoryStore

import geopatch_dask as gp
from geopatch_dask.testing import assert_same_bytes, merged, read_back


def field() -> gp.ArrayField:
    return gp.ArrayField(np.arange(3600.0, dtype="float32").reshape(60, 60))


def blend(**options: Any) -> gp.Patcher:
    return gp.Patcher(gp.Rectangular((16, 16), **options), gp.RegularStride((12, 12)), gp.Hann())


def dtype_changes(x: Any) -> Any:
    return x.astype("float64") if x.mean() > 1000 else x


def leading_changes(x: Any) -> Any:
    return np.stack([x, x]) if x.mean() > 1000 else x


def raises_later(x: Any) -> Any:
    if x.mean() > 3000:
        raise ValueError("too bright")
    return x


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, x: Any) -> Any:
        return x


class HoldsFile:
    def __init__(self, path: Path) -> None:
        self.handle = path.open("w")

    def __call__(self, x: Any) -> Any:
        return x


BAD_OPERATORS: dict[str, tuple[Any, str]] = {
    "cropped": (lambda x: x[1:-1, 1:-1], r"returned \(14, 14\); its last 2 axes must"),
    "scalar": (lambda x: x.mean(), r"returned \(\); its last 2 axes must"),
    "transposed lead": (lambda x: np.stack([x] * 3, -1), r"returned \(16, 16, 3\)"),
    "None": (lambda x: None, "return real numbers|returned"),
    "text": (lambda x: x.astype(str), "return real numbers"),
    "complex": (lambda x: x * 1j, "returned dtype complex64; return real numbers"),
    "dtype changes": (dtype_changes, r"one shape and dtype always .*astype"),
    "leading axes change": (leading_changes, "one shape and dtype always"),
    "raises": (raises_later, r"failed on patch 24 at \(44, 44\).*ValueError: too bright"),
    "lock": (Locked(), "cannot be sent to workers .*lock.*factory=True"),
    "no batch axis": (gp.Operator(lambda x: x[0], batch=3), "the batch axis must stay first"),
    "not a factory": (gp.Operator(lambda: 3, factory=True), "returned int, not a callable"),
    "no module": ("no_such_module:f", "cannot import 'no_such_module'"),
    "no name": ("json:f", "module 'json' has no 'f'"),
    "no colon": ("json", "not of the form 'module:name'"),
    "number": (3, "an operator is a callable or 'module:name', got 3"),
}


@pytest.mark.parametrize("name", BAD_OPERATORS)
def test_operators_that_break_their_contract(name: str, tmp_path: Path) -> None:
    operator, message = BAD_OPERATORS[name]
    with pytest.raises((gp.OperatorError, gp.OptionError), match=message) as caught:
        gp.plan(field(), blend(), operator, tmp_path / "out.zarr")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_holds_an_open_file(tmp_path: Path) -> None:
    held = HoldsFile(tmp_path / "log.txt")
    with pytest.raises(gp.OperatorError, match="keep open files, locks and models out of it"):
        gp.plan(field(), blend(), held, tmp_path / "out.zarr")
    held.handle.close()
    assert not (tmp_path / "out.zarr").exists()


def test_an_operator_that_carries_a_model() -> None:
    weights = np.zeros(10_000_000)
    with pytest.raises(gp.OperatorError, match="pickles to 76 MiB; build what it carries on"):
        gp.plan(field(), blend(), lambda x: x + weights[0], MemoryStore())


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"batch": 2.5},
        {"batch": True},
        {"takes": "tensor"},
        {"missing": "skip"},
        {"takes": "patch", "batch": 4},
        {"memory": "much"},
        {"memory": -1},
    ],
)
def test_bad_options_of_operators(options: dict[str, Any]) -> None:
    with pytest.raises(gp.OptionError):
        gp.Operator(ops.identity, **options)


BAD_JOBS: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "missing file": (
        lambda p: gp.plan(p / "no.tif", blend(), ops.identity, p / "o.zarr"),
        gp.FieldError,
        r"no\.tif",
    ),
    "patch larger than the field": (
        lambda p: gp.plan(gp.ArrayField(np.zeros((10, 60))), blend(), ops.identity, p / "o.zarr"),
        gp.BoundaryError,
        "axis 'y' has 10 cells, a patch needs 16 .*boundary='reflect', 'pad' or 'shrink'",
    ),
    "raise does not fit": (
        lambda p: gp.plan(field(), blend(boundary="raise"), ops.identity, p / "o.zarr"),
        gp.BoundaryError,
        "only up to cell 52",
    ),
    "no such axis": (
        lambda p: gp.plan(
            field(),
            gp.Patcher(gp.Rectangular({"lat": 4}), gp.RegularStride({"lat": 4})),
            ops.identity,
            p / "o.zarr",
        ),
        gp.OptionError,
        "names axis 'lat'; the field has y, x",
    ),
    "misaligned": (
        lambda p: gp.plan(
            field(), blend(), ops.identity, p / "o.zarr", chunks=(16, 16), outer=(24, 32)
        ),
        gp.AlignmentError,
        "super-tiles of 24 cells would share chunks of 16 with their neighbours.*use 32",
    ),
    "memory": (
        lambda p: gp.plan(field(), blend(), ops.identity, p / "o.zarr", memory_limit="1 MB"),
        gp.MemoryPlanError,
        r"memory_limit='\d",
    ),
    "no field": (
        lambda p: gp.plan(3, blend(), ops.identity, p / "o.zarr"),
        gp.OptionError,
        "a field is a path, a URL, a DataArray, an array or a Field, not int",
    ),
    "no patcher": (
        lambda p: gp.plan(field(), (16, 16), ops.identity, p / "o.zarr"),
        gp.OptionError,
        "patcher must be a Patcher",
    ),
    "no target": (
        lambda p: gp.plan(field(), blend(), ops.identity, None),
        gp.OptionError,
        "a NoneType is no target",
    ),
    "fill does not fit": (
        lambda p: gp.plan(
            field(),
            blend(),
            ops.identity,
            p / "o.zarr",
            output=gp.Output(dtype="uint8", fill_value=300),
        ),
        gp.OptionError,
        "300 does not fit in uint8",
    ),
    "NaN fill in integers": (
        lambda p: gp.plan(
            field(),
            blend(),
            ops.classed,
            p / "o.zarr",
            output=gp.Output(dtype="uint8", fill_value=float("nan")),
        ),
        gp.OptionError,
        "nan does not fit in uint8",
    ),
    "no dtype": (
        lambda p: gp.plan(
            field(), blend(), ops.identity, p / "o.zarr", output=gp.Output(dtype="float31")
        ),
        gp.OptionError,
        "'float31' is no numpy dtype",
    ),
    "name of an axis": (
        lambda p: gp.plan(field(), blend(), ops.identity, p / "o.zarr", output=gp.Output(name="x")),
        gp.OptionError,
        "output 'x' has the name of an axis",
    ),
    "dims of the output": (
        lambda p: gp.plan(
            field(), blend(), ops.stacked, p / "o.zarr", output=gp.Output(dims=("a", "b"))
        ),
        gp.OptionError,
        "name 2 leading axes, the operator returns 1",
    ),
    "pad value": (
        lambda p: gp.plan(
            gp.ArrayField(np.zeros((60, 60), "uint8")),
            blend(boundary="pad", pad_value=-9999),
            ops.identity,
            p / "o.zarr",
        ),
        gp.OptionError,
        "pad_value -9999 does not fit in the field's uint8",
    ),
    "unknown scheduler": (
        lambda p: gp.plan(field(), blend(), ops.identity, MemoryStore()).run("slurm"),
        gp.OptionError,
        "'slurm' is no scheduler",
    ),
    "store in memory, processes": (
        lambda p: gp.plan(field(), blend(), ops.identity, MemoryStore()).run("processes"),
        gp.OptionError,
        "lives in the memory of this process; run with 'threads' or 'sync'",
    ),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_bad_jobs_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    job, kind, message = BAD_JOBS[name]
    with pytest.raises(kind, match=message) as caught:
        job(tmp_path)
    assert isinstance(caught.value, gp.GeopatchError)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_zarr_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    plan = gp.plan(field(), blend(), ops.identity, tmp_path / "photos")
    for overwrite in (False, True):
        with pytest.raises(gp.TargetError, match=r"not a Zarr store.*never deleted"):
            plan.run("sync", overwrite=overwrite)
    assert [p.name for p in tmp_path.rglob("*")] == ["photos", "holiday.jpg"]


# ---- how operators are called --------------------------------------------------------------------


def test_an_operator_sees_contiguous_arrays_of_one_shape() -> None:
    """The last batch is padded with repeats; what it returns for them is dropped."""
    shapes = set()

    def watch(x: Any) -> Any:
        shapes.add((x.shape, x.flags.c_contiguous, x.dtype.name))
        return x + 1

    values = np.arange(2 * 30 * 30.0).reshape(2, 30, 30)
    operator = gp.Operator(watch, batch=4, version="1")
    plan = gp.plan(
        gp.ArrayField(values), blend(), operator, MemoryStore(), outer=(8, 8), chunks=(8, 8)
    )
    plan.run("sync")
    assert shapes == {((4, 2, 16, 16), True, "float64")}
    np.testing.assert_allclose(read_back(plan.target), values + 1)


def test_masked_operators_never_see_missing_cells_and_keep_one_dtype() -> None:
    """Also where a patch has none missing: else the dtype would change from patch to patch."""
    values = np.ones((2, 40, 40), "float32")
    values[0, 30:, 30:] = np.nan
    source = gp.ArrayField(values)
    for function, dtype in ((ops.classed, "float32"), (ops.mixing, "float32")):
        operator = gp.Operator(function, missing="mask", fill=5.0)
        patcher = gp.Patcher(
            gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), aggregation=gp.Max()
        )
        plan = gp.plan(source, patcher, operator, MemoryStore(), outer=(8, 8), chunks=(8, 8))
        plan.run("sync")
        found = read_back(plan.target)
        assert found.dtype == dtype
        assert_same_bytes(found, merged(source, patcher, operator))
        missing = np.isnan(values).any(axis=0)  # in any band
        assert np.isnan(found[:, missing]).all()
        assert not np.isnan(found[:, ~missing]).any()


def test_masks_hold_for_operators_that_take_patches() -> None:
    values = np.ones((30, 30), "float32")
    values[3, 4] = np.nan
    seen = []

    def look(patch: gp.Patch) -> Any:
        seen.append(float(patch.data.min()))
        return patch.data

    operator = gp.Operator(look, takes="patch", missing="mask", fill=-5.0, version="1")
    plan = gp.plan(gp.ArrayField(values), blend(), operator, MemoryStore())
    plan.run("sync")
    assert set(seen) == {-5.0, 1.0}
    assert np.argwhere(np.isnan(read_back(plan.target))).tolist() == [[3, 4]]


def test_masked_arrays_are_missing_where_they_are_masked() -> None:
    """numpy would hand out what is under the mask, and it would be blended."""

    def darker(x: Any) -> Any:
        return np.ma.masked_greater(x, 1000.0)

    plan = gp.plan(field(), blend(), darker, MemoryStore())
    report = plan.run("sync")
    found, values = read_back(plan.target), np.arange(3600.0).reshape(60, 60)
    np.testing.assert_array_equal(np.isnan(found), values > 1000)
    assert report.totals["missing"] == (values > 1000).sum()
    with pytest.raises(
        gp.OperatorError, match=r"masked array of int64.*gp\.Output\(missing=value\)"
    ):
        gp.plan(field(), blend(), lambda x: darker(x).astype("int64"), MemoryStore())


def test_factories_are_called_once_per_process(tmp_path: Path) -> None:
    log = tmp_path / "calls.txt"

    def make(factor: float) -> Any:
        ops.note(log, "built")
        return lambda x: x * factor

    operator = gp.Operator(make, factory=True, options={"factor": 3.0}, version="once")
    plan = gp.plan(field(), blend(), operator, MemoryStore(), outer=(20, 20), chunks=(20, 20))
    plan.run("threads")
    assert ops.notes(log) == 1
    np.testing.assert_allclose(read_back(plan.target), 3 * np.arange(3600.0).reshape(60, 60))
