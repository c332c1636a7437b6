"""A bucket as a test uses it: URLs and options for the package, plain bytes for the test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.ceph import Ceph
from services.proxied import FaultProxy

import geopatch_dask as gp

__all__ = ["Bucket", "Cog", "environment"]

#: Variables that hold the owner's credentials; storage options name them.
KEY, SECRET = "GEOPATCH_TEST_KEY", "GEOPATCH_TEST_SECRET"
#: Those of the guest, where a test tells the secret of a source from that of a target.
OTHER_KEY, OTHER_SECRET = "GEOPATCH_OTHER_KEY", "GEOPATCH_OTHER_SECRET"


def environment(ceph: Ceph, endpoint: str) -> dict[str, str]:
    """What a process needs to reach the store, by options or without any, and nothing else.

    For s3fs and obstore (``AWS_...``, ``AWS_ENDPOINT_URL``), for GDAL (``AWS_S3_ENDPOINT``,
    ``AWS_HTTPS``), and under the names that our storage options use.
    """
    key, secret = ceph.owner
    bypass = ["127.0.0.1", "10.99.0.0/24", os.environ.get("NO_PROXY", "")]
    return {
        KEY: key,
        SECRET: secret,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_S3_ENDPOINT": endpoint.removeprefix("http://"),
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": ",".join(filter(None, bypass)),
    }


@dataclass(frozen=True)
class Bucket:
    """One bucket, and the way to it.

    Parameters
    ----------
    ceph : Ceph
        The store; the test's own requests go to it directly, faults or not.
    name : str
    endpoint : str
        Where the package sends its requests.
    proxy : FaultProxy or None
        What listens there, unless it is the gateway itself.
    names : tuple of str
        Variables with the key and the secret the package is to use.
    """

    ceph: Ceph
    name: str
    endpoint: str
    proxy: FaultProxy | None = None
    names: tuple[str, str] = field(default=(KEY, SECRET))

    @property
    def options(self) -> dict[str, Any]:
        """As storage options: credentials by the names of their variables."""
        key, secret = self.names
        return {
            "key": f"env:{key}",
            "secret": f"env:{secret}",
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": "us-east-1"},
        }

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def place(self, key: str) -> gp.Location:
        """Where the package is to write."""
        return gp.Location(self.url(key), self.options)

    @property
    def env(self) -> Mapping[str, str]:
        """For a process that is to reach the bucket in the same way."""
        return environment(self.ceph, self.endpoint)

    def objects(self, prefix: str = "") -> dict[str, tuple[str, str, int]]:
        """ETag, time of the last change and bytes, by key."""
        return self.ceph.objects(self.name, prefix)

    def read(self, key: str) -> bytes:
        """An object; not even the owner of a bucket may read what a guest has put there."""
        key_name, secret_name = self.names
        if key_name == KEY:
            return self.ceph.read(self.name, key)
        client = self.ceph.client(os.environ[key_name], os.environ[secret_name])
        data: bytes = client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.ceph.admin.put_object(Bucket=self.name, Key=key, Body=data)


@dataclass(frozen=True)
class Cog:
    """A cloud-optimised GeoTIFF in a bucket, and the same file here."""

    url: str
    path: Path
