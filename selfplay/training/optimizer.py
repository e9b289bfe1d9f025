"""The optimiser of every trainer."""

from __future__ import annotations

import torch


def make_optimizer(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW without weight decay on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # DeepSpeed keeps the real shape of a partitioned parameter as `ds_shape`.
    is_matrix = {p: len(getattr(p, "ds_shape", p.shape)) > 1 for p in parameters}
    groups = [
        {"params": [p for p in parameters if is_matrix[p]], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not is_matrix[p]], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
