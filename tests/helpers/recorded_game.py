"""Records two scripted games on the tiny repository as JSON, to compare two versions of selfplay.

    python tests/helpers/recorded_game.py FILE.json

A recording holds each row, episode and metric of a run: token ids, masks, rewards, advantages, verdicts, bug
ids, loss values. It leaves out times, random ids, the bytes of weights (they differ between processors) and
environment keys (they differ between machines). `recordings/game.json.gz` was made on 2026-11-30. Its rows of
episodes, rewards and losses are those of a recording from before the modules were moved into packages.
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

# Some settings have old names, which the table of old names must know.
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
MACHINE = ("environment_key", "key", "path", "base_commit", "log", "evidence")


def record(folder: Path, cache: Path, backend: str = "bubblewrap") -> dict[str, Any]:
    """Name of a game -> key -> value. Values are as JSON reads them back."""
    recording = {}
    for number, (name, settings) in enumerate(GAMES.items()):
        run = play(folder / str(number), cache, backend, **settings)
        found = {key: value for key, value in contents(run).items() if not key.startswith(LEFT_OUT)}
        recording[name] = {
            key: _portable(value) for key, value in found.items() if key.rpartition(": ")[2] not in MACHINE
        }
    return json.loads(json.dumps(recording, sort_keys=True))


def _portable(value: Any) -> Any:
    """The value without fields that differ between machines."""
    if isinstance(value, Mapping):
        return {name: _portable(inner) for name, inner in value.items() if name not in MACHINE}
    return [_portable(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    """One line for each difference. Numbers may differ by 1/1000: processors add in different orders."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in sorted(expected.keys() | found.keys()):
            if key not in found or key not in expected:
                yield f"{path}/{key}: {'missing' if key not in found else 'new'}"
            else:
                yield from differences(expected[key], found[key], f"{path}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{path}/{number}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(expected, found, rel_tol=1e-3, abs_tol=1e-5):
            yield f"{path}: {expected} is now {found}"
    elif expected != found:
        yield f"{path}: {str(expected)[:200]} is now {str(found)[:200]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        Path(sys.argv[1]).write_text(
            json.dumps(record(Path(work), Path(work) / "cache"), indent=0, sort_keys=True) + "\n"
        )
