"""Names of weights as checkpoints and servers have them, from the names that a loaded model has.

transformers joins tensors when it loads a model: the experts of a layer become one tensor. vLLM reads the
names of the checkpoint, one tensor for each expert. Invariant: `convert` gives what `save_pretrained` writes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def layer_groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group names of weights that are gathered together: by layer, and by module outside of layers."""

    def group(name: str) -> str:
        numbered = re.match(r"(.*?\.\d+)\.", name)
        return numbered[1] if numbered else name.rpartition(".")[0]

    return [tuple(members) for _, members in itertools.groupby(names, key=group)]


class CheckpointNames:
    """The names in checkpoints of one model."""

    def __init__(self, model: Any) -> None:
        """model: a loaded transformers model, or one without memory. Its weights are not read."""
        self._model = model

    @classmethod
    def of_folder(cls, model: str) -> CheckpointNames:
        """model: a folder or id. Reads its config.json."""
        from transformers import AutoConfig, AutoModelForCausalLM

        make_model: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            return cls(make_model(AutoConfig.from_pretrained(model)))

    def convert(self, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a layer group under their names in checkpoints; a joined one is split.

        No data is copied if nothing is split, or if splitting gives views.
        """
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self._model, dict(group)) if group else {}

    def converted(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """All weights, a layer group at a time."""
        for names in layer_groups(list(weights)):
            yield from self.convert({name: weights[name] for name in names}).items()
