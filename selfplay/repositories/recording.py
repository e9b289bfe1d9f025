"""What a recorded run of a suite shows: what its tests call, open and import.

What a record means is decided by `targets` and `material`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from selfplay.repositories.material import find_material
from selfplay.repositories.recorders import CALLS, printable, read_record, run_with_plugin
from selfplay.repositories.targets import Calls, Target, find_calls, find_targets, read_calls
from selfplay.source.test_material import NO_MATERIAL, TestMaterial

if TYPE_CHECKING:
    from selfplay.repositories.suites import Suite
    from selfplay.repositories.trial import Trial

SLOWER = 4  # how many times as long a run may take under the recorder of calls


@dataclass(frozen=True)
class Recorded:
    """What a recorded run of a suite showed."""

    targets: tuple[Target, ...] = ()
    calls: Calls = field(default_factory=dict)
    material: TestMaterial = NO_MATERIAL


def record_run(trial: Trial, suite: Suite) -> Recorded:
    """Run the suite once more and read what it called, opened and imported.

    A damaged record gives no targets and no calls. What tests only use is no target. A run under the recorder
    takes several times as long. Raises EnvironmentBuildError if it does not end.
    """
    tree = trial.job.checkout.tree
    timeout_s = SLOWER * trial.job.settings.test_timeout_s
    result, files = run_with_plugin(trial, tree, suite.script, CALLS, "recorded", timeout_s)
    if result.timed_out:
        raise trial.too_long("recorded", result.text, timeout_s)
    record = read_record(files, CALLS)
    seen = read_calls(record)
    tests = {printable(name): functions for name, functions in seen.tests.items()}
    targets = find_targets(tree, seen.files, suite.files)
    material = find_material(tree, record, suite.files, targets)
    calls = {
        test: tuple(function for function in called if function[0] not in material.files)
        for test, called in find_calls(tree, tests).items()
    }
    return Recorded(tuple(target for target in targets if target.path not in material.files), calls, material)
