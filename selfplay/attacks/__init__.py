"""Real attacks on this machine's own sandboxes, judging and reading, each held or not held. `selfplay doctor --attack` runs them.

Leaves defences to the modules under attack. Invariant: nothing outside our own temporary folder is aimed at.
"""

from __future__ import annotations

from selfplay.attacks import (
    escapes,
    git_and_paths,
    prepared,
    scripts_and_chance,
    tests_and_runners,
    text_and_limits,
)
from selfplay.attacks.base import Attack, Broken, Held, Outcome, Report, run_attack, run_attacks
from selfplay.attacks.ground import Ground, open_ground

GROUPS = (git_and_paths, tests_and_runners, scripts_and_chance, escapes, text_and_limits, prepared)
ALL_ATTACKS: tuple[Attack, ...] = tuple(
    sorted((attack for group in GROUPS for attack in group.ATTACKS), key=lambda attack: attack.row)
)

RESIDUAL_RISK = (
    "What stays a risk: one process runs the tests and the code under test. Code that forges by name or all alike, prints a report of "
    "its own or claims to equal everything is caught by tests in disguise, luck by the second run. Code that works out which copies of "
    "the tests must fail, by reading them, fools a grading; so does, where tests cannot be disguised, a forgery of chosen tests. Only "
    "reading the patch shows either. See docs/security.md."
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
