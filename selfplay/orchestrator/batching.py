"""Forms the batch of an update: complete groups -> episodes with advantages -> samples of tokens. Pure.

It reads no file and no database, and computes no loss. Invariants:
- A stale episode is not trained on, but its group is done: it would only get older.
- A group whose mean is no usable baseline, or whose rewards are all equal, gives every episode advantage 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from selfplay.agent.episode import Episode
from selfplay.agent.tools import STANDARD, Toolbox
from selfplay.algorithm.advantages import Group, compute_advantages
from selfplay.algorithm.episodes import treatment
from selfplay.algorithm.staleness import is_stale, lag
from selfplay.algorithm.token_credit import success_of_calls, token_advantages
from selfplay.curriculum.rows import EpisodeRow, GroupRow
from selfplay.settings.learning import TrainerSettings
from selfplay.training.batch import Sample, with_gradient


@dataclass(frozen=True)
class BatchRules:
    """What decides which complete groups and episodes an update trains on.

    trained_roles: groups of other roles are consumed, but not trained on.
    weight_version: of the trainer. An episode is stale if it is more than max_lag versions older.
    paced_role, paced_groups: take at most so many groups with a gradient of this role. The next update trains
        on the others. None: take all.
    """

    trainer: TrainerSettings
    trained_roles: Sequence[str]
    weight_version: int
    max_lag: int
    paced_role: str = ""
    paced_groups: int | None = None

    @property
    def rewards_calls(self) -> bool:
        """True if calls have rewards of their own. Then episodes of equal rewards are trained on too."""
        return self.trainer.call_reward_weight > 0

    def fresh(self, rows: Iterable[EpisodeRow]) -> list[EpisodeRow]:
        """The episodes that are not stale."""
        return [
            row for row in rows if not is_stale(row.weight_version_min, self.weight_version, self.max_lag)
        ]


@dataclass
class Batch:
    """What an update trains on, and what it is done with.

    trained: (episode, advantage), of the episodes whose tokens may count.
    consumed: (episode id, advantage), of all fresh episodes of its groups.
    groups: ids of all its groups.
    rewards: role -> rewards of its groups' episodes, stale ones too.
    lags: of the trained episodes, in updates.
    counts: metric name without "groups/" -> count.
    """

    trained: list[tuple[EpisodeRow, float]] = field(default_factory=list)
    consumed: list[tuple[str, float]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    rewards: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lags: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def has_baseline(group: GroupRow, rewarded: int) -> bool:
    """True if more than half of the group's episodes have a reward.

    With fewer, the mean of their rewards is not a usable baseline.
    """
    return 2 * rewarded > group.size


def rewarded(rows: Iterable[EpisodeRow]) -> list[EpisodeRow]:
    """The episodes that have a reward and are not masked."""
    return [row for row in rows if not row.masked and row.reward is not None]


def carries_gradient(group: GroupRow, rows: Iterable[EpisodeRow]) -> bool:
    """True if the finished group has a usable baseline and its rewards differ. rows: its episodes."""
    rewards = _rewards(rewarded(rows))
    return has_baseline(group, len(rewards)) and len(set(rewards)) > 1


def make_batch(groups: Iterable[tuple[GroupRow, Sequence[EpisodeRow]]], rules: BatchRules) -> Batch:
    """groups: complete ones with their episodes, oldest first."""
    batch = Batch()
    for group, rows in groups:
        if not _waits(group, batch, rules):
            _add_group(batch, group, rows, rules)
    return batch


def make_samples(
    trained: Sequence[tuple[Episode, float]],
    settings: TrainerSettings,
    decode: Callable[[Sequence[int]], str],
    tools: Toolbox = STANDARD,
) -> list[Sample]:
    """One sample for each (episode, advantage); none at all if no token has an advantage.

    decode: token ids -> text. tools: those that the episodes were played with.
    """
    groups: dict[str, list[Episode]] = defaultdict(list)
    for episode, _ in trained:
        groups[episode.group].append(episode)
    rewards_calls = settings.call_reward_weight > 0
    expected = {
        group: success_of_calls(members, tools) if rewards_calls else 0.0 for group, members in groups.items()
    }
    samples = []
    for episode, advantage in trained:
        advantages = token_advantages(episode, advantage, settings, expected[episode.group], decode, tools)
        samples.append(
            Sample(episode.token_ids, episode.loss_mask, episode.logprobs, advantages, episode.role.value)
        )
    return samples if with_gradient(samples) else []


def _waits(group: GroupRow, batch: Batch, rules: BatchRules) -> bool:
    """True if the batch has enough groups of this role: the next update trains on it."""
    taken = batch.counts[f"{group.role}/gradient_groups"]
    return group.role == rules.paced_role and rules.paced_groups is not None and taken >= rules.paced_groups


def _add_group(batch: Batch, group: GroupRow, rows: Sequence[EpisodeRow], rules: BatchRules) -> None:
    paid = rewarded(rows)
    fresh = rules.fresh(paid)
    counts = batch.counts
    batch.rewards[group.role] += _rewards(paid)
    counts["stale"] += len(paid) - len(fresh)
    counts["masked"] += group.size - len(paid)
    counts[f"{group.role}/groups"] += 1
    batch.groups.append(group.group_id)
    advantages = [0.0] * len(fresh)
    if has_baseline(group, len(fresh)):
        lengths = [row.action_tokens for row in fresh]
        advantages = compute_advantages(rules.trainer.advantage, Group(_rewards(fresh), lengths, group.role))
    else:
        counts["dropped_groups"] += 1
    batch.consumed.extend(
        (row.episode_id, advantage) for row, advantage in zip(fresh, advantages, strict=True)
    )
    if any(advantages):
        counts[f"{group.role}/gradient_groups"] += 1
    else:
        counts["zero_variance_groups"] += 1
        counts[f"{group.role}/zero_variance_groups"] += 1
        if not rules.rewards_calls:
            return
    if group.role not in rules.trained_roles:
        counts["not_learned"] += len(fresh)
        return
    for row, advantage in zip(fresh, advantages, strict=True):
        if treatment(rules.trainer.episodes, row.finish) != "mask":
            batch.lags.append(lag(row.weight_version_min, rules.weight_version))
            batch.trained.append((row, advantage))


def _rewards(rows: Iterable[EpisodeRow]) -> list[float]:
    return [row.reward for row in rows if row.reward is not None]
