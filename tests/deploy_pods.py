"""Running the pods of a manifest on this machine, as a node would: a small kubelet, for tests.

::

    node: a network namespace with a bridge, 10.77.0.1         an object store listens here
      |
      +-- pod 10.77.0.2   its own network, mounts, user 10001, a root file system that is read-only
      +-- pod 10.77.0.3   /tmp and /scratch are empty folders, /job is a ConfigMap

What the container says is taken word for word: args with ``$(NAME)`` expanded, env with secrets
looked up, volumes, user, and the read-only root.  In place of an image there are this machine's
``/usr`` and this environment's Python.  Needs root and iproute2; everything ends with the node.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
Spec = dict[str, Any]
NETWORK = "10.77.0"
STORE = f"{NETWORK}.1"

_NODE = f"""
ip link set lo up
ip link add br0 type bridge
ip addr add {STORE}/24 dev br0
ip link set br0 up
echo ready
exec sleep infinity
"""

_POD = """
nsenter -t {node} -n ip link add v{number} type veth peer name eth0 netns $$
nsenter -t {node} -n ip link set v{number} master br0 up
ip link set lo up; ip addr add {address}/24 dev eth0; ip link set eth0 up
mount --make-rprivate /
root={root}
mount -t tmpfs -o mode=755 tmpfs $root
for folder in usr bin sbin lib lib32 lib64 libx32 etc; do
  if [ -L /$folder ]; then cp -P /$folder $root/$folder
  elif [ -d /$folder ]; then mkdir $root/$folder; mount --bind /$folder $root/$folder; fi
done
mkdir $root/proc $root/dev $root/tmp $root/scratch $root/job
mount -t proc proc $root/proc
mount --rbind /dev $root/dev
{mounts}
mount --bind {hosts} $root/etc/hosts
for place in $root/usr $root/etc {sealed}; do mount -o remount,bind,ro $place; done
mount -o remount,ro $root
exec chroot $root /usr/bin/env -i {env} setpriv --reuid {uid} --regid {gid} --groups {gid} \
  --no-new-privs --bounding-set=-all --inh-caps=-all {words}
"""


@dataclass
class Node:
    """Where pods run.

    Parameters
    ----------
    pid : int
        Of the process that holds the network.
    work : path
    secrets : mapping of name to mapping
    configs : mapping of name to mapping of file name to text
    hosts : mapping of name to address
        What the cluster's DNS would answer.
    """

    pid: int
    work: Path
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    configs: dict[str, dict[str, str]] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    pods: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def next_address(self) -> str:
        """Of the pod that is started next."""
        return f"{NETWORK}.{len(self.pods) + 2}"

    def start(self, pod: Spec, container: Spec, **fields: str) -> Running:
        """Start one container of a pod; ``fields`` are variables that a controller adds."""
        number, address = len(self.pods), self.next_address()
        place = self.work / f"pod{number}"
        place.mkdir()
        (place / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in self.hosts.items())
        )
        user = {**pod["securityContext"], **container["securityContext"]}
        assert user["readOnlyRootFilesystem"] is True
        assert user["runAsNonRoot"] is True
        env = {**image_environment(), **self.environment(container), **fields}
        mounts, sealed = self._mounts(pod, container, place, user)
        (place / "root").mkdir()
        script = _POD.format(
            node=self.pid,
            number=number,
            address=address,
            root=place / "root",
            mounts="\n".join(mounts),
            sealed=" ".join(sealed),
            hosts=place / "hosts",
            env=shlex.join(f"{name}={value}" for name, value in env.items()),
            uid=user["runAsUser"],
            gid=user["runAsGroup"],
            words=shlex.join(expanded(word, env) for word in container["args"]),
        )
        log = (place / "log").open("wb")
        process = subprocess.Popen(
            self.inside(["unshare", "--net", "--mount", "sh", "-euc", script]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self.pods.append(process)
        return Running(process, address, place, env)

    def inside(self, command: list[str]) -> list[str]:
        """A command that runs in the network of the node."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", *command]

    def environment(self, container: Spec) -> dict[str, str]:
        """Variables of a container, secrets looked up.

        Raises
        ------
        KeyError
            For a secret that is missing and not optional: the pod would not start.
        """
        found = {}
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            if source is None:
                found[variable["name"]] = variable["value"]
            elif not source.get("optional") or source["key"] in self.secrets[source["name"]]:
                found[variable["name"]] = self.secrets[source["name"]][source["key"]]
        return found

    def _mounts(
        self, pod: Spec, container: Spec, place: Path, user: Spec
    ) -> tuple[list[str], list[str]]:
        """Shell lines that mount volumes and Python, and what of it may not be written."""
        lines, sealed = [], []
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in container["volumeMounts"]:
            volume, folder = volumes[mount["name"]], place / mount["name"]
            folder.mkdir()
            if "configMap" in volume:
                _as_config_map(folder, self.configs[volume["configMap"]["name"]])
            else:
                os.chown(folder, 0, user["fsGroup"])
                folder.chmod(0o2770)  # as emptyDir with an fsGroup
            lines.append(f"mount --bind {folder} $root{mount['mountPath']}")
            if mount.get("readOnly"):
                sealed.append(f"$root{mount['mountPath']}")
        needed = [Path(place) for place in (sys.base_prefix, sys.prefix, ROOT)]
        for path in dict.fromkeys(needed):
            if not any(above in (*needed, Path("/usr")) for above in path.parents):
                lines.append(f"mkdir -p $root{path}; mount --bind {path} $root{path}")
                sealed.append(f"$root{path}")
        return lines, sealed


@dataclass
class Running:
    """A container."""

    process: subprocess.Popen[bytes]
    address: str
    place: Path
    env: Mapping[str, str]

    @property
    def log(self) -> str:
        return (self.place / "log").read_text("utf-8", "replace")

    def wait(self, timeout: float = 120) -> int:
        """Its exit status."""
        return self.process.wait(timeout)

    def kill(self) -> None:
        """As when its node is taken away."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def node(work: Path) -> Iterator[Node]:
    """A node without pods; at the end, without processes."""
    if os.geteuid() != 0:
        pytest.skip("namespaces of networks and mounts need root")
    for tool in ("ip", "unshare", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (iproute2, util-linux)")
    command = ["unshare", "--net", "--mount", "sh", "-euc", _NODE]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stderr is not None
    if holder.stdout.readline() != "ready\n":
        pytest.skip(f"no network namespace with a bridge here: {holder.stderr.read()[:200]}")
    made = Node(holder.pid, work)
    try:
        yield made
    finally:
        for pod in made.pods:
            if pod.poll() is None:
                os.killpg(pod.pid, signal.SIGKILL)
            pod.wait(30)
        holder.kill()
        holder.communicate()


def image_environment() -> dict[str, str]:
    """What the image says: where its Python is, and nothing of this process's environment."""
    return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}


def expanded(word: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced as Kubernetes does: unknown names stay as they are."""
    return re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), word)


def _as_config_map(folder: Path, files: Mapping[str, str]) -> None:
    """Files as a node lays them out: links to a folder that is replaced as a whole."""
    data = folder / "..2026_01_01_00_00_00.123456"
    data.mkdir()
    (folder / "..data").symlink_to(data.name)
    for name, text in files.items():
        (data / name).write_text(text)
        (folder / name).symlink_to(f"..data/{name}")
    folder.chmod(0o755)


def until(condition: Any, seconds: float = 60) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)
