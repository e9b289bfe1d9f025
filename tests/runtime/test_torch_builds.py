"""transformers works in an environment where torch is built for the CPU and its companions for CUDA.

The packages for vLLM on CPUs make such an environment.
"""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import selfplay

LOAD = """
import torch
from selfplay.agent.chat import policy_path
from selfplay.engines.models import load_causal_model
print(type(load_causal_model(policy_path("carried"), torch.float32)).__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not metadata.version("torch").endswith("+cpu"), reason="torch is no CPU build here: nothing is mismatched"
)
def test_models_load_beside_a_torchvision_of_another_build(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(selfplay.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "Qwen3ForCausalLM", done.stderr
