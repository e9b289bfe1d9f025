"""The trainer's weights into vLLM servers: by files in memory, reloaded in place while requests wait, or by vLLM's own transfer.

Leaves what the trainer's processes do for the latter to native_transfer. Invariant: a server that goes on holds one version whole, and
nothing cached of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfplay.engines.vllm_engine import Lost, WeightSync
from selfplay.engines.vllm_requests import PATH
from selfplay.engines.vllm_servers import EXTENSION, REPACK, Client
from selfplay.errors import EngineError, ServerLost, WeightSyncError
from selfplay.sandbox.owners import abandoned, unique_name
from selfplay.weights.native_transfer import Backend, Receivers, SendReport

__all__ = ["FileWeightSync", "NativeWeightSync", "WeightSync"]

_MEMORY = Path("/dev/shm")
_SUFFIX = "-weights"
_SHARD_BYTES = (
    1 << 30
)  # of the trainer's tensors held beside the files, where they are gathered as they are read
_UNTOUCHED = "default"  # what a server calls the weights of its start
_PROBE_TOKENS = 64
# Mean distance of the probe's log-probabilities to a transformers pass in fp32 over the same weights. Measured on the carried policy:
# docs/log.md; a wrong layer, a wrong name or old weights after a real update of a few percent are far outside.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class ServerSync:
    """What every way has in common: a server stands still, takes the weights, forgets what older ones computed, and goes on.

    model: folder or id of what the servers were started with. deadline_s: of every single call to a server.
    """

    def __init__(self, model: str | Path, dtype: torch.dtype, deadline_s: float = 300.0) -> None:
        self._model, self._dtype, self._deadline_s = str(model), dtype, deadline_s
        self._source: Path | None = (
            None  # the weights of the present version, as a folder; None: those of the server's start
        )
        self._version = 0

    def deliver(self, client: Client) -> dict[str, float]:
        """By files, which a server that was started anew takes whatever brings weights to the others."""
        started = time.monotonic()
        if (
            self._source is None
            and self._call(client, "GET", "/weight_info", "which weights it has")["weight_version"]
            == _UNTOUCHED
        ):
            self._label(client)  # what it was started with is what is wanted
            return {"sync/paused_seconds": 0.0}
        # A server forgets what it was started with once it was told another place.
        where = str(client.bring(self._source)) if self._source else self._model
        reload = {"method": "reload_weights", "kwargs": {"weights_path": where}, "timeout": self._deadline_s}
        self._pause(client)
        paused = time.monotonic()
        # Whatever fails from here on leaves the server paused: it may hold a mixture, and no token may come from that.
        self._call(client, "POST", "/collective_rpc", f"it to read {where}", reload)
        self._go_on(client)
        return {
            "sync/paused_seconds": time.monotonic() - paused,
            "sync/deliver_seconds": time.monotonic() - started,
        }

    def _pause(self, client: Client) -> None:
        self._call(client, "POST", "/pause?mode=keep&clear_cache=false", "the end of its running step")

    def _go_on(self, client: Client) -> None:
        """With new weights, and with nothing that older ones computed."""
        if self._repacks(client):
            self._call(client, "POST", "/collective_rpc", "it to pack its head anew", {"method": REPACK})
        self._label(client)
        self.forget(client)
        self._call(client, "POST", "/resume", "it to go on")

    def forget(self, client: Client) -> None:
        """Nothing that was computed before stays cached: running requests give their keys and values up, and compute them again."""
        done = self._call(
            client,
            "POST",
            "/reset_prefix_cache?reset_running_requests=true",
            "its prefix cache to be emptied",
        )
        if not (done or {}).get("success"):
            raise WeightSyncError(
                f"{client.name} ({client.url}) keeps a prefix cache of older weights: {done}. Restart that server."
            )

    def verify(self, client: Client, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Exact digests where server and trainer hold a tensor alike, and the log-probabilities of a fixed prompt for all the others."""
        alike, wrong = compare_digests(self._checksums(client), weights, self._dtype)
        if wrong:
            raise WeightSyncError(
                f"{client.name} ({client.url}) holds other weights than the trainer: {wrong[:3]} of {len(wrong) + alike} compared tensors. "
                "Trainer and servers must be opened on the same model."
            )
        token_ids, expected = self._expected(weights)
        told = self._prompt_logprobs(client, token_ids)
        gap = float((told - expected).abs().mean())
        tolerance = TOLERANCE[self._dtype]
        if not gap <= tolerance:
            raise WeightSyncError(
                f"{client.name} ({client.url}) computes other log-probabilities than the trainer's weights do: {gap:.4g} apart on average "
                f"over {len(expected)} tokens, {tolerance:g} is allowed in {self._dtype}. Its weights are others, or it computes wrongly. "
                f"(On a CPU, with a head tied to the embedding, it needs --worker-extension-cls {EXTENSION}.)"
            )
        return {"sync/rollout_logprob_diff": gap, "sync/equal_tensors": float(alike)}

    def close(self) -> None:
        pass

    def _with_each(
        self, clients: Sequence[Client], act: Callable[[Client], dict[str, float] | None]
    ) -> tuple[dict[str, float], Lost]:
        """Figures of the slowest, and which servers were lost at it. Other errors are the caller's."""
        figures: dict[str, float] = {}
        lost: dict[Client, ServerLost] = {}

        def attempt(client: Client) -> dict[str, float]:
            try:
                return act(client) or {}
            except ServerLost as loss:
                lost[client] = loss
                return {}

        with ThreadPoolExecutor(max(1, len(clients))) as pool:
            for told in pool.map(attempt, clients):
                for name, value in told.items():
                    figures[name] = max(figures.get(name, 0.0), value)
        return figures, lost

    def _repacks(self, client: Client) -> bool:
        """Asked first, since a call that its workers do not know ends a server."""
        told = self._call(client, "GET", "/server_info?config_format=json", "its settings")
        return EXTENSION in json.dumps(told)

    def _label(self, client: Client) -> None:
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
        found = answer["prompt_logprobs"][1:]  # nothing predicts the first token
        return torch.tensor([found[i][str(token)]["logprob"] for i, token in enumerate(token_ids[1:])])

    def _expected(self, weights: Mapping[str, Tensor]) -> tuple[list[int], Tensor]:
        """The probe's prompt and what transformers computes of it, in fp32 over the weights as the servers have them. (tokens - 1,)"""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self._model)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        rounded = {name: value.to("cpu", self._dtype).float() for name, value in weights.items()}
        missing = set(model.load_state_dict(rounded, strict=False).missing_keys) - set(
            getattr(model, "all_tied_weights_keys", None) or ()
        )
        if missing:
            raise WeightSyncError(
                f"the trainer's weights of version {self._version} lack {sorted(missing)[:3]}, which {self._model} has."
            )
        generator = torch.Generator().manual_seed(0)
        token_ids: list[int] = torch.randint(
            int(config.vocab_size), (_PROBE_TOKENS,), generator=generator
        ).tolist()
        with torch.inference_mode():
            scores = torch.log_softmax(model(torch.tensor([token_ids])).logits[0].float(), -1)
        return token_ids, scores[:-1].gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]


class FileWeightSync(ServerSync):
    """See `WeightSync`: the run's process writes the weights, each server reads them."""

    def __init__(
        self, model: str | Path, dtype: torch.dtype, deadline_s: float = 300.0, folder: Path | None = None
    ) -> None:
        """folder: where files lie; by default in memory, where there is such a file system."""
        super().__init__(model, dtype, deadline_s)
        parent = folder or (_MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir()))
        for left in parent.glob(f"selfplay-*{_SUFFIX}"):
            if abandoned(left.name):  # a killed run's: memory that nobody else would free
                shutil.rmtree(left, ignore_errors=True)
        self._folder = parent / f"{unique_name()}{_SUFFIX}"
        self._folder.mkdir(mode=0o700)
        self._number = 0

    def publish(
        self, weights: Mapping[str, Tensor], version: int, clients: Sequence[Client]
    ) -> tuple[dict[str, float], Lost]:
        written = self.write(weights, version)
        figures, lost = self._with_each(clients, self.deliver)
        return written | figures, lost

    def write(self, weights: Mapping[str, Tensor], version: int) -> dict[str, float]:
        """Make these the weights that `deliver` brings. Raises WeightSyncError where there is no room for them."""
        started = time.monotonic()
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        try:
            size = write_shards(weights, folder, self._dtype)
        except (OSError, RuntimeError) as error:  # safetensors reports a full disk in its own way
            shutil.rmtree(folder, ignore_errors=True)
            raise WeightSyncError(
                f"the weights of version {version} could not be written to {folder}: {error}. Free memory there (df -h {folder})."
            ) from error
        previous, self._source, self._version = self._source, folder, version
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
        return {"sync/bytes": float(size), "sync/write_seconds": time.monotonic() - started}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class WeightSender(Protocol):
    """A trainer whose processes can send."""

    def send_weights(self, receivers: Receivers) -> SendReport: ...


class NativeWeightSync(ServerSync):
    """See `WeightSync`: weights go from the trainer's own processes into all servers at once, past the run's.

    A server that joins between two updates reads the present weights from `checkpoint()`, a folder of them in Hugging Face's format, since
    the trainer may be in a step then. When a transfer breaks off, every server of it counts as lost: nobody knows what it holds.
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
        figures, lost = self._with_each(clients, self._pause)
        ready = [client for client in clients if client not in lost]
        if not ready:
            return figures, lost
        paused = time.monotonic()
        urls = tuple(client.url for client in ready)
        report = self._sender.send_weights(
            Receivers(self._backend, urls, str(self._dtype).removeprefix("torch."), self._deadline_s)
        )
        if report.error:
            loss = ServerLost(
                f"version {version}: the transfer by {self._backend} broke off after {report.seconds:.1f} s. {report.error}"
            )
            return figures, {**lost, **dict.fromkeys(ready, loss)}
        more, lost_at_the_end = self._with_each(ready, self._go_on)
        figures |= more | {
            "sync/bytes": float(report.bytes),
            "sync/transfer_seconds": report.seconds,
            "sync/paused_seconds": time.monotonic() - paused,
            "sync/deliver_seconds": time.monotonic() - started,
        }
        return figures, {**lost, **lost_at_the_end}


def write_shards(
    weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, shard_bytes: int = _SHARD_BYTES
) -> int:
    """Write *.safetensors with an index; tensors are read one after another and held no longer than their shard. Returns bytes."""
    index: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    written = 0

    def flush() -> None:
        nonlocal written
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(held, name))
        written += (folder / name).stat().st_size
        held.clear()

    for name, tensor in weights.items():
        held[name] = (
            tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        )
        if sum(value.nbytes for value in held.values()) >= shard_bytes:
            flush()
    if held:
        flush()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": written}, "weight_map": index})
    )
    return written


def compare_digests(
    told: Mapping[str, str], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[int, list[str]]:
    """How many tensors are equal byte for byte, and the names of those that differ.

    Only vectors that go by the same name (norms): servers join, pad, split and repack matrices.
    """
    parts: dict[str, set[str]] = {}
    for name, digest in told.items():
        parts.setdefault(name.rpartition(":")[2], set()).add(digest)
    alike, wrong = 0, []
    for name, tensor in weights.items():
        if tensor.dim() != 1 or name not in parts:
            continue
        data = tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().tobytes()
        if parts[name] == {hashlib.sha256(data).hexdigest()}:
            alike += 1
        else:
            wrong.append(name)
    return alike, wrong
