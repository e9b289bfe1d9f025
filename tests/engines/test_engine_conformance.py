from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine_conformance import CHECKS, Bench
from selfplay.agent.chat import load_tokenizer
from selfplay.engines.hf_engine import HFEngine
from selfplay.engines.models import load_causal_model
from selfplay.engines.scripted_engine import ScriptedEngine
from tiny_policy import build_tiny_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(params=["scripted", "hf"])
def bench(request: pytest.FixtureRequest, policy: Path) -> Iterator[Bench]:
    import torch

    tokenizer = load_tokenizer(str(policy))
    model = load_causal_model(policy, torch.float32)
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    engine = (
        ScriptedEngine(lambda turn: f"def add {turn.seed}", tokenizer)
        if request.param == "scripted"
        else HFEngine(policy, max_batch=4, max_tokens_context=200)
    )
    yield Bench(engine, tuple(range(5, 45)), tokenizer.eos_token_id, weights)
    engine.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_engine(check: Callable[[Bench], None], bench: Bench) -> None:
    check(bench)
