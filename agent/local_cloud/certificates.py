"""The local cloud's certificates: its own CA, one for the server, one for each thing. Made once, kept as PEM files."""

import os
import ssl
from pathlib import Path
from typing import Final

import trustme

from agent.protocol.limits import ALPN

SERVER_NAMES: Final = ("localhost", "127.0.0.1")


class Authority:
    """The CA of one folder: `ca.pem`, its key, and the server's certificate and key beside them."""

    def __init__(self, folder: Path) -> None:
        """Read the CA of `folder`, or make one."""
        self.ca_file: Final = folder / "ca.pem"
        key_file = folder / "ca.key"
        if self.ca_file.is_file() and key_file.is_file():
            self._ca = trustme.CA.from_pem(self.ca_file.read_bytes(), key_file.read_bytes())
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._ca = trustme.CA(organization_name="arxplorer-agent local cloud")
            _write_secret(key_file, self._ca.private_key_pem.bytes())
            self.ca_file.write_bytes(self._ca.cert_pem.bytes())
        self._server_files: Final = (folder / "server.pem", folder / "server.key")
        if not all(file.is_file() for file in self._server_files):
            _write(self._ca.issue_cert(*SERVER_NAMES), *self._server_files)

    def issue(self, thing: str, certificate: Path, key: Path) -> None:
        """Make a client certificate and its key for a thing."""
        _write(self._ca.issue_cert(common_name=thing), certificate, key)

    def server_context(self) -> ssl.SSLContext:
        """Mutual TLS as IoT Core wants it: 1.2 at least, a certificate of this CA, and SNI that names the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._server_files)
        context.load_verify_locations(self.ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([ALPN])
        context.sni_callback = _check_server_name
        return context


def _check_server_name(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int | None:
    return None if name in SERVER_NAMES else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


def _write(issued: trustme.LeafCert, certificate: Path, key: Path) -> None:
    _write_secret(key, issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))


def _write_secret(file: Path, content: bytes) -> None:
    """Never readable by others, not even for a moment."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
