"""What is played: groups of episodes as tokens, sandbox seconds and outcomes, read from a run or drawn from stated assumptions.

Leaves speeds of hardware to `hardware`. Invariant: merging turns into stretches keeps an episode's tokens and seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from selfplay.agent.episode import Role
from selfplay.errors import UsageError


@dataclass(frozen=True)
class Stretch:
    """One turn, or several merged into one.

    read   tokens of prompt or observation that a server reads first (its prefix cache holds what came before)
    drawn  tokens that the policy draws
    act_s  seconds in the sandbox that follow
    """

    read: float
    drawn: float
    act_s: float


@dataclass(frozen=True)
class EpisodeShape:
    """open_s: before the first turn (sandbox, workspace). judge_s: its verdict or grades, each in sandboxes of their own."""

    open_s: float
    stretches: tuple[Stretch, ...]
    judge_s: float
    turns: int

    @property
    def tokens(self) -> float:
        return sum(part.read + part.drawn for part in self.stretches)

    @property
    def drawn(self) -> float:
        return sum(part.drawn for part in self.stretches)

    @property
    def sandbox_s(self) -> float:
        """Seconds in which something runs in its sandbox while it is played."""
        return self.open_s + sum(part.act_s for part in self.stretches)

    def merged(self, most: int) -> EpisodeShape:
        """At most `most` stretches, of as equal numbers of turns as can be."""
        count = len(self.stretches)
        if count <= most:
            return self
        bounds = [count * place // most for place in range(most + 1)]
        parts = [self.stretches[low:high] for low, high in pairwise(bounds)]
        merged = (
            Stretch(sum(s.read for s in part), sum(s.drawn for s in part), sum(s.act_s for s in part))
            for part in parts
        )
        return replace(self, stretches=tuple(merged))


@dataclass(frozen=True)
class GroupShape:
    """A group as it was played. bugs: new first-order bugs of an injector group. carries: its rewards differ, so it is trained on."""

    role: Role
    episodes: tuple[EpisodeShape, ...]
    bugs: int = 0
    carries: bool = True

    @property
    def tokens(self) -> float:
        return sum(episode.tokens for episode in self.episodes)


@dataclass(frozen=True)
class Workload:
    """The groups that a simulation draws from, with replacement, whole groups at a time: their members resemble each other.

    replays    solver groups of other bugs (second order, played before) for each injector group
    assumptions  what is assumed rather than measured, a sentence each
    """

    name: str
    injectors: tuple[GroupShape, ...]
    solvers: tuple[GroupShape, ...]
    replays: float
    assumptions: tuple[str, ...] = ()

    def merged(self, most: int) -> Workload:
        def shorten(groups: Sequence[GroupShape]) -> tuple[GroupShape, ...]:
            return tuple(
                replace(group, episodes=tuple(episode.merged(most) for episode in group.episodes))
                for group in groups
            )

        return replace(self, injectors=shorten(self.injectors), solvers=shorten(self.solvers))

    @property
    def bugs(self) -> float:
        """New bugs of an injector group, on average."""
        return _mean([float(group.bugs) for group in self.injectors])

    @property
    def solver_groups(self) -> float:
        """Solver groups for each injector group, in the long run."""
        return self.bugs + self.replays if self.injectors else 1.0

    def trained_tokens(self, role: Role) -> float:
        """Tokens that a group brings to a batch on average, groups without a gradient counted as none."""
        return _mean([group.tokens if group.carries else 0.0 for group in self.groups(role)])

    def groups(self, role: Role) -> tuple[GroupShape, ...]:
        return self.injectors if role is Role.INJECTOR else self.solvers

    def group_size(self, role: Role) -> float:
        return _mean([float(len(group.episodes)) for group in self.groups(role)])

    def per_episode(self) -> EpisodeMeans:
        """Means of an episode in the long-run mix of both roles."""
        weighed: list[tuple[float, EpisodeShape]] = []
        for groups, weight in ((self.injectors, 1.0), (self.solvers, self.solver_groups)):
            weighed += [(weight / len(groups), episode) for group in groups for episode in group.episodes]
        total = sum(weight for weight, _ in weighed)

        def mean(values: Sequence[float]) -> float:
            return sum(weight * value for (weight, _), value in zip(weighed, values, strict=True)) / total

        episodes = [episode for _, episode in weighed]
        # A token is drawn while all before it are held: the mean context of drawn tokens, weighed by them.
        contexts, drawn = 0.0, 0.0
        for weight, episode in weighed:
            held = 0.0
            for part in episode.stretches:
                contexts += weight * part.drawn * (held + part.read + part.drawn / 2)
                drawn += weight * part.drawn
                held += part.read + part.drawn
        return EpisodeMeans(
            turns=mean([float(e.turns) for e in episodes]),
            tokens=mean([e.tokens for e in episodes]),
            drawn=mean([e.drawn for e in episodes]),
            sandbox_s=mean([e.sandbox_s for e in episodes]),
            judge_s=mean([e.judge_s for e in episodes]),
            context=contexts / drawn if drawn else 0.0,
        )


@dataclass(frozen=True)
class EpisodeMeans:
    """tokens: all of an episode; drawn: by the policy; context: tokens held while one is drawn; *_s: seconds."""

    turns: float
    tokens: float
    drawn: float
    sandbox_s: float
    judge_s: float
    context: float


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# ---- the paper's workload, which the paper describes in part


@dataclass(frozen=True)
class PaperAssumptions:
    """What the paper (SSR, arXiv 2512.18552) leaves open. Medians belong to log-normal draws; `--assume name=value` sets one."""

    turns: float = 40.0  # median of an episode; 128 at most (the paper's limit)
    turns_spread: float = 0.6  # standard deviation of the logarithm
    prompt_tokens: float = 4000.0
    drawn_tokens: float = 300.0  # median of a turn
    observation_tokens: float = 400.0  # median of a turn
    tokens_spread: float = 0.8
    command_s: float = 1.0  # median of an ordinary command
    test_share: float = 0.2  # of turns that run tests
    test_s: float = 20.0  # median of a run of tests; 90 at most (the paper's limit of a script)
    seconds_spread: float = 0.8
    open_s: float = 5.0  # a sandbox made ready
    judge_runs: float = 10.0  # runs of tests of an accepted artifact's verdict, one after the other
    grade_runs: float = 1.5  # of a repair's grading: each pass is graded twice
    valid: float = 0.5  # of injector episodes that become a new bug
    solver_gradient: float = 0.5  # of solver groups whose rewards differ
    injector_gradient: float = 0.9  # of injector groups whose rewards differ
    replays: float = 0.33  # solver groups of other bugs for each new bug: a share of 0.25 (our default of second-order bugs)


PAPER_BATCH_TOKENS = (
    16 * 8 * 131_072.0
)  # 16 micro-steps; 131,072 tokens on each of 8 data-parallel ranks are 16.8M, "16M tokens"
PAPER_GROUP = 8
PAPER_GROUPS = 120  # of each role; drawn from with replacement


def paper_assumptions(changes: Mapping[str, float]) -> PaperAssumptions:
    """Raises UsageError naming an unknown assumption or a value that cannot be one."""
    known = [field.name for field in fields(PaperAssumptions)]
    for name, value in changes.items():
        if name not in known:
            raise UsageError(
                f"--assume {name}: there is no such assumption. Choose from: {', '.join(known)}."
            )
        is_share = name in ("test_share", "valid", "solver_gradient", "injector_gradient")
        if (
            not math.isfinite(value)
            or value < 0
            or (is_share and value > 1)
            or (name == "turns" and value < 1)
        ):
            raise UsageError(
                f"--assume {name}={value:g}: needs a {'share from 0 to 1' if is_share else 'number above 0'}."
            )
        if name == "solver_gradient" and value == 0:
            raise UsageError(
                "--assume solver_gradient=0: no group would ever be trained on; give a share above 0."
            )
    return replace(PaperAssumptions(), **dict(changes))


def paper_workload(assumed: PaperAssumptions, seed: int, groups: int = PAPER_GROUPS) -> Workload:
    """`groups` groups of 8 of each role as the paper might have played them. The same seed draws the same workload."""
    rng = random.Random(seed)

    def spread(median: float, sigma: float) -> float:
        return median * math.exp(sigma * rng.gauss(0, 1)) if median else 0.0

    def episode(runs: float, difficulty: float) -> EpisodeShape:
        turns = max(1, min(128, round(difficulty * spread(assumed.turns, assumed.turns_spread * 0.7))))
        parts = []
        context = 0.0
        for turn in range(turns):
            read = (
                assumed.prompt_tokens
                if not turn
                else spread(assumed.observation_tokens, assumed.tokens_spread)
            )
            drawn = spread(assumed.drawn_tokens, assumed.tokens_spread)
            if context + read + drawn > 131_072:
                break
            context += read + drawn
            is_test = rng.random() < assumed.test_share
            median = assumed.test_s if is_test else assumed.command_s
            parts.append(
                Stretch(read, drawn, min(spread(median, assumed.seconds_spread), 90.0 if is_test else 120.0))
            )
        judge_s = sum(min(90.0, spread(assumed.test_s, assumed.seconds_spread)) for _ in range(round(runs)))
        return EpisodeShape(assumed.open_s, tuple(parts), judge_s, len(parts))

    def group(role: Role) -> GroupShape:
        difficulty = math.exp(
            assumed.turns_spread * 0.7 * rng.gauss(0, 1)
        )  # half of the variance lies between groups
        valid = [role is Role.INJECTOR and rng.random() < assumed.valid for _ in range(PAPER_GROUP)]
        runs = [
            (assumed.judge_runs if good else 0.0)
            if role is Role.INJECTOR
            else _whole(assumed.grade_runs, rng)
            for good in valid
        ]
        carries = rng.random() < (
            assumed.injector_gradient if role is Role.INJECTOR else assumed.solver_gradient
        )
        return GroupShape(role, tuple(episode(count, difficulty) for count in runs), sum(valid), carries)

    injectors = tuple(group(Role.INJECTOR) for _ in range(groups))
    solvers = tuple(group(Role.SOLVER) for _ in range(groups))
    bugs = _mean([float(one.bugs) for one in injectors])
    described = Workload("paper", injectors, solvers, replays=assumed.replays * bugs)
    means = described.per_episode()
    return replace(
        described,
        assumptions=(
            "from the paper: 32B parameters, groups of 8, batches of 16 x 8 x 131,072 = 16.8M tokens, at most 128 turns and 131,072 "
            "tokens an episode, 90 s a run of tests, 120 s a command, lag of at most 8 updates, 64 GPUs training and 448 rolling out",
            f"assumed: turns of an episode are log-normal with median {assumed.turns:g} and spread {assumed.turns_spread:g}, half of it "
            f"between groups (the mean comes to {means.turns:.0f})",
            f"assumed: a prompt of {assumed.prompt_tokens:g} tokens; a turn draws {assumed.drawn_tokens:g} and reads "
            f"{assumed.observation_tokens:g} (medians, spread {assumed.tokens_spread:g}); the mean episode comes to "
            f"{means.tokens:,.0f} tokens, {means.drawn:,.0f} of them drawn",
            f"assumed: a command takes {assumed.command_s:g} s, {assumed.test_share:.0%} of turns run tests for {assumed.test_s:g} s "
            f"(medians, spread {assumed.seconds_spread:g}); opening a sandbox takes {assumed.open_s:g} s",
            f"assumed: a valid artifact's verdict takes {assumed.judge_runs:g} runs of tests, a repair's grading {assumed.grade_runs:g}",
            f"assumed: {assumed.valid:.0%} of injector episodes become a new bug; rewards differ in {assumed.injector_gradient:.0%} of "
            f"injector and {assumed.solver_gradient:.0%} of solver groups, and others do not count to a batch; "
            f"{assumed.replays:g} groups of second-order or older bugs for each new bug",
            "assumed: all tokens of a trained episode, prompt and observations too, count to the batch",
        ),
    )


def _whole(mean: float, rng: random.Random) -> float:
    """A whole number with this mean."""
    return math.floor(mean) + (rng.random() < mean % 1)
