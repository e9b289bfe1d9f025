"""Settings of the inference engine and of clusters."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from selfplay.settings.base import Section
from selfplay.settings.playing import part

# Arguments of a vLLM server that settings decide, so that nothing contradicts them -> what decides.
OWN_OPTIONS = {
    "--model": "policy.model",
    "--host": "selfplay: servers of our own are reached from this machine alone",
    "--port": "selfplay, which takes a free one",
    "--dtype": "engine.dtype",
    "--max-model-len": "agent.context_tokens",
    "--max-num-seqs": "engine.max_batch",
    "--gpu-memory-utilization": "engine.gpu_memory",
    "--kv-cache-memory-bytes": "engine.cache_mb",
    "--served-model-name": "selfplay",
    "--generation-config": "selfplay: a model's own filters would make the importance ratio untrue",
    "--override-generation-config": "selfplay: a filter would make the importance ratio untrue",
    "--logits-processors": "selfplay: they would make the importance ratio untrue",
    "--weight-transfer-config": "engine.sync",
    "--logprobs-mode": "selfplay: log-probabilities are those at temperature 1",
}
VLLM_ONLY = ("servers", "urls", "gpu_memory", "options", "sync")


class EngineSettings(Section):
    """What generates the policy's tokens. Settings from `servers` on are for vllm only, but for `dtype`."""

    type: Annotated[str, part("engine.type")] = "auto"
    """"hf": transformers in this process; "vllm": servers; "scripted": the teacher plays both roles. "auto":
    vllm on a CPU if it is installed and the policy has more than 200M parameters, else hf.
    """

    max_batch: int = Field(32, ge=1)
    """Requests that run at the same time, in each server."""

    cache_mb: int = Field(1024, ge=0)
    """hf: memory for conversations that wait for their next turn, MiB.

    A vllm server on a CPU: all of its cache, MiB.
    """

    servers: int = Field(1, ge=1)
    """Servers that the run starts and watches on this machine."""

    urls: tuple[str, ...] = ()
    """Servers that run already, in place of our own."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and matrix products. "auto": bfloat16 on a GPU, and on a CPU that multiplies it in
    hardware if the policy has more than 20M parameters; else float32.
    """

    gpu_memory: float = Field(0.8, gt=0, le=1)
    """Share of a GPU's memory that a server takes."""

    options: tuple[str, ...] = ()
    """More arguments of each server, for instance ["--tensor-parallel-size=8"]."""

    start_timeout_s: float = Field(600, gt=0)
    """Time limit of a server's start, seconds."""

    request_timeout_s: float = Field(1800, gt=0)
    """Time limit of one generation request, seconds."""

    sync: Literal["files", "nccl", "ipc", "gloo"] = "files"
    """How new weights reach servers: "files": files in memory; else directly from the trainer's processes."""

    sync_timeout_s: float = Field(300, gt=0)
    """Time limit of each call to a server while it takes new weights, seconds."""

    @field_validator("urls")
    @classmethod
    def _are_servers(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and parts.netloc and parts.path in ("", "/")
            if not is_address or parts.query:
                raise ValueError(
                    f"{url!r} is not the address of a server, for instance http://127.0.0.1:8000"
                )
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("names a server twice")
        return urls

    @field_validator("options")
    @classmethod
    def _are_free(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            name = option.partition("=")[0]
            if instead := OWN_OPTIONS.get(name):
                raise ValueError(f"{name} is set by {instead}")
        return options

    @model_validator(mode="after")
    def _belong_together(self) -> EngineSettings:
        changed = self.model_fields_set & set(VLLM_ONLY)
        if self.type != "vllm" and any(
            getattr(self, n) != type(self).model_fields[n].default for n in changed
        ):
            raise ValueError(f"{sorted(changed)} mean something only with engine.type = 'vllm'")
        if self.urls and self.servers != 1:
            raise ValueError(
                "engine.servers counts servers of our own, and engine.urls names others; set one of the two"
            )
        if self.urls and self.sync != "files":
            raise ValueError(
                f"engine.sync = {self.sync!r} is for servers of our own: "
                "one that a broken transfer leaves behind is started anew"
            )
        if self.urls and self.options:
            raise ValueError("engine.options are for servers of our own; those of engine.urls run already")
        return self


class NodeSettings(Section):
    """Machines of one kind."""

    count: int = Field(1, ge=1)
    """How many there are."""

    gpus: int = Field(0, ge=0)
    """GPUs of each machine."""

    gpu_gib: float = Field(0, ge=0)
    """Memory of each GPU, GiB."""

    cpus: int = Field(ge=1)
    """CPU cores of each machine."""

    memory_gib: float = Field(gt=0)
    """Main memory of each machine, GiB."""

    @model_validator(mode="after")
    def _gpus_have_memory(self) -> NodeSettings:
        if bool(self.gpus) != bool(self.gpu_gib):
            raise ValueError("gpus and gpu_gib (the memory of each) go together")
        return self


class ClusterSettings(Section):
    """Runs on Ray (`--cluster`), and plans of them (`--dry-run`)."""

    nodes: tuple[NodeSettings, ...] = ()
    """Machines that --dry-run plans for without --cluster; empty: this machine."""

    action_share: float = Field(0.3, gt=0, le=1)
    """Share of an episode's tokens that the policy wrote. Only those need the head's memory."""

    share_gpus: bool = False
    """A trainer rank and a rollout server share a GPU; engine.gpu_memory is the server's share."""

    restarts: int = Field(3, ge=0)
    """Losses of a trainer rank or its node, in a row without a finished update, after which the run stops."""
