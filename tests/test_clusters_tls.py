"""TLS end to end: real schedulers and workers; who has no certificate is out, and is told why."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_jobs import Shop, geopatch, stored

import geopatch_dask as gp
from geopatch_dask.clusters import address as address_module
from geopatch_dask.clusters.tls import make_certificates, security

pytest.importorskip("cryptography", reason="certificates are made with it")

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "certs"
    make_certificates(folder)
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority."""
    folder = tmp_path_factory.mktemp("tls") / "strangers"
    make_certificates(folder)
    return folder


def knows_our_authority(ours: str | Path, strangers: Path, folder: Path) -> Path:
    """Certificates of who has learnt our authority, but has no key that it signed."""
    shutil.copytree(strangers, folder / "impostor")
    shutil.copy(Path(ours) / "ca.pem", folder / "impostor")
    return folder / "impostor"


# ---- certificates --------------------------------------------------------------------------


def test_the_key_is_for_its_owner_only(certs: Path) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in certs.iterdir()}
    assert modes == {"ca.pem": 0o644, "cert.pem": 0o644, "key.pem": 0o600}
    assert stat.S_IMODE(certs.stat().st_mode) == 0o700
    assert b"PRIVATE" not in (certs / "ca.pem").read_bytes() + (certs / "cert.pem").read_bytes()


def test_other_programs_take_them_for_what_they_are(certs: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    words = [openssl, "verify", "-x509_strict", "-CAfile", str(certs / "ca.pem")]
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            [*words, "-purpose", purpose, "-verify_ip", "127.0.0.1", str(certs / "cert.pem")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_strict_readers_accept_them_by_name(certs: Path) -> None:
    """A handshake in which the name of the host counts, which for Dask it does not."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs / "cert.pem", certs / "key.pem")
    client = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("localhost", "127.0.0.1", socket.gethostname()):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            side = threading.Thread(target=server.wrap_socket, args=(theirs, True))
            side.start()
            with client.wrap_socket(ours, server_hostname=name) as line:
                assert line.version() == "TLSv1.3"
            side.join()


def test_nothing_is_overwritten(certs: Path) -> None:
    before = {file: file.read_bytes() for file in certs.iterdir()}
    with pytest.raises(gp.OptionError, match=r"has ca.pem, cert.pem, key.pem already"):
        make_certificates(certs)
    assert {file: file.read_bytes() for file in certs.iterdir()} == before


def test_a_folder_that_cannot_be_used(tmp_path: Path, certs: Path, strangers: Path) -> None:
    with pytest.raises(gp.OptionError, match=r"has no ca.pem, cert.pem, key.pem; `geopatch doctor"):
        security(tmp_path)
    mixed = tmp_path / "mixed"
    shutil.copytree(certs, mixed)
    shutil.copy(strangers / "key.pem", mixed)
    with pytest.raises(gp.OptionError, match="must belong together"):
        security(mixed)
    (mixed / "key.pem").write_text("no key")
    with pytest.raises(gp.OptionError, match="cannot be used") as caught:
        gp.cluster("local", tls=str(mixed))
    assert "no key" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(gp.OptionError, match="cannot be written"):
        make_certificates(tmp_path / "file" / "certs")


# ---- the command, to the letter ------------------------------------------------------------


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What ``geopatch doctor --tls`` says to do, by what it is for."""
    folder = tmp_path_factory.mktemp("doctor") / "certs"
    words = [sys.executable, "-m", "geopatch_dask", "doctor", "--tls", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].endswith("for tests; whoever has key.pem is in")
    found = {k.strip(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:])}
    return found | {"folder": str(folder)}


@contextlib.contextmanager
def started(line: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command line in a process of its own, ended afterwards."""
    program, *words = shlex.split(line)
    with log.open("wb") as stream:
        process = subprocess.Popen([BIN / program, *words], stdout=stream, stderr=stream)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def encrypted(
    printed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """Scheduler and worker as ``geopatch doctor --tls`` says: address, folder, and logs."""
    logs, port = tmp_path_factory.mktemp("logs"), free_port()
    here = f" --host 127.0.0.1 --port {port} --no-dashboard"
    address, folder = f"tls://127.0.0.1:{port}", printed["folder"]
    worker = printed["worker"].replace("tls://HOST:8786", address) + " --host 127.0.0.1"
    with (
        started(printed["scheduler"] + here, logs / "scheduler"),
        started(worker + " --no-dashboard --memory-limit 700MiB", logs / "worker"),
    ):
        until = time.monotonic() + 60
        while True:
            try:
                with gp.cluster(address, tls=folder) as client:
                    client.wait_for_workers(1, timeout=60)
                break
            except gp.OptionError:
                assert time.monotonic() < until, (logs / "scheduler").read_text()
        yield address, folder, logs


@pytest.mark.integration
def test_a_job_over_tls_gives_the_same_bytes(
    encrypted: tuple[str, str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder, _ = encrypted
    shop = Shop.open(tmp_path)
    job = shop.job({"cluster.kind": address, "cluster.tls": folder})
    assert geopatch("run", job) == 0
    assert "4: 4 done" in capsys.readouterr().out
    other = shop.job({"output.target": "plain.zarr"}, "plain.toml")
    assert geopatch("run", other, "--quiet") == 0
    assert stored(shop.target) == stored(tmp_path / "plain.zarr")
    assert geopatch("doctor", job) == 0
    assert "1 worker" in capsys.readouterr().out
    assert geopatch("doctor", "--cluster", address, "--tls", folder) == 0


@pytest.mark.integration
def test_python_does_as_the_doctor_says(
    encrypted: tuple[str, str, Path], printed: dict[str, str]
) -> None:
    address, _, _ = encrypted
    made = eval(printed["Python"].replace("tls://HOST:8786", address), {"gp": gp})
    with made as client:
        assert client.scheduler.address == address
        workers = client.scheduler_info()["workers"]
        assert all(name.startswith("tls://") for name in workers)
    section = re.sub(r"\s{2,}", "\n", printed["job file"])
    assert section.splitlines()[0] == "[cluster]"


@pytest.mark.integration
def test_a_worker_without_our_certificate_is_refused(
    encrypted: tuple[str, str, Path], printed: dict[str, str], strangers: Path, tmp_path: Path
) -> None:
    """It is never among the workers and ends; the log of the scheduler says why."""
    address, folder, logs = encrypted
    line = printed["worker"].replace("tls://HOST:8786", address)
    line += " --host 127.0.0.1 --no-nanny --no-dashboard --death-timeout 6"
    impostor = str(knows_our_authority(folder, strangers, tmp_path))
    refused = {
        "stranger": line.replace(folder, str(strangers)),
        "impostor": line.replace(folder, impostor),
        "plain": re.sub(r" --tls-\S+ \S+", "", line),
        "tcp": re.sub(r" --tls-\S+ \S+", "", line).replace("tls://", "tcp://"),
    }
    with gp.cluster(address, tls=folder) as client, contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(started(f"{words} --name {name}", tmp_path / f"{name}.log"))
            for name, words in refused.items()
        }
        seen: set[str] = set()
        until = time.monotonic() + 100
        while any(p.poll() is None for p in processes.values()) and time.monotonic() < until:
            workers = client.scheduler_info()["workers"].values()
            seen |= {str(worker["name"]) for worker in workers}
            time.sleep(0.1)
        assert {name: p.poll() is None for name, p in processes.items()} == dict.fromkeys(
            refused, False
        )
    assert len(seen) == 1
    assert not set(refused) & seen
    assert "Worker failed to start" in (tmp_path / "plain.log").read_text()
    said = (logs / "scheduler").read_text()
    assert "alert unknown ca" in said  # the stranger, of us
    assert "certificate verify failed" in said.lower()  # we, of the impostor


# ---- our own processes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(certs: Path) -> Iterator[gp.Cluster]:
    """An encrypted cluster of this machine."""
    made = gp.cluster("local", workers=1, memory="500 MiB", tls=str(certs))
    yield made
    made.close()


@pytest.mark.cluster
def test_everything_is_encrypted(ours: gp.Cluster, tmp_path: Path) -> None:
    patcher = gp.Patcher(gp.Rectangular((16, 16)), gp.RegularStride((12, 12)), gp.Hann())
    cells = np.random.default_rng(0).random((40, 40))
    assert ours.client.scheduler.address.startswith("tls://127.0.0.1:")
    assert all(name.startswith("tls://") for name in ours.client.nthreads())
    found = gp.reconstruct(cells, patcher, np.sqrt, tmp_path / "a.zarr", client=ours)
    plain = gp.reconstruct(cells, patcher, np.sqrt, tmp_path / "b.zarr", client="sync")
    assert found.values.tobytes() == plain.values.tobytes()


@pytest.mark.cluster
def test_a_client_without_our_certificate_is_refused_at_once(
    ours: gp.Cluster, certs: Path, strangers: Path, tmp_path: Path
) -> None:
    address = ours.client.scheduler.address
    began = time.monotonic()
    with pytest.raises(gp.OptionError, match="needs certificates: give tls="):
        gp.cluster(address)
    with pytest.raises(gp.OptionError, match="of another authority than our ca"):
        gp.cluster(address, tls=str(strangers))
    impostor = knows_our_authority(certs, strangers, tmp_path)
    with pytest.raises(gp.OptionError, match="refuses our certificate") as caught:
        gp.cluster(address, tls=str(impostor))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10
    with gp.cluster(address, tls=str(certs)) as client:
        assert client.nthreads()


@pytest.mark.cluster
def test_whoever_speaks_no_tls_is_refused(
    ours: gp.Cluster, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_module, "TIMEOUT", 1)
    plain = ours.client.scheduler.address.replace("tls", "tcp")
    with pytest.raises(gp.OptionError, match="is not encrypted: write tls://127"):
        gp.cluster(plain, tls=str(certs))
    with pytest.raises(gp.OptionError, match="no Dask scheduler answers at tcp://127"):
        gp.cluster(plain)


def test_a_scheduler_without_tls_is_told_from_one_that_is_away(certs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # what speaks first, and no TLS

        def greet() -> None:
            line, _ = server.accept()
            with line:
                line.sendall(b"\x20\x00\x00\x00\x00\x00\x00\x00" + 32 * b"x")
                line.recv(4096)

        side = threading.Thread(target=greet)
        side.start()
        port = server.getsockname()[1]
        with pytest.raises(gp.OptionError, match="no TLS is spoken at tls://127"):
            gp.cluster(f"tls://127.0.0.1:{port}", tls=str(certs))
        side.join()


def test_the_doctor_says_no_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], certs: Path
) -> None:
    assert geopatch("doctor", "--tls", str(certs)) == 2
    assert "already, which may be in use" in capsys.readouterr().err
    assert geopatch("doctor", str(tmp_path / "x.zarr"), "--tls", str(tmp_path / "new")) == 2
    assert "makes certificates and looks at nothing" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
