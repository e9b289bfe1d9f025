"""Extension of vLLM's workers on a CPU (--worker-extension-cls). Only vLLM's workers import it.

It repacks a tied head after a reload of weights, and registers the gloo transfer.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

WeightTransferEngineFactory.register_engine("gloo", "selfplay.weights.gloo_transfer", "GlooTransferEngine")


class HeadRepacker:
    """Mixed into vLLM's worker class. `vllm_launch` names it as a string."""

    model_runner: Any

    def repack_head(self) -> None:
        """Pack the output head again after a reload of weights.

        On a CPU vLLM 0.32 multiplies by packed copies of matrices. A reload packs only the matrices that it
        reads from the file. A head that is tied to the embedding is not among them, and would keep the
        weights of the server's start.
        """
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
