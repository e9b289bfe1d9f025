"""Parts of one's own: found by name, named in errors, and not imported to read a configuration."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfplay import parts
from selfplay.algorithm.advantages import Group, compute_advantages
from selfplay.algorithm.credit import credit_injector
from selfplay.algorithm.episodes import treatment
from selfplay.algorithm.loss import Clipping, aggregation_weights, token_losses
from selfplay.algorithm.rewards import RewardInputs
from selfplay.config import load_config
from selfplay.errors import PartError
from selfplay.repositories.test_hints import parser_program

MODULE = """
def raises(inputs): raise KeyError("x")
def nothing(inputs): return None
def not_a_number(inputs): return float("nan")
def too_few(group): return [1.0]
def odd(finish): return "perhaps"
import math
class BackEnd:
    def __init__(self, cache): pass
    def open(self): return 1 / 0
def infinite(ratio, advantages, bounds): return ratio * math.inf, ratio > 1
def one_too_many(ratio, advantages, bounds): return ratio.repeat(2), ratio > 1
def none(lengths, max_length): return lengths[:0]
def read_log(log):
    return {line.split()[1]: "passed" if line.startswith("ok") else "failed" for line in log.splitlines()}
if __name__ == "__main__": print("never")
"""
INPUTS = RewardInputs("submitted")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine_parts.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("mine_parts", None)
    parts.load.cache_clear()


@pytest.mark.parametrize("setting", [name for name in parts.PARTS if name != "parser"])
def test_every_part_of_selfplay_can_be_loaded(setting: str):
    for name, path in parts.PARTS[setting].items():
        if path:
            assert parts.load(setting, name) is not None


def test_a_part_is_found_in_the_folder_that_a_run_is_started_in(here: Path):
    assert parts.load("solver.reward", "mine_parts:nothing").__name__ == "nothing"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"injector.reward = 'mine_parts:raises' failed: KeyError: 'x' \(.*mine_parts.py:2\)"),
        ("nothing", "injector.reward = 'mine_parts:nothing' returned None; it must be a finite number"),
        ("not_a_number", "injector.reward = 'mine_parts:not_a_number' returned nan"),
        ("missing", r"injector.reward = 'mine_parts:missing' cannot be loaded: AttributeError"),
    ],
)
def test_a_faulty_reward_stops_the_run_with_its_name(here: Path, name: str, message: str):
    with pytest.raises(PartError, match=message):
        credit_injector(INPUTS, f"mine_parts:{name}", None)


def test_an_advantage_of_the_wrong_length_stops_the_run(here: Path):
    with pytest.raises(PartError, match="'mine_parts:too_few' returned 1 values for 2 episodes"):
        compute_advantages("mine_parts:too_few", Group([1.0, -1.0], [3, 3]))


def test_an_episode_policy_with_an_unknown_word_stops_the_run(here: Path):
    with pytest.raises(PartError, match="returned 'perhaps' for 'stuck'; known: train, penalise, mask"):
        treatment("mine_parts:odd", "stuck")


@pytest.mark.parametrize(
    ("name", "finish", "expected"),
    [
        ("all", "stuck", "train"),
        ("compact", "max_turns", "mask"),
        ("compact", "submitted", "train"),
        ("penalise_stuck", "stuck", "penalise"),
    ],
)
def test_the_episode_policies_of_selfplay(name: str, finish: str, expected: str):
    assert treatment(name, finish) == expected


def test_a_parser_becomes_a_program_that_reads_a_log(here: Path):
    program = parser_program("mine_parts:read_log")
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        input="ok a\nnot b\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"a": "passed", "b": "failed"}


def test_a_missing_module_says_where_python_looked_for_it(here: Path):
    with pytest.raises(PartError, match="No module named 'nowhere'.*in PYTHONPATH"):
        parts.check_parts({"solver.reward": ("nowhere:reward",)})


def test_reading_a_configuration_imports_nothing(here: Path):
    (here / "loud.py").write_text("raise SystemExit('imported')")
    config = load_config(None, ["solver.reward=loud:reward", "agent.tools=['submit', 'loud:TOOL']"])
    assert config.solver.reward == "loud:reward"
    assert "loud" not in sys.modules


@pytest.mark.parametrize("name", ["infinite", "one_too_many"])
def test_a_faulty_clipping_or_aggregation_stops_the_run(here: Path, name: str):
    two = torch.zeros(2)
    with pytest.raises(PartError, match=f"trainer.clipping = 'mine_parts:{name}' returned"):
        token_losses(two, two, two + 1, Clipping(kind=f"mine_parts:{name}"))
    with pytest.raises(PartError, match="trainer.aggregation = 'mine_parts:none' returned"):
        aggregation_weights("mine_parts:none", two + 1, 8)


def test_a_fault_deep_in_a_module_of_ones_own_is_named(here: Path):
    back_end = parts.load("sandbox.type", "mine_parts:BackEnd")(None)
    used = {"solver.reward": ("ssr",), "sandbox.type": ("mine_parts:BackEnd",)}
    with (
        pytest.raises(PartError, match="sandbox.type = 'mine_parts:BackEnd' failed: ZeroDivisionError"),
        parts.named_faults(used),
    ):
        back_end.open()
    with pytest.raises(ZeroDivisionError), parts.named_faults({"sandbox.type": ("docker",)}):
        back_end.open()


def test_a_changed_source_has_another_digest(here: Path):
    used = {"solver.reward": ("mine_parts:nothing", "ssr")}
    before = parts.check_parts(used)
    assert list(before) == ["solver.reward = mine_parts:nothing"]
    (here / "mine_parts.py").write_text(MODULE + "# changed\n")
    importlib.invalidate_caches()
    assert parts.check_parts(used) != before
