"""Run the benchmarks beside this file, one after another, and judge their ratios.

    python benchmarks/run.py [NAME ...]

A benchmark is a script ``bench_<name>.py``; without names all of them run, with names those
whose file name contains one. What a script prints is described in ``benchmarks/README.md``.
Exit status: 0 when every script ended well and every value is within its limit, 1 when not,
2 when no script matched.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("geopatch_dask", "dask", "distributed", "numpy", "rasterio", "xarray", "zarr")


@dataclass(frozen=True)
class Result:
    """One measured ratio; ``limit`` is the largest value that passes, None when it only reports."""

    benchmark: str
    value: float
    limit: float | None
    unit: str
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the value is within its limit (NaN is not)."""
        return self.limit is None or self.value <= self.limit


def parse(line: str) -> Result | None:
    """Return the result that a line of output states, or None when it is text for people."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
        limit = record["limit"]
        return Result(
            benchmark=str(record["benchmark"]),
            value=float(record["value"]),
            limit=None if limit is None else float(limit),
            unit=str(record["unit"]),
            detail=dict(record.get("detail", {})),
        )
    except (ValueError, KeyError, TypeError):
        return None


def run_script(script: Path) -> tuple[list[Result], int]:
    """Run one script, echo what it prints, and return its results and its exit status."""
    results: list[Result] = []
    command = [sys.executable, "-u", str(script)]
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print("  " + line.rstrip(), flush=True)
            if (result := parse(line)) is not None:
                results.append(result)
    return results, process.returncode


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processors, system, Python and package versions."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def processor() -> str:
    """Return the name of the processor, as Linux has it; "" where nobody tells."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(names: list[str]) -> int:
    """Run the scripts that match ``names`` and return the exit status."""
    scripts = [
        script
        for script in sorted(HERE.glob("bench_*.py"))
        if not names or any(name in script.stem for name in names)
    ]
    if not scripts:
        wanted = " ".join(names) or "bench_*.py"
        print(f"no benchmark matches {wanted!r} in {HERE}", file=sys.stderr)
        return 2
    rows: list[str] = []
    measured: list[dict[str, Any]] = []
    failed = False
    for script in scripts:
        print(f"{script.name}", flush=True)
        begin = time.perf_counter()
        results, status = run_script(script)
        seconds = time.perf_counter() - begin
        if status != 0 or not results:
            failed = True
            reason = f"exit status {status}" if status != 0 else "no result"
            rows.append(f"FAIL  {script.stem}: {reason}")
        for result in results:
            failed |= not result.passed
            verdict = "ok  " if result.passed else "FAIL"
            bound = "" if result.limit is None else f"  (at most {result.limit:g})"
            rows.append(f"{verdict}  {result.benchmark}: {result.value:.3f} {result.unit}{bound}")
            measured.append({"script": script.name, "passed": result.passed, **asdict(result)})
        print(f"  {seconds:.1f} s", flush=True)
    target = HERE / "results" / "latest.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine(), "results": measured}, indent=2) + "\n")
    print("\n" + "\n".join(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
