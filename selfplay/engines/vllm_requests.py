"""What is said to a vLLM server about one generation, and what its answer means. Pure: knows no sockets and no processes.

Speaks `/inference/v1/generate`: token ids in, token ids, log-probabilities and the weight version of each token out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.errors import EngineError

PATH = "/inference/v1/generate"


def check_request(request: GenerationRequest, sampling: Sampling, context_tokens: int) -> None:
    """Raises EngineError for what no server could answer faithfully."""
    if sampling.top_p != 1.0 or sampling.top_k != -1 or sampling.min_p != 0.0 or sampling.temperature < 0:
        raise EngineError(
            f"{sampling} would make the importance ratio untrue. Set top_p = 1, top_k = -1, min_p = 0, temperature >= 0."
        )
    if not request.prompt_ids or request.max_new_tokens < 1:
        raise EngineError(
            f"request {request.tag!r} has no prompt, or max_new_tokens = {request.max_new_tokens} < 1."
        )
    if min(request.prompt_ids) < 0:
        raise EngineError(f"request {request.tag!r} has the token id {min(request.prompt_ids)}.")
    total = len(request.prompt_ids) + request.max_new_tokens
    if total > context_tokens:
        raise EngineError(
            f"request {request.tag!r} wants {total} tokens, the engine's context is {context_tokens}. Shorten it."
        )


def request_body(request: GenerationRequest, sampling: Sampling) -> dict[str, Any]:
    """Every filter is set: a server's own defaults (a model's generation_config among them) must not reshape the distribution."""
    return {
        "token_ids": list(request.prompt_ids),
        "sampling_params": {
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": request.seed,
            "max_tokens": request.max_new_tokens,
            "min_tokens": 0,
            "stop_token_ids": sorted(request.stop_ids),
            "ignore_eos": True,  # the stop ids alone decide; the end of sequence is one of them where the caller says so
            "logprobs": 0,  # of the drawn token only, at temperature 1
            "detokenize": False,
        },
    }


def read_answer(answer: Mapping[str, Any], request: GenerationRequest) -> Completion:
    """The completion in a server's answer. Raises EngineError when it is not whole: too few log-probabilities, a gap in the versions, …"""
    try:
        (choice,) = answer["choices"]
        token_ids = tuple(int(token) for token in choice["token_ids"])
        content = choice["logprobs"]["content"]
        spans = tuple(
            (int(span["start"]), int(span["end"]), int(span["version"])) for span in choice["weight_versions"]
        )
        reason = choice["finish_reason"]
        told = tuple(int(entry["token_id"]) for entry in content)
        logprobs = tuple(float(entry["logprob"]) for entry in content)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"the answer to request {request.tag!r} cannot be read ({error!r}): {str(answer)[:300]}. selfplay speaks with vllm 0.32."
        ) from error
    if told != token_ids:
        raise EngineError(
            f"request {request.tag!r}: {len(token_ids)} tokens came with {len(told)} log-probabilities, or those of others."
        )
    if not 0 < len(token_ids) <= request.max_new_tokens:
        raise EngineError(
            f"request {request.tag!r}: {len(token_ids)} tokens came, between 1 and {request.max_new_tokens} were asked for."
        )
    if not all(
        math.isfinite(value) and -9999.0 < value <= 1e-4 for value in logprobs
    ):  # -9999 is vLLM's word for none
        raise EngineError(
            f"request {request.tag!r}: not a log-probability among {sorted(set(logprobs))[:3]} … The model may be broken."
        )
    ends = [0, *(end for _, end, _ in spans)]
    if [start for start, _, _ in spans] != ends[:-1] or ends[-1] != len(token_ids):
        raise EngineError(
            f"request {request.tag!r}: the weight versions {spans} do not cover its {len(token_ids)} tokens."
        )
    stopped = token_ids[-1] in request.stop_ids
    if any(token in request.stop_ids for token in token_ids[:-1]) or not (
        stopped or len(token_ids) == request.max_new_tokens
    ):
        raise EngineError(
            f"request {request.tag!r} ended after {len(token_ids)} tokens ({reason}), which its stop ids do not explain."
        )
    versions = tuple((start, version) for start, _, version in spans)
    cached = ((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Completion(
        token_ids,
        logprobs,
        min(version for _, version in versions),
        stopped,
        {"reused": float(cached)},
        versions,
    )
