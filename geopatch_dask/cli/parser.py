"""The command line: subcommands, flags, help.  Flags of a job come from the table of keys."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import geopatch_dask as gp
from geopatch_dask.cli import check, commands, jobs
from geopatch_dask.cli.demonstrate import demo
from geopatch_dask.cli.keys import KEYS, SECTIONS, Key, nearest, toml_value
from geopatch_dask.errors import OptionError

__all__ = ["build_parser"]

_EXAMPLE = """\
example:
  geopatch demo                                   a scene, its reconstruction, a picture
  geopatch run --field scene.tif --size 256 --step 192 --window hann \\
      --operator geopatch_dask.demo:ndvi --target ndvi.zarr
  geopatch run job.toml --workers 4               the same from a file; run it again to continue
  geopatch status ndvi.zarr                       how far it is
  geopatch verify ndvi.zarr                       whether it is what the plan computes

exit codes: 0 done, 1 incomplete (run the same command again), 2 bad input, 130 interrupted,
143 terminated
"""

_JOB = """\
a job file (TOML); every key has a flag, and flags win:
  [field]
  path = "scene.tif"                 # relative to this file
  [patch]
  size = [256, 256]
  step = [192, 192]
  window = { class = "Tukey", alpha = 0.3 }
  [operator]
  function = "mine:enhance"          # in mine.py beside this file
  options = { strength = 2 }
  [output]
  target = "out.zarr"
  [run]
  workers = 4
  [cluster]
  kind = "local"                     # or slurm, pbs, kubernetes, tcp://host:8786

two passes: enhance(patch, strength, context) also gets a statistic of the whole field:
  [context]
  statistic = "mean-std"

an operator that returns a dict: a table per key, instead of [patch] aggregation:
  [outputs.height]
  aggregation = "median"
  dtype = "float32"
"""

#: Flags that there were, and what is in their place.
_GONE = {"--scheduler": "--cluster"}


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print with the usage above it: an error is one line."""

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            word = message.split(": ", 1)[1].split()[0].partition("=")[0]
            hint = f"; did you mean {_GONE.get(word) or nearest(word, self._known_flags())}?"
        elif message.startswith("argument COMMAND: invalid choice"):
            word = message.split("'")[1]
            message = f"there is no command {word!r}"
            hint = f"; did you mean {nearest(word, self._known_commands())!r}?"
        else:
            hint = f"; see {self.prog} --help"
        raise OptionError(message + hint)

    def _known_commands(self) -> list[str]:
        choices = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return [name for names in choices for name in names]

    def _known_flags(self) -> list[str]:
        """Flags of this parser and of its subcommands: argparse tells the main one of strangers."""
        found: list[str] = []
        for action in self._actions:
            found += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found += parser._known_flags()
        return [flag for flag in found if flag.startswith("--")]


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``geopatch``; ``args.command`` is the function to call with ``args``."""
    parser = _Parser(
        prog="geopatch",
        description="Patch-wise operators over fields too large for one machine: "
        "super-tiles on Dask, one georeferenced Zarr.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"geopatch {gp.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _demo(subparsers)
    _plan(subparsers)
    _run(subparsers)
    _submit(subparsers)
    _status(subparsers)
    _retry(subparsers)
    _verify(subparsers)
    _doctor(subparsers)
    return parser


def _command(
    subparsers: Any, name: str, call: Callable[[argparse.Namespace], int], text: str, epilog: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(call=call)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _demo(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "demo",
        demo,
        "make a scene, reconstruct it on a local cluster, and draw what happened",
        "Run it twice: the second run finds everything done.\n",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder (default: demo)")
    parser.add_argument("--size", type=int, default=4096, metavar="N", help="cells per side (4096)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another landscape")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes")
    parser.add_argument("--overwrite", action="store_true", help="start afresh")


def _plan(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "plan",
        commands.plan,
        "say what a job would do: super-tiles, memory, reads and writes; nothing is written",
        _JOB,
    )
    parser.add_argument("--json", metavar="FILE", help="also write the plan ('-': only, to stdout)")
    parser.add_argument("--draw", metavar="FILE.png", help="also draw super-tiles and halos")
    parser.add_argument(
        "--nodes",
        metavar="N,cores=N,memory=BYTES,...",
        help="also say what it costs on such machines; price=, bandwidth=, speed=, put_price=, "
        "get_price= are optional",
    )
    _job_flags(parser)


def _run(subparsers: Any) -> None:
    parser = _command(
        subparsers, "run", commands.run, "do a job; run it again to continue or to check", _JOB
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start afresh: delete what the target holds"
    )
    _job_flags(parser)


def _submit(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "submit",
        jobs.submit,
        "start a job that goes on by itself: on a cluster, or in the background of this machine",
        _JOB,
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start afresh: delete what the target holds"
    )
    parser.add_argument("--log", metavar="FILE", help="of the background process (TARGET.log)")
    _job_flags(parser)


def _retry(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "retry",
        jobs.retry,
        "compute the super-tiles that failed, and those with patches left out or hollow",
        "exit codes: 0 complete, 1 not complete, 2 bad input\n",
    )
    parser.add_argument("target", metavar="TARGET", help="the Zarr, or the job file that names it")
    parser.add_argument("--operator", metavar="MODULE:NAME", help="where it is not the stored one")
    parser.add_argument(
        "--operator-changed",
        action="store_true",
        help="the operator was mended; what is done would not change",
    )
    parser.add_argument("--cluster", metavar="KIND", help="as for run")
    parser.add_argument(
        "--set", action="append", metavar="SECTION.KEY=VALUE", help="of [run] and [cluster]"
    )
    parser.add_argument("--attempts", type=int, metavar="N", help="as for run")
    parser.add_argument("--timeout", metavar="TIME", help="as for run")
    parser.add_argument("--on-error", metavar="WHAT", help="as for run")
    parser.add_argument("--allow-uncovered", action="store_true", help="as for run")
    parser.add_argument("--quiet", action="store_true", help="no progress, no report")


def _status(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "status",
        jobs.status,
        "say how far a target is: while it runs, after a crash, when it is done",
        "exit codes: 0 complete, 1 not complete, 2 no such target\n",
    )
    parser.add_argument("target", metavar="TARGET", help="the Zarr, or the job file that names it")
    parser.add_argument("--failed", action="store_true", help="name every failed super-tile")
    parser.add_argument("--html", metavar="FILE", help="also write the report, as a web page")
    parser.add_argument("--draw", metavar="FILE.png", help="also draw a map of the super-tiles")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--follow", action="store_true", help="until whoever works on it ends")
    parser.add_argument("--cancel", action="store_true", help="stop whoever works on it")
    parser.add_argument(
        "--allow-uncovered", action="store_true", help="exit 0 with uncovered cells"
    )


def _verify(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "verify",
        check.verify,
        "compare a target with its records, and windows of it with what its plan computes",
        "exit codes: 0 no difference, 1 a difference, or not complete, 2 bad input\n",
    )
    parser.add_argument("target", metavar="TARGET", help="the Zarr, or the job file that names it")
    parser.add_argument(
        "--windows", type=int, default=32, metavar="N", help="boxes to compute again (32)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other windows")
    parser.add_argument(
        "--records", metavar="all|N", help="records to compare (all that are read in seconds)"
    )
    parser.add_argument(
        "--repair", action="store_true", help="forget what is wrong: the next run computes it"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def _doctor(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "doctor",
        check.doctor,
        "look at this machine, a cluster, and what lies beside a target",
        "exit codes: 0 no error, 1 an error, 2 bad input\n",
    )
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="the Zarr, or the job file that names it"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="of Dask, as in tcp://host:8786")
    parser.add_argument(
        "--tls", metavar="DIR", help="certificates of that cluster; alone: make a set for tests"
    )
    parser.add_argument("--repair", action="store_true", help="remove what no run will look at")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _job_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", metavar="JOB.toml", help="job file; flags win over it")
    parser.add_argument(
        "--set",
        action="append",
        metavar="SECTION.KEY=VALUE",
        help="any key of a job, the value as in TOML; repeatable",
    )
    for section, text in SECTIONS.items():
        group = parser.add_argument_group(f"[{section}] {text}")
        for key in KEYS:
            if key.section == section and key.flag:
                group.add_argument(key.flag, **_argument(key))


def _argument(key: Key) -> dict[str, Any]:
    found: dict[str, Any] = {"dest": f"{key.section}.{key.name}", "help": key.help}
    if key.sort == "flag":
        return found | {"action": argparse.BooleanOptionalAction}
    kinds: dict[str, Any] = {"text": str, "path": str, "source": str}
    return found | {"metavar": key.metavar, "type": kinds.get(key.sort, toml_value)}
