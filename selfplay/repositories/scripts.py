"""The test scripts and the parsers of pytest's log that selfplay brings along.

pytest's short summary cannot carry every test id. Where a suite has such ids, its script has a recorder that
prints them in full, and its parser reads both. All other suites have the plain script and parser.

Invariant: equal arguments give equal bytes. The texts go into the keys of environments, so a changed byte
builds every environment anew. Artifacts hold them, so both parsers are recognised by their text.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from selfplay.runtime.resources import resource
from selfplay.sandbox.base import WORKSPACE

RECORDS_IDS = "-p selfplay_ids"  # the option that loads the recorder
# The files of data/pytest. All of them are part of an environment's key.
TEXTS = (
    *("test_script.sh", "test_parser.py", "call_recorder.py"),
    *("collection_recorder.py", "id_recorder.py", "recorded_ids.py", "time_recorder.py"),
)
START = "exec python -m pytest"  # of the line in test_script.sh that runs the tests
MAIN = 'if __name__ == "__main__":'
PLUGINS = "/tmp/selfplay_plugins"
# SHA-256 of the parsers that earlier versions brought along, which older artifacts hold -> their options.
OLDER_PARSERS = {
    "7ed7ec0432b0264c840dbc030044b531ec55987b32bdb480f8b6c96bd960b4a2": "",
    "a1dd4e762697975756f9fe4175e7509bfe2d968f66aa2dc8dc87075cfd06b86b": RECORDS_IDS,
}


def standard_script(test_files: Sequence[str], options: str = "") -> str:
    """The shell script that runs these files with pytest. options: of pytest, beyond those of the script."""
    template = shipped_text("test_script.sh")
    if records_ids(options):
        template = template.replace(START, f"{_recorder_lines()}{START}")
    files = " \\\n    ".join(shlex.quote(path) for path in test_files)
    return template.replace("@OPTIONS@", options).replace("@TEST_FILES@", files)


def records_ids(text: str) -> bool:
    """Whether a script, or one with these options, prints ids in full."""
    return RECORDS_IDS in text


def _recorder_lines() -> str:
    text = shipped_text("id_recorder.py")
    return (
        f"mkdir -p {PLUGINS} && cat > {PLUGINS}/selfplay_ids.py <<'END OF PLUGIN' || exit 2\n{text}"
        f'END OF PLUGIN\nexport PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{PLUGINS}"\n'
    )


def command_script(command: str) -> str:
    """The shell script that runs a repository's own test command."""
    return (
        "#!/bin/bash\n# Runs the repository's own test command; the exit status is its own.\n"
        f"cd {WORKSPACE} || exit 2\n{command}\n"
    )


def standard_parser(options: str = "") -> str:
    """The Python program that reads the log of `standard_script` with these options."""
    text = shipped_text("test_parser.py")
    if not records_ids(options):
        return text
    head, _, tail = text.partition(MAIN)
    return head + shipped_text("recorded_ids.py") + MAIN + tail.replace("parse(text)", "parse_recorded(text)")


def is_standard_parser(text: str) -> bool:
    """Whether selfplay wrote this parser, so that `current_parser` may run outside a sandbox."""
    return bool(current_parser(text))


def current_parser(text: str) -> str:
    """The newest standard parser of the kind of this one; "" if this one is another parser."""
    if text in (standard_parser(), standard_parser(RECORDS_IDS)):
        return text
    options = OLDER_PARSERS.get(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())
    return "" if options is None else standard_parser(options)


def shipped_text(name: str) -> str:
    """A file of data/pytest."""
    return (resource("data/pytest") / name).read_text(encoding="utf-8")
