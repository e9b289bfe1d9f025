"""Measures a policy on fabricated texts that it was not trained on. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay.agent.chat import ChatFormat
    from selfplay.warm_start.fabrication import EpisodeMaker
    from selfplay.warm_start.transcripts import Transcript


@dataclass(frozen=True)
class StageResult:
    """What one stage cost and what the policy can do after it.

    tokens: of this stage, padding included. seconds: of training; 0 if unknown. figures: see `measure`.
    copied: see `measure_copying`.
    """

    name: str
    tokens: int
    seconds: float
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    copied: float = 0.0


def measured_texts(maker: EpisodeMaker, count: int, max_tokens: int) -> dict[str, list[Transcript]]:
    """`count` texts of each kind of episode, of at most `max_tokens` tokens."""
    found: dict[str, list[Transcript]] = {}
    for kind in ("injector", "solver", "solver_short"):
        texts: list[Transcript] = []
        while len(texts) < count:
            text = maker.transcript(kind)
            if len(text.ids) <= max_tokens:
                texts.append(text)
        found[kind] = texts
    return found


def measure(
    model: Any, texts: Mapping[str, Sequence[Transcript]], chat: ChatFormat
) -> dict[str, dict[str, float]]:
    """Figures for each kind of text, with every token predicted greedily from the true tokens before it.

    edit: share of texts whose last edit call is right, token by token.
    line: share of texts in which the line that this call is about is right, with its number.
    rest: share of texts in which all calls that are not edits are right.
    chance: mean probability of the last edit call at temperature 1.
    """
    return {kind: _measure(model, list(some), chat) for kind, some in texts.items()}


def end_of(opening: str, ids: Sequence[int], start: int, chat: ChatFormat) -> int:
    """The index of the first token after `opening`, a text that begins with token `start`."""
    return next(i for i in range(start, len(ids)) if len(chat.decode(ids[start : i + 1])) > len(opening))


def _measure(model: Any, texts: Sequence[Transcript], chat: ChatFormat) -> dict[str, float]:
    import torch

    model.eval()
    sums = dict.fromkeys(("edit", "line", "rest", "chance"), 0.0)
    with torch.no_grad():
        for text in texts:
            logits = model(input_ids=torch.tensor([text.ids])).logits[0].float()  # (seq, vocabulary)
            logprobs = torch.log_softmax(logits[:-1], -1)
            ids = torch.tensor(text.ids[1:])
            is_right = [True, *(logits[:-1].argmax(-1) == ids).tolist()]
            token_logprobs = [0.0, *logprobs.gather(1, ids[:, None])[:, 0].tolist()]
            edits = [range(start, text.ids.index(chat.stop_id, start) + 1) for start, _ in text.edits]
            last, opening = edits[-1], text.edits[-1][1]
            line_end = end_of(opening, text.ids, last.start, chat)
            in_edits = {i for edit in edits for i in edit}
            sums["edit"] += all(is_right[i] for i in last)
            sums["line"] += all(is_right[i] for i in range(last.start, line_end))
            sums["rest"] += all(
                is_right[i] for i in range(len(text.ids)) if text.weight[i] >= 1 and i not in in_edits
            )
            sums["chance"] += float(torch.tensor([token_logprobs[i] for i in last]).sum().exp())
    return {name: value / max(len(texts), 1) for name, value in sums.items()}
