"""docs/start.md from nothing: a clone, the environment that the page makes, and what it says then.

Other tests run pages in the environment of whoever develops.  Here nothing is there but the clone
of HEAD and what its own commands install: a package that is missing in ``pyproject.toml``, a file
that is not committed, or a pin that does not resolve shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Runs the page with nothing but what was installed; ``blocks`` needs the standard library only.
_FOLLOW = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/docs/_ext")
import blocks
if __name__ == "__main__":
    blocks.run_page(Path(sys.argv[1]) / "docs" / "start.md", Path(sys.argv[2]), {})
    import geopatch_dask
    print(geopatch_dask.__file__)
"""


def carried_out(words: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What somebody gets who clones the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone of a repository")
    words = ["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(tmp_path / "clone")]
    carried_out(words, tmp_path, dict(os.environ))
    return tmp_path / "clone"


@pytest.mark.slow
@pytest.mark.timeout(1500)  # it waits for a package index
def test_the_first_page_from_nothing(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import blocks

    [install] = [b for b in blocks.parse(clone / "docs/start.md") if b.value == "installs software"]
    place = tmp_path / "geopatch"
    assert "~/geopatch" in install.code
    script = install.code.replace("$ ", "").replace("~/geopatch", str(place))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    ours = ("PYTHON", "VIRTUAL_ENV", "COVERAGE", "PYTEST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    system = f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    carried_out(["bash", "-euc", script], clone, env | {"PATH": system})
    (tmp_path / "empty").mkdir()
    (tmp_path / "follow.py").write_text(_FOLLOW)
    python = [str(place / "bin" / "python"), str(tmp_path / "follow.py")]
    there = env | {"PATH": f"{place / 'bin'}:{system}", "MPLBACKEND": "Agg"}
    told = carried_out([*python, str(clone), str(tmp_path / "empty")], tmp_path / "empty", there)
    assert told.splitlines()[-1].startswith(str(place)), "it was this checkout that ran"
