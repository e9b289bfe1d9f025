"""Which bugs a list shows, as a value, and its form in SQL."""

from __future__ import annotations

import json
from dataclasses import dataclass

from selfplay.curriculum.rows import BUG_ORDERS, BUG_STATUSES
from selfplay.errors import UsageError

DIFFS = (
    """json_extract(artifact, '$."bug_inject.diff"')""",
    """json_extract(artifact, '$."test_weaken.diff"')""",
    "attempt_patch",
)


@dataclass(frozen=True)
class BugFilter:
    """Which bugs to list, in which order, and how many. None means any, or all.

    since_update, since   made in this update or later; made at this time (seconds since 1970) or later
    text                  what one of the diffs holds, or the failed repair
    A bound on the solve rate leaves out bugs without a solve rate.
    """

    repository: str | None = None
    strategy: str | None = None
    order: int | None = None
    status: str | None = None
    min_solve_rate: float | None = None
    max_solve_rate: float | None = None
    since_update: int | None = None
    since: float | None = None
    text: str | None = None
    sort: str = "created"
    reverse: bool = False
    limit: int | None = None

    def check(self) -> None:
        """Raise UsageError for a sort key or status that there is not."""
        if self.sort not in BUG_ORDERS:
            raise UsageError(f"--sort {self.sort!r}: choose one of {', '.join(BUG_ORDERS)}.")
        if self.status is not None and self.status not in BUG_STATUSES:
            raise UsageError(f"--status {self.status!r}: choose one of {', '.join(BUG_STATUSES)}.")

    def where(self) -> tuple[str, list[object]]:
        """(the WHERE clause, its values); ("", []) if all bugs fit."""
        given = {
            "repository = ?": self.repository,
            "strategy = ?": self.strategy,
            '"order" = ?': self.order,
            "+status = ?": self.status,  # +: not by the index of statuses, which would read each row
            "solve_rate >= ?": self.min_solve_rate,
            "solve_rate <= ?": self.max_solve_rate,
            "created_update >= ?": self.since_update,
            "created_at >= ?": self.since,
        }
        clauses = [clause for clause, value in given.items() if value is not None]
        values: list[object] = [value for value in given.values() if value is not None]
        if self.text:
            # The diffs are JSON text: the first test leaves out most rows before their JSON is read.
            quoted = json.dumps(self.text)[1:-1]
            clauses.append("(instr(artifact, ?) OR instr(attempt_patch, ?))")
            clauses.append(f"({' OR '.join(f'instr({diff}, ?)' for diff in DIFFS)})")
            values += [quoted, self.text, *[self.text] * len(DIFFS)]
        return (f"WHERE {' AND '.join(clauses)}" if clauses else "", values)

    def order_by(self, backwards: bool = False) -> str:
        """The ORDER BY clause. backwards: from the end of the list."""
        direction = " DESC" if self.reverse != backwards else ""
        return f"ORDER BY {', '.join(f'{column}{direction}' for column in BUG_ORDERS[self.sort])}"
