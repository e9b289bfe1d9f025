"""Seconds to the first page of `selfplay inspect-bugs` in a database with very many bugs.

    python -m benchmarks.bug_list [--bugs 1000000] [--folder FOLDER] [--runs 3]

It makes a synthetic database, unless the folder has one, then opens it and reads one page of bugs in several
ways.
The reference is the plain way, `Store.bugs`, which reads every row: on a database of 1/100 of the bugs, since
it takes minutes on the whole. "ratio" is the reference's seconds per bug times the number of bugs, divided by
the seconds of the page, both of CPU.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from selfplay.curriculum.bug_filter import BugFilter
from selfplay.curriculum.rows import BugRow, stored
from selfplay.curriculum.store import Store
from selfplay.viewing.inspect import PAGE, listed_bugs

REPOSITORIES = 300
STRATEGIES = 4
SAMPLES = 500
QUERIES = {
    "the first page": BugFilter(),
    "the last page": BugFilter(reverse=True),
    "sorted by solve rate": BugFilter(sort="solve_rate"),
    "sorted by repository, backwards": BugFilter(sort="repository", reverse=True),
    "one repository": BugFilter(repository="repository-7"),
    "three filters, sorted by solve rate": BugFilter(
        strategy="strategy-2", status="measured", min_solve_rate=0.1, max_solve_rate=0.6, sort="solve_rate"
    ),
    "a filter that nothing passes": BugFilter(repository="none", min_solve_rate=0.5),
}


def a_bug(number: int) -> BugRow:
    """A bug with diffs of a usual size."""
    file = f"package/module_{number % 40}.py"
    inject = (
        f"diff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n@@ -{number},3 +{number},3 @@\n"
        f" def function_{number}(values, low, high):\n-    return max(low, min(values, high))\n"
        f"+    return max(low, min(values, low + {number % 9}))\n     # the end\n"
    )
    return BugRow(
        bug_id=f"bug-{number}",
        repository="",
        environment_key="env",
        base_commit="0" * 40,
        order=1,
        parent_bug_id=None,
        parent_episode_id=None,
        injector_episode_id="",
        strategy="",
        target=json.dumps({"path": file, "name": f"function_{number}"}),
        artifact={"bug_inject.diff": inject, "test_weaken.diff": inject, "test_files.txt": "test_m.py\n"},
        attempt_patch="",
        fail_to_pass=("tests/test_m.py::test_x",),
        pass_to_pass=tuple(f"tests/test_m.py::test_{test}" for test in range(8)),
        failure="E   AssertionError",
        tree_digest=f"{number}",
    )


# Columns that differ between copies of one sample, as SQL of the copy's number `n`. (n * 7919) % p is as good
# as a random draw here, and the same in each database.
VARIED = {
    "bug_id": "bug_id || '-' || n",
    "tree_digest": "tree_digest || '-' || n",
    "repository": f"'repository-' || ((n * 7919) % {REPOSITORIES})",
    "strategy": f"'strategy-' || ((n * 104729) % {STRATEGIES})",
    "status": "CASE (n * 1299709) % 10 WHEN 0 THEN 'fresh' ELSE 'measured' END",
    "solve_rate": "CASE (n * 1299709) % 10 WHEN 0 THEN NULL ELSE ((n * 15485863) % 9) / 8.0 END",
    "created_update": "n / 64",
    "created_at": "1.7e9 + n",
}


def make_database(path: Path, count: int) -> None:
    """Copies of a few samples, made by SQLite itself in one transaction. The schema is a run's."""
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        samples = [stored(a_bug(number)) for number in range(SAMPLES)]
        columns = ", ".join(f'"{name}"' for name in samples[0])
        connection.execute("CREATE TEMP TABLE samples AS SELECT * FROM bugs WHERE 0")
        marks = ", ".join("?" * len(samples[0]))
        connection.executemany(
            f"INSERT INTO samples ({columns}) VALUES ({marks})", [tuple(one.values()) for one in samples]
        )
        copied = ", ".join(VARIED.get(name, f'"{name}"') for name in samples[0])
        connection.execute(
            f"""INSERT INTO bugs ({columns})
            WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
            SELECT {copied} FROM numbers JOIN samples ON samples.rowid = 1 + n % {SAMPLES}""",
            (count - 1,),
        )
        connection.commit()


def seconds(call: Callable[[], object], runs: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of a call, the smallest of `runs`: other processes only add to it."""
    taken = []
    for _ in range(runs):
        wall, used = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - wall, time.process_time() - used))
    return min(wall for wall, _ in taken), min(used for _, used in taken)


def open_and_list(path: Path, wanted: BugFilter) -> int:
    """What the screen does before it shows the first page: open, count, read a page, make its texts."""
    with closing(Store.open(path, writer=False)) as store:
        count = store.count_bugs(wanted)
        return len(listed_bugs(store, store.bug_page(wanted, 0, PAGE))) + count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bugs", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        whole, part = folder / f"bugs-{asked.bugs}.db", folder / f"bugs-{asked.bugs // 100}.db"
        for path, count in ((whole, asked.bugs), (part, asked.bugs // 100)):
            if not path.exists():
                make_database(path, count)
        report(whole, part, asked.bugs, asked.runs)


def report(whole: Path, part: Path, bugs: int, runs: int) -> None:
    def plainly() -> int:
        with closing(Store.open(part, writer=False)) as store:
            return len(store.bugs())

    wall, reference = (100 * taken for taken in seconds(plainly, 1))
    print(f"{bugs:,} bugs, {whole.stat().st_size / 1e6:,.0f} MB; seconds are wall / CPU")
    print(f"{'reference: Store.bugs, 100 times 1/100 of the rows':<52}{wall:9.3f} /{reference:8.3f}")
    for name, wanted in QUERIES.items():
        wall, taken = seconds(lambda wanted=wanted: open_and_list(whole, wanted), runs)
        print(f"{name:<52}{wall:9.3f} /{taken:8.3f}   ratio {reference / taken:8,.0f}")


if __name__ == "__main__":
    main()
