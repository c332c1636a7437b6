"""Write the table of the performance page from the results of ``make bench``.

``python docs/figures/measured.py`` reads ``benchmarks/results/latest.json``, draws
``docs/images/measured.png``, and replaces what stands between the marks in ``docs/performance.md``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "benchmarks" / "results" / "latest.json"
PAGE, PICTURE = DOCS / "performance.md", DOCS / "images" / "measured.png"
MARKS = re.compile(r"(<!-- numbers -->\n).*?(<!-- end of numbers -->)", re.DOTALL)


def table(found: dict[str, Any]) -> str:
    """The machine, the picture, and a row per result with a limit."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cores']} cores ({machine['processor'] or 'no name'}), {machine['system']} "
        f"{machine['machine']}, Python {machine['python']}, {versions}:",
        "",
        "![Bars of all benchmarks, each as a share of its limit](images/measured.png)",
        "",
        "| benchmark | value | at most | unit |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['benchmark']} | {r['value']:.3g} | {r['limit']:.3g} | {r['unit']} |"
        for r in found["results"]
        if r["limit"] is not None
    ]
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]]) -> None:
    """Every value as a share of its limit."""
    judged = [r for r in results if r["limit"]][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(judged) + 0.8), layout="constrained")
    shares = [r["value"] / r["limit"] for r in judged]
    colours = ["#0072B2" if share <= 1 else "#D55E00" for share in shares]
    axes.barh([r["benchmark"] for r in judged], shares, color=colours)
    axes.axvline(1, color="black", lw=1)
    axes.set(xlabel="share of the limit: shorter is better", xlim=(0, max(1.1, *shares)))
    axes.tick_params(axis="y", labelsize=8)
    figure.savefig(PICTURE, dpi=90)


def main() -> None:
    found = json.loads(RESULTS.read_text("utf-8"))
    draw(found["results"])
    text, count = MARKS.subn(lambda m: m[1] + table(found) + m[2], PAGE.read_text("utf-8"), count=1)
    if not count:
        raise SystemExit(f"{PAGE} has no marks to write between")
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
