"""The S3 store that ``up.sh`` started, in the hands of a test: its users, its buckets, its death.

It is a real gateway (Ceph RGW).  It checks signatures and policies, and it can be killed::

    test ---- signed requests ----> radosgw ----> objects (OSD, in memory)
       \\                              ^  kill -9, kill -STOP, start again; the objects stay
        \\----- kill_gateway() -------/

Two users: the *owner*, who may do everything, and a *guest*, who may do what :meth:`Ceph.grant`
says and nothing else.  Their credentials open nothing but this store, which is on loopback.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

__all__ = ["GUEST_ACTIONS", "Ceph", "ServiceError", "settings_file"]

#: What a guest needs to read, write and delete objects, and to see which there are.
GUEST_ACTIONS = ("GetObject", "PutObject", "DeleteObject", "ListBucket", "GetBucketLocation")

#: Longest wait for a gateway to start or to end, seconds; a start takes about 0.5 s.
_PATIENCE = 60.0


class ServiceError(RuntimeError):
    """A service is not there, or does not do what it was told."""


def settings_file() -> Path:
    """Where ``up.sh`` writes how to reach the services."""
    folder = os.environ.get("GEOPATCH_SERVICES")
    return Path(folder or Path(tempfile.gettempdir(), "geopatch-services")) / "services.env"


@dataclass(frozen=True)
class Ceph:
    """A running store.

    Parameters
    ----------
    conf : str
        Settings of its processes; their pid files are beside it.
    port : int
        Of the gateway, on 127.0.0.1.
    owner, guest : tuple of str
        Access key and secret.
    """

    conf: str
    port: int
    owner: tuple[str, str]
    guest: tuple[str, str]

    @classmethod
    def running(cls) -> Ceph:
        """The store that ``up.sh`` started; with its gateway alive, whatever a test left behind.

        Raises
        ------
        ServiceError
            When there is none.
        """
        path = settings_file()
        if not path.is_file():
            raise ServiceError(f"no {path}: start the services with: bash tests/services/up.sh")
        found = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
        ceph = cls(
            found["conf"],
            int(found["port"]),
            (found["owner_key"], found["owner_secret"]),
            (found["guest_key"], found["guest_secret"]),
        )
        ceph.start_gateway()
        return ceph

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- the gateway ---------------------------------------------------------------------------

    def gateway_pid(self) -> int | None:
        """The process that answers; None when there is none."""
        try:
            pid = int(Path(self.conf).with_name("client.rgw.pid").read_text())
            started_with = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # a pid file outlives its process, and pids are given away again
        return pid if self.conf.encode() in started_with else None

    def kill_gateway(self) -> None:
        """SIGKILL: requests under way are lost, whatever they had done by then."""
        pid = self.gateway_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self._wait(lambda: self.gateway_pid() is None, "does not end")

    def start_gateway(self) -> None:
        """Start it unless it runs; returns when it accepts connections.

        Raises
        ------
        ServiceError
        """
        if self.gateway_pid() is None:
            subprocess.run(
                ["radosgw", "-c", self.conf, "-n", "client.rgw"],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_PATIENCE,
            )
        else:
            self.resume_gateway()
        self._wait(self._answers, "does not answer; is the OSD alive? bash tests/services/up.sh")

    def pause_gateway(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nothing ever comes."""
        pid = self.gateway_pid()
        if pid is not None:
            os.kill(pid, signal.SIGSTOP)

    def resume_gateway(self) -> None:
        """SIGCONT: what was asked meanwhile is answered now."""
        pid = self.gateway_pid()
        if pid is not None:
            os.kill(pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.settimeout(5)
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(5) == b"HTTP/"
        except OSError:
            return False

    def _wait(self, happened: Any, problem: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                raise ServiceError(f"the gateway at {self.endpoint} {problem}")
            time.sleep(0.02)

    # -- buckets -------------------------------------------------------------------------------

    def client(self, key: str, secret: str) -> Any:
        """A plain S3 client for any credentials.  It tries once: a test wants to see failures."""
        return botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(
                retries={"total_max_attempts": 1},
                read_timeout=30,
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @cached_property
    def admin(self) -> Any:
        """A client of the owner."""
        return self.client(*self.owner)

    def fresh_bucket(self, name: str) -> None:
        """An empty bucket of this name, whatever there was; nobody but the owner may use it."""
        self.drop_bucket(name)
        self.admin.create_bucket(Bucket=name)

    def drop_bucket(self, name: str) -> None:
        """Remove a bucket and all that is in it; absent is fine."""
        try:
            keys = list(self.objects(name))
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchBucket":
                return
            raise
        for start in range(0, len(keys), 1000):
            doomed = [{"Key": key} for key in keys[start : start + 1000]]
            self.admin.delete_objects(Bucket=name, Delete={"Objects": doomed, "Quiet": True})
        self.admin.delete_bucket(Bucket=name)

    def objects(self, bucket: str, prefix: str = "") -> dict[str, tuple[str, str, int]]:
        """ETag, time of the last change (to the millisecond) and bytes of every object, by key."""
        found = {}
        for page in self.admin.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix
        ):
            for item in page.get("Contents", []):
                changed = item["LastModified"].isoformat()
                found[item["Key"]] = (item["ETag"].strip('"'), changed, item["Size"])
        return found

    def read(self, bucket: str, key: str) -> bytes:
        """The bytes of one object."""
        data: bytes = self.admin.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def grant(self, bucket: str, *actions: str) -> None:
        """Let the guest do this in a bucket, and nothing else: any of :data:`GUEST_ACTIONS`."""
        unknown = set(actions) - set(GUEST_ACTIONS)
        if unknown:
            raise ServiceError(f"{sorted(unknown)}: no such action, choose from {GUEST_ACTIONS}")
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": ["arn:aws:iam:::user/guest"]},
                    "Action": [f"s3:{action}" for action in actions],
                    "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                }
            ],
        }
        self.admin.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
