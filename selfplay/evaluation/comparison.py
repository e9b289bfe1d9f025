"""Repair rates of attempts, and the difference of two policies on the same bugs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfplay.errors import UsageError
from selfplay.evaluation.folder import (
    MODES,
    AttemptResult,
    Folder,
    Identity,
    Mode,
    TaskEntry,
    entries_of,
    settings_difference,
)
from selfplay.evaluation.statistics import estimate, paired_difference, pass_at_k

# ---- figures


def rates_by_bug(results: Iterable[AttemptResult], mode: Mode) -> dict[str, list[bool]]:
    """The judged outcomes of each bug in one mode; a bug without any is left out."""
    outcomes: dict[str, list[bool]] = {}
    for result in results:
        if result.mode == mode and result.passed is not None:
            outcomes.setdefault(result.instance_id, []).append(result.passed)
    return outcomes


def groups_of(entries: Mapping[str, TaskEntry]) -> dict[str, dict[str, list[str]]]:
    """{"sets": {set or set/part: ids}, "repositories": {name: ids}}; a single one of either is all of the tasks."""
    sets: dict[str, list[str]] = {}
    repositories: dict[str, list[str]] = {}
    for name, entry in sorted(entries.items()):
        sets.setdefault(f"{entry.set}/{entry.part}" if entry.part else entry.set, []).append(name)
        repositories.setdefault(entry.repository, []).append(name)
    return {"sets": dict(sorted(sets.items())), "repositories": dict(sorted(repositories.items()))}


def summarise(results: Sequence[AttemptResult], entries: Mapping[str, TaskEntry], k: int) -> dict[str, Any]:
    """Per mode: pass@1 with its standard error clustered by bug, pass@k and means, over all, per set and per repository."""
    summary: dict[str, Any] = {
        "k": k,
        "spoiled_by_the_machine": sum(result.passed is None for result in results),
    }
    for mode in MODES:
        judged = [result for result in results if result.mode == mode and result.passed is not None]
        if not judged:
            continue
        found: dict[str, Any] = {"all": _figures(judged, mode, k)}
        for kind, groups in groups_of(entries).items():
            found[kind] = {}
            for name, ids in groups.items():
                members = set(ids)
                if some := [result for result in judged if result.instance_id in members]:
                    found[kind][name] = _figures(some, mode, k)
        summary[mode] = found
    return summary


def _figures(judged: Sequence[AttemptResult], mode: Mode, k: int) -> dict[str, Any]:
    outcomes = list(rates_by_bug(judged, mode).values())
    rate = estimate([sum(some) / len(some) for some in outcomes])
    figures: dict[str, Any] = {
        "tasks": rate.count,
        "attempts": len(judged),
        "pass@1": rate.mean,
        "standard_error": rate.error,
        "turns": sum(result.turns for result in judged) / len(judged),
        "tokens": sum(result.tokens for result in judged) / len(judged),
        "seconds": sum(result.seconds for result in judged) / len(judged),
    }
    if mode == "sampled" and k > 1:
        figures[f"pass@{k}"] = sum(pass_at_k(len(o), sum(o), min(k, len(o))) for o in outcomes) / len(
            outcomes
        )
    return figures


# ---- two policies


def compare(first: Folder, second: Folder) -> dict[str, Any]:
    """Paired differences, second minus first, over the bugs that both have attempts at; per mode over all, per set and repository.

    Raises UsageError when a folder holds no results, when no bug is in both, or when one id names two different bugs.
    """
    for folder in (first, second):
        if not folder.path.is_dir():
            raise UsageError(
                f"there is no folder {folder.path}. `selfplay eval --tasks … --output {folder.path}` makes one."
            )
        if not folder.results():
            raise UsageError(
                f"{folder.path} holds no finished attempt (results.jsonl). `selfplay eval --output {folder.path}` plays some."
            )
    entries, others = entries_of(first), entries_of(second)
    both = entries.keys() & others.keys()
    if not both:
        raise UsageError(
            f"{first.path} and {second.path} have no task in common, so there is nothing to compare."
        )
    if unlike := sorted(
        n for n in both if entries[n].digest and others[n].digest and entries[n].digest != others[n].digest
    ):
        raise UsageError(
            f"{len(unlike)} task(s) of {first.path} and {second.path} share an id and are different bugs, {unlike[0]!r} for one; "
            "evaluate both policies on one file."
        )
    there, here = first.identity(), second.identity()
    comparison: dict[str, Any] = {
        "first": {"folder": str(first.path), "policy": dict(there.policy) if there else {}},
        "second": {"folder": str(second.path), "policy": dict(here.policy) if here else {}},
        "left_out": len(entries.keys() ^ others.keys()),
        "settings": settings_difference(there, here) if there and here else "",
    }
    shared = {name: entries[name] for name in both}
    for mode in MODES:
        a, b = rates_by_bug(first.results(), mode), rates_by_bug(second.results(), mode)
        if found := _paired(a, b, list(shared)):
            comparison[mode] = {"all": found}
            for kind, groups in groups_of(shared).items():
                pairs = {name: _paired(a, b, ids) for name, ids in groups.items()}
                comparison[mode][kind] = {name: pair for name, pair in pairs.items() if pair}
    if not any(mode in comparison for mode in MODES):
        raise UsageError(
            f"{first.path} and {second.path} have no bug with attempts of one kind in both, so there is nothing to compare."
        )
    temperature = float((here or there or Identity({}, {}, {})).settings.get("agent.temperature", 1.0))
    comparison["temperature"] = temperature
    comparison["verdict"] = verdict_of(
        _direction(comparison, "sampled"), _direction(comparison, "greedy"), temperature
    )
    return comparison


def _paired(
    a: Mapping[str, Sequence[bool]], b: Mapping[str, Sequence[bool]], ids: Sequence[str]
) -> dict[str, Any]:
    """The figures of one row; {} where no bug has attempts in both."""
    both = sorted(name for name in ids if name in a and name in b)
    if not both:
        return {}
    before, after = (
        [sum(a[name]) / len(a[name]) for name in both],
        [sum(b[name]) / len(b[name]) for name in both],
    )
    difference = paired_difference(before, after)
    first, second = estimate(before), estimate(after)
    return {
        "first": {"pass@1": first.mean, "standard_error": first.error},
        "second": {"pass@1": second.mean, "standard_error": second.error},
        **asdict(difference),
        "direction": difference.direction,
    }


def _direction(comparison: Mapping[str, Any], mode: Mode) -> int | None:
    return int(comparison[mode]["all"]["direction"]) if mode in comparison else None


def verdict_of(sampled: int | None, greedy: int | None, temperature: float = 1.0) -> str:
    """The comparison in a sentence. 1 better, -1 worse, 0 no difference shown, None not measured."""
    words = {1: "better", -1: "worse", 0: "no difference shown", None: "not measured"}
    drawn = f"at T = {temperature:g}"
    if not sampled and not greedy:
        return "no difference shown."
    if sampled == greedy:
        return f"{words[sampled]}: {drawn} and greedily."
    if (sampled, greedy) == (1, 0):
        return (
            f"sharpening: better {drawn}, no difference shown greedily. The policy draws repairs that it knew more often; "
            "that it knows better ones is not shown."
        )
    if (sampled, greedy) == (1, None):
        return f"better {drawn}; greedily not measured, so this may be no more than sharpening."
    if sampled and greedy:
        return f"mixed: {words[sampled]} {drawn}, {words[greedy]} greedily."
    return f"{words[sampled]} {drawn}, {words[greedy]} greedily."
