"""The embedded engine: a transformers model in this process, continuous batching without padding, each conversation's cache kept.

Leaves text and tools to others. Invariant: a request's draws come from its own seed, whatever else is in the batch or was guessed.
"""

from __future__ import annotations

import queue
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.engines.drafts import DraftTable, RowDrafts
from selfplay.engines.models import load_causal_model
from selfplay.engines.sequences import (
    NAME,
    CachedSequence,
    CacheShape,
    KeptSequences,
    PassPlan,
    ragged_attention,
    shared_prefix,
)
from selfplay.errors import EngineError
from selfplay.runtime.cores import usable_cores

# Half the cores: the others run tests meanwhile, and threads that wait for a busy core at every small operation cost far more than they
# give (10 instead of 360 tokens/s were seen on 2 busy cores).
_THREADS = max(1, usable_cores() // 2)
_GATHER_S = 0.005  # how long an idle engine waits for more requests before it starts
_PREFILL_TOKENS = 2048  # of prompts in one pass, so that running requests never wait long for newcomers
_POSITIONS = 96  # places of one pass whose next token is drawn, guessed ones included
_MOST_DRAFT = 10  # guessed tokens of one request in one pass
_WORTH_COPYING = 16  # a shorter common beginning is computed again
_WORTH_WAITING = 32  # a request waits for another that is computing so much more of its own beginning


class _Row:
    """One request. `token_ids` is its prompt and what was drawn so far; `sequence` holds the cache of a beginning of it."""

    def __init__(self, request: GenerationRequest, temperature: float) -> None:
        self.request = request
        self.temperature = temperature
        self.answer: Future[Completion] = Future()
        self.prompt = np.array(request.prompt_ids, dtype=np.int64)
        self.token_ids = list(request.prompt_ids)
        self.logprobs: list[float] = []
        self.is_stopped = False
        self.sequence: CachedSequence | None = None
        self.drafts: RowDrafts | None = None
        self.reused = 0  # prompt tokens whose cache was there already
        self.passes = 0
        self._random = random.Random(request.seed)
        self._draws: list[float] = []

    def draw(self, number: int) -> float:
        """The uniform draw that decides new token `number`, the same however often it is asked for."""
        while len(self._draws) <= number:
            self._draws.append(self._random.random())
        return self._draws[number]

    def take(self, token: int, logprob: float) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.is_stopped = token in self.request.stop_ids

    @property
    def is_finished(self) -> bool:
        return self.is_stopped or len(self.logprobs) >= self.request.max_new_tokens

    def completion(self, weight_version: int, batch: int) -> Completion:
        figures = {"batch": float(batch), "reused": float(self.reused), "passes": float(self.passes)}
        new = tuple(self.token_ids[len(self.prompt) :])
        return Completion(new, tuple(self.logprobs), weight_version, self.is_stopped, figures)


@dataclass(frozen=True)
class _Command:
    """New weights, or with None the end."""

    weights: Mapping[str, Tensor] | None
    version: int
    done: Future[None]


@dataclass(frozen=True)
class _Step:
    """What one row adds to a pass: known tokens, then guessed ones. `draws`: it is at its end, so next tokens are drawn."""

    row: _Row
    known: list[int]
    draft: list[int]
    draws: bool


class HFEngine:
    """Raises EngineError when the model does not load, a request cannot be served, or the engine is closed."""

    def __init__(
        self,
        model_path: str | Path,
        max_batch: int = 32,
        max_tokens_context: int = 32_768,
        dtype: torch.dtype | None = None,
        weight_version: int = 0,
        cache_mb: int = 1024,
    ) -> None:
        """dtype None: bf16 on a GPU; fp32 on a CPU, where small models decode as fast and it is closest to the trainer.

        cache_mb: memory for the caches of conversations that wait for their next turn; running ones are not counted.
        """
        from transformers import AttentionInterface

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self._model = load_causal_model(model_path, dtype).to(self._device)
        self._model.eval()
        AttentionInterface.register(NAME, ragged_attention)
        self._model.set_attn_implementation(NAME)
        self._max_batch = max_batch
        self._max_tokens = max_tokens_context
        self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        self._shape = _cache_shape(self._model, dtype, self._device)
        self._kept = KeptSequences(cache_mb << 20)
        self._drafts = DraftTable()
        self._no_mask = torch.zeros(
            1, 1, 1, 1, device=self._device
        )  # keeps transformers from making one: the pass's plan says who sees what
        self._weight_version = weight_version
        self._waiting: queue.SimpleQueue[_Row | _Command] = queue.SimpleQueue()
        self._gate = threading.Lock()  # guards `_is_closed` and what is put after it
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="hf-engine", daemon=True)
        self._worker.start()

    @property
    def weight_version(self) -> int:
        return self._weight_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        if sampling.top_p != 1.0 or sampling.top_k != -1 or sampling.min_p != 0.0 or sampling.temperature < 0:
            raise EngineError(
                f"{sampling} would make the importance ratio untrue. Set top_p = 1, top_k = -1, min_p = 0, temperature >= 0."
            )
        for request in requests:
            self._check(request)
        rows = [_Row(request, sampling.temperature) for request in requests]
        with self._gate:
            self._refuse_if_closed()
            for row in rows:
                self._waiting.put(row)
        return [row.answer.result() for row in rows]

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Waits until the running requests are answered; those that come later see the new weights."""
        command = _Command(weights, version, Future())
        with self._gate:
            self._refuse_if_closed()
            self._waiting.put(command)
        command.done.result()

    def close(self) -> None:
        """Running requests are answered first."""
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
            self._waiting.put(_Command(None, 0, Future()))
        self._worker.join()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed; open another one.")

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise EngineError(
                f"request {request.tag!r} has no prompt, or max_new_tokens = {request.max_new_tokens} < 1."
            )
        total = len(request.prompt_ids) + request.max_new_tokens
        if total > self._max_tokens:
            raise EngineError(
                f"request {request.tag!r} wants {total} tokens, the engine's context is {self._max_tokens}. Shorten it."
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocabulary:
            raise EngineError(
                f"request {request.tag!r} has token ids outside the model's vocabulary of {self._vocabulary}."
            )

    # All below runs in the worker thread, which alone touches the model.

    def _work(self) -> None:
        running: list[_Row] = []
        newcomers: deque[_Row] = deque()
        command: _Command | None = None
        with torch.inference_mode():
            while True:
                command = self._gather(len(running), newcomers, command)
                if not running and self._device.type == "cpu":
                    torch.set_num_threads(_THREADS)  # the trainer sets its own when it steps
                if command and not running and not newcomers:
                    if command.weights is None:
                        return
                    self._take_weights(command.weights, command.version, command.done)
                    command = None
                    continue
                try:
                    self._admit(newcomers, running)
                    running = self._advance(running)
                except (
                    Exception
                ) as error:  # a failed pass (memory, a device) fails its requests, not the engine
                    for row in [*running, *newcomers]:
                        if not row.answer.done():
                            row.answer.set_exception(
                                EngineError(f"the model failed on request {row.request.tag!r}: {error!r}")
                            )
                    running = []
                    newcomers.clear()
                    self._kept.clear()

    def _gather(self, running: int, newcomers: deque[_Row], command: _Command | None) -> _Command | None:
        """Fill `newcomers` up to the batch's room; blocks only while there is nothing to do. A command holds back what came after it."""
        while command is None and running + len(newcomers) < self._max_batch:
            try:
                item = (
                    self._waiting.get_nowait()
                    if running
                    else self._waiting.get(timeout=_GATHER_S if newcomers else None)
                )
            except queue.Empty:
                break
            if isinstance(item, _Command):
                return item
            newcomers.append(item)
        return command

    def _admit(self, newcomers: deque[_Row], running: list[_Row]) -> None:
        """Give each newcomer the longest beginning that is computed already; it stays back while another computes more of it."""
        for _ in range(len(newcomers)):
            row = newcomers[0]  # leaves when it has its place: what fails until then is told to it
            prompt = row.prompt[:-1]  # the last token always runs, since its logits are wanted
            source, shared = self._kept.best(prompt)
            whole = source is not None and shared == source.length
            coming = 0
            for other in running:
                assert other.sequence is not None
                common = shared_prefix(other.prompt, prompt)
                coming = max(coming, common)
                if min(common, other.sequence.length) > shared:
                    source, shared, whole = other.sequence, min(common, other.sequence.length), False
            if coming >= shared + _WORTH_WAITING:
                newcomers.rotate(-1)
                continue
            if source is not None and whole:
                self._kept.take(source)
                row.sequence = source
            else:
                row.sequence = CachedSequence(self._shape, len(row.prompt) + row.request.max_new_tokens)
                if source is not None and shared >= _WORTH_COPYING:
                    row.sequence.copy_prefix(source, shared)
            row.reused = row.sequence.length
            row.drafts = RowDrafts(self._drafts, row.token_ids)
            running.append(newcomers.popleft())

    def _advance(self, running: list[_Row]) -> list[_Row]:
        """One pass: prompts are computed, next tokens drawn, right guesses taken. Answers what is finished; the rows that go on."""
        steps = self._plan(running)
        logits = self._forward(steps)
        at = 0
        tokens, logprobs = self._draw(steps, logits)
        for step in steps:
            row, sequence = step.row, step.row.sequence
            assert sequence is not None
            row.passes += 1
            sequence.extend([*step.known, *step.draft])
            if not step.draws:
                continue
            places = 1 + len(step.draft)
            for place in range(places):
                row.take(tokens[at + place], logprobs[at + place])
                if row.is_finished or (place < len(step.draft) and row.token_ids[-1] != step.draft[place]):
                    break
            at += places
            sequence.length = min(
                sequence.length, len(row.token_ids) - 1
            )  # what was computed of wrong guesses is free again
        for row in running:
            if row.is_finished and row.sequence is not None:
                self._drafts.learn(row.token_ids, row.reused)
                self._kept.keep(row.sequence)
                row.answer.set_result(row.completion(self._weight_version, len(running)))
        return [row for row in running if not row.is_finished]

    def _plan(self, running: list[_Row]) -> list[_Step]:
        """What each row adds to the next pass: one token and guesses, or as much of its prompt as there is room for."""
        steps = []
        room = _PREFILL_TOKENS
        most = min(_MOST_DRAFT, _POSITIONS // len(running) - 1)
        for row in running:
            assert row.sequence is not None and row.drafts is not None
            known = row.token_ids[row.sequence.length :]
            if len(known) > 1:
                if not room:
                    continue
                taken = known[:room]
                room -= len(taken)
                steps.append(_Step(row, taken, [], len(taken) == len(known)))
            else:
                left = row.request.max_new_tokens - len(row.logprobs) - 1
                draft = row.drafts.guess(min(most, left)) if min(most, left) > 0 else []
                steps.append(_Step(row, known, draft, draws=True))
        return steps

    def _forward(self, steps: Sequence[_Step]) -> Tensor:
        """fp32 logits (places, vocabulary): of each drawing step's last known token and of its guesses, in order."""
        token_ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        parts = []
        for step in steps:
            assert step.row.sequence is not None
            ids = [*step.known, *step.draft]
            if step.draws:
                places += range(len(token_ids) + len(step.known) - 1, len(token_ids) + len(ids))
            token_ids += ids
            first = step.row.sequence.length
            positions += range(first, first + len(ids))
            parts.append((step.row.sequence, len(ids)))
        with PassPlan(parts, self._device) as plan:
            output = self._model.base_model(
                input_ids=torch.tensor([token_ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                attention_mask=self._no_mask,
                past_key_values=plan,
                use_cache=True,
            )
        hidden = output.last_hidden_state[0, torch.tensor(places, dtype=torch.int64, device=self._device)]
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits.float()

    def _draw(self, steps: Sequence[_Step], logits: Tensor) -> tuple[list[int], list[float]]:
        """A token a place by inverting its distribution at the row's own uniform draw; log-probabilities at temperature 1.

        At a guess's place the token is what the row would draw if the guesses before it are right.
        """
        rows = [(s.row, len(s.row.logprobs) + i) for s in steps if s.draws for i in range(1 + len(s.draft))]
        if not rows:
            return [], []
        draws = torch.tensor(
            [row.draw(number) for row, number in rows], dtype=torch.float64, device=self._device
        )
        temperatures = torch.tensor(
            [row.temperature or 1.0 for row, _ in rows], dtype=torch.float64, device=self._device
        )
        shares = torch.softmax(logits.double() / temperatures[:, None], -1).cumsum(-1)
        # Below the last sum, so that rounding cannot fall off the end or onto a token of probability 0.
        targets = (draws * shares[:, -1]).clamp_max(torch.nextafter(shares[:, -1], torch.zeros_like(draws)))
        tokens = torch.searchsorted(shares, targets[:, None], right=True)[:, 0]
        greedy = [i for i, (row, _) in enumerate(rows) if row.temperature == 0]
        if greedy:
            tokens[greedy] = logits[greedy].argmax(-1)
        logprobs = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
        return tokens.tolist(), logprobs.tolist()

    def _take_weights(self, weights: Mapping[str, Tensor], version: int, done: Future[None]) -> None:
        try:
            own = self._model.state_dict()
            tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
            missing, unknown = set(own) - set(weights) - tied, set(weights) - set(own)
            wrong = [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]
            if missing or unknown or wrong:
                raise EngineError(
                    f"weights of version {version} do not fit the engine's model: missing {sorted(missing)[:3]}, "
                    f"unknown {sorted(unknown)[:3]}, of another shape {sorted(wrong)[:3]}. Trainer and engine must load the same model."
                )
            for name, tensor in weights.items():
                own[name].copy_(tensor)
            self._kept.clear()  # computed by the old weights
            self._weight_version = version
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)


def _cache_shape(model: Any, dtype: torch.dtype, device: torch.device) -> CacheShape:
    config = model.config
    heads = int(config.num_attention_heads)
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return CacheShape(
        int(config.num_hidden_layers),
        int(getattr(config, "num_key_value_heads", None) or heads),
        dim,
        dtype,
        device,
    )
