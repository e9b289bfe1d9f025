"""A micro-batch shared by several ranks: each gets all token ids and computes one window of every row. Pure.

Invariant: each action token's loss is on exactly one rank, the one whose window has the token before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from selfplay.training.objective import WeightedBatch


def cut_into_windows(batch: WeightedBatch, parts: int) -> list[WeightedBatch]:
    """Return the batch once for each of `parts` ranks, with equal windows. Rows are padded on the right.

    Raises ValueError for packed rows, whose attention needs a mask.
    """
    if parts == 1:
        return [batch]
    if batch.position_ids is not None:
        raise ValueError("packed rows cannot be cut into windows")
    rows, length = batch.token_ids.shape
    width = -(-length // parts)
    token_ids = torch.nn.functional.pad(batch.token_ids, (0, parts * width - length))  # (rows, parts · width)
    positions = torch.arange(parts * width).expand(rows, -1)
    whole = replace(batch, token_ids=token_ids, position_ids=positions)
    owners = (batch.action_positions - 1) // width  # (actions,)
    return [
        replace(chosen_actions(whole, owners == part), window=(part * width, (part + 1) * width))
        for part in range(parts)
    ]


def model_inputs(batch: WeightedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return token_ids, rows, positions and position_ids, as `action_states` takes them, of the window."""
    token_ids, position_ids = batch.token_ids, batch.position_ids
    if batch.window is None:
        return token_ids, batch.action_rows, batch.action_positions, position_ids
    start, stop = batch.window
    own = None if position_ids is None else position_ids[:, start:stop]
    return token_ids[:, start:stop], batch.action_rows, batch.action_positions - start, own


def chosen_actions(batch: WeightedBatch, chosen: Tensor | slice) -> WeightedBatch:
    """Return the batch with some of its action tokens. chosen: a mask (actions,), or a slice."""
    return replace(
        batch,
        action_rows=batch.action_rows[chosen],
        action_positions=batch.action_positions[chosen],
        action_samples=batch.action_samples[chosen],
        action_places=batch.action_places[chosen],
        rollout_logprobs=batch.rollout_logprobs[chosen],
        advantages=batch.advantages[chosen],
        weights=batch.weights[chosen],
        role_numbers=batch.role_numbers[chosen],
    )
