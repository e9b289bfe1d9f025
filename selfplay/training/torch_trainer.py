"""The reference trainer: one process, fp32 master weights, bf16 compute, one optimiser step an update.

Leaves rewards, advantages and the choice of episodes to others. Invariant: save, load and continue equals not having stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfplay.config import TrainerSettings
from selfplay.errors import EngineError, RunError
from selfplay.models import load_causal_model
from selfplay.training.batch import MicroBatch, Sample, make_micro_batches
from selfplay.training.loss import Clipping, aggregation_weights, policy_loss
from selfplay.training.sft import make_optimizer

_NOT_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")


def action_logits(model: Any, token_ids: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """(actions, vocab) fp32 logits that predict the tokens at `places`; the head is not computed anywhere else."""
    hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state  # (rows, seq, hidden)
    logits: Tensor = model.get_output_embeddings()(hidden[rows, places - 1])
    return logits.float()


class TorchTrainer:
    """`step` learns from one update's samples. Raises EngineError for a model that does not load, RunError for a bad checkpoint."""

    def __init__(self, model_path: str | Path, settings: TrainerSettings, context_tokens: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._settings = settings
        self._context_tokens = context_tokens
        self._source = Path(model_path)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_causal_model(model_path, torch.float32).to(self._device)
        self._model.eval()  # no dropout: the ratio compares with what the engine computed
        self._optimizer = make_optimizer(self._model, settings.learning_rate, settings.weight_decay)
        self._clipping = Clipping(settings.clip_low, settings.clip_high, settings.clip_negative)
        self._weight_version = 0

    @property
    def weight_version(self) -> int:
        """The number of updates that these weights have seen."""
        return self._weight_version

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One optimiser step. Metrics are named `<role>/loss`, …, and plainly for both roles together.

        Samples longer than the context are the caller's mistake: ValueError.
        """
        too_long = [len(s.token_ids) for s in samples if len(s.token_ids) > self._context_tokens]
        if too_long:
            raise ValueError(f"a sample has {max(too_long)} tokens, the context {self._context_tokens}")
        started = time.monotonic()
        if self._device.type == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)  # nothing else runs now; an engine in this process takes fewer
        settings = self._settings
        rate = settings.learning_rate * min(1.0, (self._weight_version + 1) / max(1, settings.warmup_updates))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        weights = self._episode_weights(samples)
        tally = _Tally()
        self._optimizer.zero_grad(set_to_none=True)
        batches = make_micro_batches(samples, settings.batch_tokens)
        for batch in batches:
            self._accumulate(batch, samples, weights, tally)
        metrics = tally.means()
        norm = 0.0
        if batches:
            norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.max_grad_norm))
            if not math.isfinite(norm):
                raise RunError(
                    f"the gradient of update {self._weight_version + 1} is {norm}; nothing changed. Lower trainer.learning_rate and resume."
                )
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._weight_version += 1
        seconds = time.monotonic() - started
        padded = sum(batch.padded_tokens for batch in batches)
        tokens = sum(len(s.token_ids) for s in samples)
        return metrics | {
            "grad_norm": norm,
            "lr": rate,
            "tokens": float(tokens),
            "padded_tokens": float(padded),
            "tokens_per_s": padded / seconds if seconds else 0.0,
            "seconds": seconds,
        }

    def _episode_weights(self, samples: Sequence[Sample]) -> list[float]:
        """What each action token of a sample weighs in the loss: normalised within its role, over all of the role's episodes.

        With `negative_weight` below 1 the gradient is no longer REINFORCE's: it leans to what succeeded.
        """
        weights = [0.0] * len(samples)
        for role in sorted({s.role for s in samples}):
            members = [i for i, s in enumerate(samples) if s.role == role]
            lengths = torch.tensor([samples[i].action_tokens for i in members])
            shares = aggregation_weights(self._settings.aggregation, lengths, self._context_tokens)
            for index, share in zip(members, shares.tolist(), strict=True):
                sign = self._settings.negative_weight if samples[index].advantage < 0 else 1.0
                weights[index] = share * samples[index].weight * sign
        return weights

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.bf16)

    def _accumulate(self, batch: MicroBatch, samples: Sequence[Sample], weights: Sequence[float], tally: _Tally) -> None:
        device = self._device
        token_ids, rows, places = batch.token_ids.to(device), batch.action_rows.to(device), batch.action_places.to(device)
        rollout = batch.rollout_logprobs.to(device)
        advantages = torch.tensor([samples[i].advantage for i in batch.rows], device=device)[rows]
        token_weights = torch.tensor([weights[i] for i in batch.rows], device=device)[rows]
        with self._autocast():
            logits = action_logits(self._model, token_ids, rows, places)  # (actions, vocab)
        scores = torch.log_softmax(logits, -1)
        logprobs = scores.gather(1, token_ids[rows, places][:, None])[:, 0]
        losses, ratio, is_clipped = policy_loss(logprobs, rollout, advantages, token_weights, self._clipping)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            entropy = -(scores.exp() * scores).sum(-1)
            gap = (logprobs - rollout).abs()
        for role in sorted({samples[i].role for i in batch.rows}):
            chosen = torch.tensor([samples[i].role == role for i in batch.rows], device=device)[rows]
            tally.add(role, losses.detach()[chosen], entropy[chosen], ratio[chosen], is_clipped[chosen], gap[chosen])

    def export_weights(self) -> dict[str, Tensor]:
        """Name -> a copy of the fp32 weight, tied weights once, as `Engine.load_weights` takes them."""
        tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
        return {name: value.detach().to("cpu", copy=True) for name, value in self._model.state_dict().items() if name not in tied}

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder plus `trainer.pt`, whole or not at all: a temporary folder, synced, then renamed.

        Raises RunError when `folder` exists, OSError when it cannot be written.
        """
        if folder.exists():
            raise RunError(f"the checkpoint {folder} exists already; checkpoints are written once.")
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._write(partial)
        except Exception as error:  # safetensors and torch report a full disk in ways of their own
            shutil.rmtree(partial, ignore_errors=True)
            raise OSError(f"the checkpoint {folder} could not be written: {error}") from error
        partial.rename(folder)
        _sync(folder.parent)

    def _write(self, partial: Path) -> None:
        self._model.save_pretrained(partial)
        if self._source.is_dir():
            for file in sorted(self._source.iterdir()):  # the tokenizer, its template and the model card travel along
                if (
                    file.is_file()
                    and file.suffix not in _NOT_WEIGHTS
                    and not (partial / file.name).exists()
                    and "index.json" not in file.name
                ):
                    shutil.copyfile(file, partial / file.name)
        state = {
            "optimizer": self._optimizer.state_dict(),
            "weight_version": self._weight_version,
            "rng": torch.get_rng_state(),
            "weights_digest": _digest(partial),
        }
        torch.save(state, partial / "trainer.pt")
        for path in [*partial.rglob("*"), partial]:
            _sync(path)

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote. Raises RunError when the folder is not such a checkpoint."""
        try:
            state = torch.load(folder / "trainer.pt", map_location=self._device, weights_only=True)
            model = load_causal_model(folder, torch.float32)
            if state["weights_digest"] != _digest(folder):
                raise RunError(f"the checkpoint {folder} has weights that do not belong to its trainer.pt. Resume from an earlier one.")
            self._model.load_state_dict(model.state_dict())
            self._optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"].cpu())
            self._weight_version = int(state["weight_version"])
        except (OSError, KeyError, ValueError, RuntimeError, EngineError) as error:
            raise RunError(f"cannot continue from the checkpoint {folder}: {error}. Resume from an earlier one.") from error
        self._source = folder


class _Tally:
    """Sums over action tokens, per role and over all."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}

    def add(self, role: str, losses: Tensor, entropy: Tensor, ratio: Tensor, is_clipped: Tensor, gap: Tensor) -> None:
        for key in (f"{role}/", ""):
            sums = self._sums.setdefault(key, dict.fromkeys(("loss", "entropy", "ratio", "clip_share", "logprob_gap", "count"), 0.0))
            sums["loss"] += losses.sum().item()
            sums["entropy"] += entropy.sum().item()
            sums["ratio"] += ratio.sum().item()
            sums["clip_share"] += is_clipped.float().sum().item()
            sums["logprob_gap"] += gap.sum().item()
            sums["count"] += ratio.numel()

    def means(self) -> dict[str, float]:
        """loss is a sum of weighted terms already; the others are means over action tokens."""
        metrics: dict[str, float] = {}
        for key, sums in self._sums.items():
            count = max(1.0, sums["count"])
            metrics |= {f"{key}{name}": sums[name] / count for name in ("entropy", "ratio", "clip_share", "logprob_gap")}
            metrics |= {f"{key}loss": sums["loss"], f"{key}action_tokens": sums["count"]}
        return metrics


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
