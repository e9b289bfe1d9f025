"""The engine in this process: a transformers model with continuous batching and a prefix cache, no padding.

It knows no text and no tools. Invariant: a request's random draws depend on its own seed alone, not on the
batch or on drafts.
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

from selfplay.engines.base import Completion, GenerationRequest, Sampling, check_sampling
from selfplay.engines.drafts import DraftTable, RowDrafts
from selfplay.engines.models import head_logits, load_causal_model
from selfplay.engines.precision import Dtype, Precision, choose_dtype, refresh_head
from selfplay.engines.probe import check_passes, plain_logprobs
from selfplay.engines.sampling import draw_tokens
from selfplay.engines.sequences import (
    NAME,
    CachedSequence,
    CacheShape,
    PassPlan,
    PrefixCache,
    ragged_attention,
    shared_prefix,
)
from selfplay.errors import EngineError
from selfplay.runtime.cores import FreeCores, usable_cores

_GATHER_S = 0.005  # an idle engine waits this long for more requests before it starts
_MAX_PREFILL_TOKENS = 2048  # prompt tokens in one pass: running requests must not wait long for new ones
_MAX_SAMPLED_POSITIONS = 96  # positions of one pass whose next token is sampled, drafts included
_MAX_DRAFT_TOKENS = 10  # of one request in one pass
_MIN_COPIED_TOKENS = 16  # a shorter common prefix is computed again
_MIN_AWAITED_TOKENS = 32  # a request waits if another one is computing this many more tokens of its prompt


class _Row:
    """One request.

    `token_ids` is its prompt and the tokens sampled so far; `sequence` caches a prefix of them.
    """

    def __init__(self, request: GenerationRequest, sampling: Sampling) -> None:
        self.request = request
        self.temperature = sampling.temperature
        self.top_p = sampling.top_p
        self.answer: Future[Completion] = Future()
        self.prompt = np.array(request.prompt_ids, dtype=np.int64)
        self.token_ids = list(request.prompt_ids)
        self.logprobs: list[float] = []
        self.is_stopped = False
        self.sequence: CachedSequence | None = None
        self.drafts: RowDrafts | None = None
        self.reused = 0  # prompt tokens that were cached when the request came
        self.passes = 0
        self._random = random.Random(request.seed)
        self._draws: list[float] = []

    def draw(self, index: int) -> float:
        """Return the uniform random number in [0, 1) of new token `index`: the same at each call."""
        while len(self._draws) <= index:
            self._draws.append(self._random.random())
        return self._draws[index]

    def append(self, token: int, logprob: float) -> None:
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
    """New weights; None ends the worker thread."""

    weights: Mapping[str, Tensor] | None
    version: int
    done: Future[None]


@dataclass(frozen=True)
class _Step:
    """What one row adds to a pass: tokens of its text, then draft tokens."""

    row: _Row
    known: list[int]
    draft: list[int]
    is_sampled: bool  # the known tokens reach the end of the text, so next tokens are sampled


class HFEngine:
    """See `Engine`.

    Raises EngineError if the model does not load, a request cannot be served, or the engine is closed.
    """

    def __init__(
        self,
        model_path: str | Path,
        max_batch: int = 32,
        max_tokens_context: int = 32_768,
        dtype: Dtype = "auto",
        cache_mb: int = 1024,
        threads: int = 0,
    ) -> None:
        """Load the model and start the worker thread.

        dtype: as `engine.dtype`; on a CPU of matrix products only (see precision.py).
        cache_mb: MiB for the caches of conversations that wait for their next turn. Running requests are not
            counted.
        threads: on a CPU. 0: half the cores; with a large model those that nobody else uses.
        """
        from transformers import AttentionInterface

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device.type == "cuda"
        loaded = getattr(torch, choose_dtype(dtype, 0, on_gpu)) if on_gpu else torch.float32
        self._model = load_causal_model(model_path, loaded).eval().to(self._device)
        expected = plain_logprobs(self._model)
        AttentionInterface.register(NAME, ragged_attention)
        self._model.set_attn_implementation(NAME)
        self._max_batch = max_batch
        self._max_tokens = max_tokens_context
        self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        shape = _cache_shape(self._model, loaded, self._device)
        check_passes(f"the model {model_path}", self._model, shape, expected)
        self._precision = Precision.of(self._model, dtype, self._device)
        self._shape = _cache_shape(self._model, self._precision.dtype, self._device)
        # Measured for large models only: small operations lose more than a second thread gives.
        self._free_cores = FreeCores() if self._precision.is_large and not threads else None
        self.threads = threads or max(1, usable_cores() // 2)  # of the last pass
        self._prefix_cache = PrefixCache(cache_mb << 20)
        self._drafts = DraftTable()
        # Keeps transformers from making a mask; the pass's plan holds the masks.
        self._no_mask = torch.zeros(1, 1, 1, 1, device=self._device)
        self._weight_version = 0
        self._waiting: queue.SimpleQueue[_Row | _Command] = queue.SimpleQueue()
        self._gate = threading.Lock()  # guards `_is_closed`: nothing may be queued after the last command
        self._is_closed = False
        self._worker = threading.Thread(target=self._work, name="hf-engine", daemon=True)
        self._worker.start()

    @property
    def weight_version(self) -> int:
        return self._weight_version

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Completion]:
        check_sampling(sampling)
        for request in requests:
            self._check(request)
        rows = [_Row(request, sampling) for request in requests]
        with self._gate:
            self._refuse_if_closed()
            for row in rows:
                self._waiting.put(row)
        return [row.answer.result() for row in rows]

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Wait until the running requests are answered, then replace the weights.

        Later requests see the new ones.
        """
        command = _Command(weights, version, Future())
        with self._gate:
            self._refuse_if_closed()
            self._waiting.put(command)
        command.done.result()

    def close(self) -> None:
        """Answer the running requests, then end the worker thread."""
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
                f"request {request.tag!r} wants {total} tokens, the engine's context is {self._max_tokens}. "
                "Shorten the prompt or lower max_new_tokens."
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocabulary:
            raise EngineError(
                f"request {request.tag!r} has token ids outside the model's vocabulary of {self._vocabulary}."
            )

    # Everything below runs in the worker thread, which alone touches the model.

    def _work(self) -> None:
        running: list[_Row] = []
        newcomers: deque[_Row] = deque()
        command: _Command | None = None
        with torch.inference_mode():
            while True:
                command = self._gather(len(running), newcomers, command)
                if self._device.type == "cpu":
                    self._set_threads(is_first=not running)
                if command and not running and not newcomers:
                    if command.weights is None:
                        return
                    self._replace_weights(command.weights, command.version, command.done)
                    command = None
                    continue
                try:
                    self._admit(newcomers, running)
                    running = self._advance(running)
                except (
                    Exception
                ) as error:  # a failed pass (memory, device) fails its requests, not the engine
                    self._fail([*running, *newcomers], error)
                    running = []
                    newcomers.clear()

    def _set_threads(self, is_first: bool) -> None:
        """Before the first pass of a batch, since the trainer sets its own number at each step, and after."""
        if self._free_cores is not None:
            self.threads = self._free_cores.threads()
        if is_first or self._free_cores is not None:
            torch.set_num_threads(self.threads)

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        for row in rows:
            if not row.answer.done():
                text = f"the model failed on request {row.request.tag!r}: {error!r}"
                row.answer.set_exception(EngineError(text))
        self._prefix_cache.clear()

    def _gather(self, running: int, newcomers: deque[_Row], command: _Command | None) -> _Command | None:
        """Move waiting rows to `newcomers` while the batch has room. Blocks only if nothing runs.

        Returns the next command. Rows that came after it wait until it is done.
        """
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
        """Start each newcomer from its longest cached prefix.

        It waits while a running row computes more of that prefix.
        """
        for _ in range(len(newcomers)):
            row = newcomers[0]  # leaves the queue last: if a step before fails, the row gets the error
            prompt = row.prompt[:-1]  # the last token always runs, since its logits are needed
            source, shared = self._prefix_cache.longest_match(prompt)
            is_whole = source is not None and shared == source.length
            coming = 0  # tokens of the prompt that running rows have cached or will cache
            for other in running:
                assert other.sequence is not None
                common = shared_prefix(other.prompt, prompt)
                coming = max(coming, common)
                if min(common, other.sequence.length) > shared:
                    source, shared, is_whole = other.sequence, min(common, other.sequence.length), False
            if coming >= shared + _MIN_AWAITED_TOKENS:
                newcomers.rotate(-1)
                continue
            if source is not None and is_whole:
                self._prefix_cache.remove(source)
                row.sequence = source
            else:
                row.sequence = CachedSequence(self._shape, len(row.prompt) + row.request.max_new_tokens)
                if source is not None and shared >= _MIN_COPIED_TOKENS:
                    row.sequence.copy_prefix(source, shared)
            row.reused = row.sequence.length
            row.drafts = RowDrafts(self._drafts, row.token_ids)
            running.append(newcomers.popleft())

    def _advance(self, running: list[_Row]) -> list[_Row]:
        """Run one pass: compute prompts, sample next tokens, accept correct drafts.

        Answer finished rows, return the others.
        """
        steps = self._plan(running)
        logits = self._forward(steps)
        first = 0  # index of the step's first sampled token
        tokens, logprobs = self._sample(steps, logits)
        for step in steps:
            row, sequence = step.row, step.row.sequence
            assert sequence is not None
            row.passes += 1
            sequence.extend([*step.known, *step.draft])
            if not step.is_sampled:
                continue
            count = 1 + len(step.draft)
            for index in range(count):
                row.append(tokens[first + index], logprobs[first + index])
                if row.is_finished or (index < len(step.draft) and row.token_ids[-1] != step.draft[index]):
                    break
            first += count
            # Drop the cache of rejected drafts.
            sequence.length = min(sequence.length, len(row.token_ids) - 1)
        for row in running:
            if row.is_finished and row.sequence is not None:
                self._drafts.learn(row.token_ids, row.reused)
                self._prefix_cache.add(row.sequence)
                row.answer.set_result(row.completion(self._weight_version, len(running)))
        return [row for row in running if not row.is_finished]

    def _plan(self, running: list[_Row]) -> list[_Step]:
        """Decide what each row adds to the next pass: a token with drafts, or a part of its prompt."""
        steps = []
        room = _MAX_PREFILL_TOKENS
        max_draft = min(_MAX_DRAFT_TOKENS, _MAX_SAMPLED_POSITIONS // len(running) - 1)
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
                draft = row.drafts.guess(min(max_draft, left)) if min(max_draft, left) > 0 else []
                steps.append(_Step(row, known, draft, is_sampled=True))
        return steps

    def _forward(self, steps: Sequence[_Step]) -> Tensor:
        """Return fp32 logits (sampled, vocab), of each sampled step's last known token and of its drafts."""
        token_ids: list[int] = []  # the flat row
        position_ids: list[int] = []
        sampled: list[int] = []  # indices into the flat row
        parts = []
        for step in steps:
            assert step.row.sequence is not None
            ids = [*step.known, *step.draft]
            if step.is_sampled:
                sampled += range(len(token_ids) + len(step.known) - 1, len(token_ids) + len(ids))
            token_ids += ids
            first = step.row.sequence.length
            position_ids += range(first, first + len(ids))
            parts.append((step.row.sequence, len(ids)))
        indices = torch.tensor(sampled, dtype=torch.int64, device=self._device)
        with PassPlan(parts, self._device) as plan, self._precision.products():
            output = self._model.base_model(
                input_ids=torch.tensor([token_ids], device=self._device),
                position_ids=torch.tensor([position_ids], device=self._device),
                attention_mask=self._no_mask,
                past_key_values=plan,
                use_cache=True,
            )
            return head_logits(self._model, output.last_hidden_state[0, indices])  # (sampled, hidden)

    def _sample(self, steps: Sequence[_Step], logits: Tensor) -> tuple[list[int], list[float]]:
        """Sample a token at each position with the row's own random number.

        logits: (sampled, vocab). Returns tokens and their log-probabilities at temperature 1. The token at a
        draft's position is right if all drafts before it were right.
        """
        rows = [
            (s.row, len(s.row.logprobs) + i) for s in steps if s.is_sampled for i in range(1 + len(s.draft))
        ]
        if not rows:
            return [], []
        draws = [row.draw(index) for row, index in rows]
        temperatures, top_ps = [row.temperature for row, _ in rows], [row.top_p for row, _ in rows]
        return draw_tokens(logits, draws, temperatures, top_ps)

    def _replace_weights(self, weights: Mapping[str, Tensor], version: int, done: Future[None]) -> None:
        try:
            own = self._model.state_dict()
            tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
            missing, unknown = set(own) - set(weights) - tied, set(weights) - set(own)
            wrong = [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]
            if missing or unknown or wrong:
                raise EngineError(
                    f"weights of version {version} do not fit the engine's model: "
                    f"missing {sorted(missing)[:3]}, unknown {sorted(unknown)[:3]}, "
                    f"of another shape {sorted(wrong)[:3]}. "
                    "Trainer and engine must load the same model."
                )
            for name, tensor in weights.items():
                own[name].copy_(tensor)
            refresh_head(self._model)
            self._prefix_cache.clear()  # the old weights computed it
            self._weight_version = version
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)


def _cache_shape(model: Any, dtype: torch.dtype, device: torch.device) -> CacheShape:
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return CacheShape(
        int(config.num_hidden_layers),
        int(getattr(config, "num_key_value_heads", None) or heads),
        dim,
        dtype,
        device,
    )
