"""Buckets: how options reach each client, which one is chosen, and that it makes no difference."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import cloudpickle
import numpy as np
import pytest
import zarr
from botocore.utils import parse_timestamp
from sample_s3 import KEY, SECRET, VALUES, options, process
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

import geopatch_dask as gp
from geopatch_dask import s3
from geopatch_dask.errors import OptionError
from geopatch_dask.patch.boxes import Box
from geopatch_dask.patch.domain import RasterDomain
from geopatch_dask.store import clients, template
from geopatch_dask.store.backends import forget_clients
from geopatch_dask.store.location import Location
from geopatch_dask.store.records import Ledger
from geopatch_dask.store.regions import write_region
from geopatch_dask.store.retry import RetryStore
from geopatch_dask.store.target import finish, open_array, open_target

#: Variables that any client may read; tests start without them.
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield
    forget_clients()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with process("s3_server.py", "bucket") as found:
        yield found


class TestAccess:
    def test_options_of_s3fs(self):
        found = s3.access(
            {
                "key": "k",
                "secret": "s",
                "token": "t",
                "client_kwargs": {"endpoint_url": "http://host:9000", "region_name": "r"},
                "config_kwargs": {"s3": {"addressing_style": "virtual"}, "read_timeout": 90},
                "use_listings_cache": True,
                "requester_pays": True,
            },
            {},
        )
        assert found.unknown == ()
        assert found.certain
        kept = found.for_obstore()
        assert kept["credential_provider"]() == {
            "access_key_id": "k",
            "secret_access_key": "s",
            "token": "t",
            "expires_at": None,
        }
        assert kept["endpoint"] == "http://host:9000"
        assert kept["region"] == "r"
        assert kept["virtual_hosted_style_request"] is True
        assert kept["request_payer"] is True
        assert kept["client_options"]["allow_http"] is True
        assert kept["client_options"]["read_timeout"] == timedelta(seconds=90)
        assert kept["client_options"]["timeout"] == timedelta(seconds=s3.WHOLE)
        assert found.for_gdal() == {
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_SESSION_TOKEN": "t",
            "AWS_REGION": "r",
            "AWS_REQUEST_PAYER": "requester",
            "AWS_S3_ENDPOINT": "host:9000",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "TRUE",
        }

    def test_options_of_obstore_pass(self):
        found = s3.access(
            {
                "access_key_id": "k",
                "secret_access_key": "s",
                "endpoint": "https://host",
                "client_options": {"timeout": "5s"},
                "unsigned_payload": True,
            },
            {},
        )
        kept = found.for_obstore()
        assert (found.key, found.secret, found.unknown) == ("k", "s", ())
        assert kept["client_options"]["timeout"] == "5s"
        assert kept["client_options"]["allow_http"] is False
        assert kept["unsigned_payload"] is True
        assert kept["disable_bulk_delete"] is True
        assert found.for_obstore(many=True)["disable_bulk_delete"] is False

    def test_the_environment(self):
        environ = {
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_SESSION_TOKEN": "t",
            "AWS_ENDPOINT_URL": "http://a",
            "AWS_REGION": "r",
        }
        found = s3.access({}, environ)
        assert (found.key, found.secret, found.token) == ("k", "s", "t")
        assert (found.endpoint, found.region) == ("http://a", "r")
        # a pair that was given is not completed by a token from elsewhere
        given = s3.access({"key": "K", "secret": "S"}, environ)
        assert (given.key, given.secret, given.token) == ("K", "S", None)
        assert given.for_gdal()["AWS_SESSION_TOKEN"] == ""
        anon = s3.access({"anon": True}, environ)
        assert (anon.key, anon.secret, anon.token) == (None, None, None)
        assert anon.for_obstore()["skip_signature"] is True
        assert "credential_provider" not in anon.for_obstore()
        assert anon.for_gdal()["AWS_NO_SIGN_REQUEST"] == "YES"

    def test_what_is_not_told_is_not_certain(self):
        assert not s3.access({}, {}).certain
        assert not s3.access({"key": "k", "secret": "s"}, {}).certain  # in which region?
        assert not s3.access({"profile": "me"}, {}).certain
        assert s3.access({"anon": True}, {"AWS_REGION": "r"}).certain

    def test_s3fs_gets_timeouts_and_loses_its_caches(self):
        found = s3.for_s3fs({"key": "k"}, {"AWS_REGION": "r"})
        assert found["config_kwargs"]["connect_timeout"] == s3.CONNECT
        assert found["config_kwargs"]["read_timeout"] == s3.READ
        assert found["client_kwargs"] == {"region_name": "r"}
        assert found["use_listings_cache"] is False
        own = {"config_kwargs": {"read_timeout": 5}, "max_concurrency": 9}
        kept = s3.for_s3fs(own, {"AWS_REGION": "r", "AWS_DEFAULT_REGION": "d"})
        assert kept["config_kwargs"]["read_timeout"] == 5
        assert kept["config_kwargs"]["connect_timeout"] == s3.CONNECT
        assert kept["max_concurrency"] == 9
        assert "client_kwargs" not in kept

    @pytest.mark.parametrize(
        "text",
        [
            *("2026-11-29T10:00:00.000Z", "2026-11-29T10:00:00.123456Z", "2026-11-29T10:00:00Z"),
            *("2026-11-29T10:00:00+01:00", "Sun, 29 Nov 2026 10:00:00 GMT", "1795946400"),
            *("20261129T100000Z", 1795946400, 1795946400.5),
        ],
    )
    def test_s3fs_reads_dates_as_botocore_does(self, port, text):
        made = clients.filesystem("s3://bucket", json.dumps(options(port)), asynchronous=False)
        made.ls("bucket")  # connects: with the session that it was given
        factory = made.session.get_component("response_parser_factory")
        found = factory._defaults["timestamp_parser"](text)
        assert found == parse_timestamp(text)
        assert found.utcoffset() == parse_timestamp(text).utcoffset()
        with pytest.raises(ValueError, match="Invalid timestamp"):
            factory._defaults["timestamp_parser"]("2026-13-29T10:00:00ZZ")


class TestChoice:
    def test_auto(self, monkeypatch):
        full = options(1)
        assert Location("s3://b/x", full).client_name == "obstore"
        assert Location("s3://b/x", {**full, "profile": "me"}).client_name == "fsspec"
        assert Location("s3://b/x").client_name == "fsspec"
        assert Location("s3://b/x", {"anon": True}).client_name == "fsspec"
        assert Location("s3://b//x", full).client_name == "fsspec"
        assert Location("memory://b/x").client_name == "fsspec"
        assert Location("/data/x").client_name == "local"
        assert Location.of(zarr.storage.MemoryStore()).client_name == "zarr"
        monkeypatch.setattr(clients, "_installed", lambda: False)
        forget_clients()
        assert Location("s3://b/x", full).client_name == "fsspec"

    def test_by_name(self, monkeypatch):
        assert Location("s3://b/x", options(1), client="fsspec").client_name == "fsspec"
        assert Location("s3://b/x", client="obstore").client_name == "obstore"
        with pytest.raises(OptionError, match="no such option: profile"):
            Location("s3://b/x", {"profile": "me"}, client="obstore").read("a")
        with pytest.raises(OptionError, match="not gs://"):
            _ = Location("gs://b/x", client="obstore").client_name
        with pytest.raises(OptionError, match="use one of auto, fsspec, obstore"):
            Location("s3://b/x", client="boto")
        monkeypatch.setattr(clients, "_installed", lambda: False)
        forget_clients()
        with pytest.raises(OptionError, match=r"pip install 'geopatch_dask\[obstore\]'"):
            _ = Location("s3://b/x", client="obstore").client_name

    def test_it_travels(self):
        place = Location("s3://b/x", options(1), client="fsspec", lists=False)
        assert pickle.loads(pickle.dumps(place)) == place
        assert Location.from_json(json.loads(json.dumps(place.to_json()))) == place
        assert Location.from_json({"url": "s3://b/x", "storage_options": None}).client == "auto"
        child = place.child("a")
        assert (child.client, child.lists) == ("fsspec", False)
        assert "client='fsspec'" in repr(place)

    def test_after_a_fork(self, port):
        place = Location("s3://bucket/fork", options(port))
        place.write("a", b"1")
        child = os.fork()
        if child == 0:  # the threads of obstore are gone here: it would wait for ever
            signal.alarm(60)
            good = place.client_name == "fsspec" and place.read("a") == b"1"
            try:
                _ = Location("s3://bucket/fork", options(port), client="obstore").client_name
                good = False
            except OptionError as error:
                good = good and "forked" in str(error)
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert place.client_name == "obstore"


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
class TestObjects:
    def test_round_trip(self, port, client):
        place = Location(f"s3://bucket/{uuid.uuid4().hex}/out.zarr", options(port), client=client)
        assert place.client_name == client
        assert place.read("a/b.json") is None
        assert not place.exists("a/b.json")
        assert place.list() == place.list("a") == []
        place.delete("a/b.json")
        for name in ("a/b.json", "a/c", "top", "d/e/f"):
            place.write(name, name.encode())
        place.write("a/c", b"")
        assert (place.read("a/b.json"), place.read("a/c")) == (b"a/b.json", b"")
        assert place.exists("top")
        assert not place.exists("a")
        assert place.list() == ["a", "d", "top"]
        assert place.list("a/") == ["a/b.json", "a/c"]
        place.sibling("2").write("mine", b"1")
        place.clear(keep="top")
        assert place.list() == ["top"]
        assert place.sibling("2").list() == ["mine"]
        place.clear()
        assert place.list() == []

    @pytest.mark.parametrize("name", ["out[1]*.zarr", "ü ~#%41.zarr", "a+b=c&d.zarr"])
    def test_names_are_not_altered(self, port, client, name):
        folder = uuid.uuid4().hex
        Location(f"s3://bucket/{folder}/{name}", options(port), client=client).write("x", b"1")
        # found by the other one
        other = {"fsspec": "obstore", "obstore": "fsspec"}[client]
        place = Location(f"s3://bucket/{folder}", options(port), client=other)
        assert place.list() == [name]
        assert place.child(name).read("x") == b"1"

    def test_a_missing_bucket(self, port, client):
        place = Location("s3://nowhere/out.zarr", options(port), client=client)
        for attempt in (lambda: place.read("a"), place.list, lambda: place.write("a", b"1")):
            with pytest.raises(gp.TargetError, match="no such bucket: create it first") as caught:
                attempt()
            assert caught.value.kind == "mistake"

    def test_credentials_from_the_environment(self, port, client, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", VALUES[KEY])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", VALUES[SECRET])
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        place = Location(f"s3://bucket/{uuid.uuid4().hex}", client=client)
        place.write("a", b"1")
        assert place.read("a") == b"1"
        assert Location(place.url).client_name == "obstore"

    def test_records(self, port, client):
        place = Location(f"s3://bucket/{uuid.uuid4().hex}/out.zarr", options(port), client=client)
        ledger = Ledger(place, "a" * 64)
        assert ledger.done() == {}
        ledger.folder.write("tiles/1.json", b"torn")
        assert ledger.done() == {}
        assert "torn" in ledger.problems[0]


async def digests(store: Store) -> dict[str, str]:
    """SHA-256 of every object, by key."""
    buffer = default_buffer_prototype()
    found = {key: await store.get(key, buffer) async for key in store.list()}
    return {k: hashlib.sha256(v.to_bytes()).hexdigest() for k, v in found.items() if v is not None}


class TestStores:
    def made(self, place: Location, shards: Any, values: np.ndarray) -> dict[str, str]:
        """Digests of everything stored."""
        domain = RasterDomain(
            ("y", "x"), values.shape, crs="EPSG:32632", transform=(10.0, 0, 0, 0, -10.0, 0)
        )
        spec = template.ArraySpec("data", "float32", ("y", "x"), values.shape, (50, 50), shards)
        assert template.create(place, [spec], domain)
        assert not template.create(place, [spec], domain)
        array = open_array(place, "data")
        assert place.is_local or isinstance(array.store, RetryStore)
        for top in (0, 100):
            box = Box((top, 0), (min(top + 100, values.shape[0]), values.shape[1]))
            write_region(array, box, values[box.slices()])
        finish(place)
        np.testing.assert_array_equal(open_target(place)["data"].values, values)
        return sync(digests(place.zarr_store()))

    @pytest.mark.parametrize("shards", [None, (100, 100)])
    def test_the_same_bytes_by_every_client(self, port, tmp_path, shards):
        values = np.random.default_rng(0).normal(size=(170, 180)).astype("float32")
        values[:100, :100] = np.nan
        local = self.made(Location(tmp_path / "out.zarr"), shards, values)
        for client in ("fsspec", "obstore"):
            url = f"s3://bucket/{uuid.uuid4().hex}/out.zarr"
            found = self.made(Location(url, options(port), client=client), shards, values)
            assert found == local
            assert len(found) > 10
            # and read by another one
            other = Location(url, options(port))
            assert other.client_name == "obstore"
            np.testing.assert_array_equal(open_target(other)["data"].values, values)

    @pytest.mark.parametrize("client", ["fsspec", "obstore"])
    def test_an_opened_target_travels_without_client_or_secret(self, port, client):
        values = np.random.default_rng(0).normal(size=(170, 180)).astype("float32")
        place = Location(f"s3://bucket/{uuid.uuid4().hex}/out.zarr", options(port), client=client)
        self.made(place, None, values)
        for store in (place.zarr_store(), place.zarr_store().with_read_only(True)):
            again = pickle.loads(pickle.dumps(store))
            assert isinstance(again, RetryStore)
            assert again.read_only == store.read_only
        sent = cloudpickle.dumps(open_target(place)["data"])
        for secret in VALUES.values():
            assert secret.encode() not in sent
        np.testing.assert_array_equal(pickle.loads(sent).values, values)

    def test_an_open_store_is_a_target_and_an_input(self, port):
        given = {
            "key": VALUES[KEY],
            "secret": VALUES[SECRET],
            "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
        }
        store = FsspecStore.from_url(f"s3://bucket/{uuid.uuid4().hex}", storage_options=given)
        values = np.random.default_rng(0).normal(size=(100, 90)).astype("float32")
        assert self.made(Location.of(store), None, values)
        field = gp.XarrayField(open_target(store), "data")
        np.testing.assert_array_equal(field.read(Box((3, 4), (50, 60))), values[3:50, 4:60])

    def test_a_field_from_a_bucket(self, port):
        values = np.random.default_rng(0).normal(size=(100, 90)).astype("float32")
        url = f"s3://bucket/{uuid.uuid4().hex}/in.zarr"
        self.made(Location(url, options(port)), None, values)
        field = gp.XarrayField(url, "data", options={"storage_options": options(port)})
        again = gp.XarrayField(**field.get_config())
        np.testing.assert_array_equal(again.read(Box((3, 4), (50, 60))), values[3:50, 4:60])
        assert again.identity() == field.identity()
        assert VALUES[SECRET] not in json.dumps([field.get_config(), field.identity()])


def test_no_secret_in_any_text():
    """Not in a message, a cause, a note or a client's own words, whoever refuses."""
    for client in ("fsspec", "obstore"):
        once = {"retries": {"total_max_attempts": 1}}
        place = Location("s3://bucket/x", options(1, config_kwargs=once), client=client)
        with pytest.raises(gp.TargetError) as caught:
            place.read("a")
        texts, link = [repr(place), json.dumps(place.to_json())], caught.value
        while link is not None:
            texts += [str(link), repr(link), *getattr(link, "__notes__", ())]
            link = link.__cause__ or link.__context__
        assert not [text for text in texts if VALUES[SECRET] in text]
        assert VALUES[SECRET] not in pickle.dumps(place).decode("latin1")
