"""Controls of `selfplay.attacks.test_material`: each removes one defence from the real code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from selfplay.attacks import Ground
from selfplay.repositories.environment import Environment
from selfplay.repositories.hiding import Hiding
from selfplay.sandbox import bubblewrap_command
from selfplay.verdicts.checks import Finding

Control = Callable[[pytest.MonkeyPatch, Ground], Ground | None]


def only_tests_by_name(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """Protect tests by their name alone. The disguise may notice these repairs too: it is removed as well."""
    patch.setattr(Environment, "fixed_files", lambda self, changed: self.test_files)
    patch.setattr("selfplay.verdicts.prediction._is_open", lambda *_: True)
    patch.setattr("selfplay.verdicts.second_grading.disguise", lambda *_: None)


def any_bug(patch: pytest.MonkeyPatch, _: Ground) -> None:
    patch.setattr("selfplay.verdicts.validator.judge_bug_paths", lambda *_: Finding(True))


def hide_nothing(patch: pytest.MonkeyPatch, ground: Ground) -> Ground:
    patch.setattr("selfplay.repositories.admission.hiding_plans", lambda _: [Hiding()])
    # No later test may find in the cache what is admitted now.
    facts = ground.scratch / "hides-nothing"
    facts.mkdir(exist_ok=True)
    return replace(ground, cache=facts)


def show_bundled_packages(patch: pytest.MonkeyPatch, ground: Ground) -> Ground:
    patch.setattr(bubblewrap_command, "bundled_folders", lambda *_: ())
    return replace(ground, environment=replace(ground.environment, hidden=()))


CONTROLS: dict[str, Control] = {
    **dict.fromkeys(
        ("golden-file", "new-data-file", "helper-in-package", "helper-shadowed", "helper-unmarked"),
        only_tests_by_name,
    ),
    **dict.fromkeys(("golden-bug", "helper-bug"), any_bug),
    **dict.fromkeys(
        (
            "vendored-release",
            "installed-release",
            "release-metadata",
            "function-elsewhere",
            "release-in-wheel",
            "git-mirror",
        ),
        hide_nothing,
    ),
    "bundled-packages": show_bundled_packages,
    "installed-copy": hide_nothing,
}
