"""A pytest plugin that notes which functions of /testbed each test calls while it runs; calls made by imports do not count.

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

    def forget_others(self):
        self.codes = {key: code for key, code in self.codes.items() if code.co_filename.startswith(ROOT)}

    def functions(self):
        self.forget_others()  # those that a thread called after the test's end
        return {(path_of(code), code.co_firstlineno, code.co_name) for code in self.codes.values()}


def path_of(code):
    """The file below ROOT. Tests that put `tests/..` on sys.path import files by a name with dots."""
    return os.path.normpath(code.co_filename)[len(ROOT) :]


tests = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    test = tests.setdefault(item.nodeid, Test())
    started = time.monotonic()
    threading.setprofile(test.watch)
    sys.setprofile(test.watch)
    yield
    sys.setprofile(None)
    threading.setprofile(None)
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
    Path(OUTPUT).write_text(json.dumps({"functions": list(numbers), "files": files, "tests": called}), encoding="utf-8")
