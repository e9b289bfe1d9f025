"""The SQLite file of a run: opening, locking, checking, transactions.

The queries are in store.py, the tables in schema.py.

Invariants:
- One writer at a time. A second writer would break the order of commits that recovery relies on.
- A transaction is in the file completely and synced, or not at all.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlite_utils import Database

from selfplay.curriculum import rows, schema
from selfplay.errors import StoreError

Row = TypeVar("Row")

SALVAGE = "Restore a copy, or salvage it with: sqlite3 {path} .recover | sqlite3 salvaged.db"


class RunDatabase:
    """One connection, which threads share under a lock. A reader sees the last commit and cannot write."""

    def __init__(self, db: Database, path: Path, lock_file: int | None, clock: Callable[[], float]) -> None:
        self._db = db
        self._path = path
        self._lock_file = lock_file
        self._clock = clock
        self._lock = threading.RLock()

    # ---- opening and closing

    @classmethod
    def open(cls, path: Path, writer: bool = True, clock: Callable[[], float] = time.time) -> Self:
        """Open the database. A writer creates a missing file and applies new migrations.

        clock: seconds since 1970, for the times that rows carry.
        Raises StoreError if the file is corrupt, is not a database of selfplay, is newer than this code, or
        has another writer. A reader also gets it if the file is missing. A file that a kill left without
        tables is a run without rows.
        """
        path = Path(path)
        if not writer and not path.is_file():
            raise StoreError(
                f"there is no database at {path}: the run ended before it made one. "
                f"Continue it with: selfplay train --resume {path.parent}"
            )
        lock_file = lock(path) if writer else None
        connection: sqlite3.Connection | None = None
        try:
            connection = connect(path) if writer else connect_reader(path)
            db = Database(connection)
            check(db, path, writer)
            if writer:
                schema.apply(db)
            elif not schema.is_readable(schema.applied_versions(db)):
                db = migrated_copy(connection)
                connection.close()
        except (sqlite3.Error, StoreError) as error:
            if connection is not None:
                connection.close()
            if lock_file is not None:
                os.close(lock_file)
            if isinstance(error, StoreError):
                raise
            raise explained(error, path) from error
        return cls(db, path, lock_file, clock)

    def close(self) -> None:
        with self._lock:
            self._db.conn.close()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- transactions and statements

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit the whole block, or nothing of it.

        Blocks nest: an inner one that fails undoes only its own part.
        """
        with self._lock:
            try:
                with self._db.atomic():
                    yield
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise explained(error, self._path) from error

    def _write(self, sql: str, *values: object) -> int:
        """Run a statement that writes. Returns the number of rows that it changed."""
        with self.transaction():
            return int(self._db.execute(sql, [rows.plain(value) for value in values]).rowcount)

    def _change(self, sql: str, *values: object, what: str) -> None:
        """Run an UPDATE of exactly one row.

        Raises StoreError, which names `what`, if there is no such row.
        """
        if self._write(sql, *values) != 1:
            raise StoreError(f"there is no {what} in {self._path}.")

    def _insert(self, table: str, row: Any) -> bool:
        """Add a row. Returns False if its key is taken."""
        values = rows.stored(row)
        columns = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        # Only a taken key is ignored: a broken reference or a forbidden value still raises.
        sql = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        return self._write(sql, *values.values()) == 1

    def _rows(self, kind: type[Row], sql: str, *values: object) -> list[Row]:
        with self.transaction():
            return [rows.read(kind, found) for found in self._db.query(sql, values)]

    def _row(self, kind: type[Row], sql: str, *values: object) -> Row | None:
        found = self._rows(kind, sql, *values)
        return found[0] if found else None

    def _value(self, sql: str, *values: object) -> Any:
        """The first column of the first row, None if there is none."""
        with self.transaction():
            found = self._db.execute(sql, values).fetchone()
            return found[0] if found else None


def lock(path: Path) -> int:
    """Take the right to write: a lock on a file beside the database.

    The kernel releases it however the process ends.

    Returns the descriptor of the lock file. Raises StoreError if another process holds the lock.
    """
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
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        # A writer that has just taken the lock has not written its pid yet. A killed one left its own.
        if not holder.isdigit() or not Path(f"/proc/{holder}").exists():
            raise StoreError(
                f"{path} is in use by another writer, which has just started. Wait until it ends."
            ) from error
        raise StoreError(
            f"{path} is in use by another writer, process {holder}. "
            f"Wait until it ends, or stop it with: kill {holder}"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def is_being_written(path: Path) -> bool:
    """True if a process holds the right to write the database: its run is being played."""
    try:
        with path.with_name(f"{path.name}.lock").open("rb") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
    connection.execute("PRAGMA journal_mode = WAL")
    # Sync every commit: an accepted bug or a finished episode is worth more than the milliseconds.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Connect without the right to write.

    On a read-only medium SQLite cannot make its shared index. There the file is read as it stands.
    """
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


def check(db: Database, path: Path, writer: bool) -> None:
    """Raise StoreError if the file is damaged, is newer than this code, or is not a database of selfplay."""
    if writer and (problem := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise StoreError(f"{path} is damaged: {problem}. {SALVAGE.format(path=path)}")
    applied, known = schema.applied_versions(db), schema.known_versions()
    if unknown := [version for version in applied if version not in known]:
        raise StoreError(
            f"{path} has version {unknown[-1]!r}, newer than this code's {known[-1]!r}. "
            "Use the selfplay that wrote it, or a newer one."
        )
    # A kill can end a start between the file's creation and its first transaction. Such a file is empty.
    if not applied and not schema.is_empty(db):
        raise StoreError(f"{path} is not a database of selfplay. Give the selfplay.db of a run folder.")


def migrated_copy(connection: sqlite3.Connection) -> Database:
    """A copy of an older database in memory, with all migrations applied. Readers leave the file as it is."""
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    connection.backup(copy)
    db = Database(copy)
    schema.apply(db)
    return db


def explained(error: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error with the file's name and the remedy."""
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{path} is damaged: {text}. {SALVAGE.format(path=path)}")
    if "readonly" in text:
        return StoreError(
            f"{path} cannot be written: {text}. "
            "Open it as a writer, and check that the file and its folder are writable."
        )
    if "full" in text:
        return StoreError(
            f"{path} cannot grow: {text}. Free space there; nothing that was committed is lost."
        )
    return StoreError(f"{path}: {text}. `selfplay doctor` checks disk and memory.")
