"""The server of `vllm_double` as a process of its own.

It answers requests to generate, and looks up the files of the weights that it must reload. `/server_info`
returns the path and size of those files.
"""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vllm_double import Double, handler


class Served(Double):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._read: dict[str, int] = {}

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": self._name, "max_model_len": 4096}]}
        if path == "/collective_rpc" and body["method"] == "reload_weights":
            folder = Path(body["kwargs"]["weights_path"])
            self._read = {str(file): file.stat().st_size for file in folder.glob("*.safetensors")}
        if path == "/server_info":
            return {"read": self._read}
        return super().answer(path, body)


def main() -> None:
    given = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    server = ThreadingHTTPServer(
        (given["--host"], int(given["--port"])), handler(Served(given["--served-model-name"]))
    )
    server.serve_forever(poll_interval=0.05)


main()
