"""Pages of a long list of bugs, and the indexes that make them quick."""

import sqlite3

import pytest

from selfplay.curriculum import schema
from selfplay.curriculum.bug_filter import BugFilter
from selfplay.curriculum.rows import BUG_ORDERS
from selfplay.curriculum.store import Store
from store_rows import a_bug, a_group, an_episode

COUNT = 30


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "selfplay.db"
    with Store.open(path) as store, store.transaction():
        store.add_group(a_group())
        store.record_episode(an_episode(a_group()))
        for number in range(COUNT):
            rate = {"solve_rate": number % 4 / 4, "status": "measured"} if number % 3 else {}
            store.add_bug(
                a_bug(
                    f"bug-{number:02d}",
                    repository=f"r{number % 2}",
                    created_update=number // 4,
                    created_at=1000.0 + number,
                    attempt_patch="+it's “odd”\n" if number == 7 else "",
                    **rate,
                )
            )
    return path


@pytest.fixture
def store(path):
    with Store.open(path, writer=False) as opened:
        yield opened


def ids(bugs) -> list[str]:
    return [bug.bug_id for bug in bugs]


@pytest.mark.parametrize("sort", BUG_ORDERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_pages_joined_are_the_whole_list_from_both_ends(store, sort, reverse):
    whole = ids(store.bugs(order_by=sort))[:: -1 if reverse else 1]
    wanted = BugFilter(sort=sort, reverse=reverse)
    pages = [ids(store.bug_page(wanted, first, 7)) for first in range(0, COUNT, 7)]
    assert [name for page in pages for name in page] == whole
    assert ids(store.bug_page(wanted, 0, 5, backwards=True)) == whole[::-1][:5]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (
            BugFilter(repository="r1", status="fresh"),
            lambda bug: bug.repository == "r1" and bug.status == "fresh",
        ),
        (BugFilter(min_solve_rate=0.25, max_solve_rate=0.5), lambda bug: bug.solve_rate in (0.25, 0.5)),
        (BugFilter(since_update=5), lambda bug: bug.created_update >= 5),
        (BugFilter(since=1010.0), lambda bug: bug.created_at >= 1010.0),
        (BugFilter(text="it's “odd”"), lambda bug: bug.bug_id == "bug-07"),
        (BugFilter(text="-assert x == 1\n+pass"), lambda bug: True),
        (BugFilter(text="test_files"), lambda bug: False),
    ],
)
def test_a_filter_counts_and_pages_the_bugs_that_fit(store, wanted, fits):
    expected = [bug.bug_id for bug in store.bugs() if fits(bug)]
    assert ids(store.bug_page(wanted, 0, COUNT)) == expected
    assert store.count_bugs(wanted) == len(expected)


@pytest.mark.parametrize(
    "wanted",
    [
        BugFilter(),
        BugFilter(sort="status", reverse=True),
        BugFilter(status="measured", min_solve_rate=0.1, sort="solve_rate"),
        BugFilter(repository="r1", sort="order"),
    ],
)
def test_a_page_reads_no_row_that_it_does_not_show(store, wanted):
    where, values = wanted.where()
    query = f"EXPLAIN QUERY PLAN SELECT bugs.rowid FROM bugs {where} {wanted.order_by()} LIMIT 5"
    plan = [row[3] for row in store._db.execute(query, values)]
    assert not any(step.startswith("SCAN bugs") and "INDEX" not in step for step in plan), plan
    if not wanted.repository:
        assert any("COVERING INDEX" in step or "bugs_by_solve_rate" in step for step in plan), plan


def test_a_run_of_the_previous_schema_is_read_as_it_is_and_gets_the_indexes_from_a_writer(path, tmp_path):
    old = tmp_path / "selfplay.db"
    old.write_bytes(path.read_bytes())
    with sqlite3.connect(old) as database:
        for statement in schema.LISTING_INDEXES:
            database.execute(f"DROP INDEX {statement.split()[2]}")
        database.execute("DELETE FROM _sqlite_migrations WHERE name LIKE '0003%'")
    database.close()
    before = old.read_bytes()
    with Store.open(old, writer=False) as reader:
        assert reader._db.execute("PRAGMA database_list").fetchone()[2] == str(old), "not a copy in memory"
        assert len(reader.bug_page(BugFilter(sort="solve_rate"), 0, COUNT)) == COUNT
    assert old.read_bytes() == before
    with Store.open(old) as writer:
        assert "bugs_listed" in {index.name for index in writer._db["bugs"].indexes}
        assert schema.applied_versions(writer._db) == schema.known_versions()
