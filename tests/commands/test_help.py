"""Help pages: each value has a metavar, each option a text, and what a text says is true."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from selfplay import parts, sandbox
from selfplay.agent.episode import Role
from selfplay.cli import app
from selfplay.config import known_keys
from selfplay.curriculum.rows import BUG_ORDERS, BUG_STATUSES
from selfplay.evaluation.tasks import frozen_sets
from selfplay.planning.hardware import Gpu
from selfplay.planning.paper import (
    PAPER_BATCH_TOKENS,
    PAPER_GPUS,
    PAPER_MAX_LAG,
    PAPER_MODEL,
    PaperAssumptions,
)
from selfplay.repositories.test_hints import PARSERS
from selfplay.runtime.recipes import find_recipe
from selfplay.settings.learning import TrainSettings
from selfplay.warm_start.settings import WarmStartSettings

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
TYPES = re.compile(r"<[a-z\[\], ]+>|\b(TEXT|INTEGER|PATH|FLOAT|BOOLEAN)\b")


def options_of(command: str) -> dict[str, object]:
    return {param.opts[0]: param for param in GROUP.commands[command].params}


def help_of(command: str, option: str) -> str:
    return options_of(command)[option].help


def page(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_a_help_page_shows_no_type_of_python(command):
    assert not TYPES.findall(page(*command))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_has_a_text_and_each_value_a_metavar(command):
    for name, param in options_of(command).items():
        assert param.help and param.help.endswith("."), name
        assert getattr(param, "is_flag", False) or param.metavar, name


def test_a_flag_has_no_metavar():
    (row,) = [line for line in page("train").splitlines() if "--dry-run" in line]
    assert re.search(r"--dry-run +Print what would run", row), row


def test_the_name_of_an_argument_stands_once_in_its_row():
    (row,) = [line for line in page("replay").splitlines() if "An episode's id" in line]
    assert row.split().count("EPISODE|BUG|RUN") == 1


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("inspect-bugs", "--status", BUG_STATUSES),
        ("inspect-bugs", "--sort", tuple(BUG_ORDERS)),
        ("eval", "--tasks", tuple(frozen_sets())),
        ("doctor", "--sandbox", parts.names_of("sandbox.type")),
    ],
)
def test_a_text_lists_all_names_that_are_accepted(command, option, names):
    assert ", ".join(names) in help_of(command, option)


def test_lists_of_names_that_stand_in_two_places_are_the_same():
    assert parts.names_of("sandbox.type") == sandbox.KINDS
    assert parts.names_of("parser") == PARSERS
    (roles, _) = get_args(TrainSettings.model_fields["trained_roles"].annotation)
    assert list(get_args(roles)) == [role.value for role in Role]


# What a text calls the default, where typer does not show it since another value stands for it.
SAID = {
    ("inspect-bugs", "run"): "the newest",
    ("report", "run"): "the newest",
    ("report", "--output"): "report.html in the first run",
    ("export", "run"): "the newest",
    ("show", "run"): "the newest",
    ("episodes", "run"): "the newest",
    ("replay", "--run"): "all are searched",
    ("plan", "run"): "the newest",
    ("plan", "--gpus"): f"{PAPER_GPUS / PAPER_MODEL.parameters * 1e9:.0f} for each billion",
    ("plan", "--max-lag"): f"the run's, or {PAPER_MAX_LAG}.",
    ("plan", "--batch-tokens"): f"the run's mean, or {PAPER_BATCH_TOKENS / 1e6:.1f}e6",
    ("plan", "--parameters"): f"the run's, or {PAPER_MODEL.parameters / 1e9:.0f}e9",
    ("plan", "--peak-tflops"): f"{Gpu().peak_flops / 1e12:.0f}:",
    ("plan", "--bandwidth-tbs"): f"{Gpu().bandwidth / 1e12:.2f} TB/s:",
    ("plan", "--gpu-gb"): f"{Gpu().memory / 1e9:.0f} GB:",
    ("plan", "--mfu"): f"{Gpu().mfu}:",
    ("plan", "--mbu"): f"{Gpu().mbu}:",
    ("plan", "--link-gbs"): f"{Gpu().link / 1e9:.0f} GB/s: {Gpu().link * 8 / 1e9:.0f} Gbit/s",
    ("doctor", "--sandbox"): "auto",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_default_that_a_text_names_is_the_real_one(command):
    for name in options_of(command):
        said = re.search(r"[Dd]efault:? (.*)", help_of(command, name))
        assert (said is not None) == ((command, name) in SAID), name
        if said:
            assert said[1].startswith(SAID[command, name]), name


def test_examples_in_texts_are_names_that_exist():
    assert "train.updates=6" in help_of("train", "--set")
    assert "train.updates" in known_keys()
    assert "shape.layers=2" in help_of("warm-start", "--set")
    assert "layers" in WarmStartSettings.model_fields["shape"].annotation.model_fields
    assert "drawn_tokens=600" in help_of("plan", "--assume")
    assert "drawn_tokens" in [field.name for field in fields(PaperAssumptions)]
    for command, option, recipe, suffix in (
        ("train", "--config", "quickstart", ".toml"),
        ("warm-start", "--config", "warm-start", ".toml"),
        ("train", "--repos", "quickstart-repos", ".txt"),
    ):
        assert recipe in help_of(command, option)
        assert find_recipe(Path(recipe), "", suffix).is_file()
