"""Run a job that is killed and started again, and draw what its records say after each.

``python docs/figures/resume.py`` writes ``docs/images/resume.png``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import geopatch_dask as gp

OUT = Path(__file__).parents[1] / "images" / "resume.png"
JOB = """
import os, signal
from pathlib import Path
import numpy as np
import geopatch_dask as gp

calls = 0

def slow(patch):
    global calls
    calls += 1
    if calls == 420 and Path("walltime").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return patch - patch.mean()

field = gp.ArrayField(np.random.default_rng(1).random((768, 1024), "float32"))
patcher = gp.Patcher(gp.Rectangular(64), gp.RegularStride(48), gp.Hann())
gp.plan(field, patcher, slow, "out.zarr", outer=128, chunks=128).run("sync")
"""


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "job.py"
        script.write_text(textwrap.dedent(JOB))
        (Path(folder) / "walltime").touch()
        for axis, title in zip(axes, ("killed", "the same command again"), strict=True):
            subprocess.run([sys.executable, str(script)], cwd=folder, env=os.environ, check=False)
            gp.status(str(Path(folder) / "out.zarr")).plot(axis)
            axis.set_title(title, fontsize=10)
            axis.get_legend().set_loc("lower right")
            (Path(folder) / "walltime").unlink(missing_ok=True)
        figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
