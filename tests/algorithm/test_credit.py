from collections.abc import Sequence
from typing import Any

import pytest

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.agent.tool_format import format_action
from selfplay.agent.tools import format_edit
from selfplay.algorithm.credit import (
    Credit,
    SolveRate,
    credit_injector,
    credit_solver,
    measure_solve_rate,
    penalised,
)
from selfplay.algorithm.rewards import RewardInputs
from selfplay.algorithm.staleness import is_stale
from selfplay.algorithm.token_credit import deciding_tokens, success_of_calls, token_advantages, turns_in_vain
from selfplay.settings.learning import TrainerSettings
from selfplay.verdicts.confirmation import Confirmation

ACCEPTED = RewardInputs("submitted", is_accepted=True)
CONFIRMED, NOT_NEEDED = Confirmation.CONFIRMED, Confirmation.NOT_NEEDED


def rate(value: float | None, is_void: bool = False) -> SolveRate:
    return SolveRate(value, 8, 0, is_void)


def test_the_solve_rate_counts_graded_attempts_only():
    measured = measure_solve_rate(
        [True, False, None, True, False, False], [CONFIRMED, NOT_NEEDED, CONFIRMED, NOT_NEEDED, NOT_NEEDED], 8
    )
    assert (measured.rate, measured.graded, measured.passes, measured.is_void) == (0.4, 5, 2, False)


def test_fewer_than_half_of_the_group_graded_gives_no_rate():
    assert measure_solve_rate([True] * 3 + [None] * 5, [CONFIRMED] * 3, 8).rate is None


def test_a_pass_that_does_not_repeat_voids_the_bug():
    assert measure_solve_rate([True] * 8, [CONFIRMED] * 7 + [Confirmation.NOT_CONFIRMED], 8).is_void
    for failed in (Confirmation.FORGED, Confirmation.NOT_REPEATED):  # an attempt cannot void its bug at will
        rate = measure_solve_rate([True, False], [Confirmation.UNDISGUISED, failed], 2)
        assert (rate.is_void, rate.rate) == (False, 0.5)


@pytest.mark.parametrize(
    ("accepted", "duplicate", "solve_rate", "expected"),
    [
        (False, False, None, -1.0),
        (True, True, None, -0.8),
        (True, False, rate(0.0), -0.8),
        (True, False, rate(1.0), -0.8),
        (True, False, rate(0.25), 0.55),
        (True, False, rate(0.25, is_void=True), -1.0),
    ],
)
def test_injector_rewards_follow_the_papers_rule(accepted, duplicate, solve_rate, expected):
    inputs = RewardInputs("submitted", is_accepted=accepted, is_duplicate=duplicate, failed_check="baseline")
    credit = credit_injector(inputs, "ssr", solve_rate)
    assert credit is not None
    assert credit.reward == pytest.approx(expected)


def test_an_injector_waits_for_its_solvers():
    assert credit_injector(ACCEPTED, "ssr", None) is None


def test_an_injector_whose_bug_was_hardly_graded_is_masked():
    credit = credit_injector(ACCEPTED, "ssr", rate(None))
    assert credit is not None
    assert credit.masked


def test_the_consistency_reward_does_not_wait():
    credit = credit_injector(ACCEPTED, "consistency", None)
    assert credit is not None
    assert credit.reward == 1.0


def test_an_episode_policy_penalises_by_finish_reason_and_leaves_masked_ones_masked():
    repaired = Credit(1.0, "repaired")
    assert penalised(repaired, "stuck", "penalise_stuck") == Credit(-1.0, "penalised: stuck")
    assert penalised(repaired, "submitted", "penalise_stuck") == repaired
    assert penalised(repaired, "stuck", "all") == repaired
    assert penalised(Credit(None, "void bug"), "stuck", "penalise_stuck").masked


def test_a_machine_failure_gives_a_solver_nothing():
    assert credit_solver(RewardInputs("env_error"), "ssr", None).masked


def test_attempts_at_a_void_bug_give_nothing():
    assert credit_solver(RewardInputs("submitted", is_void=True, is_repaired=True), "ssr", True).masked


@pytest.mark.parametrize(("passed", "reward"), [(True, 1.0), (False, -1.0)])
def test_a_repair_scores_plus_one_and_a_failure_minus_one(passed, reward):
    inputs = RewardInputs("submitted", is_repaired=passed)
    assert credit_solver(inputs, "ssr", passed).reward == reward


def test_an_episode_is_stale_only_beyond_max_lag():
    assert not is_stale(oldest_version=2, current_version=10, max_lag=8)
    assert is_stale(oldest_version=1, current_version=10, max_lag=8)
    assert not is_stale(5, 5, 0)


PATCH = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1,2 +1,2 @@\n-a = 1\n+a = 2\n b = 1\n"


def edited(line: int, search: str, replace: str) -> str:
    return format_action("edit", format_edit("m.py", line, search, replace))


def played(*turns: tuple[str, str, bool], patch: str = PATCH) -> Episode:
    """An episode of turns with two tokens each. One prompt token precedes each turn."""
    made = tuple(
        Turn(text, tool, "", (3 * n + 1, 3 * n + 3), is_error=is_error)
        for n, (tool, text, is_error) in enumerate(turns)
    )
    mask = (0, 1, 1) * len(made)
    ids = tuple(range(len(mask)))
    finish = FinishReason.SUBMITTED
    return Episode(
        "e",
        Role.SOLVER,
        "r",
        0,
        "g",
        0,
        0,
        finish,
        (),
        made,
        ids,
        mask,
        (0.0,) * len(ids),
        submission={"patch": patch},
    )


REFUSED = ("edit", edited(2, "1", "9"), False)
FIXING = ("edit", edited(1, "1", "2"), False)
FAULTY = ("", "no call at all", True)


def advantages_of(episode: Episode, advantage: float, **settings: Any) -> list[float]:
    return token_advantages(episode, advantage, TrainerSettings(**settings), 0.0, read)


def test_with_kept_edits_credit_a_success_teaches_no_reverted_edit_and_no_failed_call():
    episode = played(FAULTY, REFUSED, ("bash", "ls", False), FIXING)
    assert advantages_of(episode, 0.5, credit="kept_edits") == [0, 0, 0, 0, 0, 0, 0, 0.5, 0.5, 0, 0.5, 0.5]


def test_all_actions_of_a_failure_get_its_advantage_and_so_do_all_episodes_under_the_papers_credit():
    episode = played(FAULTY, REFUSED, FIXING)
    whole = [float(is_action) for is_action in episode.loss_mask]
    assert advantages_of(episode, 1.0) == whole
    assert (
        advantages_of(episode, -1.0)
        == advantages_of(episode, -1.0, credit="kept_edits")
        == [-value for value in whole]
    )


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_failed_episodes_weigh_as_much_as_the_settings_say(weight):
    assert advantages_of(played(FIXING), -2.0, negative_weight=weight) == [0, -2.0 * weight, -2.0 * weight]
    assert advantages_of(played(FIXING), 2.0, negative_weight=weight) == [0, 2.0, 2.0]


def test_an_edit_of_a_file_in_another_encoding_is_kept_though_the_diff_holds_bytes():
    fixing = ("edit", edited(1, "1", "'caf\xe9'"), False)
    kept = played(fixing, patch=PATCH.replace("+a = 2", "+a = 'caf\udce9'"))
    assert advantages_of(kept, 1.0, credit="kept_edits") == [0, 1, 1]
    other = played(fixing, patch=PATCH.replace("+a = 2", "+a = 'th\udce9'"))
    assert advantages_of(other, 1.0, credit="kept_edits") == [0, 0, 0]


def test_a_submission_that_is_not_a_diff_reverts_no_edit_of_an_episode():
    assert advantages_of(played(REFUSED, patch="nonsense"), 1.0, credit="kept_edits") == [0, 1, 1]


def test_a_turn_is_in_vain_if_its_call_failed_is_missing_or_repeats_a_change():
    refused = ("edit", edited(1, "1", "2"), True)
    assert turns_in_vain(played(FAULTY, refused, FIXING, ("bash", "ls", False), FIXING, REFUSED)) == {
        0,
        1,
        4,
    }
    assert turns_in_vain(played(("bash", "ls", False), ("bash", "ls", False))) == set()


def spelled(*turns: tuple[str, str, bool]) -> Episode:
    """An episode without prompt, whose turns have one token per character."""
    made: list[Turn] = []
    ids: list[int] = []
    for tool, text, is_error in turns:
        made.append(Turn(text, tool, "", (len(ids), len(ids) + len(text)), is_error=is_error))
        ids += map(ord, text)
    zeros, ones = (0.0,) * len(ids), (1,) * len(ids)
    return Episode(
        "e", Role.SOLVER, "r", 0, "g", 0, 0, FinishReason.SUBMITTED, (), tuple(made), tuple(ids), ones, zeros
    )


def read(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def credited(episode: Episode, expected: float, **settings: Any) -> list[float]:
    return token_advantages(episode, 0.0, TrainerSettings(**settings), expected, read)


def test_a_call_with_a_new_change_gains_relative_to_the_groups_share_and_other_edits_lose():
    refused = ("edit", edited(2, "9", "1"), True)
    episode = spelled(
        FIXING,
        ("bash", "<tool: bash>\nls\n</tool>", False),
        FIXING,
        refused,
        FAULTY,
        ("submit", "<tool: submit>\n</tool>", False),
    )
    values = credited(episode, 0.25, call_reward_weight=2.0)
    assert credited(episode, 0.25, call_reward_weight=2.0, negative_weight=0.0) == [
        max(value, 0.0) for value in values
    ]
    in_body = [values[turn.tokens[0] + len("<tool: edit>") + 1] for turn in episode.turns]
    # A repeated change is no new change. Commands never fail, so they get no credit.
    assert in_body == [1.5, 0.0, -0.5, -0.5, -0.5, 0.0]
    assert credited(episode, 0.25) == [0.0] * len(episode.token_ids)


def test_call_credit_goes_neither_to_the_choice_of_a_tool_nor_to_the_new_text():
    text = "12: a = 1\n" + FIXING[1]
    values = credited(spelled(("edit", text, False)), 0.0, call_reward_weight=1.0)
    unpaid = "".join(character for character, value in zip(text, values, strict=True) if not value)
    assert unpaid == "1<tool: edit>" + text[text.index("\n2\n") :]
    values = credited(spelled(FAULTY), 0.5, call_reward_weight=1.0)
    assert values == [0.0] + [-0.5] * (len(FAULTY[1]) - 1)


def test_the_credit_of_calls_adds_to_the_episodes():
    episode = spelled(FIXING)
    both = token_advantages(
        episode, -1.0, TrainerSettings(call_reward_weight=1.0, negative_weight=0.5), 0.25, read
    )
    assert (both[0], both[len("<tool: edit>") + 1], both[-1]) == (-0.5, 0.25, -0.5)


def test_every_token_of_the_line_that_names_the_tool_is_a_deciding_token():
    pieces = {0: "7: x\n<to", 1: "ol: edit>\nm.py", 2: ":1\n", 3: "rest"}
    assert deciding_tokens([0, 1, 2, 3], lambda ids: "".join(pieces[piece] for piece in ids)) == {0, 1}
    assert deciding_tokens([3, 3], lambda ids: "".join(pieces[piece] for piece in ids)) == {0}


def test_a_call_that_is_only_thought_of_decides_nothing():
    pieces = {0: "<think>\n<tool: bash>\n", 1: "x\n</think>\n", 2: "<tool: edit>\n", 3: "m.py"}
    assert deciding_tokens([0, 1, 2, 3], lambda ids: "".join(pieces[piece] for piece in ids)) == {0, 2}


def test_the_share_of_new_changes_is_counted_over_a_groups_calls():
    refused = ("edit", edited(2, "9", "1"), True)
    assert success_of_calls([played(FIXING, FIXING), played(refused, REFUSED)]) == 0.5
    assert success_of_calls([played(("bash", "ls", False))]) == 0.0
