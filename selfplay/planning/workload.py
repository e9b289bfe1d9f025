"""What is played: groups of episodes, described by their tokens, their sandbox seconds and their outcomes.

The groups come from a run (`recorded`) or from the paper's figures and assumptions (`paper`).
Invariant: merging turns into stretches keeps the tokens and seconds of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from selfplay.agent.episode import Role


@dataclass(frozen=True)
class Stretch:
    """One turn, or several turns merged into one.

    prefill  new tokens of prompt or observation; the server's prefix cache holds the tokens before them
    sampled  tokens that the policy samples
    act_s    seconds of the command that follows, in the sandbox
    """

    prefill: float
    sampled: float
    act_s: float


@dataclass(frozen=True)
class EpisodeShape:
    """What an episode costs.

    open_s   seconds before the first turn: the sandbox opens and the workspace is prepared
    judge_s  seconds of its verdict or of its grades; each runs in sandboxes of its own
    turns    number of turns before any merging
    """

    open_s: float
    stretches: tuple[Stretch, ...]
    judge_s: float
    turns: int

    @cached_property
    def tokens(self) -> float:
        return sum(part.prefill + part.sampled for part in self.stretches)

    @cached_property
    def sampled(self) -> float:
        return sum(part.sampled for part in self.stretches)

    @property
    def sandbox_s(self) -> float:
        """Seconds in which something runs in the episode's sandbox."""
        return self.open_s + sum(part.act_s for part in self.stretches)

    def merged(self, most: int) -> EpisodeShape:
        """The episode with at most `most` stretches, with their numbers of turns as equal as possible."""
        count = len(self.stretches)
        if count <= most:
            return self
        bounds = [count * index // most for index in range(most + 1)]
        parts = [self.stretches[low:high] for low, high in pairwise(bounds)]
        merged = (
            Stretch(sum(s.prefill for s in part), sum(s.sampled for s in part), sum(s.act_s for s in part))
            for part in parts
        )
        return replace(self, stretches=tuple(merged))


@dataclass(frozen=True)
class GroupShape:
    """A group of episodes.

    bugs          new first-order bugs of an injector group
    has_gradient  the rewards differ, so the group is trained on
    """

    role: Role
    episodes: tuple[EpisodeShape, ...]
    bugs: int = 0
    has_gradient: bool = True

    @cached_property
    def tokens(self) -> float:
        return sum(episode.tokens for episode in self.episodes)


@dataclass(frozen=True)
class Workload:
    """The groups that a simulation samples from, with replacement.

    It samples whole groups, because the members of a group are alike.


    replays      solver groups on other bugs (second-order bugs and older ones) per injector group
    assumptions  what is assumed and not measured, one sentence each
    """

    name: str
    injectors: tuple[GroupShape, ...]
    solvers: tuple[GroupShape, ...]
    replays: float
    assumptions: tuple[str, ...] = ()

    def joined(self, others: Sequence[Workload]) -> Workload:
        """The workload with the groups of `others` added; `replays` is the mean."""
        all_ = (self, *others)
        return replace(
            self,
            injectors=tuple(group for one in all_ for group in one.injectors),
            solvers=tuple(group for one in all_ for group in one.solvers),
            replays=mean_of([one.replays for one in all_]),
        )

    def merged(self, most: int) -> Workload:
        """The workload with at most `most` stretches per episode."""

        def shorten(groups: Sequence[GroupShape]) -> tuple[GroupShape, ...]:
            return tuple(
                replace(group, episodes=tuple(episode.merged(most) for episode in group.episodes))
                for group in groups
            )

        return replace(self, injectors=shorten(self.injectors), solvers=shorten(self.solvers))

    @cached_property
    def bugs(self) -> float:
        """Mean number of new bugs per injector group."""
        return mean_of([float(group.bugs) for group in self.injectors])

    @cached_property
    def solver_groups(self) -> float:
        """Solver groups per injector group, in the long run."""
        return self.bugs + self.replays if self.injectors else 1.0

    def trained_tokens(self, role: Role) -> float:
        """Mean tokens that a group brings to a batch. A group without a gradient brings none."""
        return mean_of([group.tokens if group.has_gradient else 0.0 for group in self.groups(role)])

    def groups(self, role: Role) -> tuple[GroupShape, ...]:
        return self.injectors if role is Role.INJECTOR else self.solvers

    def group_size(self, role: Role) -> float:
        return mean_of([float(len(group.episodes)) for group in self.groups(role)])

    def per_episode(self) -> EpisodeMeans:
        """Means per episode, over the long-run mix of both roles."""
        weighted: list[tuple[float, EpisodeShape]] = []
        for groups, weight in ((self.injectors, 1.0), (self.solvers, self.solver_groups)):
            weighted += [(weight / len(groups), episode) for group in groups for episode in group.episodes]
        total = sum(weight for weight, _ in weighted)

        def mean(values: Sequence[float]) -> float:
            return sum(weight * value for (weight, _), value in zip(weighted, values, strict=True)) / total

        episodes = [episode for _, episode in weighted]
        return EpisodeMeans(
            turns=mean([float(e.turns) for e in episodes]),
            tokens=mean([e.tokens for e in episodes]),
            sampled=mean([e.sampled for e in episodes]),
            sandbox_s=mean([e.sandbox_s for e in episodes]),
            judge_s=mean([e.judge_s for e in episodes]),
            context=_mean_context(weighted),
        )


@dataclass(frozen=True)
class EpisodeMeans:
    """Means per episode.

    tokens   all tokens
    sampled  tokens that the policy samples
    context  tokens in the KV cache while one is sampled
    """

    turns: float
    tokens: float
    sampled: float
    sandbox_s: float
    judge_s: float
    context: float


def _mean_context(weighted: Sequence[tuple[float, EpisodeShape]]) -> float:
    """Mean number of tokens before a sampled token, over all sampled tokens."""
    contexts, sampled = 0.0, 0.0
    for weight, episode in weighted:
        held = 0.0
        for part in episode.stretches:
            contexts += weight * part.sampled * (held + part.prefill + part.sampled / 2)
            sampled += weight * part.sampled
            held += part.prefill + part.sampled
    return contexts / sampled if sampled else 0.0


def mean_of(values: Sequence[float]) -> float:
    """The mean; 0 of no values."""
    return sum(values) / len(values) if values else 0.0
