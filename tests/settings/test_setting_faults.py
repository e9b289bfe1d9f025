"""Wrong settings: the message names key, value and remedy, and says where the value was set."""

from datetime import datetime
from pathlib import Path

import pytest

from selfplay.config import Config, build_config, load_config
from selfplay.errors import ConfigError, UsageError
from selfplay.orchestrator.run_folder import create_run, open_run
from selfplay.warm_start.settings import read_settings


def fault(*overrides: str, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["a/b", "a\\b", ".", "..", ".hidden", "-x", " a", "a ", "recipes", "é" * 120]
)
def test_a_name_that_no_run_can_have_is_refused_with_what_a_name_is(name):
    message = fault(f'run.name="{name}"'.replace("\\", "\\\\"), config=Path("quickstart"))
    assert message.startswith(f"--set:\n  run.name: {name!r} cannot name a run. A name is that of one folder")
    assert "neither '-' nor '.'" in message
    assert "quickstart" not in message


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u2028b"])
def test_a_name_with_control_characters_is_shown_escaped(name):
    message = fault(f"run.name={name}")
    assert f"{name!r} cannot name a run" in message
    assert name not in message


def test_an_empty_name_on_the_command_line_is_refused():
    assert "--set run.name= is empty. Leave it out" in fault("run.name=")
    assert build_config({"run": {"name": ""}}).run.name == ""


@pytest.mark.parametrize("name", ["mine", "20261129-201822", "2026", "with space", "größe", "v1.2_x"])
def test_an_ordinary_name_is_taken_as_it_is_typed(name):
    assert load_config(None, [f"run.name={name}"]).run.name == name


def test_digits_are_text_only_where_a_setting_holds_text():
    config = load_config(None, ["policy.model=7", "train.updates=7"])
    assert (config.policy.model, config.train.updates) == ("7", 7)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("polcy.model=x", "polcy: unknown setting. Did you mean 'policy'?"),
        ("policy.modle=x", "policy.modle: unknown setting. Did you mean 'policy.model'?"),
        ("updats=3", "updats: unknown setting. Did you mean 'train.updates'?"),
        ("train.temperature=2", "train.temperature: unknown setting. Did you mean 'agent.temperature'?"),
        (
            "policy.shape.hiden_size=3",
            "hiden_size: unknown setting. Did you mean 'policy.shape.hidden_size'?",
        ),
        ("cluster.nodes=[{cpus=1,memory_gib=1,gpuss=1}]", "Did you mean 'cluster.nodes.0.gpus'?"),
        ("foo=1", "foo: unknown setting. The settings begin with: seed, max_lag, run, train,"),
        ("train.zzzz=1", "train.zzzz: unknown setting. In train there are: updates, injector_groups,"),
        ("sandbox.type=dokcer", "'dokcer' is not one of auto, docker, bubblewrap, nor one's own as"),
        ("engine.type=vlm", "Did you mean 'vllm'?"),
        ("trainer.advantage=rlo", "Did you mean 'rloo'?"),
        (
            "engine.dtype=flot32",
            "'flot32' is not one of auto, float32, bfloat16, float16. Did you mean 'float32'?",
        ),
        ("trainer.bf16=maybe", "trainer.bf16: 'maybe' is not one of auto, true, false."),
        ('solver.help=["failur"]', "solver.help: 'failur' is not one of failure, suspects, tests."),
        ("train.updates=six", "train.updates: needs a whole number, not 'six'"),
        ("train.updates=0", "train.updates: needs a number of at least 1, not 0"),
        ("seed=1.5", "seed: needs a whole number, not 1.5"),
        ("agent.temperature=hot", "agent.temperature: needs a number, not 'hot'"),
        ("evaluation.greedy=maybe", "evaluation.greedy: needs true or false, not 'maybe'"),
        ("evaluation.tasks=own", "evaluation.tasks: needs a list, as in [\"own\"], not 'own'"),
        ("injector.min_passing_tests=5", "needs a list of 2 values, as in [5, 5], not 5"),
        ("injector.min_passing_tests=[5]", "needs a list of 2 values, as in [5, 5], not [5]"),
        ("train=3", "train: is a section, and 3 is none. Settings in it: updates, "),
        ("cluster.nodes=[{gpus=1}]", "cluster.nodes.0.cpus: is missing"),
    ],
)
def test_a_wrong_setting_is_explained(override, expected):
    message = fault(override, config=Path("quickstart"))
    assert message.startswith("--set:\n") or "quickstart.toml with --set:\n" in message
    assert expected in message
    assert "Value error" not in message
    assert "Input should" not in message


def test_a_number_in_a_file_where_a_text_belongs_is_to_be_quoted(tmp_path):
    (tmp_path / "c.toml").write_text("[run]\nname = 7\n")
    assert 'run.name: needs a text, not 7: write "7"' in fault(config=tmp_path / "c.toml")


def test_a_combination_that_no_key_names_has_no_empty_key(tmp_path):
    message = fault("engine.sync=ipc", "engine.type=vllm", "trainer.type=deepspeed", "trainer.ranks=2")
    assert "\n  engine.sync = 'ipc' is for a trainer of one process" in message


def test_broken_toml_is_reported_with_file_and_line(tmp_path):
    (tmp_path / "c.toml").write_text('[train]\nupdates = 3\n[policy\nmodel = "x"\n')
    for read in (load_config, lambda path: read_settings(path, [])):
        with pytest.raises(ConfigError, match=r"c\.toml.*line 3"):
            read(tmp_path / "c.toml")


def test_the_warm_start_has_suggestions_and_blames_whoever_set_the_value(tmp_path):
    for override, expected in (
        ("shap.layers=2", "shap: unknown setting. Did you mean 'shape'?"),
        ("shape.layer=2", "shape.layer: unknown setting. Did you mean 'shape.layers'?"),
        ("rows=many", "rows: needs a whole number, not 'many'"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_settings(Path("warm-start"), [override])
        assert str(caught.value) == f"--set:\n  {expected}"
    (tmp_path / "w.toml").write_text('rows = "many"\n')
    with pytest.raises(ConfigError, match="w.toml:\n  rows"):
        read_settings(tmp_path / "w.toml", ["sequence_tokens=100"])


def test_a_file_in_place_of_the_folder_of_runs_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    config = Config.model_validate({"run": {"folder": str(tmp_path / "file"), "name": "x"}})
    with pytest.raises(UsageError, match="run.folder = '.*file' is no folder"):
        create_run(config, "", datetime(2026, 1, 1))
    with pytest.raises(UsageError, match="--runs .*file is no folder"):
        open_run("", tmp_path / "file")
