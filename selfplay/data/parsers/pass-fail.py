"""Reads `PASS: name` (automake) and `--- FAIL: name (0.01s)` (go) on stdin and prints {test id: "passed" | "failed"} as JSON.

Skipped and expected failures are left out. Invariant: a name that failed once has failed.
"""

import json
import re
import sys

LINE = re.compile(r"\s*(?:--- )?(PASS|FAIL|ERROR|XPASS): (\S.*)")
DURATION = re.compile(r" \(\d+(?:\.\d+)?s\)$")
MAX_ID = 4096


def parse(log):
    outcomes = {}
    for line in log.split("\n"):
        found = LINE.fullmatch(line.rstrip())
        if found:
            name = DURATION.sub("", found[2])
            failed = found[1] != "PASS" or outcomes.get(name) == "failed"
            outcomes[name] = "failed" if failed else "passed"
    return {name: outcome for name, outcome in sorted(outcomes.items()) if len(name) <= MAX_ID and name.isprintable()}


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    json.dump(parse(text), sys.stdout)
