"""The teacher's episodes: played and judged in real sandboxes, kept, continued, and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from machine import open_or_skip
from selfplay.agent.episode import Episode, Role
from selfplay.agent.tools import parse_action
from selfplay.errors import ConfigError
from selfplay.repositories.checkouts import cache_root
from selfplay.repositories.targets import is_held_out
from selfplay.warm_start.attempts import Collection
from selfplay.warm_start.executed import Machine, collect
from selfplay.warm_start.mutation_plan import plan_mutations
from selfplay.warm_start.pipeline import warm_start
from selfplay.warm_start.settings import ExecuteSettings
from tiny_policy import build_tiny_tokenizer, tiny_warm_start
from tiny_repository import build_tiny_repository

pytestmark = pytest.mark.sandbox
LONGEST = 4000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ExecuteSettings:
    open_or_skip("bubblewrap", cache_root())
    repository = str(build_tiny_repository(tmp_path_factory.mktemp("tiny") / "tiny"))
    return ExecuteSettings(
        injector_episodes=1, solver_episodes=1, repositories=(repository,), sandbox="bubblewrap", workers=1
    )


def test_episodes_whose_edits_replace_whole_lines_are_proven_right_too(
    settings: ExecuteSettings, tmp_path: Path
) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path / "tokenizer")
    whole = settings.model_copy(update={"whole_lines": True})
    found = collect(whole, tmp_path / "whole", tokenizer, LONGEST, 0, lambda _: None)
    for name in (*found.injectors, *found.solvers):
        turns = Episode.read(tmp_path / "whole" / f"{name}.json.gz").turns
        edits = [parse_action(turn.text) for turn in turns if turn.tool == "edit"]
        assert edits and all(edit.search.startswith(" ") for edit in edits)
    with pytest.raises(ConfigError, match="whole_lines"):
        collect(settings, tmp_path / "whole", tokenizer, LONGEST, 0, lambda _: None)


def test_the_plan_has_each_mutation_once_and_no_held_out_function(settings: ExecuteSettings) -> None:
    machine = Machine(settings, lambda _: None)
    plan = plan_mutations(machine.environments, settings, 3, seed=0)
    assert plan == plan_mutations(machine.environments, settings, 3, seed=0)
    assert len({(p.mutation.path, p.mutation.line, p.mutation.after) for p in plan}) == len(plan) > 10
    assert not any(is_held_out(p.target.name) for p in plan)


def test_a_second_collection_continues_where_the_first_ended(
    settings: ExecuteSettings, tmp_path: Path
) -> None:
    tokenizer, folder, said = build_tiny_tokenizer(tmp_path / "tokenizer"), tmp_path / "executed", list[str]()
    first = collect(settings, folder, tokenizer, LONGEST, 0, said.append)
    assert len(first.injectors) >= 1
    assert len(first.solvers) >= 1
    more = settings.model_copy(update={"injector_episodes": len(first.injectors) + 1})
    second = collect(more, folder, tokenizer, LONGEST, 0, said.append)
    assert second.attempts[: len(first.attempts)] == first.attempts
    assert [attempt.number for attempt in second.attempts] == list(range(len(second.attempts)))
    assert len(second.injectors) == len(first.injectors) + 1
    assert collect(more, folder, tokenizer, LONGEST, 0, said.append) == second
    assert "were played before" in said[-1]

    injector = Episode.read(folder / f"{second.injectors[0]}.json.gz")
    assert injector.role is Role.INJECTOR
    assert "bug_inject.diff" in injector.submission
    assert Episode.read(folder / f"{second.solvers[0]}.json.gz").submission["patch"]
    assert len({attempt.digest for attempt in second.attempts if attempt.injector}) == len(second.injectors)


def test_the_last_stage_trains_on_played_episodes_and_the_card_lists_them(
    settings: ExecuteSettings, tmp_path: Path
) -> None:
    mix = {"executed_injector": 1, "executed_solver": 1, "injector": 1}
    tiny = tiny_warm_start(
        settings.repositories[0],
        sequence_tokens=2500,
        stages=[{"name": "played", "steps": 2, "mix": mix}],
        executed=settings.model_dump(),
    )
    output, said = tmp_path / "policy", list[str]()
    warm_start(output, tiny, said.append)
    played = Collection.read(output / "stages" / "executed")
    card = (output / "MODEL_CARD.md").read_text()
    assert played.table()[-1] in card
    assert "a quarter of all functions" in card
    assert "| played | 0.0M | " in card
    warm_start(output, tiny, said.append)
    assert "played: done before" in said
    assert Collection.read(output / "stages" / "executed") == played
