"""The parts of one's own that a run uses: loaded at its start, remembered by the digest of their source."""

from __future__ import annotations

import json

from selfplay import parts
from selfplay.config import Config
from selfplay.orchestrator.run_folder import RunFolder


def check_own_parts(config: Config, run: RunFolder) -> list[str]:
    """Load every part. Returns one line for each whose source changed since the run began.

    Writes the digests of new ones into the run's parts.json. Raises PartError for one that cannot be loaded.
    """
    now = parts.check_parts(config.parts())
    file = run.path / "parts.json"
    before: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    changed = [name for name, digest in now.items() if before.get(name, digest) != digest]
    if now and before != now:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({**before, **now}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.rename(file)
    return [
        f"{name}: its source has changed since the run began; episodes before and after differ"
        for name in changed
    ]
