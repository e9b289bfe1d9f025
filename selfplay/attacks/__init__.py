"""Real attacks on this machine's own sandboxes, judging and reading, each held or not held. `selfplay doctor --attack` runs them.

Leaves defences to the modules under attack. Invariant: nothing outside our own temporary folder is aimed at.
"""

from __future__ import annotations

from selfplay.attacks import escapes, git_and_paths, tests_and_runners
from selfplay.attacks.base import Attack, Broken, Held, Outcome, Report, run_attack, run_attacks
from selfplay.attacks.ground import Ground, open_ground

ALL_ATTACKS: tuple[Attack, ...] = tuple(sorted((*escapes.ATTACKS, *git_and_paths.ATTACKS, *tests_and_runners.ATTACKS), key=lambda attack: attack.row))

__all__ = ["ALL_ATTACKS", "Attack", "Broken", "Ground", "Held", "Outcome", "Report", "open_ground", "run_attack", "run_attacks"]
