"""A small HTTP server that answers as a vLLM server does, and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STOP = 2


@dataclass
class Double:
    """faults: path -> "die" (close the connection), "hang", a status, or a JSON value to answer."""

    url: str = ""
    version: str = "default"
    faults: dict[str, Any] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "policy", "max_model_len": 4096}]}
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/inference/v1/generate":
            self.bodies.append(body)
            return generated([11 + body["sampling_params"]["seed"] % 7, 12, STOP], self.version)
        return {}


def generated(token_ids: list[int], version: str = "0") -> dict[str, Any]:
    content = [{"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": []} for token in token_ids]
    spans = [{"version": version, "start": 0, "end": len(token_ids)}]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "token_ids": token_ids,
        "logprobs": {"content": content},
        "weight_versions": spans,
    }
    return {"choices": [choice], "usage": {"prompt_tokens_details": {"cached_tokens": 3}}}


def handler(double: Double) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            path = self.path.partition("?")[0]
            double.calls.append(path)
            fault = double.faults.get(path)
            if fault == "die":
                self.close_connection = True
                return
            if fault == "hang":
                double.release.wait(20)
                self.close_connection = True
                return
            status, answer = (
                (fault, {"error": {"message": "no such thing"}}) if isinstance(fault, int) else (200, fault)
            )
            data = json.dumps(double.answer(path, body) if fault is None else answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def doubles(count: int) -> Iterator[list[Double]]:
    made = [Double() for _ in range(count)]
    servers = []
    for double in made:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(double))
        server.daemon_threads = True
        double.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
    try:
        yield made
    finally:
        for double in made:
            double.release.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def wait_until(claim: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
