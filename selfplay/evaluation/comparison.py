"""The difference in repair rate of two policies on the same bugs, and what it shows.

Pure, but for reading the two folders.

Rates of one policy are left to `rates`, intervals to `statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfplay.errors import UsageError
from selfplay.evaluation.folder import (
    MODES,
    Folder,
    Identity,
    Mode,
    TaskEntry,
    entries_of,
    settings_difference,
)
from selfplay.evaluation.rates import groups_of, rates_by_bug
from selfplay.evaluation.statistics import estimate, paired_difference


def compare(first: Folder, second: Folder) -> dict[str, Any]:
    """Paired differences, `second` minus `first`, over the bugs with attempts in both folders.

    They are per mode, over all bugs, per set and per repository. Raises UsageError if a folder holds no
    results, if the folders have no bug in common, or if one id names two different bugs.
    """
    for folder in (first, second):
        _check_results(folder)
    entries = _shared_entries(first, second)
    there, here = first.identity(), second.identity()
    comparison: dict[str, Any] = {
        "first": {"folder": str(first.path), "policy": dict(there.policy) if there else {}},
        "second": {"folder": str(second.path), "policy": dict(here.policy) if here else {}},
        "left_out": len(entries_of(first).keys() ^ entries_of(second).keys()),
        "settings": settings_difference(there, here) if there and here else "",
    }
    comparison |= _differences(first, second, entries)
    if not any(mode in comparison for mode in MODES):
        raise UsageError(
            f"{first.path} and {second.path} have no bug with attempts of one kind in both, "
            "so there is nothing to compare."
        )
    temperature = float((here or there or Identity({}, {}, {})).settings.get("evaluation.temperature", 1.0))
    comparison["temperature"] = temperature
    comparison["verdict"] = verdict_of(
        _direction(comparison, "sampled"), _direction(comparison, "greedy"), temperature
    )
    return comparison


def _check_results(folder: Folder) -> None:
    """Raises UsageError if the folder does not exist or holds no finished attempt."""
    if not folder.path.is_dir():
        raise UsageError(
            f"there is no folder {folder.path}. `selfplay eval --tasks … --output {folder.path}` makes one."
        )
    if not folder.results():
        raise UsageError(
            f"{folder.path} holds no finished attempt (results.jsonl). "
            f"`selfplay eval --output {folder.path}` plays some."
        )


def _shared_entries(first: Folder, second: Folder) -> dict[str, TaskEntry]:
    """The tasks that both folders have.

    Raises UsageError if there is none, or if an id names two different bugs.
    """
    entries, others = entries_of(first), entries_of(second)
    both = entries.keys() & others.keys()
    if not both:
        raise UsageError(
            f"{first.path} and {second.path} have no task in common, so there is nothing to compare."
        )
    different = sorted(
        name
        for name in both
        if entries[name].digest and others[name].digest and entries[name].digest != others[name].digest
    )
    if different:
        raise UsageError(
            f"{len(different)} task(s) of {first.path} and {second.path} share an id and are different bugs, "
            f"{different[0]!r} for one; evaluate both policies on one file."
        )
    return {name: entries[name] for name in both}


def _differences(first: Folder, second: Folder, entries: Mapping[str, TaskEntry]) -> dict[str, Any]:
    """The figures of each mode that has attempts in both folders."""
    found: dict[str, Any] = {}
    for mode in MODES:
        before, after = rates_by_bug(first.results(), mode), rates_by_bug(second.results(), mode)
        if over_all := _paired(before, after, list(entries)):
            found[mode] = {"all": over_all}
            for kind, groups in groups_of(entries).items():
                pairs = {name: _paired(before, after, ids) for name, ids in groups.items()}
                found[mode][kind] = {name: pair for name, pair in pairs.items() if pair}
    return found


def _paired(
    first: Mapping[str, Sequence[bool]], second: Mapping[str, Sequence[bool]], ids: Sequence[str]
) -> dict[str, Any]:
    """The figures of one row, {} if no bug has attempts in both."""
    both = sorted(name for name in ids if name in first and name in second)
    if not both:
        return {}
    before = [sum(first[name]) / len(first[name]) for name in both]
    after = [sum(second[name]) / len(second[name]) for name in both]
    difference = paired_difference(before, after)
    rates = {"first": estimate(before), "second": estimate(after)}
    return {
        **{name: {"pass@1": rate.mean, "standard_error": rate.error} for name, rate in rates.items()},
        **asdict(difference),
        "direction": difference.direction,
    }


def opposite_sets(comparison: Mapping[str, Any]) -> list[str]:
    """A warning for each mode in which the rate of one set fell while that of another rose.

    Each changed by more than its standard error. That is less than an interval shows, and enough to look.
    """
    found = []
    for mode in (mode for mode in MODES if mode in comparison):
        sets = {
            name: row["mean"]
            for name, row in comparison[mode]["sets"].items()
            if row["error"] is not None and abs(row["mean"]) > row["error"]
        }
        low, high = min(sets, key=sets.__getitem__, default=""), max(sets, key=sets.__getitem__, default="")
        if sets and sets[low] < 0 < sets[high]:
            found.append(
                f"warning: {mode}, the repair rate on {low!r} fell by {-100 * sets[low]:.1f} points while "
                f"that on {high!r} rose by {100 * sets[high]:.1f}. Bugs of the fallen kind can join the "
                "training: train.bugs with train.reference_share."
            )
    return found


def _direction(comparison: Mapping[str, Any], mode: Mode) -> int | None:
    return int(comparison[mode]["all"]["direction"]) if mode in comparison else None


def verdict_of(sampled: int | None, greedy: int | None, temperature: float = 1.0) -> str:
    """The comparison in a sentence.

    sampled, greedy: the direction in each mode: 1 better, -1 worse, 0 no difference shown, None not measured
    """
    words = {1: "better", -1: "worse", 0: "no difference shown", None: "not measured"}
    at_temperature = f"at T = {temperature:g}"
    if not sampled and not greedy:
        return "no difference shown."
    if sampled == greedy:
        return f"{words[sampled]}: {at_temperature} and greedily."
    if (sampled, greedy) == (1, 0):
        return (
            f"sharpening: better {at_temperature}, no difference shown greedily. "
            "The policy samples repairs that it knew more often; that it learned new ones is not shown."
        )
    if (sampled, greedy) == (1, None):
        return f"better {at_temperature}; greedily not measured, so this may be no more than sharpening."
    if sampled and greedy:
        return f"mixed: {words[sampled]} {at_temperature}, {words[greedy]} greedily."
    return f"{words[sampled]} {at_temperature}, {words[greedy]} greedily."
