from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from selfplay.engines.models import load_causal_model
from selfplay.settings.learning import TrainerSettings
from selfplay.training.batch import Sample, make_micro_batches
from selfplay.training.prompt_trees import Tree, make_shared_batches
from selfplay.training.torch_trainer import TorchTrainer
from selfplay.training.tree_attention import _Flash, _masked, can_attend
from tiny_model import make_tiny_model, make_tiny_shape

SETTINGS = TrainerSettings(
    learning_rate=1e-2, warmup_updates=0, bf16=False, batch_tokens=256, weight_decay=0.1, max_grad_norm=1e9
)


def groups(seed: int = 0) -> list[Sample]:
    """Two groups of episodes with a common prompt each, and an episode of its own. One has no gradient."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(50, (count,), generator=generator).tolist()

    made = []
    for prompt, rests in ((ids(30), (12, 25, 7, 9)), (ids(11), (20, 3, 14)), (ids(6), (10,))):
        for rest in rests:
            mask = [0] * len(prompt) + [1, *torch.randint(2, (rest - 1,), generator=generator).tolist()]
            tokens = [*prompt, *ids(rest)]
            advantage = (-1.0) ** rest * (1 + rest / 10)
            made.append(Sample(tokens, mask, [-3.5] * len(tokens), advantage, "solver"))
    made[1] = replace(made[1], advantage=0.0)
    made[6] = replace(made[6], role="injector", weight=0.5)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def test_a_prompt_is_computed_once_and_each_episode_s_rest_once() -> None:
    samples = groups()
    (batch,) = make_shared_batches(samples, 4096)
    assert batch.trees is not None and batch.token_ids.shape[0] == 1
    assert sum(tree.prompt for tree in batch.trees) == 29 + 10
    assert sum(tree.tokens for tree in batch.trees) == batch.padded_tokens
    separate = make_micro_batches(samples, 4096)
    assert batch.padded_tokens < sum(b.padded_tokens for b in separate)


def test_a_group_beyond_the_budget_is_cut() -> None:
    batches = make_shared_batches(groups(), 64)
    assert all(batch.padded_tokens <= 64 for batch in batches)
    learned = [int(i) for batch in batches for i in batch.action_samples.unique()]
    assert sorted(learned) == [0, 2, 3, 4, 5, 6, 7]


def test_actions_keep_their_tokens_and_values() -> None:
    samples = [replace(s, advantage=[float(i) for i in range(len(s.token_ids))]) for s in groups()]
    found = {}
    for batch in make_shared_batches(samples, 100):
        tokens = batch.token_ids[batch.action_rows, batch.action_positions]
        assert batch.position_ids is not None
        places = batch.position_ids[0, batch.action_positions]
        for owner, place, token, advantage in zip(
            batch.action_samples.tolist(),
            places.tolist(),
            tokens.tolist(),
            batch.advantages.tolist(),
            strict=True,
        ):
            found[owner, place] = (token, advantage)
    assert found == {
        (number, i): (s.token_ids[i], float(i))
        for number, s in enumerate(samples)
        for i in range(len(s.token_ids))
        if s.loss_mask[i]
    }


@pytest.mark.parametrize(
    ("budget", "changes"),
    [
        (4096, {}),
        (90, {"packing": True}),
        (4096, {"kl_coef": 0.1}),
        (90, {"activation_checkpointing": True, "train_embeddings": False}),
    ],
)
def test_sharing_prompts_changes_no_gradient(model: Path, budget: int, changes: dict[str, object]) -> None:
    changes_no_gradient(model, budget, changes)


@pytest.mark.parametrize("kind", ["cwm", "mistral", "gemma2", "gemma3_text", "gemma3", "granite"])
def test_sharing_prompts_keeps_windows_and_caps(tmp_path: Path, kind: str) -> None:
    """Prompts and episodes are longer than the windows."""
    changes_no_gradient(make_tiny_shape(tmp_path / "model", kind), 4096, {})


def changes_no_gradient(model: Path, budget: int, changes: dict[str, object]) -> None:
    reached = []
    for shared in (False, True):
        settings = SETTINGS.model_copy(update={**changes, "batch_tokens": budget, "shared_prompts": shared})
        trainer = TorchTrainer(model, settings, 128, seed=1)
        metrics = [trainer.step(groups(seed)) for seed in range(2)]
        reached.append((metrics, trainer.export_weights()))
    (plain, weights), (shared_metrics, others) = reached
    for one, other in zip(plain, shared_metrics, strict=True):
        assert one["padded_tokens"] > other["padded_tokens"]
        for name in one.keys() - {"padded_tokens", "seconds", "tokens_per_s"}:
            assert other[name] == pytest.approx(one[name], rel=2e-4, abs=1e-6), name
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 2e-4


def test_in_bfloat16_the_gradient_norm_is_that_of_separate_rows(model: Path) -> None:
    settings = SETTINGS.model_copy(update={"bf16": True})
    norms = [
        TorchTrainer(model, settings.model_copy(update={"shared_prompts": shared}), 128, 1).step(groups())[
            "grad_norm"
        ]
        for shared in (False, True)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.03)


def test_flash_attention_of_trees_equals_masked_attention() -> None:
    trees = (Tree(0, 9, (4, 7, 1)), Tree(21, 0, (6,)), Tree(27, 3, (2, 2)))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 34, 16, generator=generator, requires_grad=True) for _ in range(3)]
    given = torch.randn(1, 2, 34, 16, generator=generator)
    outputs = [attend(*inputs, trees, 0.3) for attend in (_Flash.apply, _masked)]
    assert torch.allclose(*outputs, atol=1e-5)
    gradients = [torch.autograd.grad((output * given).sum(), inputs) for output in outputs]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_models_that_attend_otherwise_keep_separate_rows() -> None:
    own = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4)).eval()
    assert not can_attend(own)  # distances of tokens in the row, not of their positions, bias its scores


def test_the_trained_model_attends_as_always_after_a_step(model: Path) -> None:
    trainer = TorchTrainer(model, SETTINGS, 128, seed=1)
    trainer.step(groups())
    assert (
        trainer._model.config._attn_implementation
        == load_causal_model(model, torch.float32).config._attn_implementation
    )
