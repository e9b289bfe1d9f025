"""A whole warm start with a tiny policy, its settings and its errors."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfplay import cli
from selfplay.agent.chat import ChatFormat
from selfplay.errors import ConfigError
from selfplay.warm_start.pipeline import warm_start
from selfplay.warm_start.settings import (
    CORPUS,
    HELD_OUT,
    REPOSITORIES,
    WarmStartSettings,
    read_settings,
)
from selfplay.warm_start.tokenizer import train_tokenizer
from tiny_policy import tiny_warm_start
from tiny_repository import build_tiny_repository

RECIPES = Path(__file__).parents[2] / "runs" / "recipes"


def test_the_tokenizer_keeps_digits_apart_and_tool_tags_whole() -> None:
    texts = ["<tool: edit>\nm.py:123\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n</tool>"] * 30
    tokenizer = train_tokenizer(iter(texts), 400)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(texts[0], add_special_tokens=False))
    assert {"1", "2", "3"} <= set(pieces)
    assert tokenizer.decode(tokenizer.encode(texts[0], add_special_tokens=False)) == texts[0]
    assert len(tokenizer.encode("<tool: edit>\n", add_special_tokens=False)) == 1


def tiny(tmp_path: Path, **changes: Any) -> WarmStartSettings:
    return tiny_warm_start(str(build_tiny_repository(tmp_path / "tiny")), **changes)


def test_one_call_makes_a_policy_folder_and_a_second_call_repeats_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    output, said = tmp_path / "policy", list[str]()
    settings = tiny(tmp_path)
    warm_start(output, settings, said.append)
    ChatFormat(AutoTokenizer.from_pretrained(output)).check()
    AutoModelForCausalLM.from_pretrained(output)
    generation = json.loads((output / "generation_config.json").read_text())
    assert (generation.get("temperature", 1.0), generation.get("top_p", 1.0), generation.get("top_k")) == (
        1.0,
        1.0,
        0,
    )
    assert "| one |" in (output / "MODEL_CARD.md").read_text()
    # Two steps do not teach a model to copy, and the warning says so at once.
    assert any(line.startswith("warning: one should leave 80%") for line in said)
    warm_start(output, settings, said.append)
    assert "one: done before" in said


def test_a_stage_of_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    settings = tiny(tmp_path, stages=[{"name": "one", "steps": 1, "mix": {"poems": 1}}])
    with pytest.raises(ConfigError, match="'poems' in its mix.*The kinds are source, solver_drill"):
        warm_start(tmp_path / "out", settings)


def test_settings_come_from_a_file_with_values_on_top(tmp_path: Path) -> None:
    file = tmp_path / "warm.toml"
    file.write_text("seed = 3\n[shape]\nlayers = 2\n")
    settings = read_settings(file, ["shape.hidden=64", "held_out=x==1"])
    assert (settings.seed, settings.shape.layers, settings.shape.hidden, settings.held_out) == (
        3,
        2,
        64,
        "x==1",
    )
    with pytest.raises(ConfigError, match="shape.layer"):
        read_settings(None, ["shape.layer=2"])


def test_the_held_out_package_is_not_in_the_corpus() -> None:
    assert HELD_OUT.partition("==")[0] not in {name.partition("==")[0] for name in CORPUS}


def test_the_recipe_is_the_defaults_written_out() -> None:
    assert read_settings(RECIPES / "warm-start.toml", []) == WarmStartSettings()


def test_episodes_are_played_on_the_repositories_of_the_quickstart() -> None:
    lines = (RECIPES / "quickstart-repos.txt").read_text().splitlines()
    assert tuple(line for line in lines if line and not line.startswith("#")) == REPOSITORIES


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """(exit code, error output) of a warm-start command that fails at once."""
    monkeypatch.setattr(sys, "argv", ["selfplay", "warm-start", *arguments])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_stage_of_an_unknown_kind_ends_the_command_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "warm.toml"
    config.write_text('[[stages]]\nname = "one"\nsteps = 1\nmix = { poems = 1 }\n')
    code, said = refused(monkeypatch, capsys, "--config", str(config), "--output", str(tmp_path / "out"))
    assert (code, "stage 'one' has 'poems' in its mix" in said) == (2, True)


def test_a_missing_recipe_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.toml")
    code, said = refused(monkeypatch, capsys, "--config", missing, "--output", str(tmp_path / "out"))
    assert (code, f"cannot read the warm-start settings {missing}" in said) == (2, True)
    code, said = refused(
        monkeypatch, capsys, "--set", f"executed.recipe={missing}", "--output", str(tmp_path / "out")
    )
    assert (code, "cannot read the configuration" in said, "missing.toml" in said) == (2, True, True)


def test_an_output_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    code, said = refused(monkeypatch, capsys, "--output", str(tmp_path / "file" / "policy"))
    assert (code, "cannot write to" in said, "--output" in said) == (2, True, True)


@pytest.mark.parametrize("setting", ["corpus", "executed.repositories"])
def test_a_repository_that_cannot_be_fetched_ends_the_command_with_1(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "warm.toml"
    kind = "source" if setting == "corpus" else "executed_solver"
    config.write_text(f'[[stages]]\nname = "one"\nsteps = 1\nmix = {{ {kind} = 1 }}\n')
    missing = str(tmp_path / "nowhere")
    code, said = refused(
        monkeypatch,
        capsys,
        "--config",
        str(config),
        "--set",
        f"{setting}=['{missing}']",
        "--output",
        str(tmp_path / "out"),
    )
    assert (code, f"there is no folder {missing}" in said) == (1, True)
