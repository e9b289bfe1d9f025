"""The model as DeepSpeed runs it: loaded in shares, its loss as one module, DeepSpeed's own settings.

It starts no process and keeps no state. The worker puts the parts together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from selfplay.engines.precision import trains_in_bf16
from selfplay.settings.learning import TrainerSettings
from selfplay.training.activations import host_activations
from selfplay.training.chunks import ActionHead, Reference, chunked_losses
from selfplay.training.objective import (
    MetricSums,
    WeightedBatch,
    action_logits,
    action_states,
    loss_bounds,
    weighted_losses,
)
from selfplay.training.windows import model_inputs

# Elements that are reduced or gathered at once. DeepSpeed's own default takes 2 GB of fp32.
_BUCKET_ELEMENTS = 50_000_000


@contextmanager
def loading_in_shares(offload: bool = False) -> Iterator[None]:
    """Inside the block transformers creates each parameter as this rank's share of it (ZeRO-3).

    So no rank holds a whole model, not even while it loads. offload: the shares are in main memory.
    """
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    class Zero3:
        config: ClassVar[dict[str, Any]] = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 3, **({"offload_param": {"device": "cpu"}} if offload else {})},
        }

        def is_zero3(self) -> bool:
            return True

    zero3 = Zero3()  # a name of ours, since transformers keeps only a weak reference
    set_hf_deepspeed_config(zero3)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


class UntiedHead(ActionHead):
    """A head with a weight of its own, which travels as bf16 like those of other linear layers."""


class TiedHead(ActionHead):
    """A head that shares the embedding's weight.

    DeepSpeed gathers the weights of plain `nn.Linear` modules as bf16. For a shared weight that would round
    the embedding, and with it everything that is added to it, layer after layer.
    """


def mark_head(model: Any) -> None:
    """Make the output head a `TiedHead` if it shares the embedding's weight, else an `UntiedHead`."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = TiedHead if head.weight is model.get_input_embeddings().weight else UntiedHead


class LossModule(nn.Module):
    """The forward pass with the loss as one module, so that DeepSpeed's hooks see all of it."""

    def __init__(self, model: Any, reference: Any, settings: TrainerSettings) -> None:
        """reference: the reference policy; None without a KL penalty, and if it is the base of an adapter."""
        super().__init__()
        self.model = model
        self.reference = reference
        self._settings = settings
        self._clipping = loss_bounds(settings)

    def forward(self, batch: WeightedBatch, sums: MetricSums) -> Tensor:
        settings, inputs = self._settings, model_inputs(batch)
        size, model = settings.logit_tokens, self.model
        if size:
            with host_activations(settings):
                hidden = action_states(model, *inputs)  # (actions, hidden)
            reference = self._reference_at(inputs)
            return chunked_losses(model, hidden, batch, self._clipping, sums, size, reference).sum()
        with host_activations(settings):
            logits = action_logits(model, *inputs)  # (actions, vocab)
        reference = self._reference_at(inputs)
        reference_logits = None if reference is None else reference.logits()
        losses = weighted_losses(batch, logits, self._clipping, sums, reference_logits, settings.kl_coef)
        return losses.sum()

    def _reference_at(self, inputs: Sequence[Any]) -> Reference | None:
        if not self._settings.kl_coef:
            return None
        model = self.model if self.reference is None else self.reference
        return Reference.at(model, inputs, self._settings.kl_coef)


# Modules whose weights travel and compute as bf16. All others stay fp32.
_AS_BF16 = (nn.Linear, UntiedHead)


def deepspeed_settings(settings: TrainerSettings, hidden_size: int, on_gpu: bool) -> dict[str, Any]:
    """Return DeepSpeed's settings for one model."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": _BUCKET_ELEMENTS,
        "allgather_bucket_size": _BUCKET_ELEMENTS,
        "stage3_prefetch_bucket_size": _BUCKET_ELEMENTS,
        # Norms stay whole on each rank; matrices are partitioned.
        "stage3_param_persistence_threshold": 10 * hidden_size,
        "overlap_comm": on_gpu,
    }
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if settings.offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        "train_micro_batch_size_per_gpu": 1,
        # Always 1: the worker sets the boundary by hand, since the number of micro-batches differs between
        # updates.
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        # In stage 0 the worker clips.
        "gradient_clipping": settings.max_grad_norm if settings.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW: it needs no compiler, and computes what the torch trainer computes.
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": trains_in_bf16(settings.bf16, on_gpu),
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [f"{kind.__module__}.{kind.__qualname__}" for kind in _AS_BF16],
        },
        "steps_per_print": 1 << 60,
    }
