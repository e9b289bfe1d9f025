"""Supervised training on packed documents, with a loss weight for each token.

Fast on a CPU, bounded by steps or time, resumable. Does not know what the documents are.
Invariant: no token attends to another document of its row.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfplay.engines.models import compiled_layers, head_logits
from selfplay.engines.precision import trains_in_bf16
from selfplay.errors import UsageError
from selfplay.training.optimizer import make_optimizer
from selfplay.training.prompt_trees import Tree
from selfplay.training.tree_attention import attending_to
from selfplay.warm_start.attention import blocked, document_mask
from selfplay.warm_start.documents import Document

MAX_OPEN_ROWS = 64


@dataclass(frozen=True)
class PackedBatch:
    """Rows of documents, one after another, with padding at the end."""

    token_ids: Tensor  # (rows, seq) int64
    documents: Tensor  # (rows, seq) int64, the document's number in its row, from 1; 0 for padding
    positions: Tensor  # (rows, seq) int64, from 0 in each document
    weights: Tensor  # (rows, seq) float32, 0 for padding and for the first token of each document

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device."""
        return PackedBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class SftSettings:
    """Settings of one training. It ends at `steps` or after `max_seconds`, whichever comes first.

    The learning rate rises linearly over `warmup_steps`. It falls as a cosine to `final_share` of itself
    at the end.
    """

    steps: int
    max_seconds: float = math.inf
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_share: float = 0.05
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    bf16: Literal["auto", True, False] = "auto"  # as trainer.bf16
    # "step": the whole step. The first takes 10 to 45 s, then steps are twice as fast. A batch of a new shape
    # compiles again. "layers": each layer, for all shapes, as a large model wants it. "": nothing.
    compile: Literal["step", "layers", ""] = "step"
    checkpoint: Path | None = None  # a file; training continues from it if it exists
    checkpoint_every_s: float = 120.0


@dataclass(frozen=True)
class SftProgress:
    """One step. loss and accuracy are weighted means over the predicted tokens; tokens include padding."""

    step: int
    loss: float
    accuracy: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_s: float  # of this step
    seconds: float  # trained so far, earlier calls included


def pack(documents: Sequence[Document], rows: int, sequence_tokens: int, seed: int = 0) -> list[PackedBatch]:
    """Pack all documents, in random order, by best fit into rows of `sequence_tokens`; `rows` make a batch.

    The last batch may hold empty rows. Raises UsageError for a document that is longer than a row.
    """
    longest = max((len(d.token_ids) for d in documents), default=0)
    if longest > sequence_tokens:
        raise UsageError(
            f"a document has {longest} tokens and a row {sequence_tokens}. "
            "Raise sequence_tokens, or cut or drop it."
        )
    order = list(documents)
    generator = random.Random(seed)
    generator.shuffle(order)
    packed: list[list[Document]] = []
    # (free tokens, row). At most MAX_OPEN_ROWS, so that the time to pack grows linearly.
    open_rows: list[tuple[int, list[Document]]] = []
    for document in order:
        length = len(document.token_ids)
        fitting = [i for i, (free, _) in enumerate(open_rows) if free >= length]
        if fitting:
            best = min(fitting, key=lambda i: open_rows[i][0])
            free, row = open_rows.pop(best)
        else:
            if len(open_rows) == MAX_OPEN_ROWS:
                fullest = min(range(MAX_OPEN_ROWS), key=lambda i: open_rows[i][0])
                packed.append(open_rows.pop(fullest)[1])
            free, row = sequence_tokens, []
        row.append(document)
        open_rows.append((free - length, row))
    packed += [row for _, row in open_rows]
    generator.shuffle(packed)
    return [
        _to_batch(packed[start : start + rows], rows, sequence_tokens)
        for start in range(0, len(packed), rows)
    ]


def _to_batch(packed: Sequence[Sequence[Document]], rows: int, sequence_tokens: int) -> PackedBatch:
    token_ids = torch.zeros(rows, sequence_tokens, dtype=torch.int64)
    documents = torch.zeros(rows, sequence_tokens, dtype=torch.int64)
    positions = torch.arange(sequence_tokens).repeat(rows, 1)
    weights = torch.zeros(rows, sequence_tokens)
    for r, row in enumerate(packed):
        start = 0
        for number, document in enumerate(row, start=1):
            end = start + len(document.token_ids)
            token_ids[r, start:end] = torch.as_tensor(document.token_ids, dtype=torch.int64)
            documents[r, start:end] = number
            positions[r, start:end] = torch.arange(end - start)
            weights[r, start + 1 : end] = torch.as_tensor(document.weights, dtype=torch.float32)[1:]
            start = end
    return PackedBatch(token_ids, documents, positions, weights)


def rate_at(share: float, step: int, settings: SftSettings) -> float:
    """Learning rate of a step, counted from 0, after `share` (0 to 1) of the training."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return settings.learning_rate * warmup * (settings.final_share + (1 - settings.final_share) * cosine)


def _forward(model: Any, batch: PackedBatch, bf16: bool) -> tuple[Tensor, Tensor]:
    """(loss, accuracy): weighted means over the tokens, each predicted from those before it.

    For a compiled step: all shapes are those of the batch. The model is `blocked`.
    """
    mask = document_mask(batch.documents)
    with torch.autocast(batch.token_ids.device.type, torch.bfloat16, enabled=bf16):
        hidden = model.base_model(
            input_ids=batch.token_ids, position_ids=batch.positions, attention_mask=mask, use_cache=False
        ).last_hidden_state[:, :-1]
        logits = head_logits(model, hidden.flatten(0, 1))  # (rows * (seq - 1), vocab)
    targets, weights = batch.token_ids[:, 1:].flatten(), batch.weights[:, 1:].flatten()
    loss, right = _weighted_sums(logits, targets, weights)
    total = weights.sum().clamp_min(1e-6)
    return loss / total, right / total


def _weighted_sums(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of losses, sum of right tokens), each token with its weight."""
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum(), ((logits.argmax(-1) == targets) * weights).sum()


def _row_sums(model: Any, batch: PackedBatch, row: int, bf16: bool) -> tuple[Tensor, Tensor] | None:
    """`_weighted_sums` of one row, without its padding. None if no token of it counts.

    The model attends to the `_documents` of the row.
    """
    used = int((batch.documents[row] > 0).sum())
    token_ids, positions = batch.token_ids[row, :used], batch.positions[row, :used]
    weights = batch.weights[row, 1:used]
    counts = weights > 0
    if not counts.any():
        return None
    with torch.autocast(token_ids.device.type, torch.bfloat16, enabled=bf16):
        hidden = model.base_model(
            input_ids=token_ids[None], position_ids=positions[None], attention_mask=None, use_cache=False
        ).last_hidden_state[0, :-1]  # (tokens - 1, hidden)
        logits = head_logits(model, hidden[counts])  # (tokens that count, vocab)
    return _weighted_sums(logits, token_ids[1:][counts], weights[counts])


def _documents(batch: PackedBatch, row: int) -> tuple[Tree, ...]:
    """The documents of one row: branches that share nothing."""
    return (Tree(0, 0, tuple(torch.bincount(batch.documents[row])[1:].tolist())),)


def _by_rows(model: Any, batch: PackedBatch, bf16: bool) -> tuple[Tensor, Tensor]:
    """(loss, accuracy) as `_forward`. Adds gradients, row by row, so that one row is held at a time."""
    total = batch.weights[:, 1:].sum().clamp_min(1e-6)
    loss = accuracy = torch.zeros((), device=total.device)
    for row in range(len(batch.token_ids)):
        with attending_to(_documents(batch, row), model):
            sums = _row_sums(model, batch, row, bf16)
            if sums is None:
                continue
            if torch.is_grad_enabled():
                (sums[0] / total).backward()  # type: ignore[no-untyped-call]
        loss, accuracy = loss + sums[0].detach() / total, accuracy + sums[1] / total
    return loss, accuracy


def _save(path: Path, model: Any, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds},
        partial,
    )
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.rename(path)


def train(
    model: Any,
    batch_at: Callable[[int], PackedBatch],
    settings: SftSettings,
    progress: Callable[[SftProgress], bool | None] = lambda _: None,
) -> SftProgress:
    """Train a causal model in place. Returns the progress of the last step.

    batch_at: gives the batch of a step, from 0. It must depend on the step only, so that a resumed training
        continues with the right batch.
    progress: called after each step; training ends if it returns True.
    """
    device = next(model.parameters()).device
    bf16 = trains_in_bf16(settings.bf16, on_gpu=device.type != "cpu")
    optimizer = make_optimizer(model, settings.learning_rate, settings.weight_decay)
    step, seconds = 0, 0.0
    if settings.checkpoint is not None and settings.checkpoint.exists():
        state = torch.load(settings.checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = int(state["step"]), float(state["seconds"])
    compiled = torch.compile(_forward, dynamic=False) if settings.compile == "step" else None
    layers = compiled_layers(model) if settings.compile == "layers" else nullcontext()
    model.train()
    report = SftProgress(step, math.nan, math.nan, 0.0, math.nan, 0, 0.0, seconds)
    saved_at = seconds
    with blocked(model) if compiled else nullcontext(), layers:
        while step < settings.steps and seconds < settings.max_seconds:
            started = time.monotonic()
            batch = batch_at(step).to(device)
            rate = rate_at(max(step / settings.steps, seconds / settings.max_seconds), step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if compiled is None:
                loss, accuracy = _by_rows(model, batch, bf16)
            else:
                loss, accuracy = compiled(model, batch, bf16)
                loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            taken = time.monotonic() - started
            seconds += taken
            tokens = batch.token_ids.numel()
            report = SftProgress(
                step, loss.item(), accuracy.item(), rate, norm.item(), tokens, tokens / taken, seconds
            )
            wants_stop = bool(progress(report))
            is_last = wants_stop or step >= settings.steps or seconds >= settings.max_seconds
            if settings.checkpoint is not None and (
                is_last or seconds - saved_at >= settings.checkpoint_every_s
            ):
                _save(settings.checkpoint, model, optimizer, step, seconds)
                saved_at = seconds
            if wants_stop:
                break
    model.eval()
    return report


@torch.no_grad()
def evaluate(
    model: Any, batches: Sequence[PackedBatch], bf16: Literal["auto", True, False] = "auto"
) -> tuple[float, float]:
    """(loss, accuracy): weighted means over all tokens of the batches."""
    device = next(model.parameters()).device
    in_bf16 = trains_in_bf16(bf16, on_gpu=device.type != "cpu")
    losses = accuracies = total = 0.0
    model.eval()
    for batch in batches:
        loss, accuracy = _by_rows(model, batch.to(device), in_bf16)
        weight = batch.weights[:, 1:].sum().item()
        losses, accuracies, total = (
            losses + loss.item() * weight,
            accuracies + accuracy.item() * weight,
            total + weight,
        )
    return losses / max(total, 1e-6), accuracies / max(total, 1e-6)
