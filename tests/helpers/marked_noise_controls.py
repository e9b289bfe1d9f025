"""Controls of `selfplay.attacks.marked_noise`: the noise of the first audit, and no run without source."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from old_noise import perturb_with_marks
from selfplay.attacks import Ground
from selfplay.attacks.marked_noise import STRIPPED


def with_marked_noise(patch: pytest.MonkeyPatch, _: Ground) -> None:
    patch.setattr("selfplay.verdicts.perturbation.perturb", perturb_with_marks)


def with_source(patch: pytest.MonkeyPatch, _: Ground) -> None:
    patch.setattr("selfplay.verdicts.validator.without_source", lambda script, _: script)


def any_file(patch: pytest.MonkeyPatch, _: Ground) -> None:
    """A bug may be where no change is made."""
    patch.setattr("selfplay.verdicts.validator.beyond_changes", lambda *_: [])


CONTROLS: dict[str, Callable[[pytest.MonkeyPatch, Ground], Ground | None]] = {
    **dict.fromkeys(STRIPPED, with_marked_noise),
    "needs-source": with_source,
    "lone-return": any_file,
    "data-file": any_file,
}
