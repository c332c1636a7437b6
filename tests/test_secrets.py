"""Secrets of a target, a field and a mask: in use, and in nothing that is said or kept.

Each has one of its own, under a variable that no client knows, and a server that repeats it in all
its answers.
"""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Iterator
from typing import Any, ClassVar
from urllib.parse import quote

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

import geopatch_dask as gp
from geopatch_dask import credentials
from geopatch_dask.execute.attempt import tile as tiles
from geopatch_dask.patch.boxes import Box
from geopatch_dask.store.records import Ledger

SECRETS = {
    "TARGET_WORD": "S3cr3t/of+the=target",
    "FIELD_WORD": "another-of-the-field",
    "MASK_WORD": "one:of:the:mask!",
}


class Tells(MemoryFileSystem):
    """Refuses what has ``refuses`` in its name, and says who asked."""

    protocol = "tells"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    refuses = "never"

    def __init__(self, secret: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.secret = secret

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(str(path).replace("tells://", "memory://"))

    def _refuse(self, path: Any) -> None:
        if self.refuses in str(path):
            raise PermissionError(f"{self.secret} is expired; see ?sig={quote(self.secret, '')}")

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self._refuse(path)
        super().pipe_file(path, value, **options)

    def _rm(self, path: str) -> None:
        self._refuse(path)
        super()._rm(path)

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._refuse(path)
        return super().cat_file(path, *args, **options)

    def info(self, path: str, **options: Any) -> Any:
        self._refuse(path)
        return super().info(path, **options)

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        self._refuse(path)
        return super()._open(path, *args, **options)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tells]]:
    fsspec.register_implementation("tells", Tells, clobber=True)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Tells, "refuses", "never")
    yield Tells
    Tells.store.clear()
    Tells.clear_instance_cache()


def options(name: str) -> dict[str, str]:
    return {"secret": f"env:{name}_WORD"}


def everything(error: BaseException) -> str:
    texts = "".join(traceback.format_exception(error))
    return f"{texts}{error!r}{pickle.dumps(str(error))!r}"


def secret_in(text: str) -> list[str]:
    spelled = {name: (word, quote(word, "")) for name, word in SECRETS.items()}
    return [name for name, words in spelled.items() if any(word in text for word in words)]


def planned(field: Any = None, operator: Any = None) -> gp.Plan:
    values = gp.ArrayField(np.ones((8, 8), "float32"))
    patcher = gp.Patcher(gp.Rectangular((4, 4)), gp.RegularStride((4, 4)), gp.Boxcar())
    place = gp.Location("tells://h/out.zarr", options("TARGET"))
    return gp.plan(
        *(field or values, patcher, gp.Operator(operator or np.negative, version="1"), place),
        outer=(4, 4),
        chunks=(4, 4),
        slots=2,
        memory_limit="1 GiB",
    )


def kept(plan: gp.Plan) -> str:
    """Everything beside the target."""
    files = [name for name in Tells.store if ".geopatch/" in name]
    assert any("report.json" in name for name in files)
    return "".join(Tells.store[name].getvalue().decode() for name in files)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_of_a_target_that_refuses_data(server: type[Tells], scheduler: str) -> None:
    plan = planned()
    server.refuses = "data/c/"  # neither to be written nor to be made fill
    with pytest.raises(gp.RunIncomplete, match="4 of 4 super-tiles failed") as caught:
        plan.run(scheduler)
    text = everything(caught.value) + kept(plan) + str(caught.value.report)
    assert "*** is expired" in text
    assert "tells://h/out.zarr/data" in text
    assert secret_in(text) == []


def test_of_a_field_and_of_its_mask(server: type[Tells]) -> None:
    server.refuses = "scene"
    mask = gp.RasterField(
        "tells://h/scene-mask.tif", reader="fsspec", storage_options=options("MASK")
    )
    field = gp.RasterField(
        "tells://h/scene.tif", reader="fsspec", storage_options=options("FIELD"), mask=mask
    )
    stored = gp.XarrayField("tells://h/scene.zarr", options={"storage_options": options("FIELD")})
    for one in (field, mask, stored):
        with pytest.raises(gp.FieldError, match=r"\*\*\*") as caught:
            _ = one.domain
        assert secret_in(everything(caught.value)) == []
    assert secret_in(json.dumps(field.get_config())) == []
    told = gp.ArrayField(np.ones((8, 8), "float32")).secrets
    assert told == {}
    assert field.secrets["mask"]["storage_options"] == options("MASK")


class Secretive(gp.ArrayField):
    """A field in memory whose reader is a user's own, and tells."""

    def read(self, box: Box) -> Any:
        raise PermissionError(" ".join(SECRETS.values()))

    @property
    def secrets(self) -> dict[str, Any]:
        return {"field": options("FIELD"), "mask": options("MASK")}


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_of_all_of_them_when_a_field_fails(
    scheduler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = planned(Reads(np.ones((8, 8), "float32")))
    monkeypatch.setattr(Reads, "read", Secretive.read)
    report = plan.run(scheduler, on_failure="return", policy=gp.Policy(log="text"))
    assert not report.complete
    text = kept(plan) + json.dumps(report.to_json()) + caplog.text
    assert "*** *** ***" in text
    assert secret_in(text) == []


class Reads(gp.ArrayField):
    secrets = Secretive.secrets


def test_a_secret_is_taken_out_before_a_text_is_cut() -> None:
    def tells(x: Any) -> Any:
        if said:
            raise RuntimeError("p" * said[0] + " " + SECRETS["TARGET_WORD"])
        return x

    said: list[int] = []
    plan = planned(operator=tells)
    for start in (270, 278, 284, 290):  # 300 characters are kept
        said[:] = [start]
        with pytest.warns(gp.UncoveredWarning):
            plan.run("sync", policy=gp.Policy(on_error="fill"), overwrite=True)
        for record in Ledger(plan.target, plan.fingerprint).done().values():
            assert len(record.patch_errors[0]) > 300
            assert "S3c" not in record.patch_errors[0]
            assert "of+the" not in record.patch_errors[0]


def test_what_giving_up_says_is_clean(server: type[Tells]) -> None:
    plan = planned()
    plan.run("sync")
    error = {"type": "E", "message": SECRETS["TARGET_WORD"], "traceback": "", "kind": "lost"}
    Ledger(plan.target, plan.fingerprint).withdraw(plan.supertile(0).id)
    server.refuses = "failed/"
    outcome = tiles.give_up(plan, 0, error, 1)
    assert outcome.error is not None
    assert "that could not be recorded: cannot write" in outcome.error["message"]
    assert secret_in(json.dumps(dict(outcome.error))) == []


@given(st.text(min_size=6), st.text(), st.text())
def test_no_spelling_of_a_secret_stays(word: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        word = word.replace("\0", "0").encode("utf-8", "ignore").decode() or "secret"
        patch.setenv("SOME_WORD", word)
        for said in (word, quote(word), quote(word, "")):
            text = credentials.scrub(f"{before}<{said}>{after}", {"key": "env:SOME_WORD"})
            assert f"<{said}>" not in text


@pytest.mark.parametrize("name", ["pass", "ftp_pass", "bearer", "bearer_token", "passcode"])
def test_more_names_of_secrets(name: str) -> None:
    with pytest.raises(gp.OptionError, match="holds a credential"):
        gp.Location("ftp://h/out.zarr", {name: "hunter2"})
    gp.Location("ftp://h/out.zarr", {name: "env:WORD"})


def test_names_that_are_none() -> None:
    given = {"pass_through": "x", "bypass": "x", "passive": "x"}
    assert gp.Location("ftp://h/out.zarr", given).storage_options == given


def test_a_token_in_a_url() -> None:
    for url in ("https://ghp_TOKEN@host/out.zarr", "http://t@host/x", "ftp://me:word@host/x"):
        with pytest.raises(gp.OptionError, match="URL carries a credential"):
            gp.Location(url)
    for url in ("ftp://me@host/out.zarr", "abfs://box@account/out.zarr", "https://host/a@b.zarr"):
        assert gp.Location(url).url == url
