"""A pytest plugin that notes when each test function begins, one JSON line in /submit/times.jsonl: [seconds, kind, name].

Each line is written at once, so the record is there when the run is killed. Parameters of a function count as one.
Tests of a file may run apart, since pytest groups tests by the fixtures of a session: "whole" says that all have run.
With limits (SELFPLAY_TIME_LIMITS: seconds of a test, a file, the run) it ends tests and leaves out what comes after.
"""

import json
import os
import signal
import time
from collections import Counter

import pytest

STARTED = time.monotonic()
OUTPUT = "/submit/times.jsonl"
MAX_BYTES = 4 << 20  # of the record
MAX_ENDED = 3  # tests of a file that are ended before the rest of the file is left out

# Processes that tests start must not load this plugin.
os.environ.pop("PYTEST_PLUGINS", None)
limits = [float(text) for text in os.environ.pop("SELFPLAY_TIME_LIMITS", "").split()]
test_s, file_s, run_s = limits or (0.0, float("inf"), float("inf"))


class Recorder:
    def __init__(self):
        self.output = None
        self.session = None
        self.written = 0
        self.function = ""
        self.left = Counter()  # by file: tests that have not run
        self.spent = Counter()  # by file: seconds
        self.ended = Counter()  # by file: tests
        self.left_out = set()
        self.passed = set()

    def note(self, kind, name):
        line = json.dumps([round(time.monotonic() - STARTED, 3), kind, name]) + "\n"
        self.written += len(line)
        if self.output and self.written <= MAX_BYTES:
            self.output.write(line)
            self.output.flush()

    def begin(self, item):
        function = item.nodeid.partition("[")[0]
        if function != self.function:
            self.function = function
            self.note("test", function)

    def finish(self, file, took_s):
        self.spent[file] += took_s
        self.left[file] -= 1
        if self.left[file] == 0:
            self.note("whole", file)

    def is_over(self, file):
        return time.monotonic() - STARTED > run_s or self.spent[file] > file_s or self.ended[file] >= MAX_ENDED

    def end_test(self, *_):
        self.ended[file_of(self.function)] += 1
        self.note("ended", self.function)
        pytest.fail(f"selfplay: this test ran longer than {test_s:.0f} s", pytrace=False)


def file_of(node_id):
    return node_id.partition("::")[0]


recorder = Recorder()


def pytest_sessionstart(session):
    if recorder.session is None:  # others are sessions that tests start
        recorder.session = session
        recorder.output = open(OUTPUT, "w", encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    if session is recorder.session:
        recorder.left.update(file_of(item.nodeid) for item in session.items)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    if item.session is not recorder.session:
        yield
        return
    recorder.begin(item)
    began = time.monotonic()
    if test_s:
        signal.signal(signal.SIGALRM, recorder.end_test)
        signal.setitimer(signal.ITIMER_REAL, test_s, test_s)
    yield
    if test_s:
        signal.setitimer(signal.ITIMER_REAL, 0)
    recorder.finish(file_of(item.nodeid), time.monotonic() - began)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    file = file_of(item.nodeid)
    if item.session is recorder.session and recorder.is_over(file):
        if file not in recorder.left_out:
            recorder.left_out.add(file)
            recorder.note("left out", file)
        pytest.skip("selfplay: no time is left")


def pytest_runtest_logreport(report):
    function = report.nodeid.partition("[")[0]
    if report.when == "call" and report.passed and function == recorder.function and function not in recorder.passed:
        recorder.passed.add(function)
        recorder.note("passed", function)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if session is recorder.session:
        recorder.note("end", "")
