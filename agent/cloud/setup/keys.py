"""The device's private key and what is made from it: the request for a certificate, and whether a certificate fits.

The key is made here and stays here: only the request, which holds its public half, leaves the device.
"""

import hashlib
import re
import ssl
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from agent.errors import AgentError

MAX_COMMON_NAME: Final = 64
"""RFC 5280, ub-common-name. AWS knows the device by the thing that the certificate is attached to, not by this."""
_CERTIFICATE: Final = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""The kinds that AWS IoT Core signs certificates for."""


class DeviceCertificate(NamedTuple):
    """A certificate; AWS knows it by the SHA-256 of its DER form."""

    pem: str
    id: str
    expires: datetime
    public_key: bytes

    @classmethod
    def read(cls, pem: str) -> "DeviceCertificate | None":
        """The first certificate of a PEM text; None if there is none."""
        try:
            found = x509.load_pem_x509_certificate(pem.encode())
            key = _public_bytes(found.public_key())
        except (ValueError, UnsupportedAlgorithm):
            return None
        return cls(pem, found.fingerprint(hashes.SHA256()).hex(), found.not_valid_after_utc, key)

    def fits(self, key: PrivateKey) -> bool:
        """Whether the device can use it: it is of this key, and has not expired."""
        return self.public_key == _public_bytes(key.public_key()) and self.expires > datetime.now(UTC)


def new_key() -> PrivateKey:
    """P-256: a connection costs a small device far less than with RSA."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, serialization.NoEncryption())


def read_key(pem: bytes, name: str) -> PrivateKey:
    """Read a key from the file `name`. Raises AgentError for what is none, or none that can be used."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = "needs a passphrase" if isinstance(error, TypeError) else "holds no private key"
        raise AgentError(f"{name} {reason}", hint="move it away, and a new key is made") from error
    if not isinstance(key, PrivateKey):
        raise AgentError(f"{name} is neither an EC nor an RSA key", hint="move it away, and a new key is made")
    return key


def signing_request(key: PrivateKey, thing_name: str) -> str:
    """A certificate signing request in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, thing_name[:MAX_COMMON_NAME])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def fingerprints(pem: str) -> set[str]:
    """SHA-256 of every certificate in a PEM text, as hexadecimal digits; empty if it is not one.

    A bundle may hold some that are old and odd, hence nothing but their envelopes is read.
    """
    try:
        return {hashlib.sha256(ssl.PEM_cert_to_DER_cert(one)).hexdigest() for one in _CERTIFICATE.findall(pem)}
    except ValueError:
        return set()


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return b""  # of a kind that no key of ours has
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, info)
