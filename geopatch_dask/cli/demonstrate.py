"""``geopatch demo``: a scene, its reconstruction on a local cluster, a reference, and a picture."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

import geopatch_dask as gp
from geopatch_dask.cli.commands import exit_code, make_plan, run_plan
from geopatch_dask.cli.console import INCOMPLETE, OK, note, out
from geopatch_dask.cli.job import Job, load_job
from geopatch_dask.demo import job_text
from geopatch_dask.demo.picture import Comparison, Scenery, draw
from geopatch_dask.demo.scene import make_scene
from geopatch_dask.errors import OptionError
from geopatch_dask.planning.drawing import pyplot
from geopatch_dask.planning.units import seconds_text
from geopatch_dask.report.report import Report

__all__ = ["demo"]


def demo(args: argparse.Namespace) -> int:
    """Run the demo, or what is left of it."""
    pyplot()  # without it there would be no picture, and the wait for nothing
    if args.workers is not None and args.workers < 1:
        raise OptionError(f"--workers must be at least 1; got {args.workers}")
    began = time.monotonic()
    folder = Path(args.out)
    job = _prepared(folder, args)
    with job.importable():
        plan = make_plan(job, None)
        out(plan.explain())
        out()
        report = run_plan(job, plan, None, overwrite=args.overwrite)
        out(report)
        out()
        if not report.complete:
            return exit_code(
                False, report.supertiles, len(report.failures), 0, False, _first(report)
            )
        reference = _reference(job, folder, args.overwrite)
    found = _picture(folder, plan, reference)
    _closing(folder, plan, report, found, time.monotonic() - began)
    return INCOMPLETE if found.differing else OK


def _prepared(folder: Path, args: argparse.Namespace) -> Job:
    """The scene and the job file, made or found."""
    began = time.monotonic()
    scene = folder / "scene.tif"
    try:
        made = make_scene(scene, args.size, args.seed, args.overwrite)
        file = folder / "demo.toml"
        if made or not file.exists():
            file.write_text(job_text(args.size), "utf-8")
    except OSError as error:
        raise OptionError(f"the demo cannot write to {folder}: {error}; choose --out") from None
    if made:
        note(f"made {scene} in {seconds_text(time.monotonic() - began)}")
    else:
        note(f"found {scene}")
    return load_job(file, {("run", "workers"): args.workers})


def _reference(job: Job, folder: Path, overwrite: bool) -> gp.Plan:
    """The same as one super-tile in one thread: no cut, no halo, no cluster."""
    began = time.monotonic()
    arguments = job.plan_arguments()
    arguments["target"] = str(folder / "reference.zarr")
    whole = arguments["field"].domain.shape[-2:]
    plan = gp.plan(**{**arguments, "outer": whole}, slots=1)
    report = plan.run("sync", overwrite=overwrite)
    how = "was there" if report.skipped else f"took {seconds_text(time.monotonic() - began)}"
    note(f"the single-pass reference (one super-tile, one thread) {how}")
    return plan


def _picture(folder: Path, plan: gp.Plan, reference: gp.Plan) -> Comparison:
    began = time.monotonic()
    found = gp.status(plan.target)
    scenery = Scenery(folder / "scene.tif", plan, found.states, found.records, reference)
    path = folder / "demo.png"
    part = folder / ".demo.part.png"
    compared = draw(part, scenery)
    part.replace(path)
    note(f"drew {path} in {seconds_text(time.monotonic() - began)}")
    return compared


def _closing(
    folder: Path, plan: gp.Plan, report: Report, found: Comparison, seconds: float
) -> None:
    """Where everything is, and what to try next."""
    if report.skipped == report.supertiles:
        out(f"nothing was recomputed: all {report.supertiles} super-tiles were done before")
    elif report.skipped:
        out(f"resumed: {report.skipped} of {report.supertiles} super-tiles were done before")
    same = "the same bytes" if not found.differing else "NOT the same bytes"
    count = f"{found.differing:,} of {found.cells:,} cells"
    out(f"{count} differ from the single-pass reference: {same}")
    out(f"all of it took {seconds_text(seconds)}")
    out()
    for name, text in (
        ("demo.png", "the picture: look at it first"),
        ("ndvi.zarr", "the result: xr.open_zarr knows its CRS and coordinates"),
        ("ndvi.zarr.geopatch", "one small record per super-tile: what makes a rerun resume"),
        ("reference.zarr", "the same in a single pass"),
        ("scene.tif", "the input: red, green, near infrared; nodata 0"),
        ("demo.toml", "the job"),
    ):
        out(f"  {folder / name!s:<32}{text}")
    here = shlex.quote(str(folder))
    out()
    out("try next")
    for command, text in (
        (f"geopatch status {here}/ndvi.zarr", "how far it is"),
        (f"geopatch demo{_again(folder)}", "again: finds everything done"),
        (f"geopatch plan {here}/demo.toml --outer auto", "what would be cheapest, and why"),
        (
            f"geopatch run {here}/demo.toml --outer {plan.layout.chunks[0]} "
            f"--target {here}/other.zarr",
            "another layout, the same bytes",
        ),
    ):
        out(f"  {command:<66}{text}")


def _again(folder: Path) -> str:
    return "" if str(folder) == "demo" else f" --out {shlex.quote(str(folder))}"


def _first(report: Report) -> str:
    return report.failures[0].error if report.failures else ""
