"""A pytest plugin that notes which files hold the collected tests, as JSON in /submit/collected.json.

Invariant: it only watches. `only_doctests`: no test function is in the file. `odd_ids`: the summary cannot carry an id.
"""

import json
from pathlib import Path

OUTPUT = "/submit/collected.json"
MAX_FILES = 10_000

IMPORTING = "/submit/importing.txt"  # the file that is imported now

failed = []


def pytest_collectstart(collector):
    name = str(collector.nodeid)
    if name.endswith(".py"):
        Path(IMPORTING).write_text(name, encoding="utf-8")


def pytest_collectreport(report):
    if report.failed and len(failed) < MAX_FILES:
        failed.append(str(report.nodeid))


def pytest_collection_finish(session):
    root = Path(str(getattr(session.config, "rootpath", None) or session.config.rootdir))  # before pytest 6.1: rootdir
    files = {}
    has_odd_ids = False
    for item in session.items:
        name = str(item.nodeid)
        has_odd_ids = has_odd_ids or " - " in name or not name.isprintable()
        path = name.partition("::")[0]
        if not (root / path).is_file():
            try:
                path = Path(str(getattr(item, "path", None) or item.fspath)).relative_to(root).as_posix()
            except ValueError:
                continue
        is_doctest = any(kind.__name__ == "DoctestItem" for kind in type(item).__mro__)
        if path in files or len(files) < MAX_FILES:
            files[path] = files.get(path, True) and is_doctest
    record = {"only_doctests": files, "odd_ids": has_odd_ids, "tests": len(session.items), "failed": failed}
    Path(OUTPUT).write_text(json.dumps(record), encoding="utf-8")
