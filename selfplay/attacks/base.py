"""What an attack is, what comes of one, and the running of many. The attacks themselves live beside this file.

Invariant: an attack that could not be carried out is the machine's failure, never "held".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from selfplay.attacks.ground import Ground
from selfplay.errors import EngineError, PrerequisiteError, SandboxUnavailable

MAX_EVIDENCE = 300


@dataclass(frozen=True)
class Held:
    """The defence stood. note: what was seen, "" when there is nothing to say."""

    note: str = ""


@dataclass(frozen=True)
class Broken:
    """The attack got through. evidence: what it got."""

    evidence: str


Outcome = Held | Broken


@dataclass(frozen=True)
class Attack:
    """One attack. row: of the list in docs/security.md. title: the attack in plain words, as the attacker would put it."""

    id: str
    row: int
    title: str
    run: Callable[[Ground], Outcome]


@dataclass(frozen=True)
class Report:
    """What came of one attack. status "machine": it could not be carried out here, so nothing is known."""

    id: str
    row: int
    title: str
    status: Literal["held", "NOT held", "machine"]
    evidence: str
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_attack(attack: Attack, ground: Ground) -> Report:
    started = time.monotonic()

    def report(status: Literal["held", "NOT held", "machine"], evidence: str) -> Report:
        return Report(
            attack.id,
            attack.row,
            attack.title,
            status,
            evidence[:MAX_EVIDENCE],
            round(time.monotonic() - started, 3),
        )

    try:
        outcome = attack.run(ground)
    except (SandboxUnavailable, PrerequisiteError, EngineError) as error:
        return report("machine", str(error))
    except Exception as error:  # an attack that crashes the harness has got through, whatever it raised
        return report("NOT held", f"the harness raised {type(error).__name__}: {error}")
    return (
        report("NOT held", outcome.evidence) if isinstance(outcome, Broken) else report("held", outcome.note)
    )


def run_attacks(attacks: Iterable[Attack], ground: Ground) -> Iterator[Report]:
    for attack in attacks:
        yield run_attack(attack, ground)
