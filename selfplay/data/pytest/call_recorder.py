"""A pytest plugin that notes which functions of /testbed each test calls while it runs; calls made by imports do not count.

A test runs unwatched after MAX_CALLS calls, since watching takes several times as long as the test.
It also notes, for the whole session: which files of /testbed are opened, and which modules are imported, each with the file of
/testbed whose code does it ("" for pytest itself). How Python reads its modules does not count.

Invariant: it only watches. What it saw is written as JSON to /submit/calls.json when the session ends, each function once.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = "/testbed/"
OUTPUT = "/submit/calls.json"
MAX_CALLS = 200_000  # of a test that are watched; a number of seconds would give other targets each time
MAX_NOTES = 8000  # opened files, and imports
MAX_PATH = 400  # characters
READERS = ("<frozen importlib", "linecache.py", "tokenize.py", "inspect.py", "assertion/rewrite.py", "_code/source.py")
MAX_TEST_CHARACTERS = 4 << 20  # of all tests together, since /submit is small; what test files call is kept whatever happens


class Test:
    __test__ = False

    def __init__(self):
        self.codes = {}  # by id, since comparing code objects compares their contents
        self.calls = 0
        self.duration_s = 0.0

    def watch(self, frame, event, argument):
        if event == "call":
            self.calls += 1
            code = frame.f_code
            if id(code) not in self.codes:
                self.codes[id(code)] = code
            if self.calls >= MAX_CALLS:
                stop_watching()

    def forget_others(self):
        self.codes = {key: code for key, code in self.codes.items() if code.co_filename.startswith(ROOT)}

    def functions(self):
        self.forget_others()  # those that a thread called after the test's end
        return {(path_of(code), code.co_firstlineno, code.co_name) for code in self.codes.values()}


def stop_watching():
    """In this thread, and in those that start later; others end here at their next call."""
    sys.setprofile(None)
    threading.setprofile(None)


def path_of(code):
    """The file below ROOT. Tests that put `tests/..` on sys.path import files by a name with dots."""
    return os.path.normpath(code.co_filename)[len(ROOT) :]


opened, imported = set(), set()


def origin():
    """The file of /testbed whose code is running, "" for none, and whether Python or pytest reads source for it."""
    frame, reads_source = sys._getframe(2), False
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            return name[len(ROOT) :], reads_source
        reads_source = reads_source or name.startswith(READERS[0]) or name.endswith(READERS[1:])
        frame = frame.f_back
    return "", reads_source


def note_file(path):
    if isinstance(path, (str, bytes, os.PathLike)):
        path = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(path)))
        if path.startswith(ROOT) and len(path) <= MAX_PATH and len(opened) < MAX_NOTES:
            opener, reads_source = origin()
            if not (reads_source and path.endswith((".py", ".pyc"))):
                opened.add((path[len(ROOT) :], opener))


def note(event, arguments):
    try:
        if event in ("open", "sqlite3.connect"):
            note_file(arguments[0])
        elif event == "subprocess.Popen":
            for argument in arguments[1] if isinstance(arguments[1], (list, tuple)) else ():
                if isinstance(argument, str) and "\n" not in argument and os.path.isfile(argument):
                    note_file(argument)
        elif event == "import" and len(imported) < MAX_NOTES and len(arguments[0]) <= MAX_PATH:
            imported.add((arguments[0], origin()[0]))
    except Exception:  # tests replace functions that this uses
        pass


sys.addaudithook(note)
tests = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    test = tests.setdefault(item.nodeid, Test())
    started = time.monotonic()
    threading.setprofile(test.watch)
    sys.setprofile(test.watch)
    yield
    stop_watching()
    test.duration_s += time.monotonic() - started
    test.forget_others()


def pytest_sessionfinish():
    numbers = {}
    files = {}
    called = {}
    room = MAX_TEST_CHARACTERS
    for name, test in tests.items():
        indices = sorted(numbers.setdefault(function, len(numbers)) for function in sorted(test.functions()))
        file = files.setdefault(name.partition("::")[0], {"calls": 0, "duration_s": 0.0, "functions": set()})
        file["calls"] += test.calls
        file["duration_s"] += test.duration_s
        file["functions"].update(indices)
        room -= len(json.dumps({name: indices}))
        if room >= 0:
            called[name] = indices
    for file in files.values():
        file["functions"] = sorted(file["functions"])
    seen = {"functions": list(numbers), "files": files, "tests": called, "opened": sorted(opened), "imported": sorted(imported)}
    Path(OUTPUT).write_text(json.dumps(seen), encoding="utf-8")
