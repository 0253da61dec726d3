"""Signed repositories to test with: small packs of random parts, and a web server that can be made to misbehave."""

import hashlib
import random
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

from agent.protocol.pack_manifest import Base, PackManifest, Part, Selection, dump_pack_manifest
from agent.repository.keys import make_keys
from agent.repository.publishing import publish

DAY_S = 86_400.0
NOW_S = 1_800_000_000.0  # 2027-01-15, after this was built
MODEL = "all-MiniLM-L6-v2"


def make_pack(
    folder: Path,
    version: str,
    *,
    sizes: tuple[int, ...] = (50_000, 3),
    base: PackManifest | None = None,
    model: str = MODEL,
    categories: tuple[str, ...] = (),
    seed: str = "",
) -> PackManifest:
    """A pack as `corpus pack` makes it, but for what is in its parts. The same arguments make the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = ["changes.db" if base else "papers.db", *(f"model/{number}" for number in range(1, len(sizes)))]
    parts = []
    for path, size in zip(paths, sizes, strict=True):
        content = random.Random(f"{version} {path} {model} {categories} {bool(base)} {seed}").randbytes(size)
        name, digest = f"{path.replace('/', '-')}.zst", hashlib.sha256(content).hexdigest()
        (folder / name).write_bytes(content)
        parts.append(Part(name, size, digest, path, size, digest))
    manifest = PackManifest(
        version=version,
        model=model,
        dimensions=384,
        papers=1,
        embedded=1,
        contents=hashlib.sha256(f"{version} {model} {categories} {seed}".encode()).hexdigest(),
        selection=Selection(categories=categories),
        base=Base(base.version, base.contents) if base else None,
        parts=tuple(parts),
    )
    (folder / "manifest.json").write_bytes(dump_pack_manifest(manifest))
    return manifest


class Publisher:
    """Keys, a repository, and a clock that stands until it is moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.repository = folder / "repository"
        self.now_s = NOW_S
        make_keys(self.keys, clock=self.clock)

    def clock(self) -> float:
        return self.now_s

    @property
    def root(self) -> bytes:
        """What devices are given to begin with."""
        return (self.keys / "1.root.json").read_bytes()

    def publish(self, version: str, channel: str = "stable", **pack: object) -> PackManifest:
        folder = self.folder / "packs" / f"{channel}-{version}-{len(list(self.folder.glob('packs/*')))}"
        manifest = make_pack(folder, version, **pack)
        publish(self.repository, folder, self.keys, clock=self.clock, channel=channel)
        return manifest


class Server:
    """A folder over HTTP or HTTPS, with Range; what goes wrong is set while it runs, for paths that hold `about`."""

    def __init__(self, folder: Path, *, tls: trustme.CA | None = None) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        """Bytes of bodies, of all answers."""
        self.about = "parts/"
        self.cut_after: list[int] = []
        """Each is used for one answer."""
        self.status: list[int] = []
        self.ranges = True
        self.endless = False
        self.block = 1 << 16
        self.pause_s = 0.0
        """After each block."""
        self.head_pause_s = 0.0
        """After each byte of the answer's head."""
        self.redirect: list[str] = []
        """Where to, for one answer each, which has a body without end."""
        self.chunk_heads_drip = False
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is what we are here for."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        scheme = "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.issue_cert("127.0.0.1").configure_cert(context)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        concerned = self.about in handler.path
        handler.close_connection = True
        path = self.folder / handler.path.lstrip("/")
        if concerned and self.status:
            handler.send_error(self.status.pop(0))
        elif concerned and self.redirect:
            head = f"HTTP/1.1 302 Found\r\nLocation: {self.redirect.pop(0)}\r\n\r\n"
            handler.wfile.write(head.encode())
            self._send(handler, bytes(self.block), endless=True)
        elif concerned and self.chunk_heads_drip:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
            self._send(handler, b"x", endless=True)
        elif path.is_file():
            self._serve(handler, path.read_bytes(), wanted if self.ranges else None, concerned=concerned)
        else:
            handler.send_error(404)

    def _serve(self, handler: BaseHTTPRequestHandler, content: bytes, wanted: str | None, *, concerned: bool) -> None:
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and start >= len(content):
            handler.send_error(416)
            return
        head = f"HTTP/1.1 {206 if start else 200} OK\r\nConnection: close\r\n"
        if start:
            head += f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\n"
        body = content[start:]
        if not (concerned and self.endless):
            head += f"Content-Length: {len(body)}\r\n"
        drip_s = self.head_pause_s if concerned else 0.0
        for line in (bytes([byte]) for byte in head.encode()) if drip_s else (head.encode(),):
            handler.wfile.write(line)
            if drip_s and self.closing.wait(drip_s):
                return
        handler.wfile.write(b"\r\n")
        if concerned and self.cut_after:
            body = body[: self.cut_after.pop(0)]
        self._send(handler, body, endless=concerned and self.endless, pause_s=self.pause_s if concerned else 0.0)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, *, endless: bool, pause_s: float = 0.01) -> None:
        while True:
            for offset in range(0, len(body), self.block):
                block = body[offset : offset + self.block]
                handler.wfile.write(block)
                self.sent += len(block)
                if pause_s and self.closing.wait(pause_s):
                    return
            if not endless:
                return

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def serving(folder: Path, *, tls: trustme.CA | None = None) -> Iterator[Server]:
    server = Server(folder, tls=tls)
    try:
        yield server
    finally:
        server.close()
