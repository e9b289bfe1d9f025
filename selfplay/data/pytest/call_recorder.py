"""A pytest plugin that notes which functions of /testbed each test file calls while its tests run; calls made by imports do not count.

Invariant: it only watches. What it saw is written as JSON to /submit/calls.json when the session ends.
"""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = "/testbed/"
OUTPUT = "/submit/calls.json"


class TestFile:
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

    def functions(self):
        places = {
            (code.co_filename[len(ROOT) :], code.co_firstlineno, code.co_name)
            for code in self.codes.values()
            if code.co_filename.startswith(ROOT)
        }
        return sorted(places)


files = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    test_file = files.setdefault(item.nodeid.partition("::")[0], TestFile())
    started = time.monotonic()
    threading.setprofile(test_file.watch)
    sys.setprofile(test_file.watch)
    yield
    sys.setprofile(None)
    threading.setprofile(None)
    test_file.duration_s += time.monotonic() - started


def pytest_sessionfinish():
    seen = {
        name: {"calls": test_file.calls, "duration_s": test_file.duration_s, "functions": test_file.functions()}
        for name, test_file in files.items()
    }
    Path(OUTPUT).write_text(json.dumps(seen), encoding="utf-8")
