import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from selfplay.curriculum import schema
from selfplay.curriculum.rows import AttemptRow, EnvironmentRow, VerdictRow
from selfplay.curriculum.store import Store
from selfplay.errors import StoreError
from selfplay.verdicts.confirmation import Confirmation
from store_rows import INJECT, a_bug, a_group, an_episode, with_bug


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "selfplay.db") as opened:
        yield opened


def test_stored_rows_read_back_equal(store):
    bug = with_bug(store, created_at=5.0)
    assert bug == a_bug(created_at=5.0)
    assert store.groups() == [a_group()]
    assert store.episodes() == [an_episode(a_group())]


def test_a_member_is_recorded_once(store):
    group = a_group()
    store.add_group(group)
    assert store.record_episode(an_episode(group))
    assert not store.record_episode(an_episode(group, episode_id="another id", turns=9))
    assert [row.turns for row in store.episodes(group_id="g")] == [3]


def test_an_episode_of_an_unknown_group_is_refused(store):
    with pytest.raises(sqlite3.IntegrityError):
        store.record_episode(an_episode(a_group("nowhere")))


def test_episodes_come_in_the_order_of_members_not_of_completion(store):
    group = a_group()
    store.add_group(group)
    for member in (2, 0, 1):
        store.record_episode(an_episode(group, member))
    assert [row.member for row in store.episodes(group_id="g")] == [0, 1, 2]


def test_groups_are_found_by_update_role_and_status(store):
    store.add_group(a_group("a", update=1))
    store.add_group(a_group("b", update=2))
    store.set_group_status("b", "complete")
    assert [group.group_id for group in store.groups(update=1)] == ["a"]
    assert [group.group_id for group in store.groups(role="injector", status="complete")] == ["b"]
    assert store.groups(role="solver") == []


def test_a_tree_that_was_accepted_before_is_a_duplicate(store):
    with_bug(store)
    assert not store.add_bug(a_bug("other", tree_digest="tree of bug"))
    assert store.find_bug("other") is None
    assert store.add_bug(a_bug("third"))


def test_a_status_that_does_not_exist_is_refused(store):
    with_bug(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.set_bug_status("bug", "lost")


def test_a_bug_is_found_by_the_start_of_its_id(store):
    with_bug(store)
    store.add_bug(a_bug("bug2"))
    store.add_bug(a_bug("other"))
    assert store.bug("ot").bug_id == "other"
    assert store.bug("bug").bug_id == "bug"
    with pytest.raises(StoreError, match="2 bugs' ids begin with 'bu': bug, bug2"):
        store.bug("bu")
    with pytest.raises(StoreError, match="inspect-bugs"):
        store.bug("%")


def test_the_first_solve_rate_stays_when_a_bug_is_played_again(store):
    with_bug(store)
    store.set_solve_rate("bug", 0.5, 8, 4)
    store.set_solve_rate("bug", 0.75, 4, 3)
    bug = store.bug("bug")
    assert (bug.status, bug.solve_rate, bug.first_solve_rate, bug.attempts, bug.passes) == (
        "measured",
        0.75,
        0.5,
        4,
        3,
    )


def test_plays_count_the_groups_that_were_played_on_a_bug(store):
    with_bug(store)
    store.add_group(a_group("s1", "solver", "bug"))
    store.add_group(a_group("s2", "solver", "bug"))
    store.set_group_status("s1", "complete")
    assert store.bug("bug").plays == 1


def test_bugs_are_filtered_and_sorted(store):
    with_bug(store)
    store.add_bug(a_bug("second", order=2, parent_bug_id="bug", strategy="history"))
    store.set_solve_rate("second", 0.25, 4, 1)
    assert [bug.bug_id for bug in store.bugs(order=2)] == ["second"]
    assert [bug.bug_id for bug in store.bugs(status="fresh", strategy="removal")] == ["bug"]
    assert [bug.bug_id for bug in store.bugs(order_by="solve_rate")] == ["second", "bug"]
    with pytest.raises(StoreError, match="sorted by 'size'.*solve_rate"):
        store.bugs(order_by="size")


def test_a_second_order_bug_needs_a_parent(store):
    with_bug(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.add_bug(a_bug("orphan", order=2))


def test_a_verdict_is_kept_once_with_a_row_for_each_check(store):
    store.add_group(a_group())
    store.record_episode(an_episode(a_group()))
    checks = [
        {"name": "readable", "passed": True},
        {"name": "parser", "passed": False, "reason": "no JSON", "duration_s": 0.5},
    ]
    rejected = VerdictRow("g-m0", False, "parser", "no JSON", json.dumps({"checks": checks}), 1.0, 2, 1)
    assert store.record_verdict(rejected)
    assert not store.record_verdict(VerdictRow("g-m0", True, "", "", "[]", 1.0, 2, 1))
    verdict = store.verdict("g-m0")
    assert verdict is not None
    assert (verdict.accepted, verdict.failed_check, verdict.test_runs) == (False, "parser", 2)
    assert store.verdict("g-m1") is None
    assert [row.episode_id for row in store.verdicts(accepted=False)] == ["g-m0"]
    kept = sqlite3.connect(f"file:{store._path}?mode=ro", uri=True)
    assert kept.execute("SELECT name, passed, reason FROM checks ORDER BY place").fetchall() == [
        ("readable", 1, ""),
        ("parser", 0, "no JSON"),
    ]
    kept.close()


def test_attempts_distinguish_failed_from_spoiled_and_keep_their_confirmation(store):
    with_bug(store)
    group = a_group("s", "solver", "bug")
    store.add_group(group)
    values = {
        Confirmation.CONFIRMED: 1,
        Confirmation.NOT_CONFIRMED: 0,
        Confirmation.NOT_NEEDED: None,
        Confirmation.UNDISGUISED: 2,
        Confirmation.FORGED: 3,
        Confirmation.NOT_REPEATED: 4,
    }
    confirmations = tuple(Confirmation)
    grades = (True, False, None, True, False, False)
    for member, passed in enumerate(grades):
        store.record_episode(an_episode(group, member))
        confirmed = confirmations[member]
        attempt = AttemptRow(f"s-m{member}", "bug", passed, "why", ("t",), confirmed, (), "diff", 0.1)
        assert store.record_attempt(attempt)
    assert [attempt.passed for attempt in store.attempts("bug", group_id="s")] == [*grades]
    assert tuple(attempt.confirmed for attempt in store.attempts()) == confirmations
    kept = sqlite3.connect(f"file:{store._path}?mode=ro", uri=True)
    kept_values = kept.execute("SELECT confirmed FROM attempts ORDER BY rowid").fetchall()
    assert kept_values == [(values[found],) for found in confirmations]
    kept.close()
    assert store.attempt("s-m1").failed_tests == ("t",)
    assert store.attempts("bug", group_id="elsewhere") == []


def test_an_episode_cannot_be_consumed_by_two_updates(store):
    store.add_group(a_group())
    store.record_episode(an_episode(a_group()))
    store.begin_update(1)
    store.begin_update(2)
    store.consume("g-m0", 1, 0.5)
    store.consume("g-m0", 1, 0.5)
    with pytest.raises(StoreError, match="another update"):
        store.consume("g-m0", 2, 0.5)
    assert store.episodes(consumed_update=1)[0].advantage == 0.5


def test_a_masked_episode_stays_masked_and_keeps_its_note(store):
    store.add_group(a_group())
    store.record_episode(an_episode(a_group(), masked=True, note="no sandbox"))
    store.set_reward("g-m0", None, "", masked=False)
    row = store.episode("g-m0")
    assert row.masked
    assert row.note == "no sandbox"


def test_a_reward_for_an_unknown_episode_is_an_error(store):
    with pytest.raises(StoreError, match="no episode 'x'"):
        store.set_reward("x", 1.0, "")


def test_only_a_committed_update_counts(store):
    assert (store.last_update(), store.last_checkpoint()) == (0, "")
    store.begin_update(1)
    store.begin_update(1)
    assert store.last_update() == 0
    store.commit_update(1, "update-00001", 1, True, "{}")
    store.begin_update(2)
    assert (store.last_update(), store.last_checkpoint()) == (1, "update-00001")
    with pytest.raises(StoreError, match="update 1 that was begun"):
        store.commit_update(1, "again", 1, True, "{}")


def test_a_failed_transaction_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.transaction():
        store.add_group(a_group())
        store.set_state("key", "value")
        raise RuntimeError
    assert store.groups() == []
    assert store.state("key") is None


def test_an_inner_transaction_that_fails_takes_back_its_own_part_alone(store):
    with store.transaction():
        store.set_state("outer", "kept")
        with pytest.raises(RuntimeError), store.transaction():
            store.set_state("inner", "gone")
            raise RuntimeError
    assert store.state("outer") == "kept"
    assert store.state("inner") is None


def test_text_that_is_not_utf8_reads_back_equal(store):
    bug = with_bug(store, failure="lone \ud800 and \0 and \x1b[31m")
    assert bug.failure == "lone \ud800 and \0 and \x1b[31m"
    store.record_failure(1, "playing", "\udcff")
    assert store.failures()[0].message == "\udcff"


def test_threads_share_one_store(store):
    group = a_group(size=40)
    store.add_group(group)
    errors = []

    def record(first: int) -> None:
        try:
            for member in range(first, 40, 4):
                with store.transaction():
                    store.record_episode(an_episode(group, member))
                    store.set_reward(f"g-m{member}", 1.0, "")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=record, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [row.reward for row in store.episodes()] == [1.0] * 40


def test_a_second_writer_gets_an_error_that_names_the_first(tmp_path, store):
    with pytest.raises(StoreError, match=f"process {os.getpid()}"):
        Store.open(tmp_path / "selfplay.db")


def test_a_closed_store_can_be_written_by_the_next(tmp_path):
    Store.open(tmp_path / "selfplay.db").close()
    Store.open(tmp_path / "selfplay.db").close()


def test_a_reader_sees_commits_and_cannot_write(tmp_path, store):
    with Store.open(tmp_path / "selfplay.db", writer=False) as reader:
        store.add_group(a_group())
        assert len(reader.groups()) == 1
        with pytest.raises(StoreError, match="writer"):
            reader.add_group(a_group("h"))


def test_a_reader_of_a_read_only_folder_reads(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("needs a user other than root, whom folder permissions bind; run the suite as one")
    with Store.open(tmp_path / "selfplay.db") as writer:
        writer.add_group(a_group())
    tmp_path.chmod(0o500)
    try:
        with Store.open(tmp_path / "selfplay.db", writer=False) as reader:
            assert len(reader.groups()) == 1
    finally:
        tmp_path.chmod(0o700)


def test_a_missing_database_is_an_error_for_readers(tmp_path):
    with pytest.raises(StoreError, match="no database at .*selfplay train"):
        Store.open(tmp_path / "selfplay.db", writer=False)


@pytest.mark.parametrize("writer", [True, False])
def test_a_corrupt_file_is_named_with_a_way_to_salvage_it(tmp_path, writer):
    path = tmp_path / "selfplay.db"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(StoreError, match="damaged.*recover"):
        Store.open(path, writer=writer)


def test_a_damaged_page_is_found_when_a_writer_opens(tmp_path):
    path = tmp_path / "selfplay.db"
    with Store.open(path) as store:
        for number in range(200):
            store.add_group(a_group(f"group {number}"))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(path)


@pytest.mark.parametrize("writer", [True, False])
def test_someone_elses_database_is_refused(tmp_path, writer):
    other = sqlite3.connect(tmp_path / "selfplay.db")
    other.execute("CREATE TABLE places (name)")
    other.close()
    with pytest.raises(StoreError, match="not a database of selfplay"):
        Store.open(tmp_path / "selfplay.db", writer=writer)


@pytest.mark.parametrize("writer", [True, False])
def test_a_database_newer_than_this_code_names_both_versions(tmp_path, writer):
    path = tmp_path / "selfplay.db"
    with Store.open(path) as store:
        store._db["_sqlite_migrations"].insert(
            {"id": 99, "migration_set": "selfplay", "name": "0099 from the future", "applied_at": "now"}
        )
    with pytest.raises(
        StoreError, match="0099 from the future.*newer than this code's '0003.*Use the selfplay that wrote it"
    ):
        Store.open(path, writer=writer)


def test_a_writer_migrates_an_older_database_and_a_reader_reads_it_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "selfplay.db"
    with Store.open(path) as store:
        store.add_group(a_group())
    later = schema.Migrations("selfplay")
    later._migrations = list(schema.migrations._migrations)

    @later(name="0099 another table")
    def _another(db):
        db.execute("CREATE TABLE another (name TEXT)")

    monkeypatch.setattr(schema, "migrations", later)
    before = path.read_bytes()
    with Store.open(path, writer=False) as reader:
        assert "another" in reader._db.table_names()
        assert len(reader.groups()) == 1
    assert path.read_bytes() == before
    with Store.open(path) as store:
        assert schema.applied_versions(store._db)[-1] == "0099 another table"


def test_a_migration_that_fails_leaves_no_half_of_itself(tmp_path, monkeypatch):
    path = tmp_path / "selfplay.db"
    Store.open(path).close()
    later = schema.Migrations("selfplay")
    later._migrations = list(schema.migrations._migrations)

    @later(name="0099 broken")
    def _broken(db):
        db.execute("CREATE TABLE half (name TEXT)")
        db.execute("CREATE TABLE half (name TEXT)")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", later)
        with pytest.raises(StoreError, match="half"):
            Store.open(path)
    with Store.open(path) as store:
        assert "half" not in store._db.table_names()


KILLED = """
import os, signal, sys
from pathlib import Path
from selfplay.curriculum.rows import GroupRow
from selfplay.curriculum.store import Store
store = Store.open(Path(sys.argv[1]))
store.add_group(GroupRow("committed", 1, "injector", "toolz", "removal", "", "", 4))
with store.transaction():
    store.add_group(GroupRow("torn", 1, "injector", "toolz", "removal", "", "", 4))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_what_it_committed_and_no_lock(tmp_path):
    path = tmp_path / "selfplay.db"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    with Store.open(path) as store:
        assert [group.group_id for group in store.groups()] == ["committed"]


def test_an_environment_is_recorded_by_its_latest_preparation(store):
    store.record_environment(EnvironmentRow("toolz", "", "", "", 0, (), "failed", "no tests", "log"))
    store.record_environment(EnvironmentRow("toolz", "c" * 40, "key", "BSD", 12, ("t",), "ready"))
    (row,) = store.environments()
    assert (row.status, row.tests, row.excluded, row.reason) == ("ready", 12, ("t",), "")


def test_a_task_record_repairs_what_the_bug_broke(store):
    bug = with_bug(store)
    record = bug.task_record()
    assert "-x = 2\n+x = 1\n" in record["patch"]
    assert "-pass\n+assert x == 1\n" in record["test_patch"]
    assert record["FAIL_TO_PASS"] == ["test_m.py::test_x"]
    assert record["instance_id"] == "toolz__bug"
    json.dumps(record)


def test_a_second_order_task_is_repaired_in_two_steps():
    attempt = INJECT.replace("-x = 1\n+x = 2", "-x = 2\n+x = 3")
    patch = a_bug(order=2, attempt_patch=attempt).task_record()["patch"]
    assert patch.index("-x = 3\n+x = 2\n") < patch.index("-x = 2\n+x = 1\n")
