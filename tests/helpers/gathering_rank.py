"""A real rank of the DeepSpeed trainer that counts how much of the model is gathered, for tests of ZeRO-3."""

from __future__ import annotations

from typing import Any

import torch

from selfplay.settings.learning import TrainerSettings
from selfplay.training.ranks.worker import RankWorker


class GatheringRank(RankWorker):
    """Gathers nothing in advance and keeps nothing, so that it counts only what must be gathered at once."""

    def open(self, model_path: str, settings: TrainerSettings, seed: int) -> None:
        super().open(model_path, settings, seed)
        self._most = {"forward": 0, "recomputing": 0}
        for module in self._engine.module.modules():
            if settings.zero_stage == 3 and not any(True for _ in module.children()):
                module.register_forward_pre_hook(self._count)

    def _deepspeed_settings(self, settings: TrainerSettings) -> dict[str, Any]:
        made = super()._deepspeed_settings(settings)
        made["zero_optimization"] |= {
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        }
        return made

    def _gathered_now(self) -> int:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        gathered = (
            p
            for p in self._weights.parameters.values()
            if p.ds_status is not ZeroParamStatus.NOT_AVAILABLE and not p.ds_persist
        )
        return sum(parameter.ds_numel for parameter in gathered)

    def _count(self, module: torch.nn.Module, inputs: Any) -> None:
        phase = "forward" if torch._C._current_graph_task_id() == -1 else "recomputing"
        self._most[phase] = max(self._most[phase], self._gathered_now())

    def gathered(self) -> dict[str, int]:
        """Elements: most gathered at once in each phase, still gathered, and partitioned in one layer."""
        layer = sum(
            p.ds_numel
            for name, p in self._weights.parameters.items()
            if ".layers.0." in name and not p.ds_persist
        )
        return self._most | {"left": self._gathered_now(), "layer": layer}
