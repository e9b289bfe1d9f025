"""Moves the trainer's weights into vLLM servers: by files in memory, or by vLLM's own weight transfer.

Requests wait during an update. `native_transfer` is the trainer's side of the transfer. Invariant: a server
that resumes holds all weights of one version, and caches nothing of another.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfplay.engines.vllm_client import Client
from selfplay.engines.vllm_engine import Lost
from selfplay.engines.vllm_launch import EXTENSION, REPACK
from selfplay.engines.vllm_requests import PATH
from selfplay.errors import EngineError, ServerLost, WeightSyncError
from selfplay.sandbox.owners import abandoned, unique_name
from selfplay.weights.checkpoint_names import CheckpointNames
from selfplay.weights.native_transfer import Backend, Receivers, SendReport
from selfplay.weights.verification import TOLERANCE, compare_digests, expected_logprobs

_MEMORY = Path("/dev/shm")
_SUFFIX = "-weights"
_SHARD_BYTES = 1 << 30  # upper bound of the tensors in memory while weights are gathered and written
_START_VERSION = "default"  # a server's name for the weights that it started with


class ServerSync:
    """The steps that all ways share: pause the server, replace its weights, empty its caches, resume.

    model: folder or id that the servers were started with. dtype: of the servers' weights. deadline_s: of
    each call to a server.
    """

    def __init__(self, model: str | Path, dtype: torch.dtype, deadline_s: float = 300.0) -> None:
        self._model, self._dtype, self._deadline_s = str(model), dtype, deadline_s
        self._source: Path | None = None  # folder of the current weights; None: those of the server's start
        self._version = 0

    def deliver(self, client: Client) -> dict[str, float]:
        """Let a server read the current weights from files, however the other servers got them."""
        started = time.monotonic()
        if self._source is None and self._has_start_weights(client):
            self._set_version(client)
            return {"sync/paused_seconds": 0.0}
        # After a reload from elsewhere a server no longer knows the folder that it started with.
        folder = str(client.bring(self._source)) if self._source else self._model
        reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}, "timeout": self._deadline_s}
        self._pause(client)
        paused = time.monotonic()
        # A failure from here on leaves the server paused: it may hold weights of two versions and must not
        # generate.
        self._call(client, "POST", "/collective_rpc", f"it to read {folder}", reload)
        self._resume(client)
        return {
            "sync/paused_seconds": time.monotonic() - paused,
            "sync/deliver_seconds": time.monotonic() - started,
        }

    def _has_start_weights(self, client: Client) -> bool:
        info = self._call(client, "GET", "/weight_info", "which weights it has")
        return bool(info["weight_version"] == _START_VERSION)

    def _pause(self, client: Client) -> None:
        self._call(client, "POST", "/pause?mode=keep&clear_cache=false", "the end of its running step")

    def _resume(self, client: Client) -> None:
        """Finish an update: repack the head if needed, set the version, empty the caches, resume requests."""
        if self._needs_repacking(client):
            self._call(client, "POST", "/collective_rpc", "it to pack its weights again", {"method": REPACK})
        self._set_version(client)
        self._empty_caches(client)
        self._call(client, "POST", "/resume", "it to resume")

    def _empty_caches(self, client: Client) -> None:
        """Drop all keys and values. Running requests compute theirs again with the new weights."""
        done = self._call(
            client,
            "POST",
            "/reset_prefix_cache?reset_running_requests=true",
            "its prefix cache to be emptied",
        )
        if not (done or {}).get("success"):
            raise WeightSyncError(
                f"{client.name} ({client.url}) keeps a prefix cache of older weights: {done}. "
                "Restart that server."
            )

    def verify(self, client: Client, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Compare digests of vectors, and the log-probabilities of a fixed prompt.

        See `WeightSync.verify`.
        """
        equal, wrong = compare_digests(self._checksums(client), weights, self._dtype)
        if wrong:
            raise WeightSyncError(
                f"{client.name} ({client.url}) holds other weights than the trainer: {wrong[:3]} of "
                f"{len(wrong) + equal} compared tensors. Trainer and servers must load the same model."
            )
        token_ids, expected = expected_logprobs(self._model, weights, self._dtype)
        logprobs = self._prompt_logprobs(client, token_ids)
        difference = float((logprobs - expected).abs().mean())
        tolerance = TOLERANCE[self._dtype]
        if not difference <= tolerance:
            raise WeightSyncError(
                f"{client.name} ({client.url}) computes other log-probabilities than the trainer's weights "
                f"do: {difference:.4g} apart on average over {len(expected)} tokens, {tolerance:g} is "
                f"allowed in {self._dtype}. It holds other weights, or computes wrongly. "
                f"(On a CPU, a tied head and experts need --worker-extension-cls {EXTENSION}.)"
            )
        return {"sync/rollout_logprob_diff": difference, "sync/equal_tensors": float(equal)}

    def close(self) -> None:
        pass

    def _with_each(
        self, clients: Sequence[Client], act: Callable[[Client], dict[str, float] | None]
    ) -> tuple[dict[str, float], Lost]:
        """Run `act` for all servers at once. Returns the largest metrics, and the servers that were lost.

        Other errors than ServerLost pass to the caller.
        """
        metrics: dict[str, float] = {}
        lost: dict[Client, ServerLost] = {}

        def attempt(client: Client) -> dict[str, float]:
            try:
                return act(client) or {}
            except ServerLost as loss:
                lost[client] = loss
                return {}

        with ThreadPoolExecutor(max(1, len(clients))) as pool:
            for own in pool.map(attempt, clients):
                for name, value in own.items():
                    metrics[name] = max(metrics.get(name, 0.0), value)
        return metrics, lost

    def _needs_repacking(self, client: Client) -> bool:
        """True if the server's workers have our extension.

        A call that they do not know would end the server.
        """
        settings = self._call(client, "GET", "/server_info?config_format=json", "its settings")
        return EXTENSION in json.dumps(settings)

    def _set_version(self, client: Client) -> None:
        self._call(
            client,
            "POST",
            "/update_weight_version",
            "its new version number",
            {"new_version": str(self._version)},
        )

    def _call(
        self, client: Client, method: str, path: str, waited_for: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return client.call(method, path, body, deadline_s=self._deadline_s)
        except ServerLost as loss:
            raise ServerLost(
                f"version {self._version}: the trainer waited for {waited_for}, and {loss}"
            ) from loss
        except EngineError as refusal:
            raise WeightSyncError(
                f"version {self._version}: the trainer waited for {waited_for}, and {refusal}"
            ) from refusal

    def _checksums(self, client: Client) -> Mapping[str, str]:
        checksums: Mapping[str, str] = self._call(
            client, "POST", "/weight_checker", "its checksums", {"action": "checksum"}
        )["checksums"]
        return checksums

    def _prompt_logprobs(self, client: Client, token_ids: list[int]) -> Tensor:
        sampling = {
            "temperature": 1.0,
            "max_tokens": 1,
            "prompt_logprobs": 0,
            "detokenize": False,
            "ignore_eos": True,
        }
        answer = self._call(
            client, "POST", PATH, "the probe", {"token_ids": token_ids, "sampling_params": sampling}
        )
        found = answer["prompt_logprobs"][1:]  # the first token has no prediction
        return torch.tensor([found[i][str(token)]["logprob"] for i, token in enumerate(token_ids[1:])])


class FileWeightSync(ServerSync):
    """See `WeightSync`. The run's process writes the weights to files, and each server reads them."""

    def __init__(
        self,
        model: str | Path,
        dtype: torch.dtype,
        deadline_s: float = 300.0,
        folder: Path | None = None,
        names: CheckpointNames | None = None,
    ) -> None:
        """folder: for the files.

        By default /dev/shm (memory), or a temporary folder if that is not writable. names: of the weights in
        checkpoints; None: the trainer's.
        """
        super().__init__(model, dtype, deadline_s)
        parent = folder or (_MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir()))
        for left in parent.glob(f"selfplay-*{_SUFFIX}"):
            if abandoned(left.name):  # memory of a killed run, which nothing else frees
                shutil.rmtree(left, ignore_errors=True)
        self._folder = parent / f"{unique_name()}{_SUFFIX}"
        self._folder.mkdir(mode=0o700)
        self._number = 0
        self._names = names

    def publish(
        self, weights: Mapping[str, Tensor], version: int, clients: Sequence[Client]
    ) -> tuple[dict[str, float], Lost]:
        written = self.write(weights, version)
        metrics, lost = self._with_each(clients, self.deliver)
        return written | metrics, lost

    def write(self, weights: Mapping[str, Tensor], version: int) -> dict[str, float]:
        """Write the weights that `deliver` gives to servers. Raises WeightSyncError if there is no room."""
        started = time.monotonic()
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        try:
            renamed = self._names.converted(weights) if self._names else weights.items()
            size = write_shards(renamed, folder, self._dtype)
        except (OSError, RuntimeError) as error:  # safetensors raises RuntimeError on a full disk
            shutil.rmtree(folder, ignore_errors=True)
            raise WeightSyncError(
                f"the weights of version {version} could not be written to {folder}: {error}. "
                f"Free memory there (df -h {folder})."
            ) from error
        previous, self._source, self._version = self._source, folder, version
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
        return {"sync/bytes": float(size), "sync/write_seconds": time.monotonic() - started}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class WeightSender(Protocol):
    """A trainer whose processes can send weights."""

    def send_weights(self, receivers: Receivers) -> SendReport: ...


class NativeWeightSync(ServerSync):
    """See `WeightSync`. The trainer's processes send the weights to all servers, past the run's process.

    A server that joins between two updates reads the current weights from `checkpoint()`, a Hugging Face
    model folder, since the trainer may be in a step then. When a transfer breaks off, all its servers count
    as lost: nobody knows what they hold.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: torch.dtype,
        backend: Backend,
        sender: WeightSender,
        checkpoint: Callable[[], Path | None],
        deadline_s: float = 300.0,
    ) -> None:
        super().__init__(model, dtype, deadline_s)
        self._backend, self._sender, self._checkpoint = backend, sender, checkpoint

    def publish(
        self, weights: Mapping[str, Tensor], version: int, clients: Sequence[Client]
    ) -> tuple[dict[str, float], Lost]:
        started = time.monotonic()
        self._version, self._source = version, self._checkpoint()
        metrics, lost = self._with_each(clients, self._pause)
        ready = [client for client in clients if client not in lost]
        if not ready:
            return metrics, lost
        paused = time.monotonic()
        urls = tuple(client.url for client in ready)
        report = self._sender.send_weights(
            Receivers(self._backend, urls, str(self._dtype).removeprefix("torch."), self._deadline_s)
        )
        if report.error:
            loss = ServerLost(
                f"version {version}: the transfer by {self._backend} broke off after {report.seconds:.1f} s. "
                f"{report.error}"
            )
            return metrics, {**lost, **dict.fromkeys(ready, loss)}
        more, lost_at_the_end = self._with_each(ready, self._resume)
        metrics |= more | {
            "sync/bytes": float(report.bytes),
            "sync/transfer_seconds": report.seconds,
            "sync/paused_seconds": time.monotonic() - paused,
            "sync/deliver_seconds": time.monotonic() - started,
        }
        return metrics, {**lost, **lost_at_the_end}


def write_shards(
    weights: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype, shard_bytes: int = _SHARD_BYTES
) -> int:
    """Write *.safetensors with an index, one shard in memory at a time. Returns the number of bytes."""
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    written = 0

    def flush() -> None:
        nonlocal written
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        written += (folder / name).stat().st_size
        shard.clear()

    for name, tensor in weights:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        shard[name] = tensor.detach().to("cpu", kind).contiguous()
        if sum(value.nbytes for value in shard.values()) >= shard_bytes:
            flush()
    if shard:
        flush()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": written}, "weight_map": index})
    )
    return written
