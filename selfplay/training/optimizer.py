"""The optimiser of every trainer, and which weights it leaves alone."""

from __future__ import annotations

from typing import Any

import torch


def freeze_embeddings(model: Any) -> None:
    """Leave the input embedding and the output head as they are."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.requires_grad_(False)


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
