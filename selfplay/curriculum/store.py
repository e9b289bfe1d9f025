"""The run's database: groups, episodes, verdicts, bugs, attempts, updates. What a row means is decided elsewhere; files stay outside.

Invariant: one writer at a time, and a method (or a `transaction()`) is in the database as a whole and synced, or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from selfplay.curriculum import rows, schema
from selfplay.curriculum.rows import (
    AttemptRow,
    BugRow,
    EnvironmentRow,
    EpisodeRow,
    FailureRow,
    GroupRow,
    UpdateRow,
    VerdictRow,
)
from selfplay.errors import StoreError

__all__ = [
    "AttemptRow",
    "BugRow",
    "EnvironmentRow",
    "EpisodeRow",
    "FailureRow",
    "GroupRow",
    "Store",
    "UpdateRow",
    "VerdictRow",
]

Row = TypeVar("Row")

BUG_ORDERS = {
    "created": "created_update, bugs.rowid",
    "repository": "repository, created_update, bugs.rowid",
    "strategy": "strategy, created_update, bugs.rowid",
    "order": '"order", created_update, bugs.rowid',
    "status": "status, created_update, bugs.rowid",
    "solve_rate": "solve_rate IS NULL, solve_rate, created_update, bugs.rowid",
}
PLAYS = "(SELECT count(*) FROM groups WHERE groups.bug_id = bugs.bug_id AND groups.status != 'open') AS plays"


class Store:
    """One connection, shared by threads under a lock. Readers get the state of the last commit and cannot write."""

    def __init__(self, db: Database, path: Path, lock_file: int | None, clock: Callable[[], float]) -> None:
        self._db = db
        self._path = path
        self._lock_file = lock_file
        self._clock = clock
        self._lock = threading.RLock()

    # -- opening and closing -----------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, writer: bool = True, clock: Callable[[], float] = time.time) -> Store:
        """Open, and for a writer create or bring up to date.

        Raises StoreError: corrupt, not ours, newer than this code, held by another writer, or (readers) missing.
        """
        path = Path(path)
        if not writer and not path.is_file():
            raise StoreError(
                f"there is no database at {path}. `selfplay train --repos list.txt` starts a run, which makes one."
            )
        lock_file = _lock(path) if writer else None
        connection: sqlite3.Connection | None = None
        try:
            connection = _connect(path) if writer else _connect_reader(path)
            db = Database(connection)
            _check(db, path, writer)
            if writer:
                schema.migrations.apply(db)
            elif schema.applied_versions(db) != schema.known_versions():
                db = _migrated_copy(connection)
                connection.close()
        except (sqlite3.Error, StoreError) as error:
            if connection is not None:
                connection.close()
            if lock_file is not None:
                os.close(lock_file)
            if isinstance(error, StoreError):
                raise
            raise _explained(error, path) from error
        return cls(db, path, lock_file, clock)

    def close(self) -> None:
        with self._lock:
            self._db.conn.close()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block, or nothing of it. Nests: an inner block that fails takes back its own part alone."""
        with self._lock:
            try:
                with self._db.atomic():
                    yield
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise _explained(error, self._path) from error

    # -- environments ------------------------------------------------------------------------------------------------

    def record_environment(
        self,
        name: str,
        base_commit: str,
        environment_key: str,
        licence: str,
        tests: int,
        excluded: Sequence[str],
        status: str,
        reason: str = "",
        log: str = "",
    ) -> None:
        """The latest preparation of a repository replaces what was known of it."""
        row = EnvironmentRow(
            name, base_commit, environment_key, licence, tests, tuple(excluded), status, reason, log
        )
        with self.transaction():
            self._write("DELETE FROM environments WHERE name = ?", name)
            self._insert("environments", row)

    def environments(self) -> list[EnvironmentRow]:
        return self._rows(EnvironmentRow, "SELECT * FROM environments ORDER BY name")

    # -- groups and episodes -----------------------------------------------------------------------------------------

    def add_group(self, group: GroupRow) -> bool:
        return self._insert("groups", group)

    def groups(
        self, update: int | None = None, role: str | None = None, status: str | None = None
    ) -> list[GroupRow]:
        """In the order they were added."""
        where, values = _where({'"update"': update, "role": role, "status": status})
        return self._rows(GroupRow, f"SELECT * FROM groups {where} ORDER BY rowid", *values)

    def set_group_status(self, group_id: str, status: str) -> None:
        self._change(
            "UPDATE groups SET status = ? WHERE group_id = ?", status, group_id, what=f"group {group_id!r}"
        )

    def record_episode(self, row: EpisodeRow) -> bool:
        """False, changing nothing, when the member (or the id) was recorded before."""
        return self._insert("episodes", row)

    def episodes(
        self,
        group_id: str | None = None,
        update: int | None = None,
        role: str | None = None,
        repository: str | None = None,
        bug_id: str | None = None,
        finish: str | None = None,
        consumed_update: int | None = None,
    ) -> list[EpisodeRow]:
        """In the order of update, group and member, whatever order they ended in."""
        where, values = _where(
            {
                "episodes.group_id": group_id,
                'episodes."update"': update,
                "episodes.role": role,
                "episodes.repository": repository,
                "episodes.bug_id": bug_id,
                "finish": finish,
                "consumed_update": consumed_update,
            }
        )
        order = 'episodes."update", groups.rowid, member'
        query = f"SELECT episodes.* FROM episodes JOIN groups USING (group_id) {where} ORDER BY {order}"
        return self._rows(EpisodeRow, query, *values)

    def episode(self, episode_id: str) -> EpisodeRow | None:
        return self._row(EpisodeRow, "SELECT * FROM episodes WHERE episode_id = ?", episode_id)

    def set_reward(self, episode_id: str, reward: float | None, note: str, masked: bool = False) -> None:
        """A masked episode stays masked; an empty note keeps the one that is there."""
        self._change(
            "UPDATE episodes SET reward = ?, note = coalesce(nullif(?, ''), note), masked = max(masked, ?) WHERE episode_id = ?",
            reward,
            note,
            int(masked),
            episode_id,
            what=f"episode {episode_id!r}",
        )

    def consume(self, episode_id: str, update: int, advantage: float) -> None:
        """Raises StoreError when another update trained on the episode before: nothing counts twice."""
        self._change(
            "UPDATE episodes SET consumed_update = ?, advantage = ? WHERE episode_id = ? AND coalesce(consumed_update, ?) = ?",
            update,
            advantage,
            episode_id,
            update,
            update,
            what=f"episode {episode_id!r} not consumed by another update",
        )

    # -- verdicts and attempts ---------------------------------------------------------------------------------------

    def record_verdict(
        self,
        episode_id: str,
        accepted: bool,
        failed_check: str,
        reason: str,
        checks_json: str,
        duration_s: float,
        test_runs: int,
        cached_runs: int,
    ) -> bool:
        """False when the episode has a verdict. checks_json: a verdict's JSON form, or the list of its checks."""
        row = VerdictRow(
            episode_id, accepted, failed_check, reason, checks_json, duration_s, test_runs, cached_runs
        )
        parsed = json.loads(checks_json)
        with self.transaction():
            if not self._insert("verdicts", row):
                return False
            for place, check in enumerate(parsed["checks"] if isinstance(parsed, Mapping) else parsed):
                self._write(
                    "INSERT INTO checks (episode_id, place, name, passed, reason, duration_s) VALUES (?, ?, ?, ?, ?, ?)",
                    episode_id,
                    place,
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

    def record_attempt(
        self,
        episode_id: str,
        bug_id: str,
        passed: bool | None,
        reason: str,
        failed_tests: Sequence[str],
        confirmed: bool | None,
        restored: Sequence[str],
        patch: str,
        duration_s: float,
    ) -> bool:
        """False when the episode's attempt was recorded before."""
        row = AttemptRow(
            episode_id,
            bug_id,
            passed,
            reason,
            tuple(failed_tests),
            confirmed,
            tuple(restored),
            patch,
            duration_s,
        )
        return self._insert("attempts", row)

    def attempt(self, episode_id: str) -> AttemptRow | None:
        return self._row(AttemptRow, "SELECT * FROM attempts WHERE episode_id = ?", episode_id)

    def attempts(self, bug_id: str | None = None, group_id: str | None = None) -> list[AttemptRow]:
        """In the order of update, group and member."""
        where, values = _where({"attempts.bug_id": bug_id, "group_id": group_id})
        query = f"""SELECT attempts.* FROM attempts JOIN episodes USING (episode_id) JOIN groups USING (group_id)
            {where} ORDER BY episodes."update", groups.rowid, member"""
        return self._rows(AttemptRow, query, *values)

    # -- bugs --------------------------------------------------------------------------------------------------------

    def add_bug(self, bug: BugRow) -> bool:
        """False when this bug, or one with the same tree, was accepted before."""
        if not bug.created_at:
            bug = replace(bug, created_at=self._clock())
        return self._insert("bugs", bug)

    def find_bug(self, bug_id: str) -> BugRow | None:
        return self._row(BugRow, f"SELECT bugs.*, {PLAYS} FROM bugs WHERE bug_id = ?", bug_id)

    def bug(self, bug_id: str) -> BugRow:
        """By its id or the start of it. Raises StoreError when none or several begin so."""
        if (exact := self.find_bug(bug_id)) is not None:
            return exact
        found = self._rows(
            BugRow,
            f"SELECT bugs.*, {PLAYS} FROM bugs WHERE substr(bug_id, 1, ?) = ? ORDER BY rowid",
            len(bug_id),
            bug_id,
        )
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(
                f"no bug's id begins with {bug_id!r} in {self._path}. `selfplay inspect-bugs` lists them."
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
        if order_by not in BUG_ORDERS:
            raise StoreError(
                f"bugs cannot be sorted by {order_by!r}. Choose one of: {', '.join(BUG_ORDERS)}."
            )
        where, values = _where(
            {"status": status, "repository": repository, '"order"': order, "strategy": strategy}
        )
        return self._rows(
            BugRow, f"SELECT bugs.*, {PLAYS} FROM bugs {where} ORDER BY {BUG_ORDERS[order_by]}", *values
        )

    def set_bug_status(self, bug_id: str, status: str) -> None:
        self._change("UPDATE bugs SET status = ? WHERE bug_id = ?", status, bug_id, what=f"bug {bug_id!r}")

    def set_solve_rate(self, bug_id: str, solve_rate: float | None, attempts: int, passes: int) -> None:
        """The latest measurement; the first one with a rate is kept beside it. The bug is `measured` from now on."""
        self._change(
            """UPDATE bugs SET solve_rate = ?, first_solve_rate = coalesce(first_solve_rate, ?), attempts = ?, passes = ?,
               status = 'measured' WHERE bug_id = ?""",
            solve_rate,
            solve_rate,
            attempts,
            passes,
            bug_id,
            what=f"bug {bug_id!r}",
        )

    def task_record(self, bug: BugRow) -> dict[str, Any]:
        return rows.task_record(bug)

    # -- updates and state -------------------------------------------------------------------------------------------

    def begin_update(self, update: int) -> None:
        """Repeating it, after a kill, changes nothing."""
        self._write(
            'INSERT INTO updates ("update", begun_at) VALUES (?, ?) ON CONFLICT DO NOTHING',
            update,
            self._clock(),
        )

    def commit_update(
        self, update: int, checkpoint: str, weight_version: int, carried_gradient: bool, metrics_json: str
    ) -> None:
        self._change(
            """UPDATE updates SET checkpoint = ?, weight_version = ?, carried_gradient = ?, metrics_json = ?, committed_at = ?
               WHERE "update" = ? AND committed_at IS NULL""",
            checkpoint,
            weight_version,
            int(carried_gradient),
            metrics_json,
            self._clock(),
            update,
            what=f"update {update} that was begun and not committed",
        )

    def last_update(self) -> int:
        """The last committed update, 0 before the first."""
        return int(self._value('SELECT max("update") FROM updates WHERE committed_at IS NOT NULL') or 0)

    def last_checkpoint(self) -> str:
        """The checkpoint that the last committed update named, "" before the first."""
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
            "INSERT INTO state (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            key,
            value,
        )

    def record_failure(self, update: int, phase: str, message: str) -> None:
        self._insert("failures", FailureRow(update, phase, message, self._clock()))

    def failures(self, update: int | None = None) -> list[FailureRow]:
        where, values = _where({'"update"': update})
        return self._rows(FailureRow, f"SELECT * FROM failures {where} ORDER BY rowid", *values)

    # -- the few ways to the database --------------------------------------------------------------------------------

    def _write(self, sql: str, *values: object) -> int:
        with self.transaction():
            return int(self._db.execute(sql, [rows.plain(value) for value in values]).rowcount)

    def _change(self, sql: str, *values: object, what: str) -> None:
        """An UPDATE that must find its row."""
        if self._write(sql, *values) != 1:
            raise StoreError(f"there is no {what} in {self._path}.")

    def _insert(self, table: str, row: Any) -> bool:
        values = rows.stored(row)
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        # Only a taken key is let pass; a broken reference or a forbidden value still raises.
        sql = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        return self._write(sql, *values.values()) == 1

    def _rows(self, kind: type[Row], sql: str, *values: object) -> list[Row]:
        with self.transaction():
            return [rows.read(kind, found) for found in self._db.query(sql, values)]

    def _row(self, kind: type[Row], sql: str, *values: object) -> Row | None:
        found = self._rows(kind, sql, *values)
        return found[0] if found else None

    def _value(self, sql: str, *values: object) -> Any:
        with self.transaction():
            found = self._db.execute(sql, values).fetchone()
            return found[0] if found else None


def _where(conditions: Mapping[str, object]) -> tuple[str, list[object]]:
    given = {column: value for column, value in conditions.items() if value is not None}
    clause = " AND ".join(f"{column} = ?" for column in given)
    return (f"WHERE {clause}" if clause else "", list(given.values()))


def _lock(path: Path) -> int:
    """The right to write: a lock file beside the database, released by the kernel however the process ends."""
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"cannot write beside the database {path}: {error}. Free space there, or set run.folder."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(
            f"{path} is in use by another writer, process {holder}. Wait until it ends, or stop it with: kill {holder}"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
    connection.execute("PRAGMA journal_mode = WAL")
    # Every commit is synced: an accepted bug or a finished episode is worth more than the milliseconds.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    """Read-only. On a medium that cannot be written, where SQLite cannot make its shared index, the file as it stands."""
    address = path.absolute().as_uri()
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True, check_same_thread=False, timeout=30.0)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(f"{path.name}-wal").exists():
            raise
        connection = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    return connection


def _check(db: Database, path: Path, writer: bool) -> None:
    if writer and (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise StoreError(f"{path} is damaged: {problem}. {_SALVAGE.format(path=path)}")
    applied, known = schema.applied_versions(db), schema.known_versions()
    if unknown := [version for version in applied if version not in known]:
        raise StoreError(
            f"{path} has version {unknown[-1]!r}, newer than this code's {known[-1]!r}. Use the selfplay that wrote it, or a newer one."
        )
    if not applied and (db.table_names() or not writer):
        raise StoreError(f"{path} is not a database of selfplay. Give the selfplay.db of a run folder.")


def _migrated_copy(connection: sqlite3.Connection) -> Database:
    """An older database as this code reads it, in memory: readers leave the file as it is."""
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    connection.backup(copy)
    db = Database(copy)
    schema.migrations.apply(db)
    return db


_SALVAGE = "Restore a copy, or salvage it with: sqlite3 {path} .recover | sqlite3 mended.db"


def _explained(error: sqlite3.Error, path: Path) -> StoreError:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{path} is damaged: {text}. {_SALVAGE.format(path=path)}")
    if "readonly" in text:
        return StoreError(
            f"{path} cannot be written: {text}. Open it as a writer, and see that the file and its folder are writable."
        )
    if "full" in text:
        return StoreError(
            f"{path} cannot grow: {text}. Free space there; nothing that was committed is lost."
        )
    return StoreError(f"{path}: {text}. `selfplay doctor` says whether disk and memory are well.")
