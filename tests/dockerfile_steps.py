"""Carrying out a Dockerfile where there is no engine: its steps, in a tree of folders, as root.

Each stage is a tree of its own, an overlay over the tree of its base.  RUN is ``chroot`` in
namespaces of its own (mounts, processes), with the environment that ENV and ARG made, as the user
that USER named; COPY copies.  The result is the tree of the last stage, with what an image would
carry beside it.

Only what our files use is understood; anything else is an error, and not passed over.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

__all__ = ["Image", "Step", "build", "discard", "ignored", "parse"]

#: Of the machine, what installers inside need: how registries are reached, and trusted.
_NETWORK = re.compile(r"^(https?_proxy|no_proxy|SSL_CERT_\w+|PIP_\w+|UV_\w+)$", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Step:
    """One instruction: ``words`` is its text, with continued lines joined."""

    line: int
    name: str
    words: str


def parse(path: Path) -> list[Step]:
    """The instructions of a Dockerfile."""
    steps: list[Step] = []
    text, began = "", 0
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if line.lstrip().startswith("#") or (not line.strip() and not text):
            continue
        began = began if text else number
        text += line.removesuffix("\\")
        if not line.endswith("\\"):
            name, _, words = text.strip().partition(" ")
            steps.append(Step(began, name.upper(), " ".join(words.split())))
            text = ""
    return steps


@dataclass
class Image:
    """A tree, and how containers of it start."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def inside(self, path: str) -> Path:
        """A path of the image, as it is on this machine."""
        absolute = path if path.startswith("/") else f"{self.folder}/{path}"
        return self.root / absolute.lstrip("/")

    def run(
        self, command: list[str], *, image: bool = True, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Start a container: ``command`` behind the entrypoint, on a read-only root and loopback.

        ``image=False`` runs it as a RUN step: as root may, on a tree that can be written, and with
        the network of this machine.
        """
        uid, _, gid = self.user.partition(":")
        words = [*self.entrypoint, *command] if image else command
        passed = {} if image else {k: v for k, v in os.environ.items() if _NETWORK.match(k)}
        script = _ENTER.format(
            root=shlex.quote(str(self.root)),
            writable=" ".join(("/tmp", "/scratch", "/job") if image else ()),
            sealed="yes" if image else "",
            folder=shlex.quote(self.folder),
            rights=f"--reuid {uid} --regid {gid or uid} --clear-groups"
            + (" --no-new-privs --bounding-set=-all" if image else ""),
            env=shlex.join(f"{name}={value}" for name, value in {**passed, **self.env}.items()),
            words=shlex.join(words),
        )
        return subprocess.run(
            [*_ALONE, *(["--net"] if image else []), "sh", "-euc", script],
            env={"PATH": _SYSTEM_PATH},
            capture_output=True,
            text=True,
            check=False,
            **{"timeout": 300, **more},
        )


_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
#: Into a tree: devices, processes, names and certificates of this machine, as an engine gives them.
_ENTER = """
root={root}
mount --make-rprivate /
mount --bind $root $root
mkdir -p $root/proc $root/dev
mount -t proc proc $root/proc
mount --rbind /dev $root/dev
touch $root/etc/resolv.conf
mount --bind /etc/resolv.conf $root/etc/resolv.conf
if [ -n "{sealed}" ]; then
  mount -o remount,bind,ro $root $root
elif [ -d $root/etc/ssl/certs ]; then
  mount --bind /etc/ssl/certs $root/etc/ssl/certs
fi
for folder in {writable}; do mount -t tmpfs -o mode=1777 tmpfs $root$folder; done
ip link set lo up 2>/dev/null || true
exec chroot $root /usr/bin/env -i {env} \
  /usr/bin/setpriv {rights} /bin/sh -c 'cd {folder} && exec "$@"' sh {words}
"""


def build(
    path: Path,
    context: Path,
    bases: Mapping[str, Path | Image],
    work: Path,
    arguments: dict[str, str] | None = None,
) -> Image:
    """Carry out a Dockerfile.

    Parameters
    ----------
    path, context : path
    bases : mapping of image name to tree or image
        What FROM may name; an image hands down its environment, user and commands, too.
    work : path
        An empty folder on a file system that overlays can lie on; unmount with :func:`discard`.
    arguments : mapping, optional
        As by ``--build-arg``.
    """
    given = arguments or {}
    stages: dict[str, Image] = {}
    known: dict[str, str] = {}
    image: Image | None = None
    values: dict[str, str] = {}
    for step in parse(path):
        if step.name == "ARG":
            name, _, default = step.words.partition("=")
            target = known if image is None else values
            [default] = shlex.split(default) or [""]
            target[name] = given.get(name, default or known.get(name, ""))
        elif step.name == "FROM":
            base, _, stage = substituted(step.words, known).partition(" AS ")
            image = _stage(base, stages, bases, work / f"stage{len(stages)}")
            stages[stage or str(len(stages))] = image
            values = {}
        else:
            assert image is not None, f"{path.name}:{step.line}: {step.name} before FROM"
            _apply(step, image, values, stages, context, path)
    assert image is not None
    return image


def discard(work: Path) -> None:
    """Unmount what :func:`build` mounted."""
    for merged in work.glob("stage*/root"):
        subprocess.run(["umount", "--lazy", str(merged)], check=False)


def _stage(
    base: str, stages: dict[str, Image], bases: Mapping[str, Path | Image], place: Path
) -> Image:
    found = stages[base] if base in stages else bases[base]
    below = found.root if isinstance(found, Image) else found
    for name in ("over", "scrap", "root"):
        (place / name).mkdir(parents=True)
    layers = f"lowerdir={below},upperdir={place / 'over'},workdir={place / 'scrap'}"
    command = ["mount", "-t", "overlay", "overlay", "-o", layers, str(place / "root")]
    subprocess.run(command, check=True)
    if isinstance(found, Image):
        return replace(found, root=place / "root", env=dict(found.env), labels=dict(found.labels))
    return Image(place / "root", env={"PATH": _SYSTEM_PATH})


def _apply(
    step: Step,
    image: Image,
    values: dict[str, str],
    stages: dict[str, Image],
    context: Path,
    path: Path,
) -> None:
    where = f"{path.name}:{step.line}"
    words = substituted(step.words, {**values, **image.env})
    if step.name == "RUN":
        assert not step.words.startswith("--"), f"{where}: RUN with options needs an engine"
        saved, image.env = image.env, {**values, **image.env}
        done = image.run(["/bin/sh", "-c", step.words], image=False)
        image.env = saved
        assert done.returncode == 0, f"{where}: {step.words}\n{done.stdout}\n{done.stderr}"
    elif step.name == "COPY":
        _copy(shlex.split(words), image, stages, context, where)
    elif step.name in ("ENV", "LABEL"):
        table = image.env if step.name == "ENV" else image.labels
        table.update(pair.split("=", 1) for pair in shlex.split(words))
    elif step.name == "WORKDIR":
        image.folder = words
        image.inside(words).mkdir(parents=True, exist_ok=True)
    elif step.name == "USER":
        image.user = words
    elif step.name == "EXPOSE":
        image.ports = words.split()
    elif step.name in ("ENTRYPOINT", "CMD"):
        setattr(image, {"CMD": "command"}.get(step.name, "entrypoint"), json.loads(step.words))
    elif step.name == "HEALTHCHECK":
        image.health = json.loads(step.words.partition(" CMD ")[2])
    else:
        raise AssertionError(f"{where}: {step.name} is not understood")


def _copy(
    words: list[str], image: Image, stages: dict[str, Image], context: Path, where: str
) -> None:
    options = dict(w.removeprefix("--").split("=", 1) for w in words if w.startswith("--"))
    *sources, target = (w for w in words if not w.startswith("--"))
    stage = options.pop("from", None)
    assert not options, f"{where}: {options}"
    tree = stages[stage].root if stage else context
    into = image.inside(target)
    for source in sources:
        found = tree / source.lstrip("/")
        assert found.exists(), f"{where}: there is no {source}"
        if stage is None:
            assert not ignored(context, source), f"{where}: .dockerignore keeps {source} away"
        if found.is_dir():
            skip = None if stage else _ignoring(context)
            shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True, ignore=skip)
        else:
            place = into / found.name if target.endswith("/") or into.is_dir() else into
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, place)


def _ignoring(context: Path) -> Any:
    def ignore(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(context)
        return {name for name in names if ignored(context, str(inside / name))}

    return ignore


def ignored(context: Path, path: str) -> bool:
    """Whether .dockerignore keeps a path from the builder: the last line that fits says so."""
    found = False
    for line in (context / ".dockerignore").read_text("utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        plain = rule.removeprefix("!")
        parts = Path(path).parts
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        fits = any(
            fnmatch(start, plain)
            or (plain.startswith("**/") and fnmatch(start.split("/")[-1], plain[3:]))
            for start in above
        )
        if fits:
            found = not rule.startswith("!")
    return found


def substituted(text: str, values: dict[str, str]) -> str:
    """``${NAME}`` and ``$NAME`` replaced, where there is such a value."""
    return _VARIABLE.sub(lambda m: values.get(m[1] or m[2], m[0]), text)
