"""Reads the log of sympy's `bin/test --verbose` and prints {test id: "passed" | "failed"} as JSON.

An id is the name of a test's function, as SWE-bench has it: `test_x ok`, `test_x F`, `test_x E`. Skipped tests and expected failures
are left out. Invariant: a name that failed once has failed.
"""

import json
import re
import sys

RESULT = re.compile(r"(test_\w+)(?: .*)? (ok|F|E)(?:\s+\[\w+\])?")
MAX_ID = 4096


def parse(log):
    outcomes = {}
    for line in log.split("\n"):
        found = RESULT.fullmatch(line.strip())
        if found:
            failed = found[2] != "ok" or outcomes.get(found[1]) == "failed"
            outcomes[found[1]] = "failed" if failed else "passed"
    return {name: outcome for name, outcome in sorted(outcomes.items()) if len(name) <= MAX_ID}


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    json.dump(parse(text), sys.stdout)
