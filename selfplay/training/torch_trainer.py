"""The reference trainer: one process, fp32 master weights, one optimiser step for each update.

It knows no rewards and no advantages. Invariant: to save, load and continue equals not having stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfplay.engines.models import checkpoint_activations, compile_layers, load_causal_model
from selfplay.engines.precision import LARGE_PARAMETERS, trains_in_bf16
from selfplay.engines.probe import check_head
from selfplay.errors import EngineError, RunError
from selfplay.runtime.cores import FreeCores, usable_cores
from selfplay.settings.learning import TrainerSettings
from selfplay.training.activations import host_activations
from selfplay.training.adapter import (
    FOLDER,
    adapter_state,
    add_adapter,
    check_same_adapter,
    check_same_base,
    outer_name,
)
from selfplay.training.batch import MicroBatch, Sample, make_micro_batches
from selfplay.training.checkpoints import atomic_folder, read_companions, weights_digest, write_companions
from selfplay.training.chunks import Reference, chunked_losses
from selfplay.training.objective import (
    MetricSums,
    WeightedBatch,
    action_logits,
    action_states,
    add_token_weights,
    check_lengths,
    episode_weights,
    loss_bounds,
    warmed_up_rate,
    weighted_losses,
)
from selfplay.training.optimizer import freeze_embeddings, make_optimizer
from selfplay.training.prompt_trees import make_shared_batches
from selfplay.training.router_load import RouterLoad
from selfplay.training.tree_attention import attending_to, can_attend
from selfplay.weights.checkpoint_names import CheckpointNames, layer_groups
from selfplay.weights.native_transfer import NativeSender, Receivers, SendReport, WeightSource


class TorchTrainer:
    """See `Trainer`."""

    def __init__(
        self, model_path: str | Path, settings: TrainerSettings, context_tokens: int, seed: int
    ) -> None:
        """Load the model. If `settings.kl_coef` is not 0, the reference policy is a second copy, or the base
        of an adapter.

        Raises EngineError if the model does not load.
        """
        torch.manual_seed(seed)
        self._settings = settings
        self._context_tokens = context_tokens
        self._companions = read_companions(Path(model_path))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bf16 = trains_in_bf16(settings.bf16, on_gpu=self._device.type != "cpu")
        self._model = load_causal_model(model_path, torch.float32).eval()
        if not settings.train_embeddings:
            freeze_embeddings(self._model)
        self._adapter = add_adapter(self._model, settings, seed)
        self._model.to(self._device)
        check_head(f"the model {model_path}", self._model)
        self._reference: Any = None
        if settings.kl_coef:
            copied = None if self._adapter else load_causal_model(model_path, torch.float32)
            self._reference = self._model if copied is None else copied.to(self._device).eval()
        self._router_load = RouterLoad(self._model)
        self._model.eval()  # without dropout, as in the engine: the importance ratio compares the two
        if settings.activation_checkpointing:
            checkpoint_activations(self._model)
        if settings.compile:
            compile_layers(self._model)
        self._shares_prompts = settings.shared_prompts and can_attend(self._model)
        self._optimizer = make_optimizer(self._model, settings.learning_rate, settings.weight_decay)
        self._clipping = loss_bounds(settings)
        self._weight_version = 0
        self._ratios: list[Tensor] = []
        self._sender = NativeSender(rank=0)
        self.threads = usable_cores()  # of a step on a CPU; lower it if something else computes meanwhile
        # Large models leave cores to other processes. Small ones do not, so that equal runs give equal bits.
        size = sum(parameter.numel() for parameter in self._model.parameters())
        is_free = size > LARGE_PARAMETERS and not settings.compile  # compiled code has its number of threads
        self._free_cores = FreeCores() if is_free else None

    @property
    def weight_version(self) -> int:
        """Number of updates that these weights have had."""
        return self._weight_version

    @property
    def ratios(self) -> list[Tensor]:
        """See `Trainer`."""
        return self._ratios

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Make one optimiser step.

        Metrics are `<role>/loss` and so on, and `loss` and so on for both roles.
        """
        check_lengths(samples, self._context_tokens)
        started = time.monotonic()
        settings = self._settings
        rate = warmed_up_rate(settings, self._weight_version)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        weights = episode_weights(samples, settings, self._context_tokens)
        sums = MetricSums()
        self._optimizer.zero_grad(set_to_none=True)
        batches = self._batches(samples)
        for batch in batches:
            self._accumulate(add_token_weights(batch, samples, weights), sums)
        metrics = sums.means() | self._router_load.metrics()
        norm = 0.0
        if batches:
            norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), settings.max_grad_norm))
            if not math.isfinite(norm):
                raise RunError(
                    f"the gradient of update {self._weight_version + 1} is {norm}; nothing changed. "
                    "Lower trainer.learning_rate and resume."
                )
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._weight_version += 1
        self._ratios = sums.ratios([len(sample.token_ids) for sample in samples])
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

    def _batches(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        budget, all_actions = self._settings.batch_tokens, self._settings.kl_coef > 0
        if self._shares_prompts:
            return make_shared_batches(samples, budget, all_actions)
        return make_micro_batches(samples, budget, self._settings.packing, all_actions)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _set_threads(self) -> None:
        if self._device.type == "cpu":
            free = self._free_cores.threads() if self._free_cores else self.threads
            torch.set_num_threads(min(self.threads, free))

    def _accumulate(self, batch: WeightedBatch, sums: MetricSums) -> None:
        self._set_threads()
        batch = batch.to(self._device)
        models = [self._model] if self._reference is None else [self._model, self._reference]
        with attending_to(batch.trees, *models):
            self._losses(batch, sums).sum().backward()  # type: ignore[no-untyped-call]

    def _losses(self, batch: WeightedBatch, sums: MetricSums) -> Tensor:
        settings, model = self._settings, self._model
        inputs = (batch.token_ids, batch.action_rows, batch.action_positions, batch.position_ids)
        if settings.logit_tokens:
            counting = self._router_load.counting(*inputs[:3])
            with self._autocast(), counting, host_activations(settings):
                hidden = action_states(model, *inputs)  # (actions, hidden)
            with self._autocast():
                reference = self._reference_at(inputs)
                size = settings.logit_tokens
                return chunked_losses(model, hidden, batch, self._clipping, sums, size, reference)
        with self._autocast():
            with self._router_load.counting(*inputs[:3]), host_activations(settings):
                logits = action_logits(model, *inputs)  # (actions, vocab)
            reference = self._reference_at(inputs)
            reference_logits = None if reference is None else reference.logits()  # (actions, vocab)
        return weighted_losses(batch, logits, self._clipping, sums, reference_logits, settings.kl_coef)

    def _reference_at(self, inputs: Sequence[Any]) -> Reference | None:
        model = self._reference
        return None if model is None else Reference.at(model, inputs, self._settings.kl_coef)

    def export_weights(self) -> dict[str, Tensor]:
        """Return name -> fp32 weight as a copy on the CPU. Tied weights appear once; an adapter is merged."""
        return {name: value.to("cpu", copy=True) for name, value in self._merged()}

    def _state(self) -> dict[str, Tensor]:
        """Return the fp32 weights without copying them, tied ones once, and the factors of an adapter."""
        tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
        return {
            outer_name(name): value.detach()
            for name, value in self._model.state_dict().items()
            if name not in tied
        }

    def _merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights one after another, with the adapter merged."""
        state = self._state()
        factors = {name: state.pop(name) for name in self._adapter.names} if self._adapter else {}
        for name, value in state.items():
            yield name, self._adapter.merged(name, value, factors) if self._adapter else value

    def send_weights(self, receivers: Receivers) -> SendReport:
        """Send the weights to rollout servers, one after another. See NativeSender."""
        factors = set(self._adapter.names) if self._adapter else set()
        weights = {name: value for name, value in self._state().items() if name not in factors}
        device = receivers.device(self._device)

        def groups() -> Iterator[dict[str, Tensor]]:
            merged = self._merged()
            for names in layer_groups(list(weights)):
                yield {name: value.to(device) for name, value in itertools.islice(merged, len(names))}

        source = WeightSource(receivers, weights, groups, CheckpointNames(self._model))
        return self._sender.send(receivers, source)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder plus `trainer.pt`, completely or not at all.

        Raises RunError if `folder` exists, OSError if it cannot be written.
        """
        with atomic_folder(folder) as partial:
            if self._adapter is None:
                self._model.save_pretrained(partial)
            else:
                self._model.save_pretrained(partial, state_dict=self.export_weights())
                self._adapter.write(partial / FOLDER, self._model.state_dict())
            write_companions(self._companions, partial)
            state = {
                "optimizer": self._optimizer.state_dict(),
                "weight_version": self._weight_version,
                "rng": torch.get_rng_state(),
                "weights_digest": weights_digest(partial),
            } | adapter_state(self._settings)
            torch.save(state, partial / "trainer.pt")

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote. Raises RunError if the folder is no such checkpoint."""
        try:
            state = torch.load(folder / "trainer.pt", map_location=self._device, weights_only=True)
            check_same_adapter(folder, state, self._settings)
            model = load_causal_model(folder, torch.float32)
            if state["weights_digest"] != weights_digest(folder):
                raise RunError(
                    f"the checkpoint {folder} has weights that do not belong to its trainer.pt. "
                    "Resume from an earlier one."
                )
            if self._adapter is None:
                self._model.load_state_dict(model.state_dict())
            else:
                self._model.load_state_dict(
                    self._adapter.read(folder / FOLDER, self._adapter.names), strict=False
                )
                saved = model.state_dict()
                for name, value in self.export_weights().items():
                    check_same_base(folder, name, saved[name], value)
            self._optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"].cpu())
            self._weight_version = int(state["weight_version"])
        except (OSError, KeyError, ValueError, RuntimeError, EngineError) as error:
            raise RunError(
                f"cannot continue from the checkpoint {folder}: {error}. Resume from an earlier one."
            ) from error
        self._companions |= read_companions(folder)

    def close(self) -> None:
        """Leave the servers that it sent weights to. The memory is freed with the object."""
        self._sender.close()
