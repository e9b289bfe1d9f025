"""Training texts as token ids, with a weight for each token.

Does not make or pack them. Invariant: a document has as many weights as tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ACTION_WEIGHT = 1.0  # of a token that the policy writes
SHOWN_WEIGHT = 0.05  # of a token of prompts and observations


@dataclass(frozen=True)
class Document:
    """One text. `weights[i]` is the loss weight of predicting `token_ids[i]`.

    A token of weight 0 is only context. Nothing predicts the first token. Raises ValueError if the
    lengths differ.
    """

    token_ids: Sequence[int]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.weights):
            raise ValueError(f"a document has {len(self.token_ids)} tokens and {len(self.weights)} weights")

    def with_shown_weight(self, weight: float) -> Document:
        """The same text with another weight for the tokens that the policy is shown."""
        if weight == SHOWN_WEIGHT:
            return self
        return Document(self.token_ids, [weight if w == SHOWN_WEIGHT else w for w in self.weights])
