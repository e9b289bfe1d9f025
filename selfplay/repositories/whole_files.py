"""Files of the cache that appear complete or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a value as JSON. Raises OSError."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".facts-", delete=False, encoding="utf-8"
    ) as file:
        temporary = Path(file.name)
        try:
            json.dump(value, file)
            file.flush()
            temporary.replace(path)
        except BaseException:  # for instance a full disk
            temporary.unlink(missing_ok=True)
            raise
