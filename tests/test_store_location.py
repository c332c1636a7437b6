"""Places: names, objects, failures, credentials, and what travels."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from geopatch_dask import credentials
from geopatch_dask.errors import OptionError, TargetError
from geopatch_dask.store import backends
from geopatch_dask.store.location import Location, raise_target_error
from geopatch_dask.store.retry import innermost

SECRET = "wJalrXUtnFEMI-not-a-real-secret"


@pytest.fixture(autouse=True)
def _fresh_clients():
    backends.forget_clients()


@pytest.fixture(params=["local", "fsspec", "store"])
def place(request, tmp_path):
    if request.param == "local":
        return Location(str(tmp_path / "out.zarr"))
    if request.param == "fsspec":
        return Location(f"memory://bucket/{uuid.uuid4().hex}/out.zarr")
    return Location.of(MemoryStore())


class TestNames:
    def test_local_paths_are_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/someone")
        assert Location("a/../out.zarr").url == str(tmp_path / "out.zarr")
        assert Location("~/out.zarr").url == "/home/someone/out.zarr"
        assert Location("file:///data/out.zarr/").url == "/data/out.zarr"
        assert Location(tmp_path).is_local

    def test_child_and_sibling(self):
        local = Location("/data/out.zarr")
        assert local.child("data").url == "/data/out.zarr/data"
        assert local.sibling(".geopatch").url == "/data/out.zarr.geopatch"
        s3 = Location("s3://bucket/a/out.zarr/", {"anon": True})
        assert s3.child("a/b").url == "s3://bucket/a/out.zarr/a/b"
        assert s3.sibling(".geopatch") == Location(
            "s3://bucket/a/out.zarr.geopatch", {"anon": True}
        )
        query = Location("https://host/out.zarr?version=3")
        assert query.child("x").url == "https://host/out.zarr/x?version=3"
        assert query.sibling(".g").url == "https://host/out.zarr.g?version=3"

    @pytest.mark.parametrize("url", ["/", "s3://bucket", "s3://bucket/", "memory://"])
    def test_whole_bucket_has_no_sibling_and_is_never_emptied(self, url):
        with pytest.raises(OptionError, match="whole bucket or file system: add a name"):
            Location(url).sibling(".geopatch")
        with pytest.raises(TargetError, match="never emptied"):
            Location(url).clear()

    def test_display_has_no_user_and_no_query(self):
        assert Location("sftp://me@host/out.zarr").display == "sftp://host/out.zarr"
        assert Location("https://host/out.zarr?v=3").display == "https://host/out.zarr"
        container = "abfs://container@account.dfs.core.windows.net/out.zarr"
        assert Location(container).display == container

    @pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "."])
    def test_names_stay_inside(self, name, tmp_path):
        with pytest.raises(OptionError, match="no name inside"):
            Location(tmp_path).read(name)
        with pytest.raises(OptionError, match="no name inside"):
            Location(tmp_path).child(name)

    @pytest.mark.parametrize("bad", ["", "  ", "simplecache::s3://bucket/out.zarr"])
    def test_what_is_no_target(self, bad):
        with pytest.raises(OptionError):
            Location(bad)

    def test_of(self, tmp_path):
        assert Location.of(tmp_path) == Location.of(str(tmp_path)) == Location(str(tmp_path))
        assert Location.of(LocalStore(tmp_path)) == Location(str(tmp_path))
        there = Location("s3://bucket/out.zarr")
        assert Location.of(there) is there
        assert Location.of(there, {"anon": True}).storage_options == {"anon": True}
        with pytest.raises(OptionError, match="a int is no target"):
            Location.of(3)
        with pytest.raises(OptionError, match="do not apply to an open store"):
            Location.of(MemoryStore(), {"anon": True})


class TestObjects:
    def test_round_trip(self, place):
        assert place.read("a/b.json") is None
        assert not place.exists("a/b.json")
        assert place.list() == place.list("a") == []
        place.delete("a/b.json")
        place.write("a/b.json", b"one")
        place.write("a/b.json", b"two")
        place.write("a/c", b"")
        place.write("top", b"x")
        assert place.read("a/b.json") == b"two"
        assert place.read("a/c") == b""
        assert place.exists("a/b.json")
        assert not place.exists("a")
        assert place.list("a") == place.list("a/") == ["a/b.json", "a/c"]
        assert place.list() == ["a", "top"]
        place.delete("a/b.json")
        assert place.list("a") == ["a/c"]

    def test_clear_keeps_one(self, place):
        other = place.sibling("2") if place.store is None else None
        for name in ("zarr.json", "data/zarr.json", "data/c/0/0"):
            place.write(name, b"x")
        if other is not None:
            other.write("zarr.json", b"mine")
        place.clear(keep="zarr.json")
        assert place.read("zarr.json") == b"x"
        assert place.read("data/c/0/0") is None
        place.clear()
        assert place.read("zarr.json") is None
        place.clear()
        if other is not None:
            assert other.read("zarr.json") == b"mine"

    def test_parts(self, place):
        place.child("a").write("b", b"1")
        assert place.read("a/b") == b"1"
        assert place.child("a").list() == ["b"]
        assert place.sibling(".geopatch").read("b") is None

    def test_zarr_store(self, place):
        place.write("key", b"1")
        store = place.zarr_store(read_only=True)
        assert isinstance(store, Store)
        assert store.read_only
        kinds = {True: LocalStore, False: FsspecStore}
        if place.store is None:
            assert isinstance(innermost(store), kinds[place.is_local])
        assert not place.zarr_store().read_only

    def test_many_threads(self, place):
        def work(i):
            place.write(f"tiles/{i}.json", str(i).encode())
            return place.read(f"tiles/{i}.json")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(60))) == [str(i).encode() for i in range(60)]
        assert len(place.list("tiles")) == 60

    def test_pattern_characters_in_a_name(self):
        place = Location(f"memory://b/{uuid.uuid4().hex}/out[1]*.zarr")
        place.write("a", b"1")
        place.clear()
        assert place.read("a") is None

    def test_temporary_files_are_not_listed(self, tmp_path):
        (tmp_path / f".a.json.1234{backends.PARTIAL}").write_bytes(b"half")
        assert Location(tmp_path).list() == []


class TestFailures:
    def test_a_file_where_a_folder_belongs(self, tmp_path):
        (tmp_path / "out.tif").write_bytes(b"x")
        with pytest.raises(TargetError, match="in each other's place: choose another name"):
            Location(tmp_path / "out.tif").read("zarr.json")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root is never forbidden")
    def test_forbidden_folder(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(TargetError, match="forbidden"):
            Location(tmp_path).write("a", b"1")

    @pytest.mark.parametrize(
        ("error", "verdict"),
        [
            (PermissionError("Access Denied"), "forbidden: check credentials"),
            (ConnectionRefusedError("refused"), "unreachable: check the address"),
            (TimeoutError(), "unreachable"),
            (type("EndpointConnectionError", (Exception,), {})("no"), "unreachable"),
            (type("NoCredentialsError", (Exception,), {})("none"), "forbidden"),
            (ImportError("Install s3fs"), "is not installed"),
            (OSError(28, "No space left on device"), r"no room left.* \(OSError: .*No space left"),
        ],
    )
    def test_verdicts(self, error, verdict):
        class Broken(fsspec.AbstractFileSystem):
            protocol = "broken"

            def cat_file(self, path, **kwargs):
                raise error

        fsspec.register_implementation("broken", Broken, clobber=True)
        with pytest.raises(TargetError, match=verdict) as caught:
            Location("broken://host/out.zarr").read("zarr.json")
        assert "cannot read broken://host/out.zarr/zarr.json" in str(caught.value)
        assert caught.value.__cause__ is error

    def test_a_missing_bucket_is_not_an_absent_object(self):
        class Botoish(Exception):
            def __init__(self):
                super().__init__("NoSuchBucket")
                self.response = {"Error": {"Code": "NoSuchBucket"}}

        class Bucketless(fsspec.AbstractFileSystem):
            protocol = "bucketless"

            def cat_file(self, path, **kwargs):
                raise FileNotFoundError(path) from Botoish()

            def ls(self, path, detail=True, **kwargs):
                raise FileNotFoundError(path) from Botoish()

        fsspec.register_implementation("bucketless", Bucketless, clobber=True)
        place = Location("bucketless://bucket/out.zarr")
        for attempt in (lambda: place.read("zarr.json"), place.list):
            with pytest.raises(TargetError, match="no such bucket: create it first"):
                attempt()

    def test_unknown_protocol(self):
        with pytest.raises(TargetError, match=r"nosuch://x/out\.zarr"):
            Location("nosuch://x/out.zarr").read("a")


class TestSecrets:
    @pytest.mark.parametrize(
        "options",
        [
            {"key": "AKIA"},
            {"secret": SECRET},
            {"token": SECRET},
            {"password": SECRET},
            {"account_key": SECRET},
            {"connection_string": SECRET},
            {"sas_token": SECRET},
            {"client_kwargs": {"aws_secret_access_key": SECRET}},
            {"client_kwargs": {"headers": {"Authorization": SECRET}}},
            {"token": {"refresh": SECRET}},
            {"s3_additional_kwargs": {"SSECustomerKey": SECRET}},
            {"client_kwargs": {"endpoint_url": f"http://me:{SECRET}@host"}},
            {"password": 1234},
        ],
    )
    def test_literal_is_refused_with_the_remedy(self, options):
        with pytest.raises(OptionError, match=r"pass .*'env:NAME'") as caught:
            Location("s3://bucket/out.zarr", options)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            f"sftp://me:{SECRET}@host/out.zarr",
            f"https://host/out.zarr?sig={SECRET}&se=1",
            f"https://host/out.zarr?X-Amz-Signature={SECRET}",
        ],
    )
    def test_url_with_a_credential_is_refused(self, url):
        with pytest.raises(OptionError, match="carries a credential") as caught:
            Location(url)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"anon": True},
            {"token": "anon"},
            {"token": None, "key": ""},
            {"key_filename": "/home/me/.ssh/id"},
            {"client_kwargs": {"endpoint_url": "http://127.0.0.1:7480", "region_name": "x"}},
            {"config_kwargs": {"connect_timeout": 5, "retries": {"max_attempts": 3}}},
        ],
    )
    def test_harmless_options_pass(self, options):
        assert Location("s3://bucket/out.zarr", options).storage_options == options

    def test_options_are_plain_json(self):
        with pytest.raises(OptionError, match=r"session: only text.*can travel"):
            Location("s3://b/o.zarr", {"session": object()})

    def test_resolved_only_where_it_is_used(self, monkeypatch):
        options = {"key": "env:GP_KEY", "client_kwargs": {"x": ["env:GP_KEY", 1]}, "n": 1}
        place = Location("s3://bucket/out.zarr", options)
        with pytest.raises(OptionError, match="'GP_KEY', which is not set"):
            credentials.resolved(place.storage_options)
        with pytest.raises(OptionError, match="'GP_KEY', which is not set"):
            place.read("a")
        monkeypatch.setenv("GP_KEY", SECRET)
        assert credentials.resolved(place.storage_options) == {
            "key": SECRET,
            "client_kwargs": {"x": [SECRET, 1]},
            "n": 1,
        }
        assert place.storage_options == options

    def test_the_client_gets_it_and_nobody_else_sees_it(self, monkeypatch):
        seen = {}

        class Vault(fsspec.AbstractFileSystem):
            protocol = "vault"

            def __init__(self, secret=None, **kwargs):
                super().__init__(**kwargs)
                seen["secret"] = secret

            def cat_file(self, path, **kwargs):
                raise PermissionError(f"login with {seen['secret']} refused")

        fsspec.register_implementation("vault", Vault, clobber=True)
        monkeypatch.setenv("GP_SECRET", SECRET)
        place = Location("vault://host/out.zarr", {"secret": "env:GP_SECRET"})
        with pytest.raises(TargetError, match="forbidden") as caught:
            place.read("zarr.json")
        assert seen["secret"] == SECRET
        chain, text = caught.value, ""
        while chain is not None:
            text += f"{chain} {chain!r}"
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        texts = [text, repr(place), str(place), json.dumps(place.to_json()), place.display]
        texts += [pickle.dumps(place).decode("latin1"), place.scrub(f"a {SECRET} b")]
        assert not [t for t in texts if SECRET in t]
        assert place.scrub(f"a {SECRET} b") == "a *** b"

    def test_an_error_without_credentials_keeps_its_cause(self):
        cause = OSError("disk on fire")
        with pytest.raises(TargetError, match="cannot write x") as caught:
            raise_target_error("write", "x", cause)
        assert caught.value.__cause__ is cause
        with pytest.raises(TargetError) as caught:
            raise_target_error("write", "x", OSError("https://me:pw@host/a?sig=1 failed"))
        assert caught.value.__cause__ is None
        assert "pw" not in str(caught.value)
        assert "sig=1" not in str(caught.value)

    @given(st.text(min_size=1, max_size=30))
    def test_names_never_crash_the_check(self, name):
        assert credentials.looks_secret(name) in (True, False)


class TestTravelling:
    def test_json_and_pickle(self, tmp_path):
        for place in (
            Location(tmp_path / "out.zarr"),
            Location("s3://bucket/out.zarr", {"secret": "env:S", "client_kwargs": {"a": [1]}}),
        ):
            assert Location.from_json(json.loads(json.dumps(place.to_json()))) == place
            assert pickle.loads(pickle.dumps(place)) == place
            assert copy.deepcopy(place) == place
            assert hash(pickle.loads(pickle.dumps(place))) == hash(place)

    def test_no_client_travels_after_use(self):
        place = Location(f"memory://b/{uuid.uuid4().hex}")
        before = len(pickle.dumps(place))
        place.write("a", b"1")
        place.zarr_store()
        assert len(pickle.dumps(place)) == before < 300

    def test_options_are_a_copy(self):
        options = {"client_kwargs": {"a": 1}}
        place = Location("s3://b/o.zarr", options)
        options["client_kwargs"]["a"] = 2
        assert place.storage_options == {"client_kwargs": {"a": 1}}

    def test_a_store_in_memory_stays_in_its_process(self):
        place = Location.of(MemoryStore())
        assert not place.is_shared
        assert not Location("memory://b/o").is_shared
        assert Location("/data/o").is_shared
        with pytest.raises(TargetError, match="cannot be sent to another process"):
            pickle.dumps(place)
        with pytest.raises(OptionError, match="pass the store itself again"):
            Location.from_json(place.to_json())
        assert Location.of(MemoryStore()) != Location.of(MemoryStore({"a": None}))

    def test_part_of_an_open_store(self):
        place = Location.of(MemoryStore())
        assert place.path == ""
        assert place.child("a/b").path == "a/b"
        assert place.sibling(".geopatch").path == ".geopatch"
        assert place.child("a").sibling(".geopatch").path == "a.geopatch"
        assert place.child("a").zarr_store() is place.store

    def test_clients_are_shared_and_can_be_forgotten(self):
        first = innermost(Location("memory://b/one").zarr_store())
        assert innermost(Location("memory://b/two").zarr_store()).fs is first.fs
        backends.forget_clients()
        assert innermost(Location("memory://b/two").zarr_store()).fs is not first.fs


NURSERY = """
import os, sys
from geopatch_dask.store.location import Location
place, n = Location(sys.argv[1]), int(sys.argv[2])
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        while True:
            for byte in (b"a", b"b"):
                place.write("record.json", byte * n)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def torn_writes(folder: Path, size: int) -> list[Path]:
    return [p for p in folder.glob(f".*{backends.PARTIAL}") if p.stat().st_size < size]


def test_a_killed_writer_leaves_the_old_object_or_the_new_one(tmp_path):
    """Killed 25 times, and on a busy machine until a kill has fallen into a write."""
    size, moment = 3_000_000, random.Random(7)
    whole = {None, b"a" * size, b"b" * size}
    place = Location(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(tmp_path), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as nursery:
        for attempt in range(250):
            if attempt >= 25 and torn_writes(tmp_path, size):
                break
            nursery.stdin.write(b"\n")
            nursery.stdin.flush()
            child = int(nursery.stdout.readline())
            time.sleep(0.005 + moment.random() * 0.04 * (1 + attempt // 25))
            os.kill(child, signal.SIGKILL)
            assert nursery.stdout.readline() == b"gone\n"
            assert place.read("record.json") in whole
            assert place.list() in ([], ["record.json"])
        nursery.stdin.close()
    assert torn_writes(tmp_path, size), "no kill fell into a write: the test proved nothing"
