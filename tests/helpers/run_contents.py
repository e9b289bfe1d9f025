"""Reads the contents of a run folder as plain values, so that tests can compare two runs.

The contents are all rows, episodes, weights, optimiser moments and metrics, without values that depend on a
clock or a cache. Invariant: two runs with equal contents learned the same from the same data. This file names
each value that is left out.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfplay.agent.episode import Episode
from selfplay.orchestrator.run_folder import RunFolder

# Table -> (columns to sort by, columns to leave out: times, durations, and counts that a cache decides).
TABLES: dict[str, tuple[str, set[str]]] = {
    "environments": ("name", set()),
    "updates": ('"update"', {"begun_at", "committed_at"}),
    "groups": ("rowid", set()),
    "episodes": ("episode_id", {"started_at", "duration_s"}),
    "verdicts": ("episode_id", {"duration_s", "test_runs", "cached_runs"}),
    "checks": ("episode_id, place", {"duration_s"}),
    "bugs": ("rowid", {"created_at"}),
    "attempts": ("episode_id", {"duration_s"}),
    "state": ("key", set()),
}
MEASURED = (
    "seconds",
    "duration_s",
    "tokens_per_s",
    "episodes_per_hour",
    "peak_bytes",
    "generate_s",
    "act_s",
    "started_at",
    "test_runs",
    "cached_runs",
)


def contents(run: RunFolder, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Key -> value, such as "episodes/2 u0001-inj0-m2: reward" -> -1.0. left_out: fields of an episode."""
    found: dict[str, Any] = {}
    connection = sqlite3.connect(f"{run.database.absolute().as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        for table, (order, ignored) in TABLES.items():
            for number, row in enumerate(connection.execute(f"SELECT * FROM {table} ORDER BY {order}")):
                for name, value in dict(row).items():
                    if name not in ignored:
                        found[f"{table}/{number} {row[0]}: {name}"] = _timeless(value)
        last = connection.execute(
            "SELECT checkpoint FROM updates WHERE committed_at IS NOT NULL ORDER BY 1 DESC LIMIT 1"
        ).fetchone()
    finally:
        connection.close()
    for path in sorted(run.episodes.iterdir()):
        if path.name.endswith(".json.gz"):
            episode = Episode.read(path).to_json()
            found[f"files/episodes/{path.name}"] = _timeless(
                {name: value for name, value in episode.items() if name not in left_out}
            )
        else:
            found[f"files/episodes/{path.name}"] = "not an episode"
    found["files/checkpoints"] = sorted(path.name for path in run.checkpoints.iterdir())
    if last is not None and last[0]:
        found |= _checkpoint(run.checkpoints / last[0])
    for number, line in enumerate(run.metrics.read_text(encoding="utf-8").splitlines()):
        found[f"metrics.jsonl/{number}"] = _timeless(json.loads(line))
    return found


def twice_or_lost(run: RunFolder) -> list[str]:
    """What a finished run has lost or has twice, as sentences; [] for a sound run.

    It holds for every run, also if its sandboxes or processes were killed.
    """
    found: list[str] = []
    connection = sqlite3.connect(f"{run.database.absolute().as_uri()}?mode=ro", uri=True)

    def values(query: str) -> list[Any]:
        return [row[0] for row in connection.execute(query)]

    try:
        files = {path.name.removesuffix(".json.gz") for path in run.episodes.iterdir()}
        recorded = set(values("SELECT episode_id FROM episodes WHERE path != ''"))
        found += [f"episode {name} has a row and no file" for name in sorted(recorded - files)]
        found += [
            f"episode file {name} has no row"
            for name in sorted(files - set(values("SELECT episode_id FROM episodes")))
        ]
        for group, size, members in connection.execute(
            "SELECT group_id, size, "
            "(SELECT count(*) FROM episodes WHERE episodes.group_id = groups.group_id) FROM groups"
        ):
            if size != members:
                found.append(f"group {group} has {members} of {size} members")
        found += [
            f"accepted artifact of {name} is neither a bug nor a repeated one"
            for name in values(
                """SELECT verdicts.episode_id FROM verdicts JOIN episodes USING (episode_id)
                WHERE accepted AND NOT masked AND NOT EXISTS
                (SELECT 1 FROM bugs WHERE bugs.injector_episode_id = verdicts.episode_id)
                AND NOT (note LIKE '%duplicate%')"""
            )
        ]
        found += [
            f"solver episode {name} was trained on without a grade"
            for name in values(
                """SELECT episode_id FROM episodes WHERE role = 'solver' AND consumed_update IS NOT NULL
                AND episode_id NOT IN (SELECT episode_id FROM attempts)"""
            )
        ]
        updates = values('SELECT "update" FROM updates WHERE committed_at IS NOT NULL')
    finally:
        connection.close()
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    counts = Counter(row["update"] for row in rows if "update" in row)
    found += [
        f"update {update} is {counts[update]} times in metrics.jsonl"
        for update in updates
        if counts[update] != 1
    ]
    found += [f"{path} is left behind" for path in run.path.rglob("*.partial")]
    return found


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for each key whose values differ."""
    return list(_differences(expected, found))


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            yield f"{key}: missing, was {_short(expected[key])}"
        elif key not in expected:
            yield f"{key}: new, is {_short(found[key])}"
        elif expected[key] != found[key]:
            yield f"{key}: was {_short(expected[key])}, is {_short(found[key])}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 200 else f"{text[:200]}… ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _timeless(value: Any) -> Any:
    """The value without times and durations. JSON in a text column is read, and its times are removed too."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return _timeless(json.loads(value))
        except ValueError:
            return value
    if isinstance(value, Mapping):
        return {name: _timeless(inner) for name, inner in value.items() if not _is_time(name)}
    if isinstance(value, list | tuple):
        return [_timeless(inner) for inner in value]
    return value


def _is_time(name: str) -> bool:
    return name in MEASURED or name.startswith(("seconds/", "idle/")) or name.endswith("/seconds")


def _checkpoint(folder: Path) -> dict[str, Any]:
    """A digest of each file, but of each tensor in `.pt` files: those are zip archives that hold times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = f"checkpoint/{path.relative_to(folder)}"
        if path.suffix == ".pt":
            found |= dict(_tensors(name, path))
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _tensors(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    import torch

    def walk(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, torch.Tensor):
            data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            yield key, (tuple(value.shape), hashlib.sha256(data).hexdigest())
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                yield from walk(f"{key}/{name}", inner)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                yield from walk(f"{key}/{number}", inner)
        else:
            yield key, value

    yield from walk(name, torch.load(path, map_location="cpu", weights_only=True))
