"""Extension of vLLM's workers on a CPU (--worker-extension-cls). Only vLLM's workers import it.

It packs a tied head and experts after a reload of weights, and registers the gloo transfer.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

WeightTransferEngineFactory.register_engine("gloo", "selfplay.weights.gloo_transfer", "GlooTransferEngine")


class Repacker:
    """Mixed into vLLM's worker class. `vllm_launch` names it as a string."""

    model_runner: Any

    def repack(self) -> None:
        """Pack again, after a reload of weights, what vLLM leaves as it is.

        On a CPU vLLM 0.32 multiplies by packed copies of matrices. A reload packs only the matrices that it
        reads from the file. A head that is tied to the embedding is not among them, and would keep the
        weights of the server's start. Experts are read, and would stay unpacked.
        """
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
            elif isinstance(module, RoutedExperts):
                module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)
