"""The values of an attack: what it is, its outcome, its report. And the functions that run attacks.

Invariant: an attack that could not be carried out is the machine's failure, never "held". Else a machine
where nothing works would look safe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from selfplay.errors import EngineError, PrerequisiteError, SandboxUnavailable

if TYPE_CHECKING:
    from selfplay.attacks.ground import Ground

MAX_EVIDENCE = 300


@dataclass(frozen=True)
class Held:
    """The defence held. note: what was seen, or ""."""

    note: str = ""


@dataclass(frozen=True)
class Broken:
    """The attack got through. evidence: what it reached."""

    evidence: str


Outcome = Held | Broken


@dataclass(frozen=True)
class Attack:
    """One attack. row: its row in the table of docs/security.md. title: what the attacker does."""

    id: str
    row: int
    title: str
    run: Callable[[Ground], Outcome]


@dataclass(frozen=True)
class Report:
    """The result of one attack. status "machine": it could not be carried out, so nothing is known."""

    id: str
    row: int
    title: str
    status: Literal["held", "NOT held", "machine"]
    evidence: str
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_attack(attack: Attack, ground: Ground) -> Report:
    """Carry out one attack. Raises nothing: errors of the machine and of the attack end up in the report."""
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
    except Exception as error:  # an attack that crashes the harness has got through
        return report("NOT held", f"the harness raised {type(error).__name__}: {error}")
    return (
        report("NOT held", outcome.evidence) if isinstance(outcome, Broken) else report("held", outcome.note)
    )


def run_attacks(attacks: Iterable[Attack], ground: Ground) -> Iterator[Report]:
    """Carry out attacks one after another. Yields each report as soon as it is there."""
    for attack in attacks:
        yield run_attack(attack, ground)
