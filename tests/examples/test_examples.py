"""The examples in examples/, each used by a scripted run of the tiny repository."""

import ast
import io
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from examples.command_sandbox import CommandBackend
from examples.sandbox import LoggedBackend
from machine import open_or_skip
from scripted_game import REPAIR, SUBMIT_NOTHING, Player, play
from selfplay.agent.episode import Episode
from selfplay.commands.conform import conform
from selfplay.curriculum.store import Store
from selfplay.orchestrator.own_parts import check_own_parts
from selfplay.sandbox import conformance
from selfplay.sandbox.base import SandboxSpec

pytestmark = [pytest.mark.sandbox, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
SEARCH = "<tool: search>\nclamp\n</tool>"
SETTINGS = {
    "agent": {
        "max_turns": 4,
        "context_tokens": 8192,
        "turn_tokens": 4096,
        "observation_tokens": 200,
        "prompt_style": "terse",
        "tools": ["bash", "edit", "create", "submit", "examples.tool:SEARCH"],
    },
    "injector": {
        "strategies": {"examples.strategy:OFF_BY_ONE": 1.0},
        "help": ["tests"],
        "min_passing_tests": [3, 3],
        "reward": "examples.reward:small_bugs",
    },
    "trainer": {
        "learning_rate": 1e-3,
        "warmup_updates": 0,
        "bf16": False,
        "advantage": "examples.advantage:median_baseline",
    },
    "metrics": {"sinks": ["jsonl", "csv"]},
}


class Searcher(Player):
    """The first solver searches before it repairs."""

    def __call__(self, turn):
        role, _, member, _ = turn.tag.split("/")
        if (role, member) == ("solver", "0"):
            return [SEARCH, REPAIR, SUBMIT_NOTHING][min(turn.number, 2)]
        return super().__call__(turn)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    cache, home = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("examples")
    open_or_skip("bubblewrap", cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run = play(home, cache, "examples.sandbox:LoggedBackend", updates=1, player_of=Searcher, **SETTINGS)
    with Store.open(run.database, writer=False) as store:
        yield run, store, home


def episodes(store, role):
    return store.episodes(group_id=store.groups(update=1, role=role)[0].group_id)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_has_fewer_than_forty_lines(path):
    assert len(path.read_text().splitlines()) < 40
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_reward_is_paid(played):
    _, store, _ = played
    rows = episodes(store, "injector")
    assert rows[0].reward == pytest.approx(1 - 1.8 / 8 - 0.02)  # one line was changed: one removed, one added
    assert [row.reward for row in rows[1:3]] == [pytest.approx(-0.8), -1.0]


def test_the_advantage_is_trained_on(played):
    _, store, _ = played
    rows = [row for row in episodes(store, "solver") if row.advantage is not None]
    assert [row.advantage for row in rows] == [2.0, *[0.0] * 7]  # the median of eight rewards is -1


def test_the_strategy_asks_with_its_own_prompt(played):
    run, store, _ = played
    row = episodes(store, "injector")[0]
    assert row.strategy == "examples.strategy:OFF_BY_ONE"
    assert Episode.read(run.path / row.path).messages[1]["content"].startswith("injector off_by_one\n")


def test_the_tool_is_described_called_and_answered(played):
    run, store, _ = played
    episode = Episode.read(run.path / episodes(store, "solver")[0].path)
    assert "search — BODY is one word" in episode.messages[0]["content"]
    assert episode.turns[0].tool == "search"
    assert "/testbed/tiny/numbers.py:4:def clamp" in episode.turns[0].observation


def test_the_back_end_opened_the_sandboxes(played):
    _, _, home = played
    assert len((home / "opened.log").read_text().splitlines()) > 18


def test_the_doctor_finds_that_the_back_end_keeps_the_contract(cache, monkeypatch, tmp_path):
    open_or_skip("bubblewrap", cache)
    monkeypatch.chdir(tmp_path)  # for its log
    monkeypatch.setenv("SELFPLAY_CACHE", str(cache))
    out = io.StringIO()
    assert conform(Console(file=out, width=200), "examples.sandbox:LoggedBackend") == 0
    lines = out.getvalue().splitlines()
    assert lines[-1] == f"{len(lines) - 2} of {len(lines) - 2} checks passed"
    assert lines[-2].startswith("✓ passed builds environments and keeps them")


@pytest.mark.parametrize(
    "check",
    [
        conformance.keeps_folder_and_exported_variables,
        conformance.passes_bytes_through,
        conformance.a_memory_bomb_ends_itself_only,
        conformance.all_else_is_read_only,
        conformance.files_go_in_and_out,
    ],
    ids=lambda check: check.__name__,
)
def test_a_command_can_start_sandboxes(check):
    open_or_skip("docker")
    assert conformance.problem_of(check, CommandBackend(), SandboxSpec(environment="")) == ""


class Careless(LoggedBackend):
    """Breaks two promises, one of them by a mistake."""

    @contextmanager
    def open(self, spec):
        with super().open(replace(spec, variables={})) as box:
            yield box

    def environment_reference(self, key):
        raise KeyError(key)


def test_the_doctor_names_the_promises_that_a_back_end_breaks(cache, monkeypatch, tmp_path):
    open_or_skip("bubblewrap", cache)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFPLAY_CACHE", str(cache))
    checks = (conformance.starts_from_a_clean_environment, conformance.reports_exit_codes_and_signals)
    monkeypatch.setattr(conformance, "ALL_CHECKS", checks)
    monkeypatch.setattr("selfplay.sandbox._make", lambda kind, cache: Careless())
    out = io.StringIO()
    assert conform(Console(file=out, width=200), "careless:Backend") == 1
    said = re.sub(r", \d+\.\d s", "", out.getvalue()).splitlines()[1:]
    assert said[0] == "✗ failed starts from a clean environment"
    assert said[1].startswith("  not true: assert ")
    assert said[2:] == [
        "✓ passed reports exit codes and signals",
        "✗ failed builds environments and keeps them",
        "  KeyError: 'conformance-1'",
        "1 of 3 checks passed; 2 failed: the contract is in selfplay/sandbox/base.py",
    ]


def test_the_run_remembers_the_sources_of_its_parts(played):
    run, _, _ = played
    config = run.config()
    assert check_own_parts(config, run) == []
    file = run.path / "parts.json"
    assert file.read_text().count(":") >= 8  # four parts, two colons each
    file.write_text(file.read_text().replace('SEARCH": "', 'SEARCH": "0'))
    assert check_own_parts(config, run) == [
        "agent.tools = examples.tool:SEARCH: its source has changed since the run began; "
        "episodes before and after differ"
    ]


def test_the_other_sink_has_every_value_too(played):
    run, _, _ = played
    lines = (run.path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "kind,number,name,value"
    assert any(line.startswith("update,1,solver/reward,") for line in lines)
