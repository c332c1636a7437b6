"""Rasters in buckets: who asks, by which reader, and what faults do to them."""

from __future__ import annotations

import json
import logging
import os
import pickle
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import s3fs
from rasterio.env import get_gdal_config
from rasterio.transform import from_origin
from sample_s3 import KEY, SECRET, VALUES, options, process

from geopatch_dask.errors import FieldError, OptionError
from geopatch_dask.failures import is_transient
from geopatch_dask.fields import RasterField
from geopatch_dask.fields.handles import forget_handles
from geopatch_dask.patch.boxes import Box
from geopatch_dask.retries import take_retries
from geopatch_dask.store.location import Location

#: Variables that any reader may look at.
VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_PROFILE"),
    *("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"),
)
WHOLE = Box((0, 0), (512, 512))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    take_retries()
    yield
    forget_handles()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60_000, (512, 512), dtype="uint16")


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("cog") / "scene.tif"
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=512,
        width=512,
        count=1,
        dtype="uint16",
        crs="EPSG:32632",
        transform=from_origin(0, 0, 10, 10),
        blocksize=128,
        compress="deflate",
    ) as dataset:
        dataset.write(values, 1)
    return path


@pytest.fixture(scope="module")
def port(cog: Path) -> Iterator[int]:
    with process("s3_server.py", "bucket") as found, pytest.MonkeyPatch.context() as patch:
        for name, value in VALUES.items():
            patch.setenv(name, value)
        Location("s3://bucket/in", options(found)).write("scene.tif", cog.read_bytes())
        yield found


URL = "s3://bucket/in/scene.tif"


class TestReading:
    @pytest.mark.parametrize("reader", ["gdal", "fsspec"])
    def test_with_options(self, port, values, reader):
        field = RasterField(URL, storage_options=options(port), reader=reader)
        field = pickle.loads(pickle.dumps(RasterField(**field.get_config())))
        assert field.domain.crs is not None
        np.testing.assert_array_equal(field.read(WHOLE), values)
        np.testing.assert_array_equal(field.read(Box((3, 5), (200, 300))), values[3:200, 5:300])
        found = field.identity()
        assert found["etag"]
        assert found == RasterField(**field.get_config()).identity()
        text = json.dumps([field.get_config(), found]) + repr(field)
        assert not [value for value in VALUES.values() if value in text]
        assert "AWS_ACCESS_KEY_ID" not in os.environ
        assert get_gdal_config("AWS_ACCESS_KEY_ID") is None
        assert get_gdal_config("AWS_S3_ENDPOINT") is None

    @pytest.mark.parametrize("path", [URL, "/vsis3/bucket/in/scene.tif"])
    def test_with_the_variables_of_the_aws_tools(self, port, values, monkeypatch, path):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", VALUES[KEY])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", VALUES[SECRET])
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        np.testing.assert_array_equal(RasterField(path).read(WHOLE), values)
        assert "etag" in RasterField(path).identity()

    def test_with_the_variables_of_gdal(self, port, values, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", VALUES[KEY])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", VALUES[SECRET])
        monkeypatch.setenv("AWS_S3_ENDPOINT", f"127.0.0.1:{port}")
        monkeypatch.setenv("AWS_HTTPS", "NO")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
        # what GDAL was told wins over what is said to others
        monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.invalid")
        np.testing.assert_array_equal(RasterField(URL).read(WHOLE), values)

    def test_two_fields_with_other_options_side_by_side(self, port, values):
        good = RasterField(URL, storage_options=options(port))
        away = RasterField(URL, storage_options=options(1))
        found: list[Any] = []

        def work() -> None:
            found.append(good.read(WHOLE))
            try:
                away.read(WHOLE)
            except FieldError as error:
                found.append(error.kind)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [x for x in found if isinstance(x, str)] == ["unreachable"] * 3
        for cells in found:
            if not isinstance(cells, str):
                np.testing.assert_array_equal(cells, values)

    def test_what_a_user_configured_wins(self, port, values):
        with rasterio.Env(GDAL_HTTP_MAX_RETRY="0"):
            field = RasterField(URL, storage_options=options(port))
            np.testing.assert_array_equal(field.read(WHOLE), values)
            assert get_gdal_config("GDAL_HTTP_MAX_RETRY") == 0


class TestRefusals:
    def test_options_that_make_no_sense(self):
        with pytest.raises(OptionError, match="'secret' holds a credential"):
            RasterField(URL, storage_options={"secret": "abc"})
        with pytest.raises(OptionError, match="use one of gdal, fsspec"):
            RasterField(URL, reader="rasterio")
        with pytest.raises(OptionError, match="opens URLs"):
            RasterField("/data/a.tif", reader="fsspec")
        with pytest.raises(OptionError, match="for s3:// only; use reader='fsspec'"):
            RasterField("gs://b/a.tif", storage_options={"token": "anon"})
        with pytest.raises(OptionError, match="no option 'profile': use reader='fsspec'"):
            RasterField(URL, storage_options={"profile": "me"})

    @pytest.mark.parametrize("reader", ["gdal", "fsspec"])
    def test_a_variable_that_is_not_set_here(self, reader, monkeypatch):
        monkeypatch.delenv(SECRET)
        with pytest.raises(OptionError, match=f"{SECRET!r}, which is not set"):
            _ = RasterField(URL, storage_options=options(1), reader=reader).domain

    @pytest.mark.parametrize("reader", ["gdal", "fsspec"])
    def test_what_is_absent_is_not_asked_for_again(self, port, reader):
        field = RasterField("s3://bucket/in/none.tif", storage_options=options(port), reader=reader)
        with pytest.raises(FieldError, match="cannot be opened as a raster") as caught:
            _ = field.domain
        assert (caught.value.kind, is_transient(caught.value)) == ("absent", False)
        assert take_retries() == 0

    @pytest.mark.parametrize("reader", ["gdal", "fsspec"])
    def test_a_server_that_is_away(self, reader, caplog, monkeypatch):
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own pauses are not ours to cut
        with caplog.at_level(logging.DEBUG):
            given = options(1, config_kwargs={"retries": {"total_max_attempts": 1}})
            field = RasterField(URL, storage_options=given, reader=reader)
            with pytest.raises(FieldError) as caught:
                _ = field.domain
        assert is_transient(caught.value)
        assert take_retries() > 0
        text = "".join(traceback.format_exception(caught.value))
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("geopatch_dask")]
        assert not [v for v in VALUES.values() if v in text + "".join(ours)]


class TestFaults:
    """The server fails a few requests; the field must not."""

    @pytest.mark.parametrize(
        ("fault", "first"),
        [
            *(("reset", 0), ("closed", 0), ("short", 0), ("SlowDown", 0), ("Bad Gateway", 0)),
            *(("reset", 2), ("short", 2)),
        ],
    )
    def test_gdal_outlasts_them(self, cog, values, fault, first):
        with process("fault_server.py", cog, fault, first, 5) as port:
            field = RasterField(URL, storage_options=options(port))
            np.testing.assert_array_equal(field.read(WHOLE), values)
            np.testing.assert_array_equal(field.read(Box((1, 1), (99, 500))), values[1:99, 1:500])

    @pytest.mark.parametrize("fault", ["reset", "short", "SlowDown"])
    def test_fsspec_outlasts_them(self, cog, values, fault):
        with process("fault_server.py", cog, fault, 4, 3) as port:
            once = {"retries": {"total_max_attempts": 1}}
            field = RasterField(
                URL, storage_options=options(port, config_kwargs=once), reader="fsspec"
            )
            np.testing.assert_array_equal(field.read(WHOLE), values)

    def test_one_that_stays_is_transient(self, cog):
        with process("fault_server.py", cog, "reset", 2, 10_000) as port:
            field = RasterField(URL, storage_options=options(port))
            with pytest.raises(FieldError) as caught:
                field.read(WHOLE)
        assert is_transient(caught.value)
        assert is_transient(pickle.loads(pickle.dumps(caught.value)))

    def test_a_damaged_file_on_a_disk_is_not(self, cog, tmp_path):
        path = tmp_path / "half.tif"
        path.write_bytes(cog.read_bytes()[: cog.stat().st_size // 3])
        with pytest.raises(FieldError) as caught:
            RasterField(path).read(WHOLE)
        assert not is_transient(caught.value)
        assert take_retries() == 0
