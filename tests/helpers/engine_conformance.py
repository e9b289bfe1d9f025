"""Checks of the engine contract (selfplay/engines/base.py), one a function, for scripted, hf and vllm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from selfplay.engines.base import Completion, Engine, GenerationRequest, Sampling
from selfplay.errors import EngineError


@dataclass(frozen=True)
class Bench:
    """An open engine and what checks need to know of its policy. weights: as its trainer exports them."""

    engine: Engine
    prompt: tuple[int, ...]
    stop_id: int
    weights: Mapping[str, Any]

    def request(self, number: int, new: int = 12) -> GenerationRequest:
        return GenerationRequest(
            self.prompt[: len(self.prompt) - number % 3],
            new,
            100 + number,
            frozenset({self.stop_id}),
            f"solver/g/{number}/0",
        )


def gives_one_whole_completion_a_request_in_order(bench: Bench) -> None:
    asked = [bench.request(number, new) for number, new in enumerate((5, 1, 12, 3))]
    done = bench.engine.generate(asked, Sampling())
    assert len(done) == len(asked)
    for request, completion in zip(asked, done, strict=True):
        _is_whole(request, completion)
    assert [bench.engine.generate([request], Sampling())[0].token_ids for request in asked] == [
        c.token_ids for c in done
    ]


def _is_whole(request: GenerationRequest, done: Completion) -> None:
    assert len(done.token_ids) == len(done.logprobs)
    assert 1 <= len(done.token_ids) <= request.max_new_tokens
    assert all(logprob <= 0 for logprob in done.logprobs)
    assert done.stopped == (done.token_ids[-1] in request.stop_ids)
    assert done.stopped or len(done.token_ids) == request.max_new_tokens
    assert not set(done.token_ids[:-1]) & request.stop_ids
    assert done.spans[0][0] == 0 and done.weight_version == min(version for _, version in done.spans)


def samples_the_same_tokens_for_the_same_seed(bench: Bench) -> None:
    first, second = (
        bench.engine.generate([replace(bench.request(1), tag=f"solver/g/1/{turn}")], Sampling())[0]
        for turn in (0, 0)
    )
    assert first.token_ids == second.token_ids


def serves_many_threads_at_once(bench: Bench) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = list(
            pool.map(lambda number: bench.engine.generate([bench.request(number)], Sampling())[0], range(8))
        )
    for number, completion in enumerate(done):
        _is_whole(bench.request(number), completion)


def reports_the_version_of_its_weights(bench: Bench) -> None:
    version = bench.engine.weight_version + 1
    bench.engine.load_weights(bench.weights, version)
    assert bench.engine.weight_version == version
    assert bench.engine.generate([bench.request(2)], Sampling())[0].spans == ((0, version),)


def refuses_a_request_for_nothing(bench: Bench) -> None:
    with pytest.raises(EngineError, match="max_new_tokens"):
        bench.engine.generate([bench.request(0, new=0)], Sampling())


def may_be_closed_twice(bench: Bench) -> None:
    bench.engine.close()
    bench.engine.close()


# The last check closes the engine.
CHECKS: tuple[Callable[[Bench], None], ...] = (
    gives_one_whole_completion_a_request_in_order,
    samples_the_same_tokens_for_the_same_seed,
    serves_many_threads_at_once,
    reports_the_version_of_its_weights,
    refuses_a_request_for_nothing,
    may_be_closed_twice,
)
