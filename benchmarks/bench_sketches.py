"""Values per second of the sketches, on one core, beside numpy's exact quantile and KLL.

The limit is 30 million values per second for the quantile and the histogram sketch, in float32 and
float64, and it does not depend on what the values are: the worst of the data sets is reported.  The
floor is ``numpy.quantile`` (or ``numpy.histogram``) on the same array, which has to hold all of it
at once.  The KLL sketch of Apache DataSketches is measured where its package is installed; it is
not needed for anything else.  Next to the speeds, the errors, as shares of the stated bounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from common import result

from geopatch_dask.aggregation.sketches import (
    ApproxCardinality,
    ApproxMode,
    ApproxQuantile,
    Reservoir,
    StreamingHistogram,
)
from geopatch_dask.aggregation.statistic import Statistic

try:
    import datasketches
except ImportError:
    datasketches = None

N = 1 << 23
REPEATS = 7
TARGET = 30e6  # values per second
QS = (0.01, 0.25, 0.5, 0.75, 0.99)
QUANTILE, HISTOGRAM = ApproxQuantile(QS), StreamingHistogram(64)


def data(dtype: type) -> dict[str, np.ndarray]:
    """Values that sketches may find hard, each in one band."""
    rng = np.random.default_rng(5)
    normal = rng.normal(size=N)
    sets = {
        "normal": normal,
        "log-normal": np.exp(normal),
        "one decimal": np.round(300 + 20 * normal, 1),
        "constant": np.full(N, 273.15),
        "sorted": np.sort(normal),
        "a tenth missing": np.where(rng.random(N) < 0.1, np.nan, normal),
    }
    return {name: values.astype(dtype) for name, values in sets.items()}


def best(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Seconds of the fastest of several calls: the machine may be doing other things."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def sketched(sketch: Statistic, values: np.ndarray) -> Any:
    """One pass over one band."""
    state = sketch.init(1)
    sketch.update(state, values[None], np.arange(len(values), dtype=np.uint64))
    return sketch.finalize(state)


def speed(sketch: Statistic, sets: dict[str, np.ndarray]) -> dict[str, float]:
    """Million values per second, by data set."""
    found = {}
    for name, values in sets.items():
        state, keys = sketch.init(1), np.arange(N, dtype=np.uint64)
        row = values[None]
        seconds = best(lambda row=row, state=state, keys=keys: sketch.update(state, row, keys))
        found[name] = round(N / seconds / 1e6, 1)
    return found


def quantile_error(values: np.ndarray) -> float:
    """Largest relative error of the quantiles, as a share of the stated bound."""
    valid = values[~np.isnan(values)].astype(np.float64)
    exact = np.quantile(valid, QS, method="lower")
    off = np.abs(sketched(QUANTILE, values)["value"][0] - exact)
    return float((off / np.abs(exact)).max() / QUANTILE.relative_error)


def histogram_error(values: np.ndarray) -> float:
    """Farthest that an inner edge would have to move to give these counts, against the bound."""
    found = sketched(HISTOGRAM, values)
    if np.nanmin(values) == np.nanmax(values):
        return 0.0 if found["counts"].max() == len(values) else np.inf
    ordered = np.sort(values[~np.isnan(values)].astype(np.float64))
    inner, before = found["edges"][0, 1:-1], np.cumsum(found["counts"][0])[:-1]
    last = ordered[np.clip(before - 1, 0, None)]  # these two lie on either side of the edge in use
    first = ordered[np.clip(before, None, len(ordered) - 1)]
    off = np.maximum(np.where(before > 0, last - inner, 0), 0)
    off = np.maximum(off, np.where(before < len(ordered), inner - first, 0))
    return float(off.max() / ((ordered[-1] - ordered[0]) / HISTOGRAM.bins / 63))


def against_kll(values: np.ndarray, ours: float) -> None:
    """Time and errors of KLL with its usual k = 200, which bounds ranks (1.3 %), not values."""
    if datasketches is None:
        print("KLL: not installed (pip install datasketches), not measured")
        return
    single = values.dtype == np.float32
    kind = datasketches.kll_floats_sketch if single else datasketches.kll_doubles_sketch
    theirs = best(lambda: kind(200).update(values), 3)
    sketch = kind(200)
    sketch.update(values)
    ordered = np.sort(values)
    exact = np.quantile(ordered, QS, method="lower")
    errors = {}
    for name, found in (
        ("ours", sketched(QUANTILE, values)["value"][0]),
        ("kll", np.array([sketch.get_quantile(q) for q in QS])),
    ):
        ranks = np.searchsorted(ordered, found) / len(ordered) - QS
        errors[name] = {
            "value": float((np.abs(found - exact) / np.abs(exact)).max()),
            "rank": float(np.abs(ranks).max()),
        }
    result(
        f"sketch quantile {values.dtype} beside KLL", ours / theirs, None, "x KLL",
        million_per_second=round(N / theirs / 1e6, 1), errors=errors,
        datasketches=version("datasketches"),
    )  # fmt: skip


def main() -> None:
    """Measure and report."""
    for dtype in (np.float32, np.float64):
        sets, name = data(dtype), np.dtype(dtype).name
        for sketch, what, floor, error in (
            (QUANTILE, "quantile", lambda v: np.quantile(v, QS), quantile_error),
            (HISTOGRAM, "histogram", lambda v: np.histogram(v, 64), histogram_error),
        ):
            rates = speed(sketch, sets)
            result(
                f"sketch {what} {name}", TARGET / min(rates.values()) / 1e6, 1.0,
                "x the time at 30 million values/s", million_per_second=rates,
            )  # fmt: skip
            values = sets["normal"]
            seconds, exact = N / rates["normal"] / 1e6, best(lambda f=floor, v=values: f(v), 3)
            result(f"sketch {what} {name} beside numpy", seconds / exact, 1.0, f"x numpy {what}",
                   seconds=seconds, numpy_seconds=exact)  # fmt: skip
            shares = {k: round(error(v), 4) for k, v in sets.items()}
            result(f"error of sketch {what} {name}", max(shares.values()), 1.0, "x bound", **shares)
            if sketch is QUANTILE:
                against_kll(sets["log-normal"], N / rates["log-normal"] / 1e6)
    for sketch in (ApproxCardinality(), ApproxMode(), Reservoir(), StreamingHistogram(64, (-3, 3))):
        rates = speed(sketch, sets)
        result(f"sketch {sketch}", 1e3 / min(rates.values()), None, "ns/value",
               million_per_second=rates)  # fmt: skip


if __name__ == "__main__":
    main()
