"""An engine whose replies come from a function instead of a model, for tests, demonstrations and warm starts.

Invariant: equal requests give equal completions, in any order and from any thread. It counts weight versions
and uses no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.errors import EngineError

if TYPE_CHECKING:
    import torch

LOGPROB = -0.5


@dataclass(frozen=True)
class ScriptedTurn:
    """What the function gets: the tag "role/group/member/turn", the prompt as text, and the turn's seed."""

    tag: str
    text: str
    seed: int

    @property
    def role(self) -> str:
        return self.tag.partition("/")[0]

    @property
    def number(self) -> int:
        """Number of the turn, from 0."""
        return int(self.tag.rpartition("/")[2])


class ScriptedEngine:
    """See `Engine`.

    The reply is tokenised with its control tokens, as a trained policy would write it, and ends with a stop
    id.
    """

    def __init__(self, reply: Callable[[ScriptedTurn], str], tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._reply = reply
        # A copy, so that these settings do not change the caller's tokenizer.
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._eos: int | None = tokenizer.eos_token_id
        self._version = 0

    @property
    def weight_version(self) -> int:
        return self._version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        return [self._complete(request) for request in requests]

    def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        self._version = version

    def close(self) -> None:
        pass

    def _complete(self, request: GenerationRequest) -> Completion:
        if not request.stop_ids or request.max_new_tokens < 1:
            raise EngineError(
                f"request {request.tag!r} has stop_ids {set(request.stop_ids)} and max_new_tokens "
                f"{request.max_new_tokens}. The scripted engine needs a stop id and at least one token."
            )
        text = self._tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False)
        reply = self._reply(ScriptedTurn(request.tag, text, request.seed))
        stop = self._eos if self._eos in request.stop_ids else min(request.stop_ids)
        ids = [*self._tokenizer.encode(reply, add_special_tokens=False).ids, stop]
        end = next(index for index, id_ in enumerate(ids) if id_ in request.stop_ids) + 1
        new = tuple(ids[: min(end, request.max_new_tokens)])
        return Completion(new, (LOGPROB,) * len(new), self._version, stopped=new[-1] in request.stop_ids)
