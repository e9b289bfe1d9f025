"""TestOutcomes: test id -> passed | failed, and the strict reading of the map that a parser prints.

Skipped, expected and vanished tests are in neither set, so only an explicit pass is a pass. Invariant: the
sets are disjoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from selfplay.errors import OutcomesError

MAX_ID_LENGTH = 4096  # characters; the standard parser's own bound
MAX_QUOTED = 80


@dataclass(frozen=True)
class TestOutcomes:
    """What one run of the tests said. `failed` covers errors and failed subtests too."""

    __test__ = False  # pytest: a value, not a test class

    passed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        both = self.passed & self.failed
        if both:
            raise ValueError(f"passed and failed at once: {sorted(both)[:3]}")

    @property
    def ids(self) -> frozenset[str]:
        return self.passed | self.failed

    def without(self, ids: Iterable[str]) -> TestOutcomes:
        gone = frozenset(ids)
        return TestOutcomes(self.passed - gone, self.failed - gone)

    def differing(self, other: TestOutcomes) -> tuple[str, ...]:
        """Ids whose outcome is not the same in both, vanished ones included, sorted."""
        return tuple(sorted((self.passed ^ other.passed) | (self.failed ^ other.failed)))

    def to_json(self) -> dict[str, str]:
        return dict.fromkeys(sorted(self.passed), "passed") | dict.fromkeys(sorted(self.failed), "failed")

    @classmethod
    def from_json(cls, value: Mapping[str, str]) -> TestOutcomes:
        """Raises OutcomesError for anything but an object of "passed" and "failed"."""
        if not isinstance(value, Mapping):
            raise OutcomesError(
                f"the parser printed {_quote(value)}, not an object of test id to 'passed' or 'failed'"
            )
        for name, outcome in value.items():
            if not isinstance(outcome, str) or outcome not in ("passed", "failed"):
                raise OutcomesError(
                    f"the outcome of {_quote(name)} is {_quote(outcome)}; "
                    "only 'passed' and 'failed' are known, leave skipped tests out"
                )
        return cls(
            frozenset(name for name, outcome in value.items() if outcome == "passed"),
            frozenset(name for name, outcome in value.items() if outcome == "failed"),
        )


def parse_outcomes(data: bytes, max_ids: int) -> TestOutcomes:
    """Read what a parser printed. It is hostile: depth, duplicates, odd characters and sizes are checked.

    Raises OutcomesError that says what is wrong.
    """
    if len(data) > max_ids * (MAX_ID_LENGTH + 16):
        raise OutcomesError(f"the parser printed {len(data)} bytes, more than {max_ids} test ids can take")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise OutcomesError(
            f"the parser's output is not one JSON object in UTF-8 ({_reason(error)}); "
            f"it starts with {data[:40]!r}"
        ) from error
    if isinstance(value, dict):
        if len(value) > max_ids:
            raise OutcomesError(f"the parser named {len(value)} tests; at most {max_ids} are read")
        for name in value:
            _check_id(name)
    return TestOutcomes.from_json(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _check_id(name: str) -> None:
    if not 0 < len(name) <= MAX_ID_LENGTH:
        raise OutcomesError(
            f"a test id has {len(name)} characters; between 1 and {MAX_ID_LENGTH} are allowed"
        )
    if any(char < " " or "\x7f" <= char < "\xa0" or "\ud800" <= char <= "\udfff" for char in name):
        raise OutcomesError(f"test id {_quote(name)} holds control characters or half a character")


def _quote(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
