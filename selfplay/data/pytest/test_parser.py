"""Reads the log of `pytest -rA` on stdin and prints {test id: "passed" | "failed"} as JSON.

Only the short summary counts. Skipped and expected failures are left out; an error or a failed subtest fails its test.
Invariant: a log with no summary, an unfinished one or more than one yields no result at all.
"""

import json
import re
import sys

HEADER = re.compile(r"=+ short test summary info =+")
END = re.compile(r"(=+ )?(no tests ran|\d+ [a-z]+\b.*) in \d+(\.\d+)?s( \([\d:]+\))?( =+)?")
LINE = re.compile(r"(PASSED|FAILED|ERROR) (.*)")
SUBTEST = re.compile(r"SUBFAIL(?:ED)?(?![A-Za-z])(.*)")
TEST_FILE = re.compile(r"(?<=[\s\])])[^\s:]+\.py::")
MAX_ID = 4096


def without_message(text):
    """The test id before ` - message`. Parameters may hold ` - ` too, so inside brackets the id goes on until one closes."""
    start = 0
    while True:
        at = text.find(" - ", start)
        if at < 0:
            return text if text.endswith("]") else text.partition(" - ")[0]
        name = text[:at]
        if "[" not in name or name.endswith("]"):
            return name
        start = at + 1


def parse(log):
    lines = [line.rstrip("\r") for line in log.split("\n")]  # pytest ends lines with \n alone; messages may hold other breaks
    headers = [number for number, line in enumerate(lines) if HEADER.fullmatch(line)]
    if len(headers) != 1:
        return {}
    passed, failed, subtests = set(), set(), []
    for line in lines[headers[0] + 1 :]:
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
        names = [without_message(text[found.start() :]) for found in TEST_FILE.finditer(text)]
        failed.update([name for name in names if name in passed or name in failed][:1] or names[:1])
    outcomes = dict.fromkeys(sorted(passed - failed), "passed") | dict.fromkeys(sorted(failed), "failed")
    return {name: outcome for name, outcome in outcomes.items() if 0 < len(name) <= MAX_ID and name.isprintable()}


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    json.dump(parse(text), sys.stdout)
