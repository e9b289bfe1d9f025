"""Runs a suite under the call recorder: which functions its tests call, and which can be targets.

What a record means is decided by `targets`. The recorder itself is data/pytest/call_recorder.py; only pytest
can load it.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from selfplay.repositories.scripts import shipped_text
from selfplay.repositories.targets import Calls, Target, find_calls, find_targets, read_calls
from selfplay.source.trees import FileEntry, Tree

if TYPE_CHECKING:
    from selfplay.repositories.suites import Suite
    from selfplay.repositories.trial import Trial

RECORD_BYTES = 1 << 20  # that a record may be larger than a submission


def record_calls(trial: Trial, suite: Suite) -> tuple[tuple[Target, ...], Calls]:
    """Run the suite once more and read what it called. A damaged record gives no targets and no calls."""
    tree = trial.job.checkout.tree
    recorder = FileEntry(shipped_text("call_recorder.py").encode())
    variables = {
        "PYTEST_PLUGINS": "selfplay_call_recorder",
        "PYTHONPATH": f"/tmp/recorder:{trial.variables['PYTHONPATH']}",
        "PYTHONHASHSEED": "0",
    }
    with trial.workspace(tree, variables) as box:
        box.write_archive("/tmp", Tree({"recorder/selfplay_call_recorder.py": recorder}).to_tar())
        trial.execute(box, suite.script, "recorded")
        archive = Tree.from_tar(box.read_archive("/submit", trial.job.limits.submit_bytes + RECORD_BYTES))
    record: Any = None
    with contextlib.suppress(KeyError, ValueError, RecursionError):
        record = json.loads(archive["calls.json"].content)
    seen = read_calls(record)
    return find_targets(tree, seen.files, suite.files), find_calls(tree, seen.tests)
