"""The loss from hidden states, whose logits are computed for some action tokens at a time.

Logits are the largest tensors of a long context: (actions, vocabulary) in fp32, several times. In chunks only
one chunk's exist, and the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfplay.algorithm.loss import Clipping
from selfplay.engines.models import finished_logits, head_logits
from selfplay.training.adapter import without_adapter
from selfplay.training.objective import (
    MetricSums,
    WeightedBatch,
    action_states,
    add_values,
    token_values,
)
from selfplay.training.windows import chosen_actions

# From logits (tokens, vocab) of a slice of the action tokens to losses (tokens,) and metrics (names, tokens).
Finish = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Reference:
    """The reference policy of a KL penalty at a batch's action tokens. hidden: (actions, hidden)."""

    model: Any
    hidden: Tensor
    kl_coef: float

    @classmethod
    def at(cls, model: Any, inputs: Sequence[Any], kl_coef: float) -> Reference:
        """inputs: of `action_states`. A model with an adapter stands for its base."""
        with torch.no_grad(), without_adapter(model):
            return cls(model, action_states(model, *inputs), kl_coef)

    def logits(self, part: slice = slice(None)) -> Tensor:
        """The fp32 logits (tokens, vocab) of some of the action tokens."""
        with torch.no_grad(), without_adapter(self.model):
            return head_logits(self.model, self.hidden[part])


class ActionHead(nn.Linear):
    """An output head that computes all chunks in one call.

    DeepSpeed gathers and frees a module's weight at each call, and all ranks must make equally many calls.
    So a rank may have more chunks than another.
    """

    def forward(self, hidden: Tensor, finish: Finish | None = None, size: int = 0) -> Any:
        """Return the logits; with `finish` what it makes of them, in chunks of `size` tokens."""
        return (
            super().forward(hidden) if finish is None else _in_chunks(super().forward, hidden, finish, size)
        )


def chunked_losses(
    model: Any,
    hidden: Tensor,
    batch: WeightedBatch,
    clipping: Clipping,
    sums: MetricSums,
    size: int,
    reference: Reference | None = None,
) -> Tensor:
    """Return the losses (actions,), as `weighted_losses` does. sums: gets the metrics.

    hidden: (actions, hidden) states that predict the action tokens. size: tokens of a chunk. The head of a
    reference may not be in shares (ZeRO-3): the backward pass computes its logits again.
    """
    head, names = model.get_output_embeddings(), list[str]()

    def finish(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        against = (None, 0.0) if reference is None else (reference.logits(part), reference.kl_coef)
        own = finished_logits(model, logits)
        values = token_values(chosen_actions(batch, part), own, clipping, *against)
        losses = values.pop("loss")
        names[:] = values
        return losses, torch.stack([value.float() for value in values.values()])

    losses: Tensor
    if isinstance(head, ActionHead):
        losses, metrics = head(hidden, finish, size)
    else:
        losses, metrics = _in_chunks(head, hidden, finish, size)
    add_values(batch, {"loss": losses.detach(), **dict(zip(names, metrics, strict=True))}, sums)
    return losses


def _in_chunks(
    head: Callable[[Tensor], Tensor], hidden: Tensor, finish: Finish, size: int
) -> tuple[Tensor, Tensor]:
    def run(chunk: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return finish(head(chunk), part)

    parts = [slice(start, start + size) for start in range(0, max(1, len(hidden)), size)]
    found = [checkpoint(run, hidden[part], part, use_reentrant=False) for part in parts]
    return torch.cat([losses for losses, _ in found]), torch.cat([metrics for _, metrics in found], dim=1)
