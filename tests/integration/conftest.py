"""What the integration tests talk to.  ``make integration`` starts it (``tests/services/up.sh``).

Nothing here skips: a service that is not there is an error, with the command that starts it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from integration.buckets import Bucket, Cog, environment
from integration.killing import reference
from rasterio.shutil import copy as copy_raster
from sample_rasters import write_terrain
from services.ceph import Ceph
from services.netns import Network
from services.proxied import FaultProxy


@pytest.fixture(scope="session")
def store() -> Ceph:
    """The store; use ``ceph``, which is certain to be alive."""
    return Ceph.running()


@pytest.fixture
def ceph(store: Ceph) -> Ceph:
    """The store, with its gateway running whatever the last test did to it."""
    store.start_gateway()
    return store


@pytest.fixture(scope="package", autouse=True)
def credentials(store: Ceph) -> Iterator[None]:
    """Endpoint and credentials in the environment, for these tests and the workers they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(store, store.endpoint).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="package")
def client(credentials: None) -> Iterator[object]:
    """Two single-threaded worker processes that have the credentials in their environment."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit="2 GiB",
        ) as cluster,
        Client(cluster) as found,
    ):
        yield found


@pytest.fixture
def bucket_name(ceph: Ceph, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh bucket, always of the same name for the same test."""
    name = "test-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    ceph.fresh_bucket(name)
    yield name
    ceph.start_gateway()
    ceph.drop_bucket(name)


@pytest.fixture
def s3(ceph: Ceph, bucket_name: str) -> Bucket:
    """A fresh bucket, reached directly."""
    return Bucket(ceph, bucket_name, ceph.endpoint)


@pytest.fixture
def proxied_s3(ceph: Ceph, bucket_name: str) -> Iterator[Bucket]:
    """A fresh bucket behind a proxy that does no harm yet: ``proxied_s3.proxy.set(p503=0.08)``."""
    with FaultProxy(ceph.port) as proxy:
        yield Bucket(ceph, bucket_name, proxy.endpoint, proxy)


@pytest.fixture
def namespaces() -> Iterator[Network]:
    """Three hosts on a bridge."""
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def local_cog(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes an ``n x n`` float32 COG, 128-cell blocks, with overviews and some missing cells."""
    made: dict[int, Path] = {}

    def make(n: int) -> Path:
        if n not in made:
            folder = tmp_path_factory.mktemp("cog")
            plain = write_terrain(folder / "plain.tif", n, holes=True)
            made[n] = folder / f"cog-{n}.tif"
            copy_raster(plain, made[n], driver="COG", blocksize=128, compress="DEFLATE")
            with rasterio.open(made[n]) as dataset:
                assert dataset.overviews(1)
                assert np.isnan(dataset.read(1)).any()
        return made[n]

    return make


@pytest.fixture(scope="session")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], Path]:
    """The store that a job writes on the local disk, undisturbed; made once per job."""
    made: dict[str, Path] = {}

    def make(spec: Mapping[str, Any]) -> Path:
        # where it goes, and with what credentials, decides no byte
        key = json.dumps({k: v for k, v in spec.items() if k not in ("target", "options")})
        if key not in made:
            made[key] = reference(spec, tmp_path_factory.mktemp("reference"))
        return made[key]

    return make


@pytest.fixture
def cog_on_s3(s3: Bucket, local_cog: Callable[[int], Path]) -> Callable[[int], Cog]:
    """Puts an ``n x n`` COG into the bucket of ``s3``."""

    def put(n: int) -> Cog:
        path = local_cog(n)
        s3.write("input/scene.tif", path.read_bytes())
        return Cog(s3.url("input/scene.tif"), path)

    return put
