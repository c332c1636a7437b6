"""Encrypted connections: who has a certificate of the authority is in, everybody else is out.

::

    certs/ca.pem     the authority             all of scheduler, workers and client have it
    certs/cert.pem   a certificate it signed   shown to the other side, by each of them
    certs/key.pem    the key of that           0600; whoever has it can run code on the cluster

Both sides of a connection show their certificate.  Dask compares it with the authority, not with
the name of the host, so one certificate may serve for all machines of a cluster.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distributed import Security

from geopatch_dask.clusters.options import optional
from geopatch_dask.errors import OptionError

__all__ = ["CA", "CERTIFICATE", "KEY", "check_handshake", "make_certificates", "security"]

#: Files of a folder of certificates.
CA, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"

#: Days that certificates for tests are valid.
VALID = 365
#: Seconds for a handshake.
TIMEOUT = 5.0


def security(folder: str | os.PathLike[str]) -> Security:
    """What Dask needs to know of a folder of certificates.

    Parameters
    ----------
    folder : path
        With ``ca.pem``, ``cert.pem`` and ``key.pem``.

    Returns
    -------
    distributed.Security
        It names the files; keys are read where connections are made, and never sent.

    Raises
    ------
    OptionError
        When a file is missing or unreadable, or key and certificate do not belong together.
    """
    place = Path(folder).expanduser().absolute()
    files = {name: place / name for name in (CA, CERTIFICATE, KEY)}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise OptionError(
            f"tls: {place} has no {', '.join(missing)}; `geopatch doctor --tls FOLDER` makes a "
            "set for tests"
        )
    ca, certificate, key = (str(file) for file in files.values())
    found = Security(
        require_encryption=True,
        tls_ca_file=ca,
        tls_client_cert=certificate,
        tls_client_key=key,
        tls_scheduler_cert=certificate,
        tls_scheduler_key=key,
        tls_worker_cert=certificate,
        tls_worker_key=key,
    )
    try:
        found.get_connection_args("client")
    except (ssl.SSLError, OSError) as error:
        raise OptionError(
            f"tls: the certificates in {place} cannot be used ({error}): {CERTIFICATE} and {KEY} "
            f"must belong together, readable by you, and {CA} be the authority that signed"
        ) from None
    return found


def check_handshake(address: str, certificates: Security | None) -> None:
    """Shake hands with a scheduler once, to learn why it would not talk to us.

    A host that does not answer is no matter of this: it may be starting.

    Parameters
    ----------
    address : str
        As in ``tls://host:8786``.
    certificates : distributed.Security or None
        None: those of Dask's configuration.

    Raises
    ------
    OptionError
        When there are no certificates, it is not TLS that is spoken there, its certificate is not
        of our authority, or it refuses ours.
    """
    context = _context(address, certificates or Security())
    where = urlsplit(address)
    try:
        plain = socket.create_connection((where.hostname or "", where.port or 8786), TIMEOUT)
    except (OSError, ValueError):
        return
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=where.hostname) as line:
                line.recv(1)  # only now does a server of TLS 1.3 say that it refuses us
        except ssl.SSLError as error:
            raise OptionError(_refusal(address, error)) from None
        except OSError:
            return


def _context(address: str, certificates: Security) -> ssl.SSLContext:
    context = certificates.get_connection_args("client").get("ssl_context")
    if not isinstance(context, ssl.SSLContext):
        raise OptionError(
            f"{address} needs certificates: give tls='folder' with {CA}, {CERTIFICATE} and {KEY}"
        )
    return context


def _refusal(address: str, error: ssl.SSLError) -> str:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the scheduler at {address} has a certificate of another authority than our {CA} "
            f"({error.verify_message}): give the folder with which it was started"
        )
    if "alert" in reason:
        return (
            f"the scheduler at {address} refuses our certificate ({reason}): give the folder of "
            "certificates of its authority"
        )
    return f"no TLS is spoken at {address} ({reason}): is it a scheduler started without, tcp://?"


def make_certificates(folder: str | os.PathLike[str]) -> list[Path]:
    """Make an authority, a certificate and its key; for tests, or a cluster of one person.

    The authority's own key is not kept: nobody can sign a second certificate.

    Parameters
    ----------
    folder : path
        Is made, for its owner only.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OptionError
        When one of the files is there already, the folder cannot be written, or the package
        ``cryptography`` is absent.
    """
    place = Path(folder).expanduser()
    there = [name for name in (CA, CERTIFICATE, KEY) if (place / name).exists()]
    if there:
        raise OptionError(
            f"{place} has {', '.join(there)} already, which may be in use: name another folder"
        )
    texts = _signed()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in texts.items():
            mode = 0o600 if name == KEY else 0o644
            handle = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "wb") as file:
                file.write(text)
    except OSError as error:
        raise OptionError(f"{place} cannot be written: {error.strerror}") from None
    return [place / name for name in texts]


def _signed() -> dict[str, bytes]:
    """Contents of the three files."""
    x509 = optional("cryptography.x509", "tls", "tls")
    ec = optional("cryptography.hazmat.primitives.asymmetric.ec", "tls", "tls")
    plain = optional("cryptography.hazmat.primitives.serialization", "tls", "tls")
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _name(x509, "geopatch test authority")
    ca = _builder(x509, root, root, authority.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    # Some readers insist on these where Python 3.13 verifies strictly.
    ids = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    ca = ca.add_extension(ids, critical=False).add_extension(_usage(x509, ca=True), critical=True)
    cert = _builder(x509, _name(x509, "geopatch test"), root, key.public_key())
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    purposes = x509.oid.ExtendedKeyUsageOID
    both = x509.ExtendedKeyUsage([purposes.SERVER_AUTH, purposes.CLIENT_AUTH])
    for extension in (signer, both, x509.SubjectAlternativeName(_names(x509))):
        cert = cert.add_extension(extension, critical=False)
    sha = optional("cryptography.hazmat.primitives.hashes", "tls", "tls").SHA256()
    pem = plain.Encoding.PEM
    secret = key.private_bytes(pem, plain.PrivateFormat.PKCS8, plain.NoEncryption())
    return {
        CA: ca.sign(authority, sha).public_bytes(pem),
        CERTIFICATE: cert.sign(authority, sha).public_bytes(pem),
        KEY: secret,
    }


def _name(x509: Any, text: str) -> Any:
    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text)])


def _names(x509: Any) -> list[Any]:
    """This machine, by all of its names."""
    names = [x509.DNSName(name) for name in dict.fromkeys(["localhost", socket.gethostname()])]
    loopback = [ipaddress.ip_address(text) for text in ("127.0.0.1", "::1")]
    return [*names, *(x509.IPAddress(address) for address in loopback)]


def _builder(x509: Any, subject: Any, issuer: Any, public: Any) -> Any:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=VALID))
    )


def _usage(x509: Any, ca: bool) -> Any:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
