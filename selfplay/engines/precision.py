"""In which precision a model is computed on this machine, and half precision on a CPU.

On a CPU with instructions for bf16 the hf engine does what the trainers do: matrix products in bf16, all else
in fp32 (torch.autocast). On other CPUs both compute in fp32.
The weights of linear layers are kept in bf16, so that they are not converted at every token. Invariant: equal
weights give the log-probabilities of a trainer with `trainer.bf16`, but for the order of sums.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# Below, fp32 decodes as fast: a pass is small operations rather than matrix products.
LARGE_PARAMETERS = 20_000_000


def cpu_has_bf16() -> bool:
    """True if this CPU multiplies bf16 matrices in hardware: AVX-512 BF16, AMX or Arm's BF16."""
    import torch

    # torch's own functions with these names are not documented, so a version without them is no error.
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    has_avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    has_arm = getattr(torch.cpu, "_is_arm_bf16_supported", lambda: False)
    return bool(supported and supported()) and bool(has_avx512() or has_amx() or has_arm())


def trains_in_bf16(wanted: Literal["auto", True, False], on_gpu: bool) -> bool:
    """What `trainer.bf16` means: if a trainer's matrix products are in bf16 on this machine."""
    return (on_gpu or cpu_has_bf16()) if wanted == "auto" else wanted


def choose_dtype(wanted: Dtype, parameters: int, on_gpu: bool) -> str:
    """The dtype that `engine.dtype` means for a model of so many parameters."""
    if wanted != "auto":
        return wanted
    if on_gpu or (parameters > LARGE_PARAMETERS and cpu_has_bf16()):
        return "bfloat16"
    return "float32"


def stored_parameters(model: str) -> int | None:
    """The parameters in the safetensors files of a model folder; None if it is no folder or has none."""
    from safetensors import SafetensorError, safe_open

    count = 0
    try:
        for file in sorted(Path(model).glob("*.safetensors")):
            with safe_open(file, "pt") as weights:
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return count or None


@dataclass(frozen=True)
class Precision:
    """How the hf engine computes a model. dtype: of matrix products, keys and values.

    is_mixed: all else is in fp32. is_large: a pass is matrix products rather than small operations.
    """

    dtype: torch.dtype
    is_mixed: bool
    is_large: bool

    @classmethod
    def of(cls, model: Any, wanted: Dtype, device: torch.device) -> Precision:
        """Choose the precision of a model, and convert its weights in place on a CPU. It was loaded in fp32
        there, and on a GPU in the dtype that `choose_dtype` gives.

        On a CPU a head that shares the embedding's weight gets its own, since embeddings stay fp32: call
        `refresh_head` after a change of the embedding.
        """
        import torch

        on_gpu, size = device.type != "cpu", model.num_parameters()
        dtype = getattr(torch, choose_dtype(wanted, size, on_gpu))
        is_mixed = not on_gpu and dtype != torch.float32
        for module in model.modules() if is_mixed else ():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
        return cls(dtype, is_mixed, size > LARGE_PARAMETERS)

    def products(self) -> AbstractContextManager[Any]:
        """Inside the block matrix products are in `dtype`, as in the trainers."""
        import torch

        # Weights have that type already, so nothing is worth a cache.
        return torch.autocast("cpu", self.dtype, cache_enabled=False) if self.is_mixed else nullcontext()


def refresh_head(model: Any) -> None:
    """Copy the embedding into a head that is tied to it and has its own weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(model, "all_tied_weights_keys", None) and head.weight is not embedding.weight:
        head.weight.copy_(embedding.weight)
