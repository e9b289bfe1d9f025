"""The workload and the model of the paper (SSR, arXiv 2512.18552).

The paper leaves much open; that is assumed here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from selfplay.agent.episode import Role
from selfplay.errors import UsageError
from selfplay.planning.hardware import ModelSize
from selfplay.planning.workload import EpisodeMeans, EpisodeShape, GroupShape, Stretch, Workload, mean_of

PAPER_MODEL = ModelSize(32e9, 64, 6144, 8 * 128)
# 16 micro-steps of 131,072 tokens on each of 8 data-parallel ranks: 16.8M tokens. The paper says "16M
# tokens".
PAPER_BATCH_TOKENS = 16 * 8 * 131_072.0
PAPER_MAX_LAG = 8  # updates
PAPER_GPUS = 512
MACHINE_GPUS = 8  # GPUs of one machine
PAPER_GROUP = 8  # episodes of a group
PAPER_GROUPS = 120  # groups of each role; the simulation samples from them with replacement

# Limits of the paper: an episode's turns and tokens, and the seconds of a test run and of another command.
_MAX_TURNS = 128
_MAX_TOKENS = 131_072
_MAX_TEST_S = 90.0
_MAX_COMMAND_S = 120.0
# Factor on the spread of turns, both between groups and within a group: half of the variance lies between
# groups.
_HALF_VARIANCE = 0.7
_SHARES = ("test_share", "valid", "solver_gradient", "injector_gradient")


@dataclass(frozen=True)
class PaperAssumptions:
    """What the paper leaves open. `--assume name=value` sets one.

    Medians and spreads belong to log-normal distributions; a spread is the standard deviation of the
    logarithm.

    turns               median per episode
    drawn_tokens        median of sampled tokens per turn
    observation_tokens  median per turn
    command_s           median of a command that runs no tests
    test_share          share of turns that run tests
    test_s              median of a test run
    open_s              seconds until a sandbox is prepared
    judge_runs          test runs of the verdict on an accepted artifact, one after the other
    grade_runs          mean test runs that grade a repair; each pass is graded twice
    valid               share of injector episodes that become a new bug
    solver_gradient     share of solver groups whose rewards differ
    injector_gradient   share of injector groups whose rewards differ
    replays             solver groups on other bugs per new bug; our default share of second-order bugs, 0.25,
                        gives 0.33
    """

    turns: float = 40.0
    turns_spread: float = 0.6
    prompt_tokens: float = 4000.0
    drawn_tokens: float = 300.0
    observation_tokens: float = 400.0
    tokens_spread: float = 0.8
    command_s: float = 1.0
    test_share: float = 0.2
    test_s: float = 20.0
    seconds_spread: float = 0.8
    open_s: float = 5.0
    judge_runs: float = 10.0
    grade_runs: float = 1.5
    valid: float = 0.5
    solver_gradient: float = 0.5
    injector_gradient: float = 0.9
    replays: float = 0.33


def paper_assumptions(changes: Mapping[str, float]) -> PaperAssumptions:
    """The defaults with `changes`. Raises UsageError that names an unknown assumption or a wrong value."""
    known = [field.name for field in fields(PaperAssumptions)]
    for name, value in changes.items():
        if name not in known:
            raise UsageError(
                f"--assume {name}: there is no such assumption. Choose from: {', '.join(known)}."
            )
        is_share = name in _SHARES
        is_below = value < 0 or (name == "turns" and value < 1)
        if not math.isfinite(value) or is_below or (is_share and value > 1):
            raise UsageError(
                f"--assume {name}={value:g}: needs a {'share from 0 to 1' if is_share else 'number above 0'}."
            )
        if name == "solver_gradient" and value == 0:
            raise UsageError(
                "--assume solver_gradient=0: no group would ever be trained on; give a share above 0."
            )
    return replace(PaperAssumptions(), **dict(changes))


def usual_gpus(parameters: float) -> int:
    """GPUs for a policy of this size, in the paper's ratio of 512 for 32B parameters.

    Whole machines of 8 GPUs, at least one.
    """
    machines = math.ceil(parameters * PAPER_GPUS / PAPER_MODEL.parameters / MACHINE_GPUS)
    return MACHINE_GPUS * max(1, machines)


def paper_sample(assumed: PaperAssumptions, seed: int, groups: int = PAPER_GROUPS) -> Workload:
    """`groups` groups of 8 episodes for each role. The same seed gives the same groups."""
    sampler = _GroupSampler(assumed, random.Random(seed))
    injectors = tuple(sampler.group(Role.INJECTOR) for _ in range(groups))
    solvers = tuple(sampler.group(Role.SOLVER) for _ in range(groups))
    bugs = mean_of([float(one.bugs) for one in injectors])
    return Workload("paper", injectors, solvers, replays=assumed.replays * bugs)


def paper_workload(assumed: PaperAssumptions, samples: Sequence[Workload]) -> Workload:
    """The samples as one workload, which states the assumptions."""
    workload = samples[0].joined(samples[1:])
    return replace(workload, assumptions=_sentences(assumed, workload.per_episode()))


class _GroupSampler:
    """Samples groups from the assumptions.

    The order of random draws is fixed, so that a seed repeats a workload.
    """

    def __init__(self, assumed: PaperAssumptions, rng: random.Random) -> None:
        self._assumed = assumed
        self._rng = rng

    def group(self, role: Role) -> GroupShape:
        assumed, rng = self._assumed, self._rng
        is_injector = role is Role.INJECTOR
        difficulty = math.exp(assumed.turns_spread * _HALF_VARIANCE * rng.gauss(0, 1))
        valid = [is_injector and rng.random() < assumed.valid for _ in range(PAPER_GROUP)]
        runs = [self._judge_runs(good) if is_injector else self._grade_runs() for good in valid]
        share = assumed.injector_gradient if is_injector else assumed.solver_gradient
        has_gradient = rng.random() < share
        episodes = tuple(self._episode(count, difficulty) for count in runs)
        return GroupShape(role, episodes, sum(valid), has_gradient)

    def _judge_runs(self, is_valid: bool) -> float:
        return self._assumed.judge_runs if is_valid else 0.0

    def _grade_runs(self) -> float:
        """A whole number with the mean `grade_runs`."""
        mean = self._assumed.grade_runs
        return math.floor(mean) + (self._rng.random() < mean % 1)

    def _episode(self, test_runs: float, difficulty: float) -> EpisodeShape:
        assumed = self._assumed
        spread = assumed.turns_spread * _HALF_VARIANCE
        turns = max(1, min(_MAX_TURNS, round(difficulty * self._log_normal(assumed.turns, spread))))
        parts = self._turns(turns)
        judge_s = sum(self._test_s() for _ in range(round(test_runs)))
        return EpisodeShape(assumed.open_s, tuple(parts), judge_s, len(parts))

    def _turns(self, most: int) -> list[Stretch]:
        """At most `most` turns that fit the paper's context."""
        assumed = self._assumed
        parts: list[Stretch] = []
        context = 0.0
        while len(parts) < most:
            prefill = assumed.prompt_tokens
            if parts:
                prefill = self._log_normal(assumed.observation_tokens, assumed.tokens_spread)
            sampled = self._log_normal(assumed.drawn_tokens, assumed.tokens_spread)
            if context + prefill + sampled > _MAX_TOKENS:
                break
            context += prefill + sampled
            parts.append(Stretch(prefill, sampled, self._act_s()))
        return parts

    def _act_s(self) -> float:
        if self._rng.random() < self._assumed.test_share:
            return self._test_s()
        return min(_MAX_COMMAND_S, self._log_normal(self._assumed.command_s, self._assumed.seconds_spread))

    def _test_s(self) -> float:
        return min(_MAX_TEST_S, self._log_normal(self._assumed.test_s, self._assumed.seconds_spread))

    def _log_normal(self, median: float, sigma: float) -> float:
        return median * math.exp(sigma * self._rng.gauss(0, 1)) if median else 0.0


def _sentences(assumed: PaperAssumptions, means: EpisodeMeans) -> tuple[str, ...]:
    """The figures of the paper and every assumption, one sentence each."""
    return (
        "from the paper: 32B parameters, groups of 8, batches of 16 x 8 x 131,072 = 16.8M tokens; at most "
        "128 turns and 131,072 tokens an episode, 90 s a test run, 120 s a command, a lag of 8 updates; 64 "
        "GPUs train, 448 sample",
        f"assumed: turns of an episode are log-normal with median {assumed.turns:g} and spread "
        f"{assumed.turns_spread:g}; half of the variance lies between groups; the mean is {means.turns:.0f}",
        f"assumed: a prompt has {assumed.prompt_tokens:g} tokens; a turn samples {assumed.drawn_tokens:g} "
        f"tokens and observes {assumed.observation_tokens:g} (medians, spread {assumed.tokens_spread:g}); "
        f"the mean episode has {means.tokens:,.0f} tokens, {means.sampled:,.0f} of them sampled",
        f"assumed: a command takes {assumed.command_s:g} s; {assumed.test_share:.0%} of turns run tests, "
        f"which takes {assumed.test_s:g} s (medians, spread {assumed.seconds_spread:g}); opening a sandbox "
        f"takes {assumed.open_s:g} s",
        f"assumed: the verdict on a valid artifact takes {assumed.judge_runs:g} test runs, grading a repair "
        f"takes {assumed.grade_runs:g}",
        f"assumed: {assumed.valid:.0%} of injector episodes become a new bug; rewards differ in "
        f"{assumed.injector_gradient:.0%} of injector groups and {assumed.solver_gradient:.0%} of solver "
        "groups, and other groups do not count towards a batch; each new bug comes with "
        f"{assumed.replays:g} solver groups on second-order or older bugs",
        "assumed: all tokens of a trained episode count towards the batch, prompt and observations included",
    )
