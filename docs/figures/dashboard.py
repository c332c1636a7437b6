"""Run a job under a real Prometheus, and draw what the dashboard's queries answer.

``python docs/figures/dashboard.py`` writes ``docs/images/dashboard.png``; it needs ``prometheus``.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import geopatch_dask as gp
from geopatch_dask.execute.runs.runners import local_client

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "images" / "dashboard.png"
sys.path.insert(0, str(ROOT / "tests"))

import sample_prometheus as prometheus  # noqa: E402  # it lies beside the tests

#: What is drawn of the panels, and in which units.
PANELS = {
    "Super-tiles per minute": 1,
    "Where the time goes": 1,
    "Bytes per second": 2**20,
    "Seconds of a super-tile": 1,
    "Memory": 2**20,
    "Left": 1,
}
UNITS = {"Bytes per second": " (MiB/s)", "Memory": " (MiB)", "Left": " (super-tiles)"}


def blur(x: Any) -> Any:
    """Something that takes some milliseconds."""
    there = np.fft.rfft2(x)
    for _ in range(12):
        there = np.fft.rfft2(np.fft.irfft2(there))
    return np.fft.irfft2(there).astype("float32")


def run(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    """The answers, by panel: label, and times and values."""
    field = gp.ArrayField(np.random.default_rng(1).random((3000, 3000), "f4"))
    patcher = gp.Patcher(gp.Rectangular((128, 128)), gp.RegularStride((64, 64)), gp.Hann())
    where: dict[str, Any] = {"outer": 250, "chunks": 250, "slots": 2, "memory_limit": "512 MiB"}
    plan = gp.plan(field, patcher, blur, folder / "out.zarr", **where)
    with local_client(plan, plan.n_supertiles) as client, prometheus.running(folder) as server:
        prometheus.write_targets(folder, client)
        while len(server.up()) < 3:
            time.sleep(0.2)
        began = time.time()
        plan.run(client)
        time.sleep(3)
        found: dict[str, list[tuple[str, Any]]] = {}
        for panel in prometheus.panels():
            for target, expression in zip(
                panel["targets"], prometheus.expressions(panel, "10s"), strict=True
            ):
                for series in server.series(expression, began, time.time()):
                    label = target["legendFormat"]
                    for name, value in series["metric"].items():
                        label = label.replace("{{" + name + "}}", value)
                    values = [(float(t) - began, float(v)) for t, v in series["values"]]
                    found.setdefault(panel["title"], []).append((label, np.array(values)))
    return found


def draw(found: dict[str, list[tuple[str, Any]]]) -> None:
    import matplotlib  # not above: workers import this module, and it would be in their memory

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(3, 2, figsize=(10, 8), layout="constrained")
    for ax, (title, unit) in zip(axes.flat, PANELS.items(), strict=True):
        shown = [(label, v) for label, v in found[title] if np.nanmax(v[:, 1]) > 0]
        if title == "Where the time goes":
            times = np.unique(np.concatenate([v[:, 0] for _, v in shown]))
            stack = [np.interp(times, *v.T, left=0) for _, v in shown]
            ax.stackplot(times, stack, labels=[label for label, _ in shown], alpha=0.8)
        else:
            for i, (label, v) in enumerate(shown):
                label = label if "127.0.0.1" not in label else f"worker {i}"
                ax.plot(v[:, 0], v[:, 1] / unit, label=label)
        ax.set_title(title + UNITS.get(title, ""), fontsize=10, loc="left")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("seconds", fontsize=8)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7, loc="center right" if title == "Memory" else "lower right")
    figure.savefig(OUT, dpi=110)
    Image.open(OUT).convert("RGB").quantize(256).save(OUT, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        draw(run(Path(temporary)))
    print(f"{datetime.now(UTC):%H:%M} {OUT.name}")
