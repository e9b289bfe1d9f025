"""The test scripts and the parser of pytest's log that selfplay brings along.

Invariant: equal arguments give equal bytes. The texts go into the keys of environments, so a changed byte
builds every environment anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from selfplay.runtime.resources import resource
from selfplay.sandbox.base import WORKSPACE


def standard_script(test_files: Sequence[str], options: str = "") -> str:
    """The shell script that runs these files with pytest. options: of pytest, beyond those of the script."""
    template = shipped_text("test_script.sh")
    files = " \\\n    ".join(shlex.quote(path) for path in test_files)
    return template.replace("@OPTIONS@", options).replace("@TEST_FILES@", files)


def command_script(command: str) -> str:
    """The shell script that runs a repository's own test command."""
    return (
        "#!/bin/bash\n# Runs the repository's own test command; the exit status is its own.\n"
        f"cd {WORKSPACE} || exit 2\n{command}\n"
    )


def standard_parser() -> str:
    """The Python program that reads the log of `standard_script`."""
    return shipped_text("test_parser.py")


def shipped_text(name: str) -> str:
    """A file of data/pytest."""
    return (resource("data/pytest") / name).read_text(encoding="utf-8")
