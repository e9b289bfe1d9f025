"""How evenly the routers of a mixture of experts share tokens out, counted over the tokens of an update.

It changes no weight and adds no loss. Invariant: padding and tokens computed again in the backward pass do
not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def expert_modules(model: Any) -> dict[str, Any]:
    """The modules that hold all experts of a layer, by name. transformers calls each of them `experts`."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "experts" and hasattr(module, "num_experts")
    }


class RouterLoad:
    """Counts of the tokens that each expert of each layer gets. Without experts it counts nothing."""

    def __init__(self, model: Any) -> None:
        """Hook the model's expert modules. transformers calls them with (states, chosen experts, weights)."""
        self._counts: dict[str, Tensor] = {}  # name of the module -> (experts,)
        self._counted: Tensor | None = None
        for name, module in expert_modules(model).items():
            self._counts[name] = torch.zeros(module.num_experts, dtype=torch.int64)
            module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            if self._counted is None:
                return
            chosen = inputs[1].detach()  # (tokens, experts of each)
            times = self._counted[:, None].expand_as(chosen)
            before = self._counts[name].to(chosen.device)
            self._counts[name] = before.index_add(0, chosen.flatten(), times.flatten())

        return count

    @contextmanager
    def counting(self, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Iterator[None]:
        """Count the forward passes of the block. Tokens after a row's last action are padding.

        token_ids: (rows, seq). rows, positions: (actions,), as in `MicroBatch`.
        """
        last = torch.zeros(len(token_ids), dtype=torch.int64, device=token_ids.device)
        last = last.scatter_reduce(0, rows, positions, "amax")
        index = torch.arange(token_ids.shape[1], device=token_ids.device)
        self._counted = (index[None] <= last[:, None]).flatten().long()  # (rows * seq,) 1 or 0
        try:
            yield
        finally:
            self._counted = None

    def metrics(self) -> dict[str, float]:
        """The figures since the last call; {} without experts or tokens.

        router/load_entropy  entropy of the shares of a layer's experts, over that of equal shares; mean of
                             the layers. 1: all experts get equally many tokens
        router/max_share     largest share of a layer's tokens that one expert gets, over all layers
        router/idle_share    share of all experts that get no token
        """
        shares = [counts / counts.sum() for counts in self._counts.values() if counts.sum()]
        if not shares:
            return {}
        entropies = [
            float(torch.special.entr(share).sum()) / math.log(max(2, len(share))) for share in shares
        ]
        found = {
            "router/load_entropy": sum(entropies) / len(entropies),
            "router/max_share": max(float(share.max()) for share in shares),
            "router/idle_share": float((torch.cat(shares) == 0).float().mean()),
        }
        self._counts = {name: torch.zeros_like(counts) for name, counts in self._counts.items()}
        return found
