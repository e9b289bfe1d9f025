"""HTTP calls to one vLLM server, each with a deadline, and the addresses that servers use.

It starts no server and knows no weights.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3

from selfplay.errors import EngineError, ServerLost

_CONNECT_S = 10.0
_WAITING_REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class Client:
    """HTTP to one server. Raises ServerLost if it does not answer, EngineError if it refuses a call."""

    def __init__(self, name: str, url: str, connections: int = 64) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=connections, retries=False)

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, deadline_s: float
    ) -> Any:
        """Make one call and return the answer's JSON, or its text if it is not JSON."""
        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._send(method, path, data, deadline_s)
        except urllib3.exceptions.NewConnectionError as error:  # a subclass of urllib3's TimeoutError
            raise ServerLost(
                f"{self.name} ({self.url}) was not reached for {method} {path}: {error}"
            ) from error
        except urllib3.exceptions.TimeoutError as error:
            raise ServerLost(
                f"{self.name} ({self.url}) did not answer {method} {path} within {deadline_s:g} s"
            ) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerLost(f"{self.name} ({self.url}) broke off {method} {path}: {error}") from error
        text = answer.data.decode("utf-8", "replace")
        if answer.status >= 500:
            raise ServerLost(
                f"{self.name} ({self.url}) failed at {method} {path}: {answer.status} {text[:300]}"
            )
        if answer.status >= 400:
            raise EngineError(
                f"{self.name} ({self.url}) refuses {method} {path}: {answer.status} {_message(text)}"
            )
        try:
            return json.loads(text) if text.strip() else None
        except json.JSONDecodeError:
            return text

    def _send(
        self, method: str, path: str, data: bytes | None, deadline_s: float
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=min(_CONNECT_S, deadline_s), read=deadline_s)

        def send() -> urllib3.BaseHTTPResponse:
            headers = {"Content-Type": "application/json"}
            return self._pool.request(method, self.url + path, body=data, headers=headers, timeout=timeout)

        try:
            return send()
        except urllib3.exceptions.ProtocolError:  # the server may have closed an idle connection
            return send()  # every call of ours may be repeated

    def requests(self, deadline_s: float) -> float:
        """Return the server's own count of running and waiting requests. Raises what `call` raises."""
        text = str(self.call("GET", "/metrics", deadline_s=deadline_s))
        return sum(float(value) for value in _WAITING_REQUESTS.findall(text))

    def bring(self, folder: Path) -> Path:
        """Return the path under which the server finds the content of `folder`.

        For a server on another machine a subclass copies the folder there. Raises ServerLost if that fails.
        """
        return folder

    def close(self) -> None:
        self._pool.clear()


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:500]
    except (json.JSONDecodeError, KeyError, TypeError):
        return text[:500]


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def own_address(towards: str) -> str:
    """Return the address at which the machine `towards` reaches this one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 1))  # sends nothing
        return str(probe.getsockname()[0])
