"""Runs pytest under the recorders of data/pytest. What a record means is left to others.

Only pytest can load a recorder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfplay.errors import ArtifactError, PatchError, SandboxLost
from selfplay.repositories.scripts import shipped_text
from selfplay.source.trees import FileEntry, Tree

if TYPE_CHECKING:
    from selfplay.repositories.trial import Trial
    from selfplay.sandbox.base import ExecResult

RECORD_BYTES = 1 << 20  # that a record may be larger than a submission


@dataclass(frozen=True)
class Recorder:
    """A plugin of data/pytest, and the file that it writes into /submit. variables: more for the shell."""

    plugin: str
    record: str
    variables: Mapping[str, str] = field(default_factory=dict)


COLLECTION = Recorder("collection_recorder.py", "collected.json")
CALLS = Recorder("call_recorder.py", "calls.json")


def run_with_plugin(
    trial: Trial, tree: Tree, script: str, recorder: Recorder, log_name: str, timeout_s: float
) -> tuple[ExecResult, Tree]:
    """Run a script of pytest over `tree` under a recorder. Returns the result, and the files of /submit.

    No files if they are damaged. Does not raise if the script does not end in time: the result says so.
    """
    plugin = f"selfplay_{recorder.plugin}"
    variables = {
        "PYTEST_PLUGINS": plugin.removesuffix(".py"),
        "PYTHONPATH": f"/tmp/recorder:{trial.variables['PYTHONPATH']}",
        "PYTHONHASHSEED": "0",
        **recorder.variables,
    }
    with trial.workspace(tree, variables) as box:
        text = FileEntry(shipped_text(recorder.plugin).encode())
        box.write_archive("/tmp", Tree({f"recorder/{plugin}": text}).to_tar())
        result = trial.attempt(box, script, log_name, timeout_s)
        # The repository's code may have written more into /submit than fits, or ended the sandbox.
        with contextlib.suppress(ArtifactError, PatchError, SandboxLost):
            archive = box.read_archive("/submit", trial.job.limits.submit_bytes + RECORD_BYTES)
            return result, Tree.from_tar(archive)
    return result, Tree()


def read_record(files: Tree, recorder: Recorder) -> Any:
    """What a recorder wrote as JSON, None if it is damaged."""
    with contextlib.suppress(KeyError, ValueError, RecursionError):
        return json.loads(files[recorder.record].content)
    return None


def printable(test_id: str) -> str:
    """The id as the standard parser writes it: characters that cannot be printed are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in test_id)
