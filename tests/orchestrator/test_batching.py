"""Batches: which groups and episodes an update trains on, with which advantages, and their samples."""

from dataclasses import replace

import pytest

from selfplay.agent.episode import Episode, FinishReason, Role, Turn
from selfplay.agent.tool_format import format_action
from selfplay.agent.tools import format_edit
from selfplay.orchestrator.batching import (
    BatchRules,
    carries_gradient,
    has_baseline,
    make_batch,
    make_samples,
)
from selfplay.settings.learning import TrainerSettings
from store_rows import a_group, an_episode

ROLES = ("injector", "solver")


def rules(version=0, max_lag=8, trained_roles=ROLES, paced=None, **trainer):
    role, groups = paced or ("", None)
    return BatchRules(
        TrainerSettings(advantage="dr_grpo", **trainer), trained_roles, version, max_lag, role, groups
    )


def finished(group_id, rewards, role="solver", versions=None):
    """A complete group and its episodes. rewards: None where the machine failed."""
    group = a_group(group_id, role, size=len(rewards))
    versions = versions or [0] * len(rewards)
    return group, [
        an_episode(group, member, reward=reward, masked=reward is None, weight_version_min=version)
        for member, (reward, version) in enumerate(zip(rewards, versions, strict=True))
    ]


def trained(batch):
    return [(row.episode_id, advantage) for row, advantage in batch.trained]


@pytest.mark.parametrize(("rewarded", "usable"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_baseline_takes_more_than_half_of_the_group(rewarded, usable):
    assert has_baseline(a_group(size=4), rewarded) is usable


@pytest.mark.parametrize(
    ("rewards", "carries"),
    [
        ([1, -1], True),
        ([1, 1], False),
        ([1, None], False),
        ([1, -1, None], True),
        ([1, -1, None, None], False),
    ],
)
def test_a_group_carries_a_gradient_if_enough_rewards_are_left_and_they_differ(rewards, carries):
    assert carries_gradient(*finished("g", rewards)) is carries


def test_advantages_compare_the_episodes_of_one_group():
    batch = make_batch([finished("a", [1, -1]), finished("b", [0.5, 0, 0, -0.5], "injector")], rules())
    assert trained(batch) == [
        ("a-m0", 1),
        ("a-m1", -1),
        ("b-m0", 0.5),
        ("b-m1", 0),
        ("b-m2", 0),
        ("b-m3", -0.5),
    ]
    assert batch.consumed == trained(batch) and batch.groups == ["a", "b"]
    assert batch.counts["solver/gradient_groups"] == batch.counts["injector/gradient_groups"] == 1
    assert batch.rewards == {"solver": [1, -1], "injector": [0.5, 0, 0, -0.5]}


def test_an_episode_that_the_policy_masks_counts_in_its_groups_mean_and_is_not_trained_on():
    group, rows = finished("a", [1, -1, 0])
    rows[1] = replace(rows[1], finish="max_turns")
    batch = make_batch([(group, rows)], rules(episodes="compact"))
    assert trained(batch) == [("a-m0", 1), ("a-m2", 0)]
    assert batch.consumed == [("a-m0", 1), ("a-m1", -1), ("a-m2", 0)]


def test_a_group_of_equal_rewards_is_consumed_and_not_trained_on():
    batch = make_batch([finished("a", [1, 1])], rules())
    assert (trained(batch), batch.consumed, batch.groups) == ([], [("a-m0", 0), ("a-m1", 0)], ["a"])
    assert batch.counts["zero_variance_groups"] == batch.counts["solver/zero_variance_groups"] == 1


def test_a_group_of_equal_rewards_is_trained_on_if_calls_have_rewards():
    batch = make_batch([finished("a", [1, 1])], rules(call_reward_weight=0.5))
    assert trained(batch) == [("a-m0", 0), ("a-m1", 0)]


def test_masked_episodes_are_left_out_and_a_group_without_a_baseline_has_no_advantages():
    batch = make_batch([finished("a", [1, -1, 1, None]), finished("b", [1, -1, None, None])], rules())
    assert [episode_id for episode_id, _ in trained(batch)] == ["a-m0", "a-m1", "a-m2"]
    assert batch.consumed[3:] == [("b-m0", 0), ("b-m1", 0)]
    assert (batch.counts["masked"], batch.counts["dropped_groups"]) == (3, 1)


def test_stale_episodes_are_neither_trained_on_nor_in_the_baseline_and_their_rewards_are_shown():
    batch = make_batch([finished("a", [1, -1, 0], versions=[5, 5, 2])], rules(version=7, max_lag=2))
    assert trained(batch) == [("a-m0", 1), ("a-m1", -1)]
    assert (batch.counts["stale"], batch.lags, batch.rewards["solver"]) == (1, [2, 2], [1, -1, 0])
    assert batch.groups == ["a"]


def test_a_role_that_is_not_trained_is_consumed_with_its_advantages():
    batch = make_batch([finished("a", [1, -1], "injector")], rules(trained_roles=("solver",)))
    assert (trained(batch), batch.consumed) == ([], [("a-m0", 1), ("a-m1", -1)])
    assert batch.counts["not_learned"] == 2 and batch.lags == []


def test_groups_beyond_those_that_an_update_takes_of_a_role_wait_for_the_next():
    groups = [
        finished("a", [1, 1]),
        finished("b", [1, -1]),
        finished("c", [-1, 1]),
        finished("d", [1, -1], "injector"),
    ]
    assert make_batch(groups, rules(paced=("solver", 1))).groups == ["a", "b", "d"]
    assert make_batch(groups, rules(paced=("solver", 2))).groups == ["a", "b", "c", "d"]
    assert make_batch(groups, rules()).groups == ["a", "b", "c", "d"]


def played(member, changes=True, group="g"):
    """An episode of four tokens, the last three of them one edit."""
    call = format_action("edit", format_edit("a.py", 1, "1", str(member)))
    return Episode(
        f"{group}-m{member}",
        Role.SOLVER,
        "r",
        1,
        group,
        member,
        0,
        FinishReason.SUBMITTED,
        (),
        (Turn(call, "edit", "", (1, 4), is_error=not changes),),
        (7, 8, 9, 10),
        (0, 1, 1, 1),
        (0.0, -0.1, -0.2, -0.3),
    )


def test_an_episodes_sample_has_its_advantage_on_every_action_token():
    first, second = make_samples([(played(0), 1.0), (played(1), -1.0)], TrainerSettings(), lambda ids: "")
    assert (first.token_ids, first.loss_mask, first.logprobs, first.role) == (
        (7, 8, 9, 10),
        (0, 1, 1, 1),
        (0.0, -0.1, -0.2, -0.3),
        "solver",
    )
    assert (list(first.advantages), list(second.advantages)) == ([0, 1, 1, 1], [0, -1, -1, -1])


def test_without_any_advantage_there_are_no_samples():
    assert make_samples([(played(0), 0.0), (played(1), 0.0)], TrainerSettings(), lambda ids: "") == []


def test_rewards_of_calls_compare_the_episodes_of_one_group():
    """Half of group g's calls changed something, all of h's: there is nothing to learn from h."""
    episodes = [played(0), played(1, changes=False), played(0, group="h"), played(1, group="h")]
    samples = make_samples(
        [(episode, 0.0) for episode in episodes], TrainerSettings(call_reward_weight=1.0), lambda ids: ""
    )
    assert [list(sample.advantages) for sample in samples] == [
        [0, 0, 0.5, 0.5],
        [0, 0, -0.5, -0.5],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
