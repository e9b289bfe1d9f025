"""Who earned what: the rewards of a finished group and which of its members' turns are learned from. Pure; store and trainer are elsewhere.

Invariant: a machine's failure never becomes a reward: such a member is masked, and so is whoever depends on its verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfplay.config import TrainerSettings
from selfplay.episode import Episode, Turn
from selfplay.errors import SelfplayError
from selfplay.patches import parse_patch
from selfplay.rewards import INVALID_REWARD, InjectorReward, duplicate_reward, injector_reward, solver_reward
from selfplay.tools import BadFormat, parse_action


@dataclass(frozen=True)
class SolveRate:
    """What a solver group says of its bug. rate is None when fewer than half of the group's attempts were graded."""

    rate: float | None
    graded: int
    passes: int
    is_void: bool


def measure_solve_rate(outcomes: Sequence[bool | None], confirmations: Sequence[bool | None], group_size: int) -> SolveRate:
    """The share of graded attempts that repaired the bug; void when any pass was not confirmed by its second grading.

    outcomes       passed, per member; None where the machine failed
    confirmations  per member: False where a pass and its repetition disagreed, which voids the bug
    """
    graded = [outcome for outcome in outcomes if outcome is not None]
    passes = sum(graded)
    rate = passes / len(graded) if 2 * len(graded) >= group_size and graded else None
    return SolveRate(rate, len(graded), passes, any(confirmed is False for confirmed in confirmations))


@dataclass(frozen=True)
class Credit:
    """A member's reward; None with `masked` true when it must not train."""

    reward: float | None
    note: str

    @property
    def masked(self) -> bool:
        return self.reward is None


MASKED_MACHINE = Credit(None, "machine failure")


def credit_injector(
    accepted: bool, is_duplicate: bool, failed_check: str, solve_rate: SolveRate | None, kind: InjectorReward, alpha: float
) -> Credit | None:
    """One injector episode's reward (ssr.md, Rewards), or None while its bug waits for its solvers."""
    if not accepted:
        return Credit(INVALID_REWARD, f"rejected: {failed_check}")
    if is_duplicate:
        return Credit(duplicate_reward(alpha), "duplicate")
    if kind == "consistency":
        return Credit(injector_reward(kind, 0.0, alpha), "accepted")
    if solve_rate is None:
        return None
    if solve_rate.is_void:
        return Credit(INVALID_REWARD, "void: a confirmed repair did not repeat")
    if solve_rate.rate is None:
        return Credit(None, "too few graded attempts")
    return Credit(injector_reward(kind, solve_rate.rate, alpha), f"solve rate {solve_rate.rate:.2f}")


def credit_solver(passed: bool | None, bug_is_void: bool) -> Credit:
    if passed is None:
        return MASKED_MACHINE
    if bug_is_void:
        return Credit(None, "void bug")
    return Credit(solver_reward(passed), "repaired" if passed else "not repaired")


def token_advantages(episodes: Sequence[Episode], advantages: Sequence[float], settings: TrainerSettings) -> list[list[float]]:
    """For each member of a group the advantage of each of its tokens; (members, tokens), 0 where nothing is learned.

    advantages: the members' own, from their rewards. They count for all of a member's actions. Whatever is negative counts
    `negative_weight` times.
    With credit "kept" a positive one leaves out calls that failed and edits of which the submission holds nothing: what was taken back
    did not earn it. `call_weight` adds to each call that was to change a file its merit less the mean merit of the group's such calls,
    draws that were rejected (`agent.redraws`) counted among them with 0.
    """
    merits = [call_merits(episode) for episode in episodes]
    mean = mean_merit(episodes)
    found = []
    for episode, advantage, of_member in zip(episodes, advantages, merits, strict=True):
        advantage *= settings.negative_weight if advantage < 0 else 1.0
        values = [advantage * is_action for is_action in episode.loss_mask]
        added = _added_lines(episode)
        for number, turn in enumerate(episode.turns):
            tokens = slice(*turn.tokens)
            if settings.credit == "kept" and advantage > 0 and (turn.is_error or not _is_kept(turn, added)):
                values[tokens] = [0.0] * len(values[tokens])
            if number in of_member:
                beside = of_member[number] - mean
                extra = settings.call_weight * beside * (settings.negative_weight if beside < 0 else 1.0)
                values[tokens] = [value + extra for value in values[tokens]]
        found.append(values)
    return found


def call_merits(episode: Episode) -> dict[int, float]:
    """By number, each turn that was to change a file: 1 when it did what no call before it had, 0 when it was refused or repeated.

    A reply that holds no readable call counts among them, with 0. Reading and running things are neither.
    """
    merits: dict[int, float] = {}
    made: set[str] = set()
    for number, turn in enumerate(episode.turns):
        if turn.tool in ("edit", "create"):
            call = parse_action(turn.text).body
            merits[number] = float(not turn.is_error and call not in made)
            made.add(call)
        elif not turn.tool:
            merits[number] = 0.0
    return merits


def mean_merit(episodes: Sequence[Episode]) -> float:
    """The share of all draws that were to change a file and did; 0 where none was to."""
    found = [merit for episode in episodes for merit in call_merits(episode).values()]
    rejected = sum(turn.rejected for episode in episodes for turn in episode.turns)
    return sum(found) / (len(found) + rejected) if found else 0.0


def _added_lines(episode: Episode) -> dict[str, list[str]] | None:
    """By file; None where the submission cannot be read as a diff."""
    text = episode.submission.get("patch") or episode.submission.get("bug_inject.diff") or ""
    try:
        files = parse_patch(text, len(text.encode()) + 1).files
    except SelfplayError:
        return None
    return {file.path: [line[1:] for hunk in file.hunks for line in hunk.lines if line.startswith("+")] for file in files}


def _is_kept(turn: Turn, added: dict[str, list[str]] | None) -> bool:
    if turn.tool != "edit" or added is None:
        return True
    try:
        action = parse_action(turn.text)
    except BadFormat:
        return True
    lines = added.get(action.path.removeprefix("/testbed/").removeprefix("./"), [])
    return bool(lines) and all(any(part in line for line in lines) for part in action.replace.split("\n"))
