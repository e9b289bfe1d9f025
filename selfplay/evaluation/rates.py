"""Repair rates of one policy: over all bugs, by set and by repository. Pure.

Comparing two policies is left to `comparison`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfplay.evaluation.folder import MODES, AttemptResult, Mode, TaskEntry
from selfplay.evaluation.statistics import estimate, pass_at_k

MANY_TIMEOUTS = 0.1  # of the attempts


def rates_by_bug(results: Iterable[AttemptResult], mode: Mode) -> dict[str, list[bool]]:
    """The graded outcomes of each bug in one mode, by attempt. A bug without any is left out."""
    outcomes: dict[str, list[bool]] = {}
    for result in sorted(results, key=lambda result: result.attempt):
        if result.mode == mode and result.passed is not None:
            outcomes.setdefault(result.instance_id, []).append(result.passed)
    return outcomes


def groups_of(entries: Mapping[str, TaskEntry]) -> dict[str, dict[str, list[str]]]:
    """The tasks by set and by repository: {"sets": {set or set/part: ids}, "repositories": {name: ids}}."""
    sets: dict[str, list[str]] = {}
    repositories: dict[str, list[str]] = {}
    for name, entry in sorted(entries.items()):
        sets.setdefault(f"{entry.set}/{entry.part}" if entry.part else entry.set, []).append(name)
        repositories.setdefault(entry.repository, []).append(name)
    return {"sets": dict(sorted(sets.items())), "repositories": dict(sorted(repositories.items()))}


def summarise(results: Sequence[AttemptResult], entries: Mapping[str, TaskEntry], k: int) -> dict[str, Any]:
    """The figures of each mode, over all tasks, per set and per repository.

    They are pass@1 with its standard error clustered by bug, pass@2 to pass@k, best@2 to best@k, and means of
    turns, tokens and seconds. pass@n is the unbiased estimate for any n attempts; best@n is the share of bugs
    that one of the first n attempts repaired, as they were played. timed_out: judged attempts in which a
    command met its time limit.
    """
    summary: dict[str, Any] = {
        "k": k,
        "spoiled_by_the_machine": sum(result.passed is None for result in results),
        "timed_out": sum(result.timed_out > 0 for result in results if result.passed is not None),
    }
    for mode in MODES:
        graded = [result for result in results if result.mode == mode and result.passed is not None]
        if not graded:
            continue
        found: dict[str, Any] = {"all": _figures(graded, mode, k)}
        for kind, groups in groups_of(entries).items():
            found[kind] = {}
            for name, ids in groups.items():
                members = set(ids)
                if some := [result for result in graded if result.instance_id in members]:
                    found[kind][name] = _figures(some, mode, k)
        summary[mode] = found
    return summary


def timeouts_warning(summary: Mapping[str, Any]) -> str:
    """What to do if commands of many attempts met their time limit; "" if they are few.

    summary: of `summarise`.
    """
    judged = sum(summary[mode]["all"]["attempts"] for mode in MODES if mode in summary)
    count = summary["timed_out"]
    if not judged or count < MANY_TIMEOUTS * judged:
        return ""
    return (
        f"In {count} of {judged} attempts a command met its time limit (agent.command_timeout_s). "
        "If this machine was busy, the rates are too low: play again on a quiet one, or raise the limit."
    )


def _figures(graded: Sequence[AttemptResult], mode: Mode, k: int) -> dict[str, Any]:
    outcomes = list(rates_by_bug(graded, mode).values())
    rate = estimate([sum(some) / len(some) for some in outcomes])
    figures: dict[str, Any] = {
        "tasks": rate.count,
        "attempts": len(graded),
        "pass@1": rate.mean,
        "standard_error": rate.error,
        "turns": sum(result.turns for result in graded) / len(graded),
        "tokens": sum(result.tokens for result in graded) / len(graded),
        "seconds": sum(result.seconds for result in graded) / len(graded),
    }
    for n in range(2, k + 1) if mode == "sampled" else ():
        by_bug = [pass_at_k(len(some), sum(some), min(n, len(some))) for some in outcomes]
        figures[f"pass@{n}"] = sum(by_bug) / len(by_bug)
        figures[f"best@{n}"] = sum(any(some[:n]) for some in outcomes) / len(outcomes)
    return figures
