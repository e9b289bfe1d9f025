"""Runs pytest under recorders of data/pytest: which files hold tests, what the tests call, open and import.

What a record means is decided by `targets` and `material`. Only pytest can load a recorder.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfplay.errors import ArtifactError, PatchError, SandboxLost
from selfplay.repositories.material import find_material
from selfplay.repositories.scripts import shipped_text
from selfplay.repositories.targets import Calls, Target, find_calls, find_targets, read_calls
from selfplay.source.test_material import NO_MATERIAL, TestMaterial
from selfplay.source.trees import FileEntry, Tree

if TYPE_CHECKING:
    from selfplay.repositories.suites import Suite
    from selfplay.repositories.trial import Trial

RECORD_BYTES = 1 << 20  # that a record may be larger than a submission


def run_recorded(trial: Trial, script: str, recorder: str, record: str, log_name: str) -> tuple[str, Any]:
    """Run a script of pytest under a recorder. Returns the log, and the record, None if it is damaged.

    recorder: a file of data/pytest; record: the file that it writes into /submit.
    Raises EnvironmentBuildError if the script does not end in time.
    """
    plugin = f"selfplay_{recorder}"
    variables = {
        "PYTEST_PLUGINS": plugin.removesuffix(".py"),
        "PYTHONPATH": f"/tmp/recorder:{trial.variables['PYTHONPATH']}",
        "PYTHONHASHSEED": "0",
    }
    with trial.workspace(trial.job.checkout.tree, variables) as box:
        text = FileEntry(shipped_text(recorder).encode())
        box.write_archive("/tmp", Tree({f"recorder/{plugin}": text}).to_tar())
        log = trial.execute(box, script, log_name).text
        # The repository's code may have written more into /submit than fits, or ended the sandbox.
        with contextlib.suppress(
            ArtifactError, PatchError, SandboxLost, KeyError, ValueError, RecursionError
        ):
            archive = box.read_archive("/submit", trial.job.limits.submit_bytes + RECORD_BYTES)
            return log, json.loads(Tree.from_tar(archive)[record].content)
    return log, None


@dataclass(frozen=True)
class Recorded:
    """What a recorded run of a suite showed."""

    targets: tuple[Target, ...] = ()
    calls: Calls = field(default_factory=dict)
    material: TestMaterial = NO_MATERIAL


def record_run(trial: Trial, suite: Suite) -> Recorded:
    """Run the suite once more and read what it called, opened and imported.

    A damaged record gives no targets and no calls. What tests only use is no target.
    """
    tree = trial.job.checkout.tree
    _, record = run_recorded(trial, suite.script, "call_recorder.py", "calls.json", "recorded")
    seen = read_calls(record)
    tests = {printable(name): functions for name, functions in seen.tests.items()}
    targets = find_targets(tree, seen.files, suite.files)
    material = find_material(tree, record, suite.files, targets)
    calls = {
        test: tuple(function for function in called if function[0] not in material.files)
        for test, called in find_calls(tree, tests).items()
    }
    return Recorded(tuple(target for target in targets if target.path not in material.files), calls, material)


def printable(test_id: str) -> str:
    """The id as the standard parser writes it: characters that cannot be printed are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in test_id)
