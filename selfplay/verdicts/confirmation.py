"""What a second grading says of a repair whose first grading passed.

How it is made is left to `second_grading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Confirmation(Enum):
    """What a second grading found.

    NOT_NEEDED     there was none: the attempt failed, or no second grading was asked for
    CONFIRMED      the attempt passed again, with tests in disguise
    UNDISGUISED    the attempt passed again; its tests cannot be disguised, so a forgery is harder to notice
    FORGED         the attempt's code forges results, so the attempt failed
    NOT_REPEATED   the attempt passed once and not again, and the unrepaired bug did not move: it failed
    NOT_CONFIRMED  the unrepaired bug passed too: it depends on chance or on who runs it, so it is void
    """

    NOT_NEEDED = "not needed"
    CONFIRMED = "confirmed"
    UNDISGUISED = "confirmed without disguise"
    FORGED = "forged"
    NOT_REPEATED = "not repeated"
    NOT_CONFIRMED = "not confirmed"

    @property
    def is_pass(self) -> bool:
        return self in (Confirmation.CONFIRMED, Confirmation.UNDISGUISED)

    @property
    def as_bool(self) -> bool | None:
        """None if there was no second grading."""
        return None if self is Confirmation.NOT_NEEDED else self.is_pass


@dataclass(frozen=True)
class SecondGrading:
    """The result of a second grading. `reason` and `failed_tests` say why a pass is not confirmed."""

    confirmation: Confirmation
    reason: str = ""
    failed_tests: tuple[str, ...] = ()
