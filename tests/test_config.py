from pathlib import Path

import pytest

from selfplay.config import RENAMED_SETTINGS, Config, build_config, known_keys, load_config
from selfplay.errors import ConfigError
from selfplay.runtime.resources import resource
from selfplay.settings.base import Section
from selfplay.warm_start.settings import WarmStartSettings
from settings_page import settings_page


def test_defaults_are_the_papers_task_without_help():
    config = Config()
    assert config.injector.help == ()
    assert config.solver.help == ()
    assert config.injector.alpha == 0.8
    assert config.train.group_size == 8
    assert config.max_lag == 8


@pytest.mark.parametrize("recipe", ["quickstart.toml", "paper.toml"])
def test_every_recipe_loads(recipe: str):
    load_config(resource("recipes") / recipe)


def test_the_papers_recipe_has_the_papers_numbers():
    config = load_config(resource("recipes") / "paper.toml")
    trainer, train = config.trainer, config.train
    assert (trainer.advantage, trainer.aggregation, trainer.clipping) == ("dr_grpo", "constant", "clip")
    assert (trainer.clip_low, trainer.clip_high, trainer.kl_coef) == (0.2, 0.25, 0.0)
    assert (trainer.learning_rate, trainer.warmup_updates, train.updates) == (3e-6, 30, 150)
    assert (config.agent.context_tokens, config.agent.max_turns, config.agent.command_timeout_s) == (
        131_072,
        128,
        120,
    )
    assert (config.max_lag, train.group_size, config.injector.alpha) == (8, 8, 0.8)
    groups = trainer.ranks // trainer.sequence_parallel
    assert 16 * groups * trainer.batch_tokens == 16_777_216  # 16 micro-steps of the paper's 16M tokens
    assert (config.evaluation.attempts, config.evaluation.temperature, config.evaluation.top_p) == (
        1,
        1.0,
        0.95,
    )


def test_an_override_wins_over_the_file(tmp_path: Path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 3\n[train]\nupdates = 4\n")
    config = load_config(file, ["train.updates=9", "run.name=x"])
    assert (config.seed, config.train.updates, config.run.name) == (3, 9, "x")


def test_a_resolved_configuration_reads_back_equal(tmp_path: Path):
    config = load_config(resource("recipes") / "quickstart.toml")
    (tmp_path / "config.json").write_text(config.resolved())
    assert load_config(tmp_path / "config.json") == config


def test_an_unknown_key_is_named_with_the_closest_known_one():
    with pytest.raises(ConfigError, match=r"train.update: unknown setting. Did you mean 'train.updates'\?"):
        load_config(None, ["train.update=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("polcy.model=x", "polcy: unknown setting. Did you mean 'policy'?"),
        ("sed=3", "sed: unknown setting. Did you mean 'seed'?"),
        ("updates=3", "updates: unknown setting. Did you mean 'train.updates'?"),
    ],
)
def test_an_unknown_section_is_named_with_the_closest_one(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)


def test_a_wrong_override_is_not_blamed_on_the_recipe(tmp_path: Path):
    recipe = tmp_path / "c.toml"
    recipe.write_text("max_lag = 3\nsed = 3\n[train]\ninjector_groups = 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["run.name=a/b", "polcy.model=x", "train.solver_groups=0", "max_lag=x"])
    lines = [line.split(": ")[0].strip() for line in str(caught.value).splitlines()]
    by_set = ["--set:", "max_lag", "run.name", "polcy"]
    assert lines == [*by_set, f"{recipe} with --set:", "train", f"{recipe}:", "sed"]


def test_all_wrong_values_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["seed=abc", "train.group_size=1"])
    assert "seed" in str(caught.value)
    assert "train.group_size" in str(caught.value)


def test_broken_toml_names_the_file_and_the_line(tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_text("[train\n")
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML.*line 1"):
        load_config(file)


def test_a_missing_file_says_where_recipes_are(tmp_path: Path):
    with pytest.raises(ConfigError, match="runs/recipes"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("text", ["nonsense", "=3"])
def test_an_override_that_is_not_key_value_is_refused_with_an_example(text: str):
    with pytest.raises(ConfigError, match="--set train.updates=6"):
        load_config(None, [text])


def test_a_key_below_a_plain_value_is_refused():
    with pytest.raises(ConfigError):
        load_config(None, ["seed=1", "seed.deep=1"])


def test_a_run_name_cannot_leave_the_runs_folder():
    with pytest.raises(ConfigError, match="run.name"):
        load_config(None, ["run.name=../x"])


def test_known_keys_are_dotted():
    assert {
        "seed",
        "max_lag",
        "train.updates",
        "sandbox.type",
        "engine.type",
        "trainer.type",
        "policy.model",
        "injector.help",
    } <= set(known_keys())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.injector_groups=0", "train.solver_groups=0"], r"train: .*solver_groups = 0 play nothing"),
        (
            ["train.injector_groups=0", 'train.trained_roles=["injector"]'],
            r"only the injector is trained and it never plays",
        ),
        (
            ["train.solver_groups=0", 'train.trained_roles=["solver"]'],
            r"only the solver is trained and it never plays",
        ),
    ],
)
def test_a_configuration_that_plays_or_trains_nothing_is_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_solvers_in_idle_slots_play_without_solver_groups():
    assert load_config(
        None, ["train.solver_groups=0", "train.fill_idle_slots=true", 'train.trained_roles=["solver"]']
    ).train.fill_idle_slots


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.ranks=2"], r"ranks = 2 needs trainer.type = 'deepspeed'"),
        (["trainer.offload=true"], r"offload = true needs trainer.type = 'deepspeed'"),
        (
            ["trainer.type=deepspeed", "trainer.zero_stage=0", "trainer.offload=true"],
            r"trainer.zero_stage of at least 1",
        ),
        (["trainer.type=deepspeed", "trainer.zero_stage=4"], r"trainer.zero_stage"),
        (
            ['trainer.lora_layers=["q_proj"]'],
            r"lora_layers = \['q_proj'\] means something only with lora_rank of at least 1",
        ),
        (
            ["trainer.lora_rank=8", 'trainer.lora_layers=["layers.0"]'],
            r"'layers.0' is not the name of a layer",
        ),
        (["trainer.lora_rank=-1"], r"trainer.lora_rank"),
    ],
)
def test_trainer_settings_that_contradict_each_other_are_refused_with_the_remedy(
    overrides: list[str], message: str
):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_the_settings_page_is_made_from_the_docstrings():
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_every_setting_has_a_docstring():
    assert WarmStartSettings in Section.__subclasses__()
    for section in Section.__subclasses__():
        for name, info in section.model_fields.items():
            if not (isinstance(info.annotation, type) and issubclass(info.annotation, Section)):
                assert info.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize(("old", "new"), RENAMED_SETTINGS.items())
def test_an_old_name_works_and_says_what_to_write_instead(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
):
    section, _, key = old.partition(".")
    value = {
        "train.learn": '["solver"]',
        "train.even": "true",
        "injector.given": '["tests"]',
        "solver.given": '["tests"]',
        "trainer.anchor_weight": "0.5",
        "trainer.call_weight": "0.5",
    }.get(old, "3")
    config = load_config(None, [f"{old}={value}"])
    new_section, _, new_key = new.partition(".")
    assert (
        getattr(getattr(config, new_section), new_key)
        == load_config(None, [f"{new}={value}"]).model_dump()[new_section][new_key]
    )
    assert f"{old} is called {new} now" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"{old} is called {new} now, and both are set"):
        build_config({section: {key: 3, new_key: 3}})


def test_an_old_value_works_too():
    assert load_config(None, ["trainer.credit=kept"]).trainer.credit == "kept_edits"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.advantage=rlo", r"'rlo' is not one of rloo, dr_grpo, cwm, grpo.*Did you mean 'rloo'\?"),
        ("injector.strategies={magic = 1.0}", "'magic' is not one of direct, history, removal"),
        ("metrics.sinks=[]", "a resumed run reads"),
        ('agent.tools=["bash"]', '"submit", which ends an episode'),
        ("sandbox.type=podman", "'podman' is not one of auto, docker, bubblewrap"),
    ],
)
def test_an_unknown_part_is_refused_with_the_known_ones(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])
