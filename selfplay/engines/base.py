"""The engine contract: token ids in, token ids and log-probabilities out.

It knows no text, tools or roles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from selfplay.errors import EngineError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    The importance ratio is right only with the defaults: filters change the distribution. So engines take
    `top_p` below 1 for evaluations, and refuse the other filters.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue.

    prompt_ids: (prompt,).
    max_new_tokens: upper bound of new tokens.
    seed: alone decides the random draws of this request.
    stop_ids: any of these ends the completion, and is part of it.
    tag: the caller's turn, "role/group/member/turn", for scripted engines, routing and logs.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    stop_ids: frozenset[int]
    tag: str = ""


@dataclass(frozen=True)
class Completion:
    """What an engine answers.

    token_ids: (new,).
    logprobs: (new,), of each sampled token at temperature 1.
    weight_version: version of the weights that sampled the oldest token.
    stopped: True if a stop id ended it.
    version_spans: (index into `token_ids`, version) at each change of weights. Empty if there was none.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_version: int
    stopped: bool
    metadata: Mapping[str, float] = field(default_factory=dict)
    version_spans: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(index of the first token, version) of each run of tokens that the same weights sampled."""
        return self.version_spans or ((0, self.weight_version),)


def check_sampling(sampling: Sampling) -> None:
    """Raises EngineError for a filter that engines do not have, and for values out of range."""
    is_in_range = 0 < sampling.top_p <= 1 and sampling.temperature >= 0
    if sampling.top_k != -1 or sampling.min_p != 0.0 or not is_in_range:
        raise EngineError(
            f"{sampling} is not what engines sample. Set 0 < top_p <= 1 (training needs 1: a filter makes "
            "the importance ratio wrong), top_k = -1, min_p = 0, temperature >= 0."
        )


class Engine(Protocol):
    """Generates from the policy's current weights.

    Many threads may call `generate` at once; it batches their requests.
    """

    @property
    def weight_version(self) -> int: ...

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        """Return one completion for each request, in order.

        Raises EngineError; never returns a partial answer.
        """
        ...

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Replace the weights (name -> tensor, as the trainer exports them)."""
        ...

    def close(self) -> None: ...


def derive_seed(*parts: object) -> int:
    """Hash coordinates (run seed, update, group, member, turn) to a 63-bit seed.

    A seed therefore does not depend on the order in which episodes finish.
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
