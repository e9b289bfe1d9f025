"""`policy.chat_template` and `policy.template_args`: an own template, and what a template is given."""

from pathlib import Path

import pytest

from selfplay.agent.chat import load_tokenizer, open_chat
from selfplay.commands.dry_run import dry_run_training
from selfplay.commands.policies import check_model
from selfplay.config import load_config
from selfplay.engines.templated_models import templated_folder
from selfplay.errors import ConfigError, EngineError, PartError
from selfplay.training.checkpoints import read_companions
from tiny_policy import CHATML, QWEN, STRICT, build_tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFPLAY_CACHE", str(tmp_path / "cache"))
    folder = build_tiny_tokenizer(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_template_of_ones_own_is_played_and_kept_in_checkpoints(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(QWEN)
    given = [
        f"policy.model={model}",
        f"policy.chat_template={file}",
        "policy.template_args.enable_thinking=false",
    ]
    config = load_config(None, given)
    folder = check_model(config)
    assert load_tokenizer(folder).chat_template == QWEN and load_tokenizer(str(model)).chat_template == CHATML
    chat = open_chat(folder, config.policy, config.agent)
    assert chat.decode(chat.start("", "go")).endswith("<think>\n\n</think>\n\n")
    assert read_companions(Path(folder))["chat_template.jinja"] == QWEN.encode()
    assert (Path(folder) / "model.safetensors").read_bytes() == b"weights"
    assert check_model(config) == folder  # made once
    file.write_text(STRICT)
    assert templated_folder(str(model), str(file)) != folder


def test_a_template_that_cannot_be_read_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jinja").touch()
    for name, words in (("none.jinja", "cannot be read: .*No such file"), ("empty.jinja", "is empty")):
        config = load_config(None, [f"policy.model={model}", f"policy.chat_template={tmp_path / name}"])
        with pytest.raises(EngineError, match=f"policy.chat_template = .*{name}.*{words}"):
            check_model(config)


def test_a_template_that_is_not_append_only_is_refused_with_the_setting(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML.replace("in messages %}", "in messages[-3:] %}"))
    config = load_config(None, [f"policy.model={model}", f"policy.chat_template={file}"])
    with pytest.raises(EngineError, match="not append-only.*policy.chat_template"):
        check_model(config)


def test_an_argument_of_the_game_is_refused_and_a_misspelled_one_too(model: Path) -> None:
    with pytest.raises(ConfigError, match="template_args.*leaves tools alone"):
        load_config(None, ["policy.template_args={tools = 1}"])
    config = load_config(None, [f"policy.model={model}", "policy.template_args={enable_thinking = false}"])
    with pytest.raises(EngineError, match="'enable_thinking', which the chat template of .* does not use"):
        check_model(config)


def test_a_format_that_cannot_call_the_tools_is_refused_before_anything_starts(model: Path) -> None:
    config = load_config(None, [f"policy.model={model}", "agent.tool_format=bash-block"])
    with pytest.raises(PartError, match=r"Set agent.tools = \[.bash., .submit.\]"):
        check_model(config)


def test_a_dry_run_refuses_the_same(model: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("pypi:toolz==1.0.0\n")
    for given, words in (
        (f"policy.chat_template={tmp_path / 'none.jinja'}", "cannot be read"),
        ("agent.tool_format=bash-block", "has no way to call edit or create"),
    ):
        with pytest.raises((EngineError, PartError), match=words):
            dry_run_training(tmp_path / "list.txt", None, [f"policy.model={model}", given])
