"""Attempts on disk, the collection that writes them, and the training texts of kept episodes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import pytest

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.errors import ConfigError, SandboxUnavailable
from selfplay.repositories.environment import Environment
from selfplay.repositories.targets import Target
from selfplay.teacher.mutations import Mutation
from selfplay.warm_start.attempts import Attempt, Collection, training_text
from selfplay.warm_start.executed import Collecting, collect
from selfplay.warm_start.mutation_plan import PlannedMutation
from selfplay.warm_start.settings import ExecuteSettings


def episode(name: str, role: Role = Role.INJECTOR) -> Episode:
    """Ten tokens: prompt (3), a good turn (2), observation (1), a turn with an error (2), observation (2)."""
    turns = (Turn("a", "edit", "", (3, 5)), Turn("b", "", "", (6, 8), is_error=True))
    mask = (0, 0, 0, 1, 1, 0, 1, 1, 0, 0)
    ids, logprobs = tuple(range(10)), (0.0,) * 10
    return Episode(name, role, "r", 0, "g", 0, 0, FinishReason.SUBMITTED, (), turns, ids, mask, logprobs)


def test_a_turn_that_caused_an_error_has_weight_0() -> None:
    weights = list(training_text(episode("e")).weights)
    assert weights[3:5] == [1.0, 1.0]
    assert weights[6:8] == [0.0, 0.0]
    assert all(0 < weight < 1 for weight in weights[:3])


@pytest.mark.parametrize(
    ("tool", "seen", "counts"), [("edit", "2 failed", False), ("edit", "", True), ("bash", "2 failed", True)]
)
def test_an_edit_that_failing_tests_undo_has_weight_0_and_its_test_run_counts(
    tool: str, seen: str, counts: bool
) -> None:
    edit, tried = (
        Turn("a", tool, "edited f.py:3", (3, 5)),
        Turn("b", "bash", f"{seen}\n[exit 0; 8 turns, 900 tokens left]", (6, 8)),
    )
    weights = list(training_text(replace(episode("e"), turns=(edit, tried))).weights)
    assert weights[3:5] == ([1.0, 1.0] if counts else [0.0, 0.0])
    assert weights[6:8] == [1.0, 1.0]


def test_an_attempt_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    rows = [
        asdict(
            Attempt(
                n, "r", "f.py::f", "constant", "validated", 1.0, f"d{n}", f"i{n}", (f"s{n}",), ("repaired",)
            )
        )
        for n in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "attempts.jsonl").write_text(text[:-20])
    assert Collection.read(tmp_path).injectors == ["i0", "i1"]
    (tmp_path / "attempts.jsonl").write_text(text[:-20] + "\n" + json.dumps(rows[2]) + "\n")
    assert Collection.read(tmp_path).solvers == ["s0", "s1", "s2"]


def planned_mutations(count: int) -> list[PlannedMutation]:
    target = Target("f.py", "f", 1, 2, "test_f.py", "")
    return [
        PlannedMutation(
            n, cast(Environment, None), target, Mutation("f.py", 1, "a", "b", "constant", "a", "b")
        )
        for n in range(count)
    ]


def attempt_at(planned: PlannedMutation, digest: str) -> tuple[Attempt, list[Episode]]:
    made = episode(f"i{planned.number}")
    return Attempt(planned.number, "r", "f.py::f", "constant", "validated", 0.1, digest, made.episode_id), [
        made
    ]


def test_a_mutation_is_played_again_by_the_next_call_if_the_machine_failed(tmp_path: Path) -> None:
    fails = {1}

    def play(planned: PlannedMutation, repairs_only: bool) -> tuple[Attempt, list[Episode]]:
        if planned.number in fails:
            raise SandboxUnavailable("no sandbox")
        return attempt_at(planned, f"d{planned.number}")

    settings, said = ExecuteSettings(injector_episodes=3, solver_episodes=0, workers=2), list[str]()
    first = Collecting(settings, Collection.read(tmp_path), said.append).run(planned_mutations(3), play)
    assert first.injectors == ["i0", "i2"]
    assert any("no sandbox" in line for line in said)
    fails.clear()
    left = [
        planned
        for planned in planned_mutations(3)
        if planned.number not in {a.number for a in first.attempts}
    ]
    Collecting(settings, Collection.read(tmp_path), said.append).run(left, play)
    assert Collection.read(tmp_path).injectors == ["i0", "i1", "i2"]
    assert sorted(path.name for path in tmp_path.glob("*.json.gz")) == [f"i{n}.json.gz" for n in range(3)]


def test_a_bug_that_exists_already_is_a_duplicate(tmp_path: Path) -> None:
    settings = ExecuteSettings(injector_episodes=2, solver_episodes=0, workers=1)
    found = Collecting(settings, Collection.read(tmp_path), lambda _: None).run(
        planned_mutations(2), lambda planned, _: attempt_at(planned, "same")
    )
    assert [attempt.outcome for attempt in found.attempts] == ["validated", "duplicate"]
    assert found.injectors == ["i0"]


def test_a_collection_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    settings = ExecuteSettings(injector_episodes=0, solver_episodes=0)
    for text in ("one", "two"):
        (tmp_path / text).mkdir()
        (tmp_path / text / "tokenizer.json").write_text(text)
    collect(settings, tmp_path / "executed", tmp_path / "one", 1024, 0, lambda _: None)
    with pytest.raises(ConfigError, match="played with another tokenizer. Remove that folder to play anew"):
        collect(settings, tmp_path / "executed", tmp_path / "two", 1024, 0, lambda _: None)
