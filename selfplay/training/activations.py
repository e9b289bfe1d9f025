"""Activations that wait in main memory between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from selfplay.settings.learning import TrainerSettings


def host_activations(settings: TrainerSettings) -> AbstractContextManager[None]:
    """What the forward pass runs in: it does nothing without `trainer.offload_activations`."""
    return HostActivations().collecting() if settings.offload_activations else nullcontext()


class _Held(NamedTuple):
    """A tensor in main memory. device: where it came from."""

    value: Tensor
    device: torch.device


class HostActivations:
    """Moves what checkpointed layers keep, their inputs, to main memory and back.

    bytes: moved so far. With `trainer.activation_checkpointing` these inputs are all that grows with the
    number of layers.
    """

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inside the block, hidden states that autograd keeps go to main memory."""
        with torch.autograd.graph.saved_tensors_hooks(self._put, self._get):
            yield

    def _put(self, tensor: Tensor) -> Tensor | _Held:
        # Hidden states are (rows, seq, hidden). Weights have two dimensions and must stay where they are.
        if tensor.dim() != 3 or not tensor.is_floating_point() or isinstance(tensor, torch.nn.Parameter):
            return tensor
        self.bytes += tensor.nbytes
        value = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        value.copy_(tensor, non_blocking=True)  # the same stream copies it back
        return _Held(value, tensor.device)

    @staticmethod
    def _get(held: Tensor | _Held) -> Tensor:
        return held.value.to(held.device, non_blocking=True) if isinstance(held, _Held) else held
