"""The device's certificate, its private key and the root CA: found usable, or the reason in words."""

import datetime as dt
import stat
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from agent.config import Certificates
from agent.errors import ConfigError

SECTION: Final = "aws_iot.certificates"
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
EARLIEST: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""Before this was written: a clock that says so has not been set."""

Parsed = TypeVar("Parsed")


def check_identity(certificates: Certificates, now: dt.datetime) -> None:
    """Raises ConfigError naming the file's key when a connection with these files could not succeed at this time."""
    read_certificate(certificates.ca_cert, "ca_cert", what="the root CA certificate")
    certificate = read_certificate(certificates.cert_file, "cert_file", what="the device's certificate")
    check_private_key(Path(certificates.private_key), certificate)
    if now < EARLIEST:
        raise ConfigError(
            f"the clock says {now:%Y-%m-%d}, so no certificate is valid yet: it has not been set",
            hint="timedatectl shows it; with a network it sets itself, and the connection is then made",
        )
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{certificates.cert_file} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} on, "
            f"and the clock says {now:%Y-%m-%d}",
            path=f"{SECTION}.cert_file",
            hint="timedatectl shows the clock",
        )
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"{certificates.cert_file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}",
            path=f"{SECTION}.cert_file",
            hint="get a new one: arxplorer-agent cloud setup",
        )


def read_certificate(file: str, key: str, *, what: str) -> x509.Certificate:
    """The first certificate of a PEM file. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(_content(file, key, what))
    except ValueError as error:
        raise ConfigError(f"{file} is no certificate in PEM format", path=f"{SECTION}.{key}") from error


def check_private_key(file: Path, certificate: x509.Certificate) -> None:
    """Raises ConfigError for a key that is missing, open to others, unreadable, or another certificate's."""
    path = f"{SECTION}.private_key"
    content = _content(str(file), "private_key", "the device's private key")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & OTHERS:
        raise ConfigError(
            f"{file} may be used by others (mode {mode:03o}); only its owner may read a private key",
            path=path,
            hint=f"chmod 600 {file}",
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it wants a password
        raise ConfigError(f"{file} is no private key in PEM format without a password", path=path) from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise ConfigError(f"{file} is not the key of the certificate in {SECTION}.cert_file", path=path)


def _content(file: str, key: str, what: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{what}, {file}, cannot be read: {error.strerror}",
            path=f"{SECTION}.{key}",
            hint="arxplorer-agent cloud setup makes what is missing",
        ) from error
