"""A method more for the workers of a vLLM server on a CPU (--worker-extension-cls): what a reload of weights there leaves undone.

Lives in the server's processes and knows nothing else of selfplay.
"""

from __future__ import annotations

from typing import Any

QUALIFIED_NAME = "selfplay.engines.vllm_extension.HeadRepacker"
METHOD = "repack_head"


class HeadRepacker:
    """Mixed into vLLM's worker."""

    model_runner: Any

    def repack_head(self) -> None:
        """On a CPU vLLM 0.32 multiplies by packed copies of matrices. A reload packs those anew that it reads from the file; a head that
        is tied to the embedding is not among them, and would go on with the weights of the server's start."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
