"""What a vLLM server's workers on a CPU are given besides (--worker-extension-cls): a method for what a reload leaves undone there, and a
transfer of weights that works there. Imported by them alone, and knows nothing else of selfplay.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

WeightTransferEngineFactory.register_engine("gloo", "selfplay.weights.gloo_transfer", "GlooTransferEngine")


class HeadRepacker:
    """Mixed into vLLM's worker. `vllm_servers` knows its name."""

    model_runner: Any

    def repack_head(self) -> None:
        """On a CPU vLLM 0.32 multiplies by packed copies of matrices. A reload packs those anew that it reads from the file; a head that
        is tied to the embedding is not among them, and would go on with the weights of the server's start."""
        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
