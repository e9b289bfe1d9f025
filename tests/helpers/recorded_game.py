"""Two scripted games of the tiny repository as plain JSON, to compare one version of selfplay with another.

    python tests/helpers/recorded_game.py FILE.json

A recording holds each row, episode and metric of a run: token ids, masks, rewards, advantages, verdicts, bug ids, loss values.
It leaves out clocks, weights byte by byte (they differ between processors), environment keys (they differ between machines)
and the ids of random objects. `recordings/before-the-rooms.json` was made by the version before the modules got their packages.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from run_contents import contents
from scripted_game import play

# Settings by the names that they had when the recording was made: the table of old names must know them.
GAMES: dict[str, dict[str, Any]] = {
    "plain": {},
    "every term": {
        "trainer": {
            "learning_rate": 1e-3,
            "warmup_updates": 0,
            "bf16": False,
            "advantage": "grpo",
            "aggregation": "token",
            "negative_weight": 0.5,
            "credit": "kept",
            "call_weight": 0.5,
            "anchor_weight": 0.1,
            "packing": True,
        },
        "injector": {
            "strategies": {"direct": 1.0, "removal": 1.0},
            "given": ["tests"],
            "min_passing_tests": [3, 3],
        },
    },
}
LEFT_OUT = ("checkpoint", "files/checkpoints")
# Metrics by the names that they have now -> the names in the recording.
RENAMED_METRICS = {"kl": "divergence", "rollout_logprob_diff": "logprob_gap"}
MACHINE = ("environment_key", "key", "path", "base_commit", "log", "evidence")


def record(folder: Path, cache: Path, backend: str = "bubblewrap") -> dict[str, Any]:
    """Name of a game -> place -> value, as JSON would give it back."""
    recording = {}
    for number, (name, settings) in enumerate(GAMES.items()):
        run = play(folder / str(number), cache, backend, **settings)
        found = {key: value for key, value in contents(run).items() if not key.startswith(LEFT_OUT)}
        recording[name] = {
            key: _portable(value) for key, value in found.items() if key.rpartition(": ")[2] not in MACHINE
        }
    return json.loads(json.dumps(recording, sort_keys=True))


def _portable(value: Any) -> Any:
    """Without what differs between machines, and with metrics by the names of the recording."""
    if isinstance(value, Mapping):
        return {_recorded(name): _portable(inner) for name, inner in value.items() if name not in MACHINE}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    return value


def _recorded(name: str) -> str:
    """`injector/kl` -> `injector/divergence`"""
    scope, slash, metric = name.rpartition("/")
    return f"{scope}{slash}{RENAMED_METRICS.get(metric, metric)}"


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    """One line a place. Numbers may differ by one in a thousand: processors add in different orders."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in sorted(expected.keys() | found.keys()):
            if key not in found or key not in expected:
                yield f"{place}/{key}: {'missing' if key not in found else 'new'}"
            else:
                yield from differences(expected[key], found[key], f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(expected, found, rel_tol=1e-3, abs_tol=1e-5):
            yield f"{place}: {expected} is now {found}"
    elif expected != found:
        yield f"{place}: {str(expected)[:200]} is now {str(found)[:200]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        Path(sys.argv[1]).write_text(
            json.dumps(record(Path(work), Path(work) / "cache"), indent=0, sort_keys=True) + "\n"
        )
