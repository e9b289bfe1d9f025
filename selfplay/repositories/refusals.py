"""Why repositories were not admitted, on disk, so that nobody waits for the same answer twice.

Invariant: a refusal is kept only if a second try would end the same. One that the machine may have caused is
not kept, nor one of an image, which may change under its name. A refusal counts only under the conditions it
was made in: another version of selfplay, other settings or another Python try again.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import selfplay
from selfplay.errors import EnvironmentBuildError
from selfplay.repositories.whole_files import write_json

if TYPE_CHECKING:
    from selfplay.repositories.cache import Reading
    from selfplay.repositories.trial import BuildJob

SUFFIX = ".refused.json"
TEXT_SUFFIXES = (".py", ".sh")  # of the files that decide what is admitted
# What pip and its servers say when the machine or the index is at fault.
MACHINE = re.compile(
    r"Retrying \(Retry\(|connection broken by|ConnectionError|Connection (?:refused|reset|aborted|timed out)|"
    r"Read ?Timeout|timed out|did not end within|Max retries exceeded|name resolution|Network is unreachable|"
    r"HTTP error [45]\d\d|SSLError|No space left on device|Errno 28|Cannot allocate memory|MemoryError"
)


def is_of_machine(log: str) -> bool:
    """Whether the log of an installation shows that the network, the index or the disk failed."""
    return MACHINE.search(log) is not None


def conditions_of(job: BuildJob, reading: Reading) -> str:
    """A hash of what decides on a refusal and is not in the environment's key."""
    parts = [_sources_digest(), reading.digest, asdict(job.limits), list(sys.version_info[:2])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@cache
def _sources_digest() -> str:
    """A hash of selfplay's own files."""
    root = Path(selfplay.__file__).parent
    sha = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES):
        sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()


def read_refusal(path: Path, conditions: str) -> EnvironmentBuildError | None:
    """The refusal in a file, with a word how to try again. None if there is none, or others held then."""
    try:
        found: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
        if found["conditions"] != conditions:
            return None
        reason, log_tail = str(found["reason"]), str(found["log_tail"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    again = f"Known from an earlier try. To try again, change its line or a setting, or delete {path}"
    return EnvironmentBuildError(f"{reason}\n{again}", log_tail)


def write_refusal(path: Path, error: EnvironmentBuildError, conditions: str) -> None:
    """Keep a refusal. The file appears complete or not at all. Raises OSError."""
    record = {"conditions": conditions, "reason": str(error), "log_tail": error.log_tail}
    write_json(path, record)
