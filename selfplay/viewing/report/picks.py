"""Which episodes a person should read: the best, the worst and the most surprising ones. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfplay.curriculum.rows import EpisodeRow
    from selfplay.viewing.report.run_data import RunData

EACH = 3  # episodes of one kind and role


@dataclass(frozen=True)
class Pick:
    """An episode and why it was chosen."""

    row: EpisodeRow
    result: str
    why: str
    surprise_bits: float


def picks(run: RunData) -> dict[str, list[Pick]]:
    """best, worst, surprising -> episodes of both roles, each episode once, EACH of a kind and role."""
    found: dict[str, list[Pick]] = {"best": [], "worst": [], "surprising": []}
    results = results_of(run)
    bits = surprises(run, results)
    for role in ("injector", "solver"):
        rows = [
            row
            for row in run.episodes
            if row.role == role and row.path and not row.masked and row.reward is not None
        ]
        taken: set[str] = set()
        orders: dict[str, Callable[[EpisodeRow], tuple[float, ...]]] = {
            "surprising": lambda row: (-bits.get(row.episode_id, 0.0), -row.update),
            "best": lambda row: (-(row.reward or 0.0), row.turns, -row.update),
            "worst": lambda row: (row.reward or 0.0, -row.action_tokens, -row.update),
        }
        for kind, order in orders.items():
            for row in _first(sorted(rows, key=order), taken, kind, bits):
                result = results.get(row.episode_id, row.finish)
                surprise = bits.get(row.episode_id, 0.0)
                found[kind].append(Pick(row, result, _why(kind, row, result, surprise), surprise))
    return found


def _first(
    rows: Sequence[EpisodeRow], taken: set[str], kind: str, bits: dict[str, float]
) -> Iterable[EpisodeRow]:
    count = 0
    for row in rows:
        if kind == "surprising" and bits.get(row.episode_id, 0.0) < 1:  # as likely as not
            return
        if row.episode_id not in taken:
            taken.add(row.episode_id)
            yield row
            count += 1
        if count == EACH:
            return


def _why(kind: str, row: EpisodeRow, result: str, surprise: float) -> str:
    if kind == "surprising":
        others = "other attempts at this bug" if row.role == "solver" else f"artifacts of {row.strategy}"
        return f"{result}: a chance of 1 in {2**surprise:.0f}, judged by {others}"
    return f"reward {row.reward:+.2f}" if row.reward is not None else ""


def results_of(run: RunData) -> dict[str, str]:
    """Episode id -> what its verdict or grade says, in a word or two."""
    found = {}
    for verdict in run.verdicts:
        word = "accepted" if verdict.accepted else f"rejected by {verdict.failed_check}"
        found[verdict.episode_id] = "duplicate" if verdict.episode_id in run.duplicates else word
    for attempt in run.attempts:
        if attempt.passed is not None:
            found[attempt.episode_id] = "repaired" if attempt.passed else "not repaired"
    return found


def surprises(run: RunData, results: dict[str, str]) -> dict[str, float]:
    """Episode id -> -log2 of the chance of its result, in bits.

    The chance is (k + 1) / (n + 2), Laplace's rule: k of the n other attempts at the bug, or of the other
    artifacts of the strategy, ended alike. Artifacts are accepted or not.
    """
    groups: dict[tuple[str, ...], list[tuple[str, bool]]] = defaultdict(list)
    for row in run.episodes:
        result = results.get(row.episode_id)
        if result is None:
            continue
        is_solver = row.role == "solver"
        key = ("solver", row.bug_id) if is_solver else ("injector", row.repository, row.strategy)
        success = result == "repaired" if is_solver else not result.startswith("rejected")
        groups[key].append((row.episode_id, success))
    bits = {}
    for members in groups.values():
        counts = Counter(success for _, success in members)
        for episode_id, success in members:
            bits[episode_id] = -math.log2(counts[success] / (len(members) + 1))
    return bits
