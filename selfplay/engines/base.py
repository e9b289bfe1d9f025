"""The engine contract: token ids in, token ids and log-probabilities out. Knows nothing of text, tools or roles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Only the defaults make the importance ratio true: no filter may reshape the distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0


@dataclass(frozen=True)
class GenerationRequest:
    """One continuation: `prompt_ids` (prompt,), at most `max_new_tokens` more, ended by any of `stop_ids` (which is kept).

    `seed` alone decides the draw. `tag` names the caller's turn (role/group/member/turn) for scripted engines and logs.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    stop_ids: frozenset[int]
    tag: str = ""


@dataclass(frozen=True)
class Completion:
    """token_ids, logprobs: (new,), the log-probability of each drawn token at temperature 1. stopped: a stop id ended it.

    weight_version: of its oldest token. version_spans: (first of `token_ids`, version) where new weights came while it was drawn.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_version: int
    stopped: bool
    metadata: Mapping[str, float] = field(default_factory=dict)
    version_spans: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(first of `token_ids`, version) of every stretch of equal weights."""
        return self.version_spans or ((0, self.weight_version),)


class Engine(Protocol):
    """Generates from the policy's current weights. `generate` may be called from many threads at once and batches them."""

    @property
    def weight_version(self) -> int: ...

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order. Raises EngineError, never returns a partial answer."""
        ...

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Take new weights (name -> tensor, as the trainer exports them) between two generations."""
        ...

    def close(self) -> None: ...


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from its coordinates (run seed, update, group, member, turn): never drawn in order of completion."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
