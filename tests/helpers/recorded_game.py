"""Records two scripted games on the tiny repository as JSON, to compare two versions of selfplay.

    python tests/helpers/recorded_game.py FILE.json

A recording holds each row, episode and metric of a run: token ids, masks, rewards, advantages, verdicts, bug
ids, loss values. It leaves out times, random ids, the bytes of weights (they differ between processors) and
environment keys (they differ between machines). `recordings/game-before-the-rooms.json.gz` was made by the
version before the modules were moved into packages.
"""

from __future__ import annotations

import json
import math
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from run_contents import contents
from scripted_game import play
from selfplay.orchestrator.run_folder import RunFolder

# Settings have the names of the version that made the recording: the table of old names must know them.
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
# Name of a metric now -> its name in the recording.
RENAMED_METRICS = {"kl": "divergence", "rollout_logprob_diff": "logprob_gap"}
# Hash of a solver's templates now -> in the recording. They have a case for issues since then; what they
# render is compared.
CHANGED_TEMPLATES = {
    "34e3e755b45b6268f5a720e4f5a0956bd71b1295fd860feabe53eee85eae9aa2": (
        "e9444b5fe9f153f53c64dd2c3ddf0aca802586eaf7bd825873ad28caed1c9569"
    )
}
NEW_CHECKS = ("repairable",)  # of verdicts: the recording's version did not have them
MACHINE = ("environment_key", "key", "path", "base_commit", "log", "evidence")


def record(folder: Path, cache: Path, backend: str = "bubblewrap") -> dict[str, Any]:
    """Name of a game -> key -> value. Values are as JSON reads them back."""
    recording = {}
    for number, (name, settings) in enumerate(GAMES.items()):
        run = play(folder / str(number), cache, backend, **settings)
        _forget_new_checks(run)
        found = {key: value for key, value in contents(run).items() if not key.startswith(LEFT_OUT)}
        recording[name] = {
            key: _portable(value) for key, value in found.items() if key.rpartition(": ")[2] not in MACHINE
        }
    return json.loads(json.dumps(recording, sort_keys=True))


def _forget_new_checks(run: RunFolder) -> None:
    """Take NEW_CHECKS out of the rows of verdicts. Each of them must have passed."""
    with closing(sqlite3.connect(run.database)) as database, database:
        for name in NEW_CHECKS:
            found = database.execute("SELECT episode_id, place, passed FROM checks WHERE name = ?", (name,))
            for episode, place, passed in found.fetchall():
                assert passed, f"{name} failed in {episode}"
                row = (episode, place)
                database.execute("DELETE FROM checks WHERE episode_id = ? AND place = ?", row)
                database.execute(
                    "UPDATE checks SET place = place - 1 WHERE episode_id = ? AND place > ?", row
                )
        for episode, text in database.execute("SELECT episode_id, checks_json FROM verdicts").fetchall():
            verdict = json.loads(text)
            verdict["checks"] = [check for check in verdict["checks"] if check["name"] not in NEW_CHECKS]
            values = (json.dumps(verdict), episode)
            database.execute("UPDATE verdicts SET checks_json = ? WHERE episode_id = ?", values)


def _portable(value: Any) -> Any:
    """The value without fields that differ between machines, as the recording's version would have it."""
    if isinstance(value, Mapping):
        return {_recorded(name): _portable(inner) for name, inner in value.items() if name not in MACHINE}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    return CHANGED_TEMPLATES.get(value, value) if isinstance(value, str) else value


def _recorded(name: str) -> str:
    """`injector/kl` -> `injector/divergence`"""
    scope, slash, metric = name.rpartition("/")
    return f"{scope}{slash}{RENAMED_METRICS.get(metric, metric)}"


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
