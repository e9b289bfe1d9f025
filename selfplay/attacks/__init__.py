"""Real attacks on this machine's sandboxes, judging and parsing. `selfplay doctor --attack` runs them.

The defences are in the modules under attack. A module of attacks imports ground.py and base.py, and no other
module of attacks. Invariant: an attack aims at nothing outside our own temporary folder.
"""

from __future__ import annotations

from selfplay.attacks import (
    bombs,
    builds,
    channels,
    diffs,
    escapes,
    forged_values,
    git,
    impossible_trees,
    marked_noise,
    paths,
    phases,
    prepared,
    scripts_and_chance,
    test_material,
    tests_and_runners,
    text_and_limits,
)
from selfplay.attacks.base import Attack, Broken, Held, Outcome, Report, run_attack, run_attacks
from selfplay.attacks.ground import Ground, open_ground

# `doctor --attack` lists attacks by row, and within a row in the order of this tuple.
GROUPS = (
    git,
    paths,
    diffs,
    builds,
    channels,
    tests_and_runners,
    scripts_and_chance,
    forged_values,
    marked_noise,
    bombs,
    escapes,
    text_and_limits,
    impossible_trees,
    prepared,
    phases,
    test_material,
)
ALL_ATTACKS: tuple[Attack, ...] = tuple(
    sorted((attack for group in GROUPS for attack in group.ATTACKS), key=lambda attack: attack.row)
)

RESIDUAL_RISK = (
    "What stays a risk: one process runs the tests and the code under test. Disguised tests catch code that "
    "forges results by name or all alike, prints its own report, or claims to equal everything. "
    "The second run catches code that passes by chance. "
    "Code that knows the right values of the tests, for instance from a copy of them, fools a grading. "
    "Code that guesses them does so at times, and a forgery of chosen tests does where tests cannot be "
    "disguised. Only reading the patch shows it. See docs/security.md."
)

__all__ = [
    "ALL_ATTACKS",
    "RESIDUAL_RISK",
    "Attack",
    "Broken",
    "Ground",
    "Held",
    "Outcome",
    "Report",
    "open_ground",
    "run_attack",
    "run_attacks",
]
