"""What `selfplay doctor` says of repositories in the cache: which were refused, and what others leave out.

It reads the records of earlier runs and prepares nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfplay.agent.observations import make_harmless
from selfplay.commands.findings import Finding
from selfplay.repositories.refusals import SUFFIX

MOST = 20  # repositories that are named
NAME = "repository"


def prepared_repositories(facts: Path) -> list[Finding]:
    """A finding with the counts, then one for each repository that was refused or leaves something out.

    None of them is required. facts: the cache's folder of records.
    """
    records = sorted(
        ((path, record) for path in facts.glob("*.json") if (record := _read(path)) is not None),
        key=lambda found: (str(found[1].get("repository", "")), found[0].name),
    )
    refused = [(path, record) for path, record in records if path.name.endswith(SUFFIX)]
    admitted = [record for path, record in records if not path.name.endswith(SUFFIX)]
    if not records:
        return []
    told = [
        Finding(NAME, False, make_harmless(_first_line(record)), f"to try again, delete {path}", False)
        for path, record in refused
    ]
    told += [
        Finding(NAME, True, make_harmless(f"{record.get('repository', '')}: {'; '.join(notes)}"), "", False)
        for record in admitted
        if (notes := [*_texts(record, "notes"), *_texts(record, "test_notes"), *_texts(record, "left_out")])
    ]
    more = f"; {len(told) - MOST} more are not shown" if len(told) > MOST else ""
    counts = f"{len(admitted)} prepared, {len(refused)} refused in {facts}{more}"
    return [Finding("repositories", True, counts, required=False), *told[:MOST]]


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _first_line(record: Mapping[str, Any]) -> str:
    return str(record.get("reason", "")).partition("\n")[0]


def _texts(record: Mapping[str, Any], name: str) -> list[str]:
    found = record.get(name)
    return list(map(str, found)) if isinstance(found, list) else []
