"""Requests to and answers from a vLLM server for one generation. Pure: no sockets and no processes.

The endpoint is `/inference/v1/generate`: token ids in; token ids, log-probabilities and the weight version of
each token out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from selfplay.engines.base import Completion, GenerationRequest, Sampling, check_sampling
from selfplay.errors import EngineError

PATH = "/inference/v1/generate"


def check_request(request: GenerationRequest, sampling: Sampling, context_tokens: int) -> None:
    """Raises EngineError for a request that no server can answer correctly."""
    check_sampling(sampling)
    if not request.prompt_ids or request.max_new_tokens < 1:
        raise EngineError(
            f"request {request.tag!r} has no prompt, or max_new_tokens = {request.max_new_tokens} < 1."
        )
    if min(request.prompt_ids) < 0:
        raise EngineError(
            f"request {request.tag!r} has the token id {min(request.prompt_ids)}, which is below 0."
        )
    total = len(request.prompt_ids) + request.max_new_tokens
    if total > context_tokens:
        raise EngineError(
            f"request {request.tag!r} wants {total} tokens, the engine's context is {context_tokens}. "
            "Shorten the prompt or lower max_new_tokens."
        )


def request_body(request: GenerationRequest, sampling: Sampling) -> dict[str, Any]:
    """Return the body of the call. It sets every filter.

    A server's defaults, such as the model's generation_config, must not change the distribution.
    """
    return {
        "token_ids": list(request.prompt_ids),
        "sampling_params": {
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": request.seed,
            "max_tokens": request.max_new_tokens,
            "min_tokens": 0,
            "stop_token_ids": sorted(request.stop_ids),
            "ignore_eos": True,  # only the stop ids end a completion
            "logprobs": 0,  # of the sampled token only, at temperature 1
            "detokenize": False,
        },
    }


def read_answer(answer: Mapping[str, Any], request: GenerationRequest) -> Completion:
    """Return the completion in a server's answer.

    Raises EngineError if the answer is incomplete: too few tokens or log-probabilities, or a gap in the
    weight versions.
    """
    try:
        (choice,) = answer["choices"]
        token_ids = tuple(int(token) for token in choice["token_ids"])
        content = choice["logprobs"]["content"]
        spans = tuple(
            (int(span["start"]), int(span["end"]), int(span["version"])) for span in choice["weight_versions"]
        )
        reason = choice["finish_reason"]
        scored_ids = tuple(int(entry["token_id"]) for entry in content)
        logprobs = tuple(float(entry["logprob"]) for entry in content)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"the answer to request {request.tag!r} cannot be read ({error!r}): {str(answer)[:300]}. "
            "selfplay works with vllm 0.32."
        ) from error
    _check_tokens(request, token_ids, scored_ids, reason)
    _check_logprobs(request, logprobs)
    ends = [0, *(end for _, end, _ in spans)]
    if [start for start, _, _ in spans] != ends[:-1] or ends[-1] != len(token_ids):
        raise EngineError(
            f"request {request.tag!r}: the weight versions {spans} do not cover its {len(token_ids)} tokens."
        )
    versions = tuple((start, version) for start, _, version in spans)
    cached = ((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Completion(
        token_ids,
        logprobs,
        min(version for _, version in versions),
        token_ids[-1] in request.stop_ids,
        {"reused": float(cached)},
        versions,
    )


def _check_tokens(
    request: GenerationRequest, token_ids: tuple[int, ...], scored_ids: tuple[int, ...], reason: str
) -> None:
    """scored_ids: the tokens that the log-probabilities belong to. reason: why the server ended the
    completion.
    """
    if scored_ids != token_ids:
        raise EngineError(
            f"request {request.tag!r}: {len(token_ids)} tokens came with {len(scored_ids)} "
            "log-probabilities, or with those of other tokens."
        )
    if not 0 < len(token_ids) <= request.max_new_tokens:
        raise EngineError(
            f"request {request.tag!r}: {len(token_ids)} tokens came, "
            f"between 1 and {request.max_new_tokens} were requested."
        )
    ended = token_ids[-1] in request.stop_ids or len(token_ids) == request.max_new_tokens
    if not ended or any(token in request.stop_ids for token in token_ids[:-1]):
        raise EngineError(
            f"request {request.tag!r} ended after {len(token_ids)} tokens ({reason}), "
            "which its stop ids do not explain."
        )


def _check_logprobs(request: GenerationRequest, logprobs: tuple[float, ...]) -> None:
    # vLLM writes -9999 where it has none.
    if not all(math.isfinite(value) and -9999.0 < value <= 1e-4 for value in logprobs):
        raise EngineError(
            f"request {request.tag!r}: some of {sorted(set(logprobs))[:3]} … are not log-probabilities. "
            "The model may be broken."
        )
