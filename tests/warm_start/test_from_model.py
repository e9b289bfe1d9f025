"""A warm start from a model: its weights or an adapter are trained, in its own chat format."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay import cli
from selfplay.agent.chat import load_tokenizer
from selfplay.agent.episode import Role
from selfplay.config import build_config
from selfplay.errors import ConfigError, EngineError
from selfplay.warm_start.model_card import _command
from selfplay.warm_start.pipeline import warm_start
from selfplay.warm_start.recorded import recorded_texts
from selfplay.warm_start.settings import read_settings
from selfplay.warm_start.stages import Measures, StageTrainer
from store_rows import an_episode_value, recorded_run
from tiny_policy import build_tiny_policy, tiny_warm_start
from tiny_repository import build_tiny_repository

STAGE = [{"name": "one", "steps": 2, "learning_rate": 1e-2, "mix": {"injector": 1, "solver_drill": 1}}]


def start_from(tmp_path: Path, **changes: Any) -> tuple[Path, Path]:
    """(the base, the output) of a warm start from a tiny policy."""
    base = build_tiny_policy(tmp_path / "base")
    repository = str(build_tiny_repository(tmp_path / "tiny"))
    changes = {"stages": STAGE, **changes}
    settings = tiny_warm_start(
        repository, base=str(base), shown_weight=0.0, train_embeddings=False, **changes
    )
    warm_start(tmp_path / "policy", settings)
    return base, tmp_path / "policy"


def weights(folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_all_weights_but_the_embeddings_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    base, policy = map(weights, start_from(tmp_path))
    moved = {name for name in base if not torch.allclose(base[name], policy[name], atol=1e-2, rtol=1e-2)}
    assert "model.embed_tokens.weight" not in moved
    assert any("mlp" in name for name in moved)
    card = (tmp_path / "policy" / "MODEL_CARD.md").read_text()
    assert str(tmp_path / "base") in card
    assert "made from nothing" not in card


def test_an_adapter_is_written_beside_the_merged_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    base, policy = start_from(tmp_path, lora_rank=2)
    assert json.loads((policy / "adapter" / "adapter_config.json").read_text())["r"] == 2
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    together = peft.PeftModel.from_pretrained(model, policy / "adapter").merge_and_unload().state_dict()
    merged, before = weights(policy), weights(base)
    for name, tensor in together.items():
        assert torch.allclose(tensor, merged[name], atol=2e-2), name
    assert any(not torch.equal(merged[name], before[name].bfloat16().float()) for name in merged)


def test_training_goes_on_from_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="the package peft is not installed")
    from safetensors.torch import load_file

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    _, first = start_from(tmp_path, lora_rank=2)
    before = load_file(first / "adapter" / "adapter_model.safetensors")
    first.rename(tmp_path / "first")
    adapter = str(tmp_path / "first" / "adapter")
    still = [{**STAGE[0], "steps": 1, "learning_rate": 1e-12}]
    _, second = start_from(tmp_path, lora_rank=2, adapter=adapter, stages=still)
    after = load_file(second / "adapter" / "adapter_model.safetensors")
    assert all(before[name].equal(after[name]) for name in before)
    with pytest.raises(ConfigError, match=r"has rank 2, and lora_rank is 3. Set lora_rank"):
        start_from(tmp_path / "other", lora_rank=3, adapter=adapter)


def test_an_adapter_starts_from_the_difference_of_a_trained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    base = build_tiny_policy(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weight = model.model.layers[0].mlp.down_proj.weight
    torch.manual_seed(0)
    change = torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
    with torch.no_grad():
        weight.add_(change)
    model.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "trained")
    still = [{**STAGE[0], "steps": 1, "learning_rate": 1e-12}]
    _, policy = start_from(tmp_path, lora_rank=2, adapter=str(tmp_path / "trained"), stages=still)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = plain.model.layers[0].mlp.down_proj.weight.detach().clone()
    merged = peft.PeftModel.from_pretrained(plain, policy / "adapter").merge_and_unload()
    after = merged.model.layers[0].mlp.down_proj.weight.detach()
    assert (after - before - change).abs().max() < 0.05 * change.abs().max()
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)


def test_proven_episodes_of_a_run_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    base = build_tiny_policy(tmp_path / "base")
    run = run_of(base, tmp_path / "run")
    texts = recorded_texts([str(run)], load_tokenizer(str(base)))
    assert {role: len(found) for role, found in texts.items()} == {Role.INJECTOR: 2, Role.SOLVER: 1}
    stage = [{"name": "one", "steps": 1, "mix": {"executed_injector": 1, "executed_solver": 1}}]
    none = {"injector_episodes": 0, "solver_episodes": 0}
    settings = tiny_warm_start(
        str(build_tiny_repository(tmp_path / "tiny")),
        base=str(base),
        episodes=(str(run),),
        stages=stage,
        executed=none,
    )
    warm_start(tmp_path / "policy", settings)
    assert (tmp_path / "policy" / "model.safetensors").is_file()


def test_runs_of_another_tokenizer_and_folders_that_are_no_run_are_refused(tmp_path: Path) -> None:
    run = run_of(build_tiny_policy(tmp_path / "base"), tmp_path / "run")
    with pytest.raises(ConfigError, match="whose tokens or chat template are others"):
        recorded_texts([str(run)], load_tokenizer("carried"))
    with pytest.raises(ConfigError, match="is no run folder"):
        recorded_texts([str(tmp_path)], load_tokenizer("carried"))


def run_of(base: Path, folder: Path) -> Path:
    """A run of the policy `base` with two bugs and four graded attempts, of which one passed."""
    recorded_run(folder)
    (folder / "config.json").write_text(build_config({"policy": {"model": str(base)}}).resolved())
    for member in (0, 1):
        injector = replace(
            an_episode_value(), role=Role.INJECTOR, episode_id=f"u0001-inj0-m{member}", finish="submitted"
        )
        injector.write(folder / "episodes")
    return folder


def test_an_adapter_without_a_model_to_start_from_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["selfplay", "warm-start", "--adapter", "--output", str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "call it with --from MODEL" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["/nowhere/model", "no-such-file.gguf"])
def test_a_base_that_is_not_there_is_refused_before_anything_is_fetched(base: str, tmp_path: Path) -> None:
    said: list[str] = []
    settings = tiny_warm_start(str(build_tiny_repository(tmp_path / "tiny")), base=base, stages=STAGE)
    with pytest.raises(EngineError, match=f"--from = '{base}'"):
        warm_start(tmp_path / "policy", settings, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("warm-start", []),
        ("warm-start", ["seed=3", "shape.layers=2", 'stages=[{name="a", steps=3, mix={solver=1.0}}]']),
        ("warm-start-from", ['base="some/model"', "rows=3", "executed.whole_lines=false", "favoured=2"]),
        (
            "warm-start-adapter",
            ['base="some/model"', 'adapter="a folder"', "compile=false", 'corpus=["a==1"]'],
        ),
    ],
)
def test_the_command_in_the_card_makes_the_same_settings(recipe: str, changes: list[str]) -> None:
    wanted = read_settings(Path(recipe), changes)
    command = _command(wanted)
    words = shlex.split(command)
    given = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    if "--from" in words:
        given.append(f"base={words[words.index('--from') + 1]}")
    assert words[:2] == ["selfplay", "warm-start"] and words[-2:] == ["--output", "DIR"]
    assert ("--adapter" in words) == (recipe == "warm-start-adapter")
    assert read_settings(Path(recipe), given) == wanted
    assert len(given) == len(changes)


def test_texts_for_a_policy_from_nothing_are_refused_with_a_base() -> None:
    with pytest.raises(ConfigError, match="leave copy out of each stage's mix"):
        read_settings(Path("warm-start"), ['base="some/model"'])


def test_the_recipe_of_a_start_from_a_model_is_read() -> None:
    settings = read_settings(Path("warm-start-from"), ['base="some/model"'])
    assert (settings.base, settings.shown_weight, settings.compile) == ("some/model", 0.0, True)
    with pytest.raises(ConfigError, match="lora_rank"):
        read_settings(None, ["lora_rank=4"])


def test_the_recipe_of_rejection_fine_tuning_plays_no_teacher() -> None:
    settings = read_settings(Path("warm-start-nebius"), ['base="some/model"', 'episodes=["a run"]'])
    (stage,) = settings.stages
    assert (stage.learning_rate, stage.weight_decay, stage.final_share) == (5e-6, 0.1, 0.0)
    assert settings.executed.injector_episodes == settings.executed.solver_episodes == 0


def test_without_a_compiler_a_warm_start_says_so_and_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    settings = read_settings(Path("warm-start-from"), ['base="some/model"'])
    trainer = StageTrainer(tmp_path, tmp_path, settings, said.append, None, None, Measures(None, {}, []))
    monkeypatch.setattr("selfplay.warm_start.stages.can_compile", lambda: True)
    assert trainer._compiled() == "layers" and not said
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert trainer._compiled() == "" and "no C++ compiler" in said[0]


def test_a_model_that_is_not_there_is_named_with_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EngineError, match=r"(?s)nobody/nothing.*Set --from to a model folder or id"):
        load_tokenizer("nobody/nothing", "--from")
