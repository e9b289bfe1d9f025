"""vLLM servers: started and ended by us, or external and given by URL.

Knows nothing of weights or of routing. Invariant: a server that we started never outlives this process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from selfplay.engines import process_keeper
from selfplay.engines.vllm_client import Client, free_port
from selfplay.engines.vllm_launch import OWNER_VARIABLE, Launch, command, variables
from selfplay.engines.vllm_log import explain
from selfplay.errors import EngineError, ServerLost
from selfplay.sandbox.owners import abandoned

_POLL_S = 0.1
_TAIL_BYTES = 200_000


def sweep() -> list[int]:
    """End server processes whose owner was killed together with the keeper. Returns their process ids."""
    ended = []
    prefix = f"{OWNER_VARIABLE}=".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")
            owners = [entry.removeprefix(prefix).decode() for entry in entries if entry.startswith(prefix)]
            if owners and abandoned(owners[0]) and int(folder.name) != os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)
                ended.append(int(folder.name))
        except (OSError, ValueError):
            continue  # the process ended meanwhile, or belongs to another user
    return ended


class OwnServer:
    """A server that we start and end, with all its child processes."""

    def __init__(self, name: str, launch: Launch, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start the server and wait until it answers. Raises EngineError with the reason if it does not
        start.

        is_cancelled: called repeatedly during the start, which takes long; True gives up.
        """
        self.name = name
        self._launch = launch
        self.port = launch.port or free_port(launch.host)
        folder = launch.logs or Path(tempfile.mkdtemp(prefix="selfplay-vllm-"))
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{name}-{self.port}.log"
        self.client = Client(name, f"http://{launch.host}:{self.port}", launch.max_batch + 8)
        self._model_name = f"policy-{secrets.token_hex(4)}"
        started = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    process_keeper.__file__,
                    *command(launch, self.port, self._model_name),
                ],
                stdin=subprocess.PIPE,  # when it closes, the keeper knows that this process ended
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables(launch),
                # Ctrl-C reaches this process alone, which then ends its servers in order.
                start_new_session=True,
            )
        try:
            self._wait_until_ready(started + launch.start_timeout_s, is_cancelled)
        except BaseException:
            self.close()
            raise
        self.start_s = time.monotonic() - started

    def _wait_until_ready(self, end: float, is_cancelled: Callable[[], bool]) -> None:
        while True:
            if is_cancelled():
                raise EngineError(f"{self.name} was closed while it started.")
            if not self.is_running:
                raise EngineError(f"vLLM ended while it started ({self.log}): {explain(self.log_tail())}")
            if time.monotonic() > end:
                raise EngineError(
                    f"vLLM was not ready after {self._launch.start_timeout_s:g} s. Last line of its log "
                    f"({self.log}): {self.log_tail().strip().splitlines()[-1:]}. "
                    "Raise engine.start_timeout_s."
                )
            try:
                self.client.call("GET", "/health", deadline_s=5.0)
                if self._is_ours():
                    return
            except (EngineError, KeyError, TypeError):
                pass
            time.sleep(_POLL_S)

    def _is_ours(self) -> bool:
        """False if another program has taken the port and answers instead."""
        models = self.client.call("GET", "/v1/models", deadline_s=5.0)["data"]
        return any(model["id"] == self._model_name for model in models)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def log_tail(self) -> str:
        try:
            data = self.log.read_bytes()
        except OSError:
            return ""
        return data[-_TAIL_BYTES:].decode("utf-8", "replace")

    def close(self) -> None:
        """End the server and all its child processes."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.5 * process_keeper.GRACE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # If the keeper itself was killed, the server's processes still run; all are in its group.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.client.close()


class ExternalServer:
    """A server that runs already. We neither start nor end it."""

    def __init__(self, name: str, url: str, context_tokens: int, deadline_s: float = 30.0) -> None:
        """Raises EngineError if the server cannot be used for rollouts."""
        self.name = name
        self.client = Client(name, url)
        try:
            self.client.call("GET", "/health", deadline_s=deadline_s)
            models = self.client.call("GET", "/v1/models", deadline_s=deadline_s)["data"]
        except ServerLost as error:
            raise EngineError(f"{error}. Start it, or fix engine.urls.") from error
        longest = int(models[0].get("max_model_len") or context_tokens)
        if longest < context_tokens:
            raise EngineError(
                f"{url} takes {longest} tokens, agent.context_tokens is {context_tokens}. "
                f"Start it with --max-model-len {context_tokens}."
            )
        try:
            self.client.call("GET", "/weight_info", deadline_s=deadline_s)
        except EngineError as error:
            raise EngineError(
                f"{url} takes no new weights ({error}). "
                "Start it with VLLM_SERVER_DEV_MODE=1 in its environment."
            ) from error

    @property
    def is_running(self) -> bool:
        return True  # only its answers show whether it runs

    def log_tail(self) -> str:
        return ""

    def close(self) -> None:
        self.client.close()


class VllmServer(Protocol):
    """A server as the engine uses it, on this machine or another one."""

    name: str
    client: Client

    @property
    def is_running(self) -> bool:
        """Must return at once: the engine reads it every second."""
        ...

    def log_tail(self) -> str: ...

    def close(self) -> None:
        """End the processes that were started for it."""
        ...


# Starts a server. Arguments: its name, how to start it, and a function that returns True to give up.
# Raises EngineError with the reason if the server does not start.
OpenServer = Callable[[str, Launch, Callable[[], bool]], VllmServer]


@dataclass(frozen=True)
class ServerSet:
    """The servers of an engine: the external ones at `urls`, or else `count` servers that `open_server`
    starts.
    """

    count: int = 1
    urls: tuple[str, ...] = ()
    open_server: OpenServer = OwnServer  # by default on this machine


def describe_loss(server: VllmServer, loss: str) -> str:
    """Return the loss together with the reason from the server's own log."""
    tail = server.log_tail()
    return f"{loss}. Its log: {explain(tail)}" if tail else loss
