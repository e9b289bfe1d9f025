"""The tables of the curriculum, as numbered migrations.

All migrations that a database lacks run in one transaction with the rows that record them: a kill leaves the
old version or the new one.
Invariant: a released migration never changes, since existing databases have applied it. A change is a new
function at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from selfplay.curriculum.rows import BUG_STATUSES, GROUP_STATUSES

migrations = Migrations("selfplay")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"CHECK ({column} IN ({', '.join(repr(value) for value in values)}))"


FIRST_SCHEMA = (
    """CREATE TABLE environments (
        name TEXT PRIMARY KEY, base_commit TEXT NOT NULL, environment_key TEXT NOT NULL,
        licence TEXT NOT NULL, tests INTEGER NOT NULL, excluded TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('ready', 'failed')),
        reason TEXT NOT NULL, log TEXT NOT NULL)""",
    """CREATE TABLE updates (
        "update" INTEGER PRIMARY KEY, checkpoint TEXT NOT NULL DEFAULT '',
        weight_version INTEGER NOT NULL DEFAULT 0, carried_gradient INTEGER NOT NULL DEFAULT 0,
        metrics_json TEXT NOT NULL DEFAULT '{}', begun_at REAL NOT NULL, committed_at REAL)""",
    f"""CREATE TABLE groups (
        group_id TEXT PRIMARY KEY, "update" INTEGER NOT NULL,
        role TEXT NOT NULL CHECK (role IN ('injector', 'solver')),
        repository TEXT NOT NULL, strategy TEXT NOT NULL, target_json TEXT NOT NULL,
        bug_id TEXT REFERENCES bugs(bug_id), size INTEGER NOT NULL, thresholds_json TEXT NOT NULL,
        status TEXT NOT NULL {_one_of("status", GROUP_STATUSES)})""",
    """CREATE TABLE episodes (
        episode_id TEXT PRIMARY KEY, group_id TEXT NOT NULL REFERENCES groups(group_id),
        member INTEGER NOT NULL, "update" INTEGER NOT NULL, role TEXT NOT NULL,
        repository TEXT NOT NULL, strategy TEXT NOT NULL,
        bug_id TEXT REFERENCES bugs(bug_id), finish TEXT NOT NULL, path TEXT NOT NULL,
        turns INTEGER NOT NULL, action_tokens INTEGER NOT NULL, total_tokens INTEGER NOT NULL,
        weight_version_min INTEGER NOT NULL, started_at REAL NOT NULL, duration_s REAL NOT NULL,
        reward REAL, advantage REAL, consumed_update INTEGER REFERENCES updates("update"),
        masked INTEGER NOT NULL, note TEXT NOT NULL, UNIQUE (group_id, member))""",
    """CREATE TABLE verdicts (
        episode_id TEXT PRIMARY KEY REFERENCES episodes(episode_id), accepted INTEGER NOT NULL,
        failed_check TEXT NOT NULL, reason TEXT NOT NULL, checks_json TEXT NOT NULL,
        duration_s REAL NOT NULL, test_runs INTEGER NOT NULL, cached_runs INTEGER NOT NULL)""",
    """CREATE TABLE checks (
        episode_id TEXT NOT NULL REFERENCES verdicts(episode_id), place INTEGER NOT NULL,
        name TEXT NOT NULL, passed INTEGER NOT NULL, reason TEXT NOT NULL, duration_s REAL NOT NULL,
        PRIMARY KEY (episode_id, place))""",
    f"""CREATE TABLE bugs (
        bug_id TEXT PRIMARY KEY, repository TEXT NOT NULL, environment_key TEXT NOT NULL,
        base_commit TEXT NOT NULL, "order" INTEGER NOT NULL CHECK ("order" IN (1, 2)),
        parent_bug_id TEXT REFERENCES bugs(bug_id),
        parent_episode_id TEXT REFERENCES episodes(episode_id),
        injector_episode_id TEXT REFERENCES episodes(episode_id),
        strategy TEXT NOT NULL, target TEXT NOT NULL, artifact TEXT NOT NULL, attempt_patch TEXT NOT NULL,
        fail_to_pass TEXT NOT NULL, pass_to_pass TEXT NOT NULL, failure TEXT NOT NULL,
        tree_digest TEXT NOT NULL UNIQUE, status TEXT NOT NULL {_one_of("status", BUG_STATUSES)},
        solve_rate REAL CHECK (solve_rate BETWEEN 0 AND 1), first_solve_rate REAL,
        attempts INTEGER NOT NULL, passes INTEGER NOT NULL, created_update INTEGER NOT NULL,
        created_at REAL NOT NULL, CHECK (("order" = 2) = (parent_bug_id IS NOT NULL)))""",
    """CREATE TABLE attempts (
        episode_id TEXT PRIMARY KEY REFERENCES episodes(episode_id),
        bug_id TEXT NOT NULL REFERENCES bugs(bug_id), passed INTEGER, reason TEXT NOT NULL,
        failed_tests TEXT NOT NULL, confirmed INTEGER, restored TEXT NOT NULL,
        patch TEXT NOT NULL, duration_s REAL NOT NULL)""",
    """CREATE TABLE failures (
        "update" INTEGER NOT NULL, phase TEXT NOT NULL, message TEXT NOT NULL, at REAL NOT NULL)""",
    "CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    'CREATE INDEX groups_by_update ON groups ("update", role)',
    "CREATE INDEX groups_by_status ON groups (status)",
    "CREATE INDEX groups_by_bug ON groups (bug_id)",
    "CREATE INDEX attempts_by_bug ON attempts (bug_id)",
    "CREATE INDEX bugs_by_status ON bugs (status)",
)


@migrations(name="0001 runs, episodes and bugs")
def _first(db: Database) -> None:
    for statement in FIRST_SCHEMA:
        db.execute(statement)


@migrations(name="0002 failed turns of an episode")
def _failed_turns(db: Database) -> None:
    db.execute("ALTER TABLE episodes ADD COLUMN failed_turns INTEGER NOT NULL DEFAULT 0")


# For pages of a long list of bugs, for the relations of one bug, and for rejected artifacts. The first one
# holds every column that a list filters or sorts by: such a query reads no row that it does not show.
LISTING_INDEXES = (
    """CREATE INDEX bugs_listed ON bugs
        (created_update, repository, strategy, "order", status, solve_rate, created_at)""",
    "CREATE INDEX bugs_by_repository ON bugs (repository, created_update)",
    "CREATE INDEX bugs_by_solve_rate ON bugs (solve_rate IS NULL, solve_rate, created_update)",
    "CREATE INDEX bugs_by_parent ON bugs (parent_bug_id)",
    "CREATE INDEX bugs_by_injector ON bugs (injector_episode_id)",
    "CREATE INDEX bugs_by_attempt ON bugs (parent_episode_id)",
    "CREATE INDEX verdicts_by_check ON verdicts (accepted, failed_check)",
)


@migrations(name="0003 indexes for lists")
def _listing_indexes(db: Database) -> None:
    for statement in LISTING_INDEXES:
        db.execute(statement)


# Migrations that add indexes only. A reader needs no copy of a database that lacks them.
INDEXES_ONLY = ("0003 indexes for lists",)


def is_readable(applied: Sequence[str]) -> bool:
    """True if a database with these versions has all tables and columns that a reader reads."""
    return [*applied] == [name for name in known_versions() if name in applied or name not in INDEXES_ONLY]


def apply(db: Database) -> None:
    """Apply the migrations that the database lacks.

    Earlier versions made the table of migrations before the first transaction. A kill could leave that table
    alone, without its index; it is made again.
    """
    with db.atomic():
        if is_empty(db):
            db.execute(f"DROP TABLE IF EXISTS {migrations.migrations_table}")
        migrations.apply(db)


def is_empty(db: Database) -> bool:
    """True for a database that nobody uses: it has no table, or an empty table of migrations only."""
    return all(name == migrations.migrations_table and not db[name].count for name in db.table_names())


def known_versions() -> list[str]:
    return [migration.name for migration in migrations._migrations]


def applied_versions(db: Database) -> list[str]:
    return [applied.name for applied in migrations.applied(db)]
