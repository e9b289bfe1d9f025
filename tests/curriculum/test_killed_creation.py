"""A kill while a run's database is made: a writer goes on with what is there, a reader sees no rows."""

import fcntl
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from selfplay.curriculum import schema
from selfplay.curriculum.store import Store
from selfplay.errors import StoreError
from store_rows import a_group

# Opens a database and is killed at statement 1, 2, 3, … of it, each time in a new folder and a new process,
# until an opening ends before its kill. Prints the number of kills.
KILLED_AT_EACH_STATEMENT = """
import os, signal, sys
from pathlib import Path
from selfplay.curriculum import database
from selfplay.curriculum.store import Store

def open_and_die(path, number):
    connect, seen = database.connect, 0
    def count(statement):
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
    def traced(path):
        connection = connect(path)
        connection.set_trace_callback(count)
        return connection
    database.connect = traced
    Store.open(path).close()

for number in range(1, 1000):
    child = os.fork()
    if child == 0:
        open_and_die(Path(sys.argv[1], str(number), "selfplay.db"), number)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(number - 1)
"""


def is_usable(path: Path) -> bool:
    """A reader and a writer open it, a group can be stored, and its tables are those of a new database."""
    with Store.open(path, writer=False) as reader:
        assert reader.groups() == []
    with Store.open(path) as store:
        assert schema.applied_versions(store._db) == schema.known_versions()
        store.add_group(a_group())
        return len(store.groups()) == 1


def half_made(path: Path, *statements: str) -> Path:
    """A file on which these statements were executed and nothing more."""
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


TABLE = (
    "CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT, applied_at TEXT)"
)


@pytest.mark.parametrize(
    "statements",
    [(), ("PRAGMA journal_mode = WAL",), (TABLE,)],
    ids=["an empty file", "no table", "the table of migrations"],
)
def test_a_database_that_a_kill_left_half_made_is_usable(tmp_path, statements):
    path = half_made(tmp_path / "selfplay.db", *statements)
    path.touch()
    assert is_usable(path)


def test_a_half_made_database_gets_the_same_tables_as_a_new_one(tmp_path):
    def tables(path: Path) -> list[tuple[str, str]]:
        with Store.open(path) as store:
            return list(store._db.execute("SELECT type, sql FROM sqlite_master ORDER BY name"))

    half = half_made(tmp_path / "half.db", TABLE)
    Store.open(half).close()
    Store.open(tmp_path / "new.db").close()
    assert tables(half) == tables(tmp_path / "new.db")


def test_a_kill_at_any_statement_of_an_opening_leaves_a_usable_database(tmp_path):
    program = [sys.executable, "-c", KILLED_AT_EACH_STATEMENT, str(tmp_path)]
    ended = subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    kills = int(ended.stdout)
    assert kills > 20
    for number in range(1, kills + 1):
        assert is_usable(tmp_path / str(number) / "selfplay.db"), number


def test_a_run_that_ended_before_its_database_says_how_to_continue_it(tmp_path):
    with pytest.raises(StoreError, match=f"--resume {tmp_path}$"):
        Store.open(tmp_path / "selfplay.db", writer=False)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_lock_without_the_pid_of_its_holder_names_no_process(tmp_path, is_first):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = tmp_path / "selfplay.db.lock"
    lock.write_text("" if is_first else f"{ended.pid}\n")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another writer, which has just started") as caught:
            Store.open(tmp_path / "selfplay.db")
    assert "kill" not in str(caught.value)


@pytest.mark.parametrize("writer", [True, False])
def test_migrations_of_another_program_are_still_refused(tmp_path, writer):
    path = half_made(
        tmp_path / "selfplay.db", TABLE, "INSERT INTO _sqlite_migrations VALUES (1, 'theirs', '0001', 'now')"
    )
    with pytest.raises(StoreError, match="not a database of selfplay"):
        Store.open(path, writer=writer)
