"""Code blocks of a Markdown page, in order, and how to run them.

Documentation that is not executed goes wrong.  A page is run like a session: its ``python`` blocks
share one namespace, its ``console`` blocks go through a shell, all in one empty folder::

    ```python        executed
    ```console       lines after "$ " are executed, one by one; other lines are their output
    ```text          after <!-- output -->: what the block before it printed, ... for anything

A comment above a block changes what is done with it::

    <!-- skip: why -->     not run, for one of the reasons that tests/test_docs.py allows
    <!-- file: ops.py -->  written to that file, and not executed
    <!-- attach: a.bin --> run; the file, which lies beside the page, is copied here before
    <!-- exit: 2 -->       its last command ends with this status
    <!-- output -->        compared with what was printed
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Block", "parse", "run_page"]

FENCE = re.compile(r"^```(\w*)[ \t]*$")
COMMENT = re.compile(
    r"^<!-- (?P<mark>skip|output|file|attach|exit)(: (?P<value>(?<=skip: )[^>]+|\S+))? -->$"
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    ``line`` is that of its first line of code; ``mark`` the comment above it, ``value`` what
    the comment says after the colon.
    """

    page: Path
    line: int
    kind: str
    code: str
    mark: str = ""
    value: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def parse(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    blocks: list[Block] = []
    mark, value = "", ""
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is not None:
            if line.strip() == "```":
                first, kind = opened
                blocks.append(Block(page, first, kind, "\n".join(lines), mark, value))
                opened, lines, mark, value = None, [], "", ""
            else:
                lines.append(line)
        elif fence:
            opened = (number + 1, fence[1])
        elif found := COMMENT.match(line):
            mark, value = found["mark"], found["value"] or ""
        elif line.strip():
            mark, value = "", ""
    return blocks


def run_page(
    page: Path, folder: Path, environment: dict[str, str], main: str = "__main__"
) -> dict[str, Any]:
    """Run a page in ``folder``, which becomes the working directory; return its namespace.

    Raises
    ------
    RuntimeError
        For a block that fails, or prints something else; names the page and the line.
    """
    page, folder = page.resolve(), folder.resolve()
    space: dict[str, Any] = {"__name__": main}
    printed = ""
    with contextlib.chdir(folder), _importable(folder):
        for block in parse(page):
            if block.mark == "skip":
                continue
            if block.mark == "attach":
                shutil.copy(page.parent / block.value, folder)
            if block.mark == "file":
                (folder / block.value).write_text(block.code + "\n", encoding="utf-8")
                sys.modules.pop(Path(block.value).stem, None)  # that of another page
            elif block.mark == "output":
                _compare(block, block.code, printed)
            elif block.kind == "python":
                printed = _python(block, space)
            elif block.kind == "console":
                printed = _console(block, environment)
    return space


@contextlib.contextmanager
def _importable(folder: Path) -> Any:
    """Modules that the page writes can be imported, and are forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            path = getattr(sys.modules[name], "__file__", None)
            if path and Path(path).is_relative_to(folder):
                del sys.modules[name]


def _python(block: Block, space: dict[str, Any]) -> str:
    name = f"<{block.where}>"
    # so that tracebacks, and inspect.getsource, find the text
    linecache.cache[name] = (len(block.code), None, block.code.splitlines(keepends=True), name)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            exec(compile(block.code, name, "exec"), space)
        except BaseException as error:
            text = "".join(traceback.format_exception(error))
            raise RuntimeError(f"{block.where} failed:\n{block.code}\n\n{text}") from None
    return out.getvalue()


def _console(block: Block, environment: dict[str, str]) -> str:
    commands: list[tuple[str, list[str]]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:].partition("  # ")[0], []))
        elif commands:
            commands[-1][1].append(line)
    printed = ""
    for i, (command, expected) in enumerate(commands):
        last = i == len(commands) - 1
        wanted = int(block.value) if last and block.mark == "exit" else 0
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        printed = done.stdout + done.stderr
        # a signal is -n to subprocess, and 128 + n to a shell, which is what pages tell
        status = done.returncode if done.returncode >= 0 else 128 - done.returncode
        if status != wanted:
            raise RuntimeError(
                f"{block.where}: {shlex.quote(command)} ended with {status}, "
                f"{wanted} was expected:\n{printed}"
            )
        if expected:
            _compare(block, "\n".join(expected), printed)
    return printed


def _compare(block: Block, expected: str, printed: str) -> None:
    """Compare line by line, spaces collapsed; ``...`` stands for anything."""
    wanted, got = (" ".join(text.split()) for text in (expected, printed))
    pattern = ".*?".join(re.escape(part) for part in re.split(r"\s*\.\.\.\s*", wanted))
    if not re.fullmatch(pattern, got, re.DOTALL):
        raise RuntimeError(f"{block.where}: printed\n{printed}\nbut the page says\n{expected}")
