"""The queries of a run's database: one method for each way to write or read its rows.

The store keeps rows. It decides nothing about them: callers choose rewards and statuses. Episode files and
checkpoints stay outside.
Invariant: each method is one transaction; `transaction()` joins several calls into one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfplay.curriculum.bug_filter import BugFilter
from selfplay.curriculum.database import RunDatabase
from selfplay.curriculum.rows import (
    BUG_ORDERS as BUG_ORDERS,
)
from selfplay.curriculum.rows import (
    AttemptRow,
    BugRow,
    EnvironmentRow,
    EpisodeRow,
    FailureRow,
    GroupRow,
    UpdateRow,
    VerdictRow,
    text_of,
)
from selfplay.errors import StoreError

MOST_VALUES = 500  # in one query
LAST_CHARACTER = "\U0010ffff"
PLAYS = "(SELECT count(*) FROM groups WHERE groups.bug_id = bugs.bug_id AND groups.status != 'open') AS plays"


class Store(RunDatabase):
    """Reads and writes the rows of one run."""

    @property
    def run_folder(self) -> Path:
        return self._path.absolute().parent

    # ---- environments

    def record_environment(self, row: EnvironmentRow) -> None:
        """Record a repository's preparation. It replaces an earlier one of the same name."""
        with self.transaction():
            self._write("DELETE FROM environments WHERE name = ?", row.name)
            self._insert("environments", row)

    def environments(self) -> list[EnvironmentRow]:
        return self._rows(EnvironmentRow, "SELECT * FROM environments ORDER BY name")

    # ---- groups and episodes

    def add_group(self, group: GroupRow) -> bool:
        """Returns False, and changes nothing, if the group is there."""
        return self._insert("groups", group)

    def groups(
        self, update: int | None = None, role: str | None = None, status: str | None = None
    ) -> list[GroupRow]:
        """Groups in the order in which they were added. None does not filter."""
        where, values = _where({'"update"': update, "role": role, "status": status})
        return self._rows(GroupRow, f"SELECT * FROM groups {where} ORDER BY rowid", *values)

    def set_group_status(self, group_id: str, status: str) -> None:
        self._change(
            "UPDATE groups SET status = ? WHERE group_id = ?", status, group_id, what=f"group {group_id!r}"
        )

    def record_episode(self, row: EpisodeRow) -> bool:
        """Returns False, and changes nothing, if this member or this id was recorded before."""
        return self._insert("episodes", row)

    def episodes(
        self,
        group_id: str | None = None,
        update: int | None = None,
        role: str | None = None,
        consumed_update: int | None = None,
    ) -> list[EpisodeRow]:
        """Episodes by update, group and member.

        They may have ended in another order. None does not filter.
        """
        where, values = _where(
            {
                "episodes.group_id": group_id,
                'episodes."update"': update,
                "episodes.role": role,
                "consumed_update": consumed_update,
            }
        )
        order = 'episodes."update", groups.rowid, member'
        query = f"SELECT episodes.* FROM episodes JOIN groups USING (group_id) {where} ORDER BY {order}"
        return self._rows(EpisodeRow, query, *values)

    def episode(self, episode_id: str) -> EpisodeRow | None:
        return self._row(EpisodeRow, "SELECT * FROM episodes WHERE episode_id = ?", episode_id)

    def set_reward(self, episode_id: str, reward: float | None, note: str, masked: bool = False) -> None:
        """Set the reward and the note. A masked episode stays masked. An empty note keeps the old one."""
        self._change(
            """UPDATE episodes SET reward = ?, note = coalesce(nullif(?, ''), note), masked = max(masked, ?)
               WHERE episode_id = ?""",
            reward,
            note,
            int(masked),
            episode_id,
            what=f"episode {episode_id!r}",
        )

    def consume(self, episode_id: str, update: int, advantage: float) -> None:
        """Record that `update` trains on the episode, with this advantage.

        Repeating the call changes nothing.

        Raises StoreError if another update trained on the episode: no episode counts twice.
        """
        self._change(
            """UPDATE episodes SET consumed_update = ?, advantage = ?
               WHERE episode_id = ? AND coalesce(consumed_update, ?) = ?""",
            update,
            advantage,
            episode_id,
            update,
            update,
            what=f"episode {episode_id!r} not consumed by another update",
        )

    # ---- verdicts and attempts

    def record_verdict(self, row: VerdictRow) -> bool:
        """Record a verdict, with a row for each of its checks. Returns False if the episode has one."""
        parsed = json.loads(row.checks_json)
        checks = parsed["checks"] if isinstance(parsed, Mapping) else parsed
        with self.transaction():
            if not self._insert("verdicts", row):
                return False
            for position, check in enumerate(checks):
                self._write(
                    """INSERT INTO checks (episode_id, place, name, passed, reason, duration_s)
                       VALUES (?, ?, ?, ?, ?, ?)""",
                    row.episode_id,
                    position,
                    check["name"],
                    int(check["passed"]),
                    check.get("reason", ""),
                    check.get("duration_s", 0.0),
                )
        return True

    def verdict(self, episode_id: str) -> VerdictRow | None:
        return self._row(VerdictRow, "SELECT * FROM verdicts WHERE episode_id = ?", episode_id)

    def verdicts(self, accepted: bool | None = None) -> list[VerdictRow]:
        where, values = _where({"accepted": None if accepted is None else int(accepted)})
        return self._rows(VerdictRow, f"SELECT * FROM verdicts {where} ORDER BY rowid", *values)

    def rejected(self, check: str) -> list[dict[str, Any]]:
        """Of each artifact that this check rejected: episode_id, repository, strategy, update, reason."""
        query = """SELECT episode_id, episodes.repository, episodes.strategy, episodes."update", reason
            FROM verdicts JOIN episodes USING (episode_id)
            WHERE accepted = 0 AND failed_check = ? ORDER BY verdicts.rowid"""
        names = ("episode_id", "repository", "strategy", "update", "reason")
        with self.transaction():
            found = self._db.execute(query, (check,)).fetchall()
        return [dict(zip(names, map(text_of, row), strict=True)) for row in found]

    def failed_checks(self) -> list[str]:
        """The checks that rejected an artifact."""
        with self.transaction():
            query = "SELECT DISTINCT failed_check FROM verdicts WHERE accepted = 0 ORDER BY failed_check"
            return [str(text_of(row[0])) for row in self._db.execute(query)]

    def names_of_bugs(self, column: str) -> list[str]:
        """The different values of `repository` or `strategy` of bugs and groups, for messages."""
        query = f"SELECT DISTINCT {column} FROM bugs UNION SELECT DISTINCT {column} FROM groups"
        with self.transaction():
            return [str(text_of(row[0])) for row in self._db.execute(query)]

    def record_attempt(self, row: AttemptRow) -> bool:
        """Returns False, and changes nothing, if the episode's attempt was recorded before."""
        return self._insert("attempts", row)

    def attempt(self, episode_id: str) -> AttemptRow | None:
        return self._row(AttemptRow, "SELECT * FROM attempts WHERE episode_id = ?", episode_id)

    def attempts(self, bug_id: str | None = None, group_id: str | None = None) -> list[AttemptRow]:
        """Attempts by update, group and member. None does not filter."""
        where, values = _where({"attempts.bug_id": bug_id, "group_id": group_id})
        query = f"""SELECT attempts.* FROM attempts JOIN episodes USING (episode_id)
            JOIN groups USING (group_id) {where} ORDER BY episodes."update", groups.rowid, member"""
        return self._rows(AttemptRow, query, *values)

    # ---- bugs

    def add_bug(self, bug: BugRow) -> bool:
        """Returns False if this bug was accepted before, or one with the same digest."""
        if not bug.created_at:
            bug = replace(bug, created_at=self._clock())
        return self._insert("bugs", bug)

    def find_bug(self, bug_id: str) -> BugRow | None:
        return self._row(BugRow, f"SELECT bugs.*, {PLAYS} FROM bugs WHERE bug_id = ?", bug_id)

    def bug(self, bug_id: str) -> BugRow:
        """The bug with this id or this start of an id.

        Raises StoreError if no id begins so, or several do.
        """
        if (exact := self.find_bug(bug_id)) is not None:
            return exact
        found = self._rows(
            BugRow,
            f"SELECT bugs.*, {PLAYS} FROM bugs WHERE bug_id BETWEEN ? AND ? ORDER BY rowid LIMIT 1000",
            bug_id,
            f"{bug_id}{LAST_CHARACTER}",
        )
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(
                f"no bug's id begins with {bug_id!r} in {self._path}. "
                f"`selfplay inspect-bugs {self.run_folder.name}` lists them."
            )
        ids = ", ".join(bug.bug_id for bug in found[:6]) + (", …" if len(found) > 6 else "")
        raise StoreError(f"{len(found)} bugs' ids begin with {bug_id!r}: {ids}. Give more of the id.")

    def bugs(
        self,
        status: str | None = None,
        repository: str | None = None,
        order: int | None = None,
        strategy: str | None = None,
        order_by: str = "created",
    ) -> list[BugRow]:
        """Bugs that match each filter; None does not filter.

        order_by: a name of BUG_ORDERS. Raises StoreError for another one.
        """
        if order_by not in BUG_ORDERS:
            raise StoreError(
                f"bugs cannot be sorted by {order_by!r}. Choose one of: {', '.join(BUG_ORDERS)}."
            )
        where, values = _where(
            {"status": status, "repository": repository, '"order"': order, "strategy": strategy}
        )
        columns = ", ".join(BUG_ORDERS[order_by])
        return self._rows(BugRow, f"SELECT bugs.*, {PLAYS} FROM bugs {where} ORDER BY {columns}", *values)

    def count_bugs(self, wanted: BugFilter | None = None) -> int:
        """How many bugs pass the filter, whatever its limit. None: all there are."""
        where, values = (wanted or BugFilter()).where()
        return int(self._value(f"SELECT count(*) FROM bugs {where}", *values))

    def bug_page(self, wanted: BugFilter, first: int, count: int, backwards: bool = False) -> list[BugRow]:
        """`count` of the bugs that pass the filter, from number `first` (from 0) in its order.

        backwards: counted from the end, the last bug first. Raises UsageError for an unknown sort key.
        """
        wanted.check()
        where, values = wanted.where()
        order = wanted.order_by(backwards)
        # The inner query reads an index only, except for a text.
        numbers = f"SELECT bugs.rowid FROM bugs {where} {order} LIMIT ? OFFSET ?"
        query = f"SELECT bugs.*, {PLAYS} FROM bugs WHERE bugs.rowid IN ({numbers}) {order}"
        return self._rows(BugRow, query, *values, count, first)

    def solved(self, bug_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Bug id -> (repairs, graded attempts), of all groups that played the bug. Bugs without one are left
        out.
        """
        found: dict[str, tuple[int, int]] = {}
        for start in range(0, len(bug_ids), MOST_VALUES):
            some = bug_ids[start : start + MOST_VALUES]
            query = f"""SELECT bug_id, sum(passed), count(passed) FROM attempts
                WHERE bug_id IN ({", ".join("?" * len(some))}) AND passed IS NOT NULL GROUP BY bug_id"""
            with self.transaction():
                found |= {row[0]: (int(row[1]), int(row[2])) for row in self._db.execute(query, some)}
        return found

    def family(self, bug_id: str) -> list[BugRow]:
        """The bug with all its ancestors and descendants, in the order in which they were added."""
        query = f"""WITH RECURSIVE
            up(id) AS (SELECT ? UNION SELECT parent_bug_id FROM bugs JOIN up ON bug_id = id
                       WHERE parent_bug_id IS NOT NULL),
            down(id) AS (SELECT ? UNION SELECT bug_id FROM bugs JOIN down ON parent_bug_id = id)
            SELECT bugs.*, {PLAYS} FROM bugs WHERE bug_id IN (SELECT id FROM up UNION SELECT id FROM down)
            ORDER BY bugs.rowid"""
        return self._rows(BugRow, query, bug_id, bug_id)

    def bugs_of_episode(self, episode_id: str) -> list[BugRow]:
        """The bugs that this episode made: its artifact, or the failed repair that became one."""
        query = f"""SELECT bugs.*, {PLAYS} FROM bugs
            WHERE ("order" = 1 AND injector_episode_id = ?) OR parent_episode_id = ? ORDER BY bugs.rowid"""
        return self._rows(BugRow, query, episode_id, episode_id)

    def bug_with_digest(self, digest: str) -> BugRow | None:
        return self._row(BugRow, f"SELECT bugs.*, {PLAYS} FROM bugs WHERE tree_digest = ?", digest)

    def set_bug_status(self, bug_id: str, status: str) -> None:
        self._change("UPDATE bugs SET status = ? WHERE bug_id = ?", status, bug_id, what=f"bug {bug_id!r}")

    def set_solve_rate(self, bug_id: str, solve_rate: float | None, attempts: int, passes: int) -> None:
        """Record a measurement and make the bug `measured`.

        `first_solve_rate` keeps the first one that has a rate.
        """
        self._change(
            """UPDATE bugs SET solve_rate = ?, first_solve_rate = coalesce(first_solve_rate, ?), attempts = ?,
               passes = ?, status = 'measured' WHERE bug_id = ?""",
            solve_rate,
            solve_rate,
            attempts,
            passes,
            bug_id,
            what=f"bug {bug_id!r}",
        )

    # ---- updates and state

    def begin_update(self, update: int) -> None:
        """Record that the update has begun.

        A run that resumes after a kill repeats this call; it changes nothing.
        """
        self._write(
            'INSERT INTO updates ("update", begun_at) VALUES (?, ?) ON CONFLICT DO NOTHING',
            update,
            self._clock(),
        )

    def set_update_metrics(self, update: int, metrics_json: str) -> None:
        """Record what is known of an update before it is committed. A committed one is left as it is."""
        self._write(
            'UPDATE updates SET metrics_json = ? WHERE "update" = ? AND committed_at IS NULL',
            metrics_json,
            update,
        )

    def update(self, update: int) -> UpdateRow | None:
        """The row of an update that was begun."""
        return self._row(UpdateRow, 'SELECT * FROM updates WHERE "update" = ?', update)

    def commit_update(
        self, update: int, checkpoint: str, weight_version: int, carried_gradient: bool, metrics_json: str
    ) -> None:
        """Record the update's results. Raises StoreError if it was not begun, or is committed."""
        self._change(
            """UPDATE updates SET checkpoint = ?, weight_version = ?, carried_gradient = ?, metrics_json = ?,
               committed_at = ? WHERE "update" = ? AND committed_at IS NULL""",
            checkpoint,
            weight_version,
            int(carried_gradient),
            metrics_json,
            self._clock(),
            update,
            what=f"update {update} that was begun and not committed",
        )

    def last_update(self) -> int:
        """The number of the last committed update, 0 before the first."""
        return int(self._value('SELECT max("update") FROM updates WHERE committed_at IS NOT NULL') or 0)

    def last_checkpoint(self) -> str:
        """The checkpoint of the last committed update, "" before the first."""
        return str(
            self._value(
                'SELECT checkpoint FROM updates WHERE committed_at IS NOT NULL ORDER BY "update" DESC LIMIT 1'
            )
            or ""
        )

    def updates(self) -> list[UpdateRow]:
        return self._rows(UpdateRow, 'SELECT * FROM updates ORDER BY "update"')

    def state(self, key: str) -> str | None:
        value = self._value("SELECT value FROM state WHERE key = ?", key)
        return None if value is None else str(value)

    def set_state(self, key: str, value: str) -> None:
        self._write(
            """INSERT INTO state (key, value) VALUES (?, ?)
               ON CONFLICT (key) DO UPDATE SET value = excluded.value""",
            key,
            value,
        )

    def record_failure(self, update: int, phase: str, message: str) -> None:
        self._insert("failures", FailureRow(update, phase, message, self._clock()))

    def failures(self, update: int | None = None) -> list[FailureRow]:
        where, values = _where({'"update"': update})
        return self._rows(FailureRow, f"SELECT * FROM failures {where} ORDER BY rowid", *values)


def _where(conditions: Mapping[str, object]) -> tuple[str, list[object]]:
    """(the WHERE clause, its values) for the conditions that are not None; ("", []) without any."""
    given = {column: value for column, value in conditions.items() if value is not None}
    clause = " AND ".join(f"{column} = ?" for column in given)
    return (f"WHERE {clause}" if clause else "", list(given.values()))
