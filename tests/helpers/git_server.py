"""A git server over https with its own certificate, and a small Git LFS server beside each repository."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest


@contextmanager
def git_server(
    folder: Path, objects: dict[str, bytes], credentials: list[str] | None = None, padding: bytes = b""
) -> Iterator[tuple[str, Path]]:
    """Serve the repositories below `folder`, and `objects` by their SHA-256. Yields URL and certificate.

    credentials: takes those that requests to the Git LFS server bring. padding: ends each of its answers.
    """
    certificate, key = make_certificate(folder.parent)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def note_credentials(self) -> None:
            if credentials is not None and "Authorization" in self.headers:
                credentials.append(self.headers["Authorization"])

        def do_GET(self) -> None:
            if self.path.startswith("/objects/"):
                self.note_credentials()
                self.answer(200, "application/octet-stream", objects.get(self.path.rpartition("/")[2], b""))
            else:
                self.run_git(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self.path.endswith("/info/lfs/objects/batch"):
                self.run_git(body)
                return
            self.note_credentials()
            place = f"https://localhost:{self.server.server_address[1]}/objects"
            found = [
                {**item, "actions": {"download": {"href": f"{place}/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            content = json.dumps({"objects": found}).encode() + padding
            self.answer(200, "application/vnd.git-lfs+json", content)

        def run_git(self, body: bytes) -> None:
            parts = urlsplit(self.path)
            variables = {
                **os.environ,
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": parts.path,
                "QUERY_STRING": parts.query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            }
            done = subprocess.run(["git", "http-backend"], input=body, env=variables, capture_output=True)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
            status = int(fields.get("Status", "200").split()[0])
            self.answer(status, fields.get("Content-Type", "text/plain"), content)

        def answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}", certificate
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl was not found on PATH")
    certificate, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def lfs_pointer_to(content: bytes) -> bytes:
    """The pointer file that stands for a content in Git LFS."""
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
