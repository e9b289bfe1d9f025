"""Reads the log of `pytest -rA` on stdin and prints {test id: "passed" | "failed"} as JSON.

Only the short summary counts. Skipped and expected failures are left out; an error or a failed subtest fails its test.
Invariants: a log with no summary, an unfinished one or more than one yields no result at all. The log may be hostile, so the
work is linear in its size.
"""

import itertools
import json
import re
import sys

HEADER = re.compile(r"=+ short test summary info =+")
END = re.compile(r"(=+ )?(no tests ran|\d+ [a-z]+\b.*) in \d+(\.\d+)?s( \([\d:]+\))?( =+)?")
LINE = re.compile(r"(PASSED|FAILED|ERROR) (.*)")
SUBTEST = re.compile(r"SUBFAIL(?:ED)?(?![A-Za-z])(.*)")
WORD = re.compile(r"[^\s:]+")
MAX_ID = 4096
MAX_LINE = 1 << 16  # characters of a line that are read: an id ends long before
MAX_NAMES = 20  # names that the line of a failed subtest may mean


def without_message(text):
    """The test id before ` - message`. Parameters may hold ` - ` too, so inside brackets the id goes on until one closes."""
    bracket = text.find("[")
    at = text.find(" - ")
    while at >= 0:
        if not 0 <= bracket < at or text[at - 1] == "]":
            return text[:at]
        at = text.find(" - ", at + 1)
    return text if text.endswith("]") else text.partition(" - ")[0]


def test_files(text):
    """Where ids may begin: at each `path.py::` after a blank or a bracket that closes."""
    for found in WORD.finditer(text):
        start, end = found.span()
        if found[0].endswith(".py") and text.startswith("::", end):
            if start == 0 or not text[start - 1].isspace():
                closed = [at for at in (found[0].find("]"), found[0].find(")")) if at >= 0]
                if not closed:
                    continue
                start += min(closed) + 1
            if start < end - 3:
                yield start


def parse(log):
    lines = [line.rstrip("\r") for line in log.split("\n")]  # pytest ends lines with \n alone; messages may hold other breaks
    headers = [number for number, line in enumerate(lines) if HEADER.fullmatch(line)]
    if len(headers) != 1:
        return {}
    passed, failed, subtests = set(), set(), []
    for line in lines[headers[0] + 1 :]:
        line = line[:MAX_LINE]
        if END.fullmatch(line):
            break
        found = LINE.fullmatch(line)
        if found and found[1] == "PASSED":
            passed.add(found[2])
        elif found:
            failed.add(without_message(found[2]))
        else:
            found = SUBTEST.fullmatch(line)
            if found:
                subtests.append(found[1])
    else:
        return {}  # the process ended before pytest did
    for text in subtests:
        names = [without_message(text[start:]) for start in itertools.islice(test_files(text), MAX_NAMES)]
        failed.update([name for name in names if name in passed or name in failed][:1] or names[:1])
    outcomes = dict.fromkeys(sorted(passed - failed), "passed") | dict.fromkeys(sorted(failed), "failed")
    return {name: outcome for name, outcome in outcomes.items() if 0 < len(name) <= MAX_ID and name.isprintable()}


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    json.dump(parse(text), sys.stdout)
