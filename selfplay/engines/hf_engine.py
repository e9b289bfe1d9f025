"""The embedded engine: a transformers model in this process, with continuous batching over a KV cache of its own.

Leaves text and tools to others. Invariant: a request's draws come from its own seed, whatever else is in the batch.
"""

from __future__ import annotations

import os
import queue
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfplay.engines.base import Completion, GenerationRequest, Sampling
from selfplay.errors import EngineError
from selfplay.models import load_causal_model

ATTENTION = "selfplay_cached"
# Half the cores: the others run tests meanwhile, and threads that wait for a busy core at every small operation cost far more than they
# give (10 instead of 360 tokens/s were seen on 2 busy cores).
_THREADS = max(1, (os.cpu_count() or 2) // 2)
_GATHER_S = 0.01  # how long an idle engine waits for more requests before it starts


def cached_attention(
    module: Any,
    query: Tensor,  # (batch, heads, new, dim)
    key: Tensor,  # (batch, kv_heads, slots, dim)
    value: Tensor,
    attention_mask: Tensor | None,  # (batch, 1, new, slots) bool
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention that never copies the cache: the heads of a group become rows of one product. -> (batch, new, heads, dim)"""
    batch, heads, new, dim = query.shape
    kv_heads = key.shape[1]
    if new > 1:
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=heads != kv_heads
        )
        return output.transpose(1, 2), None
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    output = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(batch, 1, heads, dim), None


class _Cache:
    """Keys and values of all layers in slots, allocated ahead. Quacks like a transformers cache for one forward pass."""

    is_compileable = False

    def __init__(self, keys: list[Tensor], values: list[Tensor], used: int) -> None:
        self.keys, self.values = keys, values  # each (batch, kv_heads, slots, dim)
        self.used = used  # slots filled before the current forward pass

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.used + key.shape[2]
        if layer == len(self.keys):  # the first pass of this batch
            self.keys.append(key)
            self.values.append(value)
            return key, value
        self.keys[layer][:, :, self.used : end] = key
        self.values[layer][:, :, self.used : end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        return self.used


@dataclass(eq=False)
class _Row:
    """One running request. `next_logits` of the batch belong to its next token."""

    request: GenerationRequest
    temperature: float
    answer: Future[Completion]
    random: random.Random = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_stopped: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.request.seed)

    @property
    def is_finished(self) -> bool:
        return self.is_stopped or len(self.token_ids) >= self.request.max_new_tokens


class _Batch:
    """Rows that decode together, right-aligned so that the next slot is the same for all: the mask says which slots are a row's own."""

    def __init__(self, rows: list[_Row], cache: _Cache, mask: Tensor, logits: Tensor) -> None:
        self.rows = rows
        self.cache = cache
        self.mask = mask  # (rows, used) bool
        self.logits = logits  # (rows, vocab) fp32

    def select(self, indices: list[int]) -> None:
        """Keep these rows, and no slot that none of them uses any more."""
        chosen = torch.tensor(indices, device=self.mask.device)
        mask = self.mask[chosen]
        first = int(mask.any(0).int().argmax())
        used = self.cache.used
        keys = [k[:, :, first:used][chosen] for k in self.cache.keys]
        values = [v[:, :, first:used][chosen] for v in self.cache.values]
        self.rows = [self.rows[i] for i in indices]
        self.mask, self.logits = mask[:, first:], self.logits[chosen]
        self.cache = _Cache(keys, values, used - first)

    def reserve(self, more: int) -> None:
        """Room for `more` slots after the used ones."""
        used = self.cache.used
        if self.cache.keys[0].shape[2] < used + more:
            grown = used + max(more, 64)
            self.cache = _Cache([_grow(k, used, grown) for k in self.cache.keys], [_grow(v, used, grown) for v in self.cache.values], used)


def _grow(tensor: Tensor, used: int, slots: int) -> Tensor:
    rows, heads, _, dim = tensor.shape
    grown = tensor.new_zeros(rows, heads, slots, dim)
    grown[:, :, :used] = tensor[:, :, :used]
    return grown


def _align(tensor: Tensor, used: int, slots: int) -> Tensor:
    """The used slots moved to the right end of `slots` slots."""
    if used == slots:
        return tensor[:, :, :used]
    rows, heads, _, dim = tensor.shape
    aligned = tensor.new_zeros(rows, heads, slots, dim)
    aligned[:, :, slots - used :] = tensor[:, :, :used]
    return aligned


def _join(first: _Batch, second: _Batch) -> _Batch:
    slots = max(first.cache.used, second.cache.used)
    parts = (first, second)
    keys = [torch.cat([_align(p.cache.keys[i], p.cache.used, slots) for p in parts]) for i in range(len(first.cache.keys))]
    values = [torch.cat([_align(p.cache.values[i], p.cache.used, slots) for p in parts]) for i in range(len(first.cache.values))]
    mask = torch.cat([torch.nn.functional.pad(p.mask, (slots - p.cache.used, 0)) for p in parts])
    return _Batch(first.rows + second.rows, _Cache(keys, values, slots), mask, torch.cat([first.logits, second.logits]))


class HFEngine:
    """Raises EngineError when the model does not load, a request cannot be served, or the engine is closed."""

    def __init__(
        self,
        model_path: str | Path,
        max_batch: int = 32,
        max_tokens_context: int = 32_768,
        dtype: torch.dtype | None = None,
        weight_version: int = 0,
    ) -> None:
        """dtype None: bf16 on a GPU; fp32 on a CPU, where small models decode as fast and it is closest to the trainer."""
        from transformers import AttentionInterface

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self._model = load_causal_model(model_path, dtype).to(self._device)
        self._model.eval()
        AttentionInterface.register(ATTENTION, cached_attention)
        self._model.set_attn_implementation(ATTENTION)
        self._max_batch = max_batch
        self._max_tokens = max_tokens_context
        self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
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
            raise EngineError(f"{sampling} would make the importance ratio untrue. Set top_p = 1, top_k = -1, min_p = 0, temperature >= 0.")
        for request in requests:
            self._check(request)
        rows = [_Row(request, sampling.temperature, Future()) for request in requests]
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
            raise EngineError(f"request {request.tag!r} has no prompt, or max_new_tokens = {request.max_new_tokens} < 1.")
        total = len(request.prompt_ids) + request.max_new_tokens
        if total > self._max_tokens:
            raise EngineError(f"request {request.tag!r} wants {total} tokens, the engine's context is {self._max_tokens}. Shorten it.")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocabulary:
            raise EngineError(f"request {request.tag!r} has token ids outside the model's vocabulary of {self._vocabulary}.")

    # All below runs in the worker thread, which alone touches the model.

    def _work(self) -> None:
        batch: _Batch | None = None
        newcomers: list[_Row] = []
        command: _Command | None = None
        with torch.inference_mode():
            while True:
                command = self._gather(batch, newcomers, command)
                if batch is None and self._device.type == "cpu":
                    torch.set_num_threads(_THREADS)  # the trainer sets its own when it steps
                if command and batch is None and not newcomers:
                    if command.weights is None:
                        return
                    self._take_weights(command.weights, command.version, command.done)
                    command = None
                    continue
                try:
                    if newcomers:
                        fresh = self._prefill(list(newcomers))
                        batch = _join(batch, fresh) if batch else fresh
                        newcomers.clear()
                    if batch is not None:
                        batch = self._advance(batch)
                except Exception as error:  # a failed pass (memory, a device) fails its requests, not the engine
                    for row in [*newcomers, *(batch.rows if batch else [])]:
                        if not row.answer.done():
                            row.answer.set_exception(EngineError(f"the model failed on request {row.request.tag!r}: {error!r}"))
                    newcomers.clear()
                    batch = None

    def _gather(self, batch: _Batch | None, newcomers: list[_Row], command: _Command | None) -> _Command | None:
        """Fill `newcomers` up to the batch's room; blocks only while there is nothing to do. A command holds back what came after it."""
        running = len(batch.rows) if batch else 0
        while command is None and running + len(newcomers) < self._max_batch:
            try:
                item = self._waiting.get_nowait() if running else self._waiting.get(timeout=_GATHER_S if newcomers else None)
            except queue.Empty:
                break
            if isinstance(item, _Command):
                return item
            newcomers.append(item)
        return command

    def _prefill(self, rows: list[_Row]) -> _Batch:
        """Compute each different prompt once (a group's episodes share theirs), left-padded."""
        prompts = list(dict.fromkeys(row.request.prompt_ids for row in rows))
        longest = max(map(len, prompts))
        token_ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=self._device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=self._device)
        for i, prompt in enumerate(prompts):
            token_ids[i, longest - len(prompt) :] = torch.tensor(prompt, device=self._device)
            mask[i, longest - len(prompt) :] = True
        cache = _Cache([], [], 0)
        causal = torch.ones(longest, longest, dtype=torch.bool, device=self._device).tril()
        # A padding query looks at itself: a row of the mask without any place to look gives NaN.
        visible = (mask[:, None, :] & causal) | torch.eye(longest, dtype=torch.bool, device=self._device)
        logits = self._forward(token_ids, (mask.cumsum(1) - 1).clamp_min(0), visible[:, None], cache)
        cache.used = longest
        batch = _Batch(rows, cache, mask, logits)
        if len(prompts) < len(rows):
            place = {prompt: i for i, prompt in enumerate(prompts)}
            indices = torch.tensor([place[row.request.prompt_ids] for row in rows], device=self._device)
            cache = _Cache([k[indices] for k in cache.keys], [v[indices] for v in cache.values], longest)
            batch = _Batch(rows, cache, mask[indices], logits[indices])
        return batch

    def _forward(self, token_ids: Tensor, positions: Tensor, visible: Tensor, cache: _Cache) -> Tensor:
        """fp32 logits (rows, vocab) after the last token of each row."""
        output = self._model.base_model(
            input_ids=token_ids, position_ids=positions, attention_mask=visible, past_key_values=cache, use_cache=True
        )
        logits: Tensor = self._model.get_output_embeddings()(output.last_hidden_state[:, -1])
        return logits.float()

    def _advance(self, batch: _Batch) -> _Batch | None:
        """Draw one token a row, answer finished rows and let them leave, compute the next logits of the others."""
        tokens = self._draw(batch)
        alive = []
        for i, row in enumerate(batch.rows):
            if row.is_finished:
                row.answer.set_result(
                    Completion(
                        tuple(row.token_ids), tuple(row.logprobs), self._weight_version, row.is_stopped, {"batch": float(len(batch.rows))}
                    )
                )
            else:
                alive.append(i)
        if not alive:
            return None
        if len(alive) < len(batch.rows):
            batch.select(alive)
            tokens = tokens[torch.tensor(alive, device=self._device)]
        batch.reserve(1)
        positions = batch.mask.sum(1, keepdim=True)  # (rows, 1): the number of tokens before it
        batch.mask = torch.nn.functional.pad(batch.mask, (0, 1), value=True)
        batch.logits = self._forward(tokens[:, None], positions, batch.mask[:, None, None, :], batch.cache)
        batch.cache.used += 1
        return batch

    def _draw(self, batch: _Batch) -> Tensor:
        """(rows,) next tokens by inverting each row's distribution at its own uniform draw; log-probabilities at temperature 1."""
        scores = torch.log_softmax(batch.logits, -1)
        draws = torch.tensor([row.random.random() for row in batch.rows], dtype=torch.float64, device=self._device)
        temperatures = torch.tensor([row.temperature or 1.0 for row in batch.rows], dtype=torch.float64, device=self._device)
        shares = torch.softmax(batch.logits.double() / temperatures[:, None], -1).cumsum(-1)
        # Below the last sum, so that rounding cannot fall off the end or onto a token of probability 0.
        targets = (draws * shares[:, -1]).clamp_max(torch.nextafter(shares[:, -1], torch.zeros_like(draws)))
        tokens = torch.searchsorted(shares, targets[:, None], right=True)[:, 0]
        greedy = [i for i, row in enumerate(batch.rows) if row.temperature == 0]
        if greedy:
            tokens[greedy] = batch.logits[greedy].argmax(-1)
        logprobs = scores.gather(1, tokens[:, None])[:, 0].tolist()
        for row, token, logprob in zip(batch.rows, tokens.tolist(), logprobs, strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.is_stopped = token in row.request.stop_ids
        return tokens

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
            self._weight_version = version
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)


@dataclass(frozen=True)
class _Command:
    """New weights, or with None the end."""

    weights: Mapping[str, Tensor] | None
    version: int
    done: Future[None]
