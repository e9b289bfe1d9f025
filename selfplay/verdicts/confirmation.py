"""What a second grading says of a repair whose first grading passed.

How it is made is left to `second_grading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Confirmation(Enum):
    """Whether a second grading confirmed a pass.

    NOT_NEEDED     no pass is to be confirmed: the attempt failed, its code forges results, or no second
                   grading was asked for
    CONFIRMED      both gradings passed
    NOT_CONFIRMED  the second grading failed, which voids the bug
    """

    NOT_NEEDED = "not needed"
    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"


@dataclass(frozen=True)
class SecondGrading:
    """The result of a second grading. `reason` and `failed_tests` say why a pass is not confirmed."""

    confirmation: Confirmation
    reason: str = ""
    failed_tests: tuple[str, ...] = ()
